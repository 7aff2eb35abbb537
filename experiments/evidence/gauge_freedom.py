"""Which part of a field matters: gauge transformations, exactly.

A mixture of 3 Gaussians in the plane with its exact score, overlapping (far
apart, the counts of the components alone make two sets of data differ), sigma
from 20 to 0.02: 8192 samples from exact starts by 400 RK4 steps (the sheet's
4000 change nothing), by 1000 Euler-Maruyama steps for the SDE; sliced W_2 to
fresh data against that of two sets of data. The dimension of a Swiss roll is
read off networks of 3 x 96 units, 3000 steps, one a gradient, one free.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import jacobians
from jaxdiff import losses
from jaxdiff import metrics
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.diagnostics import conservativity
from jaxdiff.diagnostics import gauge
from jaxdiff.diagnostics import intrinsic_dimension
from jaxdiff.diagnostics.fields import score_of

from .report import at_least
from .report import at_most
from .report import reported

TITLE = "Gauge freedom"
CLAIM = (
  "A field samples exactly, and gives exact likelihoods, if and only if its"
  " gradient part is the score; conservative networks tell local dimension"
)
PAPER = "https://arxiv.org/abs/2402.03845"
SEEDS = (0, 1, 2)
BARS = (
  at_most("gauge_ode", 1.4, "ODE, worst of (I + A)s, (I + 3A)s: SW2 / floor"),
  at_most("gauge_sde", 1.6, "SDE, worst of s, (I + A)s: SW2 / floor"),
  at_least("moved", 0.5, "rms by which (I + A)s moves the ODE's end points"),
  at_least("wrong_ode", 4.0, "ODE, best of 1.1 s, 0.9 s, diag: SW2 / floor"),
  at_least("wrong_sde", 1.4, "SDE, 1.1 s: SW2 / that of the exact score"),
  at_most("nll_gauge", 1e-4, "largest error of log p at 128 points, s, (I+A)s"),
  at_least("nll_wrong", 1.0, "largest error of log p at 128 points, 1.1 s"),
  at_most("projection", 0.1, "relative L2 error of grad phi fitted to (I+A)s"),
  at_least("dim_gaussian", 1.0, "k-dim subspace of R^8, exact: found k"),
  at_least("dim_roll", 0.9, "Swiss roll, conservative net: found 2"),
  at_least("dim_lead", 0.0, "the same minus what the free net finds"),
)
REPORTED = (
  reported("remainder", "E|r|^2 / E|s|^2 of the fitted split; exactly 1"),
  reported("unmoved", "grad phi of s against grad phi of (I+A)s, relative L2"),
  reported("roll_free", "Swiss roll, free net: found 2"),
  reported("sw_conservative", "Swiss roll, SW2 of samples, conservative net"),
  reported("sw_free", "Swiss roll, SW2 of samples, free net (no claim)"),
  reported("asymmetry_free", "|K| / |J| of the free net at sigma 0.1"),
  reported("asymmetry_conservative", "|K| / |J| of the conservative net"),
)
LIMITS = "images; intrinsic dimension per class needs a larger network."

_PROCESS = processes.edm(0.02, 20.0)
_TURN = np.asarray([[0.0, 1.0], [-1.0, 0.0]])
_N = 8192


def _law():
  means = [(1.0, 0.0), (-0.5, 0.8), (-0.5, -0.8)]
  return oracles.mixture(means, np.square([0.5, 0.4, 0.6]), [0.4, 0.35, 0.25])


def _sampling(seed: int) -> dict[str, float]:
  law = _law()
  model = oracles.exact(law, _PROCESS)
  keys = jax.random.split(jax.random.key(seed), 6)
  data = [law.sample(k, _N)[0] for k in keys[:3]]
  start, _ = _PROCESS.perturb(keys[3], data[2], jnp.float32(_PROCESS.t_max))
  noisy = lambda i: _PROCESS.perturb(keys[4], data[i], 0.02)[0]
  sw = lambda x: float(
    metrics.sliced_wasserstein(keys[5], x, noisy(0), directions=64)
  )
  floor = sw(noisy(1))
  matrices = {
    "s": np.eye(2),
    "a": np.eye(2) + _TURN,
    "3a": np.eye(2) + 3 * _TURN,
    "1.1": 1.1 * np.eye(2),
    "0.9": 0.9 * np.eye(2),
    "diag": np.diag([1.1, 0.9]),
  }
  ode = solvers.rk4(_PROCESS, grids.log_snr(_PROCESS, 400))
  sde = solvers.euler_maruyama(_PROCESS, grids.log_snr(_PROCESS, 1000))
  draw = lambda table, name: sampling.sample(
    jax.random.key(seed + 50),
    gauge.transform(model, matrices[name], _PROCESS),
    table,
    start,
  )
  ends = {name: draw(ode, name) for name in matrices}
  by_ode = {name: sw(x) for name, x in ends.items()}
  by_sde = {name: sw(draw(sde, name)) for name in ("s", "a", "1.1")}
  moved = jnp.sqrt(jnp.mean(jnp.sum((ends["a"] - ends["s"]) ** 2, axis=1)))
  return dict(
    gauge_ode=max(by_ode["a"], by_ode["3a"]) / floor,
    gauge_sde=max(by_sde["s"], by_sde["a"]) / floor,
    moved=float(moved),
    wrong_ode=min(by_ode["1.1"], by_ode["0.9"], by_ode["diag"]) / floor,
    wrong_sde=by_sde["1.1"] / by_sde["s"],
  )


def _log_likelihood(model, x, steps: int = 2000) -> jax.Array:
  """Returns log p at sigma_min by the ODE of a model up to sigma_max.

  RK4 in log(sigma): dx = sigma eps, d log p = -sigma div eps; the density at
  sigma_max is the mixture's own.
  """
  grid = np.linspace(np.log(0.02), np.log(20.0), steps + 1)
  rows = (jnp.asarray(grid[:-1]), jnp.asarray(np.diff(grid)))

  def rate(state, log_sigma):
    sigma = jnp.exp(log_sigma)
    field = lambda x: sigma * model(x, sigma).eps
    return field(state[0]), jacobians.divergence(field, state[0])

  def advance(key, row, state):
    del key
    at, h = row
    add = lambda k, c: jax.tree.map(lambda s, v: s + c * h * v, state, k)
    k1 = rate(state, at)
    k2 = rate(add(k1, 0.5), at + 0.5 * h)
    k3 = rate(add(k2, 0.5), at + 0.5 * h)
    k4 = rate(add(k3, 1.0), at + h)
    total = jax.tree.map(
      lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4
    )
    return add(total, 1.0), None

  @jax.jit
  def walk(x):
    state = (x, jnp.zeros(len(x), x.dtype))
    return sampling.run(jax.random.key(0), advance, rows, state)[0]

  end, change = walk(x)
  return _law().log_prob(end, 1.0, 20.0) + change


def _likelihood(seed: int) -> dict[str, float]:
  with jax.enable_x64(True):
    law = _law()
    x0 = law.sample(jax.random.key(seed + 60), 128)[0].astype(jnp.float64)
    x, _ = _PROCESS.perturb(jax.random.key(seed + 61), x0, 0.02)
    truth = law.log_prob(x, 1.0, 0.02)
    model = oracles.exact(law, _PROCESS)
    errors = [
      float(abs(_log_likelihood(m, x) - truth).max())
      for m in (
        model,
        gauge.rotate(model, _TURN, _PROCESS),
        gauge.transform(model, 1.1 * np.eye(2), _PROCESS),
      )
    ]
  return dict(nll_gauge=max(errors[:2]), nll_wrong=errors[2])


def _projection(seed: int) -> dict[str, float]:
  law, t = _law(), 0.3
  model = oracles.exact(law, _PROCESS)
  exact = lambda x: score_of(model, _PROCESS)(x, t)
  turned = lambda x: exact(x) @ jnp.asarray(np.eye(2) + _TURN, x.dtype).T

  def draw(key, n):
    data, noise = jax.random.split(key)
    return _PROCESS.perturb(noise, law.sample(data, n)[0], t)[0]

  network = networks.Potential((64, 64), beta=5.0)
  potential = lambda params, x: network.apply(params, x, jnp.zeros(len(x)))
  x = draw(jax.random.key(seed + 70), 4096)
  params = network.init(jax.random.key(seed), x, jnp.zeros(len(x)))
  gradients = []
  for field in (turned, exact):
    fitted, energy = gauge.project(
      jax.random.key(seed + 71), field, draw, potential, params
    )
    gradients.append(denoisers.GradientApply(potential)(fitted, x))
    if field is turned:
      remainder = float(energy.remainder / jnp.mean(jnp.sum(exact(x) ** 2, 1)))
  size = lambda v: float(jnp.sqrt(jnp.mean(jnp.sum(v**2, axis=1))))
  s = size(exact(x))
  return dict(
    projection=size(gradients[0] - exact(x)) / s,
    remainder=remainder,
    unmoved=size(gradients[0] - gradients[1]) / s,
  )


def _subspace(seed: int) -> dict[str, float]:
  """The dimension of Gaussians on subspaces of R^8, by exact fields."""
  rng = np.random.default_rng(seed)
  right = []
  with jax.enable_x64(True):
    for k in (1, 3, 6):
      axes, _ = np.linalg.qr(rng.standard_normal((8, 8)))
      v = np.where(np.arange(8) < k, rng.uniform(0.5, 2.0, 8), 0.0)
      law = oracles.gaussian(np.zeros(8), axes * v @ axes.T)
      grid = grids.log_snr(_PROCESS, 60)
      x = jnp.asarray(20.0 * rng.standard_normal((8, 8)))
      y = intrinsic_dimension.flow_jacobian(
        oracles.exact(law, _PROCESS), _PROCESS, grid, x, solvers.rk4
      )
      found = intrinsic_dimension.dimension(
        intrinsic_dimension.singular_trajectories(y), grid[1:]
      )
      right.append(np.mean(found == k))
  return dict(dim_gaussian=float(np.mean(right)))


def _roll(key: jax.Array, n: int) -> jax.Array:
  """Returns n points on a Swiss roll of about unit scale, f32[n, 3]."""
  turn, height = jax.random.split(key)
  phi = np.pi * (1.5 + 3.0 * jax.random.uniform(turn, (n,)))
  z = jax.random.uniform(height, (n,), minval=-1.0, maxval=1.0)
  return jnp.stack([phi * jnp.cos(phi) / 7, z, phi * jnp.sin(phi) / 7], axis=1)


def _trained(model: denoisers.Denoiser, key: jax.Array, steps: int):
  """Returns the model after `steps` updates of denoising."""
  times = losses.times.log_normal(_PROCESS, -1.8, 1.4)
  loss = losses.denoising(model, times=times)
  optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

  @jax.jit
  def train(params):
    def step(carry, i):
      params, state = carry
      data, noise = jax.random.split(jax.random.fold_in(key, i))
      batch = {"image": _roll(data, 256)}
      grad = jax.grad(lambda p: loss(noise, p, batch)[0])(params)
      changes, state = optimizer.update(grad, state)
      return (optax.apply_updates(params, changes), state), None

    carry = (params, optimizer.init(params))
    return jax.lax.scan(step, carry, jnp.arange(steps))[0][0]

  return dataclasses.replace(model, params=train(model.params))


def _swiss_roll(seed: int, steps: int = 3000) -> dict[str, float]:
  x, c = jnp.zeros((1, 3)), jnp.zeros(1)
  options = dict(prediction="edm", time="log_snr", sigma_data=0.8)
  scalar = networks.Potential((96, 96, 96), beta=3.0, embedding=32)
  free = networks.MLP((96, 96, 96), embedding=32)
  key = jax.random.key(seed + 80)
  params = scalar.init(key, x, c)["params"]
  conservative = denoisers.from_potential(
    denoisers.LinenApply(scalar), params, _PROCESS, **options
  )
  params = free.init(key, x, c)["params"]
  free = denoisers.from_linen(free, params, _PROCESS, **options)
  grid = grids.log_snr(_PROCESS, 60)
  start = 20.0 * jax.random.normal(jax.random.key(seed + 81), (256, 3))
  data = _roll(jax.random.key(seed + 82), 4096)
  prior = 20.0 * jax.random.normal(jax.random.key(seed + 83), (4096, 3))
  found, sw, skew = [], [], []
  for model in (conservative, free):
    model = _trained(model, key, steps)
    y = intrinsic_dimension.flow_jacobian(model, _PROCESS, grid, start)
    dims = intrinsic_dimension.dimension(
      intrinsic_dimension.singular_trajectories(y), grid[1:]
    )
    found.append(float(np.mean(dims == 2)))
    table = solvers.heun(_PROCESS, grid)
    out = sampling.sample(jax.random.key(0), model, table, prior)
    sw.append(float(metrics.sliced_wasserstein(jax.random.key(1), out, data)))
    field = lambda x, model=model: model(x, jnp.float32(0.1)).x0
    skew.append(float(conservativity.asymmetry(field, data[:256]).mean()))
  return dict(
    dim_roll=found[0],
    dim_lead=found[0] - found[1],
    roll_free=found[1],
    sw_conservative=sw[0],
    sw_free=sw[1],
    asymmetry_conservative=skew[0],
    asymmetry_free=skew[1],
  )


def measure(seed: int) -> dict[str, float]:
  """Returns the numbers of one seed."""
  return (
    _sampling(seed)
    | _likelihood(seed)
    | _projection(seed)
    | _subspace(seed)
    | _swiss_roll(seed)
  )
