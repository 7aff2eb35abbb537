"""The gap between ODE and SDE of a learned score, closed by a residual.

Two rings in the plane under dx = -x dt + dw, T = 5; a potential network of 3 x
80 softplus units, 3000 Adam steps on 500 points and 250 collocation points
(half of the sheet's points, three quarters of its steps), with and without
the residual. W_2 is exact, on 1500 samples; the ODE and the SDE start from
different noise and run by Euler and Euler-Maruyama, 380 steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import denoisers
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import solvers
from jaxdiff.diagnostics import fokker_planck
from jaxdiff.losses.fokker_planck import potential_residual

from .report import at_least
from .report import at_most
from .report import reported

TITLE = "Fokker-Planck gap"
CLAIM = (
  "A learned score's ODE and SDE have different laws; adding the residual of"
  " the log-density's Fokker-Planck equation to the loss closes the gap"
)
PAPER = "https://arxiv.org/abs/2311.15996"
SEEDS = (0, 1, 2)
BARS = (
  at_most("gap_ratio", 0.7, "W2(ODE, SDE) with the residual / without"),
  at_most("ode_ratio", 0.75, "W2(ODE, data) with the residual / without"),
  at_most("residual_ratio", 0.05, "mean R^2 with the residual / without"),
  at_least(
    "monotone",
    1.0,
    "exact potential + A sin(k.x) exp(-t), A in 0, .1, .2, .4: fraction of"
    " steps in A at which both residual and gap grow",
  ),
)
REPORTED = (
  reported("sde_ratio", "W2(SDE, data) with / without; may degrade (paper)"),
  reported("gap_without", "W2(ODE, SDE) without the residual"),
  reported("gap_with", "W2(ODE, SDE) with it"),
  reported("ode_without", "W2(ODE, data) without"),
  reported("sde_without", "W2(SDE, data) without"),
  reported("dsm_ratio", "denoising loss with / without"),
  reported("floor", "W2 between two sets of data"),
)
LIMITS = "the paper's sweep over weights, its three data sets and 1e5 steps."

_RADII, _SD, _BOX = (1.3, 2.8), 0.2, 4.0
_STEPS, _POINTS, _COLLOCATION, _N = 3000, 500, 250, 1500
_PROCESS = processes.from_alpha_sigma(
  lambda t: jnp.exp(-t),
  lambda t: jnp.sqrt(-0.5 * jnp.expm1(-2.0 * t)),
  1e-3,
  5.0,
  0.0,
)


def rings(key: jax.Array, n: int) -> jax.Array:
  """Returns n points on two rings, half of them on each, f32[n, 2]."""
  which, angle, width = jax.random.split(key, 3)
  radius = jnp.where(jax.random.bernoulli(which, shape=(n,)), *_RADII)
  radius = radius + _SD * jax.random.normal(width, (n,))
  phi = jax.random.uniform(angle, (n,), maxval=2 * jnp.pi)
  return radius[:, None] * jnp.stack([jnp.cos(phi), jnp.sin(phi)], axis=1)


def _grid() -> np.ndarray:
  """Returns 200 equal steps of which the last tenth is refined tenfold."""
  high, low = _PROCESS.t_max, _PROCESS.t_min
  edge = low + 0.1 * (high - low)
  coarse = np.linspace(high, edge, 181)
  return np.concatenate([coarse, np.linspace(edge, low, 201)[1:]])


def _trained(seed: int, weight: float):
  """Returns the potential apply(params, x, t), its parameters, the DSM loss."""
  network = networks.Potential()
  apply = denoisers.LinenApply(network)
  loss = losses.fokker_planck(
    apply, _PROCESS, box=_BOX, weight=weight, collocation=_COLLOCATION
  )
  optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, _STEPS))
  key = jax.random.key(seed)

  @jax.jit
  def train(params):
    def step(carry, i):
      params, state = carry
      data_key, loss_key = jax.random.split(jax.random.fold_in(key, i))
      batch = {"image": rings(data_key, _POINTS)}
      grad, metrics = jax.grad(
        lambda p: loss(loss_key, p, batch), has_aux=True
      )(params)
      changes, state = optimizer.update(grad, state)
      return (optax.apply_updates(params, changes), state), metrics["dsm"]

    carry = (params, optimizer.init(params))
    (params, _), dsm = jax.lax.scan(step, carry, jnp.arange(_STEPS))
    return params, jnp.mean(dsm[-500:])

  x, t = jnp.zeros((1, 2)), jnp.zeros(1)
  params = network.init(jax.random.fold_in(key, _STEPS), x, t)["params"]
  params, dsm = train(params)
  return apply, params, float(dsm)


def _residual(apply, params, key) -> float:
  """Returns the mean of R^2 over forward samples and the box, half each."""
  data, noise, box, times = jax.random.split(key, 4)
  t = jax.random.uniform(times, (4000,), minval=_PROCESS.t_min, maxval=5.0)
  x, _ = _PROCESS.perturb(noise, rings(data, 2000), t[:2000])
  y = jax.random.uniform(box, (2000, 2), minval=-_BOX, maxval=_BOX)
  r = jax.jit(
    lambda params, x, t: potential_residual(
      lambda x, t: apply(params, x, t), _PROCESS, x, t
    )
  )(params, jnp.concatenate([x, y]), t)
  return float(jnp.mean(r**2))


def _perturbed(seed: int) -> float:
  """Returns how often residual and gap both grow with a perturbation."""
  # overlapping: far apart, the counts of the components alone open a gap
  means = [(1.0, 0.0), (-0.5, 0.8), (-0.5, -0.8)]
  law = oracles.mixture(means, np.square([0.5, 0.4, 0.6]))

  def potential(size, x, t):
    u = law.log_prob(x, _PROCESS.alpha(t), _PROCESS.sigma(t))
    return u + size * jnp.sin(x @ jnp.asarray([3.0, 2.0])) * jnp.exp(-t)

  x0 = law.sample(jax.random.key(seed), 2 * _N)[0]
  start, _ = _PROCESS.perturb(jax.random.key(seed + 100), x0, 5.0)
  pairs = []
  for size in (0.0, 0.1, 0.2, 0.4):
    model = denoisers.from_potential(potential, jnp.float32(size), _PROCESS)
    gap = _gap(seed, model, start, x0)
    x, _ = _PROCESS.perturb(jax.random.key(seed + 200), x0, 0.5)
    r = potential_residual(
      lambda x, t, size=size: potential(size, x, t), _PROCESS, x, 0.5
    )
    pairs.append((float(jnp.mean(r**2)), gap.ode_sde))
  grows = np.all(np.diff(np.asarray(pairs), axis=0) > 0, axis=1)
  return float(grows.mean())


def _gap(seed, model, start, data):
  grid = _grid()
  return fokker_planck.ode_sde_gap(
    jax.random.key(seed),
    model,
    solvers.euler(_PROCESS, grid),
    solvers.euler_maruyama(_PROCESS, grid),
    start,
    data,
  )


def measure(seed: int) -> dict[str, float]:
  """Returns the numbers of one seed."""
  key = jax.random.key(1000 + seed)
  data = rings(jax.random.fold_in(key, 0), 2 * _N)
  start = _PROCESS.prior(jax.random.fold_in(key, 1), data.shape)
  gaps, residuals, dsm = [], [], []
  for weight in (0.0, 0.01):
    apply, params, loss = _trained(seed, weight)
    model = denoisers.from_potential(apply, params, _PROCESS)
    gaps.append(_gap(seed, model, start, data))
    residuals.append(_residual(apply, params, jax.random.fold_in(key, 2)))
    dsm.append(loss)
  without, with_ = gaps
  return dict(
    gap_ratio=with_.ode_sde / without.ode_sde,
    ode_ratio=with_.ode_reference / without.ode_reference,
    residual_ratio=residuals[1] / residuals[0],
    monotone=_perturbed(seed),
    sde_ratio=with_.sde_reference / without.sde_reference,
    gap_without=without.ode_sde,
    gap_with=with_.ode_sde,
    ode_without=without.ode_reference,
    sde_without=without.sde_reference,
    dsm_ratio=dsm[1] / dsm[0],
    floor=without.floor,
  )
