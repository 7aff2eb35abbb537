"""The convention of a network, told from data: silent mistakes are found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.diagnostics import convention

FLOW = jd.rectified_flow()
VP = jd.vp_linear()
DDPM = jd.processes.vp_discrete(np.linspace(1e-4, 0.02, 100))
KEY = jax.random.key(0)
MEAN = jnp.asarray([1.0, -1.0])
DATA = MEAN + 0.3 * jax.random.normal(KEY, (64, 2))


def posterior(process, x, t):
  a, s = process.alpha(t)[:, None], process.sigma(t)[:, None]
  gain = (x - a * MEAN) / (a**2 * 0.09 + s**2)
  return MEAN + 0.09 * a * gain, s * gain, a, s


def to_data(params, x, s):
  """v = x0 - eps, told s = 1 - t."""
  x0, eps, _, _ = posterior(FLOW, x, 1.0 - s)
  return x0 - eps


def minus_v(params, x, c):
  x0, eps, a, s = posterior(VP, x, c)
  return s * x0 - a * eps


def steps(params, x, c):
  return posterior(DDPM, x, (c + 1) / 100)[1]


def scaled(params, x, c):
  """eps of a network whose input has unit variance (sigma_data = 0.1)."""
  x = x * jnp.sqrt(0.01 * VP.alpha(c) ** 2 + VP.sigma(c) ** 2)[:, None]
  return posterior(VP, x, c)[1]


flow = lambda **options: jd.from_function(to_data, (), FLOW, **options)
vp = lambda net, **options: jd.from_function(net, (), VP, **options)


@pytest.mark.parametrize(
  ("right", "wrong", "said"),
  [
    (
      flow(prediction="-flow", time="1 - t"),
      (
        flow(prediction="flow", time="1 - t"),  # the sign
        flow(prediction="-flow", time="t"),  # the time
        flow(prediction="flow", time="t"),  # both
      ),
      "prediction='-(flow|velocity)', time='1 - t'",
    ),
    (
      vp(minus_v, prediction="-v", time="t"),
      (vp(minus_v, prediction="v", time="t"),),
      "prediction='-v', time='t'",
    ),
    (
      jd.from_function(steps, (), DDPM, prediction="eps", time="steps"),
      (
        jd.from_function(
          steps,
          (),
          DDPM,
          prediction="eps",
          time=lambda t: 99.0 - (100.0 * t - 1.0),
        ),
      ),
      "prediction='eps', time=its clock turned around",
    ),
  ],
)
def test_the_declared_convention_passes_and_each_mistake_is_named(
  right, wrong, said
):
  found = convention.check(KEY, right, DATA)
  assert (found.prediction, found.time) == (right.prediction, right.time)
  assert found.error < 0.2
  for model in wrong:
    with pytest.raises(ValueError, match="but " + said):
      convention.check(KEY, model, DATA)


def white(std):
  """Returns (network, data): the flow of normal data, told t."""

  def net(std, x, c):
    a, s = FLOW.alpha(c)[:, None], FLOW.sigma(c)[:, None]
    return (s - a * std**2) / (a**2 * std**2 + s**2) * x

  return net, std * jax.random.normal(jax.random.key(1), (64, 16))


@pytest.mark.parametrize("std", [0.03, 0.25, 0.5, 2.0])
def test_the_direction_of_time_is_told_of_white_data(std):
  """Where the wrong one costs less than half as much again, too."""
  net, data = white(std)
  model = lambda time: jd.from_function(
    net, jnp.float32(std), FLOW, prediction="flow", time=time
  )
  for key in jax.random.split(KEY, 3):
    assert convention.check(key, model("t"), data).time == "t"
    with pytest.raises(ValueError, match="but .*, time='t'"):
      convention.check(key, model("1 - t"), data)


def test_what_answers_the_same_in_both_directions_passes():
  """v of normal data with unit variance is 0 under a preserving process."""
  for time in ("t", "1 - t"):
    model = vp(lambda p, x, c: jnp.zeros_like(x), prediction="v", time=time)
    data = jax.random.normal(KEY, (64, 16))
    assert convention.check(KEY, model, data).time == time


def test_a_difference_is_believed_beyond_its_standard_error():
  """By a tenth and by four errors; of few images by half."""
  noise = np.random.default_rng(0).normal(size=64)
  noise -= noise.mean()
  one = np.ones(64)
  better = convention._better
  assert better(one + 0.2, one) and not better(one + 0.09, one)
  spread = lambda errors: 0.2 * np.sqrt(64) / errors * noise / noise.std(ddof=1)
  assert better(one + 0.2 + spread(4.1), one)
  assert not better(one + 0.2 + spread(3.9), one)
  assert not better(one[:4] + 0.4, one[:4]) and better(one[:4] + 0.6, one[:4])
  assert better(np.nan * one, one)


def test_readings_are_ranked_by_their_error_on_data():
  """The error is that of the pair, here written out for one reading."""
  model = flow(prediction="flow", time="t")
  ranked = convention.readings(KEY, model, DATA)
  errors = [one.error for one in ranked]
  assert errors == sorted(errors)
  assert {one.time for one in ranked} == {"t", "1 - t"}
  best = ranked[0]
  levels = np.geomspace(0.2, 5.0, 8)
  total = size = 0.0
  for t in FLOW.time_at(levels).astype(np.float32):
    x, eps = FLOW.perturb(KEY, DATA, t)
    x0, noise, _, _ = posterior(FLOW, x, jnp.full(64, t))
    total += float(jnp.mean((x0 - DATA) ** 2 + (noise - eps) ** 2))
    size += float(jnp.mean(DATA**2 + eps**2))
  assert best.prediction in ("-flow", "-velocity") and best.time == "1 - t"
  assert best.error == pytest.approx(total / size, rel=1e-4)


def test_the_scale_of_the_input_and_labels_are_read_too():
  model = vp(scaled, prediction="eps", time="t", sigma_data=0.1)
  wide = jd.from_function(
    lambda p, x, c, label: scaled(p, x, c) + 0.0 * label[:, None],
    (),
    VP,
    prediction="eps",
    time="t",
    sigma_data=0.1,
    scale_input=True,
  )
  assert convention.check(KEY, wide, DATA, np.zeros(64, int)).scale_input
  held = jd.with_label(wide, np.zeros(64, int))
  assert convention.check(KEY, held, DATA).scale_input
  with pytest.raises(ValueError, match="but .*'eps', .* scale_input=True has"):
    convention.check(KEY, model, DATA)


def test_a_network_that_fits_in_no_reading_is_refused():
  model = vp(lambda p, x, c: 100.0 + x, prediction="eps", time="t")
  with pytest.raises(ValueError, match="no reading of this network denoises"):
    convention.check(KEY, model, DATA)
  with pytest.raises(TypeError, match="looks into a Denoiser, got function"):
    convention.readings(KEY, lambda x, t: (x, x), DATA)
  with pytest.raises(TypeError, match="got int32: scale integer pixels"):
    convention.readings(KEY, model, np.zeros((4, 2), np.int32))
