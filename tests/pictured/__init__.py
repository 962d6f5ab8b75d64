"""A family that a picture and keys drive, and no prompt: a picture's latents and a mask beside the noise, its rows for
an epoch, keys with a reach. Small, and everything matters to the end."""
