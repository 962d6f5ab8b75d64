"""Conditioning: text, sound and actions turned into what the network reads."""
