r"""USF: a solver schedule, and its table.

Every exponential-integrator step from s to t, h = lambda_t - lambda_s, is

  x0:   x_t = (sigma_t / sigma_s) x_s
              + alpha_t sum_{k<n} h^{k+1} phi_{k+1}(-h) c_k D^k x0(lambda_s)
  eps:  x_t = (alpha_t / alpha_s) x_s
              - sigma_t sum_{k<n} h^{k+1} phi_{k+1}(h) c_k D^k eps(lambda_s)

with a Taylor order n, derivatives D^k estimated by differences of m earlier
calls, and a scale c_1 of the first of them (c_k = 1 otherwise). All of it may
change from step to step:

  sum_j a_j d_j^q / q! = [q = k],  q = 1..m,  d_j = lambda_j - lambda_s,
  D^k F = sum_j a_j (F_j - F_s).

A corrector repeats the step once the call at its end is known, with that call
as one more node: "pseudo" goes on with the call as it is, "implicit" calls
again at the corrected point.

Whatever is chosen, every state is a linear combination of x_T and of the x0 of
all calls. `table` walks the schedule on such combinations instead of samples
and reads the table off: its rows remember every call (K = n).

| solver         | order | kind | scale | corrector |
|----------------|-------|------|-------|-----------|
| DDIM           | 1     | any  |       |           |
| DPM-Solver++2M | 2     | x0   | "bh2" |           |
| DPM-Solver++3M | 3     | x0   |       |           |
| UniPC-2        | 2     | x0   | "bh2" | "pseudo"  |

Reference: Liu et al. (2024), https://arxiv.org/abs/2312.07243, section 3.
"""

import dataclasses
import math

import numpy as np

from jaxdiff import checks
from jaxdiff import tableau as tables
from jaxdiff.numerics import phi
from jaxdiff.processes import GaussianProcess
from jaxdiff.tableau import Tableau

KINDS = ("x0", "eps")
CORRECTORS = ("none", "pseudo", "implicit")
FIRSTS = ("network", "zero")
SCALES = ("none", "bh1", "bh2", "plus", "minus")
SOLVERS = ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3")


