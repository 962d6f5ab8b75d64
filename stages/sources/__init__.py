"""Where conditioning comes from: image, audio and action files, or live standard input."""
