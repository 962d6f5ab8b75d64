"""The diffusion transformer, its attention banks, and the samplers."""
