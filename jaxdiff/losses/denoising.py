r"""Denoising: the loss that trains every network of `predictions.py`.

With x = alpha x0 + sigma eps, lam = log(alpha / sigma), a model's error in x0
and in eps are one error, alpha d_x0 + sigma d_eps = 0, and every network output
is linear in the pair: its error is d_out = target(d_x0, d_eps). Hence

  loss = E w(lam) |d_x0|^2 = E w(lam) g^2 |d_out|^2,   g = d x0 / d out.

The right-hand side is computed: it divides by nothing that vanishes at either
end, where the error of one half of the pair is all rounding. Weightings w:

| weighting | w(lam), on the error in x0    | equals                      |
|-----------|-------------------------------|-----------------------------|
| "edm"     | e^{2 lam} + 1 / sigma_data^2  | plain mse on EDM's F        |
| "eps"     | e^{2 lam}, the SNR            | plain mse on eps            |
| "x0"      | 1                             | plain mse on x0             |
| "output"  | 1 / g^2                       | plain mse on the raw output |
| callable  | yours, of lam                 |                             |

("edm" is (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 of Karras et al.
(2022) in units of sigma / alpha; "snr" is accepted for "eps".)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import modules
from jaxdiff import predictions
from jaxdiff import tree
from jaxdiff.losses import times as times_lib
from jaxdiff.losses import uncertainty
from jaxdiff.types import Model
from jaxdiff.types import PyTree

Augmentation = Callable[
  [jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]
]
Loss = Callable[[jax.Array, PyTree, dict], tuple[jax.Array, dict]]
Weighting = str | Callable[[jax.Array], jax.Array]

WEIGHTINGS = ("edm", "eps", "snr", "x0", "output")

_CLIP = 20.0  # of the log-SNR: e^{2 lam} stays inside float32


@checks.door
def denoising(
  denoiser: Model,
  *,
  times: times_lib.Times | None = None,
  weighting: Weighting = "edm",
  num_classes: int = 0,
  label_dropout: float = 0.1,
  augment: Augmentation | None = None,
  augment_noisy: bool = False,
  learned_weighting: bool = False,
  buckets: int = 8,
  update_state: bool = True,
) -> Loss:
  """Returns loss(key, params, batch) -> (scalar, metrics).

  The batch is a dict with "image" f[batch, ...] and, for conditional networks,
  "label" i32[batch] (classes) or f[batch, ...] (vectors, images); a "weight"
  f[batch] multiplies the loss of each sample (importance weights). Metrics are
  "loss" and, over equal buckets of the log-SNR from the noisy end to the clean
  one, "bucket_loss" f32[buckets] (weighted loss, 0 where no sample fell) and
  "bucket_count" f32[buckets]; with learned weighting also "plain_loss", which
  is without it. A network with dropout trains with it. One with batch
  statistics is normalized by the batch's, and the new running ones are the
  metric "model_state", which `training.make_update` takes into its state.

  Args:
    denoiser: a `denoisers.Denoiser`; its parameters are replaced by the ones
      that the loss is called with.
    times: sampler times(key, n) -> t f32[n], as in `losses.times`; by default
      EDM's log-normal, stratified.
    weighting: one of `WEIGHTINGS` or a function of the log-SNR, the weight of
      the squared error in x0.
    num_classes: number of classes of the network; 0 ignores labels.
    label_dropout: probability of replacing a label by the null label
      `num_classes` (a vector by zeros), for classifier-free guidance (Ho and
      Salimans 2022).
    augment: augment(key, images) -> (images, told), as in `losses.augment`.
    augment_noisy: augments x, x0 and eps alike instead of x0 alone, which needs
      a linear augmentation (the noisy images of ScoreAug, Hou et al. 2025).
    learned_weighting: the loss is called with (params, loss_params), the latter
      begun by `losses.uncertainty.init`, and divided by a learned function of
      the noise level; see `losses.uncertainty`.
    buckets: number of buckets of the metrics.
    update_state: False asks a network that has a state as sampling does: with
      its running statistics, which stay as they are, and without dropout.

  Raises:
    ValueError: for an unknown weighting, a label_dropout outside [0, 1],
      another number of classes than the network's, or an augmentation that the
      network cannot be told of.
  """
  if not callable(weighting):
    checks.one_of(weighting, WEIGHTINGS, "weighting")
  # known of Linen modules; other networks are functions
  module = getattr(denoiser.apply, "module", None)
  _check(module, num_classes, label_dropout, augment)
  held = getattr(denoiser, "state", None) is not None
  model = dataclasses.replace(denoiser, params=None, label=None)
  rules = _Rules(
    model=model,
    times=times or times_lib.log_normal(model.process),
    weighting=weighting,
    num_classes=num_classes,
    label_dropout=label_dropout,
    conditional=bool(num_classes or getattr(module, "label_dim", 0)),
    dropout=modules.trains(denoiser) and (update_state or not held),
    augment=augment,
    augment_noisy=augment_noisy,
    learned_weighting=learned_weighting,
    buckets=buckets,
    update_state=update_state,
  )
  return functools.partial(_loss, rules)


class _Rules(NamedTuple):
  """What no batch changes; the fields are arguments of `denoising`, but these.

  Attributes:
    model: the denoiser without parameters and label.
    conditional: whether the network is told labels.
    dropout: whether it is called as in training.
  """

  model: Model
  times: times_lib.Times
  weighting: Weighting
  num_classes: int
  label_dropout: float
  conditional: bool
  dropout: bool
  augment: Augmentation | None
  augment_noisy: bool
  learned_weighting: bool
  buckets: int
  update_state: bool


def _loss(rules, key: jax.Array, params: PyTree, batch: dict):
  """Returns (loss, metrics): `denoising`, whose rules are `rules`."""
  model, process = rules.model, rules.model.process
  augment = rules.augment
  x0 = images(batch)
  time_key, noise_key, label_key = jax.random.split(key, 3)
  augment_key, dropout_key = (jax.random.fold_in(key, i) for i in (3, 4))
  options = dict(key=dropout_key) if rules.dropout else {}
  if augment is not None and not rules.augment_noisy:
    x0, options["augment"] = augment(augment_key, x0)
  t = control.own_rows(lambda n: rules.times(time_key, n), x0)
  x, eps = process.perturb(noise_key, x0, t)
  if augment is not None and rules.augment_noisy:
    # one key for all three: each is changed in the same way
    x, x0, eps = (augment(augment_key, v)[0] for v in (x, x0, eps))
    options["augment"] = augment(augment_key, x0)[1]
  label = None
  if rules.conditional:
    label = dropped_labels(
      label_key, batch, rules.num_classes, rules.label_dropout
    )
  if rules.learned_weighting:
    params, loss_params = params
  own = modules.with_params(model, params)
  predicted, state = own.stateful(x, t, label, **options)
  per_sample = error(model, predicted, x0, eps, t, rules.weighting)
  by_bucket, count = _bucket_means(process, t, per_sample, rules.buckets)
  metrics = dict(bucket_loss=by_bucket, bucket_count=count)
  if rules.update_state and (
    isinstance(params, modules.Variables) or modules.changed(own.state, state)
  ):
    metrics[modules.STATE] = state
  if "weight" in batch:
    per_sample = per_sample * batch["weight"]
  value = jnp.mean(per_sample)
  if rules.learned_weighting:
    metrics["plain_loss"] = value
    lam = jnp.clip(process.log_snr(t), -_CLIP, _CLIP)
    u = uncertainty.log_loss(loss_params, -0.25 * lam)
    value = jnp.mean(per_sample * jnp.exp(-u) + u)
  return value, metrics | dict(loss=value)


def _check(
  module: Any,
  num_classes: int,
  label_dropout: float,
  augment: Augmentation | None,
) -> None:
  """Raises if the network cannot be told what the loss would tell it.

  Args:
    module: the Linen module; None for other networks, of which less is known.
    num_classes: number of classes of the loss.
    label_dropout: probability of the null label.
    augment: the augmentation of the loss.
  """
  if not 0.0 <= label_dropout <= 1.0:
    raise ValueError(
      f"label_dropout is a probability, got {label_dropout}; 0.1 is usual,"
      " 0 trains without the null label"
    )
  known = getattr(module, "num_classes", num_classes)
  if num_classes and num_classes != known:
    raise ValueError(
      f"num_classes={num_classes}, but the network was made with"
      f" num_classes={known}; give both the same number, so that the null"
      " label is the same for both"
    )
  told = getattr(augment, "width", 0)
  takes = getattr(module, "augment_dim", told if module is None else 0)
  if told != takes and told:
    raise ValueError(
      f"the augmentation tells the network {told} numbers, but the network"
      f" takes {takes}: without them it would draw augmented images. Make it"
      f" with augment_dim={told}, if it has such an option, or take an"
      " augmentation that leaves the law of the data as it is, Mirror()"
    )


@checks.door
def error(
  model: Model,
  predicted: predictions.Prediction,
  x0: jax.Array,
  eps: jax.Array,
  t: jax.Array,
  weighting: Weighting = "edm",
) -> jax.Array:
  """Returns the weighted squared error per sample, its mean over values: f[n].

  Args:
    model: has `process`, `prediction` and `sigma_data`, as a Denoiser does.
    predicted: the pair that it returned at x_t.
    x0: clean data, [batch, ...].
    eps: the noise in x_t, like x0.
    t: f[batch], the times.
    weighting: as in `denoising`.
  """
  kind, scale = model.prediction, model.sigma_data
  alpha = tree.expand(model.process.alpha(t), x0)
  sigma = tree.expand(model.process.sigma(t), x0)
  lam = jnp.clip(tree.expand(model.process.log_snr(t), x0), -_CLIP, _CLIP)
  d_x0, d_eps = predicted.x0 - x0, predicted.eps - eps
  rates = None
  if predictions.needs_rates(kind):
    rates = [tree.expand(r, x0) for r in model.process.rates(t)]
  d_out = predictions.target(kind, d_x0, d_eps, alpha, sigma, scale, rates)
  w = coefficient(model, alpha, sigma, lam, weighting, rates)
  square = w * d_out**2
  return jnp.mean(square.reshape(x0.shape[0], -1), axis=-1)


def coefficient(
  model: Model,
  alpha: jax.Array,
  sigma: jax.Array,
  lam: jax.Array,
  weighting: Weighting,
  rates: Any = None,
) -> jax.Array:
  """Returns w(lam) g^2, the weight of the squared error of the raw output."""
  if weighting == "output":
    return jnp.ones_like(lam)
  # alpha = 0 would make the gain of "eps" 0 where it is infinite
  alpha = jnp.maximum(alpha, jnp.exp(-_CLIP) * sigma)
  gain = predictions.output_gain(
    model.prediction, alpha, sigma, model.sigma_data, rates
  )
  if callable(weighting):
    return weighting(lam) * gain**2
  if weighting == "x0":
    return gain**2
  if weighting in ("eps", "snr"):
    return (jnp.exp(lam) * gain) ** 2
  return (jnp.exp(2.0 * lam) + model.sigma_data**-2) * gain**2


def images(batch: dict) -> jax.Array:
  """Returns the samples of a batch; raises ValueError for anything else."""
  if not isinstance(batch, dict) or "image" not in batch:
    raise ValueError(
      'a batch is a dict with "image" f[batch, ...] and optionally "label"'
      f" i32[batch], got {_describe(batch)}"
    )
  x0 = jnp.asarray(batch["image"])
  if not jnp.issubdtype(x0.dtype, jnp.floating):
    raise ValueError(
      f'batch["image"] must be floating point, got {x0.dtype}; scale integer'
      " pixels to [-1, 1] first, x / 127.5 - 1"
    )
  return x0


def _describe(batch: PyTree) -> str:
  if isinstance(batch, dict):
    return f"a dict with {', '.join(map(repr, batch)) or 'no entries'}"
  return f"{type(batch).__name__}"


@checks.door
def dropped_labels(
  key: jax.Array, batch: dict, num_classes: int, dropout: float
) -> jax.Array:
  """Returns the labels, each replaced by the null label at rate `dropout`.

  Raises:
    ValueError: if the batch has none.
  """
  if "label" not in batch:
    raise ValueError(
      f'a network of {num_classes} classes needs batch["label"]'
      " i32[batch]; pass num_classes=0 to train without labels"
    )
  label = jnp.asarray(batch["label"])
  drop = (
    control.own_rows(lambda n: jax.random.uniform(key, (n,)), label) < dropout
  )
  if jnp.issubdtype(label.dtype, jnp.floating):
    return jnp.where(tree.expand(drop, label), 0.0, label)
  return jnp.where(drop, num_classes, label)


def _bucket_means(
  process: Any, t: jax.Array, value: jax.Array, buckets: int
) -> tuple[jax.Array, jax.Array]:
  """Returns the mean of `value` f[n] by log-SNR bucket, and counts: f[b]."""
  low, high = (
    min(max(float(process.log_snr(end)), -_CLIP), _CLIP)
    for end in (process.t_max, process.t_min)
  )
  place = (process.log_snr(t) - low) / (high - low)
  index = jnp.clip(buckets * place, 0, buckets - 1).astype(jnp.int32)
  count = jnp.zeros(buckets, value.dtype).at[index].add(1.0)
  total = jnp.zeros(buckets, value.dtype).at[index].add(value)
  return total / jnp.maximum(count, 1.0), count
