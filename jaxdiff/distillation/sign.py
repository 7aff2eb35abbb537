r"""SIGN: score-based idempotent distillation; its base, IGN, is here too.

A map f(x) of data and of noisy data that is told no time. Data are to be its
fixed points, noise to land on them: f is then a projection onto the data, in
one call or in several, of noise, of corrupted data, of drawings. In IGN what
keeps f from being the identity is adversarial and unbounded; in SIGN scores do,
those of the teacher. With f' the same map with its parameters held fixed (and
gradients through what it is given):

| term      | loss                                           | says            |
|-----------|------------------------------------------------|-----------------|
| "rec"     | E |f(x) - x|^2                                 | data are fixed  |
| "idem"    | E |f'(f(z)) - f(z)|^2, inner f alone           | so is f(z)      |
| "dmd"     | distribution matching of f(z), as in `dmd`     | f(z) are data   |
| "flow"    | E |f(x_t) - sg f_ema(x_s)|^2, x_s a step of    | f is constant   |
|           | the teacher's ODE from x_t                     | along the ODE   |
| "denoise" | E |f(x + s eps) - x|^2, s below denoise_sigma  | f projects      |
| "reg"     | E |f(noise) - sample|^2 of stored pairs        | f is the ODE's  |
| "tight"   | - E |f(sg f(z)) - sg f(z)|^2, outer f alone    | IGN: no more is |

If rec, idem and dmd vanish, the fixed points hold the data, f ends among them,
and f(z) is distributed as the data: f projects onto the data. rec and idem
alone are at their minimum, with no gradient, where f is the identity. Since f
is not told the noise level, the minimum of flow and denoise is an average over
the levels that x may have; their weights are moderate.

z = sigma_in eps. The student's process adds noise without shrinking (EDM), so
that any table runs f: `sampler(student, [sigma_in, ..., 0])` renoises between
its calls. The teacher's process may be any; its x_t / alpha goes into f.

The terms and what carries gradients are those of Zaman et al. (2025),
https://arxiv.org/abs/2509.21470; weights and noise levels are ours, since the
paper's could not be recovered. IGN: Shocher et al. (2023),
https://arxiv.org/abs/2311.01462, section 2, whose tight term is kept smaller
than `tight_limit` rec by a tanh.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import checks
from jaxdiff import control
from jaxdiff import grids
from jaxdiff import losses
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.denoisers import Denoiser
from jaxdiff.distillation.dmd import check_matching
from jaxdiff.distillation.dmd import matching
from jaxdiff.distillation.parts import generators
from jaxdiff.distillation.parts import jumps
from jaxdiff.distillation.parts.fake_score import fake_score
from jaxdiff.distillation.parts.method import Method
from jaxdiff.distillation.parts.students import with_params
from jaxdiff.predictions import ask
from jaxdiff.types import Model
from jaxdiff.types import Times

Map = Callable[[jax.Array], jax.Array]


@checks.door
def sign(
  teacher: Model,
  student: Denoiser,
  *,
  optimizer: optax.GradientTransformation,
  w_rec: float = 5.0,
  w_idem: float = 1.0,
  w_dmd: float = 0.3,
  w_flow: float = 1.0,
  w_denoise: float = 1.0,
  w_reg: float = 0.0,
  w_tight: float = 0.0,
  allow_adversarial: bool = False,
  tight_limit: float | None = 1.5,
  sigma_in: float = 2.0,
  flow_steps: int = 16,
  denoise_sigma: float | None = None,
  fake: Model | None = None,
  fake_optimizer: optax.GradientTransformation | None = None,
  fake_steps: int = 3,
  times: Times | None = None,
  fake_times: Times | None = None,
  ema: float = 0.995,
) -> Method:
  """Trains an idempotent map from noise to data, by the teacher's score.

  Args:
    teacher: model(x, t[, label]) -> Prediction.
    student: a Denoiser of x alone: time="none", prediction="x0", EDM's process.
    optimizer: optimizer of the student; Adam with b1=0 is usual.
    w_rec: weight of the term "rec"; the others likewise.
    w_idem: weight of "idem".
    w_dmd: weight of "dmd".
    w_flow: weight of "flow".
    w_denoise: weight of "denoise".
    w_reg: weight of "reg", which wants batch["noise"] and batch["sample"].
    w_tight: weight of IGN's adversarial term.
    allow_adversarial: must be True for it.
    tight_limit: how much of rec it may reach; None leaves it unbounded.
    sigma_in: standard deviation of the noise that f makes data of.
    flow_steps: steps of the teacher's grid from sigma_in to the data.
    denoise_sigma: largest noise of "denoise"; a fifth of sigma_data by default.
    fake: the fake denoiser before the first step; by default the teacher, if
      that is a Denoiser.
    fake_optimizer: its optimizer; by default the student's.
    fake_steps: steps of the fake score for each step of the student.
    times: times of x_t in "dmd", a sampler of `losses.times`; by default
      log-uniform in sigma / alpha.
    fake_times: those that the fake score is trained at; by default the same.
    ema: decay of the student's average, which is also the target of "flow".

  Raises:
    TypeError: for a student that is told the time, or without a fake denoiser.
    ValueError: for weights below 0, the adversarial term unasked for, no term
      that tells f from the identity, a process that shrinks the data, or "dmd"
      under noise that is not normal.
  """
  check_map(student)
  weights = dict(
    rec=w_rec, idem=w_idem, dmd=w_dmd, flow=w_flow, denoise=w_denoise,
    reg=w_reg, tight=w_tight,
  )  # fmt: skip
  _check_weights(weights, allow_adversarial)
  fake = _checked_fake(teacher if fake is None else fake, w_dmd)
  process = fake.process
  times = times or losses.times.uniform_log_snr(process)
  start = float(process.time_at(sigma_in))
  own_start = float(student.process.time_at(sigma_in))
  if denoise_sigma is None:
    denoise_sigma = 0.2 * student.sigma_data
  rules = _Rules(
    student=student,
    fake=fake,
    generator=generators.one_step(student.process, own_start),
    nodes=grids.karras(process, flow_steps, start=start, to_zero=True),
    times=times,
    weights=weights,
    tight_limit=tight_limit,
    denoise_sigma=denoise_sigma,
  )
  loss = functools.partial(_loss, rules)
  players = {"student": training.Player(loss, optimizer)}
  if w_dmd:
    loss = fake_score(fake, student, rules.generator, times=fake_times or times)
    other = training.Player(loss, fake_optimizer or optimizer, steps=fake_steps)
    players = {"fake": other, **players}
  return Method(
    student=student,
    players=players,
    params={"fake": fake.params} if w_dmd else {},
    frozen={"teacher": teacher},
    ema=ema,
  )


class _Rules(NamedTuple):
  """What no update changes; the fields are arguments of `sign`, but for these.

  Attributes:
    generator: how the student is asked for f(z).
    nodes: the teacher's grid for "flow", f64[n + 1].
    weights: weights of the terms, by name.
  """

  student: Denoiser
  fake: Model
  generator: generators.Generator
  nodes: np.ndarray
  times: Times
  weights: dict[str, float]
  tight_limit: float | None
  denoise_sigma: float


def _loss(rules, key, params, nets, batch):
  keys = jax.random.split(key, 6)
  student = rules.student
  x, labels = batch["image"], generators.label(batch)
  bound = lambda params: mapping(with_params(student, params), *labels)
  f, held = bound(params), bound(jax.lax.stop_gradient(params))
  y = rules.generator(keys[0], with_params(student, params), batch)
  terms = dict(
    rec=lambda: distance(f(x), x),
    idem=lambda: distance(held(y), y),
    dmd=lambda: _matched(rules, keys[1], nets, y, batch),
    flow=lambda: _constant(rules, keys[2:4], f, bound, nets, batch),
    denoise=lambda: _local(rules, keys[4:], f, batch),
    reg=lambda: distance(f(batch["noise"]), batch["sample"]),
    tight=lambda: tightness(f, f(x) - x, y, rules.tight_limit),
  )
  said = {name: terms[name]() for name, w in rules.weights.items() if w}
  return sum(rules.weights[name] * v for name, v in said.items()), said


def _matched(rules, key, nets, y, batch):
  """Returns the term "dmd" of y = f(z), f[]."""
  other = with_params(rules.fake, nets["fake"])
  return matching(key, y, nets["teacher"], other, rules.times, batch)


def _constant(rules, keys, f, bound, nets, batch):
  """Returns the term "flow", f[]: f here, its average a step further on."""
  x = batch["image"]
  n = control.own_rows(
    lambda m: jax.random.randint(keys[0], (m,), 0, len(rules.nodes) - 1), x
  )
  ends = (
    jnp.asarray(v, x.dtype)[n] for v in (rules.nodes[:-1], rules.nodes[1:])
  )
  start, end = flow(keys[1], nets["teacher"], rules.fake.process, *ends, batch)
  return distance(f(start), jax.lax.stop_gradient(bound(nets["ema"])(end)))


def _local(rules, keys, f, batch):
  """Returns the term "denoise", f[]."""
  x = batch["image"]
  sigma = rules.denoise_sigma * control.own_rows(
    lambda n: jax.random.uniform(keys[0], (n,), x.dtype), x
  )
  noise = generators.noise(keys[1], batch, rules.student.process)
  return distance(f(x + tree.expand(sigma, x) * noise), x)


def mapping(student: Denoiser, *label: jax.Array) -> Map:
  """Returns f: x [batch, ...] -> like x, of a student that is told no time."""
  t = student.process.t_max  # it does not matter which
  return lambda x: ask(student, x, t, *label).x0


@checks.door
def project(
  student: Denoiser, x: jax.Array, n: int = 1, *label: Any
) -> jax.Array:
  """Returns f(...f(x)), n times: x, whatever it is, moved toward the data.

  Args:
    student: what `sign` trained.
    x: f[batch, ...]: noise, corrupted data, data of another kind.
    n: number of calls.
    *label: the labels, if there are any.
  """
  f = mapping(student, *label)
  for _ in range(n):
    x = f(x)
  return x


@checks.door
def idempotence_error(
  student: Denoiser, x: jax.Array, *label: Any
) -> jax.Array:
  """Returns |f(f(x)) - f(x)| / sqrt(values in a sample), f[batch]."""
  once = project(student, x, 1, *label)
  twice = project(student, once, 1, *label)
  return jnp.sqrt(tree.squared_norm(twice - once) / tree.sample_size(x))


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns the mean square of a - b over batch and values, f[]."""
  return jnp.mean(jnp.square(a - b))


