"""Pixels to latents and back, chunk by chunk, with all per-stream state in explicit objects.

A codec is a folder here, or a package elsewhere, which `model.codec.kind` names:

* `declared.py`: `CODEC`, a `conf.codecs.Declared`. Configuration and plans read it, so it imports no torch.
* `codec.py`: `make(codec, half)` and `build(model, codec, half, device, dtype)`, both of a half (`encoder` or
  `decoder`), as in `stages.codec.base`. `make` gives it the sizes that its file names; what `build` gives has its
  weights, from the file or from `model.init_seed`, and is on any device and of any type that converts to those.
* `files.py`, for a codec whose file `launch.inspect` should know: `FILES`, a tuple of `stages.file_kinds.FileKind`.

Of a decoder, `stages.compiled` compiles the module `decoder`, what one latent frame passes through, where it has one.
Latents have strides of 4 (time) and 8 x 8 (space), and as many channels as the network that makes them.
"""
