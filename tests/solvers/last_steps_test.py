"""The last steps of other libraries, with the orders that they have there."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from tests import ROOT

PAGE = ROOT / "docs" / "choosing-a-solver.md"
(BLOCK,) = re.findall(r"```python\n(grid =.*?)```", PAGE.read_text(), re.S)
VP = jd.vp_linear()
N = 10
MODEL = jd.exact(jd.oracles.g2(), VP)


class Theirs:
  """Their loop: model calls by index, sigma = 0 at the end."""

  def __init__(self, grid):
    self.t = grid
    self.alpha, self.sigma = VP.alpha(grid), VP.sigma(grid)
    with np.errstate(divide="ignore"):
      self.lam = np.log(self.alpha) - np.log(self.sigma)
    self.x0 = []

  def ask(self, x, i):
    self.x0.append(np.asarray(MODEL(jnp.asarray(x), self.t[i]).x0))

  def dpm(self, x, p):
    """DPM-Solver++ multistep, midpoint, with the orders of its scheduler."""
    for i in range(N):
      self.ask(x, i)
      a, s, lam = self.alpha, self.sigma, self.lam
      h = lam[i + 1] - lam[i]
      e = np.expm1(-h)
      m = self.x0
      first = i == N - 1  # final_sigmas_type = "zero"
      second = i == N - 2  # and lower_order_final, N < 15
      base = s[i + 1] / s[i] * x
      if p == 1 or i < 1 or first:
        x = base - a[i + 1] * e * m[i]
        continue
      r0 = (lam[i] - lam[i - 1]) / h
      d1 = (m[i] - m[i - 1]) / r0
      if p == 2 or i < 2 or second:
        x = base - a[i + 1] * e * (m[i] + 0.5 * d1)
        continue
      r1 = (lam[i - 1] - lam[i - 2]) / h
      d11 = (m[i - 1] - m[i - 2]) / r1
      slope = d1 + r0 / (r0 + r1) * (d1 - d11)
      bend = (d1 - d11) / (r0 + r1)
      x = (
        base
        - a[i + 1] * e * m[i]
        + a[i + 1] * (e / h + 1.0) * slope
        - a[i + 1] * ((e + h) / h**2 - 0.5) * bend
      )
    return x

  def unipc(self, x, p):
    """UniPC of its scheduler: bh2, x0, lower_order_final."""
    last, order = None, None
    for i in range(N):
      self.ask(x, i)
      if i:
        x = self._step(last, i - 1, order, corrected=True)
      order = min(p, N - i, i + 1)
      last = x
      x = self._step(x, i, order, corrected=False)
    return x

  def _step(self, x, i, order, corrected):
    a, s, lam, m = self.alpha, self.sigma, self.lam, self.x0
    h = lam[i + 1] - lam[i]
    hh = -h
    b_h = np.expm1(hh)
    rk = [(lam[i - j] - lam[i]) / h for j in range(1, order)]
    d1 = [(m[i - j] - m[i]) / r for j, r in zip(range(1, order), rk)]
    rk = np.asarray([*rk, 1.0])
    factorial, phi = 1, b_h / hh - 1
    rows, right = [], []
    for j in range(1, order + 1):
      rows.append(rk ** (j - 1))
      right.append(phi * factorial / b_h)
      factorial *= j + 1
      phi = phi / hh - 1 / factorial
    rows, right = np.stack(rows), np.asarray(right)
    base = s[i + 1] / s[i] * x - a[i + 1] * b_h * m[i]
    if not corrected:
      if order == 1:
        return base
      rho = np.asarray([0.5])
      if order > 2:
        rho = np.linalg.solve(rows[:-1, :-1], right[:-1])
      return base - a[i + 1] * b_h * sum(r * d for r, d in zip(rho, d1))
    rho = np.asarray([0.5]) if order == 1 else np.linalg.solve(rows, right)
    d1 = [*d1, m[i + 1] - m[i]]
    return base - a[i + 1] * b_h * sum(r * d for r, d in zip(rho, d1))


@pytest.mark.parametrize(
  ("name", "p", "wrong"),
  [
    ("dpm_2", 2, dict(build=jd.dpmpp_2m)),
    ("dpm_3", 3, dict(build=jd.dpmpp_3m, published=True)),
    ("unipc_2", 2, dict(build=jd.unipc, order=2)),
    ("unipc_3", 3, dict(build=jd.unipc, order=3)),
  ],
)
def test_the_page_says_the_orders_of_their_defaults(name, p, wrong, x64):
  scope = dict(jd=jd, process=VP, n=N)
  exec(compile(BLOCK, PAGE.name, "exec"), scope)
  x = np.asarray(VP.prior(jax.random.key(0), (64, 2), dtype=jnp.float64))
  with np.errstate(invalid="ignore"):
    theirs = getattr(Theirs(scope["grid"]), name[:-2].replace("_", ""))(x, p)
  run = lambda table: np.asarray(
    jd.sample(jax.random.key(0), MODEL, table, jnp.asarray(x))
  )
  off = lambda y: abs(y - theirs).max() / np.sqrt(np.mean(theirs**2))
  assert off(run(scope[name])) < 1e-12
  # the same option under the same name is another method
  build = wrong.pop("build")
  lowered = build(VP, scope["grid"], lower_order_final=True, **wrong)
  assert off(run(lowered)) > 1e-3


def test_orders_are_those_of_the_list():
  grid = jd.grids.log_snr(VP, 6)
  used = lambda table: [
    np.flatnonzero(row)[-1] + 1 for row in table.history[:, 0]
  ]
  orders = [1, 2, 1, 3, 3, 2]
  for build in (jd.dpmpp_3m, jd.solvers.dpm_solver_3m):
    for published in (False, True):
      assert used(build(VP, grid, order=orders, published=published)) == orders
  listed = jd.unipc(VP, grid, order=[1, 2, 3, 3, 2, 1])
  chex.assert_trees_all_equal(listed, jd.unipc(VP, grid, order=3))
  predictor = jd.unipc(VP, grid, order=orders, corrector=False)
  assert used(predictor) == orders
  for build in (jd.unipc, jd.dpmpp_3m):
    with pytest.raises(ValueError, match="step 0 can have the orders 1..1"):
      build(VP, grid, order=[2] * 6)
    with pytest.raises(ValueError, match="given 5 orders for 6 steps"):
      build(VP, grid, order=[1] * 5)
