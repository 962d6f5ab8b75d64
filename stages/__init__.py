"""What runs inside a worker: encode, denoise, decode, and the sources and sinks at either end."""
