"""Denoisers: a network and its parameters as a model(x, t) -> Prediction.

A `Denoiser` is a pytree: its parameters and labels are arrays that travel into
jitted functions as arguments, its network and process are static. It is the
only place where a network's input is scaled, its output decoded, and a scalar
time broadcast.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import modules
from jaxdiff import predictions
from jaxdiff import tree
from jaxdiff.processes import check_normal
from jaxdiff.processes import GaussianProcess
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike
from jaxdiff.types import Model
from jaxdiff.types import PyTree

TIMES = ("log_snr", "log_half_sigma", "none", "steps", "t", "1 - t")

LinenApply = modules.LinenApply  # what `from_linen` makes, for `replace`

_CLIP = 20.0  # of the log-SNR that the network sees: sigma = 0 or alpha = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Denoiser:
  """A network, its parameters, and how to read it.

  The network is called as apply(params, x, c) or, with a label, apply(params,
  x, c, label). For EDM networks x is first scaled to unit variance, as in
  Karras et al. (2022), table 1; others are given it as it is, unless
  `scale_input` says otherwise. c f32[batch] is what the network is told about
  the time:

  | time              | c                                                      |
  |-------------------|--------------------------------------------------------|
  | "log_snr"         | -lambda / 4 = log(sigma / alpha) / 4, as in EDM        |
  | "log_half_sigma"  | log(sigma / (2 alpha)), as in EDM's VE networks        |
  | "steps"           | N t - 1, the step 0..N-1 of `processes.vp_discrete`    |
  | "t"               | t                                                      |
  | "1 - t"           | 1 - t, of flows that run from noise at 0 to data at 1  |
  | "none"            | 0: maps that are told of no time                       |
  | a function        | of t, as in time=lambda t: 999.0 * t                   |

  A network that jumps (`jumps=True`) is told a second time, `until`, in the
  same way, and c is f32[batch, 2]. Its pair (x0, eps) is then the one whose
  straight path alpha x0 + sigma eps leads from x at t to where the ODE is at
  `until`: one DDIM step is the jump. Without `until` it is told t twice, and
  its x0 is that of an ordinary denoiser.

  A network with a `state` (batch statistics, buffers) is called as apply(...,
  state=state) and returns (output, state), as in `modules`. Without a key it is
  asked as in sampling: no dropout, running statistics.

  Attributes:
    params: parameters, a tree of arrays.
    label: the condition, or None: a class i32[batch], a vector for each sample
      f[batch, d], or an image f[batch, height, width, channels] as
      `networks.Beside` takes it; the first two hold for all without the batch
      axis.
    apply: the network as a function of (params, x, c[, label]).
    process: the forward process.
    prediction: what the network outputs, one of `predictions.KINDS`, or its
      negative: "-flow" is the velocity x0 - eps toward the data.
    sigma_data: standard deviation of the data, for "edm" and scaled inputs.
    time: one of `TIMES`, or a function of t (keep one function object).
    scale_input: whether x is divided by sqrt(alpha^2 sigma_data^2 + sigma^2);
      None does so for the prediction "edm" alone.
    dtype: what the network's input is cast to; None keeps x's dtype.
    jumps: whether the network is told where to jump.
    output: which part of the network's answer is the prediction: an index or a
      key of a tuple or dict, or a function of the answer, such as
      `without_variance`. None takes the answer itself.
    state: what the network has beside its parameters and is not trained, a tree
      of arrays; None is nothing.
    data_width: standard deviation of its data along their widest direction, as
      `jaxdiff.width` measures it; `jaxdiff.default` asks for it. None if it is
      not known.

  Example:
    >>> import jax.numpy as jnp
    >>> import jaxdiff as jd
    >>> net = lambda params, x, c: params * x
    >>> model = jd.Denoiser(
    ...   0.5, apply=net, process=jd.rectified_flow(), prediction="flow"
    ... )
    >>> x0, eps = model(jnp.ones((1, 1)), 0.25)  # eps - x0 is what the net says
    >>> print(float(x0[0, 0]), float(eps[0, 0]))
    0.875 1.375
  """

  params: PyTree
  label: Array | None = None
  apply: Any = dataclasses.field(default=None, metadata={"static": True})
  process: GaussianProcess = dataclasses.field(
    default=None, metadata={"static": True}
  )
  prediction: str = dataclasses.field(default="edm", metadata={"static": True})
  sigma_data: float = dataclasses.field(default=0.5, metadata={"static": True})
  time: Array = dataclasses.field(default="log_snr", metadata={"static": True})
  scale_input: bool | None = dataclasses.field(
    default=None, metadata={"static": True}
  )
  dtype: DTypeLike | None = dataclasses.field(
    default=None, metadata={"static": True}
  )
  jumps: bool = dataclasses.field(default=False, metadata={"static": True})
  output: PyTree = dataclasses.field(default=None, metadata={"static": True})
  state: PyTree = None
  data_width: float | None = dataclasses.field(
    default=None, metadata={"static": True}
  )

  def __call__(
    self,
    x: jax.Array,
    t: jax.Array,
    label: ArrayLike | None = None,
    *,
    until: jax.Array | None = None,
    augment: jax.Array | None = None,
    key: jax.Array | None = None,
  ) -> predictions.Prediction:
    """Returns (x0, eps) for noisy x [batch, ...] at t, scalar or [batch].

    Args:
      x: noisy data.
      t: scalar or f[batch].
      label: takes the place of the label held.
      until: scalar or f[batch], where a network that jumps goes; t if None.
      augment: f[batch, d], how the data were augmented, for networks that are
        told so; None says that they were not.
      key: PRNG key of the dropout, which there is in training alone.

    Raises:
      ValueError: if the network's output is not shaped like x, or `until` is
        given to a network that does not jump.
      TypeError: if the network returns no array and `output` does not say which
        part of its answer to take.
    """
    options = dict(until=until, augment=augment, key=key)
    return self.stateful(x, t, label, **options)[0]

  def stateful(
    self,
    x: jax.Array,
    t: jax.Array,
    label: ArrayLike | None = None,
    *,
    until: jax.Array | None = None,
    augment: jax.Array | None = None,
    key: jax.Array | None = None,
  ) -> tuple[predictions.Prediction, PyTree]:
    """Returns (prediction, state): that of the call, and the state after it.

    Args are those of the call. With a key batch statistics are those of x, and
    the state returned has the new running ones; without one it is `state`.
    """
    if until is not None and not self.jumps:
      raise ValueError(
        f"until={until} says where to jump, but this network is told one time"
        " alone; make a student that jumps with distillation.student_of(key,"
        " teacher, shape, jumps=True), or leave it out"
      )
    # what is not given is not mentioned: most networks know nothing of it
    given = dict(augment=augment, key=key)
    given = {name: v for name, v in given.items() if v is not None}
    args = self.inputs(x, t, label, until=until)
    if self.state is not None:
      given["state"] = self.state
    call = lambda params, args, given: self.apply(params, *args, **given)
    output = control.automatic(call, self.params, args, given, batch=x)
    output, state = (output, None) if self.state is None else output
    output = _picked(output, self.output)
    if output.shape != x.shape:
      twice = output.shape == (*x.shape[:-1], 2 * x.shape[-1])
      raise ValueError(
        f"the network returned shape {output.shape} for an input of shape"
        f" {x.shape}; a denoiser predicts one value for every input value"
        " (check the number of output channels"
        + ("" if not twice else "; " + _VARIANCE)
        + ")"
      )
    t = jnp.asarray(t, tree.compute_dtype(x.dtype))
    alpha = tree.expand(self.process.alpha(t), x)
    sigma = tree.expand(self.process.sigma(t), x)
    answer = predictions.decode(
      self.prediction,
      output.astype(alpha.dtype),
      x,
      alpha,
      sigma,
      self.sigma_data,
      self._rates(t, x),
    )
    return answer, state

  def _rates(self, t, x):
    """Returns (alpha', sigma') against x, where the prediction needs them."""
    if not predictions.needs_rates(self.prediction):
      return None
    return tuple(tree.expand(r, x) for r in self.process.rates(t))

  @property
  def num_classes(self) -> int | None:
    """Number of classes, where a Linen module says it; None otherwise."""
    module = getattr(self.apply, "module", None)
    return getattr(module, "num_classes", None)

  def inputs(
    self,
    x: jax.Array,
    t: jax.Array,
    label: ArrayLike | None = None,
    *,
    until: ArrayLike | None = None,
  ) -> tuple:
    """Returns what the network is called with: (x, c) or (x, c, label).

    Args are those of the call: x is scaled, c f[batch] or f[batch, 2].
    """
    label = self.label if label is None else label
    t = jnp.asarray(t, tree.compute_dtype(x.dtype))
    scaled = self.scale_input
    if scaled is None:
      scaled = self.prediction.removeprefix("-") == "edm"
    inputs = x
    if scaled:
      alpha = tree.expand(self.process.alpha(t), x)
      sigma = tree.expand(self.process.sigma(t), x)
      inputs = predictions.input_scale(alpha, sigma, self.sigma_data) * x
    inputs = inputs.astype(self.dtype or x.dtype)
    condition = jnp.broadcast_to(self._condition(t), x.shape[:1])
    if self.jumps:
      until = t if until is None else jnp.asarray(until, t.dtype)
      second = jnp.broadcast_to(self._condition(until), x.shape[:1])
      condition = jnp.stack([condition, second], axis=-1)
    args = () if label is None else (_for_all(label, x.shape[0]),)
    return inputs, condition, *args

  def _condition(self, t: jax.Array) -> jax.Array:
    """Returns what the network is told about the time."""
    if callable(self.time):
      return self.time(t)
    if self.time == "t":
      return t
    if self.time == "1 - t":
      return 1.0 - t
    if self.time == "none":
      return jnp.zeros_like(t)
    if self.time == "steps":
      return t / self.process.t_min - 1.0
    log_noise = -self._clipped_log_snr(t)
    half = self.time == "log_half_sigma"
    return log_noise - math.log(2.0) if half else 0.25 * log_noise

  def _clipped_log_snr(self, t: jax.Array) -> jax.Array:
    """Returns lambda(t) within +-20, with finite gradients at the ends.

    The slope of lambda is infinite at alpha = 0 and sigma = 0, and 0 * inf is
    NaN: t is moved inside before the logarithm where lambda is clipped after.
    """
    lam = self.process.log_snr(jax.lax.stop_gradient(t))
    inside = abs(lam) < _CLIP
    middle = 0.5 * (self.process.t_min + self.process.t_max)
    return jnp.where(
      inside,
      self.process.log_snr(jnp.where(inside, t, middle)),
      jnp.clip(lam, -_CLIP, _CLIP),
    )


@checks.door
def from_function(
  apply: Any, params: PyTree, process: GaussianProcess, **options: Any
) -> Denoiser:
  """Returns a model from any function apply(params, x, c[, label]).

  Keep one function object for the life of the program: it is part of the key
  under which programs are compiled.

  Args:
    apply: the network.
    params: its parameters, a tree of arrays.
    process: the forward process it was trained on.
    **options: further fields of `Denoiser`.

  Raises:
    ValueError: for an unknown prediction kind or time, or a score where the
      noise is not normal.

  Example:
    >>> import jax.numpy as jnp
    >>> import jaxdiff as jd
    >>> net = lambda params, x, c: x @ params["w"]
    >>> params = {"w": jnp.eye(2)}
    >>> model = jd.from_function(net, params, jd.vp_linear(), prediction="eps")
    >>> model(jnp.ones((4, 2)), 0.5).eps.shape
    (4, 2)
  """
  checks.process(process, "from_function(apply, params, process)")
  if not callable(apply):
    raise TypeError(
      "from_function(apply, params, process) takes a function apply(params, x,"
      f" c[, label]) first, got {checks.given(apply)}; of a Flax module make a"
      " model with from_linen or from_nnx"
    )
  named = dict(params=params, apply=apply, process=process) | options
  checks.arguments(checks.contract(Denoiser), (), named)
  denoiser = Denoiser(params, apply=apply, process=process, **options)
  predictions.check_kind(denoiser.prediction, "prediction")
  if denoiser.prediction.removeprefix("-") == "score":
    check_normal(
      process,
      'prediction="score"',
      "score",
      'predict "x0", "eps" or "edm"; a gradient of a scalar by'
      ' from_potential(..., prediction="edm", time="log_snr")',
    )
  if not callable(denoiser.time):
    checks.one_of(denoiser.time, TIMES, "time")
  if denoiser.time == "steps" and process.t_max != 1.0:
    raise ValueError(
      'time="steps" counts the steps of a discrete process, which has t from'
      f" 1/N to 1, but this process ends at t = {process.t_max}; make it with"
      ' processes.vp_discrete(betas), or choose time="t"'
    )
  if denoiser.time == "1 - t" and not 0 <= process.t_min < process.t_max <= 1:
    raise ValueError(
      'time="1 - t" turns a clock around that runs from 0 to 1, but this'
      f" process has the times [{process.t_min:.6g}, {process.t_max:.6g}];"
      " give a function of its t, time=lambda t: ..."
    )
  return denoiser


@checks.door
def from_linen(
  module: Any, params: PyTree, process: GaussianProcess, **options: Any
) -> Denoiser:
  """Returns a model from a Flax Linen module and its variables.

  Args:
    module: a module that is called as module(x, c[, label]). If its call takes
      `train`, `deterministic` or the like it is told the mode.
    params: its "params" collection, or all that module.init returned; other
      collections, as "batch_stats", become the model's `state`.
    process: the forward process it was trained on.
    **options: further fields of `Denoiser`.

  Raises:
    TypeError: if the module is called in another way.
    ValueError: in a call, if the module needs variables that were not given.

  Example:
    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxdiff as jd
    >>> class Net(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x, c):
    ...     return nn.Dense(x.shape[-1])(x) + c[:, None]
    >>> net, x = Net(), jnp.ones((4, 2))
    >>> params = net.init(jax.random.key(0), x, jnp.ones(4))["params"]
    >>> model = jd.from_linen(net, params, jd.vp_linear(), prediction="eps")
    >>> model(x, 0.5).x0.shape
    (4, 2)
  """
  if params is None or callable(params):
    raise TypeError(
      "from_linen(module, params, process) takes params second, a tree of"
      f" arrays, got {checks.given(params)}; they are what module.init returned"
    )
  apply, params, state = modules.of_linen(module, params)
  return from_function(apply, params, process, **({"state": state} | options))


@checks.door
def from_nnx(module: Any, process: GaussianProcess, **options: Any) -> Denoiser:
  """Returns a model from a Flax NNX module, which stays as it is.

  Its `nnx.Param`s are the model's `params`; other variables, as batch
  statistics, are its `state`. Sampling asks it as after module.eval(), training
  as after module.train(), whatever was called before. `nnx.Rngs` begin anew
  from the key of each call. To have the module back: nnx.update(module,
  model.params, model.state).

  Args:
    module: a module that is called as module(x, c[, label]).
    process: the forward process it was trained on.
    **options: further fields of `Denoiser`.

  Raises:
    TypeError: for what is no NNX module, or is called in another way.

  Example:
    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> import jaxdiff as jd
    >>> class Net(nnx.Module):
    ...   def __init__(self, rngs):
    ...     self.dense = nnx.Linear(2, 2, rngs=rngs)
    ...   def __call__(self, x, c):
    ...     return self.dense(x) + c[:, None]
    >>> model = jd.from_nnx(Net(nnx.Rngs(0)), jd.edm(), prediction="edm")
    >>> model(jnp.ones((4, 2)), 0.5).x0.shape
    (4, 2)
  """
  apply, params, state = modules.of_nnx(module)
  return from_function(apply, params, process, **({"state": state} | options))


@checks.door
def from_potential(
  potential: Any, params: PyTree, process: GaussianProcess, **options: Any
) -> Denoiser:
  """Returns a model whose network is the gradient of a scalar network.

  By default the scalar is the log-density and is told t itself: the model's
  score is grad_x potential(params, x, t). With prediction="edm" (and time=
  "log_snr") EDM's F is a gradient, and then so are x0, eps and the score: every
  `prediction` makes a conservative model.

  Args:
    potential: potential(params, x, c[, label]) -> f[batch].
    params: its parameters, a tree of arrays.
    process: the forward process.
    **options: further fields of `Denoiser`.
  """
  defaults = dict(prediction="score", time="t")
  return from_function(
    GradientApply(potential), params, process, **(defaults | options)
  )


@dataclasses.dataclass(frozen=True)
class GradientApply:
  """The gradient of potential(params, x, c[, label]) with respect to x."""

  potential: Any

  def __call__(self, params: PyTree, x: jax.Array, *args: Any) -> jax.Array:
    def total(x):
      value = self.potential(params, x, *args)
      if value.shape != x.shape[:1]:
        raise TypeError(
          "a potential returns one number for each sample, shape"
          f" {x.shape[:1]}, got {value.shape}; a network that returns a field"
          " itself is a model by from_function or from_linen"
        )
      return jnp.sum(value)

    return jax.grad(total)(x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Experts:
  """A mixture of K experts over time; a model that any table runs.

  Expert k answers at times in (bounds[k + 1], bounds[k]], the last one also
  below. At one time for all samples, as tables ask, one of them is run; at a
  time for each sample all are.

  Attributes:
    params: parameters of all experts, leaves [K, ...].
    model: a Denoiser of one expert, without its parameters.
    bounds: K + 1 falling times.
    label: the condition of every sample, or None.
  """

  params: PyTree
  model: Model
  bounds: tuple[float, ...] = dataclasses.field(
    default=(), metadata={"static": True}
  )
  label: Array | None = None

  @property
  def process(self) -> GaussianProcess:
    """The forward process."""
    return self.model.process

  @property
  def num_classes(self) -> int | None:
    """Number of classes, as a single network's model has it."""
    return self.model.num_classes

  def expert(self, k: Any) -> Any:
    """Returns the model of expert k, which may be traced."""
    return dataclasses.replace(
      self.model, params=jax.tree.map(lambda p: p[k], self.params)
    )

  def __call__(
    self, x: jax.Array, t: jax.Array, label: ArrayLike | None = None
  ) -> predictions.Prediction:
    """Returns (x0, eps) for noisy x [batch, ...] at t, scalar or [batch]."""
    label = self.label if label is None else label
    t = jnp.asarray(t, tree.compute_dtype(x.dtype))
    inner = jnp.asarray(self.bounds[1:-1], t.dtype)
    # a bound belongs to the expert that begins there, however it was rounded
    k = jnp.sum(t[..., None] <= inner * (1.0 + 1e-6), axis=-1)
    if jnp.ndim(t) == 0:
      return self.expert(k)(x, t, label)
    answers = jax.vmap(
      lambda p: dataclasses.replace(self.model, params=p)(x, t, label)
    )(self.params)
    return jax.tree.map(lambda v: v[k, jnp.arange(len(x))], answers)


