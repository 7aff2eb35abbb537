r"""Estimates the empirical model statistics of DPM-Solver-v3 from data.

With u = x / alpha and x drawn by forward noising, at every node lambda and for
every coordinate,

  l = E[diag(sigma d eps / dx)],
  f = e^{-lambda} eps - l u,
  f' = e^{-lambda} ((l - 1) eps + eps') - l' u,   eps' = d eps / dlambda along
                                                  the flow,
  s = Cov(f, f') / Var(f),    b = E[f'] - s E[f].

Derivatives of the model are Jacobian-vector products. The same noise is used at
all nodes, so that the curves are smooth and l' can be had from their spline;
a sample's noise depends on its index alone, so that batches of any size give
the same statistics. Reference: Zheng et al. (2023),
https://arxiv.org/abs/2310.13268, section 3.2 and appendix C.
"""

import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import sampling
from jaxdiff import tree
from jaxdiff.predictions import ask
from jaxdiff.processes import agreement
from jaxdiff.processes import GaussianProcess
from jaxdiff.solvers import v3_statistics
from jaxdiff.types import ArrayLike

_EXACT_UP_TO = 64  # values a sample
_TAG = 0x656D73


@checks.door
def estimate(
  key: jax.Array,
  model: sampling.Model,
  process: GaussianProcess,
  data: ArrayLike,
  *,
  m: int = 601,
  span: tuple[float, float] | None = None,
  batch: int = 256,
  trace: str = "auto",
  note: str = "",
) -> v3_statistics.ModelStatistics:
  """Returns the statistics of a model on data; jitted, in two passes.

  Costs m jvps a sample and pass, in the first pass (with the exact trace) one
  for every value of a sample. 600 nodes and 1,000 samples are plenty.

  Args:
    key: PRNG key, of the noise and of the random traces.
    model: model(x, t) -> Prediction, differentiable; its arrays are arguments
      of the compiled program.
    process: the forward process.
    data: f[k, ...], or an iterable of such batches that can be walked twice.
    m: number of nodes, equally spaced in log-SNR.
    span: log-SNRs from and to; the process's by default.
    batch: samples at a time, of an array.
    trace: "exact" (a jvp for every value), "hutchinson" (one with random
      signs), or "auto": exact up to 64 values.
    note: text on model, guidance scale and data; kept with the
      statistics.

  Raises:
    ValueError: for no data, another trace, or statistics that explode.
  """
  checks.one_of(trace, ("auto", "exact", "hutchinson"), "trace")
  agreement.check(model, None, process, "v3_statistics.estimate")
  lam = v3_statistics.nodes(process, m, span)
  times = process.log_snr_inverse(lam)
  arrays, static = tree.partition(model)
  key = jax.random.fold_in(key, _TAG)
  program = functools.partial(_nodes, static=static, process=process)

  count, mean, index = 0, 0.0, 0
  for x0 in _batches(data, batch):
    size = x0.shape[0]
    if trace == "auto":
      few = math.prod(x0.shape[1:]) <= _EXACT_UP_TO
      trace = "exact" if few else "hutchinson"
    at = index + jnp.arange(size)
    part = program(arrays, key, x0, at, times, None, what=trace)
    count += size
    mean += (np.asarray(part, np.float64) - mean) * size / count
    index += size
  if not count:
    raise ValueError(
      "model statistics need data: an array f[k, ...], or batches that can be"
      " walked twice (a list, not a generator)"
    )
  l = mean
  slope = _derivative(lam, l)
  # each batch's moments about its own mean, merged without cancellation
  total, index = None, 0
  for x0 in _batches(data, batch):
    size = x0.shape[0]
    at = index + jnp.arange(size)
    part = program(arrays, key, x0, at, times, (l, slope), what="moments")
    part = [np.asarray(leaf, np.float64) for leaf in part]
    total = part if total is None else _merge(total, index, part, size)
    index += size
  f, df, square, product = total
  seen = square > 1e-12 * (1.0 + f**2) * count
  s = np.where(seen, product / np.where(seen, square, 1.0), 0.0)
  return v3_statistics.check(
    v3_statistics.ModelStatistics(
      lam, l, s, df - s * f, v3_statistics.schedule_name(process), note
    )
  )


