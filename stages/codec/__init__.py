"""Pixels to latents and back, chunk by chunk, with all per-stream state in explicit objects."""
