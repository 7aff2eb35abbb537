"""Solvers that people bring by name, step by step against the public updates.

Each update is written here as its library writes it, a loop over sigmas that
asks for the denoised sample, in float64 on a mixture of two Gaussians. For EDM
sigma is the noise level; for a flow x = (1 - sigma) x0 + sigma eps.
"""

import numpy as np
import pytest
import scipy.integrate

from jaxdiff import grids
from jaxdiff import processes
from jaxdiff import solvers

EDM, FLOW = processes.edm(), processes.rectified_flow()
VP = processes.vp_discrete(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
MEANS, SPREADS = np.asarray([1.0, -0.7]), np.asarray([0.5, 0.9])
START = np.linspace(-2.0, 2.0, 8)
Z = np.random.default_rng(0).normal(size=(40, 8))  # one for each step


def answer(x, alpha, sigma):
  """The exact (x0, eps) of two equal Gaussians."""
  square = alpha**2 * SPREADS**2 + sigma**2
  offset = x[:, None] - alpha * MEANS
  log = -0.5 * (offset**2 / square + np.log(square))
  weight = np.exp(log - log.max(1, keepdims=True))
  weight /= weight.sum(1, keepdims=True)
  x0 = (weight * (MEANS + alpha * SPREADS**2 * offset / square)).sum(1)
  return x0, sigma * (weight * offset / square).sum(1)


def denoised(process):
  """The public libraries' model: (x, sigma) -> x0."""
  alpha = (lambda s: 1.0 - s) if process == FLOW else (lambda s: 1.0)
  return lambda x, sigma: answer(x, alpha(sigma), sigma)[0]


def play(table, process):
  """Walks a table; the k-th row that draws noise takes the k-th of Z."""
  y = a = process.sigma(table.t[0]) * START
  past, drawn = [], 0
  for t, output, state, history, noise in zip(*table, strict=True):
    past.insert(0, output @ answer(y, process.alpha(t), process.sigma(t)))
    h = np.stack(past[: history.shape[1]])
    y, a = state @ np.stack([y, a]) + history[:, : len(h)] @ h
    if noise.any():
      y, a = y + noise[1] * Z[drawn], a + noise[2] * Z[drawn]
      drawn += 1
  return a


def check(table, process, expected):
  np.testing.assert_allclose(play(table, process), expected, rtol=1e-10)


def sigmas_of(process, steps=9):
  """A grid of the process that ends without noise; sigma is t for both."""
  make = grids.karras if process == EDM else grids.shift
  return make(process, steps, to_zero=True)


both = pytest.mark.parametrize("process", [EDM, FLOW], ids=["edm", "flow"])


@both
@pytest.mark.parametrize("solver_type", ["heun", "midpoint"])
def test_res_multistep(process, solver_type):
  """Of ComfyUI, and (with the slope halved) its dpmpp_2m; t = -log(sigma)."""
  sigmas, model = sigmas_of(process), denoised(process)
  x, old = sigmas[0] * START, None
  for i in range(len(sigmas) - 1):
    d = model(x, sigmas[i])
    if sigmas[i + 1] == 0:
      x = d
    elif old is None:
      x = x + (x - d) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    else:
      h = np.log(sigmas[i] / sigmas[i + 1])
      last = np.log(sigmas[i - 1] / sigmas[i])
      phi_1 = -np.expm1(-h) / h
      phi_2 = (phi_1 - 1.0) / -h
      c = -last / h
      b = phi_2 / c if solver_type == "heun" else phi_1 / (2.0 * c)
      x = np.exp(-h) * x + h * ((phi_1 - b) * d + b * old)
    old = d
  clock = "log_snr" if process == EDM else "flow"
  table = solvers.res_multistep(
    process, sigmas, clock=clock, solver_type=solver_type
  )
  check(table, process, x)
  if process == EDM:
    known = solvers.dpmpp_2m(process, sigmas, solver_type=solver_type)
    np.testing.assert_allclose(table.history, known.history, rtol=1e-13)


@both
def test_exp_heun_2_x0(process):
  """SEEDS-2 of ComfyUI without noise, with its stage at the step's end."""
  sigmas, model = sigmas_of(process)[int(process == FLOW) :], denoised(process)
  alphas = 1.0 - sigmas if process == FLOW else np.ones_like(sigmas)
  x = sigmas[0] * START
  for i in range(len(sigmas) - 1):
    d = model(x, sigmas[i])
    if sigmas[i + 1] == 0:
      x = d
      continue
    h = np.log(alphas[i + 1] / sigmas[i + 1] * sigmas[i] / alphas[i])
    keep, alpha = sigmas[i + 1] / sigmas[i], alphas[i + 1]
    late = model(keep * x - alpha * np.expm1(-h) * d, sigmas[i + 1])
    b = (np.expm1(-h) + h) / -h
    x = keep * x - alpha * ((np.expm1(-h) - b) * d + b * late)
  check(solvers.exp_heun_2_x0(process, sigmas), process, x)


@both
@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0])
def test_gradient_estimation(process, gamma):
  sigmas, model = sigmas_of(process), denoised(process)
  x, old = sigmas[0] * START, None
  for i in range(len(sigmas) - 1):
    d = (x - model(x, sigmas[i])) / sigmas[i]
    step = sigmas[i + 1] - sigmas[i]
    if sigmas[i + 1] == 0:
      x = x - sigmas[i] * d
    else:
      x = x + step * d
      if old is not None:
        x = x + (gamma - 1.0) * (d - old) * step
    old = d
  output = "eps" if process == EDM else "flow"
  table = solvers.gradient_estimation(
    process, sigmas, gamma=gamma, output=output
  )
  check(table, process, x)
  if gamma == 1.5 and process == EDM:
    known = solvers.ipndm(process, sigmas, order=2)
    np.testing.assert_allclose(table.history, known.history, rtol=1e-12)


