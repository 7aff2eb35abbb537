"""From a configuration of experiments/train.py to the parts of a training."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optax
from ml_collections import config_dict

from jaxdiff import checks
from jaxdiff import choosing
from jaxdiff import data
from jaxdiff import losses
from jaxdiff import models
from jaxdiff import training

TIMES = ("uniform", "log_normal", "logit_normal", "uniform_log_snr")
SCHEDULES = ("cosine", "constant", "inverse_sqrt")
_RANGES = {  # of entries that are numbers, as `checks.number` takes them
  "learning_rate": dict(above=0.0),
  "ema": dict(least=0.0, below=1.0),
  "clip_norm": dict(above=0.0),
  "sigma_data": dict(least=0.0),  # 0 measures it
  "data_width": dict(least=0.0),  # the same
  "label_dropout": dict(least=0.0),
  "guidance_scale": dict(),
  "seed": dict(least=0, below=2**32, integer=True),
  **{
    name: dict(least=least, integer=True)
    for least, names in enumerate(
      (
        "steps warmup_steps constant_steps imitation_steps num_classes devices"
        " workers prefetch",
        "batch_size accumulate log_every checkpoint_every snapshot_every keep",
      )
    )
    for name in names.split()
  },
}


def check(config: config_dict.ConfigDict) -> None:
  """Refuses numbers that no training can have, before anything is made.

  Entries that are None are left to what takes them.

  Args:
    config: config of experiments/train.py or of experiments/distill.py.

  Raises:
    TypeError: for what is no number.
    ValueError: for one that is not finite or out of its range, by its name.
  """
  entries = {name: (config.get(name), _RANGES[name]) for name in _RANGES}
  for name, rate in plain(config, "learning_rates").items():
    entries[f"learning_rates.{name}"] = rate, dict(above=0.0)
  for name, value in plain(config, "optimizer_options").items():
    if isinstance(value, float) or name == "weight_decay":
      least = dict(least=0.0) if name == "weight_decay" else {}
      entries[f"optimizer_options.{name}"] = value, least
  for name, (value, bounds) in entries.items():
    if value is not None:
      checks.number(value, f"config.{name}", **bounds)


def model(
  config: config_dict.ConfigDict, sample: Mapping[str, np.ndarray]
) -> models.ModelConfig:
  """Returns the model that a configuration asks for, to fit the data.

  Args:
    config: the configuration.
    sample: sample of the data, "image" f[n, ...].
  """
  return models.ModelConfig(
    shape=tuple(sample["image"].shape[1:]),
    network=config.network,
    network_options=plain(config, "network_options"),
    num_classes=config.num_classes,
    process=config.process,
    process_options=plain(config, "process_options"),
    prediction=config.prediction,
    sigma_data=sigma_data(config, sample["image"]),
    dataset=config.dataset,
    dataset_options=plain(config, "dataset_options"),
    data_width=data_width(config, sample["image"]),
  )


def data_width(config: config_dict.ConfigDict, images: np.ndarray) -> float:
  """Returns config.data_width or, if it is not set or 0, the measured one.

  Of images that are all alike, which a test may have, it is 0: not known.
  """
  if config.get("data_width", 0.0):
    return config.data_width
  if len(images) < 2 or not np.ptp(images) > 0:
    return 0.0
  return float(f"{choosing.width(np.asarray(images, np.float32)):.4g}")


def sigma_data(config: config_dict.ConfigDict, images: np.ndarray) -> float:
  """Returns config.sigma_data or, if it is None or 0, the measured one."""
  measured = float(f"{np.std(images, dtype=np.float64):.4g}")
  if measured > 5.0:
    print(
      f"Warning: the standard deviation of the data is {measured}; networks"
      " and noise levels are made for data in [-1, 1]. Scale the data, pixels"
      " for instance by x / 127.5 - 1."
    )
  if config.sigma_data:
    return config.sigma_data
  if not 0.0 < measured < float("inf"):
    raise ValueError(
      f"the standard deviation of the data is {measured}, which cannot be"
      " sigma_data; look for NaN or constant images in the data, or set"
      " --config.sigma_data=0.5"
    )
  print(f"sigma_data = {measured}, measured on {len(images)} samples.")
  return measured


def loss(config: config_dict.ConfigDict, denoiser: Any) -> training.Loss:
  """Returns the denoising loss that a configuration asks for.

  Raises:
    ValueError: for unknown names of times or augmentations, or arguments that
      they do not take.
  """
  loss = losses.denoising(
    denoiser,
    times=time_sampler(config.times, denoiser.process),
    weighting=config.weighting,
    num_classes=config.num_classes,
    label_dropout=config.label_dropout,
    augment=_augmentation(config),
    learned_weighting=config.learned_weighting,
  )
  # bytes become numbers on the device: a quarter of them travels there
  return lambda key, params, batch: loss(key, params, data.scaled(batch))


def time_sampler(
  spec: Sequence[Any], process: Any, field: str = "config.times"
) -> losses.times.Times:
  """Returns the sampler of times that a configuration names.

  Args:
    spec: its name in `losses.times`, and its arguments.
    process: the forward process.
    field: the entry of the configuration, for errors.

  Raises:
    ValueError: for an unknown name, or arguments that it does not take.
  """
  name, *options = spec
  if name not in TIMES:
    raise ValueError(
      f"{field} begins with {name!r}, but must begin with a sampler of"
      f" jaxdiff.losses.times: {', '.join(TIMES)}; for instance"
      f" --{field}=\"('log_normal', -1.2, 1.2)\""
    )
  sampler = getattr(losses.times, name)
  arguments = list(inspect.signature(sampler).parameters)[1:]
  if len(options) > len(arguments):
    raise ValueError(
      f"{field}={tuple(spec)}, but {name} takes at most"
      f" {len(arguments)} arguments: {', '.join(arguments)}"
    )
  return sampler(process, *options)


def _augmentation(config: config_dict.ConfigDict) -> Any:
  if not config.augment:
    return None
  known = {
    name: value
    for name, value in vars(losses.augment).items()
    if inspect.isclass(value) and value.__module__ == losses.augment.__name__
  }
  if config.augment not in known:
    raise ValueError(
      f"config.augment={config.augment!r}, but must be one of"
      f" {', '.join(known)} of jaxdiff.losses.augment, or empty"
    )
  options = plain(config, "augment_options")
  _known_options(known[config.augment], options, "augment_options")
  return known[config.augment](**options)


def optimizer(config: config_dict.ConfigDict) -> optax.GradientTransformation:
  """Returns optax's optimizer with the schedule of the learning rate.

  Raises:
    ValueError: for an unknown optimizer or schedule, or options that the
      optimizer does not take.
  """
  make = getattr(optax, config.optimizer, None)
  if not callable(make) or config.optimizer.startswith("_"):
    raise ValueError(
      f"config.optimizer={config.optimizer!r} is no function of optax; adam,"
      " adamw, lion or muon are"
    )
  options = plain(config, "optimizer_options")
  _known_options(make, options, "optimizer_options")
  return make(_schedule(config), **options)


def _schedule(config: config_dict.ConfigDict) -> optax.Schedule:
  """Returns the learning rate as a function of the update.

  Raises:
    ValueError: for an unknown schedule.
  """
  peak, warmup = (
    config.learning_rate,
    min(config.warmup_steps, config.steps // 2),
  )
  if config.schedule == "cosine":
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, config.steps)
  if config.schedule == "constant":
    after = optax.constant_schedule(peak)
  elif config.schedule == "inverse_sqrt":
    # EDM2: constant, then as 1 / sqrt(update)
    flat = max(config.constant_steps, 1)
    after = lambda k: peak * (flat / (flat + k)) ** 0.5
    after = optax.join_schedules([optax.constant_schedule(peak), after], [flat])
  else:
    raise ValueError(
      f"config.schedule={config.schedule!r}, but must be one of"
      f" {', '.join(SCHEDULES)}"
    )
  if not warmup:
    return after
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, after], [warmup])


def plain(config: config_dict.ConfigDict, name: str) -> dict[str, Any]:
  """Returns an entry of options as a dict, empty if it is not there."""
  options = config.get(name) or {}
  return options.to_dict() if hasattr(options, "to_dict") else dict(options)


def _known_options(make: Any, options: Mapping[str, Any], field: str) -> None:
  known = list(inspect.signature(make).parameters)
  wrong = sorted(set(options) - set(known))
  if wrong:
    raise ValueError(
      f"config.{field} has {', '.join(wrong)}, which {make.__name__} does not"
      f" take; it takes {', '.join(known)}"
    )
