"""Guidance: models made from models."""

from jaxdiff.guidance.cfg import CFG
from jaxdiff.guidance.cfg import cfg
from jaxdiff.guidance.cfg import Guided
from jaxdiff.guidance.cfg import guided
from jaxdiff.guidance.classifier import classifier_guided
from jaxdiff.guidance.classifier import ClassifierGuided
from jaxdiff.guidance.threshold import clip_x0
from jaxdiff.guidance.threshold import Clipped
from jaxdiff.guidance.threshold import dynamic_threshold
from jaxdiff.guidance.threshold import Thresholded

__all__ = [
  "CFG",
  "ClassifierGuided",
  "Clipped",
  "Guided",
  "Thresholded",
  "cfg",
  "classifier_guided",
  "clip_x0",
  "dynamic_threshold",
  "guided",
]
