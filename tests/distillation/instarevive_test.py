"""InstaRevive: control of the noise, DMD as a limit."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import distillation
from jaxdiff import losses
from jaxdiff import networks
from jaxdiff import oracles
from jaxdiff import processes
from jaxdiff.distillation.instarevive import CLOCKS
from jaxdiff.distillation.instarevive import restored_at
from tests.distillation import cases


def _noisy(seed=0):
  x = cases.images(seed)
  return {
    "image": x,
    "degraded": x + 0.3 * cases.images(seed + 1),
    "index": jnp.arange(6),
  }


def test_the_range_of_noise_follows_the_discrepancy():
  control = distillation.Control(power=0.7)
  at = lambda d: float(
    control.end(cases.EDM, dict(d_bar=jnp.asarray(d), d_0=2.0))
  )
  assert at(2.0) == pytest.approx(control.far, rel=1e-6)
  assert at(0.0) == pytest.approx(control.near, rel=1e-6)
  assert at(5.0) == at(2.0)
  ends = [at(d) for d in np.linspace(0, 2, 9)]
  assert np.all(np.diff(ends) > 0)
  level = dataclasses.replace(control, rule="level", near=0.1, far=1.0)
  memory = dict(d_bar=jnp.asarray(0.04), d_0=2.0)
  for clock in ("log_snr", "t"):
    rule = dataclasses.replace(level, clock=clock)
    t = CLOCKS[clock](cases.EDM, part=(rule.end(cases.EDM, memory),) * 2)
    if clock == "log_snr":
      found = float(t(jax.random.key(0), 1)[0])
      assert found == pytest.approx(4.0 * 0.2, rel=1e-4)
  gradient = jax.grad(
    lambda d: (
      control.end(cases.EDM, dict(d_bar=d, d_0=2.0))
      + level.end(cases.EDM, dict(d_bar=d, d_0=2.0))
      + sum(control.weights(dict(d_bar=d, d_0=2.0)))
    )
  )
  assert float(gradient(1.0)) == 0.0


@pytest.mark.parametrize("clock", CLOCKS)
def test_times_stay_inside_their_part(clock):
  control = distillation.Control(clock=clock, everywhere=0.0)
  memory = dict(d_bar=jnp.asarray(0.5), d_0=1.0)
  process = cases.EDM if clock == "log_snr" else processes.vp_linear()
  ends = [
    CLOCKS[clock](process, part=(v, v))(jax.random.key(0), 1)[0]
    for v in (control.low, control.near + 0.5 * (control.far - control.near))
  ]
  t = control.times(process, memory)(jax.random.key(1), 500)
  assert float(t.min()) >= float(ends[0]) * (1 - 1e-4)
  assert float(t.max()) <= float(ends[1]) * (1 + 1e-4)
  assert float(t.max()) > 0.95 * float(ends[1])
  same = control.fake_times(process, memory)(jax.random.key(1), 500)
  np.testing.assert_array_equal(same, t)
  forgets = dataclasses.replace(control, everywhere=0.1)
  wide = forgets.fake_times(process, memory)(jax.random.key(1), 4000)
  beyond = float(jnp.mean(wide > ends[1]))
  assert 0.0 < beyond < 0.1


def test_constant_control_is_dmd_with_regression_bitwise():
  teacher, student, fake = (cases.restorer(cases.EDM, i) for i in (1, 2, 4))
  shared = dict(optimizer=optax.adam(0.01), fake=fake, fake_steps=2)
  control = distillation.Control(
    power=0.0, everywhere=0.0, regression=(0.25, 0.25), matching=(1.0, 1.0)
  )
  method = distillation.instarevive(
    teacher, student, t=1.0, control=control, **shared
  )
  generate = restored_at(1.0)
  part = (control.low, jnp.result_type(float).type(control.far))
  times = losses.times.uniform_log_snr(cases.EDM, part=part)
  plain = distillation.dmd(
    teacher, student, generator=generate, times=times, **shared
  )

  def regressed(key, params, nets, batch):
    """DMD's loss of the samples, and the regression of the same samples."""
    draw_key, match_key = jax.random.split(key)
    model = distillation.with_params(student, params)
    x = generate(draw_key, model, batch)
    other = distillation.with_params(fake, nets["fake"]["score"])
    d = jnp.mean(jnp.square(x - batch["image"]))
    matching = distillation.dmd_loss(
      match_key, x, nets["teacher"], other, times, batch
    )
    return 0.25 * d + matching, {}

  players = plain.players | {
    "student": dataclasses.replace(method.players["student"], loss=regressed)
  }
  plain = dataclasses.replace(plain, players=players)
  assert method.players["fake"].steps == plain.players["fake"].steps == 2
  batch, memory = _noisy(), dict(d_bar=jnp.asarray(0.3), d_0=jnp.asarray(0.9))
  for name in ("student", "fake"):
    (one, mine, _), (other, theirs, _) = (
      # eager: fused programs differ where one has a constant
      cases.restored_gradient(
        m, batch, memory=memory, player=name, jit=lambda f: f
      )
      for m in (method, plain)
    )
    assert float(one) == float(other)
    theirs = theirs["score"] if name == "fake" else theirs
    chex.assert_trees_all_equal(mine, theirs)