@both
def test_heunpp2(process):
  sigmas, model = sigmas_of(process), denoised(process)
  x = sigmas[0] * START
  way = lambda x, sigma: (x - model(x, sigma)) / sigma
  for i in range(len(sigmas) - 1):
    d, step = way(x, sigmas[i]), sigmas[i + 1] - sigmas[i]
    if sigmas[i + 1] == 0:
      x = x + d * step
      continue
    at = x + d * step
    d_2 = way(at, sigmas[i + 1])
    if sigmas[i + 2] == 0:
      w_2 = sigmas[i + 1] / (2.0 * sigmas[0])
      x = x + ((1.0 - w_2) * d + w_2 * d_2) * step
      continue
    at = at + d_2 * (sigmas[i + 2] - sigmas[i + 1])
    d_3 = way(at, sigmas[i + 2])
    w_2, w_3 = sigmas[i + 1 : i + 3] / (3.0 * sigmas[0])
    x = x + ((1.0 - w_2 - w_3) * d + w_2 * d_2 + w_3 * d_3) * step
  output = "eps" if process == EDM else "flow"
  check(solvers.heunpp2(process, sigmas, output=output), process, x)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_euler_ancestral_rf(eta):
  sigmas, model = sigmas_of(FLOW), denoised(FLOW)
  x = sigmas[0] * START
  for i in range(len(sigmas) - 1):
    d, s = model(x, sigmas[i]), sigmas[i + 1]
    if s == 0:
      x = d
      continue
    down = s * (1.0 + (s / sigmas[i] - 1.0) * eta)
    scale = (1.0 - s) / (1.0 - down)
    x = down / sigmas[i] * x + (1.0 - down / sigmas[i]) * d
    if eta:
      x = scale * x + np.sqrt(s**2 - down**2 * scale**2) * Z[i]
  table = solvers.euler_ancestral_rf(FLOW, sigmas, eta=eta)
  check(table, FLOW, x)
  if not eta:
    check(solvers.ddim(FLOW, sigmas), FLOW, x)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_dpmpp_2s_ancestral_rf(eta):
  sigmas, model = sigmas_of(FLOW)[1:], denoised(FLOW)  # below sigma = 1
  lam = lambda s: np.log((1.0 - s) / s)
  x = sigmas[0] * START
  for i in range(len(sigmas) - 1):
    d, s = model(x, sigmas[i]), sigmas[i + 1]
    if s == 0:
      x = d
      continue
    down = s * (1.0 + (s / sigmas[i] - 1.0) * eta)
    scale = (1.0 - s) / (1.0 - down)
    middle = 1.0 / (np.exp((lam(sigmas[i]) + lam(down)) / 2.0) + 1.0)
    keep = middle / sigmas[i]
    d = model(keep * x + (1.0 - keep) * d, middle)
    x = down / sigmas[i] * x + (1.0 - down / sigmas[i]) * d
    if eta:
      x = scale * x + np.sqrt(s**2 - down**2 * scale**2) * Z[i]
  table = solvers.dpmpp_2s_ancestral(FLOW, sigmas, eta=eta, down="flow")
  check(table, FLOW, x)