def flow(
  key: jax.Array,
  teacher: Model,
  process: Any,
  t: jax.Array,
  s: jax.Array,
  batch: dict,
) -> tuple[jax.Array, jax.Array]:
  """Returns (x_t / alpha_t, x_s / alpha_s): one Euler step of the teacher.

  Args:
    key: PRNG key.
    teacher: model(x, t[, label]) -> Prediction.
    process: the teacher's.
    t: f[batch], where noised data are.
    s: f[batch], where the step leads; t itself is no step.
    batch: the data, their labels and index.
  """
  x, _ = process.perturb(key, batch["image"], t, batch.get("index"))
  predicted = ask(teacher, x, t, *generators.label(batch))
  moved = jumps.jump(process, predicted, x, t, s)
  return tuple(
    v / tree.expand(process.alpha(u), v) for v, u in ((x, t), (moved, s))
  )


def tightness(
  f: Map, error: jax.Array, y: jax.Array, limit: float | None
) -> jax.Array:
  """Returns IGN's - |f(sg y) - sg y|^2, f[], which the outer f alone minimises.

  Args:
    f: the map.
    error: f(x) - x at the data, for the limit.
    y: f(z), like x.
    limit: a of a rec tanh(tight / (a rec)); None is no limit.
  """
  y = jax.lax.stop_gradient(y)
  tight = -distance(f(y), y)
  if limit is None:
    return tight
  most = limit * jax.lax.stop_gradient(jnp.mean(jnp.square(error)))
  most = jnp.maximum(most, np.finfo(np.float32).tiny)
  return most * jnp.tanh(tight / most)


