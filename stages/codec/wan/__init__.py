"""The Wan2.1 VAE."""
