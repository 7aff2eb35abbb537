"""Processes, networks, teachers and losses that tests of distillation share."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import predictions
from jaxdiff import processes
from jaxdiff import tree
from jaxdiff.distillation.parts import implicit
from jaxdiff.distillation.parts import trigflow

KEY = jax.random.key(0)
SGD = optax.sgd(0.1)

# --- processes ----------------------------------------------------------------

EDM = processes.edm(0.02, 20.0)
VP = processes.vp_cosine()
PROCESSES = {"edm": EDM, "vp": VP, "flow": processes.rectified_flow()}

D = 0.7  # sigma_data of students in continuous time
CONTINUOUS = {
  "edm": EDM,
  "vp": processes.vp_linear(),
  "flow": processes.rectified_flow(0.02, 0.95),
  "trig": trigflow.process(D, 0.02),
}
CONTINUOUS_NAMES = [
  "edm",
  "flow",
  pytest.param("vp", marks=pytest.mark.slow),
  pytest.param("trig", marks=pytest.mark.slow),
]

RESSHIFT = processes.resshift()

# --- batches ------------------------------------------------------------------


def six_points(n=6, d=2, dtype=jnp.float32):
  x = jax.random.normal(jax.random.key(9), (n, d), dtype)
  return {"image": x, "index": jnp.arange(n)}


SIX_POINTS = six_points()
EIGHT_POINTS = {"image": jax.random.normal(jax.random.key(9), (8, 2))}
SHAPE = (4, 4, 1)


def images(seed, n=6, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return jnp.asarray(0.5 * rng.standard_normal((n, *SHAPE)), dtype)


def pairs(seed=0):
  """Returns a batch of residuals of known images, with its index."""
  batch = {"image": images(seed), "degraded": images(seed + 1)}
  return distillation.residuals(batch) | {"index": jnp.arange(6)}


def points(process, n=5, dtype=jnp.float64):
  """Returns (x, t): noised data at times all over the process."""
  levels = np.geomspace(0.05, 15.0, n)
  t = jnp.asarray(np.clip(process.time_at(levels), None, process.t_max), dtype)
  x0 = 0.6 * jax.random.normal(jax.random.key(1), (n, 2), dtype)
  x, _ = process.perturb(jax.random.key(2), x0, t)
  return x, t


# --- networks -----------------------------------------------------------------


def network(
  process=EDM,
  module=None,
  *,
  seed=0,
  scale=0.3,
  jumps=False,
  dtype=None,
  **options,
):
  """Returns a small network whose every parameter is random."""
  module = module or networks.MLP(features=(8,), embedding=8)
  x, c = jnp.zeros((1, 2)), jnp.zeros((1, 2) if jumps else 1)
  shapes = jax.eval_shape(module.init, KEY, x, c)["params"]
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda s: jnp.asarray(scale * rng.standard_normal(s.shape), dtype), shapes
  )
  return denoisers.from_linen(module, params, process, jumps=jumps, **options)


def student(process=EDM, *, dtype=jnp.float32, **options):
  """Returns a student in continuous time, of data with deviation D."""
  return network(process, scale=0.5, dtype=dtype, sigma_data=D, **options)


RESIDUAL = networks.ResidualMLP(width=8, blocks=4, hidden=1, embedding=8)


def dropped(budgets, **options):
  """Returns (teacher, student), whose blocks are dropped by `budgets`."""
  teacher = network(module=RESIDUAL)
  student = distillation.drop_layers(teacher, (2,), budgets=budgets, **options)
  return teacher, student


class Affine(nn.Module):
  """F = a x + b c + d y + e, of four numbers: the smallest network."""

  label_dim: int = 0

  @nn.compact
  def __call__(self, x, c, label=None):
    a = self.param("a", nn.initializers.normal(0.3), (4,)).astype(x.dtype)
    c = c.reshape(c.shape[:1] + (1,) * (x.ndim - 1))
    y = 0.0 if label is None else label
    return a[0] * x + a[1] * c + a[2] * y + a[3]


def restorer(process, seed=0, scale=0.3, **options):
  """Returns a network of four numbers that is told the degraded image."""
  rng = np.random.default_rng(seed)
  params = {"a": jnp.asarray(scale * rng.standard_normal(4), jnp.float32)}
  module = Affine(label_dim=int(process == RESSHIFT))
  return denoisers.from_linen(module, params, process, **options)


def linear(params, x, c, *label):
  return x @ params


MATRIX = np.asarray([[0.8, 0.3], [-0.2, 0.6]], np.float32)


def linear_map(matrix):
  """Returns the student x -> x A, which is told no time."""
  return denoisers.from_function(
    linear, jnp.asarray(matrix), EDM, prediction="x0", time="none"
  )


def affine(params, x, c, *label):
  del label
  return x * params["scale"] + params["shift"] * (1.0 + c[:, None])


def affine_model(process=EDM, **options):
  params = {"scale": jnp.asarray([0.9, 0.4]), "shift": jnp.asarray([0.1, -0.3])}
  return denoisers.from_function(
    affine, params, process, **(dict(prediction="x0", time="t") | options)
  )


SMALL = dict(width=8, depth=1, heads=2, head_width=8, head_blocks=1)


def chain(variant, shape=(4, 4, 1), token=(2, 2, 1), **options):
  """Returns a chain with random parameters, none of them zero."""
  options = SMALL | options
  model = jax.eval_shape(  # its own parameters are not needed
    lambda: distillation.transitions(
      KEY, shape, variant, token=token, **options
    )
  )
  rng = np.random.default_rng(0)
  fill = lambda p: (0.3 * rng.standard_normal(p.shape)).astype(p.dtype)
  return dataclasses.replace(model, params=jax.tree.map(fill, model.params))


def chain_features(model, *args):
  """Returns the features of the network, as an array of numpy."""
  apply = jax.jit(lambda *args: model.apply("features", *args))
  return np.asarray(apply(*args))


# --- models that know the answer ----------------------------------------------

TEACHER = oracles.exact(oracles.g2(), EDM)


def bent_teacher(process):
  """Returns a model that is no line in x or t, and cheap to compile."""

  def model(x, t, *label):
    alpha = tree.expand(process.alpha(t), x)
    sigma = tree.expand(process.sigma(t), x)
    x0 = jnp.sin(x) + alpha
    return predictions.Prediction(x0, (x - alpha * x0) / sigma)

  return model


V = 0.6  # variance of Gaussian data


def _exact_g(params, x, c):
  """Returns x0 of the jump of EDM's ODE for data N(0, V), told (t, s)."""
  t, s = c[:, :1], c[:, 1:]
  there = jnp.sqrt((s**2 + V) / (t**2 + V))
  # (there - s / t) / (1 - s / t), without the difference of near numbers
  return x * params * V * (t + s) / (t**2 + V) / (there * t + s)


