"""Denoising MCMC against Heun's method from pure noise at equal calls.

Two Gaussian mixtures (new ones for every seed) with the exact score and the
exact p(sigma | x) on 400 levels: 256 chains, 16 outputs each, sliced W_2 to
4096 draws of the data. Then digits: a trained EDM network and a trained noise
classifier (64-256-200), Frechet distance of 96 random tanh features.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import data
from jaxdiff import grids
from jaxdiff import losses
from jaxdiff import metrics
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff import samplers
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import training

from . import _digits
from .report import at_least
from .report import at_most
from .report import reported

TITLE = "Denoising MCMC"
CLAIM = (
  "A Langevin-Gibbs chain in (x, sigma) near the data, finished by a short"
  " reverse integration, beats the same integrator from pure noise at few calls"
  " an output."
)
PAPER = "https://arxiv.org/abs/2209.14593"
SEEDS = (0, 1, 2)
BARS = (
  *(
    at_most(
      f"ratio_{calls}_d{d}",
      bound,
      f"sliced W_2 over Heun's at {calls} calls, mixture in {d} dimensions",
    )
    for calls, bound in ((7, 0.35), (9, 0.8))
    for d in (16, 2)
  ),
  at_most(
    "digits_9",
    0.7,
    "digits, trained network and classifier: Frechet distance over Heun's at 9"
    " calls",
  ),
  at_most(
    "classifier_loss",
    float(np.log(200) - 1.0),
    "digits: cross entropy of the noise classifier, below log K - 1",
  ),
  at_least(
    "classifier_hits",
    0.9,
    "digits: share of draws whose most likely level is within a factor 1.3",
  ),
)
REPORTED = (
  *(
    reported(f"{name}_{calls}_d{d}", f"{text} at {calls} calls, {d} dimensions")
    for name, text in (("dlg", "sliced W_2"), ("heun", "Heun's sliced W_2"))
    for calls in (7, 9, 17)
    for d in (16, 2)
  ),
  reported("floor_d16", "sliced W_2 of two samples of data, 16 dimensions"),
  reported("floor_d2", "sliced W_2 of two samples of data, 2 dimensions"),
  reported(
    "sigma_d16", "median level that is denoised, 16 dimensions, 7 calls"
  ),
  reported("digits_dlg", "digits: Frechet distance at 9 calls"),
  reported("digits_heun", "digits: Heun's Frechet distance at 9 calls"),
)
LIMITS = (
  "the gain at 20 calls and more, a fact of images: in low dimension Heun from"
  " pure noise catches up (17 calls above)."
)

_PLANS = {7: (4, 2), 9: (4, 3), 17: (8, 5)}  # calls: (moves, Heun steps)
_BURN_IN = np.repeat([0.5, 0.1], 10)


def measure(seed: int) -> dict[str, float]:
  """Returns the numbers of one pair of mixtures and one network."""
  found = {}
  for d, scale in ((16, 1.5), (2, 3.0)):
    found |= _mixture(seed, d, scale)
  return found | _digits_numbers(seed)


def _mixture(seed, d, scale):
  rng = np.random.default_rng(seed)
  law = oracles.mixture(
    scale * rng.standard_normal((8, d)),
    rng.uniform(0.05, 0.15, 8) ** 2,
    rng.dirichlet(np.ones(8)),
  )
  process = processes.edm(0.01, 50.0)
  model = oracles.exact(law, process)
  levels = samplers.ladder(0.01, 50.0, 400)
  key = jax.random.key(seed)
  truth, again = (
    law.sample(jax.random.fold_in(key, i), 4096)[0] for i in range(2)
  )
  distance = lambda x: float(
    metrics.sliced_wasserstein(key, x.reshape(-1, d), truth, 256)
  )
  posterior = samplers.ExactPosterior(law, levels)
  found = {f"floor_d{d}": distance(again)}
  for calls, (skip, steps) in _PLANS.items():
    heun = _heun(process, (calls + 1) // 2)
    vanilla = sampling.sample(key, model, heun, (4096, d), process=process)
    x, info = _dlg(
      key, model, posterior, process, levels, (256, d), skip, steps, 16
    )
    assert info.nfe == heun.nfe == calls
    found[f"dlg_{calls}_d{d}"] = distance(x)
    found[f"heun_{calls}_d{d}"] = distance(vanilla)
    if calls == 7 and d == 16:
      found["sigma_d16"] = float(jnp.median(info.sigma))
    if calls < 17:
      ratio = found[f"dlg_{calls}_d{d}"] / found[f"heun_{calls}_d{d}"]
      found[f"ratio_{calls}_d{d}"] = ratio
  return found


def _heun(process, steps, first=None):
  grid = grids.karras(process, steps, start=first, to_zero=True)
  return solvers.heun(process, grid)


def _dlg(key, model, posterior, process, levels, shape, skip, steps, outputs):
  keys = jax.random.split(key, 3)
  finish = samplers.finishers(
    functools.partial(_heun, process, steps), process, levels
  )
  begin = sampling.sample(
    keys[0], model, _heun(process, 20), shape, process=process
  )
  return samplers.dmcmc(
    keys[2],
    model,
    finish,
    samplers.start_chain(keys[1], begin, levels),
    process=process,
    posterior=posterior,
    levels=levels,
    eta=0.1,
    skip=skip,
    outputs=outputs,
    burn_in=_BURN_IN,
  )


def _digits_numbers(seed):
  key = jax.random.key(seed)
  model = _digits.denoiser(seed)
  levels = samplers.ladder(0.01, 50.0, 200)
  classifier = _classifier(seed, levels)
  x, _ = _dlg(
    key,
    model,
    classifier,
    model.process,
    levels,
    (256, *_digits.SHAPE),
    4,
    3,
    8,
  )
  vanilla = sampling.sample(
    key,
    model,
    _heun(model.process, 5),
    (2048, *_digits.SHAPE),
    process=model.process,
  )
  fd = lambda x: metrics.random_feature_frechet(
    np.asarray(x).reshape(-1, *_digits.SHAPE), _digits.images()
  )
  loss = losses.noise_classifier(lambda _, x: classifier(x), levels)
  test = jnp.asarray(np.tile(_digits.images(), (4, 1, 1, 1)))
  value, _ = loss(key, None, test)
  level = jax.random.randint(key, (len(test),), 0, len(levels))
  sigma = jnp.asarray(levels, jnp.float32)[level]
  z = jax.random.normal(jax.random.fold_in(key, 1), test.shape)
  guess = jnp.argmax(classifier(test + sigma[:, None, None, None] * z), axis=1)
  off = jnp.abs(jnp.log(jnp.asarray(levels, jnp.float32)[guess] / sigma))
  return dict(
    digits_9=fd(x) / fd(vanilla),
    digits_dlg=fd(x),
    digits_heun=fd(vanilla),
    classifier_loss=float(value),
    classifier_hits=float(jnp.mean(off < np.log(1.3))),
  )


def _classifier(seed, levels):
  """Returns the trained noise classifier, x -> logits, as a pytree."""
  network = networks.NoiseClassifier(len(levels), (256,))
  apply = functools.partial(_logits, network)
  key = jax.random.key(seed)
  params = network.init(key, jnp.zeros((1, *_digits.SHAPE)))["params"]
  optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, 8000))
  state = training.train(
    training.init_state(jax.random.fold_in(key, 1), params, optimizer),
    training.make_update(losses.noise_classifier(apply, levels), optimizer),
    data.batches({"image": _digits.images()}, 256, seed=seed),
    steps=8000,
    progress=False,
  )
  return jax.tree_util.Partial(apply, state.ema_params)


def _logits(network, params, x):
  return network.apply({"params": params}, x)
