"""Presto: one student for every number of steps, and fewer layers for noise.

The 25-mode grid with the exact teacher, noise up to sigma = 5. Presto-S: 1,000
updates of 5 + 1 steps, batches of 256, an MLP 3 x 128, one student for one step
and four. Presto-L: a residual MLP of 8 blocks of width 64 that runs half of
them on average. Presto-LS: the former with the latter as the student.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import sampling
from jaxdiff import solvers

from ..parts import grid25
from .report import at_least
from .report import at_most
from .report import reported

TITLE = "Presto"
CLAIM = (
  "Distribution matching with four noise laws makes one student that draws in"
  " one step and in four, and layers are better dropped before the last one"
  " than after it."
)
PAPER = "https://arxiv.org/abs/2410.05167"
SEEDS = (0, 1, 2)
BARS = (
  at_most("one_sw2", 0.05, "Presto-S in one step: sliced W_2"),
  at_least("one_modes", 25, "Presto-S in one step: modes of 25"),
  at_least("one_share", 0.8, "Presto-S in one step: share within 4 std"),
  at_most("four", 1.1, "sliced W_2 in four steps over that in one"),
  at_least(
    "train_law",
    0.66,
    "share of seeds where p_dmd = p_train has a smaller sliced W_2 than p_dmd ="
    " p_inf, one step",
  ),
  at_most(
    "l_rmse",
    0.85,
    "Presto-L: error of the denoiser over that of early exit, both at half of"
    " the depth",
  ),
)
REPORTED = (
  reported("four_sw2", "Presto-S in four steps: sliced W_2"),
  reported("four_share", "Presto-S in four steps: share within 4 std"),
  reported("inf_sw2", "with p_dmd = p_inf, one step: sliced W_2"),
  reported("heun", "the exact teacher by Heun in 5 steps, 9 calls"),
  reported("floor", "sliced W_2 of two samples of the law"),
  reported("full_rmse", "error of the denoiser at full depth"),
  reported("exit_rmse", "error of early exit at half of the depth"),
  reported(
    "std_before",
    "spread of the stream without the 4 blocks before the last, over that at"
    " full depth, before training",
  ),
  reported("std_exit", "the same without the last 4 blocks"),
  reported("ls_sw2", "Presto-LS in four steps: sliced W_2, 400 updates"),
  reported("ls_share", "Presto-LS in four steps: share within 4 std"),
)
LIMITS = (
  "music, latency, listening tests; guidance, which there is no class for"
  " here. The adversarial weights are DMD2's, not the paper's."
)

STEPS = 1000
_PROCESS = dataclasses.replace(grid25.PROCESS, t_max=5.0)
_LAW = losses.times.log_normal(_PROCESS, -1.6, 1.3)  # p_train
_ONE, _FOUR = np.asarray([5.0, 0.0]), np.asarray([5.0, 2.0, 0.7, 0.25, 0.0])
_BLOCKS, _BUDGETS = 8, (1, 4, 5, 6)  # half of the blocks on average
_LR, _FAKE_LR = 1e-3, 2e-3


def measure(seed: int) -> dict[str, float]:
  """Returns the numbers of one network of each kind."""
  student = distil(seed, STEPS)
  one = grid25.quality(grid25.draw(student, seed, _ONE), seed)
  more = grid25.quality(grid25.draw(student, seed, _FOUR), seed)
  other = distil(seed, STEPS, times=losses.times.karras(_PROCESS))
  other = grid25.draw(other, seed, _ONE)
  inf_sw2 = grid25.quality(other, seed)["sw2"]
  x = _PROCESS.prior(jax.random.key(seed), (grid25.SAMPLES, *grid25.SHAPE))
  table = solvers.heun(_PROCESS, grids.karras(_PROCESS, 5, to_zero=True))
  heun = sampling.sample(jax.random.key(0), grid25.teacher(), table, x)
  again, _ = grid25.LAW.sample(jax.random.key(seed + 100), grid25.SAMPLES)

  full = deep(seed)
  shifted = dropped(seed, full)
  early = dropped(seed, full, keep_last=False, told=False, self_teacher=0.0)
  ls = distil_layers(seed, full, shifted)
  ls = grid25.quality(grid25.draw(ls, seed, _FOUR), seed)
  return dict(
    one_sw2=one["sw2"],
    one_modes=one["modes"],
    one_share=one["share"],
    four=more["sw2"] / one["sw2"],
    four_sw2=more["sw2"],
    four_share=more["share"],
    train_law=float(one["sw2"] < inf_sw2),
    inf_sw2=inf_sw2,
    heun=grid25.quality(heun, seed)["sw2"],
    floor=grid25.quality(again, seed)["sw2"],
    l_rmse=error(shifted, seed) / error(early, seed),
    full_rmse=error(full, seed),
    exit_rmse=error(early, seed),
    std_before=spread(full, range(3, 7)),
    std_exit=spread(full, range(4, 8)),
    ls_sw2=ls["sw2"],
    ls_share=ls["share"],
  )


def distil(seed: int, steps: int, **options) -> denoisers.Denoiser:
  """Returns the student of Presto-S."""
  laws = dict(times=_LAW, fake_times=_LAW, gan_times=_LAW)
  method = distillation.presto(
    grid25.teacher(),
    dataclasses.replace(grid25.warm(seed), process=_PROCESS),
    optimizer=_adam(_LR, steps),
    fake_optimizer=_adam(_FAKE_LR, 5 * steps),
    shape=grid25.SHAPE,
    layer="Dense_2",
    **laws | options,
  )
  return grid25.train(method, seed, steps, batch=256)


def deep(seed: int, steps: int = 2000) -> denoisers.Denoiser:
  """Returns the residual network of 8 blocks, taught by the exact teacher."""
  module = networks.ResidualMLP(
    width=64, blocks=_BLOCKS, hidden=1, embedding=64
  )
  init = jax.jit(module.init)
  params = init(jax.random.key(seed), jnp.zeros((1, 2)), jnp.zeros(1))["params"]
  model = denoisers.from_linen(
    module, params, _PROCESS, sigma_data=grid25.SIGMA_DATA
  )
  method = distillation.imitation(
    grid25.teacher(),
    model,
    optimizer=optax.adam(optax.cosine_decay_schedule(2e-3, steps)),
    times=_LAW,
  )
  return grid25.train(method, seed, steps, batch=256)


def dropped(
  seed: int,
  full: denoisers.Denoiser,
  steps: int = 1000,
  self_teacher: float = 0.1,
  **options,
) -> denoisers.Denoiser:
  """Returns the network that runs half of its blocks, trained so."""
  student = distillation.drop_layers(
    full,
    grid25.SHAPE,
    budgets=_BUDGETS,
    times=_LAW,
    **options,
  )
  method = distillation.layer_dropping(
    grid25.teacher(),
    student,
    optimizer=optax.adam(optax.cosine_decay_schedule(1e-3, steps)),
    self_teacher=self_teacher,
    times=_LAW,
  )
  return grid25.train(method, seed, steps, batch=256)


def distil_layers(
  seed: int, full: denoisers.Denoiser, student: denoisers.Denoiser
) -> denoisers.Denoiser:
  """Returns the student of Presto-LS after 400 updates."""
  method = distillation.presto_ls(
    grid25.teacher(),
    student,
    fake=full,
    optimizer=_adam(_LR, 400),
    fake_optimizer=_adam(_FAKE_LR, 2000),
    shape=grid25.SHAPE,
    layer=f"block{_BLOCKS - 1}_out",
    self_teacher=0.1,
    times=_LAW,
    fake_times=_LAW,
    gan_times=_LAW,
  )
  return grid25.train(method, seed, 400, batch=256)


def error(model: denoisers.Denoiser, seed: int) -> float:
  """Returns the root mean square error of x0 to the exact one, at p_train."""
  key = jax.random.fold_in(jax.random.key(seed), 7)
  x0, _ = grid25.LAW.sample(key, 8192)
  t = _LAW(jax.random.fold_in(key, 1), 8192)
  x, _ = _PROCESS.perturb(jax.random.fold_in(key, 2), x0, t)
  wrong = model(x, t).x0 - grid25.teacher()(x, t).x0
  return float(jnp.sqrt(jnp.mean(wrong**2)))


def spread(full: denoisers.Denoiser, skipped: range) -> float:
  """Returns the spread of the stream without some blocks over that with all."""
  key = jax.random.key(11)
  x0, _ = grid25.LAW.sample(key, 2048)
  t = _LAW(jax.random.fold_in(key, 1), 2048)
  x, _ = _PROCESS.perturb(jax.random.fold_in(key, 2), x0, t)
  module = full.apply.module

  def stream(params):
    _, kept = module.apply(
      {"params": params}, *full.inputs(x, t), capture_intermediates=True
    )
    kept = kept["intermediates"]
    names = ["in", *(f"block{i}_out" for i in range(_BLOCKS))]
    return sum(kept[name]["__call__"][0] for name in names)

  less = dict(full.params)
  for i in skipped:
    name = f"block{i}_out"
    less[name] = jax.tree.map(jnp.zeros_like, less[name])
  return float(jnp.std(stream(less)) / jnp.std(stream(full.params)))


def _adam(rate, steps):
  schedule = optax.cosine_decay_schedule(rate, steps, alpha=0.1)
  return optax.adam(schedule, b1=0.0)
