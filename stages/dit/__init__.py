"""The diffusion transformer that most families are made of: layers, embeddings, head, 8-bit products. A family may
build on it or bring a network of its own."""
