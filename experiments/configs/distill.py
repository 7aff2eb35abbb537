"""What experiments/distill.py trains: one entry for each method.

`get_config(method)` is BASE with the method's entry on top. To add a method:
its builder in jaxdiff.distillation, and an entry here. Options go to the
builder, made into what it takes:

| option       | in a configuration                  | becomes                 |
|--------------|-------------------------------------|-------------------------|
| ...times     | ("log_normal", -1.2, 1.2)           | a sampler of times      |
| generator    | ("one_step", 4.0), ("noised_data",  | `generators.one_step`   |
|              | "uniform"), ("backward_simulation", | and others; calls,      |
|              | 4, 4.0, 0.8, True)                  | start, lowest, last     |
| grid         | (4,)                                | `few_step_grid`: f64[5] |
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
  lowest=config_dict.placeholder(float),  # the same of its last call
  to_zero=True,  # whether its last call leads to no noise
  ema=config_dict.placeholder(float),  # the builder's by default
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
_GAN = dict(b1=0.0, b2=0.99)  # Adam without momentum, for players in turn

# Those with a fake score: it must not be slower than the student.
_MATCHING = dict(
  optimizer_options=_GAN, learning_rates=dict(fake_optimizer=1e-3), ema=0.99
)
# One call from sigma / alpha = 4, of which the teacher knows where to go.
_ONE_STEP = dict(
  _MATCHING,
  start=4.0,
  options=dict(
    generator=("one_step", 4.0), times=("log_normal", 0.0, 1.5), fake_steps=2
  ),
)
_JUMPS = dict(jumps=True, gamma=0.0, to_zero=False)

_UNSET = ("start", "lowest", "ema")  # entries that are None as a rule

METHODS = {
  "imitation": dict(gamma=0.0),
  # jumps of the ODE, whose ends agree
  "progressive": dict(gamma=0.0, options=dict(grid=16, rounds=4)),
  "consistency_distillation": dict(to_zero=False, learning_rate=1e-3),
  "consistency_training": dict(to_zero=False),
  "ict": dict(to_zero=False),
  "ect": dict(to_zero=False, options=dict(every=250)),
  "ctm": _JUMPS,
  "scm": dict(
    to_zero=False,
    learning_rate=3e-4,
    options=dict(warmup=500, times=("log_normal", -1.1, 1.6)),
  ),
  "mean_flow": dict(
    _JUMPS, options=dict(share=0.25, times=("uniform_log_snr",))
  ),
  "shortcut": dict(_JUMPS, options=dict(share=0.5)),
  "reflow": dict(gamma=0.0, to_zero=False),
  # laws that agree
  "dmd": _ONE_STEP,
  "dmd2": dict(
    _MATCHING,
    start=4.0,
    lowest=0.8,
    calls=(4,),
    options=dict(
      generator=("backward_simulation", 4, 4.0, 0.8, True),
      times=("log_normal", 0.0, 1.5),
      fake_steps=2,
    ),
  ),
  "presto": _MATCHING,
  "phased_dmd": dict(
    _MATCHING, gamma=0.0, calls=(4,), options=dict(grid=(4,), phases=2)
  ),
  # 1.2, the authors' alpha, runs away on the mixture
  "sid": dict(_MATCHING, start=2.5, options=dict(alpha=1.0)),
  "sim": dict(_MATCHING, start=2.5),
  "rcm": dict(
    _MATCHING,
    to_zero=False,
    learning_rate=3e-4,
    options=dict(
      warmup=300,
      times=("log_normal", -1.1, 1.6),
      dmd_weight=0.3,
      calls=2,
      fake_steps=3,
    ),
  ),
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
    if name not in ("options", "learning_rates", *_UNSET):
      known = not isinstance(value, dict)
      config[name] = value if known else config_dict.ConfigDict(value)
  for name, parameter in keywords(config.builder).items():
    if name == "ema":
      continue  # an entry of all methods
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
  for name in set(_UNSET) & set(entry):
    config[name] = entry[name]
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
