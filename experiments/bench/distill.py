r"""What one update of distillation costs: as one program, in parts, by JVPs.

  python -m experiments.bench.distill
  python -m experiments.bench.distill --cases=unet --batch=256 --json=bench.json

First an update of DMD with five steps of the fake score. The library's is one
jitted function with donated state, its inner steps a scan. It stands beside the
same update as separate jitted calls (every fake step, the student's step and
the average dispatched for themselves, nothing donated), written as one would in
a notebook: without guards, metrics of the fault or anything else; and beside
those parts in one program, the inner steps written out. Each is run in turn,
in one process; the ratio is the median over the rounds, in brackets the least
and the largest. All three end in the same parameters, which is checked.

What XLA says of the programs: bytes beside the arguments ("temporary"), bytes
alive at the worst moment (arguments, what is not donated, temporary), FLOPs of
the program as it is written, and what became of it: fusions, loops, calls.

Then sCM, whose loss takes the derivative of the network along a trajectory,
against a plain step of denoising: the network's JVP at (x, t), the backward
pass of one forward pass, and, with the teacher's velocity, a call of it.

Last a run of the loop: how many programs were compiled before its second update
and after. About four minutes on one core; --cases chooses.
"""

import collections
import functools
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import processes
from jaxdiff import training

from ..parts import console
from . import flops

FLAGS = flags.FLAGS
FAKE_STEPS = 5
_EMA = 0.999


class Case(NamedTuple):
  """A network, the shape of its samples, and the batches it is run with."""

  network: Any
  shape: tuple[int, ...]
  batches: tuple[int, ...]


CASES = {
  "points": Case(networks.MLP((128, 128, 128)), (2,), (64, 512)),
  "digits": Case(networks.digits_mlp(num_classes=0), (8, 8, 1), (16, 128)),
  "unet": Case(networks.digits_unet(num_classes=0), (8, 8, 1), (8, 32)),
}
# for the JVP: an MLP, a U-Net with attention, a transformer
TANGENTS = {
  "digits": Case(CASES["digits"].network, (8, 8, 1), (128,)),
  "unet": Case(CASES["unet"].network, (8, 8, 1), (32,)),
  "dit": Case(
    networks.DiT(width=96, depth=3, heads=3, patch=2), (8, 8, 1), (32,)
  ),
}


def main() -> None:
  results = dict(
    device=jax.devices()[0].device_kind,
    jax=jax.__version__,
    clock=FLAGS.clock,
    fake_steps=FAKE_STEPS,
    fused={},
    tangents={},
  )
  chosen = set(FLAGS.cases)
  print(f"{results['device']}, jax {results['jax']}")
  for name in (n for n in CASES if n in chosen):
    for batch in (FLAGS.batch,) if FLAGS.batch else CASES[name].batches:
      results["fused"][f"{name}, batch {batch}"] = fused(name, batch)
  for name in (n for n in TANGENTS if n in chosen):
    for batch in (FLAGS.batch,) if FLAGS.batch else TANGENTS[name].batches:
      results["tangents"][f"{name}, batch {batch}"] = tangents(name, batch)
  results["compilations"] = compilations()
  print(json.dumps(results))
  if FLAGS.json:
    with open(FLAGS.json, "w") as f:
      json.dump(results, f, indent=1)


# --- one program against several ----------------------------------------------


