"""The scripts, as their users start them."""

import csv
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import frontier
from experiments import sample
from experiments import train
from experiments.configs import frontier_mixture
from experiments.configs import npz
from experiments.parts import console
from experiments.parts import plots
from experiments.parts import recipe
from experiments.parts import sources
from jaxdiff import data
from jaxdiff import grids
from jaxdiff import models
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import training
from tests import ROOT


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
  "script",
  [
    "train",
    "demo",
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in (
        "sample",
        "frontier",
        "search",
        "bench.distill",
        "bench.overhead",
        "bench.sample",
        "bench.search",
      )
    ),
  ],
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
  assert {int(r["calls"]) for r in rows} == {3, 5, 6, 8, 10, 12, 15, 20, 30}
  assert all(int(r["nfe"]) <= int(r["calls"]) for r in rows)
  summary = json.loads((out / "frontier.json").read_text())
  assert summary["compilations"] == 2  # with noise and without
  assert "2 compiled program(s)" in done.stdout
  for picture in ("frontier.png", "samples.png"):
    assert str(out / picture) in done.stdout
    assert (out / picture).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
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


def small(out, **changes):
  """A sweep of seconds."""
  config = frontier_mixture.get_config()
  config.update(
    target="g2",
    solvers=("ddim", "ipndm(order=3)"),
    grids=("karras",),
    calls=(3, 5),
    noises=16,
    reference_steps=25,
    float64=False,
    out=str(out),
  )
  config.update(changes)
  return config


@pytest.mark.slow
def test_a_sweep_of_another_config_starts_again_and_of_more_cells_goes_on(
  tmp_path, monkeypatch
):
  first = frontier.run(small(tmp_path))
  run = []
  call = frontier.Sweep.__call__

  def counting(self, table, x=None):
    run.append(table.nfe)
    return call(self, table, x)

  monkeypatch.setattr(frontier.Sweep, "__call__", counting)
  more = frontier.run(small(tmp_path, calls=(3, 5, 6), title="more"))
  assert run == [6, 6]
  assert [r for r in more if r["calls"] < 6] == first
  assert len(rows_of(tmp_path)) == 6
  for change in (dict(seed=1), dict(noises=8), dict(process="vp")):
    other = frontier.run(small(tmp_path, **change))
    assert len(rows_of(tmp_path)) == 4
    fresh = frontier.run(small(tmp_path / "fresh", **change))
    assert other == fresh and other != first


def test_a_sweep_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
  first = frontier.run(small(tmp_path))
  lines = (tmp_path / "frontier.csv").read_text().splitlines(keepends=True)
  half = "".join(lines[:3]) + lines[3][:7]  # cut while a line was written
  (tmp_path / "frontier.csv").write_text(half)
  run = []
  call = frontier.Sweep.__call__

  def counting(self, table, x=None):
    run.append(table.nfe)
    return call(self, table, x)

  monkeypatch.setattr(frontier.Sweep, "__call__", counting)
  assert frontier.run(small(tmp_path)) == first
  assert len(run) == 2  # of four


def test_the_reference_in_pieces_is_one_walk_of_rk4(tmp_path):
  config = small(tmp_path)
  target = frontier.load_target(config)
  sweep = frontier.Sweep(target, config)
  grid = grids.karras(target.process, 25)
  table = solvers.rk4(target.process, grid)
  whole = sampling.sample(sweep.key, target.model, table, sweep.start)
  np.testing.assert_allclose(sweep.reference(25), whole, rtol=1e-4, atol=1e-5)


def test_a_long_multistep_table_keeps_its_history_in_the_sweep(tmp_path):
  """More rows and a deeper memory than usual widen the program, not cut it."""
  config = small(tmp_path)
  target = frontier.load_target(config)
  grid = grids.karras(target.process, 50)
  table = solvers.unipc(target.process, grid, order=4)
  sweep = frontier.Sweep(target, config, [table])
  whole = sampling.sample(sweep.key, target.model, table, sweep.start)
  np.testing.assert_allclose(sweep(table), whole, rtol=1e-4, atol=1e-5)