@checks.door
def with_label(denoiser: Denoiser, label: ArrayLike) -> Denoiser:
  """Returns the denoiser conditioned on label, as the attribute says.

  Raises:
    TypeError: for a label that is None or no number.
    ValueError: for a class that the network does not have, where its Linen
      module says by `num_classes` how many there are.

  Example:
    >>> import jax.numpy as jnp
    >>> import jaxdiff as jd
    >>> net = lambda params, x, c, label: params[label] + 0.0 * x
    >>> params = jnp.asarray([[-1.0], [1.0]])
    >>> model = jd.from_function(net, params, jd.edm(), prediction="x0")
    >>> labelled = jd.with_label(model, [0, 1])
    >>> print(labelled(jnp.zeros((2, 1)), 1.0).x0.ravel())
    [-1.  1.]
  """
  if not hasattr(denoiser, "label"):
    raise TypeError(
      "with_label(denoiser, label) takes a model that holds a label, as"
      f" from_linen makes it, got {checks.given(denoiser)}; a function of"
      " (x, t, label) is given one by functools.partial"
    )
  if label is None:
    raise TypeError(
      "with_label(denoiser, label) takes a condition, got None; use the model"
      " as it is, or its null label"
    )
  checks.labels(label, getattr(denoiser, "num_classes", None))
  return dataclasses.replace(denoiser, label=jnp.asarray(label))


