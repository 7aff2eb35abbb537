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

`updates`, `shape` and `layer` are filled in from the rest of the configuration
and from the network where a builder asks for them.
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
  student=dict(),  # fields of its ModelConfig that are not the teacher's
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

# builders that hand their further options on to another one
_PASSED_ON = {"dmd2": "dmd", "presto": "dmd2"}
_GAN = dict(b1=0.0, b2=0.999)  # Adam without momentum, for players in turn

# Those with a fake score: it must not be slower than the student.
_MATCHING = dict(
  optimizer_options=_GAN, learning_rates=dict(fake_optimizer=1e-3)
)

METHODS = {
  "imitation": dict(gamma=0.0),
  # jumps of the ODE, whose ends agree
  "progressive": dict(gamma=0.0, options=dict(grid=16, rounds=4)),
  "consistency_distillation": dict(),
  "consistency_training": dict(),
  "ict": dict(),
  "ect": dict(options=dict(every=250)),
  "ctm": dict(jumps=True, gamma=0.0),
  "scm": dict(options=dict(warmup=500)),
  "mean_flow": dict(jumps=True, gamma=0.0),
  "shortcut": dict(jumps=True, gamma=0.0),
  "reflow": dict(gamma=0.0),
  # laws that agree
  "dmd": _MATCHING,
  "dmd2": _MATCHING,
  "presto": _MATCHING,
  "phased_dmd": dict(
    _MATCHING, gamma=0.0, options=dict(grid=("karras", 4, True), phases=2)
  ),
  "sid": dict(_MATCHING, start=2.5),
  "sim": dict(_MATCHING, start=2.5),
  "rcm": dict(_MATCHING, options=dict(warmup=300)),
  # maps and generators
  "sign": dict(
    _MATCHING,
    start=2.0,
    student=dict(time="none", prediction="x0", scale_input=False),
  ),
  "score_mismatching": dict(
    optimizer_options=_GAN, learning_rates=dict(score_optimizer=1e-3)
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
    if name not in ("options", "learning_rates", "start"):
      known = not isinstance(value, dict)
      config[name] = value if known else config_dict.ConfigDict(value)
  for name, parameter in keywords(config.builder).items():
    if name.endswith("optimizer"):
      if name != "optimizer":
        config.learning_rates[name] = config_dict.placeholder(float)
    elif (
      name.endswith("times")
      or name == "generator"
      or (name == "grid" and not isinstance(parameter.default, int))
    ):
      config.options[name] = config_dict.placeholder(tuple)
    elif isinstance(parameter.default, (bool, int, float, str, tuple)):
      config.options[name] = parameter.default
    elif name in ("updates", "every", "rounds"):
      config.options[name] = config_dict.placeholder(int)
    elif name in ("layer", "kind"):
      config.options[name] = config_dict.placeholder(str)
    elif str(parameter.annotation).startswith("float"):
      config.options[name] = config_dict.placeholder(float)
  if "start" in entry:
    config.start = entry["start"]
  for group in ("options", "learning_rates"):
    for name, value in entry.get(group, {}).items():
      config[group][name] = value
  return config


def keywords(builder: str) -> dict[str, inspect.Parameter]:
  """Returns the keyword arguments of a builder of jaxdiff.distillation."""
  only, more = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD
  found = dict(inspect.signature(getattr(distillation, builder)).parameters)
  names = {name: p for name, p in found.items() if p.kind == only}
  if any(p.kind == more for p in found.values()) and builder in _PASSED_ON:
    names = keywords(_PASSED_ON[builder]) | names
  return names
