"""The width of data: their standard deviation along their widest direction.

It is the root of the largest eigenvalue of the covariance of the flattened
samples, and tells a solver at which noise levels something happens: far above
it data are lost in noise, and every sample's path is nearly straight.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import grids
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import ArrayLike

CALLS = 20  # network calls of `sampled_width`
_MOST = 4096  # samples that are looked at


@checks.door(host=True)
def width(data: ArrayLike) -> float:
  """Returns the standard deviation of data along their widest direction.

  That of images grows with their number of values, since neighbouring pixels
  vary together: in [-1, 1] 8x8 digits have 1.7, colour patches of photographs
  8 (8x8), 16 (16x16) and 30 (32x32), about half the root of their number of
  values.

  Args:
    data: f[n, ...], n samples, as the model sees them. Of more than 4,096 an
      evenly spaced choice is taken.

  Raises:
    ValueError: for fewer than two samples, values that are not finite, or
      samples that are all the same.
    TypeError: for integers, such as images of bytes.

  Example:
    >>> import jax
    >>> import jaxdiff as jd
    >>> data = jax.random.normal(jax.random.key(0), (4000, 3)) * 2.0
    >>> round(jd.width(data), 1)
    2.0
  """
  data = np.asarray(data)
  if not np.issubdtype(data.dtype, np.floating) and data.dtype.kind != "V":
    raise TypeError(
      f"the width of data of type {data.dtype} is not that of what a model"
      " sees; scale them first, as in data / 127.5 - 1.0 for images of bytes"
    )
  if data.ndim < 1 or len(data) < 2:
    raise ValueError(
      f"a width takes two samples or more, [n, ...], got the shape {data.shape}"
    )
  chosen = np.linspace(0, len(data) - 1, min(len(data), _MOST)).round()
  x = data[chosen.astype(int)].astype(np.float64).reshape(len(chosen), -1)
  if not np.isfinite(x).all():
    raise ValueError("the data have values that are not finite; leave them out")
  x -= x.mean(axis=0)
  small = x.T @ x if x.shape[1] <= len(x) else x @ x.T
  largest = float(np.linalg.eigvalsh(small)[-1])
  if not largest > 0:
    raise ValueError("the samples are all the same: they have no width")
  return math.sqrt(largest / (len(x) - 1))


@checks.door(host=True, least=dict(samples=2))
def sampled_width(
  key: jax.Array,
  model: sampling.Model,
  process: GaussianProcess,
  shape: Sequence[int],
  *,
  samples: int = 128,
) -> float:
  """Returns the width of what a model samples, from one run of 20 calls.

  With 128 samples it is right to about five percent, more where the samples
  have a heavy tail, and that is enough for `jaxdiff.default`.

  Args:
    key: PRNG key of the noises.
    model: model(x, t) -> Prediction; labels of a batch are of `samples`.
    process: the forward process.
    shape: shape of one sample.
    samples: how many are drawn.

  Example:
    >>> import jax
    >>> import jaxdiff as jd
    >>> process = jd.edm()
    >>> model = jd.exact(jd.oracles.gaussian([0.0, 0.0], 4.0), process)
    >>> key = jax.random.key(0)
    >>> found = jd.choosing.sampled_width(key, model, process, (2,))
    >>> print(1.8 < found < 2.4)
    True
  """
  table = solvers.ipndm(process, grids.vp_quadratic(process, CALLS), order=3)
  x = sampling.sample(key, model, table, (samples, *shape), process=process)
  return width(jnp.asarray(x, jnp.float32))
