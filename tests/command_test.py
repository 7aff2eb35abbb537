"""The command `jaxdiff`, and mistakes in --config."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest
from ml_collections import config_dict
from ml_collections.config_flags import config_path

from experiments import command
from experiments import console

ROOT = pathlib.Path(__file__).parent.parent


def jaxdiff(*arguments, code="command.main()", cwd=ROOT):
  program = f"from experiments import command; {code}"
  return subprocess.run(
    [sys.executable, "-c", program, *arguments],
    cwd=cwd,
    env=dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT)),
    capture_output=True,
    text=True,
  )


def test_every_script_is_a_command_and_says_what_it_does():
  found = command.commands()
  scripts = {"train", "sample", "frontier", "search", "evidence", "demo"}
  assert scripts | {"bench-overhead", "learn-solver", "peers"} <= set(found)
  assert not {"command", "console", "plots", "sources"} & set(found)
  for name, path in found.items():
    line = command.summary(path)
    assert line.endswith((".", ":")) or "docs/" in line, (name, line)
    assert f"  {name} " in command.usage() and line in command.usage()


def test_help_lists_the_commands_without_jax():
  code = "command.main(); import sys; assert 'jax' not in sys.modules"
  for flags in ([], ["--help"]):
    done = jaxdiff(*flags, code=code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == command.usage()


def test_an_unknown_command_gets_the_nearest_name():
  done = jaxdiff("trian")
  assert done.returncode == 1 and not done.stdout
  assert "no command 'trian'; did you mean 'train'?" in done.stderr


def test_a_command_is_the_script_with_its_flags_from_any_directory(tmp_path):
  done = jaxdiff("sample", "--workdir=nowhere", cwd=tmp_path)
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith(f"error: there is no {tmp_path}/nowhere/")


def test_a_wrong_entry_ends_in_a_line(tmp_path):
  flags = ["--config=digits", "--config.stepz=3", "--workdir=x"]
  done = jaxdiff("train", *flags, cwd=tmp_path)
  assert done.returncode == 1
  assert done.stderr == (
    "error: --config.stepz=3: the configuration has no such entry; did you mean"
    " 'steps'?\n"
  )


@pytest.mark.parametrize(
  ("field", "hint"),
  [
    ("stepz", "no such entry; did you mean 'steps'?"),
    ("options.widht", "no such entry; did you mean 'width'?"),
    ("qqq", "no such entry"),
    ("steps.qqq", "no such entry"),
  ],
)
def test_wrong_entries_are_named_by_their_flag(field, hint):
  config = config_dict.ConfigDict(dict(steps=1, options=dict(width=3)))
  with pytest.raises((AttributeError, KeyError)) as e:
    config_path.get_type(field, config)
  flag = f"--config.{field}=3"
  said = console.unknown_entry(e.value, ["train", "--config=a.py", flag])
  assert said == f"{flag}: the configuration has {hint}"
  assert console.unknown_entry(e.value, ["train", "--config=a.py"]) is None


@pytest.mark.parametrize(
  "given",
  [
    ["--config=digits"],
    ["--config", "digits"],
    ["-config=digits.py"],
    ["--config=elsewhere/experiments/configs/digits.py"],
  ],
)
def test_a_configuration_is_found_by_its_name(given):
  path = ROOT / "experiments" / "configs" / "digits.py"
  found = console.with_config(["x", *given, "--config.steps=3"])
  assert found == ["x", f"--config={path}", "--config.steps=3"]


def test_a_configuration_keeps_its_argument():
  (found,) = console.with_config(["--config=digits:5"])
  assert found.endswith("experiments/configs/digits.py:5")


def test_a_file_of_ones_own_is_taken_as_it_is(tmp_path):
  own = tmp_path / "digits.py"
  own.touch()
  assert console.with_config([f"--config={own}"]) == [f"--config={own}"]
  with pytest.raises(FileNotFoundError, match=r"--config=digitz: .* digits,"):
    console.with_config(["--config=digitz"])


def test_a_full_disk_ends_in_a_line_wherever_it_is_met():
  met = OSError(errno.ENOSPC, "No space left on device", "a.png")
  assert "the disk is full (a.png)" in console._line(raised(met))
  assert console._line(raised(OSError(errno.EIO, "I/O error"))) is None


def raised(e):
  try:
    exec("raise e", dict(e=e))
  except OSError as caught:
    return caught
