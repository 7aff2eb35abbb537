"""Samplers that are no tables: each brings an `advance` of its own."""

from jaxdiff.samplers.addim import addim

__all__ = ["addim"]
