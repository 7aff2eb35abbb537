"""Tables that are built on the host, as differentiable functions.

Solvers compute their tables with numpy in float64 and are not to be traced. A
table's derivative by the few numbers that it is built from costs little beside
one through a network: here it is taken by central differences of the build, in
float64, where they are right to about ten digits. JAX sees a function with an
ordinary derivative, forward and reverse.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import tableau as tables
from jaxdiff.tableau import Tableau
from jaxdiff.types import PyTree

_STEP = 1e-5


def hosted(
  table_of: Callable[[np.ndarray], Tableau], theta: PyTree
) -> Callable[[jax.Array], Tableau]:
  """Returns `table_of` as a function that JAX traces and differentiates.

  Args:
    table_of: f64[P] -> Tableau, plain numpy; tables of one shape for all theta.
    theta: f[P], any place to learn the shapes at.
  """
  leaves = table_of(np.asarray(theta, np.float64))
  size = len(theta)

  def build(theta):
    return Tableau(
      *(leaf.astype(theta.dtype) for leaf in table_of(_wide(theta)))
    )

  def slopes(theta):
    at = np.nan_to_num(_wide(theta))
    rows = []
    for push in _STEP * np.eye(size):
      ahead, behind = table_of(at + push), table_of(at - push)
      rows.append(
        [(a - b) / (2 * _STEP) for a, b in zip(ahead, behind, strict=True)]
      )
    stacked = (np.stack(leaf) for leaf in zip(*rows, strict=True))
    return Tableau(*(leaf.astype(theta.dtype) for leaf in stacked))

  def call(host, theta, lead):
    shapes = Tableau(
      *(jax.ShapeDtypeStruct((*lead, *v.shape), theta.dtype) for v in leaves)
    )
    return jax.pure_callback(host, shapes, theta, vmap_method="sequential")

  @jax.custom_jvp
  def table(theta):
    return call(build, theta, ())

  @table.defjvp
  def _(primals, tangents):
    (theta,), (dot,) = primals, tangents
    by = call(slopes, theta, (size,))
    return table(theta), Tableau(*(jnp.tensordot(dot, s, 1) for s in by))

  # what comes out of JAX knows numbers alone
  return lambda theta: tables.under(table(theta), leaves.process)


def _wide(theta):
  return np.asarray(theta, np.float64)
