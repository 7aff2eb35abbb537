"""Densities fitted by maximum likelihood: explicit models beside diffusion."""

from jaxdiff.densities import auxiliary_prior
from jaxdiff.densities.expectation_maximization import fit_mixture
from jaxdiff.densities.maximum_likelihood import maximum_likelihood
from jaxdiff.densities.realnvp import fit_realnvp

__all__ = [
  "auxiliary_prior",
  "fit_mixture",
  "fit_realnvp",
  "maximum_likelihood",
]
