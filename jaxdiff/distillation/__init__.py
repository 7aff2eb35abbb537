"""Distillation: few-step students of a teacher. One method, one file.

Every method is a builder of a `Method`, which `init_state`, `make_update` and
`training.train` run; `sampler` draws from what it made. To add one: its file, a
line here, entries in BUILDERS and METHODS of experiments/configs/distill.py.
"""

from jaxdiff.denoisers import Experts
from jaxdiff.distillation.consistency_distillation import (
  consistency_distillation,
)
from jaxdiff.distillation.consistency_training import consistency_training
from jaxdiff.distillation.ctm import ctm
from jaxdiff.distillation.ddo import ddo
from jaxdiff.distillation.ddo import rounds as ddo_rounds
from jaxdiff.distillation.dmd import dmd
from jaxdiff.distillation.dmd import matching as dmd_loss
from jaxdiff.distillation.dmd2 import dmd2
from jaxdiff.distillation.ect import ect
from jaxdiff.distillation.hf_diff import Details
from jaxdiff.distillation.hf_diff import feature_loss
from jaxdiff.distillation.hf_diff import fit_details
from jaxdiff.distillation.hf_diff import hf_diff
from jaxdiff.distillation.hf_diff import jensen_shannon
from jaxdiff.distillation.ict import ict
from jaxdiff.distillation.imitation import imitation
from jaxdiff.distillation.instarevive import Control
from jaxdiff.distillation.instarevive import direction_cosine
from jaxdiff.distillation.instarevive import instarevive
from jaxdiff.distillation.layer_dropping import compiled
from jaxdiff.distillation.layer_dropping import drop_layers
from jaxdiff.distillation.layer_dropping import layer_dropping
from jaxdiff.distillation.mean_flow import mean_flow
from jaxdiff.distillation.parts import critic
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts import tangents
from jaxdiff.distillation.parts import trigflow
from jaxdiff.distillation.parts.critic import Adversary
from jaxdiff.distillation.parts.fake_score import fake_score
from jaxdiff.distillation.parts.guided import guided
from jaxdiff.distillation.parts.jumps import Along
from jaxdiff.distillation.parts.jumps import along
from jaxdiff.distillation.parts.jumps import flow_map
from jaxdiff.distillation.parts.jumps import jump
from jaxdiff.distillation.parts.method import few_step_grid
from jaxdiff.distillation.parts.method import init_state
from jaxdiff.distillation.parts.method import make_update
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.method import sampler
from jaxdiff.distillation.parts.students import student_of
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.distillation.phased_dmd import phased_dmd
from jaxdiff.distillation.presto import presto
from jaxdiff.distillation.presto import presto_ls
from jaxdiff.distillation.progressive import progressive
from jaxdiff.distillation.rcm import random_simulation
from jaxdiff.distillation.rcm import rcm
from jaxdiff.distillation.reflow import pairs
from jaxdiff.distillation.reflow import reflow
from jaxdiff.distillation.reflow import straightness
from jaxdiff.distillation.scm import scm
from jaxdiff.distillation.score_mismatching import score_mismatching
from jaxdiff.distillation.shortcut import shortcut
from jaxdiff.distillation.sid import sid
from jaxdiff.distillation.sign import idempotence_error
from jaxdiff.distillation.sign import project
from jaxdiff.distillation.sign import sign
from jaxdiff.distillation.sim import check_score_gradient
from jaxdiff.distillation.sim import score_distance
from jaxdiff.distillation.sim import sim
from jaxdiff.distillation.sinsr import residuals
from jaxdiff.distillation.sinsr import restore
from jaxdiff.distillation.sinsr import sinsr
from jaxdiff.distillation.transition_matching import (
  sample as sample_transitions,
)
from jaxdiff.distillation.transition_matching import transition_matching
from jaxdiff.distillation.transition_matching import Transitions
from jaxdiff.distillation.transition_matching import transitions

__all__ = [
  "Adversary",
  "Along",
  "Control",
  "Details",
  "Experts",
  "Method",
  "Transitions",
  "along",
  "check_score_gradient",
  "compiled",
  "consistency_distillation",
  "consistency_training",
  "critic",
  "ctm",
  "ddo",
  "ddo_rounds",
  "direction_cosine",
  "dmd",
  "dmd2",
  "dmd_loss",
  "drop_layers",
  "ect",
  "fake_score",
  "feature_loss",
  "few_step_grid",
  "fit_details",
  "flow_map",
  "generators",
  "guided",
  "hf_diff",
  "ict",
  "idempotence_error",
  "imitation",
  "init_state",
  "instarevive",
  "jensen_shannon",
  "jump",
  "layer_dropping",
  "make_update",
  "mean_flow",
  "pairs",
  "phased_dmd",
  "presto",
  "presto_ls",
  "progressive",
  "project",
  "random_simulation",
  "rcm",
  "reflow",
  "residuals",
  "restore",
  "sample_transitions",
  "sampler",
  "scm",
  "score_distance",
  "score_mismatching",
  "shortcut",
  "sid",
  "sign",
  "sim",
  "sinsr",
  "straightness",
  "student_of",
  "tangents",
  "transition_matching",
  "transitions",
  "trigflow",
  "with_params",
]
