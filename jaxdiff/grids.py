r"""Grids: times of network calls, f64[n + 1], falling from noise to data.

Every grid begins at the process's t_max (or at a given `start`, as in image to
image) and takes n steps. By default it ends at t_min. With `to_zero=True` its
last step goes from t_min to the time without noise, so that n steps still are n
steps. A noise level is sigma / alpha; all but `uniform` and `quadratic` are
defined in it and hence the same for every process of one range.

| function            | uniform in                                           |
|---------------------|------------------------------------------------------|
| `uniform`           | t                                                    |
| `quadratic`         | sqrt(t)                                              |
| `log_snr`           | log(alpha / sigma)                                   |
| `karras`            | (sigma / alpha)^(1 / rho)                            |
| `cosine`            | the time of the cosine process, arctan(sigma / alpha)|
| `vp_quadratic`      | sqrt(t) of the VP-linear process of the same range   |
| `power_log`         | log(t / t_min)^(1 / power)                           |
| `angular`           | theta + c log(theta + d), theta = arctan(sigma/alpha)|
| `align_your_steps`  | a published table, interpolated                      |

`uniform` and `quadratic` take the time of another process as `clock`.
`angular` belongs to `angular_adams`; `vp_quadratic` is the grid that few calls
of most other solvers like best.
"""

from types import MappingProxyType
from typing import Any

import numpy as np

from jaxdiff import checks
from jaxdiff.processes import GaussianProcess
from jaxdiff.processes import vp_cosine
from jaxdiff.processes import vp_linear_covering

# Sabour et al. (2024), "Align Your Steps", https://arxiv.org/abs/2404.14507:
# noise levels of the ten-step schedules published with the paper.
_ALIGN_YOUR_STEPS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399,
             0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234,
             0.113, 0.029),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173,
            0.034, 0.002),
}  # fmt: skip


