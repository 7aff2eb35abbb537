"""Predictions: decode undoes target, finite at both ends, and the pair pays."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import predictions
from tests.processes.cases import every_process
from tests.processes.cases import PROCESSES

NEGATIVES = ("-v", "-velocity")
every_kind = pytest.mark.parametrize("kind", predictions.KINDS + NEGATIVES)
STRAIGHT = (-1.0, 1.0)  # the rates of alpha = 1 - t, sigma = t
RNG = np.random.default_rng(0)
X0, EPS = RNG.normal(size=(2, 7, 3))
SIGMA_DATA = 0.6

# What a kind cannot tell at an end (its alpha): this half is 0 there.
HIDDEN = {
  ("x0", 1): "eps",
  ("eps", 0): "x0",
  ("score", 0): "x0",
  ("score", 1): "eps",
}


def column(v):
  return np.asarray(v)[..., None]


@every_process
@every_kind
def test_decoded_target_is_the_pair(kind, name):
  process = PROCESSES[name]
  t = np.linspace(process.t_min, 0.99 * process.t_max, 7)
  alpha, sigma = column(process.alpha(t)), column(process.sigma(t))
  rates = tuple(map(column, process.rates(t)))
  args = (alpha, sigma, SIGMA_DATA, rates)
  output = predictions.target(kind, X0, EPS, *args)
  pair = predictions.decode(kind, output, alpha * X0 + sigma * EPS, *args)
  np.testing.assert_allclose(pair.x0, X0, atol=1e-11)
  np.testing.assert_allclose(pair.eps, EPS, atol=1e-11)


@every_process
@every_kind
def test_any_output_decodes_to_a_pair_that_makes_x(kind, name):
  process = PROCESSES[name]
  t = np.linspace(process.t_min, 0.99 * process.t_max, 7)
  alpha, sigma = column(process.alpha(t)), column(process.sigma(t))
  output, x = RNG.normal(size=(2, 7, 3))
  args = (alpha, sigma, SIGMA_DATA, tuple(map(column, process.rates(t))))
  pair = predictions.decode(kind, output, x, *args)
  np.testing.assert_allclose(
    alpha * pair.x0 + sigma * pair.eps, x, rtol=1e-9, atol=1e-9
  )


@every_kind
@pytest.mark.parametrize("alpha", [0, 1])
def test_ends_are_exact_but_for_the_half_that_they_hide(kind, alpha):
  sigma = 1 - alpha
  args = (np.float64(alpha), np.float64(sigma), SIGMA_DATA, STRAIGHT)
  hidden = HIDDEN.get((kind, alpha))
  with np.errstate(all="raise"):
    output = predictions.target(kind, X0, EPS, *args)
    x = alpha * X0 + sigma * EPS
    pair = predictions.decode(kind, output, x, *args)
  for half, exact in (("x0", X0), ("eps", EPS)):
    expected = np.zeros_like(exact) if half == hidden else exact
    np.testing.assert_allclose(getattr(pair, half), expected, atol=1e-12)


@every_kind
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_ends_have_finite_gradients(kind, alpha):
  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1, 2, 3))
  def slopes(output, x, alpha, sigma):
    args = (alpha, sigma, SIGMA_DATA, STRAIGHT)
    pair = predictions.decode(kind, output, x, *args)
    loss = predictions.target(kind, output, x, *args)
    gain = predictions.output_gain(kind, *args)
    return jnp.sum(pair.x0**2 + pair.eps**2 + loss**2) + gain

  args = jnp.asarray(X0, jnp.float32), jnp.asarray(EPS, jnp.float32)
  for slope in slopes(*args, alpha, 1 - alpha):
    assert np.isfinite(slope).all()


def test_edm_is_table_1_of_karras():
  sigma = column(np.geomspace(0.002, 80, 7))
  total = sigma**2 + SIGMA_DATA**2
  c_skip = SIGMA_DATA**2 / total
  c_out = sigma * SIGMA_DATA / np.sqrt(total)
  x, f = X0 + sigma * EPS, RNG.normal(size=X0.shape)
  args = (np.ones_like(sigma), sigma, SIGMA_DATA)
  pair = predictions.decode("edm", f, x, *args)
  np.testing.assert_allclose(pair.x0, c_skip * x + c_out * f, rtol=1e-12)
  np.testing.assert_allclose(
    predictions.target("edm", X0, EPS, *args),
    (X0 - c_skip * x) / c_out,
    rtol=1e-9,
    atol=1e-12,
  )
  np.testing.assert_allclose(
    predictions.input_scale(*args), 1 / np.sqrt(total), rtol=1e-14
  )


def test_v_is_minus_f_for_vp_and_unit_data():
  angle = column(np.linspace(0, np.pi / 2, 7))
  args = (X0, EPS, np.cos(angle), np.sin(angle))
  v = predictions.target("v", *args)
  np.testing.assert_allclose(v, -predictions.target("edm", *args, 1.0))


def test_flow_is_the_velocity_of_the_straight_path(x64):
  x0, eps = jnp.asarray(X0), jnp.asarray(EPS)
  path = lambda t: (1 - t) * x0 + t * eps
  velocity = jax.jvp(path, (0.3,), (1.0,))[1]
  flow = predictions.target("flow", x0, eps, 0.7, 0.3)
  np.testing.assert_allclose(flow, velocity, rtol=1e-12)


def test_velocity_is_dx_dt_of_the_process_s_own_path(x64):
  """A curved one: alpha = cos, sigma = sin, and the cold end of VP."""
  x0, eps = jnp.asarray(X0), jnp.asarray(EPS)
  for name in ("vp_cosine", "vp_linear", "ve"):
    process = PROCESSES[name]
    path = lambda t, p=process: p.alpha(t) * x0 + p.sigma(t) * eps
    slope = jax.jvp(path, (jnp.float64(0.3),), (jnp.float64(1.0),))[1]
    ends = process.alpha(0.3), process.sigma(0.3)
    options = dict(rates=process.rates(0.3))
    w = predictions.target("velocity", x0, eps, *ends, **options)
    np.testing.assert_allclose(w, slope, rtol=1e-11)
    flow = predictions.target("flow", x0, eps, *ends)
    assert abs(w - flow).max() > 0.1
    minus = predictions.decode("-velocity", -w, path(0.3), *ends, **options)
    np.testing.assert_allclose(minus.x0, x0, rtol=1e-9, atol=1e-9)
  with pytest.raises(ValueError, match="rates=process.rates"):
    predictions.decode("velocity", x0, x0, 0.5, 0.5)


def test_a_minus_is_the_negative(x64):
  for kind in predictions.KINDS:
    args = (0.8, 0.6, SIGMA_DATA, (-0.4, 0.7))
    out = predictions.target(kind, X0, EPS, *args)
    minus = predictions.target("-" + kind, X0, EPS, *args)
    np.testing.assert_array_equal(minus, -out)
    x = 0.8 * X0 + 0.6 * EPS
    for one, other in zip(
      predictions.decode(kind, out, x, *args),
      predictions.decode("-" + kind, minus, x, *args),
    ):
      np.testing.assert_array_equal(one, other)


@every_kind
def test_output_gain_is_the_derivative_of_x0(kind, x64):
  for alpha, sigma in [(0.9, 0.4), (1.0, 30.0), (0.2, 0.01)]:
    args = (jnp.float64(alpha), jnp.float64(sigma), SIGMA_DATA, (-0.4, 0.7))
    x, output, toward = map(jnp.asarray, RNG.normal(size=(3, 5)))
    decode = lambda o, x=x, args=args: predictions.decode(kind, o, x, *args).x0
    slope = jax.jvp(decode, (output,), (toward,))[1]
    gain = predictions.output_gain(kind, *args)
    assert gain.shape == ()
    np.testing.assert_allclose(slope, gain * toward, rtol=1e-12)


def test_input_scale_gives_unit_variance_to_every_marginal():
  for alpha, sigma in itertools.product([0.0, 0.3, 1.0], [0.01, 1.0, 80.0]):
    variance = (alpha * SIGMA_DATA) ** 2 + sigma**2
    scale = predictions.input_scale(alpha, sigma, SIGMA_DATA)
    assert scale**2 * variance == pytest.approx(1, rel=1e-12)


def test_eps_of_a_bfloat16_network_is_lost_through_x0_but_not_in_the_pair():
  # why a model returns both halves: sigma = 0.002, a network of |F| < 4
  sigma, data = np.float32(0.002), np.float32(0.5)
  eps = np.clip(EPS, -1.9, 1.9).astype(np.float32)
  x0 = (0.5 * X0).astype(np.float32)
  x = x0 + sigma * eps
  decode = functools.partial(
    predictions.decode, x=x, alpha=np.float32(1), sigma=sigma, sigma_data=data
  )
  rounded = lambda v: np.asarray(jnp.asarray(v, jnp.bfloat16), np.float32)
  f = predictions.target("edm", x0, eps, np.float32(1), sigma, data)
  direct = decode("edm", rounded(f))
  through = decode("x0", rounded(direct.x0))
  assert abs(direct.eps - eps).max() < 0.01  # half a spacing of F: 2^-8 |F|
  assert abs(through.eps - eps).max() > 0.5  # half a spacing of x0 / sigma
  # in float32 the way through x0 is fine
  assert abs(decode("x0", direct.x0).eps - direct.eps).max() < 1e-3


def test_unknown_kinds_are_refused_with_the_list():
  for f in (
    lambda: predictions.decode("noise", X0, X0, 1.0, 1.0),
    lambda: predictions.target("noise", X0, X0, 1.0, 1.0),
    lambda: predictions.output_gain("noise", 1.0, 1.0),
  ):
    with pytest.raises(ValueError, match=r"'x0', 'eps', 'v'.*got 'noise'"):
      f()
