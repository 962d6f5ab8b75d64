"""The network of Wan2.1: the shared transformer as it is."""

from stages.dit.network import Transformer as Network

__all__ = ["Network"]