def fused(name: str, batch: int) -> dict[str, Any]:
  """Returns time, memory and FLOPs of an update as one program and as parts."""
  case = CASES[name]
  teacher = model(case)
  method = distillation.dmd(
    teacher,
    teacher,
    optimizer=optax.adam(1e-4, b1=0.0),
    fake_steps=FAKE_STEPS,
    ema=_EMA,
  )
  data = {"image": jnp.zeros((batch, *case.shape)), "index": jnp.arange(batch)}
  begin = lambda: distillation.init_state(jax.random.key(0), method)
  update = distillation.make_update(method)
  parts = in_parts(method)
  alone = {k: jax.jit(f) for k, f in parts.items()}
  written_out = jax.jit(
    lambda teacher, state, data: in_turn(parts, teacher, state, data),
    donate_argnums=1,
  )
  loop = {
    "one program": lambda state: update(state, data)[0],
    "separate": lambda state: in_turn(alone, teacher, state, data),
    "written out": lambda state: written_out(teacher, state, data),
  }
  state = jax.eval_shape(begin)
  given = arguments(teacher, state, data)
  programs = {
    "one program": compiled(update=update.lower(state, data)),
    "separate": compiled(**{k: f.lower(*given[k]) for k, f in alone.items()}),
    "written out": compiled(update=written_out.lower(teacher, state, data)),
  }
  took, last = rounds(loop, dict.fromkeys(loop, begin))
  for k in ("separate", "written out"):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5),
      last[k],
      last["one program"],
    )
  once = lambda f, *args: flops.count(f, *args) / 1e9
  work = {
    "one program": once(update.program, update.frozen, state, data),
    "separate": sum(
      (FAKE_STEPS if k == "fake" else 1) * once(f, *given[k])
      for k, f in alone.items()
    ),
    "written out": once(written_out, teacher, state, data),
  }
  held = sum(map(_bytes, jax.tree.leaves((teacher, state, data))))
  found = {}
  print(f"\n{name}, batch {batch}: DMD, {FAKE_STEPS} steps of the fake score")
  for k in loop:
    found[k] = report(took[k], took["one program"], programs[k], held, work[k])
    _say(k, found[k])
  return found


def in_parts(method: distillation.Method) -> dict[str, Callable]:
  """Returns an update of DMD in three functions, as in a notebook."""

  def step(name, nets, params, opt_state, key, data):
    player = method.players[name]
    loss = lambda p: player.loss(key, p, nets, data)
    (_, _), grads = jax.value_and_grad(loss, has_aux=True)(params)
    clip = optax.clip_by_global_norm(player.clip_norm)
    grads, _ = clip.update(grads, clip.init(params))
    changes, opt_state = player.optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, changes), opt_state

  def draw(key, number, i, j):  # as the library draws, so that all ends alike
    key = jax.random.fold_in(jax.random.fold_in(key, number), i)
    return jax.random.fold_in(key, j)

  def fake(student, params, opt_state, key, number, j, data):
    nets = {"student": student}
    return step("fake", nets, params, opt_state, draw(key, number, 0, j), data)

  def student(teacher, other, params, opt_state, key, number, data):
    nets = {"teacher": teacher, "fake": other}
    key = draw(key, number, 1, 0)
    return step("student", nets, params, opt_state, key, data)

  def average(mean, params, number):
    k = number.astype(jnp.float32) + 1.0
    rest = 1.0 - jnp.minimum(_EMA, k / (9.0 + k))
    mean = jax.tree.map(lambda m, p: m + rest * (p - m), mean, params)
    return mean, number + 1

  return dict(fake=fake, student=student, average=average)


def in_turn(
  parts: dict[str, Callable], teacher: Any, state: Any, data: Any
) -> training.TrainState:
  """Returns the state after the parts of an update."""
  params, other = state.params, state.loss_params["fake"]
  slots, key, number = dict(state.opt_state), state.key, state.step
  for j in range(FAKE_STEPS):
    other, slots["fake"] = parts["fake"](
      params, other, slots["fake"], key, number, j, data
    )
  params, slots["student"] = parts["student"](
    teacher, other, params, slots["student"], key, number, data
  )
  mean, number = parts["average"](state.ema_params, params, number)
  return state._replace(
    step=number,
    params=params,
    opt_state=slots,
    ema_params=mean,
    loss_params={"fake": other},
  )


def arguments(teacher: Any, state: Any, data: Any) -> dict[str, tuple]:
  """Returns what the parts of an update are called with."""
  params, other = state.params, state.loss_params["fake"]
  slots, key, number = state.opt_state, state.key, state.step
  return dict(
    fake=(params, other, slots["fake"], key, number, 0, data),
    student=(teacher, other, params, slots["student"], key, number, data),
    average=(state.ema_params, params, number),
  )


# --- derivatives along a trajectory -------------------------------------------


def denoising(
  teacher: Any, student: Any, *, optimizer: optax.GradientTransformation
) -> distillation.Method:
  """Returns ordinary training, as a method."""
  loss = losses.denoising(student)
  player = training.Player(
    lambda key, params, nets, batch: (loss(key, params, batch)[0], {}),
    optimizer,
  )
  return distillation.Method(student, {"student": player}, {}, {})