def test_errors_are_over_coordinates_and_then_over_samples():
  x = np.zeros((3, 2))
  error = frontier.errors(x, np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 1.0]]))
  assert error["rmse"] == pytest.approx(np.sqrt((12.5 + 0 + 1) / 3))
  assert error["median"] == pytest.approx(1.0)
  error = frontier.errors(x, np.full((3, 2), 3.0))
  assert error["median"] == pytest.approx(3.0)


def test_the_printed_table_takes_the_best_grid_and_stars_the_best_solver():
  fields = ("solver", "grid", "calls", "rmse", "median", "distance")
  rows = [
    dict(zip(fields, row))
    for row in [
      ("one", "a", 5, 0.3, 0.2, 1.0),
      ("one", "b", 5, 0.1, 0.25, 2.0),
      ("two", "a", 5, 0.2, 0.05, 1.5),
      ("noisy", "a", 5, np.nan, np.nan, 4.0),
      ("noisy", "b", 5, np.nan, np.nan, 3.0),
    ]
  ]
  best = frontier.best_by_grid(rows[:3])
  assert {k: r["grid"] for k, r in best.items()} == {
    ("one", 5): "b",
    ("two", 5): "a",
  }
  text = frontier.table_text(rows, (5,))
  assert "2.5e-01 / 1.0e-01*" in text
  assert "5.0e-02 / 2.0e-01 " in text
  assert text.count("*") == 2  # the legend's and one star
  assert "3.000" in text and "4.000" not in text


def test_samples_do_not_depend_on_the_batch_and_repeat_in_a_larger_job(demo):
  out, _, _ = demo
  flags = (f"--workdir={out}/training", "--solver=ddpm", "--calls=3")
  start("experiments.sample", *flags, f"--out={out}/a", "--num=7")
  large = (*flags, f"--out={out}/b", "--num=10", "--batch=4", "--shards")
  done = start("experiments.sample", *large)
  assert "holds 3 of 3 shards" in done.stdout
  a = np.load(out / "a" / "samples.npz")
  b = data.load(f"shards:{out}/b/samples")
  assert a["image"].shape == (7, 8, 8, 1) and b["image"].shape[0] == 10
  # the network rounds differently at another batch size, and pixels are bytes
  np.testing.assert_allclose(
    np.clip(a["image"], -1, 1), b["image"][:7], atol=1 / 255 + 1e-4
  )
  assert list(b["label"]) == list(range(10))
  assert not list((out / "a").glob(".samples*"))
  for picture in ("a/samples.png", "b/samples.png"):
    assert (out / picture).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_demo_ends_with_what_was_chosen_and_by_how_much_it_wins(demo):
  out, _, done = demo
  rows = [r for r in rows_of(out) if r["solver"] == "choose"]
  assert [int(r["calls"]) for r in rows] == [5, 8, 12]
  chosen = json.loads((out / "frontier.json").read_text())["chosen"]
  end = done.stdout[done.stdout.index("What was measured to suit") :]
  for calls, name in chosen.items():
    assert f"{calls} calls: {name}, rmse" in end
  assert end.count("ipndm(order=3) ") >= 3


def test_sample_chooses_once_and_keeps_the_choice(demo):
  out, *_ = demo
  flags = [f"--workdir={out}/training", "--solver=choose", "--calls=3"]
  flags += ["--num=2", f"--out={out}/chosen"]
  first = start("experiments.sample", *flags)
  (kept,) = (out / "training" / "choices").glob("*.json")
  report = json.loads(kept.read_text())
  assert report["report"] in first.stdout
  table = tables.load(kept.with_name(f"{kept.stem}-3.npz"))
  assert (
    tables.about(kept.with_name(f"{kept.stem}-3.npz"))["solver"]
    == (report["chosen"]["3"])
  )
  assert table.nfe == 3
  kept.write_text(json.dumps(report | dict(report="read, not measured")))
  again = start("experiments.sample", *flags)
  assert "read, not measured" in again.stdout


