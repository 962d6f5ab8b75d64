"""Matrix-Game 2.0 (arXiv 2508.13009): worlds that begin with a picture and are driven by keys and a mouse, no text."""
