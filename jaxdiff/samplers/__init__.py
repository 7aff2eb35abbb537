"""Samplers that are no tables; each brings its own `advance` to the loop.

| function              | what it does                                        |
|-----------------------|-----------------------------------------------------|
| `predictor_corrector` | Langevin steps between the steps of any table       |
| `inpaint`, `colorize` | the same, part of the answer known                  |
| `adaptive`            | the probability-flow ODE with error control         |
| `picard`              | all steps of a table at once, until they agree      |
| `langevin`            | a chain at one noise level, or down a ladder        |
| `vanilla_sample`      | a short chain from the data                         |
| `dmcmc`               | a chain in (x, sigma), finished by a table          |
| `teleport_sample`     | the first steps of a table in closed form           |
| `addim`               | DDIM with the variance that it lost                 |
"""

from jaxdiff.samplers.adaptive import adaptive
from jaxdiff.samplers.adaptive import Controller
from jaxdiff.samplers.adaptive import PI
from jaxdiff.samplers.addim import addim
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
from jaxdiff.samplers.picard import picard
from jaxdiff.samplers.predictor_corrector import predictor_corrector
from jaxdiff.samplers.replacement import colorize
from jaxdiff.samplers.replacement import inpaint
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
  "Controller",
  "ExactPosterior",
  "ModelScore",
  "PI",
  "adaptive",
  "addim",
  "at_levels",
  "chain_step",
  "choose_skip",
  "choose_time",
  "colorize",
  "contrastive_divergence",
  "data_init",
  "dmcmc",
  "finishers",
  "gaussian_prior",
  "inpaint",
  "ladder",
  "langevin",
  "picard",
  "predictor_corrector",
  "start_chain",
  "stopping_time",
  "teleport",
  "teleport_sample",
  "truncate",
  "vanilla_sample",
]
