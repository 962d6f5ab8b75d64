"""What the rest of Everframe knows of this codec without loading it."""

from conf.codecs import Declared

CODEC = Declared(names=("Wan2.1_VAE.pth", "vae"), first_frames=1, timed_by_pixels=True)