def check_map(student: Denoiser) -> None:
  """Refuses a student that is not a map of x alone.

  Raises:
    TypeError: if it is told the time, or its answer depends on it.
    ValueError: if its process shrinks the data.
  """
  if student.time != "none" or student.jumps:
    raise TypeError(
      f"SIGN maps take x only, but this network is told the time"
      f" (time={student.time!r}, jumps={student.jumps}); make the student with"
      ' time="none", prediction="x0"'
    )
  if student.prediction != "x0" or student.scale_input:
    raise TypeError(
      "SIGN maps take x only, but the answer of this one depends on the time"
      f" (prediction={student.prediction!r}, scale_input="
      f'{student.scale_input}); make the student with time="none",'
      ' prediction="x0"'
    )
  process = student.process
  ends = [float(process.alpha(t)) for t in (process.t_min, process.t_max)]
  if ends != [1.0, 1.0]:
    raise ValueError(
      "a SIGN map takes data with noise added to them, but this student's"
      f" process shrinks the data, alpha from {ends[0]:.3g} to {ends[1]:.3g};"
      " give it processes.edm(...); the teacher may keep its own"
    )


def _checked_fake(fake: Model, w_dmd: float) -> Any:
  """Returns the fake denoiser before the first step."""
  if not hasattr(fake, "params"):
    raise TypeError(
      f"this teacher, of type {type(fake).__name__}, has no parameters to"
      " begin the fake denoiser with, and the student, which is told no time,"
      " cannot be it; give a Denoiser as fake="
    )
  if w_dmd:
    check_matching(fake.process, 'the term "dmd" of sign')
  return fake


def _check_weights(weights: dict[str, float], allow_adversarial: bool) -> None:
  low = {name: w for name, w in weights.items() if w < 0}
  if low:
    raise ValueError(
      f"weights must be at least 0, got {low}; the adversarial term of IGN is"
      " w_tight > 0 with allow_adversarial=True"
    )
  if weights["tight"] and not allow_adversarial:
    raise ValueError(
      f"w_tight={weights['tight']} is IGN's adversarial term, which SIGN does"
      " without; to train an IGN say allow_adversarial=True"
    )
  telling = ("dmd", "flow", "denoise", "reg", "tight")
  if not any(weights[name] for name in telling):
    raise ValueError(
      "with rec and idem alone the identity is a solution, and nothing is"
      " learned; give one of w_dmd, w_flow, w_denoise, w_reg a weight"
    )
