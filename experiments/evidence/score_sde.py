r"""Score SDE: predictor-corrector sampling, inpainting, exact likelihood.

Three parts. (1) On Gaussian data of variances 0.01, 0.1, 1, 10 under VE 0.01 ..
50 a whole chain, Langevin steps included, is a table, whose law propagates
exactly: the error is max |log(V / c^2)| of the variance V that is reached. The
corrector's steps are those of the paper with the norms' expected squares. (2)
The mixture g16: sliced W2 to 8,192 true draws, in units of the distance of two
such sets; predictor with 1,000 steps, predictor-corrector with 500, and the ODE
by Dormand-Prince at 1e-5; inpainting from the first eight coordinates, which
tell the components well apart, and, reported, from every second one, which tell
them apart less well. Inpainting takes the 1,000 steps and the snr 0.16 of the
paper's code: with half the steps and snr 0.1 it mixes too little and settles in
wrong components now and then. (3) g2: the density along the ODE against the
exact density of the noisy data, in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff import likelihood
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import samplers
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.metrics.sliced import sliced_wasserstein

from .report import at_most
from .report import reported

TITLE = "Score SDE"
CLAIM = (
  "A Langevin corrector improves a predictor at an equal number of steps; the"
  " probability-flow ODE gives samples and exact likelihoods; inpainting needs"
  " no training."
)
PAPER = "https://arxiv.org/abs/2011.13456"
SEEDS = (0, 1, 2)
_CHAINS = ((50, 0.16), (100, 0.10), (250, 0.10))  # steps, snr
BARS = (
  *(
    at_most(
      f"pc_over_p_{n}",
      0.75,
      f"error of the variance, predictor-corrector / predictor, {n} steps each"
      f" (snr {snr}; exact)",
    )
    for n, snr in _CHAINS
  ),
  at_most("p_w2", 1.3, "sliced W2 / floor on g16: predictor, 1,000 steps"),
  at_most(
    "pc_w2", 1.3, "sliced W2 / floor on g16: 500 predictor and corrector steps"
  ),
  at_most("ode_w2", 1.3, "sliced W2 / floor on g16: ODE, adaptive, 1e-5"),
  at_most(
    "inpaint_rmse",
    0.06,
    "inpainting g16 from its first 8 coordinates: RMSE of the posterior mean",
  ),
  at_most(
    "density_error", 1e-4, "largest error of log p along the ODE on g2, in nats"
  ),
)
REPORTED = (
  *(
    reported(f"p_{n}", f"error of the variance: predictor, {n} steps")
    for n, _ in _CHAINS
  ),
  *(
    reported(
      f"pc_over_p2_{n}",
      f"the same, {n} predictor-corrector steps / {2 * n} predictor steps, at"
      " equal calls (the paper claims less than 1)",
    )
    for n, _ in _CHAINS
  ),
  reported("pc_strong", "error of the variance with snr 0.3, 50 steps: biased"),
  reported("ode_calls", "mean network calls of the ODE on g16"),
  reported("inpaint_prior", "the same of the prior mean"),
  reported(
    "inpaint_even",
    "inpainting g16 from every second coordinate: RMSE of the posterior mean",
  ),
  reported("inpaint_even_prior", "the same of the prior mean"),
  reported(
    "inpaint_g2",
    "inpainting one of g2's two coordinates: RMSE of the posterior mean"
    " (replacement ignores the coupling)",
  ),
  reported("inpaint_g2_prior", "the same of the prior mean"),
  reported(
    "density_error_prior",
    "largest error of log p with N(0, 1) for the law at t_max, as in the paper",
  ),
)
LIMITS = (
  "image quality (FID, IS) and 1024 x 1024 samples need a trained large"
  " network; at equal calls the corrector loses to a finer predictor here."
)

_VE = processes.ve()
_SPREAD = oracles.gaussian(np.zeros(4), [0.01, 0.1, 1.0, 10.0])


def measure(seed: int) -> dict[str, float]:
  """Returns every number of BARS and REPORTED."""
  return _chains() | _samples(seed) | _density(seed)


# --- (1) exact laws ----------------------------------------------------------


def _corrector_sizes(n, snr):
  """Returns e_i = 2 snr^2 d / E|score|^2 along the chain, f64[n, 1]."""
  c2 = _SPREAD.variances[0]
  square = _VE.sigma(grids.uniform(_VE, n, to_zero=True)) ** 2
  v, sizes = c2 + square[0], []
  for here, following in zip(square[:-1], square[1:], strict=True):
    w, gap = c2 + here, here - following
    e = 2 * snr**2 * len(c2) / np.sum(v / w**2)
    v = (1 - e / w) ** 2 * v + 2 * e
    v = (1 - gap / w) ** 2 * v + gap
    sizes.append([e])
  return np.asarray(sizes)


def _variance_error(n, snr=None):
  table = solvers.reverse_diffusion(_VE, grids.uniform(_VE, n, to_zero=True))
  if snr is not None:
    table = solvers.with_langevin(_VE, table, _corrector_sizes(n, snr))
  _, variance = oracles.propagate(table, _VE, _SPREAD)
  return np.max(abs(np.log(variance / _SPREAD.variances[0])))


@functools.cache
def _chains():
  out = {"pc_strong": _variance_error(50, 0.3)}
  for n, snr in _CHAINS:
    alone, corrected = _variance_error(n), _variance_error(n, snr)
    out[f"p_{n}"] = alone
    out[f"pc_over_p_{n}"] = corrected / alone
    out[f"pc_over_p2_{n}"] = corrected / _variance_error(2 * n)
  return out


# --- (2) samples -------------------------------------------------------------


def _samples(seed):
  data, size = oracles.g16(), 8192
  keys = jax.random.split(jax.random.key(seed), 5)
  model = oracles.exact(data, _VE)
  true, other = (data.sample(k, size)[0] for k in keys[:2])
  distance = lambda x: float(sliced_wasserstein(keys[2], x, true))
  floor = distance(other)
  build = lambda n: solvers.reverse_diffusion(
    _VE, grids.uniform(_VE, n, to_zero=True)
  )
  shape = (size, 16)
  alone = sampling.sample(keys[3], model, build(1000), shape, process=_VE)
  corrected, _ = samplers.predictor_corrector(
    keys[3], model, build(500), shape, process=_VE
  )
  solved, info = samplers.adaptive(
    None,
    model,
    None,
    _VE.prior(keys[3], shape),
    process=_VE,
    method="dormand_prince",
    rtol=1e-5,
    atol=1e-5,
  )
  rmse, prior = _inpaint(keys[4], data, known=np.arange(16) < 8)
  even, prior_even = _inpaint(keys[4], data, known=np.arange(16) % 2 == 0)
  rmse_2, prior_2 = _inpaint(keys[4], oracles.g2(), known=np.arange(2) == 0)
  return {
    "p_w2": distance(alone) / floor,
    "pc_w2": distance(corrected) / floor,
    "ode_w2": distance(solved) / floor,
    "ode_calls": float(info.nfe.mean()),
    "inpaint_rmse": rmse,
    "inpaint_prior": prior,
    "inpaint_even": even,
    "inpaint_even_prior": prior_even,
    "inpaint_g2": rmse_2,
    "inpaint_g2_prior": prior_2,
  }


def _inpaint(key, data, known, cases=16, draws=256):
  """Returns the RMSE over cases of the posterior mean, and of the prior's."""
  truth, _ = data.sample(key, cases)
  observed = jnp.repeat(truth, draws, axis=0)
  table = solvers.reverse_diffusion(_VE, grids.uniform(_VE, 1000, to_zero=True))
  x, _ = samplers.predictor_corrector(
    jax.random.fold_in(key, 1),
    oracles.exact(data, _VE),
    table,
    observed.shape,
    process=_VE,
    snr=0.16,
    norm="batch",
    project=samplers.inpaint(_VE, observed, known.astype(np.float32)),
  )
  mean = np.asarray(x).reshape(cases, draws, -1).mean(1)[:, ~known]
  # the exact posterior mean: components are isotropic
  offset = np.asarray(truth)[:, None, known] - data.means[:, known]
  spread = data.variances[:, known]
  logits = data.log_weights - 0.5 * np.sum(
    offset**2 / spread + np.log(spread), axis=-1
  )
  p = np.asarray(jax.nn.softmax(logits, axis=1))
  exact = p @ data.means[:, ~known]
  prior = np.exp(data.log_weights) @ data.means[:, ~known]
  error = lambda v: float(np.sqrt(np.mean((v - exact) ** 2)))
  return error(mean), error(prior)


# --- (3) likelihood ----------------------------------------------------------


def _density(seed):
  with jax.enable_x64(True):
    data, process = oracles.g2(), processes.vp_linear()
    model = oracles.exact(data, process)
    ends = lambda t: (
      jnp.asarray(process.alpha(t)),
      jnp.asarray(process.sigma(t)),
    )
    clean, _ = data.sample(jax.random.key(seed), 256)
    x, _ = process.perturb(jax.random.key(seed + 100), clean, process.t_min)
    exact = data.log_prob(x, *ends(process.t_min))
    solve = functools.partial(
      likelihood.log_likelihood,
      jax.random.key(0),
      model,
      process,
      x,
      trace="exact",
      rtol=1e-6,
      atol=1e-6,
    )
    at_end = lambda z: data.log_prob(z, *ends(process.t_max))
    error = lambda r: float(jnp.max(abs(r.log_prob - exact)))
    return {
      "density_error": error(solve(prior=at_end)),
      "density_error_prior": error(solve()),
    }