def test_a_run_keeps_the_width_of_its_data(demo):
  out, *_ = demo
  model = training.load_denoiser(out / "training")
  assert model.data_width == 1.672  # of scikit-learn's digits


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
    (
      "frontier",
      ["--config.solvers=('magic',)"],
      "config.solvers: there is no solver 'magic'",
    ),
    ("frontier", ["--config.process=steam"], "'steam' is none of edm"),
    ("sample", ["--workdir=nowhere"], "nowhere"),
    ("sample", ["--solver=ipndm_3"], "did you mean ipndm(order=3)?"),
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
    "from experiments.parts import console\n"
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


def points_config(path, **options):
  config = npz.get_config()
  config.dataset = f"npz:{path}"
  config.network = "residual_mlp"
  config.network_options = dict(width=8, blocks=1, embedding=8)
  config.steps, config.batch_size = 2, 8
  config.update(options)
  return config


@pytest.fixture(scope="module")
def points(tmp_path_factory):
  """A run of two updates on unlabelled points of the plane."""
  out = tmp_path_factory.mktemp("points")
  values = np.random.default_rng(0).normal(size=(50, 2))
  np.savez(out / "points.npz", x=0.25 * values / values.std())
  config = points_config(out / "points.npz")
  config.dataset_options = dict(keys=dict(image="x"))
  train.train(config, out / "run", progress=False)
  return out / "run"


def sweep_config(run, out, **options):
  config = frontier_mixture.get_config()
  config.update(
    dict(target=str(run), out=str(out), noises=8, float64=False)
    | dict(reference_steps=4, grids=("karras",))
    | options
  )
  return config


def test_a_run_knows_its_data_and_measures_their_deviation(points):
  config = models.load_config(models.checkpoint_directory(points))
  assert config.shape == (2,)
  assert config.sigma_data == 0.25
  assert config.dataset.endswith("points.npz")
  assert config.dataset_options == dict(keys=dict(image="x"))


def test_a_sweep_shows_what_was_asked_for_and_keeps_the_rest(points, tmp_path):
  both = sweep_config(points, tmp_path, solvers=("ddim", "ddpm"), calls=(3, 4))
  assert len(frontier.run(both)) == 4
  noisy = sweep_config(points, tmp_path, solvers=("ddpm",), calls=(3,))
  rows = frontier.run(noisy)  # draws a picture without errors to an ODE
  assert [(r["solver"], r["calls"]) for r in rows] == [("ddpm", 3)]
  assert len(rows_of(tmp_path)) == 4


def test_a_sweep_refuses_data_of_another_shape(points, tmp_path):
  config = sweep_config(points, tmp_path, data="digits")
  with pytest.raises(ValueError, match=r"\(8, 8, 1\), but .* makes \(2,\)"):
    frontier.run(config)


def test_a_changed_network_is_swept_anew(points, tmp_path):
  config = sweep_config(points, tmp_path)
  before = frontier._stamp(config)
  assert frontier._stamp(config) == before
  file = next(p for p in points.rglob("2/state/**/*") if p.is_file())
  stat = file.stat()
  os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
  assert frontier._stamp(config) != before


def test_pictures_are_drawn_of_images_and_points_alone(tmp_path):
  path = tmp_path / "a.png"
  for shape in [(3, 4, 4, 1), (3, 4, 4, 3), (5, 2)]:
    assert "Wrote" in plots.samples(np.zeros(shape), path)
    path.unlink()
  for shape in [(3, 4, 4, 2), (5, 3), (5, 4, 4)]:
    assert "No picture" in plots.samples(np.zeros(shape), path)
    assert not path.exists()


@pytest.mark.parametrize(
  "options", [dict(guidance_scale=2.0), dict(label=1), dict(label=0)]
)
def test_an_unconditional_model_takes_no_label_and_no_guidance(options):
  with pytest.raises(ValueError, match=r"trained without \(num_classes = 0\)"):
    sample.draw(None, None, (2,), num=1, **options)


