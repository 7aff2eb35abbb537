r"""What a network predicts, and the one place that knows how these relate.

With x = alpha x0 + sigma eps, a prediction is the pair (x0, eps). A network may
output any of these; `decode` makes the pair of it, `target` is its regression
target:

| kind    | output               | x0                    | eps
|---------|----------------------|-----------------------|----------------------
| "x0"    | x0                   | x0                    | (x - alpha x0)/sigma
| "eps"   | eps                  | (x - sigma eps)/alpha | eps
| "v"     | alpha eps - sigma x0 | (alpha x - sigma v)/N | (sigma x + alpha v)/N
| "score" | -eps / sigma         | (x + sigma^2 s)/alpha | -sigma s
| "flow"  | eps - x0             | (x - sigma u)/M       | (x + alpha u)/M
| "velocity" | w = alpha' x0 + sigma' eps
|         | x0 = (sigma' x - sigma w) / W
|         | eps = (alpha w - alpha' x) / W
| "edm"   | F = (sigma x0 / d - alpha d eps) / S
|         | x0 = (alpha d^2 / S^2) x + (sigma d / S) F
|         | eps = (sigma / S^2) x - (alpha d / S) F

where N = alpha^2 + sigma^2, M = alpha + sigma, W = alpha sigma' - sigma alpha',
d = sigma_data and S^2 = alpha^2 d^2 + sigma^2. A leading minus is the negative
of any of them: "-v" is sigma x0 - alpha eps, "-flow" is x0 - eps.
"edm" is the F of Karras et al. (2022), eq. 7 and table 1, at any alpha; "v" is
Salimans and Ho (2022), which is -F for d = 1 and VP; "flow" is the velocity of
the straight path, "velocity" dx/dt of the process's own path, straight or not,
for which alone `rates` (alpha', sigma') are needed. "v", "flow", "velocity" and
"edm" divide by nothing that vanishes. "x0",
"eps" and "score" cannot tell the missing half where its coefficient is 0 (eps
at sigma = 0, x0 at alpha = 0): it is set to 0 there, so that it stays finite.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxdiff import checks
from jaxdiff import numerics
from jaxdiff.types import Array
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree

KINDS = ("x0", "eps", "v", "score", "flow", "velocity", "edm")


class Prediction(NamedTuple):
  """The pair (x0, eps) with alpha x0 + sigma eps = x; trees shaped like x.

  Example:
    >>> import jax
    >>> import jaxdiff as jd
    >>> def model(x, t):  # data that is zero: x = t eps
    ...   return jd.Prediction(x0=0.0 * x, eps=x / t)
    >>> process = jd.edm()
    >>> table = jd.ddim(process, jd.grids.karras(process, 5))
    >>> x = jd.sample(jax.random.key(0), model, table, (4, 1), process=process)
    >>> bool(abs(x).max() < 0.01)
    True
  """

  x0: Array
  eps: Array


def ask(
  model: Callable[..., Any], x: PyTree, *args: Any, **options: Any
) -> Prediction:
  """Returns model(x, *args, **options) as a Prediction shaped like x.

  Whatever takes a model asks it through this function, so that what one place
  takes all do. Raises as `as_prediction`.
  """
  return as_prediction(model(x, *args, **options), x)


def as_prediction(answer: PyTree, x: PyTree) -> Prediction:
  """Returns what a model answered, a Prediction or a plain pair, as the former.

  Args:
    answer: Prediction, or a tuple (x0, eps).
    x: what the model was asked at, an array or a tree.

  Raises:
    TypeError: if it is no pair.
    ValueError: if a half is not shaped like x; the leaf is named.
  """
  if type(answer) is tuple and len(answer) == 2:
    answer = Prediction(*answer)
  if not isinstance(answer, Prediction):
    raise TypeError(
      "a model returns predictions.Prediction(x0, eps), got"
      f" {type(answer).__name__}; wrap a bare network with"
      " denoisers.from_function, or decode its output with"
      " predictions.decode(kind, output, x, alpha, sigma)"
    )
  for half in ("x0", "eps"):
    checks.same_structure(
      getattr(answer, half), x, f"the model's {half}", "the state"
    )
  return answer


def check_kind(kind: Any, name: str = "the prediction kind") -> None:
  """Raises a ValueError unless kind is one of `KINDS`, or "-" and one."""
  plain = kind.removeprefix("-") if isinstance(kind, str) else kind
  if plain not in KINDS:
    listed = ", ".join(repr(c) for c in KINDS)
    raise ValueError(
      f"{name} must be one of {listed}, or its negative, as in '-v'; got"
      f" {kind!r}"
    )


def needs_rates(kind: str) -> bool:
  """Returns whether the kind is defined by the rates of the process."""
  return kind.removeprefix("-") == "velocity"


def decode(
  kind: str,
  output: ArrayLike,
  x: ArrayLike,
  alpha: ArrayLike,
  sigma: ArrayLike,
  sigma_data: float = 1.0,
  rates: tuple[ArrayLike, ArrayLike] | None = None,
) -> Prediction:
  """Returns the pair that a network's output stands for.

  Args:
    kind: one of `KINDS`, or its negative, as in "-v".
    output: what the network returned, shaped like x.
    x: the noisy input, [batch, ...].
    alpha: broadcasts against x.
    sigma: broadcasts against x.
    sigma_data: standard deviation of the data, for "edm" alone.
    rates: (d alpha / dt, d sigma / dt), `process.rates(t)`, for "velocity"
      alone.

  Raises:
    ValueError: for an unknown kind, or a velocity without rates.
  """
  check_kind(kind)
  if kind.startswith("-"):
    kind, output = kind[1:], -output
  if kind == "x0":
    return Prediction(output, numerics.safe_divide(x - alpha * output, sigma))
  if kind == "eps":
    return Prediction(numerics.safe_divide(x - sigma * output, alpha), output)
  if kind == "score":
    x0 = numerics.safe_divide(x + sigma**2 * output, alpha)
    return Prediction(x0, -sigma * output)
  if kind == "v":
    square = alpha**2 + sigma**2
    x0 = (alpha * x - sigma * output) / square
    return Prediction(x0, (sigma * x + alpha * output) / square)
  if kind == "flow":
    total = alpha + sigma
    return Prediction(
      (x - sigma * output) / total, (x + alpha * output) / total
    )
  if kind == "velocity":
    alpha_dot, sigma_dot = _known(rates)
    turn = alpha * sigma_dot - sigma * alpha_dot
    x0 = (sigma_dot * x - sigma * output) / turn
    return Prediction(x0, (alpha * output - alpha_dot * x) / turn)
  scale = input_scale(alpha, sigma, sigma_data)
  x0 = (alpha * sigma_data**2 * scale) * (scale * x)
  eps = (sigma * scale) * (scale * x)
  out = (sigma_data * scale) * output
  return Prediction(x0 + sigma * out, eps - alpha * out)


def target(
  kind: str,
  x0: ArrayLike,
  eps: ArrayLike,
  alpha: ArrayLike,
  sigma: ArrayLike,
  sigma_data: float = 1.0,
  rates: tuple[ArrayLike, ArrayLike] | None = None,
) -> Array:
  """Returns what the network should output for data x0 and noise eps.

  Arguments are as in `decode`, and `decode(kind, target(...), ...)` is the
  pair (x0, eps) again. Raises ValueError as `decode` does.
  """
  check_kind(kind)
  if kind.startswith("-"):
    return -target(kind[1:], x0, eps, alpha, sigma, sigma_data, rates)
  if kind == "x0":
    return x0
  if kind == "eps":
    return eps
  if kind == "score":
    return -numerics.safe_divide(eps, sigma)
  if kind == "v":
    return alpha * eps - sigma * x0
  if kind == "flow":
    return eps - x0
  if kind == "velocity":
    alpha_dot, sigma_dot = _known(rates)
    return alpha_dot * x0 + sigma_dot * eps
  scale = input_scale(alpha, sigma, sigma_data)
  return scale * (sigma * x0 / sigma_data - alpha * sigma_data * eps)


def output_gain(
  kind: str,
  alpha: ArrayLike,
  sigma: ArrayLike,
  sigma_data: float = 1.0,
  rates: tuple[ArrayLike, ArrayLike] | None = None,
) -> Array:
  """Returns d x0 / d output: the weight of an output's error in x0.

  A loss w |x0 - x0_hat|^2 is w gain^2 |output - target|^2.
  """
  check_kind(kind)
  if kind.startswith("-"):
    return -output_gain(kind[1:], alpha, sigma, sigma_data, rates)
  if kind == "x0":
    return numerics.namespace(alpha, sigma).ones_like(alpha + sigma)
  if kind == "eps":
    return -numerics.safe_divide(sigma, alpha)
  if kind == "score":
    return numerics.safe_divide(sigma**2, alpha)
  if kind == "v":
    return -sigma / (alpha**2 + sigma**2)
  if kind == "flow":
    return -sigma / (alpha + sigma)
  if kind == "velocity":
    alpha_dot, sigma_dot = _known(rates)
    return -sigma / (alpha * sigma_dot - sigma * alpha_dot)
  return sigma * sigma_data * input_scale(alpha, sigma, sigma_data)


def input_scale(
  alpha: ArrayLike, sigma: ArrayLike, sigma_data: float = 1.0
) -> Array:
  """Returns 1 / sqrt(alpha^2 sigma_data^2 + sigma^2), which scales x to 1."""
  square = alpha**2 * sigma_data**2 + sigma**2
  return 1.0 / numerics.namespace(square).sqrt(square)


def _known(rates):
  if rates is None:
    raise ValueError(
      "a \"velocity\" is alpha' x0 + sigma' eps: give rates=process.rates(t);"
      ' for the straight path, eps - x0, take the kind "flow"'
    )
  return rates
