r"""Transition matching: learn the stochastic kernels of a chain of few steps.

A chain X_0 ~ N(0, I), ..., X_T leads from noise to data. A supervising process
gives its states for known data, and a network learns the kernel p(X_{t+1} |
X_t) as a distribution, not as its mean: a heavy backbone reads the state once
for every transition, and a light head draws tokens by a flow of its own.

| variant | kernel                                | T        | sampler         |
|---------|---------------------------------------|----------|-----------------|
| "dtm"   | X_T - X_0, every token by itself      | 16 to 32 | parallel        |
| "artm"  | X_{t+1}, token after token, given X_t | 1 to 3   | causal, a cache |
| "fhtm"  | the same given all states before      | 1 to 3   | causal, a cache |

There is no teacher: it is trained on data. It is a `Method` all the same, so
that the one update trains it:

  model = distillation.transitions(key, (8, 8, 1), "dtm", token=(2, 2, 1))
  method = distillation.transition_matching(model, optimizer=optax.adam(1e-3))
  ...
  x = distillation.sample_transitions(key, method.finished(state), n)

Reference: Shaul et al. (2025), https://arxiv.org/abs/2506.23589.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from jaxdiff import checks
from jaxdiff import losses
from jaxdiff import training
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.distillation.transition_matching import artm
from jaxdiff.distillation.transition_matching import dtm
from jaxdiff.distillation.transition_matching import fhtm
from jaxdiff.distillation.transition_matching import kernels
from jaxdiff.distillation.transition_matching.models import Transitions
from jaxdiff.distillation.transition_matching.models import transitions
from jaxdiff.types import ArrayLike
from jaxdiff.types import DTypeLike

__all__ = [
  "Transitions",
  "artm",
  "dtm",
  "fhtm",
  "kernels",
  "sample",
  "transition_matching",
  "transitions",
]

_VARIANTS = {"dtm": dtm, "artm": artm, "fhtm": fhtm}


@checks.door
def transition_matching(
  student: Transitions,
  *,
  optimizer: optax.GradientTransformation,
  head_repeat: int = 4,
  label_dropout: float = 0.15,
  ema: float = 0.999,
) -> Method:
  """Trains a student that draws each transition from a learned law.

  It serves all variants of transition matching.

  Args:
    student: made by `transitions`.
    optimizer: any optax transformation.
    head_repeat: draws of the head for each pass of the backbone.
    label_dropout: rate at which labels are replaced by the null label.
    ema: decay of the average.

  Raises:
    ValueError: for head_repeat < 1.
  """
  if head_repeat < 1:
    raise ValueError(
      f"the head is trained at least once for every pass of the backbone, got"
      f" head_repeat={head_repeat}"
    )
  variant = _VARIANTS[student.variant]
  classes = student.network.num_classes

  def loss(key, params, nets, batch):
    del nets  # learns from data alone
    learn_key, flow_key, label_key = jax.random.split(key, 3)
    label = None
    if classes:
      label = losses.dropped_labels(label_key, batch, classes, label_dropout)
    model = with_params(student, params)
    x, index = batch["image"], batch.get("index")
    h, target = variant.learn(learn_key, model, x, label, index)
    return kernels.flow_loss(flow_key, model, h, target, head_repeat, index), {}

  return Method(
    student=student,
    players={"student": training.Player(loss, optimizer)},
    ema=ema,
  )


@checks.door
def sample(
  key: jax.Array,
  model: Transitions,
  n: int,
  *,
  steps: int | None = None,
  head_steps: int = 16,
  label: ArrayLike | None = None,
  guidance: ArrayLike | None = None,
  dtype: DTypeLike = jnp.float32,
) -> jax.Array:
  """Returns n samples, f[n, ...].

  Args:
    key: PRNG key.
    model: a trained chain.
    n: how many.
    steps: T, the number of transitions; that of the training by default.
    head_steps: Euler steps of the head for every token and transition.
    label: i32[n] or one class for all.
    guidance: w of u_null + w (u_label - u_null) in the head's velocity; 1 or
      None is none.
    dtype: dtype of the samples.

  Raises:
    ValueError: for steps or head_steps < 1, another T than that of the
      training if it was discrete, or guidance without labels.
  """
  steps = model.steps if steps is None else steps
  if steps < 1 or head_steps < 1:
    raise ValueError(
      "sampling takes at least one transition and one step of the head in it,"
      f" got steps={steps} and head_steps={head_steps}"
    )
  if steps != model.steps and not model.continuous:
    mend = (
      "make it with transitions(..., continuous=True) to choose T in sampling"
      if model.variant == "dtm"
      else f"{model.variant.upper()} knows the T of its training alone"
    )
    raise ValueError(
      f"this chain was trained with T={model.steps} transitions, got"
      f" steps={steps}; {mend}"
    )
  classes = model.network.num_classes
  if guidance is not None and (not classes or label is None):
    raise ValueError(
      f"guidance={guidance} leads towards a label, but there is none; give"
      " label=, to a model made with num_classes="
    )
  if label is not None:
    label = jnp.broadcast_to(jnp.asarray(label), (n,))
    if guidance is not None:
      label = jnp.concatenate([label, jnp.full(n, classes, label.dtype)])
  return _sample(key, model, label, guidance, n, steps, head_steps, dtype)


@functools.partial(
  jax.jit, static_argnames=("n", "steps", "head_steps", "dtype")
)
def _sample(key, model, label, guidance, n, steps, head_steps, dtype):
  like = jax.ShapeDtypeStruct((n, *model.shape), jnp.dtype(dtype))
  return _VARIANTS[model.variant].draw(
    key,
    model,
    like,
    label,
    steps=steps,
    head_steps=head_steps,
    guidance=guidance,
  )
