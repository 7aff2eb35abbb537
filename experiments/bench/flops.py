"""What a program computes, and what a device could: for utilisation.

Model FLOPs are those of the network as it is written: counted before the
compiler fuses or rematerialises anything, the same on every device (Chowdhery
et al. 2022, appendix B). Utilisation is model FLOPs a second over the peak.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.extend as jex
import jax.numpy as jnp

# Dense peaks in 1e12 FLOP/s: (bfloat16, float32) by a part of the device's
# name, the more particular part first. float32 is what jax makes of it by
# default: TF32 on NVIDIA since Ampere, bfloat16 passes on TPU. From the makers'
# data sheets, without sparsity; one jax device each (a TPU v2 or v3 core).
PEAKS = (
  ("B200", 2250, 1125),
  ("H200", 989, 494),
  ("H100 PCIe", 756, 378),
  ("H100 NVL", 835, 417),
  ("H100", 989, 494),
  ("A100", 312, 156),
  ("A10G", 70, 35),
  ("A10", 125, 62.5),
  ("L40S", 362, 183),
  ("L4", 121, 60),
  ("RTX 4090", 165, 82.6),
  ("V100", 125, 15.7),
  ("T4", 65, 8.1),
  ("TPU v6", 918, 918),
  ("TPU v5p", 459, 459),
  ("TPU v5 lite", 197, 197),
  ("TPU v5e", 197, 197),
  ("TPU v5", 459, 459),
  ("TPU v4", 275, 275),
  ("TPU v3", 61.5, 61.5),
  ("TPU v2", 22.5, 22.5),
)


class Peak(NamedTuple):
  """FLOP/s of one device, and where the number is from."""

  flops: float
  source: str


def count(f: Callable[..., Any], *args: Any) -> float:
  """Returns the FLOPs of f(*args) as it is written, by XLA's cost analysis.

  The analysis counts the body of a loop once. A scan (over layers, over the
  steps of a solver) is counted here as often as it runs; a `while_loop`, whose
  length is not known, once.

  Args:
    f: a function of trees of arrays.
    *args: trees of arrays or ShapeDtypeStructs.
  """
  return _count(jax.make_jaxpr(f)(*args))


def _count(program: Any) -> float:
  total = _once(program)
  for length, body in _scans(program.jaxpr):
    total += length * _count(body) - _once(body)
  return total


def _once(program: Any) -> float:
  """Returns the FLOPs of a closed jaxpr, the bodies of its loops once."""
  shapes = [
    jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype)
    for v in program.jaxpr.invars
  ]
  lowered = jax.jit(jex.core.jaxpr_as_fun(program)).lower(*shapes)
  return float((lowered.cost_analysis() or {}).get("flops", 0.0))


def _scans(program: Any) -> Iterator[tuple[int, Any]]:
  """Yields (length, body) of the outermost scans, inside of calls too."""
  for equation in program.eqns:
    if equation.primitive.name == "scan":
      yield equation.params["length"], equation.params["jaxpr"]
      continue
    for inner in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda v: isinstance(v, (jex.core.Jaxpr, jex.core.ClosedJaxpr)),
    ):
      if isinstance(inner, (jex.core.Jaxpr, jex.core.ClosedJaxpr)):
        yield from _scans(getattr(inner, "jaxpr", inner))


@functools.cache
def peak(dtype: Any = jnp.bfloat16, device: jax.Device | None = None) -> Peak:
  """Returns what a device could do: by `PEAKS`, or measured on a CPU.

  Args:
    dtype: bfloat16 (or float16), or float32.
    device: the default one by default.

  Returns:
    The peak; NaN for an accelerator that is not in the table.
  """
  device = device or jax.devices()[0]
  kind = device.device_kind
  if device.platform == "cpu":
    return Peak(
      _measured(dtype, device), f"matrix products on {kind}, measured"
    )
  narrow = jnp.dtype(dtype).itemsize == 2
  for name, half, single in PEAKS:
    if name in kind:
      return Peak(1e12 * (half if narrow else single), f"data sheet, {name}")
  return Peak(math.nan, f"{kind} is not in experiments.bench.flops.PEAKS")


def _measured(dtype: Any, device: jax.Device, size: int = 1024) -> float:
  """Returns the FLOP/s of square matrix products, the best of twenty."""
  x = jax.device_put(jnp.ones((size, size), dtype), device)
  product = jax.jit(lambda x: x @ x)
  product(x).block_until_ready()

  def seconds() -> float:
    begin = time.perf_counter()
    product(x).block_until_ready()
    return time.perf_counter() - begin

  return 2.0 * size**3 / min(seconds() for _ in range(20))


def utilisation(
  work: Any, rate: float, *, dtype: Any = None, devices: int = 1
) -> dict[str, Any]:
  """Returns how much of the devices' peak is used, beside what it is made of.

  Args:
    work: the FLOPs of one run, from `count`; or a compiled program, of which
      each device's part is taken as it is: recomputed values count then, loops
      count once.
    rate: runs a second.
    dtype: that the work is done in; bfloat16 by default, float32 on a CPU.
    devices: that share the work; of no account with a compiled program.

  Returns:
    `flops` of a run, `flops_per_second`, `utilisation` 0 to 1 (NaN where the
    peak is not known), `peak` in FLOP/s of one device, and `peak_source`.
  """
  if hasattr(work, "cost_analysis"):
    work, devices = float(work.cost_analysis().get("flops", 0.0)), 1
  if dtype is None:
    cpu = jax.default_backend() == "cpu"
    dtype = jnp.float32 if cpu else jnp.bfloat16
  top = peak(dtype)
  return dict(
    flops=work,
    flops_per_second=work * rate,
    utilisation=work * rate / (top.flops * devices),
    peak=top.flops,
    peak_source=top.source,
  )
