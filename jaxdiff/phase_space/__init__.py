"""Diffusion in phase space: position and velocity, critically damped.

| file      | what it holds                                                  |
|-----------|----------------------------------------------------------------|
| `process` | `CriticallyDamped`, the coupled forward process of (x, v)      |
| `model`   | `phase_field`, a network as the model of the process           |
| `loss`    | `hybrid`, hybrid score matching                                |
| `sampler` | `sample`, the symmetric splitting and Euler-Maruyama           |
| `oracle`  | `exact_phase`, the exact model of a Gaussian mixture           |

Reference: Dockhorn et al. (2022), https://arxiv.org/abs/2112.07068.
"""

from jaxdiff.phase_space.loss import hybrid
from jaxdiff.phase_space.model import phase_field
from jaxdiff.phase_space.model import PhaseField
from jaxdiff.phase_space.oracle import exact_phase
from jaxdiff.phase_space.oracle import ExactPhase
from jaxdiff.phase_space.process import CriticallyDamped
from jaxdiff.phase_space.process import Phase
from jaxdiff.phase_space.sampler import rows
from jaxdiff.phase_space.sampler import sample

__all__ = [
  "CriticallyDamped",
  "ExactPhase",
  "Phase",
  "PhaseField",
  "exact_phase",
  "hybrid",
  "phase_field",
  "rows",
  "sample",
]
