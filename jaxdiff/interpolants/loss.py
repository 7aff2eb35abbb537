r"""Losses of stochastic interpolants, and what they bound.

With x_t = I + gamma z and t uniform, each head is a regression, least at the
conditional mean that names it (Albergo et al. 2023, section 2):

  v    E |v|^2 / 2 - dI/dt . v
  b    E |b|^2 / 2 - (dI/dt + gamma' z) . b
  eta  E |eta|^2 / 2 - z . eta
  s    E |s|^2 / 2 + z . s / gamma

Those of b and s hold gamma' and 1 / gamma: with antithetic pairs +z and -z
their variance stays finite at the ends of a Brownian bridge.

For the density of the SDE with the learned drift b_F = b + eps s

  KL(rho_1 | learned) <= int E |error of b_F|^2 dt / (4 eps)
                      <= (E_b / eps + eps E_s) / 2,

with E_b, E_s the integrated squared errors of b and s; the last is least at eps
= sqrt(E_b / E_s) (their section 2.4). No such bound holds for the ODE.

The bridge itself can be optimized (section 3.4). The drift of a forward SDE of
diffusion eps with the bridge's marginals is b_F = E[dI/dt + c z | x_t], c =
gamma' - eps / gamma, and the Schroedinger bridge is the one of least int E
|b_F|^2:

  max over I   min over u   int E |u|^2 / 2 - (dI/dt + c z) . u dt.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import tree
from jaxdiff.interpolants.bridge import Interpolant
from jaxdiff.losses import times as times_lib
from jaxdiff.types import PyTree

Loss = Callable[[jax.Array, PyTree, dict], tuple[jax.Array, dict]]


@checks.door
def regression(
  fields: PyTree,
  *,
  antithetic: bool | None = None,
  times: times_lib.Times | None = None,
) -> Loss:
  """Returns loss(key, params, batch) -> (scalar, metrics).

  The batch is a dict with "x1" and, for two-sided interpolants, "x0", coupled
  as they stand: f[batch, ...] each. Metrics are "loss" and one "loss_<head>"
  for each head, means over values; they have no common zero, but each is least
  at its conditional mean.

  Args:
    fields: a `interpolants.Fields`; its parameters are replaced.
    antithetic: whether every pair meets +z and -z; by default if a head is b
      or s.
    times: sampler times(key, n) -> t f[n]; uniform by default.
  """
  model = dataclasses.replace(fields, params=None)
  bridge = model.interpolant
  if antithetic is None:
    antithetic = bool({"b", "s"} & set(model.heads))
  times = times or times_lib.uniform(bridge)

  def loss(key: jax.Array, params: PyTree, batch: dict):
    x0, x1 = _ends(bridge, batch)
    time_key, noise_key = jax.random.split(key)
    t = control.own_rows(lambda n: times(time_key, n), x1)
    z = tree.normal(noise_key, x1)
    own = dataclasses.replace(model, params=params)
    terms = _terms(own, bridge, t, x0, x1, z)
    if antithetic:
      opposite = _terms(own, bridge, t, x0, x1, -z)
      terms = jax.tree.map(lambda a, b: 0.5 * (a + b), terms, opposite)
    value = sum(terms.values())
    metrics = {f"loss_{head}": term for head, term in terms.items()}
    return value, dict(loss=value, **metrics)

  return loss


def _terms(model, bridge, t, x0, x1, z):
  """Returns the loss of each head, a mean over values."""
  answers = model.answer(bridge.interpolate(t, x0, x1, z), t)
  path = bridge.path_velocity(t, x0, x1)
  rate = tree.expand(bridge.gamma_dot(t), x1)
  gamma = tree.expand(bridge.gamma(t), x1)
  targets = {
    "v": lambda: path,
    "eta": lambda: z,
    "b": lambda: path + rate * z,
    "s": lambda: -z / gamma,
  }
  return {
    head: jnp.mean(0.5 * answer**2 - targets[head]() * answer)
    for head, answer in answers.items()
  }


class Errors(NamedTuple):
  """Integrated squared errors of a model of an interpolant, over [0, 1].

  Attributes:
    velocity: E_b = int E |b^ - b|^2 dt.
    score: E_s = int E |s^ - s|^2 dt.
    drift: int E |b^_F - b_F|^2 dt with b_F = b + eps s.
  """

  velocity: jax.Array
  score: jax.Array
  drift: jax.Array


@checks.door
def errors(
  key: jax.Array,
  model: Callable,
  reference: Callable,
  bridge: Interpolant,
  batch: dict,
  diffusion: float,
) -> Errors:
  """Returns the errors that the KL bound is made of, on draws of the bridge.

  Args:
    key: PRNG key.
    model: model(x, t) -> (v, eta).
    reference: the truth, likewise.
    bridge: the interpolant.
    batch: a dict with "x0" (if there is one) and "x1".
    diffusion: eps of the SDE, constant in time.
  """
  x0, x1 = _ends(bridge, batch)
  time_key, noise_key = jax.random.split(key)
  t = control.own_rows(lambda n: times_lib.uniform(bridge)(time_key, n), x1)
  z = tree.normal(noise_key, x1)
  x = bridge.interpolate(t, x0, x1, z)
  v, eta = (a - b for a, b in zip(model(x, t), reference(x, t), strict=True))
  b = v + tree.expand(bridge.gamma_dot(t), x) * eta
  s = -eta / tree.expand(bridge.gamma(t), x)
  square = lambda e: jnp.mean(tree.squared_norm(e))
  return Errors(square(b), square(s), square(b + diffusion * s))


@checks.door
def kl_bound(found: Errors, diffusion: float) -> tuple[jax.Array, jax.Array]:
  """Returns the two bounds of KL(rho_1 | rho^_1), the tighter one first.

  Raises:
    ValueError: if eps is not positive: the ODE has no such bound.
  """
  if not diffusion > 0:
    raise ValueError(
      "the losses bound the KL divergence of the SDE, eps > 0, not of the ODE;"
      f" got diffusion={diffusion}"
    )
  tight = found.drift / (4.0 * diffusion)
  loose = 0.5 * (found.velocity / diffusion + diffusion * found.score)
  return tight, loose


@checks.door
def best_diffusion(found: Errors) -> jax.Array:
  """Returns the eps of the least bound, sqrt(E_b / E_s)."""
  return jnp.sqrt(found.velocity / found.score)


@checks.door
def schroedinger(
  key: jax.Array,
  bridge: Interpolant,
  u: Callable[[jax.Array, jax.Array], jax.Array],
  batch: dict,
  diffusion: float,
) -> jax.Array:
  """Returns the objective whose max over bridges of min over u is the bridge.

  Antithetic in z. Optimize u downwards and the functions of the bridge, which
  may close over traced parameters, upwards. At the best u it is minus half the
  control cost of the forward SDE dX = u dt + sqrt(2 eps) dW.

  Args:
    key: PRNG key.
    bridge: the interpolant, with latent noise.
    u: u(x, t), the drift, for t f[batch].
    batch: a dict with "x0" and "x1", independent.
    diffusion: eps > 0, of the reference process sqrt(2 eps) W.
  """
  x0, x1 = _ends(bridge, batch)
  time_key, noise_key = jax.random.split(key)
  t = control.own_rows(lambda n: times_lib.uniform(bridge)(time_key, n), x1)
  noise = tree.normal(noise_key, x1)
  weight = bridge.gamma_dot(t) - diffusion / bridge.gamma(t)
  path = bridge.path_velocity(t, x0, x1)

  def term(z):
    answer = u(bridge.interpolate(t, x0, x1, z), t)
    target = path + tree.expand(weight, x1) * z
    one = (0.5 * answer**2 - target * answer).reshape(len(x1), -1)
    return jnp.mean(jnp.sum(one, axis=1))

  return 0.5 * (term(noise) + term(-noise))


def _ends(bridge, batch):
  names = ("x0", "x1") if bridge.needs_x0 else ("x1",)
  if not isinstance(batch, dict) or any(name not in batch for name in names):
    given = (
      ", ".join(map(repr, batch))
      if isinstance(batch, dict)
      else type(batch).__name__
    )
    raise ValueError(
      f"a batch of this interpolant is a dict with {' and '.join(names)},"
      f" f[batch, ...] each; got {given}"
    )
  x0 = jnp.asarray(batch["x0"]) if bridge.needs_x0 else None
  return x0, jnp.asarray(batch["x1"])
