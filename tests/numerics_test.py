"""Elementary functions and quadratures against mpmath at 50 digits."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxdiff import numerics

mpmath.mp.dps = 50

PLACES = [1e-300, 1e-12, 1e-5, 0.01, 0.3, 0.999, 1.0, 1.001, 2.0, 7.0, 30.0]
PLACES = np.array([0.0, *PLACES, *(-z for z in PLACES), -700.0, 600.0])


def phi(k, z):
  return mpmath.hyp1f1(1, k + 1, mpmath.mpf(float(z))) / mpmath.factorial(k)


def exactly(f, x):
  return np.array([float(f(mpmath.mpf(float(v)))) for v in x])


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_phi_is_accurate_near_zero_and_far_from_it(k):
  exact = np.array([float(phi(k, z)) for z in PLACES])
  value = numerics.phi(k, PLACES)
  assert value.dtype == np.float64
  np.testing.assert_allclose(value, exact, rtol=3e-14)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_phi_keeps_float32_and_its_accuracy_on_a_device(k):
  z = PLACES[(abs(PLACES) < 80) & (abs(PLACES) != 1e-300)].astype(np.float32)
  value = jax.jit(lambda z: numerics.phi(k, z))(z)
  assert value.dtype == jnp.float32
  exact = np.array([float(phi(k, v)) for v in z])
  # the recursion 1 / z^k is used from |z| = 1 on: a few ulp times k!
  np.testing.assert_allclose(value, exact, rtol=2e-7 * math.factorial(k))


def test_phi_at_minus_infinity_is_zero():
  for k in (1, 2, 3, 4):
    assert numerics.phi(k, np.float64(-np.inf)) == 0
    assert numerics.phi(k, jnp.float32(-jnp.inf)) == 0


def test_phi_satisfies_its_recursion_under_differentiation(x64):
  # phi_k' = phi_k - k phi_{k+1}, term by term of the series
  for k in (1, 2, 3):
    for z in (-3.0, -0.5, 0.0, 0.2, 2.0):
      slope = jax.grad(lambda v, k=k: numerics.phi(k, v))(jnp.float64(z))
      exact = numerics.phi(k, z) - k * numerics.phi(k + 1, z)
      assert float(slope) == pytest.approx(float(exact), rel=1e-12)


def test_phi_refuses_a_negative_order():
  with pytest.raises(ValueError, match="k=-1"):
    numerics.phi(-1, 0.0)


def test_log1mexp_loses_no_digits_at_either_end():
  x = np.array([1e-300, 1e-20, 1e-8, 0.1, 0.69, 0.7, 3.0, 40.0, 700.0])
  with mpmath.workdps(350):
    exact = exactly(lambda v: mpmath.log(1 - mpmath.exp(-v)), x)
  np.testing.assert_allclose(numerics.log1mexp(x), exact, rtol=1e-15)
  assert numerics.log1mexp(0.0) == -np.inf
  assert numerics.log1mexp(np.inf) == 0
  small = jnp.asarray(x[1:8], jnp.float32)
  np.testing.assert_allclose(
    numerics.log1mexp(small),
    exactly(lambda v: mpmath.log(-mpmath.expm1(-v)), small),
    rtol=3e-7,
  )
  assert np.isfinite(
    jax.grad(lambda v: numerics.log1mexp(v).sum())(small)
  ).all()


def test_logistic_functions_neither_overflow_nor_cancel():
  x = np.array([-700.0, -40.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 40.0, 700.0])
  softplus = exactly(lambda v: mpmath.log1p(mpmath.exp(v)), x)
  np.testing.assert_allclose(numerics.softplus(x), softplus, rtol=1e-15)
  sigmoid = exactly(lambda v: 1 / (1 + mpmath.exp(-v)), x)
  np.testing.assert_allclose(numerics.sigmoid(x), sigmoid, rtol=2e-13)
  p = np.array([1e-300, 1e-9, 0.3, 0.7, 1 - 1e-9])
  logit = exactly(lambda v: mpmath.log(v / (1 - v)), p)
  np.testing.assert_allclose(numerics.logit(p), logit, rtol=1e-14)
  with np.errstate(all="raise"):
    ends = np.array([-np.inf, np.inf])
    assert numerics.sigmoid(ends).tolist() == [0, 1]
    assert numerics.logit(np.array([0.0, 1.0])).tolist() == [-np.inf, np.inf]
    assert numerics.log(np.array(0.0)) == -np.inf


def test_safe_divide_divides_and_is_zero_over_zero():
  with np.errstate(all="raise"):
    value = numerics.safe_divide(np.array([6.0, 1.0]), np.array([3.0, 0.0]))
  assert value.tolist() == [2.0, 0.0]


def test_safe_divide_has_finite_gradients_at_zero_and_true_ones_elsewhere():
  f = lambda a, b: numerics.safe_divide(a, b)
  assert jax.grad(f, (0, 1))(2.0, 0.0) == (0.0, 0.0)
  assert jax.grad(f, (0, 1))(2.0, 4.0) == (0.25, -0.125)


@pytest.mark.parametrize("z", [-6.0, -0.1, 1e-9, 0.3, 4.0])
@pytest.mark.parametrize("nodes", [[0.0], [0.0, -1.3], [0.0, -0.4, -2.1, 1.0]])
def test_exponential_weights_are_integrals_of_the_lagrange_basis(nodes, z):
  exact = []
  for k, node in enumerate(nodes):
    others = nodes[:k] + nodes[k + 1 :]

    def integrand(u, node=node, others=others):
      basis = mpmath.fprod([(u - o) / (node - mpmath.mpf(o)) for o in others])
      return mpmath.exp(z * (1 - u)) * basis

    with mpmath.workdps(25):
      exact.append(float(mpmath.quad(integrand, [0, 1])))
  weights = numerics.exponential_weights(np.array(nodes), z)
  np.testing.assert_allclose(weights, exact, atol=1e-13 * np.abs(exact).max())


def test_vandermonde_weights_are_simpson_and_adams_bashforth():
  moments = 1 / np.arange(1, 4)  # of the Lebesgue measure on [0, 1]
  np.testing.assert_allclose(
    numerics.vandermonde_weights(np.array([0, 0.5, 1]), moments),
    np.array([1, 4, 1]) / 6,
    rtol=1e-14,
  )
  np.testing.assert_allclose(
    numerics.vandermonde_weights(np.array([0, -1, -2]), moments),
    np.array([23, -16, 5]) / 12,
    rtol=1e-14,
  )


def test_lagrange_basis_reproduces_polynomials_below_its_degree():
  nodes = [0.3, -1.0, 2.0, 0.9]
  np.testing.assert_allclose(numerics.lagrange(nodes, nodes), np.eye(4))
  x = np.linspace(-2, 3, 7).reshape(7, 1)
  basis = numerics.lagrange(nodes, x)
  assert basis.shape == (4, 7, 1)
  for degree in range(4):
    mix = np.tensordot(np.power(nodes, degree), basis, 1)
    np.testing.assert_allclose(mix, x**degree, atol=1e-12)
  assert numerics.lagrange([5.0], x).tolist() == np.ones((1, 7, 1)).tolist()


def test_gauss_legendre_is_exact_to_degree_2n_minus_1_and_no_further():
  integral = lambda p, n: numerics.gauss_legendre(lambda x: x**p, 0.5, 2.0, n)
  exact = lambda p: (2.0 ** (p + 1) - 0.5 ** (p + 1)) / (p + 1)
  assert integral(5, 3) == pytest.approx(exact(5), rel=1e-14)
  assert abs(integral(6, 3) / exact(6) - 1) > 1e-6


def test_the_points_of_a_quadrature_are_computed_once(monkeypatch):
  leggauss, asked = np.polynomial.legendre.leggauss, []

  def counted(n):
    asked.append(n)
    return leggauss(n)

  monkeypatch.setattr(np.polynomial.legendre, "leggauss", counted)
  numerics._legendre.cache_clear()
  for end in (1.0, 2.0, 3.0):
    numerics.gauss_legendre(np.exp, 0.0, end, 7)
  assert asked == [7]
  with pytest.raises(ValueError, match="read-only"):
    numerics._legendre(7)[0][0] = 0.0


def test_gauss_legendre_changes_sign_with_its_ends_and_takes_vectors():
  f = lambda x: np.stack([np.exp(x), np.sin(x)])
  forth = numerics.gauss_legendre(f, 0.0, 1.0)
  np.testing.assert_allclose(forth, [np.e - 1, 1 - np.cos(1)], rtol=1e-14)
  np.testing.assert_allclose(numerics.gauss_legendre(f, 1.0, 0.0), -forth)


def test_invert_decreasing_is_the_inverse_and_stops_at_the_ends():
  f = lambda x: -numerics.log(x)
  x = np.array([1e-6, 1e-3, 0.5, 3.9])
  found = numerics.invert_decreasing(f, f(x), 0.0, 4.0)
  np.testing.assert_allclose(found, x, rtol=1e-12)
  ends = numerics.invert_decreasing(f, np.array([np.inf, -9.0]), 0.0, 4.0)
  np.testing.assert_allclose(ends, [0.0, 4.0], atol=1e-15)
  traced = jax.jit(lambda v: numerics.invert_decreasing(f, v, 0.0, 4.0))
  np.testing.assert_allclose(traced(jnp.log(1 / x)), x, rtol=2e-6)


def test_invert_decreasing_has_the_derivative_of_the_inverse_inside():
  inverse = lambda v: numerics.invert_decreasing(
    lambda x: -jnp.log(x), v, 0.0, 4.0
  )
  for value, slope in [(0.3, -np.exp(-0.3)), (-9.0, 0.0), (jnp.inf, 0.0)]:
    assert float(jax.grad(inverse)(value)) == pytest.approx(slope, rel=1e-6)


def test_host_values_are_float64_and_jax_arrays_keep_their_dtype(x64):
  for f in (lambda z: numerics.phi(2, z), numerics.log1mexp):
    assert f(np.float32(0.3)).dtype == np.float64
    assert f(0.3).dtype == np.float64
    assert f(jnp.float32(0.3)).dtype == jnp.float32
  assert numerics.namespace(1.0, jnp.ones(())) is jnp
  assert numerics.namespace(1.0, np.ones(())) is np
