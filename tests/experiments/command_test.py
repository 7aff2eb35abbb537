"""The command `jaxdiff`, and mistakes in --config."""

import errno
import os
import re
import subprocess
import sys
import types

import pytest
from absl import flags
from ml_collections import config_dict
from ml_collections.config_flags import config_path

from experiments.parts import command
from experiments.parts import console
from jaxdiff import data
from tests import ROOT


def jaxdiff(*arguments, code="command.main()", cwd=ROOT):
  program = f"from experiments.parts import command; {code}"
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
  others = {"bench overhead", "pages zoo", "learn-solver", "peers"}
  assert scripts | others <= set(found)
  assert not any(name.startswith("parts") for name in found)
  for name, module in found.items():
    line = command.summary(module)
    assert line.endswith((".", ":")) or "docs/" in line, (name, line)
    assert f"  {name} " in command.usage() and line in command.usage()


def test_help_lists_the_commands_without_jax():
  code = "command.main(); import sys; assert 'jax' not in sys.modules"
  for given in ([], ["--help"]):
    done = jaxdiff(*given, code=code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == command.usage()


def test_what_a_user_runs_comes_before_benchmarks_and_pages():
  first, *_ = command.usage().partition("Check the library")
  listed = set(re.findall(r"^  ([a-z-]+) ", first, re.M))
  assert listed == {
    "convert",
    "demo",
    "distill",
    "evaluate",
    "frontier",
    "learn-solver",
    "prepare-data",
    "sample",
    "search",
    "train",
  }
  for group in command.GROUPS:
    done = jaxdiff(group)
    assert done.returncode == 0 and f"jaxdiff {group} NAME" in done.stdout


def test_a_command_of_two_words_is_the_script_in_the_folder():
  done = jaxdiff("bench", "overhead", "--help")
  assert done.returncode == 1  # absl's way
  assert "\n  jaxdiff bench overhead\n" in done.stdout
  assert "python -m" not in done.stdout
  done = jaxdiff("bench", "overhaed")
  assert "did you mean 'bench overhead'?" in done.stderr


def test_help_lists_the_configurations_with_what_they_are():
  done = jaxdiff("train", "--help")
  assert "jaxdiff train --config=digits" in done.stdout
  text = " ".join(done.stdout.split())
  for name, what in (
    ("patches32", "U-Net for 32x32 colour patches"),
    ("folder", "U-Net for a folder of your own pictures."),
  ):
    assert f"{name} {what}" in text
  assert "frontier_mixture" not in text
  text = " ".join(jaxdiff("frontier", "--help").stdout.split())
  assert "frontier_digits The frontier on a trained network" in text


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


# --- whatever a command line can get wrong ends in one line -------------------

PROGRAM = """
from experiments.parts import console
console.define_config_file(None, "What to do.")
console.run(lambda: print(console.config_like("base").steps))
"""
CONFIGS = {
  "syntax.py": ("def f():\n  return (\n\ndef get_config(:", ", line 4: "),
  "imports.py": ("import nosuch", "line 1: ModuleNotFoundError: No module"),
  "name.py": (
    "def get_config():\n  return a",
    "line 2: NameError: name 'a' is",
  ),
  "none.py": ("x = 1", "defines no get_config(), which returns the config"),
  "number.py": ("def get_config():\n  return 3", "returns no ConfigDict"),
  "frontier_mixture": (None, "no configuration of this script: it lacks acc"),
}


def started(program, *arguments, cwd, **env):
  return subprocess.Popen(
    [sys.executable, "-c", program, *arguments],
    cwd=cwd,
    env=dict(os.environ, PYTHONPATH=str(ROOT), **env),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_a_configuration_that_is_none_is_refused_in_a_line(tmp_path):
  children = {}
  for name, (text, _) in CONFIGS.items():
    if text is not None:
      (tmp_path / name).write_text(text)
    children[name] = started(PROGRAM, f"--config={name}", cwd=tmp_path)
  children["digits"] = started(PROGRAM, "--config=digits", cwd=tmp_path)
  ends = {
    name: (*c.communicate(), c.returncode) for name, c in children.items()
  }
  assert ends.pop("digits") == ("3000\n", "", 0)
  for name, (out, err, code) in ends.items():
    (line,) = err.splitlines()
    assert code == 1 and not out, name
    assert line.startswith("error: --config=") and name in line
    assert CONFIGS[name][1] in line, line


def test_a_device_that_is_not_there_is_named_in_a_line(tmp_path):
  program = (
    "from experiments.parts import console\n"
    "def main():\n  import jax\n  jax.devices()\n"
    "console.run(main)\n"
  )
  children = [
    started(program, cwd=tmp_path, JAX_PLATFORMS=name)
    for name in ("cuda", "hal9000")
  ]
  for child, name in zip(children, ("cuda", "hal9000")):
    _, err = child.communicate()
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert child.returncode == 1 and "Traceback" not in err
    assert said[0].startswith(f"error: JAX_PLATFORMS={name!r}, but JAX cannot")
    assert "set it to cpu" in said[0]


def test_a_bug_keeps_its_traceback(tmp_path):
  program = (
    "from experiments.parts import console\n"
    "def main():\n  assert 1 + 1 == 3\n"
    "console.run(main)\n"
  )
  child = started(program, cwd=tmp_path)
  assert "Traceback" in child.communicate()[1] and child.returncode == 1


@pytest.mark.parametrize(
  "number", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ELOOP]
)
def test_a_path_that_may_not_be_used_ends_in_a_line(number):
  met = raised(OSError(number, os.strerror(number), "/far/away"))
  said = console._line(met)
  assert said.startswith("/far/away cannot be read or written")
  assert os.strerror(number) in said and "another path" in said


def test_a_data_set_that_is_none_gets_the_nearest_name():
  for name, meant in (("digitz", "digits"), ("folders:/a", "folder")):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'\\?"):
      data.load(name)
  with pytest.raises(ValueError, match="tfds:<name>'$"):
    data.load("xyzzy")


def test_results_under_version_control_stay_unless_asked(tmp_path, monkeypatch):
  committed = "experiments/results/learned.json"
  place = lambda publish: (
    monkeypatch.setattr(
      console.flags, "FLAGS", types.SimpleNamespace(publish=publish)
    )
    or console.place(tmp_path / "runs", committed)
  )
  assert place(False) == tmp_path / "runs" / "learned.json"
  assert place(True) == ROOT / committed
  # an installed package has no such place
  monkeypatch.setattr(console, "_FOLDER", tmp_path / "jaxdiff" / "experiments")
  with pytest.raises(ValueError, match="installed package .* in a checkout"):
    place(True)


@pytest.mark.parametrize("value", ["-1", "4294967296", "9" * 20])
def test_a_seed_is_one_that_a_key_holds(value):
  """Of wider ones a key would keep 32 bits, and two seeds be one."""
  own = flags.FlagValues()
  console.define_seed("Seed.", own)
  assert own(["x", "--seed=4294967295"]) and own.seed == 2**32 - 1
  with pytest.raises(flags.IllegalFlagValueError, match="range"):
    own(["x", f"--seed={value}"])