# builders (teacher, student, *, optimizer) -> Method; the first is the measure
METHODS = {
  "denoising": denoising,
  "scm, data": functools.partial(distillation.scm, velocity="data"),
  "scm, teacher": distillation.scm,
}


def tangents(name: str, batch: int) -> dict[str, Any]:
  """Returns time, memory and FLOPs of METHODS on a network."""
  case = TANGENTS[name]
  teacher = model(case)
  data = {
    "image": jax.random.normal(jax.random.key(2), (batch, *case.shape)),
    "index": jnp.arange(batch),
  }
  loop, begin, programs, work, held = {}, {}, {}, {}, {}
  for k, build in METHODS.items():
    taught = None if k == "scm, data" else teacher
    method = build(taught, teacher, optimizer=optax.adam(1e-4))
    update = distillation.make_update(method)
    begin[k] = functools.partial(
      distillation.init_state, jax.random.key(0), method
    )
    state = jax.eval_shape(begin[k])
    loop[k] = lambda state, update=update: update(state, data)[0]
    programs[k] = compiled(update=update.lower(state, data))
    work[k] = flops.count(update.program, update.frozen, state, data) / 1e9
    everything = (update.frozen, state, data)
    held[k] = sum(map(_bytes, jax.tree.leaves(everything)))
  took, _ = rounds(loop, begin)
  found = {}
  print(f"\n{name}, batch {batch}: one step with a JVP")
  for k in METHODS:
    found[k] = report(took[k], took["denoising"], programs[k], held[k], work[k])
    _say(k, found[k])
  return found


# --- compilations -------------------------------------------------------------


def compilations(updates: int = 20) -> dict[str, int]:
  """Returns how often a run of the loop compiled anything, and when."""
  case = CASES["points"]
  teacher = model(case)
  method = distillation.dmd(
    teacher, teacher, optimizer=optax.adam(1e-4), fake_steps=FAKE_STEPS
  )
  update = distillation.make_update(method)
  compiled, at = [], []

  def note(event: str, seconds: float, *, fun_name: str = "", **_: Any):
    if event.endswith("backend_compile_duration"):
      compiled.append(fun_name)

  jax.monitoring.register_event_duration_secs_listener(note)
  training.train(
    distillation.init_state(jax.random.key(0), method),
    update,
    _Same({"image": jnp.zeros((64, 2))}),
    steps=updates,
    log_every=1,
    on_metrics=lambda step, said: at.append(len(compiled)),
    progress=False,
  )
  found = dict(
    update=compiled.count("jit(update)"),
    first_update=at[0],
    later=at[-1] - at[0],
    updates=updates,
  )
  print(
    f"\na run of {updates} updates: the update was compiled {found['update']}"
    f" time(s); all in all {found['first_update']} programs up to the first"
    f" report, {found['later']} after it"
  )
  return found


class _Same:
  """The same batch for ever."""

  def __init__(self, batch: Any):
    self.batch = batch

  def __next__(self) -> Any:
    return self.batch


# --- measures -----------------------------------------------------------------


def model(case: Case) -> denoisers.Denoiser:
  """Returns an untrained network of a case."""
  x, c = jnp.zeros((1, *case.shape)), jnp.zeros(1)
  params = jax.jit(case.network.init)(jax.random.key(0), x, c)["params"]
  return denoisers.from_linen(case.network, params, processes.edm())


def rounds(
  loop: dict[str, Callable], begin: dict[str, Callable]
) -> tuple[dict[str, list[float]], dict[str, Any]]:
  """Returns seconds of an update in every round, and parameters after two.

  Args:
    loop: state -> state, to be compared.
    begin: () -> the state before the first update.
  """
  states, early, seconds = {}, {}, {}
  for k, step in loop.items():
    states[k] = step(begin[k]())  # compiles
    before = time.perf_counter()
    states[k] = jax.block_until_ready(step(states[k]))
    seconds[k] = time.perf_counter() - before
    early[k] = jax.device_get(states[k].params)
  # as many updates of each as fill a third of a second of the fastest
  n = int(np.clip(0.3 / min(seconds.values()), 2, 300))
  took = collections.defaultdict(list)
  names = list(loop)
  clock = dict(wall=time.perf_counter, cpu=time.process_time)[FLAGS.clock]
  for i in range(FLAGS.rounds):
    turn = i % len(names)
    for k in names[turn:] + names[:turn]:  # whoever is first, in turn
      before = clock()
      for _ in range(n):
        states[k] = loop[k](states[k])
      jax.block_until_ready(states[k])
      took[k].append((clock() - before) / n)
  return took, early


