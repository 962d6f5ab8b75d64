"""Training: procedural data, the codec, and the recipe from a bidirectional teacher to a streaming student."""
