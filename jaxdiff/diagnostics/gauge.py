r"""Gauge freedom: changes of a field that leave all marginals as they are.

Under a density p every field is, uniquely, a gradient and a rest,

  s = grad phi + r,   div(p r) = 0   <=>   div r + r . grad log p = 0,

orthogonal in L^2(p). Replacing the score by grad log p_t + r moves every sample
and no marginal, of the probability-flow ODE and of the reverse SDE alike, and
the ODE's likelihood stays exact. So a field samples the right law if and only
if its gradient part is the score; being a gradient is neither needed nor
enough. What is always a gauge transformation, for every density: s -> (I + A)
s, with A constant and antisymmetric, since div(p A grad log p) = div(A grad p)
= 0. Reference: Horvat and Pfister (2024), https://arxiv.org/abs/2402.03845.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import jacobians
from jaxdiff import numerics
from jaxdiff import tree
from jaxdiff.denoisers import GradientApply
from jaxdiff.diagnostics.fields import NO_SCORE
from jaxdiff.predictions import ask
from jaxdiff.predictions import Prediction
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree

Field = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transformed:
  """A model whose score is a matrix times that of another; a pytree.

  Attributes:
    model: model(x, t) -> Prediction.
    matrix: f[d, d].
    process: the forward process.
  """

  model: Model
  matrix: Array
  process: GaussianProcess = dataclasses.field(
    default=None, metadata={"static": True}
  )

  def __call__(self, x: jax.Array, t: jax.Array) -> Prediction:
    """Returns the pair whose eps is matrix eps; x0 follows from x."""
    eps = ask(self.model, x, t).eps
    matrix = jnp.asarray(self.matrix, eps.dtype)
    flat = jnp.matmul(eps.reshape(len(x), -1), matrix.T, precision="highest")
    eps = flat.reshape(x.shape)
    t = jnp.asarray(t, tree.compute_dtype(x.dtype))
    alpha = tree.expand(self.process.alpha(t), x)
    sigma = tree.expand(self.process.sigma(t), x)
    return Prediction(numerics.safe_divide(x - sigma * eps, alpha), eps)


@checks.door
def transform(
  model: Model, matrix: ArrayLike, process: GaussianProcess
) -> Transformed:
  """Returns the model of the score `matrix` s: right for I + A alone.

  Args:
    model: model(x, t) -> Prediction.
    matrix: f[d, d].
    process: the forward process.
  """
  return Transformed(model, jnp.asarray(matrix), process=process)


@checks.door
def rotate(
  model: Model, skew: ArrayLike, process: GaussianProcess
) -> Transformed:
  """Returns the model of the score (I + A) s, which samples the same law.

  Its paths turn while they converge: with |A| of order 1 a solver needs steps
  that resolve an angle |A| log(sigma' / sigma).

  Args:
    model: model(x, t) -> Prediction.
    skew: A, f[d, d], antisymmetric.
    process: the forward process.

  Raises:
    ValueError: if A is not antisymmetric, or the noise not normal.
  """
  check_normal(
    process,
    "rotate",
    "turns eps as a score, which keeps the law; it is one under normal noise"
    " alone",
    NO_SCORE,
  )
  skew = np.asarray(skew, np.float64)
  if skew.ndim != 2 or skew.shape[0] != skew.shape[1]:
    raise ValueError(f"A must be a square matrix [d, d], got {skew.shape}")
  off = abs(skew + skew.T).max()
  if off > 1e-8:
    raise ValueError(
      "only an antisymmetric A leaves every density as it is, but A + A^T has"
      f" an entry of {off:.3g}; take 0.5 * (A - A.T)"
    )
  return transform(model, np.eye(len(skew)) + skew, process)


@checks.door
def condition_residual(score: Field, remainder: Field, x: jax.Array):
  """Returns div r + r . s at x, f[batch]: 0 if r is a gauge field of s.

  Args:
    score: grad log p, from f[batch, ...] to f[batch, ...].
    remainder: r, likewise.
    x: f[batch, ...].
  """
  inner = jnp.sum((remainder(x) * score(x)).reshape(len(x), -1), axis=1)
  return jacobians.divergence(remainder, x) + inner


class Energy(NamedTuple):
  """Mean squares under p of a field and of its two orthogonal parts.

  Attributes:
    field: E |s|^2.
    gradient: E |grad phi|^2.
    remainder: E |s - grad phi|^2.
    overlap: E grad phi . (s - grad phi) / E |s|^2; 0 for the exact projection.
  """

  field: jax.Array
  gradient: jax.Array
  remainder: jax.Array
  overlap: jax.Array


@checks.door
def project(
  key: jax.Array,
  field: Field,
  draw: Callable[[jax.Array, int], jax.Array],
  potential: Callable[[PyTree, jax.Array], jax.Array],
  params: PyTree,
  *,
  steps: int = 3000,
  batch_size: int = 512,
  learning_rate: float = 3e-3,
) -> tuple[PyTree, Energy]:
  """Returns (parameters of phi, energies): the gradient part of a field.

  grad phi minimizes E |s - grad phi|^2, so that it is the projection of s.

  Args:
    key: PRNG key.
    field: s at one time, from f[batch, ...] to f[batch, ...].
    draw: draw(key, n) -> f[n, ...], samples of p at that time.
    potential: potential(params, x) -> f[batch], a network of one output.
    params: its initial parameters.
    steps: steps of Adam with a cosine schedule.
    batch_size: samples a step.
    learning_rate: its peak.
  """
  gradient = GradientApply(potential)
  optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

  def loss(params, x):
    square = (field(x) - gradient(params, x)) ** 2
    return jnp.mean(jnp.sum(square.reshape(len(x), -1), axis=1))

  @jax.jit
  def fit(params):
    def step(carry, i):
      params, state = carry
      x = draw(jax.random.fold_in(key, i), batch_size)
      changes, state = optimizer.update(jax.grad(loss)(params, x), state)
      return (optax.apply_updates(params, changes), state), None

    carry = (params, optimizer.init(params))
    (params, _), _ = control.scan(step, carry, jnp.arange(steps))
    x = draw(jax.random.fold_in(key, steps), 8 * batch_size)
    whole, part = field(x), gradient(params, x)
    dot = lambda a, b: jnp.mean(jnp.sum((a * b).reshape(len(x), -1), axis=1))
    rest = whole - part
    size = dot(whole, whole)
    return params, Energy(
      size, dot(part, part), dot(rest, rest), dot(part, rest) / size
    )

  return fit(params)


@checks.door
def weak_overlap(remainder: jax.Array, gradients: jax.Array) -> jax.Array:
  """Returns E r . grad h for test functions h, relative to their sizes: f[m].

  It is 0 for a gauge field and every h, and needs no score: the weak form of
  the gauge condition, for training or for a test.

  Args:
    remainder: r at samples of p, f[batch, ...].
    gradients: grad h at them, f[m, batch, ...].
  """
  r = remainder.reshape(len(remainder), -1)
  h = gradients.reshape(*gradients.shape[:2], -1)
  size = jnp.sqrt(
    jnp.mean(jnp.sum(r**2, -1)) * jnp.mean(jnp.sum(h**2, -1), axis=1)
  )
  inner = jnp.mean(jnp.sum(r * h, axis=-1), axis=1)
  return numerics.safe_divide(inner, size)
