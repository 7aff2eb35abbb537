"""Exact log-likelihoods of a diffusion model, by its probability-flow ODE."""

from jaxdiff.likelihood.divergence import with_divergence
from jaxdiff.likelihood.divergence import WithDivergence
from jaxdiff.likelihood.ode import Augmented
from jaxdiff.likelihood.ode import bits_per_dim
from jaxdiff.likelihood.ode import dequantize
from jaxdiff.likelihood.ode import Likelihood
from jaxdiff.likelihood.ode import log_likelihood

__all__ = [
  "Augmented",
  "Likelihood",
  "WithDivergence",
  "bits_per_dim",
  "dequantize",
  "log_likelihood",
  "with_divergence",
]
