"""The scripts, as their users start them."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent


def start(module, *flags, check=True):
  done = subprocess.run(
    [sys.executable, "-m", module, *flags],
    cwd=ROOT,
    env=dict(os.environ, JAX_PLATFORMS="cpu"),
    capture_output=True,
    text=True,
  )
  if check:
    assert done.returncode == 0, done.stderr[-3000:]
  return done


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
  """The demo in miniature, run once."""
  out = tmp_path_factory.mktemp("demo")
  flags = (f"--out={out}", "--steps=40", "--noises=4")
  return out, flags, start("experiments.demo", *flags)


def rows_of(out):
  with open(out / "frontier.csv", newline="") as f:
    return list(csv.DictReader(f))


@pytest.mark.parametrize(
  "script", ["train", "sample", "frontier", "demo", "bench_overhead"]
)
def test_help_begins_with_what_the_script_does(script):
  done = start(f"experiments.{script}", "--help", check=False)
  assert done.returncode == 1  # absl's way
  assert f"experiments.{script}" in done.stdout or "make demo" in done.stdout
  assert "--" in done.stdout


def test_demo_sweeps_twelve_solvers_in_one_program(demo):
  out, _, done = demo
  rows = rows_of(out)
  deterministic = {r["solver"] for r in rows if r["rmse"] != "nan"}
  assert len(deterministic) >= 12
  assert {int(r["calls"]) for r in rows} == {3, 4, 5, 6, 8, 10, 15, 20, 30}
  assert all(int(r["nfe"]) <= int(r["calls"]) for r in rows)
  summary = json.loads((out / "frontier.json").read_text())
  assert summary["compilations"] == 1
  assert "1 compiled program(s)" in done.stdout
  for picture in ("frontier.png", "samples.png"):
    assert str(out / picture) in done.stdout
    assert (out / picture).read_bytes()[:4] == b"\x89PNG"


def test_demo_goes_on_where_it_was_interrupted(demo):
  out, flags, _ = demo
  whole = (out / "frontier.csv").read_text()
  lines = whole.splitlines(keepends=True)
  half = "".join(lines[:40]) + lines[40][:7]  # cut while a line was written
  (out / "frontier.csv").write_text(half)
  start("experiments.demo", *flags)
  again = rows_of(out)
  first = list(csv.DictReader(whole.splitlines()))
  assert [r["solver"] for r in again] == [r["solver"] for r in first]
  np.testing.assert_allclose(
    [float(r["rmse"]) for r in again],
    [float(r["rmse"]) for r in first],
    rtol=1e-4,
  )


def test_samples_do_not_depend_on_the_batch_and_repeat_in_a_larger_job(demo):
  out, _, _ = demo
  flags = (f"--workdir={out}/training", "--solver=ddpm", "--calls=3")
  start("experiments.sample", *flags, f"--out={out}/a", "--num=7")
  start("experiments.sample", *flags, f"--out={out}/b", "--num=10", "--batch=4")
  a = np.load(out / "a" / "samples.npz")
  b = np.load(out / "b" / "samples.npz")
  assert a["image"].shape == (7, 8, 8, 1) and b["image"].shape[0] == 10
  # the network rounds differently at another batch size
  np.testing.assert_allclose(a["image"], b["image"][:7], atol=1e-4)
  assert list(b["label"]) == list(range(10))
  assert not list((out / "b").glob(".parts*"))


def test_sample_guides_to_one_class(demo):
  out, _, _ = demo
  done = start(
    "experiments.sample",
    f"--workdir={out}/training",
    f"--out={out}/c",
    "--num=4",
    "--label=7",
    "--guidance_scale=2.0",
    "--calls=4",
  )
  assert list(np.load(out / "c" / "samples.npz")["label"]) == [7] * 4
  assert "4 samples, 4 calls each" in done.stdout


@pytest.mark.parametrize(
  ("script", "flags", "message"),
  [
    ("frontier", ["--config.target=nowhere"], "experiments.train --"),
    ("frontier", ["--config.solvers=('magic',)"], "unknown in config.solvers"),
    ("frontier", ["--config.process=steam"], "'steam' is none of edm"),
    ("sample", ["--workdir=nowhere"], "nowhere"),
    ("sample", ["--solver=magic"], "should be one of"),
    ("train", ["--workdir=x"], "config"),
  ],
)
def test_mistakes_are_named(script, flags, message, tmp_path):
  if script == "frontier":
    flags = [*flags, f"--config.out={tmp_path}"]
  done = start(f"experiments.{script}", *flags, check=False)
  assert done.returncode != 0
  assert message in done.stderr + done.stdout


def test_sample_refuses_a_class_that_the_model_lacks_and_a_small_budget(demo):
  out, _, _ = demo
  flags = [f"--workdir={out}/training", f"--out={out}/d", "--num=1"]
  done = start("experiments.sample", *flags, "--label=10", check=False)
  assert "10 classes, 0..9" in done.stderr + done.stdout


def test_ctrl_c_says_how_to_go_on():
  program = (
    "from experiments import console\n"
    "def main():\n"
    "  raise KeyboardInterrupt\n"
    "console.run(main)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 130
  assert "Run the same command again" in done.stdout
  assert "Traceback" not in done.stderr
