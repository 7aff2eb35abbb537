"""Samplers that are no tables: each brings an `advance` of its own."""

from jaxdiff.samplers.addim import addim

__all__ = ["addim"]
"""Samplers that are no tables; each brings its own `advance` to the loop."""

from jaxdiff.samplers import cld
from jaxdiff.samplers import interpolants

__all__ = ["cld", "interpolants"]
