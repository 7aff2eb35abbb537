r"""Auxiliary prior: a density at a small time that a short diffusion begins at.

The noise at tau smooths the data, so that a small model nu, fitted by maximum
likelihood to x_tau, is close to p_tau where N(0, I) is not. Sampling draws
x_tau from nu and walks any table on from there; the bound on the likelihood is
`diffusion_time.elbo_curve` with log_nu=prior.log_nu. It beats that of T >
tau if KL(p_tau || nu) <= G(T) - G(tau) + KL(p_T || N). Reference: Franzese et
al. (2022), https://arxiv.org/abs/2206.05173, section 4.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import sampling
from jaxdiff.densities.expectation_maximization import fit_mixture
from jaxdiff.densities.realnvp import fit_realnvp
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model

FAMILIES = ("gauss", "gmm", "realnvp")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Auxiliary:
  """A density of x_tau that can be sampled and evaluated; a pytree.

  Attributes:
    density: has log_prob(x f[n, d]) -> f[n] and sample(key, n) -> (x, ...).
    tau: the time that it was fitted at.
    shape: shape of one sample.
  """

  density: Any
  tau: float = dataclasses.field(default=0.0, metadata={"static": True})
  shape: tuple[int, ...] = dataclasses.field(
    default=(), metadata={"static": True}
  )

  def sample(
    self, key: jax.Array, n: int, index: ArrayLike | None = None
  ) -> jax.Array:
    """Returns n draws of x_tau, f[n, ...]; a draw depends on its index."""
    control.check_index(index)
    index = jnp.arange(n) if index is None else jnp.asarray(index)
    one = lambda i: self.density.sample(jax.random.fold_in(key, i), 1)[0][0]
    return jax.vmap(one)(index).reshape(n, *self.shape)

  def log_nu(self, x: jax.Array, t: float) -> jax.Array:
    """Returns log nu(x), f[n], for `elbo_curve`.

    Raises:
      ValueError: for a time other than the one it was fitted at.
    """
    _check_time(self, t, "the bound is asked")
    return self.density.log_prob(x.reshape(len(x), -1))


@checks.door
def fit_auxiliary(
  key: jax.Array,
  process: GaussianProcess,
  x0: jax.Array,
  tau: float,
  family: str = "gmm",
  **options: Any,
) -> Auxiliary:
  """Returns a density fitted to the data diffused to tau.

  Args:
    key: PRNG key of the noise and the fit.
    process: the forward process.
    x0: data, f[n, ...].
    tau: within (t_min, t_max].
    family: "gauss", one Gaussian with full covariance; "gmm", a mixture, of
      components=8 or of the number in a tuple that a held-out fifth of the
      points likes best; "realnvp".
    **options: options of `fit_mixture` or `fit_realnvp`.

  Raises:
    ValueError: for an unknown family, a tau outside of the process's times, or
      fewer points than the family needs.
  """
  checks.one_of(family, FAMILIES, "family")
  checks.rising_times(process, tau)
  noise, fit = jax.random.split(key)
  x, _ = process.perturb(noise, x0, float(tau))
  shape, x = x.shape[1:], x.reshape(len(x), -1)
  if family == "realnvp":
    density = fit_realnvp(fit, x, **options)
  elif family == "gauss":
    density = fit_mixture(fit, x, 1, steps=1, starts=1, **options)
  else:
    components = options.pop("components", 8)
    if not isinstance(components, int):
      components = _chosen(fit, x, components, options)
    density = fit_mixture(fit, x, components, **options)
  return Auxiliary(density, tau=float(tau), shape=shape)


@checks.door
def sample(
  key: jax.Array,
  model: Model,
  auxiliary: Auxiliary,
  tableau: Tableau,
  n: int,
  **options: Any,
) -> Any:
  """Returns samples of any solver's table that begins at tau.

  Args:
    key: PRNG key.
    model: model(x, t) -> Prediction.
    auxiliary: where to start.
    tableau: the solver's table on a grid with start=tau.
    n: number of samples.
    **options: options of `sampling.sample`, which this is apart from the start.

  Raises:
    ValueError: if the table begins at another time.
  """
  if checks.concrete(tableau.t):
    _check_time(auxiliary, float(np.asarray(tableau.t)[0]), "the table begins")
  start = auxiliary.sample(
    jax.random.fold_in(key, _TAG), n, options.get("index")
  )
  return sampling.sample(key, model, tableau, start, **options)


_TAG = 0x617578


def _check_time(auxiliary, t, what):
  if not np.isclose(t, auxiliary.tau, rtol=1e-6):
    raise ValueError(
      f"{what} at t = {t:.6g}, but the auxiliary was fitted at tau ="
      f" {auxiliary.tau:.6g}; build the grid with start={auxiliary.tau:.6g}, or"
      " fit another auxiliary"
    )


def _chosen(key, x, candidates, options):
  """Returns the number of components that a held-out fifth likes best."""
  cut = 4 * len(x) // 5
  score = lambda k: float(
    jnp.mean(fit_mixture(key, x[:cut], k, **options).log_prob(x[cut:]))
  )
  return max(candidates, key=score)
