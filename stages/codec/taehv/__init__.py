"""A small distilled decoder of another codec's latents, for low latency at some loss of detail."""