def adams(lam, nodes, start, end, tau):
  """(1 + tau^2) int e^{-(1 + tau^2) (end - l)} L_k(l) dl, by quadrature."""
  c, found = 1.0 + tau**2, []
  for k in range(len(nodes)):
    others = np.delete(lam[nodes], k)

    def f(u, k=k, others=others):
      basis = np.prod((u - others) / (lam[nodes[k]] - others))
      return c * np.exp(-c * (end - u)) * basis

    found.append(
      scipy.integrate.quad(f, start, end, epsabs=1e-14, epsrel=1e-13)[0]
    )
  return np.asarray(found)


@both
@pytest.mark.parametrize(("tau", "order"), [(0.0, 3), (1.0, 2), (0.6, 3)])
def test_sa_solver_pece(process, tau, order):
  """Predict, evaluate, correct with the same noise, evaluate; to sigma > 0."""
  times = sigmas_of(process, 7)[1:-1]
  model = denoised(process)
  alpha, sigma = process.alpha(times), process.sigma(times)
  lam = np.log(alpha / sigma)
  x = ahead = sigma[0] * START
  outputs, noise = [], 0.0

  def take(x, i, nodes):
    """The step i -> i + 1 with the answers at `nodes`, without noise."""
    h = lam[i + 1] - lam[i]
    b = alpha[i + 1] * adams(lam, nodes, lam[i], lam[i + 1], tau)
    mixed = sum(w * outputs[k] for w, k in zip(b, nodes, strict=True))
    return sigma[i + 1] / sigma[i] * np.exp(-(tau**2) * h) * x + mixed

  for i in range(len(times) - 1):
    outputs.append(model(ahead, times[i]))
    if i:
      nodes = list(range(i, max(-1, i - order - 1), -1))
      x = take(x, i - 1, nodes) + noise
      outputs[-1] = model(x, times[i])
    h = lam[i + 1] - lam[i]
    noise = sigma[i + 1] * np.sqrt(-np.expm1(-2.0 * tau**2 * h)) * Z[i]
    nodes = list(range(i, max(-1, i - order), -1))
    ahead = take(x, i, nodes) + noise
  table = solvers.sa_solver(
    process,
    times,
    predictor=order,
    tau=tau,
    pece=True,
    lower_order_final=False,
  )
  assert table.nfe == 2 * (len(times) - 1) - 1
  check(table, process, ahead)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd_and_lcm(eta):
  """diffusers' TCDScheduler in exact times; with eta = 1 it is LCM's."""
  times = grids.spaced(VP, 4, to_zero=True)
  x = VP.sigma(times[0]) * START
  for i in range(4):
    t, to = times[i], times[i + 1]
    x0, eps = answer(x, VP.alpha(t), VP.sigma(t))
    s = (1.0 - eta) * to
    a_s, a_to = VP.alpha(s) ** 2, VP.alpha(to) ** 2
    x = np.sqrt(a_s) * x0 + np.sqrt(1.0 - a_s) * eps
    if eta and i < 3:
      x = np.sqrt(a_to / a_s) * x + np.sqrt(1.0 - a_to / a_s) * Z[i]
  table = solvers.gamma_sampling(VP, times, gamma=eta, jump="time")
  check(table, VP, x)
  if eta == 1.0:
    check(solvers.gamma_sampling(VP, times), VP, x)


def test_mistakes_are_told():
  grid = grids.karras(EDM, 4)
  for build, message in (
    (lambda: solvers.res_multistep(EDM, grid, clock="t"), "'flow'; got 't'"),
    (
      lambda: solvers.gradient_estimation(EDM, grid, output="v"),
      "'flow'; got 'v'",
    ),
    (lambda: solvers.heunpp2(EDM, grid, output="v"), "'flow'; got 'v'"),
    (lambda: solvers.euler_ancestral_rf(EDM, grid, eta=1.5), "to 1; got eta"),
    (
      lambda: solvers.dpmpp_2s_ancestral(EDM, grid, down="up"),
      "'flow'; got 'up'",
    ),
    (
      lambda: solvers.sa_solver(EDM, grid, pece=True, corrector=0),
      "drop one of them",
    ),
    (lambda: solvers.gamma_sampling(EDM, grid, jump="t"), "'time'; got 't'"),
  ):
    with pytest.raises(ValueError, match=message):
      build()
