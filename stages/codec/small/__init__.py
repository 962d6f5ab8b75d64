"""The pocket models' codec: a small causal encoder and decoder of their own latents."""
