r"""One update of training as one jitted function with donated state.

  g = grad loss(fold_in(key, step), params, batch), clipped to a global norm
  params <- params + optimizer(g)
  ema    <- ema + (1 - d) (params - ema),   d = min(decay, (1 + k) / (10 + k))

with k the number of updates done before; the second entry of the minimum is
the warm-up, which forgets the initial parameters. The key of an update depends
on the run's key and the step alone, so that a resumed run repeats it exactly.

An update whose loss or gradient is not finite changes nothing but the step, and
says so in the metric "skipped".
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff.training.state import TrainState

PyTree = Any
Loss = Callable[[jax.Array, PyTree, Any], tuple[jax.Array, dict]]
Update = Callable[[TrainState, Any], tuple[TrainState, dict]]


def make_update(
  loss: Loss,
  optimizer: optax.GradientTransformation,
  *,
  ema: float = 0.999,
  ema_warmup: bool = True,
  clip_norm: float | None = 1.0,
) -> Update:
  """Returns update(state, batch) -> (state, metrics), jitted, state donated.

  The state that goes in cannot be used again. Metrics are those of the loss,
  and "loss", "grad_norm" (before clipping), "param_norm" and "skipped" (1 where
  the loss or a gradient was not finite).

  Args:
    loss: loss(key, params, batch) -> (scalar, metrics).
    optimizer: any optax transformation.
    ema: decay of the average per update, in [0, 1); 0 copies the parameters.
    ema_warmup: let the decay grow to `ema` as in the module's docstring.
    clip_norm: largest global norm of the gradient; None does not clip.

  Raises:
    ValueError: if ema is outside [0, 1) or clip_norm is not positive.
  """
  if not 0.0 <= ema < 1.0:
    raise ValueError(
      f"ema is a decay per update in [0, 1), got {ema}; 0.999 averages over"
      " about 1000 updates"
    )
  if clip_norm is not None and not clip_norm > 0:
    raise ValueError(
      f"clip_norm must be positive, got {clip_norm}; None does not clip"
    )

  def update(state: TrainState, batch: Any) -> tuple[TrainState, dict]:
    key = jax.random.fold_in(state.key, state.step)
    grad = jax.value_and_grad(
      lambda params: loss(key, params, batch), has_aux=True
    )
    (value, metrics), grads = grad(state.params)
    grad_norm = _norm(grads)
    if clip_norm is not None:
      clip = optax.clip_by_global_norm(clip_norm)
      grads, _ = clip.update(grads, clip.init(state.params))
    changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, changes)
    step = state.step.astype(jnp.float32)
    decay = (
      jnp.minimum(ema, (1.0 + step) / (10.0 + step)) if ema_warmup else ema
    )
    ema_params = jax.tree.map(
      lambda e, p: e + ((1.0 - decay) * (p - e)).astype(e.dtype),
      state.ema_params,
      params,
    )
    finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
    keep = lambda new, old: jnp.where(finite, new, old)
    new = TrainState(
      step=state.step + 1,
      params=jax.tree.map(keep, params, state.params),
      opt_state=jax.tree.map(keep, opt_state, state.opt_state),
      ema_params=jax.tree.map(keep, ema_params, state.ema_params),
      key=state.key,
    )
    metrics = metrics | dict(
      loss=value,
      grad_norm=grad_norm,
      param_norm=_norm(new.params),
      skipped=1.0 - finite.astype(jnp.float32),
    )
    return new, metrics

  return jax.jit(update, donate_argnums=0)


def _norm(tree: PyTree) -> jax.Array:
  """Returns the Euclidean norm of all numbers in a tree."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(v)) for v in jax.tree.leaves(tree)))
