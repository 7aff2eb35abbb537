"""Samplers that are no tables: each brings an `advance` of its own."""

from jaxdiff.samplers.addim import addim

__all__ = ["addim"]
"""Samplers that are no tables; each brings its own `advance` to the loop."""

from jaxdiff.samplers import cld
from jaxdiff.samplers import interpolants

__all__ = ["cld", "interpolants"]
"""Samplers that are no tables.

| function              | what it does                                        |
|-----------------------|-----------------------------------------------------|
| `predictor_corrector` | Langevin steps between the steps of any table       |
| `adaptive`            | the probability-flow ODE with error control         |
| `picard`              | all steps of a table at once, until they agree      |
"""

from jaxdiff.samplers.adaptive import adaptive
from jaxdiff.samplers.adaptive import Controller
from jaxdiff.samplers.adaptive import PI
from jaxdiff.samplers.controllable import colorize
from jaxdiff.samplers.controllable import inpaint
from jaxdiff.samplers.picard import picard
from jaxdiff.samplers.predictor_corrector import predictor_corrector

__all__ = [
  "PI",
  "Controller",
  "adaptive",
  "colorize",
  "inpaint",
  "picard",
  "predictor_corrector",
"""Samplers that are no tables: chains, and jumps in front of a table."""

from jaxdiff.samplers.contrastive_divergence import contrastive_divergence
from jaxdiff.samplers.dmcmc import at_levels
from jaxdiff.samplers.dmcmc import Chain
from jaxdiff.samplers.dmcmc import chain_step
from jaxdiff.samplers.dmcmc import dmcmc
from jaxdiff.samplers.dmcmc import ExactPosterior
from jaxdiff.samplers.dmcmc import finishers
from jaxdiff.samplers.dmcmc import ladder
from jaxdiff.samplers.dmcmc import start_chain
from jaxdiff.samplers.langevin import langevin
from jaxdiff.samplers.langevin import ModelScore
from jaxdiff.samplers.teleportation import choose_skip
from jaxdiff.samplers.teleportation import gaussian_prior
from jaxdiff.samplers.teleportation import teleport
from jaxdiff.samplers.teleportation import teleport_sample
from jaxdiff.samplers.teleportation import truncate
from jaxdiff.samplers.vanilla_score import choose_time
from jaxdiff.samplers.vanilla_score import data_init
from jaxdiff.samplers.vanilla_score import stopping_time
from jaxdiff.samplers.vanilla_score import vanilla_sample

__all__ = [
  "Chain",
  "ExactPosterior",
  "ModelScore",
  "at_levels",
  "chain_step",
  "choose_skip",
  "choose_time",
  "contrastive_divergence",
  "data_init",
  "dmcmc",
  "finishers",
  "gaussian_prior",
  "ladder",
  "langevin",
  "start_chain",
  "stopping_time",
  "teleport",
  "teleport_sample",
  "truncate",
  "vanilla_sample",
]
