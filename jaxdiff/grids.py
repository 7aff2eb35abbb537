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
| `vp_uniform`        | t of that process                                    |
| `power_log`         | log(t / t_min)^(1 / power)                           |
| `angular`           | theta + c log(theta + d), theta = arctan(sigma/alpha)|
| `kl_optimal`        | arctan(sigma / (data_std alpha))                     |
| `shift`             | u / (s - (s - 1) u), u = sigma / (alpha + sigma)     |
| `beta`, `beta57`    | the distribution function of a Beta law, of t        |
| `linear_quadratic`  | u, then ever longer steps in it                      |
| `bong_tangent`      | u along two arctan curves                            |
| `align_your_steps`  | a published table, interpolated                      |
| `spaced`            | whole steps of a model of discrete time              |

`uniform` and `quadratic` take the time of another process as `clock`.
`angular` belongs to `angular_adams`; `vp_quadratic` is the grid that few calls
of most other solvers like best.

Where other libraries differ is the last step: "to zero" may replace the last
time (`beta`, `sgm_uniform`), follow it (`karras`, `uniform`), or end one sweep
(`shift`, `angular`); each function says which. n always counts all the steps.
Their schedulers by name, with to_zero=True: normal is `uniform`, exponential
`log_snr`, simple `spaced(spacing="simple")`, ddim_uniform nearly `uniform`.
"""

from collections.abc import Callable
from types import MappingProxyType

import numpy as np

from jaxdiff import checks
from jaxdiff.processes import GaussianProcess
from jaxdiff.processes import vp_cosine
from jaxdiff.processes import vp_linear_covering
from jaxdiff.types import ArrayLike

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
  """Returns n + 1 times with equal steps in sqrt(t) of `vp_clock(process)`."""
  clock = vp_clock(process)
  return quadratic(process, n, clock=clock, start=start, to_zero=to_zero)


@checks.door(host=True)
def vp_uniform(
  process: GaussianProcess,
  n: int,
  *,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  """Returns n + 1 times with equal steps in the time of `vp_clock(process)`.

  For the noise levels of VP-linear's defaults these are `get_sigmas_vp` of
  k-diffusion, whatever the process.
  """
  clock = vp_clock(process)
  return uniform(process, n, clock=clock, start=start, to_zero=to_zero)


@checks.door(host=True)
def vp_clock(process: GaussianProcess) -> GaussianProcess:
  """Returns the VP-linear process that covers the noise levels of `process`.

  As `vp_linear_covering` makes it; where alpha(t_max) = 0, up to 1000 times the
  signal.
  """
  checks.process(process, "grids.vp_clock(process)")
  ends = _with_signal(process, [process.t_max, process.t_min])
  high, low = process.noise_level(ends)
  return vp_linear_covering(float(low), float(high))


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
  high: float = 0.0,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  r"""Returns n + 1 times, equal steps in phi + c log(phi + d) - h log cos(...).

  phi = (2 / pi) arctan(sigma / (scale alpha)) runs from 1 (noise) to 0 (data).
  Steps in phi are equal while phi is large against c, proportional to phi below
  it, and equal again below d: in proportion to phi + d over phi + c + d.

  The last term, h log(1 + (sigma / (scale alpha))^2) / 2, is -h log cos(pi phi
  / 2): well above the scale its steps are equal in log(sigma / alpha), each
  unit of it worth h. Levels above 300 scale then count as 300 scale, so that
  alpha = 0 has a place.

  With to_zero the steps go to sigma = 0 in one sweep; only where the last of
  them would begin below t_min do they go there first, as in other grids.

  Args:
    process: whose times are returned.
    n: number of steps.
    scale: noise level sigma / alpha of phi = 1 / 2.
    bend: c.
    floor: d.
    high: h.
    start: first time; t_max by default.
    to_zero: whether the last step ends at sigma = 0.

  Raises:
    ValueError: unless scale, bend and floor are positive and high is not
      negative.
  """
  if not (scale > 0 and bend > 0 and floor > 0 and high >= 0):
    raise ValueError(
      f"scale, bend and floor must be positive and high not negative, got"
      f" {scale}, {bend}, {floor} and {high}"
    )

  from scipy import special  # a third of the time of `import jaxdiff`

  top = np.arctan(_HIGHEST) if high else np.pi / 2  # the largest angle

  def clock(t):
    angle = np.arctan2(process.sigma(t), scale * process.alpha(t))
    return _bent(np.minimum(angle, top), bend, floor, high)

  def time(u):
    # y + c log(y) = u + d for y = phi + d is Wright's omega function
    y = bend * special.wrightomega((u + floor) / bend - np.log(bend))
    angle = (y - floor) * (np.pi / 2)
    if high:  # which makes the angle less
      angle = _unbent(u, np.minimum(angle, top), bend, floor, high)
    return process.time_at(scale * np.tan(angle))

  end = bend * np.log(floor)
  return _swept(process, n, start, to_zero, clock, time, end)


_HIGHEST = (
  300.0  # noise level, in units of the scale, that stands for all above
)


def _bent(angle, bend, floor, high):
  """Returns the clock of `angular`."""
  phi = angle * (2 / np.pi)
  rise = high * np.log(np.cos(angle)) if high else 0.0
  return phi + bend * np.log(phi + floor) - rise


def _unbent(u, most, bend, floor, high):
  """Returns the angles of a clock of `angular`, by bisection below `most`."""
  low, up = np.zeros_like(u), np.array(most)
  for _ in range(100):
    middle = 0.5 * (low + up)
    above = _bent(middle, bend, floor, high) > u
    up, low = np.where(above, middle, up), np.where(above, low, middle)
  return 0.5 * (low + up)


@checks.door(host=True)
def kl_optimal(
  process: GaussianProcess,
  n: int,
  *,
  data_std: float = 1.0,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  """Returns n + 1 times, equal steps in arctan(sigma / (data_std alpha)).

  For Gaussian data of that standard deviation the steps that lose the least KL
  (Sabour et al. (2024), https://arxiv.org/abs/2404.14507, theorem 3.1). With 1
  it is `cosine`. ComfyUI's kl_optimal of n steps is this with to_zero=True; for
  flows it takes the arctan of sigma instead of sigma / alpha.
  """
  if not data_std > 0:
    raise ValueError(
      f"data_std is the data's standard deviation, above 0; got {data_std}"
    )

  def places(first, last, steps):
    ends = np.asarray([first, last])
    scaled = data_std * process.alpha(ends)
    angles = np.linspace(*np.arctan2(process.sigma(ends), scaled), steps + 1)
    # the first level is infinite where alpha = 0
    return np.append(first, process.time_at(data_std * np.tan(angles[1:])))

  return _grid(process, n, start, to_zero, places)


@checks.door(host=True)
def shift(
  process: GaussianProcess,
  n: int,
  *,
  factor: float = 3.0,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  r"""Returns n + 1 times of equal steps in flow time, then shifted, once.

  With u = sigma / (alpha + sigma), the time of a flow, uniform places v become

    u = s v / (1 + (s - 1) v):

  every noise level sigma / alpha = u / (1 - u) is multiplied by s. Both ends
  stay at those of the process: v is uniform between them taken back by the
  inverse. The shift is applied here and nowhere else in this library: a process
  or a list of times that is shifted already must not come here again.

  With to_zero the steps go to sigma = 0 in one sweep, as those of SD3, Flux and
  Wan do: from t = 1 of a flow u_k is the shift of 1 - k / n. Only where the
  last of them would begin below t_min do they go there first. A shift by
  resolution: factor = `shift_of(tokens)`. diffusers' scheduler without given
  sigmas begins its last step at a sigma_min that it has shifted twice.

  Reference: Esser et al. (2024), https://arxiv.org/abs/2403.03206, eq. 23.

  Args:
    process: whose times are returned.
    n: number of steps.
    factor: s, positive; 3 for SD3 at 1024 x 1024, 1 is no shift.
    start: first time; t_max by default.
    to_zero: whether the last step ends at sigma = 0.
  """
  _check_factor(factor)

  def clock(t):
    alpha, sigma = process.alpha(t), process.sigma(t)
    return sigma / (factor * alpha + sigma)

  def time(v):
    return process.time_at(factor * v / (1.0 - v))

  return _swept(process, n, start, to_zero, clock, time, 0.0)


@checks.door(host=True)
def shifted(
  process: GaussianProcess, times: ArrayLike, factor: float
) -> np.ndarray:
  """Returns times whose noise levels sigma / alpha are `factor` times as high.

  The shift of `shift` for times of any grid, once: where alpha = 0 or sigma = 0
  a time stays, others move. ComfyUI spaces its schedulers of a flow on a table
  that is shifted before, so that beta of n steps with shift 3 is
  `shifted(p, beta(p, n, to_zero=True), 3.0)`.

  Args:
    process: whose times they are.
    times: f[n + 1], falling.
    factor: s, positive.

  Raises:
    ValueError: for noise levels that leave those of the process.
  """
  _check_factor(factor)
  times = from_times(process, times)
  alpha, sigma = process.alpha(times), process.sigma(times)
  inside = (alpha != 0) & (sigma != 0)
  moved = _times_of(process, factor * sigma[inside] / alpha[inside])
  times[inside] = moved
  return from_times(process, times)


@checks.door(host=True)
def shift_of(
  tokens: float,
  *,
  rule: str = "linear",
  low: tuple[float, float] | None = None,
  high: tuple[float, float] = (4096, 1.15),
) -> float:
  r"""Returns the factor of `shift` for a number of tokens, the dynamic shift.

  | rule     | factor s                                       | used by      |
  |----------|------------------------------------------------|--------------|
  | "linear" | e^mu, mu on the line through `low` and `high`  | Flux         |
  | "sqrt"   | in proportion to sqrt(tokens), through `low`   | SD3, eq. 23  |

  Args:
    tokens: number of patches that the network sees: (height / 16) (width / 16)
      of Flux's and SD3's images.
    rule: "linear" or "sqrt".
    low: (tokens, mu) at the lower end; (256, 0.5) by default, (256, 0) with
      "sqrt".
    high: (tokens, mu) at the upper end, of "linear" alone.

  Raises:
    ValueError: for another rule, or a number of tokens that is not positive.

  Example:
    >>> import jaxdiff as jd
    >>> flow = jd.rectified_flow()
    >>> factor = jd.grids.shift_of(4096)  # 1024 x 1024
    >>> print(jd.grids.shift(flow, 4, factor=factor, to_zero=True).round(3))
    [1.    0.905 0.76  0.513 0.   ]
  """
  checks.one_of(rule, ("linear", "sqrt"), "rule")
  if low is None:
    low = (256, 0.5 if rule == "linear" else 0.0)
  if not (tokens > 0 and low[0] > 0 and low[0] != high[0]):
    raise ValueError(
      "tokens are counts of patches, positive, and low and high are (tokens,"
      f" mu) at two of them; got tokens={tokens}, low={low}, high={high}"
    )
  if rule == "sqrt":
    return float(np.exp(low[1]) * np.sqrt(tokens / low[0]))
  slope = (high[1] - low[1]) / (high[0] - low[0])
  return float(np.exp(low[1] + slope * (tokens - low[0])))


def _check_factor(factor):
  if not factor > 0:
    raise ValueError(
      "factor is what a shift multiplies the noise levels by, positive; got"
      f" {factor}"
    )


@checks.door(host=True)
def beta(
  process: GaussianProcess,
  n: int,
  *,
  a: float = 0.6,
  b: float = 0.6,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  """Returns n + 1 times at the quantiles 1 - k / n of a Beta law, over t.

  t = t_min + (t_max - t_min) q(1 - k / n), q the quantile function of Beta(a,
  b): dense at both ends for a, b < 1; 1, 1 is uniform. With to_zero the last
  time is zero in place of t_min. ComfyUI's beta is this on `vp_discrete`,
  rounded to whole steps and repeated ones left out: `whole_steps`. Reference:
  Lee et al. (2024), https://arxiv.org/abs/2407.12173.
  """
  if not (a > 0 and b > 0):
    raise ValueError(f"a and b of a Beta law are positive; got {a} and {b}")

  from scipy import special

  def places(first, last, steps):
    u = np.linspace(1.0, 0.0, steps + 1)
    return last + (first - last) * special.betaincinv(a, b, u)

  return _grid(process, n, start, to_zero, places, replaces=True)


@checks.door(host=True)
def beta57(
  process: GaussianProcess,
  n: int,
  *,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  """Returns `beta` with a = 0.5 and b = 0.7, RES4LYF's default."""
  return beta(process, n, a=0.5, b=0.7, start=start, to_zero=to_zero)


@checks.door(host=True)
def sgm_uniform(
  process: GaussianProcess,
  n: int,
  *,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  """Returns `uniform`, but with to_zero the last time is zero, not t_min.

  That is the spacing of Stability AI's generative-models, as ComfyUI has it;
  diffusers' DPMSolverMultistepScheduler spaces "linspace" so.
  """
  places = lambda first, last, steps: np.linspace(first, last, steps + 1)
  return _grid(process, n, start, to_zero, places, replaces=True)


@checks.door(host=True)
def linear_quadratic(
  process: GaussianProcess,
  n: int,
  *,
  threshold: float = 0.025,
  linear: int | None = None,
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  r"""Returns n + 1 times, short equal steps in flow time, then a parabola.

  u = sigma / (alpha + sigma) falls from its first value by the share f_k of the
  way: f_k = k threshold / m for the first m steps, and for the others the
  parabola through f_m = threshold and f_n = 1 that goes on with that slope. The
  schedule of Mochi (Genmo (2024), https://github.com/genmoai/mochi), one sweep
  to sigma = 0 with to_zero; ComfyUI's linear_quadratic of a flow.

  Args:
    process: whose times are returned.
    n: number of steps.
    threshold: share of the way that the first m steps go, in (0, 1).
    linear: m, 1..n - 1; None is n // 2.
    start: first time; t_max by default.
    to_zero: whether the last step ends at sigma = 0.
  """
  if not 0 < threshold < 1:
    raise ValueError(
      f"threshold is a share of the way, inside (0, 1); got {threshold}"
    )
  if linear is not None and not 1 <= linear < max(n, 2):
    raise ValueError(
      f"linear is how many of the n = {n} steps are equal, 1..n - 1; got"
      f" {linear}"
    )

  def left(steps):
    """1 - f of the whole, f64[steps + 1]."""
    if steps == 1:
      return np.asarray([1.0, 0.0])
    m = min(steps // 2 if linear is None else linear, steps - 1)
    k, slope, rest = np.arange(steps + 1.0), threshold / m, steps - m
    over = np.maximum(k - m, 0.0)
    bend = (1.0 - threshold - slope * rest) / rest**2
    return 1.0 - slope * k - bend * over**2

  return _in_flow_time(process, n, start, to_zero, left)


@checks.door(host=True)
def bong_tangent(
  process: GaussianProcess,
  n: int,
  *,
  middle: float = 0.5,
  pivots: tuple[float, float] = (0.6, 0.6),
  slopes: tuple[float, float] = (0.2, 0.2),
  start: float | None = None,
  to_zero: bool = False,
) -> np.ndarray:
  r"""Returns n + 1 times, flow time along two arctan curves.

  u = sigma / (alpha + sigma) falls along -arctan(c (k - p)), scaled to go from
  1 to `middle`, and from there along a second one to 0: short steps at both
  ends and long ones around the pivots. One sweep to sigma = 0 with to_zero. The
  schedule of RES4LYF, https://github.com/ClownsharkBatwing/RES4LYF, of which
  the pivots in whole steps are kept.

  Args:
    process: whose times are returned.
    n: number of steps.
    middle: share of the range left where the curves meet, in (0, 1).
    pivots: places of the curves' steepest points, shares of n + 2 in (0, 1).
    slopes: c of both at n + 2 = 40, positive.
    start: first time; t_max by default.
    to_zero: whether the last step ends at sigma = 0.
  """
  if not (
    0 < middle < 1
    and all(0 < p < 1 for p in pivots)
    and all(c > 0 for c in slopes)
  ):
    raise ValueError(
      "middle and pivots are shares inside (0, 1), slopes positive; got"
      f" middle={middle}, pivots={pivots}, slopes={slopes}"
    )

  def left(steps):
    size = steps + 2
    joint = int((size * pivots[0] + size * pivots[1]) / 2)
    first, second = (int(size * p) for p in pivots)
    slope, last_slope = (c / (size / 40) for c in slopes)

    def curve(points, slope, pivot, high, low):
      x = -np.arctan(slope * (np.arange(points) - pivot))
      return low + (high - low) * (x - x[-1]) / (x[0] - x[-1])

    if joint < 2 or size - joint < 2:  # one curve is a point
      return np.linspace(1.0, 0.0, steps + 1)
    return np.append(
      curve(joint, slope, first, 1.0, middle)[:-1],
      curve(size - joint, last_slope, second - joint, middle, 0.0),
    )

  return _in_flow_time(process, n, start, to_zero, left)


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
def spaced(
  process: GaussianProcess,
  n: int,
  *,
  spacing: str = "trailing",
  steps: int = 1000,
  offset: int = 0,
  to_zero: bool = False,
) -> np.ndarray:
  """Returns times at whole steps of a model of discrete time, as published.

  A model of N steps is asked at t = (i + 1) / N t_max for i = 0..N - 1 (see
  `processes.vp_discrete`). The m places of a spacing, m = n with to_zero and n
  + 1 without, are taken verbatim: the grid begins and ends where they do.

  | spacing    | i                                | as in     |
  |------------|----------------------------------|-----------|
  | "trailing" | round(N - k N / m) - 1           | diffusers |
  | "leading"  | (m - 1 - k) (N // m) + offset    | diffusers |
  | "linspace" | round((N - 1) (1 - k / (m - 1))) | diffusers |
  | "simple"   | N - 1 - floor(k N / m)           | ComfyUI   |

  k = 0..m - 1. Lin et al. (2024), https://arxiv.org/abs/2305.08891, table 2,
  compares the first three: "leading" never asks at the last step, where the
  noise begins.

  Args:
    process: whose times are returned.
    n: number of steps.
    spacing: "trailing", "leading", "linspace" or "simple".
    steps: N of the model.
    offset: steps_offset, of "leading" alone; 1 for Stable Diffusion.
    to_zero: whether the last step ends at sigma = 0.

  Raises:
    ValueError: for another spacing, more places than steps, or places outside
      of the model's steps.
  """
  checks.one_of(
    spacing, ("trailing", "leading", "linspace", "simple"), "spacing"
  )
  m = n if to_zero else n + 1
  if m > steps:
    raise ValueError(
      f"{m} places of a model that has {steps} steps would repeat some; take"
      " fewer, or say how many the model has, steps=..."
    )
  if offset and spacing != "leading":
    raise ValueError(
      f"offset moves the places of spacing='leading', not of {spacing!r};"
      " drop it"
    )

  def places(first, last, count):
    del first, last  # the places bring their own ends
    m, k = count + 1, np.arange(count + 1.0)
    i = {
      "trailing": lambda: np.round(steps - k * (steps / m)) - 1,
      "leading": lambda: (m - 1 - k) * (steps // m) + offset,
      "linspace": lambda: np.round((steps - 1) * (1 - k / max(m - 1, 1))),
      "simple": lambda: steps - 1 - np.floor(k * (steps / m)),
    }[spacing]()
    if i.max() > steps - 1:
      raise ValueError(
        f"offset={offset} moves the first place to step {int(i.max())}, but a"
        f" model of {steps} steps has 0..{steps - 1}"
      )
    return (i + 1) / steps * process.t_max

  return _grid(process, n, None, to_zero, places, own_ends=True)


@checks.door(host=True)
def whole_steps(
  process: GaussianProcess, times: ArrayLike, steps: int = 1000
) -> np.ndarray:
  """Returns the times rounded to whole steps of a model of N, no two equal.

  For a model of discrete time that takes whole steps alone, t = (i + 1) / N
  t_max. Times that meet in one step are one (`distinct`), so that the table has
  fewer calls; a last time without noise stays.

  Args:
    process: the model's process.
    times: f[n + 1], falling, of any grid.
    steps: N.
  """
  if not steps >= 1:
    raise ValueError(
      f"steps is how many the model has, at least 1; got {steps}"
    )
  times = from_times(process, times)
  at = times / process.t_max * steps
  whole = np.maximum(np.rint(at), 1.0) / steps * process.t_max
  whole = np.where(times == process.t_zero, times, whole)
  return from_times(process, distinct(whole))


@checks.door(host=True)
def from_times(process: GaussianProcess, times: ArrayLike) -> np.ndarray:
  """Returns the user's times verbatim, f64[n + 1], once they are checked."""
  return checks.falling_grid(
    times,
    process.t_min,
    process.t_max,
    process.t_zero,
    process.noise.outside,
  )


def distinct(times: ArrayLike) -> np.ndarray:
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
def from_noise_levels(
  process: GaussianProcess, levels: ArrayLike
) -> np.ndarray:
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


def _grid(process, n, start, to_zero, places, own_ends=False, replaces=False):
  """Walks from start to t_min (and on to zero) in n steps through `places`.

  With `own_ends` the places say where the grid begins and ends; with `replaces`
  zero does not follow t_min but stands in its place.
  """
  checks.process(process, "grid(process, n)")
  if not (isinstance(n, (int, np.integer)) and n >= 1):
    raise ValueError(f"a grid takes n >= 1 steps, an integer; got n={n!r}")
  if not checks.concrete(start):
    raise TypeError(
      "start is a traced value, but grids are computed on the host in float64;"
      " build grid and table outside of jit and pass the table as an argument"
    )
  steps = n - 1 if to_zero and not replaces else n
  first = process.t_max if start is None else float(start)
  if not process.t_min < first <= process.t_max:
    raise ValueError(
      f"start={first:.6g} must lie in ({process.t_min:.6g},"
      f" {process.t_max:.6g}], the times of the process"
    )
  if steps == 0 and not own_ends:
    times = np.asarray([first])
  else:
    times = np.array(places(first, process.t_min, steps), np.float64)
    if not own_ends:  # exactly, not up to the rounding of a round trip
      times[0], times[-1] = first, process.t_min
  if to_zero:
    kept = times[:-1] if replaces else times
    times = np.append(kept, _zero(process))
  return from_times(process, times)


def _swept(
  process: GaussianProcess,
  n: int,
  start: float | None,
  to_zero: bool,
  clock: Callable[[np.ndarray], np.ndarray],
  time: Callable[[np.ndarray], np.ndarray],
  end: float,
  left: Callable[[int], np.ndarray] | None = None,
) -> np.ndarray:
  """Returns a grid along a clock, to zero in one sweep.

  Only where the last step of the sweep would begin below t_min does the grid go
  there first, as others do.

  Args:
    process: whose times are returned.
    n: number of steps.
    start: first time; t_max by default.
    to_zero: whether the last step ends at sigma = 0.
    clock: t -> u.
    time: u -> t.
    end: u where sigma = 0.
    left: steps -> what is left of the way in u at each place, from 1 to 0;
      equal steps by default.
  """

  def along(high, low, steps):
    if left is None:
      return np.linspace(high, low, steps + 1)
    return low + (high - low) * left(steps)

  def places(first, last, steps):
    if steps == 0:
      return np.asarray([first])
    high, low = clock(np.asarray([first, last]))
    # the first level is infinite where alpha = 0; the ends are exact
    times = np.append(first, time(along(high, low, steps)[1:]))
    times[-1] = last
    if to_zero:
      sweep = time(along(high, end, steps + 1)[1:-1])
      if sweep.min(initial=np.inf) >= last:
        times = np.append(first, sweep)
    return times

  return _grid(process, n, start, to_zero, places, own_ends=True)


def _in_flow_time(process, n, start, to_zero, left):
  """Returns a grid whose u = sigma / (alpha + sigma) falls as `left` says."""

  def clock(t):
    alpha, sigma = process.alpha(t), process.sigma(t)
    return sigma / (alpha + sigma)

  time = lambda u: process.time_at(u / (1.0 - u))
  return _swept(process, n, start, to_zero, clock, time, 0.0, left)


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
    "vp_uniform": vp_uniform,
    "kl_optimal": kl_optimal,
    "shift": shift,
    "beta": beta,
    "beta57": beta57,
    "sgm_uniform": sgm_uniform,
    "linear_quadratic": linear_quadratic,
    "bong_tangent": bong_tangent,
  }
)
"""The grids that take (process, n) alone, by name."""
