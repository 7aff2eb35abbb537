"""Weights that somebody else trained: from their files to (config, params).

Every converter is load(path) -> (training.ModelConfig, params), and nothing in
a file is ever run; `experiments/convert.py` writes the result as a run folder.
"""

from jaxdiff.weights import ddpm_mnist
from jaxdiff.weights import edm
from jaxdiff.weights import edm2
from jaxdiff.weights import pickles
from jaxdiff.weights import score_sde

__all__ = [
  "ddpm_mnist",
  "edm",
  "edm2",
  "pickles",
  "score_sde",
"""Weights that others trained, as (ModelConfig, params).

`experiments.convert` writes the pair as a run, which `training.load_denoiser`
reads and every script takes.
"""

from jaxdiff.weights.diffusers import load_dit
from jaxdiff.weights.diffusers import load_unet
from jaxdiff.weights.vits import from_dit
from jaxdiff.weights.vits import from_uvit

__all__ = [
  "from_dit",
  "from_uvit",
  "load_dit",
  "load_unet",
]
