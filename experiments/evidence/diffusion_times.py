"""A short diffusion from an auxiliary prior against the whole one.

Exact mixtures in 2 dimensions (4 components) and 8 (6 components), VP-linear,
Euler-Maruyama with uniform steps, 8000 samples, sliced W_2 to fresh data; the
auxiliary is a mixture of 8 Gaussians fitted to 4000 diffused points. The bound
as a function of T is measured on Gaussian data with a score that is 10 % too
large, where the best T is known, and on a network of 3 x 128 units.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import losses
from jaxdiff import metrics
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.densities import auxiliary_prior
from jaxdiff.diagnostics import diffusion_time
from jaxdiff.diagnostics import gauge

from .report import at_least
from .report import at_most
from .report import reported

TITLE = "Diffusion times"
CLAIM = (
  "The ELBO has a best finite diffusion time, and an auxiliary prior at a"
  " smaller time keeps quality and likelihood at fewer steps"
)
PAPER = "https://arxiv.org/abs/2206.05173"
SEEDS = (0, 1, 2)
BARS = (
  at_most("d2_whole", 0.75, "d=2, 25 steps: SW2 of T=.3 + g8 / of T=1"),
  at_most("d2_bare", 0.25, "d=2, 25 steps: SW2 of T=.3 + g8 / of T=.3, N"),
  at_most("d8_whole", 0.75, "d=8, 25 steps: SW2 of T=.4 + g8 / of T=1"),
  at_most("d8_bare", 0.25, "d=8, 25 steps: SW2 of T=.4 + g8 / of T=.4, N"),
  at_most("d2_floor", 2.5, "d=2, 100 steps: worse of T=1, T=.3 + g8 / floor"),
  at_least("interior", 1.0, "score 10 % too large: best T strictly inside"),
  at_most("cells", 1.0, "the same: grid cells between measured and exact T*"),
  at_most("nll_cost", 0.05, "network: ELBO of T=1 minus T=.3 + g8, nats"),
)
REPORTED = (
  reported("floor_d2", "d=2: SW2 of two sets of data"),
  reported("floor_d8", "d=8: SW2 of two sets of data"),
  reported("d2_gauss", "d=2, 25 steps: SW2 of T=.3 + one Gaussian / of T=1"),
  reported("kl_bare", "d=2: KL(p_.3 || N(0, I)), nats"),
  reported("kl_auxiliary", "d=2: KL(p_.3 || g8), nats"),
  reported("network_best", "network: T of the highest bound"),
  reported("network_fall", "network: bound at the best T minus at T=1, nats"),
)
LIMITS = "image results; the network's optimum may be flat (unsure in theory)."

_PROCESS = processes.vp_linear()
_N = 8000


def _law(d: int, components: int) -> oracles.GaussianMixture:
  """Returns the fixture: unit scale, drawn once."""
  rng = np.random.default_rng(d)
  means = rng.standard_normal((components, d))
  spread = rng.uniform(0.1, 0.4, (components, d)) ** 2
  return oracles.mixture(means - means.mean(0), spread)


def _sw(seed, x, y):
  key = jax.random.key(seed + 90)
  return float(metrics.sliced_wasserstein(key, x, y))


def _quality(seed: int, d: int, components: int, tau: float):
  """Returns SW2 by name, and the auxiliary of 8 components."""
  law = _law(d, components)
  model = oracles.exact(law, _PROCESS)
  keys = jax.random.split(jax.random.key(seed), 6)
  data, other = (law.sample(k, _N)[0] for k in keys[:2])
  fit = lambda family: auxiliary_prior.fit_auxiliary(
    keys[2], _PROCESS, law.sample(keys[3], 4000)[0], tau, family
  )
  single, eight = fit("gauss"), fit("gmm")
  noise = jax.random.normal(keys[4], (_N, d))

  def run(steps, start, aux=None):
    grid = grids.uniform(_PROCESS, steps, start=start)
    table = solvers.euler_maruyama(_PROCESS, grid)
    if aux is None:
      x = sampling.sample(keys[5], model, table, noise)
    else:
      x = auxiliary_prior.sample(keys[5], model, aux, table, _N)
    return _sw(seed, x, data)

  distance = dict(
    whole=run(25, 1.0),
    bare=run(25, tau),
    gauss=run(25, tau, single),
    eight=run(25, tau, eight),
    whole_100=run(100, 1.0),
    eight_100=run(100, tau, eight),
    floor=_sw(seed, other, data),
  )
  return distance, law, eight


def _divergences(seed: int, law, aux) -> tuple[float, float]:
  """Returns KL of p_tau to N(0, I) and to the auxiliary, by Monte Carlo."""
  data, noise = jax.random.split(jax.random.key(seed + 30))
  x, _ = _PROCESS.perturb(noise, law.sample(data, 20000)[0], aux.tau)
  truth = law.log_prob(x, _PROCESS.alpha(aux.tau), _PROCESS.sigma(aux.tau))
  bare = diffusion_time.standard_prior(_PROCESS)(x, aux.tau)
  return (
    float(jnp.mean(truth - bare)),
    float(jnp.mean(truth - aux.log_nu(x, aux.tau))),
  )


def _trade_off(seed: int) -> dict[str, float]:
  """The best T of a wrong score on Gaussian data, measured and exact."""
  c, mean = np.asarray([0.25, 2.0]), np.asarray([0.5, -0.5])
  law = oracles.gaussian(mean, c)
  times = np.linspace(0.05, 1.0, 20)
  model = gauge.transform(
    oracles.exact(law, _PROCESS), 1.1 * np.eye(2), _PROCESS
  )
  x0 = law.sample(jax.random.key(seed + 40), 8000)[0]
  curve = diffusion_time.elbo_curve(
    jax.random.key(seed + 41), model, _PROCESS, x0, times
  )
  at, weight = diffusion_time.quadrature(_PROCESS, times, 32)
  moments = lambda t: (
    (_PROCESS.alpha(t)[..., None] ** 2) * c + _PROCESS.sigma(t)[..., None] ** 2
  )
  share = np.sum(_PROCESS.sigma(at)[..., None] ** 2 / moments(at), axis=-1)
  gap = np.cumsum(np.sum(weight * 0.01 * share, axis=1))
  v = moments(times)
  shift = np.sum((_PROCESS.alpha(times)[:, None] * mean) ** 2, axis=1)
  kl = 0.5 * (np.sum(v - 1 - np.log(v), axis=1) + shift)
  best, found = np.argmin(gap + kl), np.argmax(curve.elbo)
  return dict(
    interior=float(0 < found < len(times) - 1), cells=float(abs(found - best))
  )


def _network(seed: int, law, aux, steps: int = 4000) -> dict[str, float]:
  network = networks.MLP((128, 128, 128))
  key = jax.random.key(seed + 60)
  params = network.init(key, jnp.zeros((1, 2)), jnp.zeros(1))["params"]
  model = denoisers.from_linen(
    network, params, _PROCESS, prediction="edm", sigma_data=1.0
  )
  loss = losses.denoising(
    model, times=losses.times.uniform_log_snr(_PROCESS), weighting="eps"
  )
  optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

  @jax.jit
  def train(params):
    def step(carry, i):
      params, state = carry
      data, noise = jax.random.split(jax.random.fold_in(key, i))
      batch = {"image": law.sample(data, 256)[0]}
      grad = jax.grad(lambda p: loss(noise, p, batch)[0])(params)
      changes, state = optimizer.update(grad, state)
      return (optax.apply_updates(params, changes), state), None

    carry = (params, optimizer.init(params))
    return jax.lax.scan(step, carry, jnp.arange(steps))[0][0]

  model = dataclasses.replace(model, params=train(params))
  x0 = law.sample(jax.random.key(seed + 61), 4000)[0]
  times = np.asarray([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
  noise = jax.random.key(seed + 62)
  curve = diffusion_time.elbo_curve(noise, model, _PROCESS, x0, times)
  short = diffusion_time.elbo_curve(
    noise, model, _PROCESS, x0, times[:4], log_nu=_at_last(aux, times[3])
  )
  return dict(
    nll_cost=float(curve.elbo[-1] - short.elbo[-1]),
    network_best=diffusion_time.optimal_time(curve),
    network_fall=float(curve.elbo.max() - curve.elbo[-1]),
  )


def _at_last(aux, tau):
  """Returns log nu at tau; earlier times are quadrature edges alone."""
  return lambda x, t: (
    aux.log_nu(x, t) if np.isclose(t, tau) else jnp.zeros(len(x))
  )


def measure(seed: int) -> dict[str, float]:
  """Returns the numbers of one seed."""
  two, law, aux = _quality(seed, 2, 4, 0.3)
  eight, _, _ = _quality(seed, 8, 6, 0.4)
  bare, fitted = _divergences(seed, law, aux)
  return (
    dict(
      d2_whole=two["eight"] / two["whole"],
      d2_bare=two["eight"] / two["bare"],
      d8_whole=eight["eight"] / eight["whole"],
      d8_bare=eight["eight"] / eight["bare"],
      d2_floor=max(two["whole_100"], two["eight_100"]) / two["floor"],
      floor_d2=two["floor"],
      floor_d8=eight["floor"],
      d2_gauss=two["gauss"] / two["whole"],
      kl_bare=bare,
      kl_auxiliary=fitted,
    )
    | _trade_off(seed)
    | _network(seed, law, aux)
  )
