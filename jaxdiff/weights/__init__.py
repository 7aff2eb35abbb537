"""Published weights: from their files to (config, params).

Every converter is load(path) -> (models.ModelConfig, params), and nothing in
a file is ever run; `experiments/convert.py` writes the result as a run folder.
"""

from jaxdiff.weights import ddpm_mnist
from jaxdiff.weights import diffusers
from jaxdiff.weights import dit
from jaxdiff.weights import edm
from jaxdiff.weights import edm2
from jaxdiff.weights import score_sde
from jaxdiff.weights import uvit

__all__ = [
  "ddpm_mnist",
  "diffusers",
  "dit",
  "edm",
  "edm2",
  "score_sde",
  "uvit",
]