def exact_student(scale=1.0):
  """Returns the student that jumps along EDM's ODE of N(0, V), times scale."""
  return denoisers.from_function(
    _exact_g,
    jnp.asarray(scale),
    EDM,
    prediction="x0",
    time="t",
    jumps=True,
  )


def map_of_gaussian(process, variance, jumps=False):
  """Returns the student that is the exact flow map of N(0, variance)."""

  def apply(params, x, c):
    spread = lambda t: jnp.sqrt(
      process.alpha(t) ** 2 * variance + process.sigma(t) ** 2
    )[:, None]
    if not jumps:
      return math.sqrt(variance) / spread(c) * x
    t, s = c[:, 0], c[:, 1]
    there = spread(s) / spread(t) * x
    ratio = (process.sigma(s) / process.sigma(t))[:, None]
    gain = process.alpha(s)[:, None] - process.alpha(t)[:, None] * ratio
    return (there - ratio * x) / gain

  return denoisers.from_function(
    apply,
    {},
    process,
    prediction="x0",
    time="t",
    sigma_data=D,
    jumps=jumps,
  )


def point_student(process):
  """Returns a student that knows the only point of the data."""
  point = lambda params, x, c: jnp.broadcast_to(params, x.shape)
  return denoisers.from_function(
    point, jnp.asarray([0.3, -0.7]), process, prediction="x0"
  )


# --- losses of a method at its start ------------------------------------------


def is_zero(tree):
  return all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(tree))


def nets(method, **more):
  """Returns what the losses of an untrained method find beside them."""
  return {
    **method.frozen,
    **method.params,
    "student": method.student.params,
    "ema": method.student.params,
    "step": jnp.asarray(0),
    "memory": {},
    **more,
  }


def gradients(method, player):
  """Returns (nets, batch) -> gradient, one program."""

  def loss(params, nets, batch):
    return method.players[player].loss(KEY, params, nets, batch)[0]

  return jax.jit(lambda n, b: jax.grad(loss)(n[player], n, b))


def gradient(method, player, given=None):
  return gradients(method, player)(given or nets(method), SIX_POINTS)


def loss_of(method, **given):
  """Returns loss(params, key, batch, step) of the student, as one program."""
  loss = method.players["student"].loss
  given = {**method.frozen, "memory": method.memory, **given}
  given = {"ema": method.student.params, **given}
  return jax.jit(
    lambda params, key, batch, step=0: loss(
      key, params, given | {"step": step}, batch
    )[0]
  )


def value_and_gradient(
  method, key, step=10**6, player="student", batch=EIGHT_POINTS, **given
):
  """Returns (value, metrics), gradients of a player's loss."""
  given = nets(method, step=jnp.asarray(step)) | given
  loss = method.players[player].loss
  grads = jax.value_and_grad(loss, argnums=1, has_aux=True)
  # a teacher may be a plain function, which is no argument of a program
  return jax.jit(lambda params: grads(key, params, given, batch))(given[player])


def restored_gradient(
  method, batch, key=None, memory=None, player="student", jit=jax.jit
):
  """Returns (loss, gradient, metrics) of a method's player at its start."""
  nets = {"student": method.student.params, **method.params, **method.frozen}
  memory = memory or dict(method.memory)
  arrays, static = tree.partition(nets | {"memory": memory})
  loss = method.players[player].loss
  key = jax.random.key(3) if key is None else key

  @jit
  def gradient(params, arrays):
    nets = tree.combine(arrays, static) | {"step": jnp.asarray(0)}
    given = jax.value_and_grad(loss, argnums=1, has_aux=True)
    return given(key, params, nets, batch)

  (value, said), grads = gradient(nets[player], arrays)
  return value, grads, said


def implicit_loss(objective, teacher, fake, x0, key=0):
  """Returns the loss of one-step samples x0 by an objective of scores."""
  times = losses.times.uniform_log_snr(fake.process)
  return implicit.matching(
    jax.random.key(key), x0, teacher, fake, times, {"image": x0}, objective
  )[0]
