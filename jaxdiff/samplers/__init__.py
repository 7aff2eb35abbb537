"""Samplers that are no tables; each brings its own `advance` to the loop.

All are called alike and return a pair,

  x, info = sampler(key, model, what is walked, x, *, process=..., **options)

where `info` is a NamedTuple for a person to look at: calls, rounds, times, and
as `info.kept` what `collect` kept. (`sampling.sample` returns x alone, and (x,
kept) with `collect`.)

| function              | walks    | what it does                             |
|-----------------------|----------|------------------------------------------|
| `predictor_corrector` | table    | Langevin steps between a table's steps   |
| `adaptive`            | span     | the probability-flow ODE, error control  |
| `picard`              | table    | all steps at once, until they agree      |
| `side_by_side`        | table    | calls that need no other, in a batch     |
| `langevin`            | n moves  | a chain on one score                     |
| `vanilla_sample`      | time     | a short chain from the data              |
| `dmcmc`               | tables   | a chain in (x, sigma), then a table      |
| `teleport_sample`     | table    | its first steps in closed form           |
| `addim`               | grid     | DDIM with the variance that it lost      |

Chains take a score, x -> score at x, for a model, and know no process.
`inpaint` and `colorize` make a `project` for `predictor_corrector`: part of the
answer is known. `contrastive_divergence` is a loss around `langevin`.
"""

from jaxdiff.samplers.adaptive import adaptive
from jaxdiff.samplers.adaptive import AdaptiveInfo
from jaxdiff.samplers.adaptive import Controller
from jaxdiff.samplers.adaptive import PI
from jaxdiff.samplers.addim import addim
from jaxdiff.samplers.contrastive_divergence import contrastive_divergence
from jaxdiff.samplers.dmcmc import at_levels
from jaxdiff.samplers.dmcmc import Chain
from jaxdiff.samplers.dmcmc import chain_step
from jaxdiff.samplers.dmcmc import dmcmc
from jaxdiff.samplers.dmcmc import DMCMCInfo
from jaxdiff.samplers.dmcmc import ExactPosterior
from jaxdiff.samplers.dmcmc import finishers
from jaxdiff.samplers.dmcmc import ladder
from jaxdiff.samplers.dmcmc import start_chain
from jaxdiff.samplers.langevin import langevin
from jaxdiff.samplers.langevin import LangevinInfo
from jaxdiff.samplers.langevin import ModelScore
from jaxdiff.samplers.picard import picard
from jaxdiff.samplers.picard import PicardInfo
from jaxdiff.samplers.predictor_corrector import predictor_corrector
from jaxdiff.samplers.replacement import colorize
from jaxdiff.samplers.replacement import inpaint
from jaxdiff.samplers.side_by_side import side_by_side
from jaxdiff.samplers.side_by_side import SideBySideInfo
from jaxdiff.samplers.teleportation import choose_skip
from jaxdiff.samplers.teleportation import gaussian_prior
from jaxdiff.samplers.teleportation import teleport
from jaxdiff.samplers.teleportation import teleport_sample
from jaxdiff.samplers.teleportation import TeleportInfo
from jaxdiff.samplers.teleportation import truncate
from jaxdiff.samplers.vanilla_score import choose_time
from jaxdiff.samplers.vanilla_score import data_init
from jaxdiff.samplers.vanilla_score import stopping_time
from jaxdiff.samplers.vanilla_score import vanilla_sample
from jaxdiff.samplers.vanilla_score import VanillaInfo

__all__ = [
  "AdaptiveInfo",
  "Chain",
  "Controller",
  "DMCMCInfo",
  "ExactPosterior",
  "LangevinInfo",
  "ModelScore",
  "PI",
  "PicardInfo",
  "SideBySideInfo",
  "TeleportInfo",
  "VanillaInfo",
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
  "side_by_side",
  "start_chain",
  "stopping_time",
  "teleport",
  "teleport_sample",
  "truncate",
  "vanilla_sample",
]
