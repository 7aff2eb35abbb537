"""Guidance: models made from models."""

from jaxdiff.guidance.cfg import CFG
from jaxdiff.guidance.cfg import cfg
from jaxdiff.guidance.classifier import classifier_guided
from jaxdiff.guidance.classifier import ClassifierGuided

__all__ = ["CFG", "ClassifierGuided", "cfg", "classifier_guided"]