@functools.partial(jax.jit, static_argnames=("static", "process", "what"))
def _nodes(arrays, key, x0, index, times, curves, *, static, process, what):
  """Returns what of one batch is needed at every node, [m, ...]."""
  model = tree.combine(arrays, static)
  dtype = tree.compute_dtype(x0.dtype)
  x0 = x0.astype(dtype)
  noise = process.noise.draw(jax.random.fold_in(key, 0), x0, index)
  probe = jnp.sign(tree.normal(jax.random.fold_in(key, 1), x0, index))
  cast = lambda v: jnp.asarray(v, dtype)

  def at(node):
    t, curve = node
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = alpha * x0 + sigma * noise
    eps_of = lambda x, t: ask(model, x, t).eps.astype(dtype)
    if what == "exact":
      return jnp.mean(sigma * _diagonal(lambda x: eps_of(x, t), x), axis=0)
    if what == "hutchinson":
      pushed = jax.jvp(lambda x: eps_of(x, t), (x,), (probe,))[1]
      return jnp.mean(sigma * probe * pushed, axis=0)
    l, slope = curve
    answer = ask(model, x, t)
    alpha_dot, sigma_dot = process.rates(t)
    speed = alpha_dot / alpha - sigma_dot / sigma  # dlambda / dt
    flow = alpha_dot * answer.x0 + sigma_dot * answer.eps
    eps, moved = jax.jvp(eps_of, (x, t), (flow.astype(dtype), jnp.ones_like(t)))
    ratio, u = sigma / alpha, x / alpha
    f = ratio * eps - l * u
    df = ratio * ((l - 1.0) * eps + moved / speed) - slope * u
    mean, mean_df = jnp.mean(f, axis=0), jnp.mean(df, axis=0)
    square = jnp.sum((f - mean) ** 2, axis=0)
    product = jnp.sum((f - mean) * (df - mean_df), axis=0)
    return mean, mean_df, square, product

  if curves is not None:
    curves = jax.tree.map(cast, curves)
  return jax.lax.map(at, (cast(times), curves))


def _diagonal(f, x):
  """Returns the diagonal of the Jacobian of every sample, shaped like x."""
  shape, size = x.shape[1:], math.prod(x.shape[1:])

  def entry(i):
    unit = (jnp.arange(size) == i).astype(x.dtype).reshape(shape)
    pushed = jax.jvp(f, (x,), (jnp.broadcast_to(unit, x.shape),))[1]
    return pushed.reshape(len(x), size)[:, i]

  return jax.lax.map(entry, jnp.arange(size)).T.reshape(x.shape)


def _derivative(lam, curve):
  from scipy import interpolate

  return interpolate.CubicSpline(lam, curve)(lam, 1)


def _merge(one, n, other, m):
  """Merges (mean f, mean f', squares, products) of n and of m samples."""
  f, df, square, product = one
  g, dg, other_square, other_product = other
  weight = n * m / (n + m)
  return (
    f + (g - f) * m / (n + m),
    df + (dg - df) * m / (n + m),
    square + other_square + weight * (g - f) ** 2,
    product + other_product + weight * (g - f) * (dg - df),
  )


def _batches(data: ArrayLike, batch: int) -> Iterable[jax.Array]:
  if hasattr(data, "shape"):
    if control.is_explicit(getattr(data, "sharding", None)):
      data = np.asarray(data)  # a split axis cannot be sliced where it lies
    for start in range(0, len(data), batch):
      yield jnp.asarray(data[start : start + batch])
  else:
    for part in data:
      yield jnp.asarray(part)
