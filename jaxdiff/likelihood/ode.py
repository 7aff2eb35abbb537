r"""Log-likelihood along the probability-flow ODE of any table, or adaptively.

Along dx/dt = v(x, t) the log-density changes by -div v, so that

  log p(x at t_min) = log prior(x at t_max) + ell,   ell = int div v dt.

The volume is one more coordinate of the sample. Measured against that of a
Gaussian of standard deviation s,

  L = ell - d/2 log((alpha^2 s^2 + sigma^2) at the end / at the start),

it obeys, like x itself, dL/dt = alpha' X0 + sigma' EPS with a pair that
satisfies alpha X0 + sigma EPS = L:

  D   = div x0 - d alpha s^2 / (alpha^2 s^2 + sigma^2),
  X0  = D - (sigma' / W) L,
  EPS = (alpha' / W) L - (alpha / sigma) D,     W = alpha' sigma - alpha sigma'.

Hence (x, L) is integrated by every table, exponential ones too, each at its own
order, and by `samplers.adaptive`, whose tolerance then holds for L in nats. For
isotropic Gaussian data of that s, D = 0 and L is exact in any number of steps.

The divergence is exact (d derivatives a call) or Hutchinson's v . J v with one
v a sample, fixed over the whole solve: an unbiased estimate of ell for the path
that is followed. What is computed is the density of the slightly noisy data at
t_min. References: Song et al. (2021), section 4.3 and appendix D.2,
https://arxiv.org/abs/2011.13456; Grathwohl et al. (2019), FFJORD,
https://arxiv.org/abs/1810.01367.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.predictions import Prediction
from jaxdiff.processes import agreement
from jaxdiff.processes import GaussianProcess
from jaxdiff.samplers import adaptive
from jaxdiff.solvers import encoder
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model

_AT_ONCE = 64  # directions of an exact divergence in one pass


class Likelihood(NamedTuple):
  """What `log_likelihood` returns.

  Attributes:
    log_prob: f[batch], log p of the data at t_min, in nats.
    latent: where the ODE takes it at t_max, shaped like x.
    nfe: i32[batch], network calls, each with the derivative.
  """

  log_prob: jax.Array
  latent: jax.Array
  nfe: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Augmented:
  """A model on (x, L), from a model on x; a pytree.

  Attributes:
    model: model(x, t) -> Prediction.
    probe: v, shaped like x; None for the exact divergence.
    data_std: s.
    process: the forward process.
  """

  model: Model
  probe: Array
  data_std: Array
  process: GaussianProcess = dataclasses.field(
    default=None, metadata={"static": True}
  )

  def __call__(self, state: tuple, t: jax.Array) -> Prediction:
    """Returns ((x0, X0), (eps, EPS)) for (x, L), [batch, ...] and [batch]."""
    x, volume = state
    pair, divergence = self._divergence(x, t)
    t = jnp.asarray(t, volume.dtype)
    alpha, sigma = self.process.alpha(t), self.process.sigma(t)
    alpha_dot, sigma_dot = self.process.rates(t)
    s2 = jnp.asarray(self.data_std, volume.dtype) ** 2
    d = math.prod(x.shape[1:])
    gain = d * alpha * s2 / (alpha**2 * s2 + sigma**2)
    excess = divergence.astype(volume.dtype) - gain
    w = alpha_dot * sigma - alpha * sigma_dot
    x0 = excess - sigma_dot / w * volume
    eps = alpha_dot / w * volume - alpha / sigma * excess
    return Prediction((pair.x0, x0), (pair.eps, eps))

  def _divergence(self, x, t):
    """Returns the prediction and div x0, f[batch], from the same calls."""
    call = lambda v: ask(self.model, v, t)
    along = lambda v: jax.jvp(call, (x,), (v,))
    dot = lambda a, b: jnp.sum(
      (a * b).astype(tree.compute_dtype(x.dtype)),
      axis=tuple(range(1, x.ndim)),
    )
    if self.probe is not None:
      v = jnp.asarray(self.probe, x.dtype)
      pair, slope = along(v)
      return pair, dot(v, slope.x0)
    d = math.prod(x.shape[1:])
    pair, linear = jax.linearize(call, x)

    def one(i):
      v = jnp.zeros((d,), x.dtype).at[i].set(1.0).reshape(x.shape[1:])
      v = jnp.broadcast_to(v, x.shape)
      return dot(v, linear(v).x0)

    each = jnp.arange(d)
    if d <= _AT_ONCE:
      parts = jax.vmap(one)(each)
    else:
      parts = jax.lax.map(one, each, batch_size=_AT_ONCE)
    return pair, jnp.sum(parts, axis=0)


@checks.door(least=dict(data_std=0))
def log_likelihood(
  key: jax.Array,
  model: sampling.Model,
  process: GaussianProcess,
  x: jax.Array,
  *,
  solver: Any = None,
  grid: np.ndarray | None = None,
  trace: str = "hutchinson",
  probe: str = "rademacher",
  prior: Callable[[jax.Array], jax.Array] | None = None,
  data_std: float = 1.0,
  index: ArrayLike | None = None,
  **options: Any,
) -> Likelihood:
  """Returns the log-density of data under the model, by its ODE.

  Pixels and other counts have no density: on a lattice a better model's grows
  without bound as t_min falls. Spread them with `dequantize` first; values that
  all lie on a few levels are warned of.

  Args:
    key: PRNG key of the probes; each sample folds its index into it.
    model: model(x, t) -> Prediction, differentiable; samples of a batch must
      not see one another.
    process: the forward process; x is taken to be at its t_min.
    x: f[batch, ...].
    solver: any deterministic solver, walked from data to noise on `grid`; None
      is `samplers.adaptive`.
    grid: f64[n + 1], falling, as for sampling; from t_max to t_min.
    trace: "hutchinson" (one derivative a call) or "exact" (one for each of the
      d values).
    probe: probe of Hutchinson, "rademacher" (the smaller variance; none at all
      for a Jacobian that is a multiple of the identity) or "gaussian".
    prior: log-density of the noise end, f[batch, ...] -> f[batch]; the
      process's own by default, which neglects what is left of the data there.
    data_std: s, of the reference volume; accuracy alone depends on it.
    index: i32[batch], indices of the samples; 0, 1, ... by default.
    **options: options of the solver, or of `samplers.adaptive`, whose defaults
      are method="dormand_prince" and rtol = atol = 1e-5 here.

  Raises:
    ValueError: for unknown choices, a grid that does not span the process, a
      solver without a grid, or a model of another process.
    TypeError: for integer data, which has no density: see `dequantize`.
  """
  checks.process(process, "log_likelihood(key, model, process, x)")
  agreement.check(model, None, process, "log_likelihood")
  checks.one_of(trace, ("hutchinson", "exact"), "trace")
  checks.one_of(probe, ("rademacher", "gaussian"), "probe")
  x = jnp.asarray(x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(
      f"data of dtype {x.dtype} has no density: spread every integer over its"
      " cell first with likelihood.dequantize(key, pixels)"
    )
  if solver is not None:
    grid = _spanning(process, grid)
  size = tree.batch_size(x)
  _warn_of_levels(x)
  dtype = tree.compute_dtype(x.dtype)
  vector = _probe(key, x, index, probe) if trace == "hutchinson" else None
  both = Augmented(model, vector, jnp.asarray(data_std, dtype), process=process)
  start = (x, control.along_batch(jnp.zeros((size,), dtype), x))
  if solver is None:
    if grid is not None:
      raise ValueError(
        "a grid belongs to a solver, as in solver=solvers.rk4; without one the"
        " steps are adaptive"
      )
    options = dict(method="dormand_prince", rtol=1e-5, atol=1e-5) | options
    span = process.t_min, process.t_max
    (latent, volume), info = adaptive(
      None, both, span, start, process=process, **options
    )
    nfe = info.nfe
  else:
    table = encoder(solver, process, grid, **options)
    latent, volume = sampling.sample(key, both, table, start)
    nfe = jnp.full((size,), table.nfe, jnp.int32)
  d = math.prod(x.shape[1:])
  low, high = (
    np.log((process.alpha(t) * data_std) ** 2 + process.sigma(t) ** 2)
    for t in (process.t_min, process.t_max)
  )
  ell = volume + 0.5 * d * (high - low)
  end = process.log_prior if prior is None else prior
  return Likelihood((end(latent) + ell).astype(dtype), latent, nfe)


def _warn_of_levels(x):
  """Warns of concrete data that all lie on a lattice, as pixels do."""
  if not checks.concrete(x) or not getattr(x, "is_fully_addressable", True):
    return
  if isinstance(x, jax.Array):  # what is split is cut where it lies
    x = x.addressable_shards[0].data
  size = math.prod(x.shape[1:])
  values = np.asarray(x[: max(1, 4096 // max(1, size))], np.float64)
  levels = np.unique(values)
  if not 2 <= len(levels) <= min(256, values.size // 4):
    return  # of continuous data hardly any two are equal
  step = np.diff(levels).min()
  place = (levels - levels[0]) / step
  if abs(place - np.rint(place)).max() < 0.02:
    warnings.warn(
      f"the data lie on levels {step:.4g} apart, from {levels[0]:.4g} to"
      f" {levels[-1]:.4g}: they have no density, and what a model gives them"
      " grows without bound as t_min falls. Spread every value over its level"
      " first, with likelihood.dequantize(key, pixels) of the whole numbers,"
      " and report bits_per_dim",
      stacklevel=3,
    )


def _probe(key, x, index, kind):
  like = jax.ShapeDtypeStruct(x.shape, tree.compute_dtype(x.dtype))
  z = tree.normal(jax.random.fold_in(key, _TAG), like, index)
  return z if kind == "gaussian" else jnp.where(z < 0, -1.0, 1.0)


_TAG = 0x70726F62  # apart from keys that a caller folds themselves


def _spanning(process, grid):
  """Returns the grid after checking that it goes from t_max to t_min."""
  if grid is None:
    raise ValueError(
      "a solver needs a grid, as in grid=grids.log_snr(process, 100); or leave"
      " the solver out for adaptive steps"
    )
  grid = checks.falling_grid(
    grid, process.t_min, process.t_max, process.t_zero, process.noise.outside
  )
  ends = np.asarray([process.t_max, process.t_min])
  if not np.allclose(grid[[0, -1]], ends, rtol=1e-9, atol=0.0):
    raise ValueError(
      f"the ODE joins t_min = {ends[1]} and t_max = {ends[0]}, but the grid"
      f" goes from {grid[0]:.6g} to {grid[-1]:.6g}; give the process another"
      " range with dataclasses.replace(process, t_min=..., t_max=...)"
    )
  return grid


@checks.door(least=dict(levels=1))
def dequantize(
  key: jax.Array,
  pixels: ArrayLike,
  *,
  levels: int = 256,
  low: float = -1.0,
  high: float = 1.0,
  index: ArrayLike | None = None,
) -> jax.Array:
  """Returns low + (high - low) (k + u) / levels, u uniform in [0, 1).

  The density of this x, lower-bounds the probability of the integers k:
  log P(k) >= E log p(x) + d log(step), step = (high - low) / levels.

  Args:
    key: PRNG key; each sample folds its index into it.
    pixels: integers 0..levels - 1, [batch, ...].
    levels: how many values an integer takes.
    low: end of the range of x.
    high: other end.
    index: i32[batch], indices of the samples; 0, 1, ... by default.

  Raises:
    TypeError: if pixels are no integers.
    ValueError: if a pixel is outside of 0..levels - 1.
  """
  pixels = jnp.asarray(pixels)
  if not jnp.issubdtype(pixels.dtype, jnp.integer):
    raise TypeError(
      f"dequantize takes integers 0..{levels - 1}, got dtype {pixels.dtype};"
      " data already scaled needs uniform noise as wide as its own step"
    )
  if checks.concrete(pixels):
    least, most = int(pixels.min()), int(pixels.max())
    if least < 0 or most >= levels:
      raise ValueError(
        f"pixels must lie in 0..{levels - 1}, got {least}..{most}; give"
        " levels=..."
      )
  index = control.numbers(pixels, index)
  draw = lambda i: jax.random.uniform(
    jax.random.fold_in(key, i), pixels.shape[1:]
  )
  u = jax.vmap(draw)(index)
  # u < 1, but k + u may round up to k + 1
  cell = jnp.minimum(pixels + u, jnp.nextafter(pixels + 1.0, 0.0))
  return low + (high - low) / levels * cell


@checks.door
def bits_per_dim(log_prob: Any, dims: int, *, step: float = 2.0 / 256.0) -> Any:
  r"""Returns -log2 of the probability of a cell, per dimension.

  A cell of width `step` in each of the d dimensions has the probability
  p step^d, so

    bits = -log p / (d log 2) - log2(step),

  7 bits above the density's for 256 levels in [-1, 1] (step 2 / 256), 8 in
  [0, 1], log2(127.5) = 6.994 for pixels scaled by x / 127.5 - 1.

  Args:
    log_prob: f[batch], log-density of the dequantized data, in nats.
    dims: number of values of a sample.
    step: distance between two neighbouring levels, in units of the data.

  Raises:
    ValueError: if step or dims is not positive.
  """
  if not (step > 0 and dims > 0):
    raise ValueError(
      f"step is a distance and dims a count, positive; got step={step},"
      f" dims={dims}"
    )
  return -log_prob / (dims * math.log(2.0)) - math.log2(step)
