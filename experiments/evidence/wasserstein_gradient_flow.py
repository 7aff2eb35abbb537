"""Conservativity of trained networks of digits, and whether it matters.

(1) A free network (6000 updates) under the differential and the integral test,
64 points a level, circles of radius 2 sigma; beside it the exact mixture of ten
Gaussians in float64. (2) A free and a conservative network, the gradient of a
scalar made of the same parameters, 1200 updates each (the gradient costs three
times as much): 2000 samples by Heun's method of 35 calls, Frechet distance (FD)
of 96 random tanh features. (3) An exact mixture in the plane with errors added
to its score: 8192 exact starts at sigma = 20, 100 RK4 steps to .02.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff import losses
from jaxdiff import metrics
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.diagnostics import wasserstein_flow

from . import _digits
from .report import at_least
from .report import at_most
from .report import reported

TITLE = "Wasserstein gradient flow"
CLAIM = (
  "Trained networks are no gradients, by a differential and an integral test,"
  " and sample well: errors that are no gradients need not move the density."
)
PAPER = "https://arxiv.org/abs/2509.00336"
SEEDS = (0, 1, 2)
BARS = (
  at_least(
    "asymmetry",
    0.1,
    "smallest asymmetry |K|/|J| of the denoiser's Jacobian at sigma .3, 1, 3,"
    " 10",
  ),
  at_least("loop", 0.01, "mean relative work of the score on circles at .3"),
  at_most(
    "exact",
    1e-6,
    "the same tests of the exact mixture: the largest number of all",
  ),
  at_most(
    "fd_ratio",
    1.5,
    "FD of the worse over the better of free and conservative network",
  ),
  at_least(
    "asymmetry_ratio",
    100.0,
    "free over conservative network: smallest ratio of asymmetries",
  ),
  at_most(
    "rotated",
    0.4,
    "change of sliced W_2 over the floor by an error A s as large as the score"
    " itself",
  ),
  at_least(
    "stretched",
    4.0,
    "change of sliced W_2 over the floor by a gradient error of a tenth, 1.1 s",
  ),
)
_SIGMAS = (0.05, 0.1, 0.3, 1.0, 3.0, 10.0)
REPORTED = (
  *(reported(f"asymmetry_{s}", f"asymmetry at sigma = {s}") for s in _SIGMAS),
  reported(
    "score_asymmetry", "asymmetry of the score's Jacobian at sigma = .3"
  ),
  reported("largest_loop", "largest relative work on a circle at sigma = .3"),
  reported("fd_free", "FD of the free network"),
  reported("fd_conservative", "FD of the conservative network"),
  reported("fd_floor", "FD of one half of the digits against the other"),
  reported("moved", "rms by which the error A s moves the endpoints"),
  reported("plane_floor", "sliced W_2 of two samples of the plane's data"),
)
LIMITS = "training dynamics of large networks; the paper has diagnostics only."


def measure(seed: int) -> dict[str, float]:
  """Returns the numbers of one free and one conservative network."""
  return _free(seed) | _pair(seed) | _harm(seed)


def _audit(seed, model, x0, sigmas):
  return wasserstein_flow.audit(
    jax.random.key(seed), model, model.process, x0, sigmas, points=128
  )


def _some(seed):
  pick = np.random.default_rng(seed).choice(len(_digits.images()), 64, False)
  return _digits.images()[pick]


def _free(seed):
  found = _audit(seed, _digits.denoiser(seed), _some(seed), _SIGMAS)
  at = lambda s: _SIGMAS.index(s)
  with jax.enable_x64(True):
    x0 = jnp.asarray(_some(seed), jnp.float64)
    model = oracles.exact(
      oracles.score_ladder(_digits.images(), seed=seed)["mixture"],
      processes.edm(),
    )
    exact = _audit(seed, model, x0, (0.3, 1.0, 3.0, 10.0))
  return dict(
    asymmetry=min(found.denoiser[at(0.3) :]),
    loop=found.circulation[at(0.3)],
    exact=max(exact.denoiser.max(), exact.circulation.max()),
    score_asymmetry=found.score[at(0.3)],
    largest_loop=found.largest[at(0.3)],
    **{f"asymmetry_{s}": found.denoiser[at(s)] for s in _SIGMAS},
  )


@dataclasses.dataclass(frozen=True)
class _Gradient:
  """The gradient in x of x . network(x, c): same parameters, conservative."""

  network: object

  def __call__(self, params, x, c):
    scalar = lambda v: jnp.sum(v * self.network(params, v, c))
    return jax.grad(scalar)(x)


def _pair(seed):
  free = _digits.denoiser(seed, steps=1200)
  own = dataclasses.replace(
    _digits.fresh(seed), apply=_Gradient(_digits.fresh(seed).apply)
  )
  own = _digits.train(own, seed, steps=1200, loss=losses.denoising(own))
  process, data = free.process, _digits.images()
  table = solvers.heun(process, grids.karras(process, 18, to_zero=True))
  shape = (2000, *_digits.SHAPE)
  fd = [
    metrics.random_feature_frechet(
      sampling.sample(
        jax.random.key(seed), model, table, shape, process=process
      ),
      data,
    )
    for model in (free, own)
  ]
  sigmas = (0.3, 1.0, 3.0)
  audits = [_audit(seed, m, _some(seed), sigmas) for m in (free, own)]
  order = np.random.default_rng(seed).permutation(len(data))
  return dict(
    fd_ratio=max(fd) / min(fd),
    asymmetry_ratio=float(np.min(audits[0].denoiser / audits[1].denoiser)),
    fd_free=fd[0],
    fd_conservative=fd[1],
    fd_floor=metrics.random_feature_frechet(
      data[order[::2]], data[order[1::2]]
    ),
  )


def _harm(seed):
  # overlapping modes: far apart, their counts alone make two samples differ
  means = [(1.0, 0.0), (-0.5, 0.8), (-0.5, -0.8)]
  law = oracles.mixture(means, np.square([0.5, 0.4, 0.6]), [0.4, 0.35, 0.25])
  process = processes.edm(0.02, 20.0)
  model = oracles.exact(law, process)
  turn = jnp.asarray([[0.0, 1.0], [-1.0, 0.0]])

  def changed(matrix):
    def field(x, t):
      eps = model(x, t).eps @ matrix.T
      return predictions.Prediction(x - t * eps, eps)

    return field

  keys = jax.random.split(jax.random.key(seed), 4)
  x = law.sample(keys[0], 8192)[0] + 20.0 * jax.random.normal(
    keys[1], (8192, 2)
  )
  table = solvers.rk4(process, grids.log_snr(process, 100))
  end = lambda field: sampling.sample(keys[0], field, table, x)
  eye = jnp.eye(2)
  right, rotated, stretched = (
    end(changed(m)) for m in (eye, eye + turn, 1.1 * eye)
  )
  fresh = [
    law.sample(jax.random.fold_in(keys[2], i), 8192)[0] for i in range(9)
  ]
  pairs = [float(_distance(keys[3], a, fresh[0])) for a in fresh[1:]]
  floor = float(np.mean(pairs))
  base, turned, wide = (
    float(_distance(keys[3], v, fresh[0])) for v in (right, rotated, stretched)
  )
  return dict(
    rotated=abs(turned - base) / floor,
    stretched=(wide - base) / floor,
    moved=float(jnp.sqrt(jnp.mean(jnp.sum((rotated - right) ** 2, axis=1)))),
    plane_floor=floor,
  )


def _distance(key, x, y):
  return metrics.sliced_wasserstein(key, x, y, 256)