@pytest.mark.parametrize(("solver", "calls"), [("rk4", 3), ("heun", 2)])
def test_a_budget_of_less_than_a_step_is_refused(solver, calls):
  with pytest.raises(ValueError, match=rf"--calls={calls} does not allow"):
    sample.table_for(processes.edm(), solver, "karras", calls)


def test_a_budget_of_one_step_and_the_last_call_is_enough():
  table = sample.table_for(processes.edm(), "rk4", "karras", 5)
  assert table.nfe == 5


def test_examples_read_on_demand_are_trained_on(tmp_path, monkeypatch):
  draws = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
  examples = [dict(image=x, label=np.int32(i % 2)) for i, x in enumerate(draws)]
  asked = []
  monkeypatch.setattr(
    data, "load", lambda name, **o: asked.append((name, o)) or examples
  )
  config = points_config("", dataset="tfds:mine", num_classes=2, steps=1)
  config.dataset_options = dict(split="test")
  model = train.train(config, tmp_path, progress=False)
  assert asked == [("tfds:mine", dict(split="test"))]
  x = model(jnp.zeros((4, 3)), jnp.ones(4), jnp.zeros(4, jnp.int32)).x0
  assert x.shape == (4, 3)


def test_data_of_a_large_scale_are_warned_of(capsys):
  config = points_config("")
  images = np.full((4, 2), 200.0) * [[1], [-1], [1], [-1]]
  assert recipe.sigma_data(config, images) == 200.0
  assert "x / 127.5 - 1" in capsys.readouterr().out


def test_an_unknown_sampler_of_times_lists_the_samplers():
  config = points_config("", times=("lognormal",))
  with pytest.raises(ValueError, match="uniform, log_normal, logit_normal"):
    recipe.time_sampler(config.times, processes.edm())
  config.times = ("uniform", True, 3, 4)
  with pytest.raises(ValueError, match="at most 2 arguments: stratified"):
    recipe.time_sampler(config.times, processes.edm())


@pytest.mark.slow
def test_another_network_and_process_are_chosen_on_the_command_line(tmp_path):
  np.savez(
    tmp_path / "a.npz", image=np.random.default_rng(0).normal(size=(9, 2))
  )
  flags = [
    "--config=experiments/configs/npz.py",
    f"--workdir={tmp_path}/run",
    f"--config.dataset=npz:{tmp_path}/a.npz",
    "--config.network=residual_mlp",
    "--config.process=vp_linear",
    "--config.steps=1",
    "--config.batch_size=4",
  ]
  refused = start("experiments.train", *flags, check=False)
  assert refused.returncode == 1
  assert "Traceback" not in refused.stderr
  (line,) = [x for x in refused.stderr.splitlines() if x.startswith("error: ")]
  assert "patch" in line and '--config.network_options="{}"' in line
  flags += ["--config.network_options={'width': 8}"]
  start("experiments.train", *flags, "--config.process_options={}")
  folder = models.checkpoint_directory(tmp_path / "run")
  config = models.load_config(folder)
  assert (config.network, config.process) == ("residual_mlp", "vp_linear")
  assert config.network_options == dict(width=8)


def test_errors_of_the_project_are_told_from_those_of_others():
  with pytest.raises(ValueError) as check:
    data.load("nothing")
  assert console._is_ours(check.value)
  with pytest.raises(TypeError) as bug:
    data.load.__wrapped__(3, 4)
  assert not console._is_ours(bug.value)
  with pytest.raises(TypeError) as other:
    jax.random.normal(1, 2, 3, 4)
  assert not console._is_ours(other.value)


@pytest.mark.parametrize("source", [{"x": np.ones(3)}, [], [{"y": 1}]])
def test_data_without_images_are_refused(source):
  with pytest.raises(ValueError, match='under the name "image"'):
    sources.subset(source)
