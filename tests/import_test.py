"""What `import jaxdiff` may not do: slow others down, or take the devices."""

import json
import os
import pathlib
import statistics
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Each costs time or memory at start, and most are optional.
FORBIDDEN = [
  "matplotlib",
  "sklearn",
  "tensorflow",
  "tensorflow_datasets",
  "grain",
  "orbax",
  "safetensors",
  "tqdm",
]


def python(code: str) -> str:
  """Runs `code` in a fresh interpreter; returns what it printed."""
  result = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


def test_import_initialises_no_backend():
  # jax.distributed.initialize and flags must still be possible after it.
  assert (
    python(
      "import jaxdiff, jax._src.xla_bridge as b; "
      "print(b.backends_are_initialized())"
    ).strip()
    == "False"
  )


@pytest.mark.parametrize("module", ["jaxdiff", "jaxdiff.data"])
def test_import_loads_no_optional_or_heavy_package(module):
  loaded = json.loads(
    python(f"import sys, json, {module}; print(json.dumps(list(sys.modules)))")
  )
  assert module in loaded
  assert not {name.partition(".")[0] for name in loaded} & set(FORBIDDEN)


@pytest.mark.slow
def test_import_costs_at_most_300_ms_more_than_its_dependencies():
  clock = (
    "import time; t = time.perf_counter(); import {}; "
    "print(time.perf_counter() - t)"
  )
  base = clock.format("jax, flax.linen, optax")
  ours = clock.format("jax, flax.linen, optax, jaxdiff")
  python(ours)  # Byte code is compiled once.
  # Alternating, so that a machine that slows down does so for both.
  pairs = [(float(python(base)), float(python(ours))) for _ in range(7)]
  baseline, cost = (statistics.median(times) for times in zip(*pairs))
  assert cost - baseline <= 0.3, f"{cost:.2f} s against {baseline:.2f} s"