def test_equal_denoisers_leave_the_regression_alone():
  teacher = cases.restorer(cases.EDM, 1)
  make = lambda control, fake: distillation.instarevive(
    teacher,
    cases.restorer(cases.EDM, 2),
    t=1.0,
    optimizer=optax.sgd(0.1),
    fake=fake,
    control=control,
  )
  memory = dict(d_bar=jnp.asarray(0.5), d_0=jnp.asarray(1.0))
  control = distillation.Control()
  batch = _noisy()
  equal = cases.restored_gradient(make(control, teacher), batch, memory=memory)
  assert float(equal[2]["matching"]) == 0.0
  none = dataclasses.replace(control, matching=(0.0, 0.0))
  other = cases.restored_gradient(
    make(none, cases.restorer(cases.EDM, 4)), batch, memory=memory
  )
  assert float(other[2]["matching"]) > 0.0
  model = cases.restorer(cases.EDM, 2)
  generate = restored_at(1.0)

  def regression(params):
    x = generate(None, distillation.with_params(model, params), batch)
    return control.weights(memory)[0] * jnp.mean((x - batch["image"]) ** 2)

  expected = jax.grad(regression)(model.params)
  for found in (equal[1], other[1]):
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


def test_the_discrepancy_is_remembered_and_nothing_is_compiled_again():
  control = distillation.Control(decay=0.5)
  method = distillation.instarevive(
    cases.restorer(cases.EDM, 1),
    cases.restorer(cases.EDM, 2),
    t=1.0,
    optimizer=optax.sgd(0.01),
    control=control,
    fake_steps=2,
  )
  state = distillation.init_state(jax.random.key(0), method)
  update = distillation.make_update(method)
  begun = jax.tree.map(jax.typeof, state)
  seen = []
  for i in range(3):
    state, said = update(state, _noisy(i))
    seen.append(float(said["discrepancy"]))
  memory = state.loss_params["memory"]
  assert float(memory["d_0"]) == pytest.approx(seen[0])
  smoothed = 0.5 * (0.5 * seen[0] + 0.5 * seen[1]) + 0.5 * seen[2]
  assert float(memory["d_bar"]) == pytest.approx(smoothed, rel=1e-6)
  # the state comes back as it went in, weak types and all: one program
  assert jax.tree.map(jax.typeof, state) == begun
  _, table = distillation.sampler(method.finished(state), [1.0, 0.0])
  assert table.nfe == 1  # x0 of the one call, and nothing else
  np.testing.assert_array_equal(table.output, [[1.0, 0.0]])
  np.testing.assert_array_equal(table.state, np.zeros((1, 2, 2)))
  np.testing.assert_array_equal(table.history, np.ones((1, 2, 1)))


def test_the_direction_of_two_gaussians_has_the_sign_of_the_error(x64):
  """x0 ~ N(0, 1), x ~ N(m, v): E(D_teacher - D_fake) = -s^2 m / (1 + s^2)."""
  z, w = np.polynomial.hermite_e.hermegauss(40)
  w = w / w.sum()
  for m, v, sigma in ((0.7, 0.5, 0.1), (-1.3, 2.0, 3.0)):
    process = processes.edm(0.01, 20.0)
    twins = [
      oracles.exact(oracles.gaussian([mean], variance), process)
      for mean, variance in ((0.0, 1.0), (m, v))
    ]
    x = jnp.asarray(m + np.sqrt(v + sigma**2) * z)[:, None]
    real, fake = (model(x, sigma).x0[:, 0] for model in twins)
    mean = float(w @ np.asarray(real - fake))
    assert mean == pytest.approx(-(sigma**2) * m / (1 + sigma**2), abs=1e-10)


@pytest.mark.slow
def test_the_direction_is_right_at_small_noise_and_lost_at_large():
  rng = np.random.default_rng(0)
  law = oracles.mixture(3 * rng.standard_normal((4, 6)), [0.01] * 4)
  cosine = distillation.direction_cosine(
    jax.random.key(0), law, 0.09, [0.3, 30.0], samples=64, draws=32
  )
  assert float(cosine[0]) > 0.8
  assert float(cosine[1]) < 0.5 * float(cosine[0])


def test_instarevive_is_checked():
  with pytest.raises(ValueError, match="low < near <= far"):
    distillation.Control(near=0.99)
  with pytest.raises(ValueError, match="power must be at least 0"):
    distillation.Control(power=-1.0)
  with pytest.raises(ValueError, match="the rule"):
    distillation.Control(rule="snr")
  method = distillation.instarevive(
    cases.restorer(cases.EDM),
    cases.restorer(cases.EDM),
    t=1.0,
    optimizer=optax.sgd(0.1),
  )
  unpaired = {"degraded": cases.images(0), "index": jnp.arange(6)}
  with pytest.raises(ValueError, match="needs pairs.*has no 'image'"):
    cases.restored_gradient(method, unpaired)
  network = networks.MLP(features=(4,), embedding=4)
  told = _noisy() | {"label": jnp.zeros(6, jnp.int32)}
  with pytest.raises(ValueError, match="a network without classes"):
    jax.eval_shape(
      network.init,
      jax.random.key(0),
      *cases.restorer(cases.EDM).inputs(told["image"], 1.0, told["label"]),
    )
