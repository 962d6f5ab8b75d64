"""LingBot-World-Fast (arXiv 2601.20540): a world that is drawn from a picture and a prompt, and seen through a camera
that is moved."""
