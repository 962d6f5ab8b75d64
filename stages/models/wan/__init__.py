"""Wan2.1 text-to-video (arXiv 2503.20314) and the few-step causal students of it: Self-Forcing, LongLive, Krea."""