@dataclasses.dataclass(frozen=True)
class StepChoice:
  """How one step is taken.

  Attributes:
    order: Taylor order n, 1..4.
    kind: "x0" or "eps", what is expanded.
    nodes: m of the first derivative, 1..n - 1; None is n - 1, the others always
      take n - 1.
    scale: c_1: "none" (1), with z = -h for x0 and h for eps "bh1"
      (z^2 / 2 / (e^z - 1 - z)), "bh2" (z (e^z - 1) / 2 / (e^z - 1 - z)), "plus"
      and "minus" (1 +- (e^z - 1) / 2); or a number a, c_1 = 1 + a h.
    corrector: "none", "pseudo" (no further call) or "implicit" (one more).
    corrector_scale: c_1 of the corrector.
  """

  order: int = 1
  kind: str = "x0"
  nodes: int | None = None
  scale: str | float = "none"
  corrector: str = "none"
  corrector_scale: str | float = "none"


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A solver: the log-SNRs of its grid and how each step is taken.

  Attributes:
    lam: S + 1 values of log(alpha / sigma), rising.
    steps: S choices.
    first: "network", or "zero": x0 = 0 is taken for granted at lam[0], which
      saves the first call.
  """

  lam: tuple[float, ...]
  steps: tuple[StepChoice, ...]
  first: str = "network"


@checks.door
def nfe(schedule: Schedule) -> int:
  """Returns the number of network calls."""
  implicit = sum(step.corrector == "implicit" for step in schedule.steps)
  return len(schedule.steps) - (schedule.first != "network") + implicit


@checks.door
def validate(schedule: Schedule) -> Schedule:
  """Returns the schedule once its rules are checked.

  Raises:
    ValueError: naming the step and the rule that it breaks.
  """
  lam, steps = schedule.lam, schedule.steps
  if len(lam) != len(steps) + 1 or not steps:
    raise ValueError(
      f"{len(steps)} steps need {len(steps) + 1} log-SNRs and at least one"
      f" step, got {len(lam)} log-SNRs"
    )
  falling = ~(np.diff(lam) > 0)
  if falling.any() or not np.isfinite(lam).all():
    i = int(falling.argmax())
    raise ValueError(
      "the log-SNRs of a schedule are finite and rise from noise to data, but"
      f" step {i} goes from {lam[i]:.6g} to {lam[i + 1]:.6g}; sort them,"
      " drop repeated ones, and begin where alpha > 0"
    )
  checks.one_of(schedule.first, FIRSTS, "schedule.first")
  for i, step in enumerate(steps):
    where = f"step {i}: "
    checks.one_of(step.kind, KINDS, f"{where}kind")
    checks.one_of(step.corrector, CORRECTORS, f"{where}corrector")
    for name in ("scale", "corrector_scale"):
      if isinstance(getattr(step, name), str):
        checks.one_of(getattr(step, name), SCALES, f"{where}{name}")
    if not 1 <= step.order <= min(4, i + 1):
      raise ValueError(
        f"{where}order {step.order} is outside of 1..{min(4, i + 1)}: an order"
        " n needs n calls, of which one a step is made"
      )
    if step.nodes is not None and not 1 <= step.nodes <= max(1, step.order - 1):
      raise ValueError(
        f"{where}{step.nodes} nodes for a derivative at order {step.order};"
        f" 1..{max(1, step.order - 1)} are allowed"
      )
  if steps[-1].corrector != "none":
    raise ValueError(
      f"step {len(steps) - 1}: the last step has no corrector, since the"
      " network is not called at its end"
    )
  if schedule.first == "zero":
    _check_guess(steps)
  if nfe(schedule) < 1:
    raise ValueError(
      "a schedule without a network call: its only step takes x0 = 0 for"
      ' granted; use first="network", or more steps'
    )
  return schedule


def _check_guess(steps):
  """Refuses what would need the noise that a guess of x0 leaves."""
  if steps[0].corrector != "none":
    raise ValueError(
      'step 0: first="zero" leaves nothing to correct; use "none" there'
    )
  for i, step in enumerate(steps[1:], 1):
    if step.order > i and step.kind == "eps":
      raise ValueError(
        f"step {i}: eps of the first node is no output of the network with"
        ' first="zero"; use kind="x0" there or a lower order'
      )


@checks.door
def table(schedule: Schedule, process: GaussianProcess) -> Tableau:
  """Returns the table of a schedule: nfe(schedule) rows and as much memory.

  With first="zero" it starts at lam[1], from pure noise of that level: give
  `sample` a shape and the process, or scale your noise by sigma(t[0]) /
  sigma(t_max).

  Args:
    schedule: the choices.
    process: the forward process.

  Raises:
    ValueError: for a broken rule, or log-SNRs that the process does not have.
  """
  validate(schedule)
  lam = np.asarray(schedule.lam, np.float64)
  ends = process.log_snr(np.asarray([process.t_max, process.t_min]))
  if lam[0] < ends[0] - 1e-9 or lam[-1] > ends[1] + 1e-9:
    raise ValueError(
      f"the schedule runs over the log-SNRs {lam[0]:.6g}..{lam[-1]:.6g}, the"
      f" process over {ends[0]:.6g}..{ends[1]:.6g}; choose within those"
    )
  times = np.array(process.log_snr_inverse(lam))
  for end, lam_end in zip((process.t_max, process.t_min), ends):
    times[abs(lam - lam_end) < 1e-9] = end  # not up to a round trip
  alpha, sigma = process.alpha(times), process.sigma(times)
  calls = nfe(schedule)
  unit = np.eye(calls + 1)  # x_T, and the x0 of every call
  asked, states = [], []  # of every call: its time, where it is made

  def call(y, i):
    asked.append(times[i])
    states.append(y)
    answer = unit[len(asked)]
    return answer, (y - alpha[i] * answer) / sigma[i]

  begin, last = int(schedule.first == "zero"), len(schedule.steps) - 1
  y = unit[0]
  outputs = [(0.0 * y, None)] * begin + [call(y, begin)]  # one for each node
  for i in range(begin, last + 1):
    step = schedule.steps[i]
    advance = lambda corrects, y=y, i=i, step=step: _step(
      step, i, y, outputs, alpha, sigma, lam, corrects
    )
    end = advance(False)
    if i < last:
      outputs.append(call(end, i + 1))
    if step.corrector != "none":
      end = advance(True)
      if step.corrector == "implicit":
        outputs[-1] = call(end, i + 1)
    y = end
  return tables.under(_rows(asked, states, y), process)


def _step(step, i, y, outputs, alpha, sigma, lam, corrects):
  """Returns the combination that step i ends at, f64[calls + 1]."""
  h = lam[i + 1] - lam[i]
  output = [pair[KINDS.index(step.kind)] for pair in outputs]
  if step.kind == "x0":
    z, carry, sign = -h, sigma[i + 1] / sigma[i], alpha[i + 1]
  else:
    z, carry, sign = h, alpha[i + 1] / alpha[i], -sigma[i + 1]
  past = list(range(i - 1, i - step.order, -1))  # the newest first
  nodes = [i + 1, *past] if corrects else past
  order = len(nodes) + 1
  scale = step.corrector_scale if corrects else step.scale
  total = h * phi(1, z) * output[i]
  for k in range(1, order):
    m = len(nodes)
    if k == 1 and step.nodes is not None and not corrects:
      m = min(step.nodes, m)
    a = derivative([lam[j] - lam[i] for j in nodes[:m]], k)
    slope = sum(w * (output[j] - output[i]) for w, j in zip(a, nodes))
    c = first_scale(scale, h, z) if k == 1 else 1.0
    total = total + h ** (k + 1) * phi(k + 1, z) * c * slope
  return carry * y + sign * total


@checks.door
def from_solver(
  name: str, process: GaussianProcess, grid: np.ndarray
) -> Schedule:
  """Returns a well-known solver as a schedule.

  Args:
    name: "ddim", "dpmpp_2m", "dpmpp_3m", "unipc_2" or "unipc_3".
    process: the forward process.
    grid: f64[S + 1], falling, where alpha and sigma are positive.
  """
  checks.one_of(name, SOLVERS, "the solver")
  grid = checks.falling_grid(grid, process.t_min, process.t_max, process.t_zero)
  n = len(grid) - 1
  steps = []
  for i in range(n):
    if name in ("ddim", "dpmpp_2m", "dpmpp_3m"):
      highest = {"ddim": 1, "dpmpp_2m": 2, "dpmpp_3m": 3}[name]
      scale = "bh2" if name == "dpmpp_2m" else "none"
      steps.append(StepChoice(min(highest, i + 1), scale=scale))
      continue
    order = min(int(name[-1]), i + 1, n - i)  # lowered in the last steps too
    steps.append(
      StepChoice(
        order,
        scale="bh2" if order == 2 else "none",  # a single node: rho = 1/2
        corrector="none" if i == n - 1 else "pseudo",
        corrector_scale="bh2" if order == 1 else "none",
      )
    )
  lam = tuple(float(v) for v in process.log_snr(grid))
  return validate(Schedule(lam, tuple(steps)))


@checks.door
def derivative(offsets: np.ndarray, k: int) -> np.ndarray:
  """Returns a_j with sum_j a_j d_j^q / q! = [q = k] for q = 1..m, f64[m].

  sum_j a_j (F(d_j) - F(0)) is then the k-th derivative of F at 0, exactly for
  polynomials of degree m.

  Args:
    offsets: f64[m], d_j, pairwise different and not 0.
    k: 1..m.
  """
  d = np.asarray(offsets, np.float64)
  size = abs(d).max()  # powers of order 1 are well conditioned
  q = np.arange(1, len(d) + 1)
  right = np.zeros(len(d))
  right[k - 1] = math.factorial(k) / size**k
  return np.linalg.solve((d / size)[None, :] ** q[:, None], right)


@checks.door
def first_scale(scale: str | float, h: float, z: float) -> float:
  """Returns c_1; 1 + O(h).

  Args:
    scale: as in `StepChoice`.
    h: the step in lambda.
    z: -h for x0, h for eps.
  """
  if not isinstance(scale, str):
    return 1.0 + scale * h
  if scale == "bh1":
    return 0.5 / float(phi(2, z))
  if scale == "bh2":
    return 0.5 * float(phi(1, z) / phi(2, z))
  return 1.0 + {"none": 0.0, "plus": 0.5, "minus": -0.5}[scale] * np.expm1(z)


def _rows(asked, states, end):
  """Returns the table that makes these combinations.

  Row i asks at its y and, once answered, forms the next of `states`; x_T is
  kept in the anchor until the last row puts the result there.
  """
  calls = len(asked)
  state = np.zeros((calls, 2, 2))
  history = np.zeros((calls, 2, calls))
  for i, y in enumerate([*states[1:], end]):
    state[i, 0, 1] = y[0]
    history[i, 0, : i + 1] = y[1 : i + 2][::-1]  # the newest first
  state[:, 1, 1] = 1.0
  state[-1, 1] = state[-1, 0]
  history[-1, 1] = history[-1, 0]
  return tables.validate(
    Tableau(
      t=np.asarray(asked),
      output=np.broadcast_to([1.0, 0.0], (calls, 2)).copy(),
      state=state,
      history=history,
      noise=np.zeros((calls, 3)),
    )
  )
