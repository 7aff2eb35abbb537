"""Noise distributions of processes, and checks for normal noise.

Whoever draws the noise, scores it or divides by it asks `process.noise`. The
ODE, its solvers and every denoiser are right for any law; what adds normal
noise, or takes -eps / sigma for the score, is not, and refuses other laws by
`check_normal`.
"""

import dataclasses
import math
from typing import Any

import jax

from jaxdiff import tree
from jaxdiff.types import ArrayLike
from jaxdiff.types import PyTree

REASONS = {
  "adds": (
    "adds normal noise; the sum of the two has neither law, so that the samples"
    " would leave the process's marginals"
  ),
  "score": (
    "takes -eps / sigma for the score of x_t, which it is under normal noise"
    " alone (eps is E[eps | x_t] under any law)"
  ),
}
_MEND = (
  "use a deterministic solver (eta=0, churn=0, gamma=0), which is right for any"
  " noise, or the limit of normal noise, pfgmpp(None)"
)


@dataclasses.dataclass(frozen=True)
class Normal:
  """The law of the noise: independent standard normal values."""

  def draw(
    self, key: jax.Array, like: PyTree, index: ArrayLike | None = None
  ) -> Any:
    """Returns eps shaped like a batch of samples; see `tree.normal`."""
    return tree.normal(key, like, index)

  def log_density(self, eps: ArrayLike) -> jax.Array:
    """Returns log p(eps), f[batch]."""
    size = tree.sample_size(eps)
    return -0.5 * (tree.squared_norm(eps) + size * math.log(2.0 * math.pi))

  def outside(self, t: float) -> str:
    """Returns what to add when t is outside of the process's times."""
    del t
    return ""


def is_normal(process: Any) -> bool:
  """Returns whether a process's noise is normal, as it is unless it says so."""
  return getattr(process, "noise", Normal()) == Normal()


def check_normal(
  process: Any, name: str, reason: str = "adds", mend: str = _MEND
) -> None:
  """Raises a ValueError unless the noise of a process is normal.

  Args:
    process: the forward process.
    name: name of what needs normal noise, the subject of the message.
    reason: one of `REASONS`, or a clause of its own.
    mend: what to do instead.
  """
  if not is_normal(process):
    raise ValueError(
      f"{name} needs a process of normal noise, but that of"
      f" {describe(process)} is {process.noise}: {name}"
      f" {REASONS.get(reason, reason)}. Mend: {mend}"
    )


_NAMES = {
  "CosineVP": "vp_cosine",
  "DiscreteVP": "vp_discrete",
  "GeometricVE": "ve",
  "Linear": "rectified_flow",
  "LinearVP": "vp_linear",
  "NoiseLevel": "edm",
  "Pair": "from_alpha_sigma",
  "ResidualShift": "resshift",
  "SubVP": "sub_vp",
}


def describe(process: Any) -> str:
  """Returns a process in few words, for messages: its maker and its times."""
  if not hasattr(process, "t_max"):
    return str(getattr(process, "name", process))
  schedule = getattr(process, "schedule", process)
  name = type(schedule).__name__
  given = []
  if dataclasses.is_dataclass(schedule):
    for field in dataclasses.fields(schedule):
      value = getattr(schedule, field.name)
      if isinstance(value, (int, float)) and not field.name.startswith("t_"):
        given.append(f"{field.name}={value:.6g}")
      elif callable(value) and hasattr(value, "__name__"):
        given.append(value.__name__)
      elif isinstance(value, tuple):
        given.append(f"{len(value)} {field.name}")
  name = _NAMES.get(name, name)
  if name == "edm" and hasattr(process.noise, "aug_dim"):
    name, given = "pfgmpp", [f"{process.noise.aug_dim}"]
  return (
    f"{name}({', '.join(given)}), t in [{process.t_min:.6g},"
    f" {process.t_max:.6g}]"
  )