@checks.door(host=True)
def uniform(
  process: GaussianProcess,
  n: int,
  *,
  clock: GaussianProcess | None = None,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  """Returns n + 1 times with equal steps in t, or in the time of `clock`."""
  return polynomial(process, n, 1.0, clock=clock, start=start, to_zero=to_zero)


@checks.door(host=True)
def quadratic(
  process: GaussianProcess,
  n: int,
  *,
  clock: GaussianProcess | None = None,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  """Returns n + 1 times with equal steps in sqrt(t), or in `clock`'s."""
  return polynomial(process, n, 2.0, clock=clock, start=start, to_zero=to_zero)


@checks.door(host=True)
def polynomial(
  process: GaussianProcess,
  n: int,
  power: float,
  *,
  clock: GaussianProcess | None = None,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  """Returns n + 1 times with equal steps in t^(1 / power).

  Args:
    process: whose times are returned.
    n: number of steps.
    power: 1 is uniform, 2 quadratic.
    clock: the process in whose time the steps are equal; matched to `process`
      by noise level. By default the process itself.
    start: first time (of `process`); t_max by default.
    to_zero: whether the last step ends at sigma = 0.
  """
  if not power > 0:
    raise ValueError(f"power must be positive, got {power}")
  clock = process if clock is None else clock

  def places(first, last, steps):
    ends = np.asarray([first, last])
    high, low = _translate(process, clock, ends)
    if not np.isfinite(high):
      high, low = _translate(process, clock, _with_signal(process, ends))
    if not (low < high and (low >= 0 or power == 1)):
      raise ValueError(
        f"the clock gives the times {high:.4g} and {low:.4g} to the ends of"
        " the grid; they must fall over the process's noise levels and, but"
        " for uniform steps, not be negative (vp_linear_covering makes such a"
        " clock)"
      )
    root = np.linspace(high ** (1 / power), low ** (1 / power), steps + 1)
    return _translate(clock, process, root**power)

  return _grid(process, n, start, to_zero, places)


@checks.door(host=True)
def log_snr(
  process: GaussianProcess,
  n: int,
  *,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  """Returns n + 1 times with equal steps in log(alpha / sigma)."""

  def places(first, last, steps):
    ends = process.log_snr(_with_signal(process, [first, last]))
    return process.log_snr_inverse(np.linspace(*ends, steps + 1))

  return _grid(process, n, start, to_zero, places)


@checks.door(host=True)
def karras(
  process: GaussianProcess,
  n: int,
  *,
  rho: float = 7.0,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  """Returns n + 1 times with equal steps in (sigma / alpha)^(1 / rho).

  Karras et al. (2022), eq. 5. Their N steps with the last into sigma = 0 are
  `karras(process, N, to_zero=True)`.
  """
  if not rho > 0:
    raise ValueError(
      f"rho must be positive, got {rho}; the limit of large rho is log_snr"
    )

  def places(first, last, steps):
    ends = process.noise_level(_with_signal(process, [first, last]))
    return process.time_at(np.linspace(*ends ** (1 / rho), steps + 1) ** rho)

  return _grid(process, n, start, to_zero, places)


@checks.door(host=True)
def power_log(
  process: GaussianProcess,
  n: int,
  *,
  power: float = 0.3,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  """Returns n + 1 times t = t_min (t_max / t_min)^(u^power), u uniform.

  In the time sqrt(eta) of `processes.resshift` these are the steps of ResShift
  (Yue et al. 2023, the noise schedule of section 2.2); their T calls, the last
  of which answers with the image, are `power_log(process, T, to_zero=True)`.

  Args:
    process: whose times are returned; its t_min is positive.
    n: number of steps.
    power: p of the paper: 1 is geometric, smaller dwells at the noisy end.
    start: first time; t_max by default.
    to_zero: whether the last step ends at sigma = 0.
  """
  if not power > 0:
    raise ValueError(f"power must be positive, got {power}; 1 is geometric")

  def places(first, last, steps):
    if not last > 0:
      raise ValueError(
        f"the grid is geometric in t and cannot end at t_min = {last:.6g};"
        " give the process a t_min above 0"
      )
    u = np.linspace(1.0, 0.0, steps + 1)
    return last * (first / last) ** (u**power)

  return _grid(process, n, start, to_zero, places)


@checks.door(host=True)
def vp_quadratic(
  process: GaussianProcess,
  n: int,
  *,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  """Returns n + 1 times, quadratic in a VP-linear process's time.

  That process covers the noise levels of `process`, as `vp_linear_covering`
  makes it; where alpha(t_max) = 0 up to 1000 times the signal.
  """
  ends = _with_signal(process, [process.t_max, process.t_min])
  high, low = process.noise_level(ends)
  clock = vp_linear_covering(float(low), float(high))
  return quadratic(process, n, clock=clock, start=start, to_zero=to_zero)


@checks.door(host=True)
def cosine(
  process: GaussianProcess,
  n: int,
  *,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  """Returns n + 1 times with equal steps in arctan(sigma / alpha)."""
  return uniform(process, n, clock=vp_cosine(), start=start, to_zero=to_zero)


@checks.door(host=True)
def angular(
  process: GaussianProcess,
  n: int,
  *,
  scale: float = 1.7,
  bend: float = 0.5,
  floor: float = 0.0042,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  r"""Returns n + 1 times with equal steps in phi + c log(phi + d).

  phi = (2 / pi) arctan(sigma / (scale alpha)) runs from 1 (noise) to 0 (data).
  Steps in phi are equal while phi is large against c, proportional to phi below
  it, and equal again below d: in proportion to phi + d over phi + c + d.

  With to_zero the steps go to sigma = 0 in one sweep; only where the last of
  them would begin below t_min do they go there first, as in other grids.

  Args:
    process: whose times are returned.
    n: number of steps.
    scale: noise level sigma / alpha of phi = 1 / 2.
    bend: c.
    floor: d.
    start: first time; t_max by default.
    to_zero: whether the last step ends at sigma = 0.
  """
  if not (scale > 0 and bend > 0 and floor > 0):
    raise ValueError(
      f"scale, bend and floor must be positive, got {scale}, {bend} and {floor}"
    )

  from scipy import special  # a third of the time of `import jaxdiff`

  clock = lambda phi: phi + bend * np.log(phi + floor)
  angle = lambda t: (
    (2 / np.pi) * np.arctan2(process.sigma(t), scale * process.alpha(t))
  )

  def levels(high, low, steps):
    u = np.linspace(clock(high), clock(low), steps + 1)
    # y + c log(y) = u + d for y = phi + d is Wright's omega function
    y = bend * special.wrightomega((u + floor) / bend - np.log(bend))
    return scale * np.tan((y - floor) * (np.pi / 2))

  def places(first, last, steps):
    high, low = angle(np.asarray([first, last]))
    level = levels(high, low, steps)
    # the first level is infinite where alpha = 0; the ends are exact
    times = np.append(first, process.time_at(level[1:]))
    times[-1] = last
    if to_zero:
      sweep = levels(high, 0.0, steps + 1)[1:-1]
      if sweep.min(initial=np.inf) >= process.noise_level(last):
        times = np.append(first, process.time_at(sweep))
    return times

  return _grid(process, n, start, to_zero, places, own_ends=True)


@checks.door(host=True)
def align_your_steps(
  process: GaussianProcess,
  n: int = 10,
  *,
  table: str = "sdxl",
  to_zero: bool = False,
) -> np.ndarray:
  """Returns a published Align-Your-Steps table, interpolated to n steps.

  Log-linear in the noise level, as its authors advise for n other than 10. The
  noise levels are taken verbatim: the grid begins and ends where they do.

  Args:
    process: whose times are returned.
    n: number of steps.
    table: "sd15", "sdxl" or "svd", the model it was optimized for.
    to_zero: whether the last step ends at sigma = 0.

  Raises:
    ValueError: for an unknown table, or if its noise levels are outside of
      the process's.
  """
  checks.one_of(table, tuple(_ALIGN_YOUR_STEPS), "table")
  levels = np.log(_ALIGN_YOUR_STEPS[table])

  def places(first, last, steps):
    del first, last  # the table brings its own ends
    at = np.linspace(0.0, 1.0, steps + 1)
    known = np.linspace(0.0, 1.0, len(levels))
    return _times_of(process, np.exp(np.interp(at, known, levels)))

  return _grid(process, n, None, to_zero, places, own_ends=True)


@checks.door(host=True)
def from_times(process: GaussianProcess, times: Any) -> np.ndarray:
  """Returns the user's times verbatim, f64[n + 1], once they are checked."""
  return checks.falling_grid(
    times,
    process.t_min,
    process.t_max,
    process.t_zero,
    process.noise.outside,
  )


def distinct(times: Any) -> np.ndarray:
  """Returns times or noise levels without those that repeat the one before.

  Published schedules that are rounded to whole steps repeat some: there the
  network is asked twice at one place, and nothing moves in between. The table
  of n + 1 distinct times has n steps.

  Args:
    times: f[m], falling, equal neighbours allowed.
  """
  times = np.asarray(times, np.float64)
  if times.ndim != 1:
    raise ValueError(f"times are a 1-D array, got shape {times.shape}")
  return times[np.diff(times, prepend=np.nan) != 0]


@checks.door(host=True)
def from_noise_levels(process: GaussianProcess, levels: Any) -> np.ndarray:
  """Returns the times of the user's noise levels sigma / alpha, [n + 1].

  A last level of 0 is the time without noise.

  Raises:
    ValueError: for levels that do not fall or are outside of the process's.
  """
  try:
    levels = np.asarray(levels, np.float64)
  except (TypeError, ValueError) as error:
    raise TypeError(
      f"noise levels are a 1-D array of numbers, got {checks.given(levels)}"
    ) from error
  if levels.ndim == 1 and len(levels) > 1 and levels[-1] == 0:
    times = np.append(_times_of(process, levels[:-1]), _zero(process))
  else:
    times = _times_of(process, levels)
  return from_times(process, times)


def _grid(process, n, start, to_zero, places, own_ends=False):
  """Walks from start to t_min (and on to zero) in n steps through `places`."""
  checks.process(process, "grid(process, n)")
  if not (isinstance(n, (int, np.integer)) and n >= 1):
    raise ValueError(f"a grid takes n >= 1 steps, an integer; got n={n!r}")
  if not checks.concrete(start):
    raise TypeError(
      "start is a traced value, but grids are computed on the host in float64;"
      " build grid and table outside of jit and pass the table as an argument"
    )
  steps = n - 1 if to_zero else n
  first = process.t_max if start is None else float(start)
  if not process.t_min < first <= process.t_max:
    raise ValueError(
      f"start={first:.6g} must lie in ({process.t_min:.6g},"
      f" {process.t_max:.6g}], the times of the process"
    )
  if steps == 0:
    times = np.asarray([first])
  else:
    times = np.array(places(first, process.t_min, steps), np.float64)
    if not own_ends:  # exactly, not up to the rounding of a round trip
      times[0], times[-1] = first, process.t_min
  if to_zero:
    times = np.append(times, _zero(process))
  return from_times(process, times)


def _times_of(process: GaussianProcess, levels: np.ndarray) -> np.ndarray:
  """Returns the times of noise levels that the process is known to have."""
  low, high = process.noise_level(np.asarray([process.t_min, process.t_max]))
  slack = 1.0 + 1e-9
  outside = ~((levels <= high * slack) & (levels >= low / slack))
  if outside.any():
    raise ValueError(
      f"the noise level sigma / alpha = {levels[outside][0]:.6g} is outside"
      f" of the process's [{low:.6g}, {high:.6g}]; give the process a wider"
      " range of times (a last level of 0 is its time without noise)"
    )
  return np.clip(process.time_at(levels), process.t_min, process.t_max)


def _zero(process: GaussianProcess) -> float:
  if np.isnan(process.t_zero):
    raise ValueError(
      "to_zero=True needs a process that reaches sigma = 0, but this one"
      " does not say where; give from_alpha_sigma its t_zero"
    )
  return process.t_zero


def _translate(source, target, t: np.ndarray) -> np.ndarray:
  """Returns the times of `target` with the noise levels of source's t."""
  if source == target:
    return t
  return np.asarray(target.log_snr_inverse(source.log_snr(t)))


_LEAST_LOG_SNR = -7.0


def _with_signal(process: GaussianProcess, ends: list[float]) -> np.ndarray:
  """Returns the ends, the first moved in to where alpha is not 0.

  Steps in the noise level need a finite one to start from; the first time
  itself stays in the grid.
  """
  ends = np.asarray(ends)
  if process.alpha(ends[0]) == 0:
    ends[0] = process.log_snr_inverse(_LEAST_LOG_SNR)
  return ends


GRIDS = MappingProxyType(
  {
    "uniform": uniform,
    "quadratic": quadratic,
    "log_snr": log_snr,
    "karras": karras,
    "cosine": cosine,
    "vp_quadratic": vp_quadratic,
    "angular": angular,
  }
)
"""The grids that take (process, n) alone, by name."""
