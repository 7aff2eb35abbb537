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
from jaxdiff.samplers.langevin import langevin
from jaxdiff.samplers.langevin import ModelScore
from jaxdiff.samplers.vanilla_score import choose_time
from jaxdiff.samplers.vanilla_score import data_init
from jaxdiff.samplers.vanilla_score import stopping_time
from jaxdiff.samplers.vanilla_score import vanilla_sample

__all__ = [
  "ModelScore",
  "choose_time",
  "contrastive_divergence",
  "data_init",
  "langevin",
  "stopping_time",
  "vanilla_sample",
]
