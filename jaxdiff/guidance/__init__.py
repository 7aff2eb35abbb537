"""Guidance: models made from models."""

from jaxdiff.guidance.cfg import CFG
from jaxdiff.guidance.cfg import cfg
from jaxdiff.guidance.cfg import Guided
from jaxdiff.guidance.cfg import guided
from jaxdiff.guidance.classifier import classifier_guided
from jaxdiff.guidance.classifier import ClassifierGuided

__all__ = [
  "CFG",
  "ClassifierGuided",
  "Guided",
  "cfg",
  "classifier_guided",
  "guided",
]
