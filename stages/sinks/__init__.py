"""Where frames and latents go, written as they come."""
