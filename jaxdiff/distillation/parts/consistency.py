r"""Consistency models: one call takes any x_t to the data end of its path.

The consistency function of any denoiser is its jump to t_min,

  f(x, t) = G(x, t, t_min) = (sigma_min / sigma) x
            + (alpha_min - alpha sigma_min / sigma) x0(x, t),

x itself at t_min whatever the network answers. It learns to be the same all
along a path: for neighbours t > s of a discretization,

  loss = E w d(f(x_t, t), sg f_target(x_s, s)).

f_target has the student's parameters or their average; d is the squared
distance or, with `huber` = c / sqrt(d), sqrt(|x - y|^2 + c^2) - c. The methods
differ in neighbours, weight w, and in where x_s comes from:

| method                     | x_s              | neighbours               |
|----------------------------|------------------|--------------------------|
| `consistency_distillation` | a teacher's step | of a fixed grid          |
| `consistency_training`     | the x0 and eps   | of a grid that is        |
|                            | of x_t           | refined as it goes       |
| `ict`                      | the same         | the same, log-normal     |
| `ect`                      | the same         | continuous, s / t grows  |

With EDM's network, x0 = c_skip x + c_out F, the jump is the parametrization of
Song et al. (2023), f = c_skip' x + c_out' F at e = t_min: c_out' is their sd (t
- e) / sqrt(sd^2 + t^2) exactly, and c_skip' = (sd^2 + e t) / (sd^2 + t^2) where
they have sd^2 / (sd^2 + (t - e)^2). Both are 1 at e and differ by O(e). So a
consistency model is an ordinary Denoiser, begins as its teacher, and is sampled
by `solvers.gamma_sampling` on a grid that ends at t_min. Reference:
https://arxiv.org/abs/2303.01469, sections 3 to 5 and appendix C.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import modules
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts import jumps
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.predictions import ask
from jaxdiff.processes import GaussianProcess
from jaxdiff.training import alternating
from jaxdiff.types import Model
from jaxdiff.types import PyTree

TARGETS = ("student", "ema")

# Of log(sigma / alpha) at ends where alpha is 0, as `grids.karras` has it.
_HIGHEST = 7.0


def training_loss(
  student: Denoiser,
  pairs: Callable,
  *,
  weight: Callable | None = None,
  target: str = "student",
  huber: float | None = None,
) -> alternating.Loss:
  """Returns loss(key, params, nets, batch) of consistency training.

  Args:
    student: a Denoiser.
    pairs: pairs(key, n, step) -> (t, s), neighbours f[n] each, t > s.
    weight: weight(t, s) -> f[n]; None is 1.
    target: whose f is aimed at, "student" or "ema".
    huber: as in `distance`.
  """
  checks.one_of(target, TARGETS, "target")
  process = student.process

  def loss(key, params, nets, batch):
    pair_key, noise_key, dropout_key = jax.random.split(key, 3)
    x0, labels = batch["image"], generators.label(batch)
    t, s = control.own_rows(lambda n: pairs(pair_key, n, nets["step"]), x0)
    # one key for both: they lie on one straight path from x0 to eps
    x, y = (
      process.perturb(noise_key, x0, v, batch.get("index"))[0] for v in (t, s)
    )
    model = with_params(student, params)
    aim = with_params(student, aimed_at(target, params, nets))
    options = dropout(student, dropout_key)
    there = function(model, x, t, *labels, **options)
    value = distance(there, function(aim, y, s, *labels, **options), huber)
    if weight is not None:
      value = weight(t, s) * value
    return value.mean(), {}

  return loss


def function(
  model: Model, x: jax.Array, t: jax.Array, *label: Any, **options: Any
) -> jax.Array:
  """Returns f(x, t), the jump of any Denoiser to t_min, like x."""
  t = jnp.asarray(t, tree.compute_dtype(x.dtype))
  end = jnp.full_like(t, model.process.t_min)
  if model.jumps:
    options["until"] = end
  answer = ask(model, x, t, *label, **options)
  return jumps.jump(model.process, answer, x, t, end)


def distance(
  x: jax.Array, aim: jax.Array, huber: float | None = None
) -> jax.Array:
  """Returns d(x, sg(aim)) of every sample, f[batch].

  Args:
    x: [batch, ...].
    aim: like x; no gradient reaches it.
    huber: None for the mean square of the d values. A number h for sqrt(|x -
      aim|^2 + c^2) - c, c = h sqrt(d); 0 is the norm itself.
  """
  off = (x - jax.lax.stop_gradient(aim)).reshape(x.shape[0], -1)
  if huber is None:
    return jnp.mean(off**2, axis=-1)
  square = jnp.sum(off**2, axis=-1) + huber**2 * off.shape[-1]
  # the slope of a root is infinite at 0, and 0 * inf is NaN
  root = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0)
  return root - huber * off.shape[-1] ** 0.5


def karras_clock(
  process: GaussianProcess, rho: float = 7.0
) -> tuple[Callable, Callable]:
  """Returns (place(t), time(place)): 0 at t_min, 1 at t_max.

  Places are linear in (sigma / alpha)^(1 / rho): the times of n equal steps of
  them are `grids.karras(process, n)`, for an n that may be traced.
  """
  ends = [-float(process.log_snr(t)) for t in (process.t_min, process.t_max)]
  low, high = np.exp(np.minimum(ends, _HIGHEST) / rho)

  def place(t):
    level = jnp.exp(-process.log_snr(t) / rho)
    return jnp.clip((level - low) / (high - low), 0.0, 1.0)

  def time(place):
    t = process.log_snr_inverse(-rho * jnp.log(low + (high - low) * place))
    t = jnp.clip(t, process.t_min, process.t_max)
    return jnp.where(place >= 1.0, jnp.asarray(process.t_max, t.dtype), t)

  return place, time


def neighbours(
  place: jax.Array, n: jax.Array, time: Callable
) -> tuple[jax.Array, jax.Array]:
  """Returns the ends (t, s) of the interval, of n, that holds a place."""
  i = jnp.clip(jnp.floor(place * n), 0.0, n - 1.0)
  return time((i + 1.0) / n), time(i / n)


def aimed_at(target: str, params: PyTree, nets: PyTree) -> Any:
  """Returns the parameters of the target, without gradients."""
  if target == "ema":
    return nets["ema"]
  return jax.lax.stop_gradient(params)


def dropout(student: Denoiser, key: jax.Array) -> dict:
  """Returns what calls are told of dropout: one mask for both of a pair.

  A network with a state has none: a call with a key would be normalized by its
  batch, and the two of a pair are batches of different noise.
  """
  drops = modules.trains(student) and student.state is None
  return dict(key=key) if drops else {}


def check_growth(updates: int, first: int, last: int) -> None:
  """Raises a ValueError unless a number of intervals grows."""
  if not (updates >= 1 and 1 <= first <= last):
    raise ValueError(
      "the discretization grows from first >= 1 intervals to last >= first in"
      f" updates >= 1, got first={first}, last={last}, updates={updates}"
    )
