"""Guidance: models made from models."""

from jaxdiff.guidance.cfg import CFG
from jaxdiff.guidance.cfg import cfg

__all__ = ["CFG", "cfg"]