def without_variance(answer: jax.Array) -> jax.Array:
  """Returns the first half of the channels, f[..., c] of f[..., 2 c].

  Networks with a learned variance (iDDPM, ADM, DiT) put it into the second
  half; channels are last, as everywhere here. Samplers do not use it.
  """
  return answer[..., : answer.shape[-1] // 2]


_VARIANCE = (
  "if the second half is a learned variance, as in iDDPM and DiT, say"
  " output=denoisers.without_variance"
)


def _picked(answer: PyTree, output: PyTree) -> jax.Array:
  """Returns the part of a network's answer that is the prediction."""
  told = "" if output is None else f", of which output={output!r} was taken"
  if callable(output):
    part = output(answer)
  elif output is None:
    part = answer
  else:
    try:
      part = answer[output]
    except (KeyError, IndexError, TypeError) as error:
      raise TypeError(
        f"the network returned {_outline(answer)}, which has no part"
        f" {output!r}; output is an index or key of its answer, or a function"
        " of it"
      ) from error
  if not hasattr(part, "shape"):
    raise TypeError(
      f"the network returned {_outline(answer)}{told}, but a prediction is one"
      " array; say which part it is, as in output=0, output='sample', or"
      " output=lambda answer: answer.sample"
    )
  return part


def _outline(answer):
  """Returns what a network returned, in a few words."""
  name = type(answer).__name__
  if isinstance(answer, dict):
    parts = [f"{k!r}: {jnp.shape(v)}" for k, v in answer.items()]
  elif isinstance(answer, (tuple, list)):
    parts = [str(getattr(v, "shape", type(v).__name__)) for v in answer]
  else:
    return f"a {name}"
  return f"a {name} of {', '.join(parts)}"


def _for_all(label: ArrayLike, batch: int) -> jax.Array:
  """Returns classes as i[batch], vectors as f[batch, d]; images as they are."""
  label = jnp.asarray(label)
  if label.ndim > 2:
    return label
  vector = jnp.issubdtype(label.dtype, jnp.floating)
  if label.ndim > vector and label.shape[0] not in (1, batch):
    raise ValueError(
      f"there are labels for {label.shape[0]} samples, {checks.given(label)},"
      f" but the batch has {batch}; give one for each, or one for all"
    )
  return jnp.broadcast_to(label, (batch, *label.shape[-1:] * vector))
