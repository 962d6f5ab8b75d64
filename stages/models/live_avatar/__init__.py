"""Wan2.2 speech-to-video, as Live Avatar (arXiv 2512.04677) streams it: a portrait driven by sound."""