def report(
  took: Sequence[float],
  measure: Sequence[float],
  programs: dict[str, tuple[Any, float]],
  held: int,
  gflops: float,
) -> dict[str, Any]:
  """Returns what there is to say of a way to do an update.

  Args:
    took: seconds in every round.
    measure: those of the one that it is compared with.
    programs: those of `compiled`.
    held: bytes of models, state and batch.
    gflops: GFLOPs of an update.
  """
  ratios = [a / b for a, b in zip(took, measure, strict=True)]
  said, temporary, fresh = {}, [], []
  for name, (program, seconds) in programs.items():
    sizes = program.memory_analysis()
    temporary.append(sizes.temp_size_in_bytes)
    fresh.append(sizes.output_size_in_bytes - sizes.alias_size_in_bytes)
    said[name] = hlo(program.as_text()) | dict(
      compile_seconds=round(seconds, 2),
      arguments_mb=_mb(sizes.argument_size_in_bytes),
      donated_mb=_mb(sizes.alias_size_in_bytes),
      new_output_mb=_mb(fresh[-1]),
      temporary_mb=_mb(temporary[-1]),
    )
  worst = max(a + b for a, b in zip(temporary, fresh))
  return dict(
    milliseconds=round(1e3 * statistics.median(took), 4),
    ratio=round(statistics.median(ratios), 4),
    least=round(min(ratios), 4),
    largest=round(max(ratios), 4),
    temporary_mb=_mb(max(temporary)),
    alive_mb=_mb(held + worst),
    gflops=round(gflops, 4),
    programs=said,
  )


def compiled(**lowered: Any) -> dict[str, tuple[Any, float]]:
  """Returns programs by name with the seconds that it took to compile them."""
  found = {}
  for name, program in lowered.items():
    before = time.perf_counter()
    made = program.compile()
    found[name] = made, time.perf_counter() - before
  return found


def hlo(text: str) -> dict[str, int]:
  """Returns how many of some instructions a compiled program has."""
  kinds = re.findall(
    r"^\s*(?:ROOT )?%?[\w.-]+ = .*? ([a-z][\w-]*)\(", text, re.M
  )
  found = collections.Counter(kinds)
  names = ("fusion", "while", "call", "custom-call", "dot", "convolution")
  return {name: found[name] for name in names} | dict(instructions=len(kinds))


def _say(name: str, found: dict[str, Any]) -> None:
  print(
    f"  {name:12s} {found['milliseconds']:9.3f} ms  x {found['ratio']:.3f}"
    f" ({found['least']:.3f} to {found['largest']:.3f})  temporary"
    f" {found['temporary_mb']:.3f} MB, alive {found['alive_mb']:.3f} MB, "
    f" {found['gflops']:.3f} GFLOP"
  )
  for part, p in found["programs"].items():
    print(
      f"    {part:10s} donated {p['donated_mb']:.3f} of"
      f" {p['arguments_mb']:.3f} MB; {p['fusion']} fusions, {p['while']} loops,"
      f" {p['call'] + p['custom-call']} calls, {p['instructions']}"
      f" instructions; {p['compile_seconds']:.1f} s to compile",
      flush=True,
    )


def _bytes(leaf: Any) -> int:
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return 8
  return leaf.size * leaf.dtype.itemsize


def _mb(size: float) -> float:
  return round(size / 1e6, 4)


if __name__ == "__main__":
  flags.DEFINE_multi_enum(
    "cases",
    sorted({*CASES, *TANGENTS}),
    sorted({*CASES, *TANGENTS}),
    "Networks to run.",
  )
  flags.DEFINE_integer("batch", 0, "Batch size; 0 is those of the cases.")
  flags.DEFINE_enum(
    "clock",
    "wall",
    ["wall", "cpu"],
    "What is timed; the CPU time of the process on a machine that others use.",
  )
  flags.DEFINE_integer("rounds", 9, "Timed rounds.", lower_bound=1)
  flags.DEFINE_string("json", None, "File to write the numbers to.")
  console.run(main)
