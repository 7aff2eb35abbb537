"""What experiments/distill.py trains: one entry for each method.

`get_config(method)` is BASE with the method's entry of METHODS on top. To add a
method: its builder in jaxdiff.distillation, what it takes in BUILDERS, and an
entry in METHODS.

`options` are all those of the builder that have a place on a command line. A
type in the place of a value is an entry of that type that is None: the builder,
or the rest of the configuration, decides. Two kinds are made into what the
builder takes:

  times      a name of losses.times and its arguments, as in experiments/train:
             --config.options.times="('log_normal', -1.2, 1.2)"
  generator  how the student is asked, one of GENERATORS, by named entries:
             --config.options.generator.calls=4
             --config.options.generator="{'kind': 'one_step', 'start': 4.0}"
"""

from typing import Any, NamedTuple

from ml_collections import config_dict

BASE = dict(
  teacher="digits",  # of the zoo, the folder of a run, or "mixture"
  dataset="",  # the teacher's by default
  guidance_scale=1.0,  # of the teacher
  imitation_steps=4000,  # of a fresh student of the mixture's exact teacher
  seed=0,
  builder="",  # of BUILDERS; the method's name by default
  jumps=False,  # whether the student is told where to jump
  student=dict(),  # fields of its ModelConfig that are not the teacher's
  gamma=1.0,  # of the student's sampler
  start=float,  # sigma / alpha where it begins
  lowest=float,  # the same of its last call
  to_zero=True,  # whether its last call leads to no noise
  ema=float,  # the builder's by default
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

# The fields of each kind of generator, of `jaxdiff.distillation.generators`;
# start and lowest are sigma / alpha.
GENERATORS = {
  "one_step": ("start", "data_std"),
  "noised_data": ("times",),
  "backward_simulation": ("calls", "start", "lowest", "last"),
}


class Builder(NamedTuple):
  """What a builder takes beside a student, an optimizer and plain options.

  Attributes:
    teacher: whether there is one; else it learns from data alone.
    fake: whether it has a fake score, which begins as the student if that can
      be told a time.
    times: its options that are samplers of times.
    generator: whether it has the option `generator`.
    filled: its options that are filled in from the rest of the configuration
      where they are None: "updates", of one part of the training, "shape" of a
      sample, "layer" of the network that a discriminator reads.
    parts: its option that says how many parts of `updates` there are.
  """

  teacher: bool = True
  fake: bool = False
  times: tuple[str, ...] = ()
  generator: bool = False
  filled: tuple[str, ...] = ()
  parts: str = ""


_ADVERSARIAL = ("shape", "layer")

BUILDERS = {
  "imitation": Builder(times=("times",)),
  "progressive": Builder(filled=("updates",), parts="rounds"),
  "consistency_distillation": Builder(),
  "consistency_training": Builder(teacher=False, filled=("updates",)),
  "ict": Builder(teacher=False, filled=("updates",)),
  "ect": Builder(teacher=False),
  "ctm": Builder(times=("dsm_times",)),
  "scm": Builder(times=("times",)),
  "mean_flow": Builder(times=("times",)),
  "shortcut": Builder(times=("times",)),
  "reflow": Builder(times=("times",)),
  "dmd": Builder(fake=True, times=("times", "fake_times"), generator=True),
  "dmd2": Builder(
    fake=True,
    times=("times", "fake_times", "gan_times"),
    generator=True,
    filled=_ADVERSARIAL,
  ),
  "presto": Builder(
    fake=True,
    times=("input_times", "times", "fake_times", "gan_times"),
    filled=_ADVERSARIAL,
  ),
  "phased_dmd": Builder(times=("times",), filled=("updates",), parts="phases"),
  "sid": Builder(fake=True, times=("times", "fake_times"), generator=True),
  "sim": Builder(fake=True, times=("times", "fake_times"), generator=True),
  "rcm": Builder(fake=True, times=("times", "dmd_times"), generator=True),
  "sign": Builder(fake=True, times=("times", "fake_times")),
  "score_mismatching": Builder(teacher=False, generator=True),
}


def _generator(kind: str = "", **fields: Any) -> dict[str, Any]:
  """Returns the entries of a generator; "" leaves it to the builder."""
  unset = dict(
    calls=int, start=float, lowest=float, last=bool, data_std=float, times=tuple
  )
  return dict(kind=kind) | unset | fields


_GAN = dict(b1=0.0, b2=0.99)  # Adam without momentum, for players in turn

# Those with a fake score: it must not be slower than the student.
_MATCHING = dict(
  optimizer_options=_GAN, learning_rates=dict(fake_optimizer=1e-3), ema=0.99
)
_JUMPS = dict(jumps=True, gamma=0.0, to_zero=False)

METHODS = {
  "imitation": dict(gamma=0.0, options=dict(times=tuple, weighting="edm")),
  # jumps of the ODE, whose ends agree
  "progressive": dict(
    gamma=0.0,
    options=dict(updates=int, grid=16, rounds=4, weighting="snr+1"),
  ),
  "consistency_distillation": dict(
    to_zero=False,
    learning_rate=1e-3,
    options=dict(grid=17, solver="heun", target="ema", huber=float),
  ),
  "consistency_training": dict(
    to_zero=False,
    options=dict(updates=int, first=2, last=150, target="ema", huber=float),
  ),
  "ict": dict(
    to_zero=False,
    options=dict(
      updates=int, first=10, last=1280, mean=-1.1, std=2.0, huber=0.00054
    ),
  ),
  "ect": dict(
    to_zero=False,
    options=dict(every=250, q=2.0, k=8.0, b=1.0, mean=-1.1, std=2.0, huber=0.0),
  ),
  "ctm": dict(  # without its critic, which is a network
    _JUMPS,
    options=dict(
      grid=17,
      solver="heun",
      max_steps=int,
      until="uniform",
      target="student",
      huber=float,
      dsm="adaptive",
      dsm_times=tuple,
      last="out",
    ),
  ),
  "scm": dict(
    to_zero=False,
    learning_rate=3e-4,
    options=dict(
      velocity="teacher",
      times=("log_normal", -1.1, 1.6),
      warmup=500,
      c=0.1,
      jvp="exact",
      adaptive=False,
    ),
  ),
  "mean_flow": dict(
    _JUMPS,
    options=dict(
      velocity="teacher",
      times=("uniform_log_snr",),
      share=0.25,
      power=1.0,
      floor=1e-3,
      jvp="exact",
    ),
  ),
  "shortcut": dict(
    _JUMPS,
    options=dict(velocity="teacher", times=tuple, share=0.5, levels=7),
  ),
  "reflow": dict(gamma=0.0, to_zero=False, options=dict(steps=16, times=tuple)),
  # laws that agree
  "dmd": dict(
    _MATCHING,
    start=4.0,  # of which the teacher knows where to go
    options=dict(
      generator=_generator("one_step", start=4.0),
      times=("log_normal", 0.0, 1.5),
      fake_times=tuple,
      fake_steps=2,
      regression=0.0,
    ),
  ),
  "dmd2": dict(
    _MATCHING,
    start=4.0,
    lowest=0.8,
    calls=(4,),
    options=dict(
      generator=_generator(
        "backward_simulation", calls=4, start=4.0, lowest=0.8, last=True
      ),
      times=("log_normal", 0.0, 1.5),
      fake_times=tuple,
      fake_steps=2,
      layer=str,
      kind="softplus",
      weight=3e-3,
      critic_weight=1e-2,
      gan_times=tuple,
      regression=0.0,
    ),
  ),
  "presto": dict(
    _MATCHING,
    options=dict(
      input_times=tuple,
      times=tuple,
      fake_times=tuple,
      fake_steps=5,
      layer=str,
      kind="least_squares",
      weight=3e-3,
      critic_weight=1e-2,
      gan_times=tuple,
      guidance=1.0,
      null=int,
      regression=0.0,
    ),
  ),
  "phased_dmd": dict(
    _MATCHING,
    gamma=0.0,
    calls=(4,),
    options=dict(
      grid=4,
      phases=2,
      updates=int,
      fake_steps=5,
      times=tuple,
      clamp=10.0,
      margin=0.05,
    ),
  ),
  "sid": dict(
    _MATCHING,
    start=2.5,
    options=dict(
      alpha=1.0,  # 1.2, the authors', runs away on the mixture
      weighting="adaptive",
      sigma_init=2.5,
      generator=_generator(),
      times=tuple,
      fake_times=tuple,
      fake_steps=1,
    ),
  ),
  "sim": dict(
    _MATCHING,
    start=2.5,
    options=dict(
      distance="huber",
      c=0.01,
      power=1.0,
      weighting="uniform",
      sigma_init=2.5,
      generator=_generator(),
      times=tuple,
      fake_times=tuple,
      fake_steps=1,
    ),
  ),
  "rcm": dict(
    _MATCHING,
    to_zero=False,
    learning_rate=3e-4,
    options=dict(
      scm_weight=1.0,
      dmd_weight=0.3,
      times=("log_normal", -1.1, 1.6),
      dmd_times=tuple,
      warmup=300,
      c=0.1,
      jvp="exact",
      generator=_generator(),
      calls=2,
      fake_steps=3,
    ),
  ),
  # maps and generators
  "sign": dict(
    _MATCHING,
    start=2.0,
    student=dict(time="none", prediction="x0", scale_input=False),
    options=dict(
      w_rec=5.0,
      w_idem=1.0,
      w_dmd=0.3,
      w_flow=1.0,
      w_denoise=1.0,
      w_reg=0.0,
      w_tight=0.0,
      allow_adversarial=False,
      tight_limit=1.5,
      sigma_in=2.0,
      flow_steps=16,
      denoise_sigma=float,
      times=tuple,
      fake_times=tuple,
      fake_steps=3,
    ),
  ),
  "score_mismatching": dict(
    optimizer_options=_GAN,
    learning_rates=dict(score_optimizer=1e-3),
    options=dict(
      score_steps=1,
      sigmas=tuple,
      kappa=1.0,
      mismatch="independent",
      r1=0.01,
      r1_every=16,
      generator=_generator(),
    ),
  ),
}


def get_config(method: str) -> config_dict.ConfigDict:
  """Returns the configuration of a method, with all options of its builder.

  Raises:
    ValueError: for an unknown method.
  """
  if method not in METHODS:
    raise ValueError(
      f"--method={method!r}, but must be one of {', '.join(sorted(METHODS))}"
    )
  own = dict(method=method, builder=method)
  return _filled(BASE | own | METHODS[method])


def _filled(entries: dict[str, Any]) -> config_dict.ConfigDict:
  """Returns a configuration, in which types are entries without a value."""
  config = config_dict.ConfigDict()
  for name, value in entries.items():
    if isinstance(value, dict):
      value = _filled(value)
    elif isinstance(value, type):  # one of its own: it would be shared
      value = config_dict.placeholder(value)
    config[name] = value
  return config
