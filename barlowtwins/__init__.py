"""Barlow Twins: pretraining, pretrained weights and embeddings."""

from barlowtwins.version import __version__

__all__ = ["__version__"]
