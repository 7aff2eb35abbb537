"""What the Makefile decides by itself: the interpreter, and XLA's flags."""

import os
import pathlib
import shutil
import subprocess

import pytest

from tests import ROOT

MAKEFILE = ROOT / "Makefile"
FAST = "--xla_cpu_use_fusion_emitters=false"

pytestmark = pytest.mark.skipif(
  not shutil.which("make") or not MAKEFILE.exists(),
  reason="needs a checkout and make",
)


def make(folder: pathlib.Path, *arguments: str, **environment: str):
  """Runs the Makefile in `folder`, with two rules that print its choices."""
  rules = folder / "rules.mk"
  rules.write_text(
    f"include {MAKEFILE}\n"
    "interpreters: ; @$(INTERPRETERS)\n"
    'flags: ; @$(WITH_XLA); echo "[$${XLA_FLAGS-unset}]"\n'
  )
  ours = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "XLA_FLAGS")
  keep = {k: v for k, v in os.environ.items() if k not in ours}
  path = f"{folder / 'bin'}:{os.environ['PATH']}"
  return subprocess.run(
    ["make", "-s", "-f", str(rules), *arguments],
    cwd=folder,
    env={**keep, "PATH": path, **environment},
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


def stub(path: pathlib.Path, version: str, installs: bool = True):
  """Writes what answers as an interpreter does, as far as make asks."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    "#!/bin/sh\n"
    'case "$1$2" in\n'
    f'  -c*) echo "{version} $0";;\n'
    '  -mvenv) mkdir -p .venv/bin && cp "$0" .venv/bin/python;;\n'
    f"  -mpip) {'true' if installs else 'false'};;\n"
    "esac\n"
  )
  path.chmod(0o755)


def test_the_newest_interpreter_comes_first_wherever_it_stands(tmp_path):
  stub(tmp_path / "bin/python3", "3.100.2")
  stub(tmp_path / "bin/python3.13", "3.99.0")
  stub(tmp_path / "pyenv/versions/3.101.0/bin/python", "3.101.0")
  result = make(tmp_path, "interpreters", PYENV_ROOT=str(tmp_path / "pyenv"))
  assert result.stdout.splitlines()[:3] == [
    f"3.101.0 {tmp_path}/pyenv/versions/3.101.0/bin/python",
    f"3.100.2 {tmp_path}/bin/python3",
    f"3.99.0 {tmp_path}/bin/python3.13",
  ]
  one = f"PYTHON={tmp_path}/bin/python3.13"
  named = make(tmp_path, "interpreters", one)
  assert named.stdout == f"3.99.0 {tmp_path}/bin/python3.13\n"


def test_an_interpreter_without_wheels_makes_room_for_the_next(tmp_path):
  stub(tmp_path / "bin/python3", "3.100.2", installs=False)
  stub(tmp_path / "bin/python3.13", "3.99.0")
  (tmp_path / "setup.py").touch()
  nowhere = {"PYENV_ROOT": str(tmp_path)}
  result = make(tmp_path, ".venv/.installed", **nowhere)
  assert result.returncode == 0, result.stderr
  assert "cannot be installed for Python 3.100.2" in result.stderr
  assert (tmp_path / ".venv/.installed").exists()
  answer = subprocess.check_output([tmp_path / ".venv/bin/python", "-c"])
  assert answer.startswith(b"3.99.0")


def test_no_interpreter_is_said_with_the_way_out(tmp_path):
  (tmp_path / "setup.py").touch()
  result = make(tmp_path, ".venv/.installed", f"PYTHON={tmp_path}/python9")
  assert result.returncode != 0
  assert "needs Python 3.11 or newer" in result.stderr
  assert "make PYTHON=/path/to/python3.11" in result.stderr
  assert not (tmp_path / ".venv/.installed").exists()


@pytest.mark.parametrize(
  "knows, before, after",
  [
    (True, None, f"[{FAST} ]"),
    (True, "--xla_a=1", f"[{FAST} --xla_a=1]"),
    (False, None, "[unset]"),
    (False, "--xla_a=1", "[--xla_a=1]"),
  ],
)
def test_the_flag_is_set_where_jaxlib_knows_it(tmp_path, knows, before, after):
  # XLA takes a value that is blank for the name of a file, and aborts.
  python = tmp_path / "bin/python"
  python.parent.mkdir()
  python.write_text(f"#!/bin/sh\n{'true' if knows else 'false'}\n")
  python.chmod(0o755)
  environment = {} if before is None else {"XLA_FLAGS": before}
  result = make(tmp_path, "flags", f"BIN={tmp_path / 'bin'}", **environment)
  assert result.stdout.strip() == after, result.stderr
