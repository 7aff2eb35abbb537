"""What `import jaxdiff` may not do: slow others down, or take the devices."""

import json
import os
import subprocess
import sys

import pytest

from tests import ROOT

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


def test_import_costs_little_beside_its_dependencies():
  # Counted, for the clock is that of the machine: 17,000 calls are 0.15 s.
  calls, modules = json.loads(
    python(
      "import json, sys, jax, flax.linen, optax\n"
      "before, calls = set(sys.modules), 0\n"
      "def count(frame, event, argument):\n"
      "  global calls\n"
      "  calls += event == 'call'\n"
      "sys.setprofile(count)\n"
      "import jaxdiff\n"
      "sys.setprofile(None)\n"
      "print(json.dumps([calls, sorted(set(sys.modules) - before)]))"
    )
  )
  assert 1000 < calls < 40_000
  packages = {name.partition(".")[0] for name in modules}
  # multiprocessing knows the program that was started by another name.
  known = {"jaxdiff", "numpy", "__mp_main__", *sys.stdlib_module_names}
  assert not packages - known
