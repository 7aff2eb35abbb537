"""What experiments/distill.py trains: one entry for each method.

`get_config(method)` is BASE with the method's entry on top. To add a method:
its builder in jaxdiff.distillation, and an entry here. Options go to the
builder, made into what it takes:

| option       | in a configuration                  | becomes                 |
|--------------|-------------------------------------|-------------------------|
| ...times     | ("log_normal", -1.2, 1.2)           | a sampler of times      |
| generator    | ("one_step", 2.5), or               | `generators.one_step`,  |
|              | ("backward_simulation", 4)          | with a grid of 4 calls  |
| grid         | ("karras", 17)                      | f64[18]                 |
| ...optimizer | not here: entries of learning_rates | optax's, with schedule  |
"""

import inspect

from ml_collections import config_dict

from jaxdiff import distillation

BASE = dict(
  teacher="digits",  # of the zoo, the folder of a run, or "mixture"
  dataset="",  # the teacher's by default
  guidance_scale=1.0,  # of the teacher
  imitation_steps=4000,  # of a fresh student of the mixture's exact teacher
  seed=0,
  builder="",  # of jaxdiff.distillation; the method's name by default
  jumps=False,  # whether the student is told where to jump
  gamma=1.0,  # of the student's sampler
  start=config_dict.placeholder(float),  # sigma / alpha where it begins
  options=dict(),  # of the builder
  steps=2000,
  batch_size=256,
  optimizer="adam",
  optimizer_options=dict(),
  learning_rate=5e-4,  # of the student
  learning_rates=dict(),  # of others: fake_optimizer=1e-3
  schedule="cosine",  # of the student; those of others are constant
  warmup_steps=100,
  constant_steps=1000,
  devices=0,
  params="replicated",
  calls=(1, 2, 4),  # of the student, in pictures and tables
  samples=1024,  # that it is measured by
  checkpoint_every=500,  # and pictures, and measures
  keep=2,
  log_every=50,
  tensorboard=False,
)

_GAN = dict(b1=0.0, b2=0.999)  # Adam without momentum, for players in turn

METHODS = {
  "imitation": dict(gamma=0.0),
  "dmd": dict(
    options=dict(fake_steps=5),
    optimizer_options=_GAN,
    learning_rates=dict(fake_optimizer=2e-3),
  ),
}


def get_config(method: str) -> config_dict.ConfigDict:
  """Returns the configuration of a method, with all options of its builder.

  Options that are None are left to the builder.

  Raises:
    ValueError: for an unknown method.
  """
  if method not in METHODS:
    raise ValueError(
      f"--method={method!r}, but must be one of {', '.join(sorted(METHODS))}"
    )
  entry = METHODS[method]
  config = config_dict.ConfigDict(BASE)
  config.method = method
  config.builder = entry.get("builder", method)
  for name, value in entry.items():
    if name not in ("options", "learning_rates"):
      known = not isinstance(value, dict)
      config[name] = value if known else config_dict.ConfigDict(value)
  for name, parameter in _keywords(config.builder).items():
    if name.endswith("optimizer"):
      if name != "optimizer":
        config.learning_rates[name] = config_dict.placeholder(float)
    elif name.endswith("times") or name in ("generator", "grid"):
      config.options[name] = config_dict.placeholder(tuple)
    elif isinstance(parameter.default, (bool, int, float, str, tuple)):
      config.options[name] = parameter.default
    elif str(parameter.annotation).startswith("float"):
      config.options[name] = config_dict.placeholder(float)
  for group in ("options", "learning_rates"):
    config[group].update(entry.get(group, {}))
  return config


def _keywords(builder: str) -> dict[str, inspect.Parameter]:
  """Returns the keyword arguments of a builder of jaxdiff.distillation."""
  found = inspect.signature(getattr(distillation, builder)).parameters
  only = inspect.Parameter.KEYWORD_ONLY
  return {name: p for name, p in found.items() if p.kind == only}
