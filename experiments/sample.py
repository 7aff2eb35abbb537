r"""Draws samples from a trained model: a hundred and a picture, or a million.

  python -m experiments.sample --workdir=runs/digits --num=100
  python -m experiments.sample --workdir=runs/digits --calls=39 --label=7 \
      --solver="heun_churn(churn=40)" --guidance_scale=2
  python -m experiments.sample --workdir=runs/digits --num=50000

Up to 1,000 samples become OUT/samples.npz; more become shards,
OUT/samples/shard-00000.npz and so on, which

  jaxdiff.data.load("shards:OUT/samples")

reads as one set. Either way OUT/samples.png shows the first hundred. A job that
was interrupted goes on where it stopped when the same command is run again; a
larger --num goes on from there, too.

Sample i depends on --seed and on i alone, not on --batch, devices or hosts
(which change how the network rounds). A batch is split over all devices. For
several hosts run the command on each, with a folder that all of them see, and

  --process_index=$SLURM_PROCID --process_count=$SLURM_NTASKS

or with --coordinator=auto on a TPU pod: every process draws its own shards and
waits for no other.
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
from absl import flags

from jaxdiff import choosing
from jaxdiff import data
from jaxdiff import denoisers
from jaxdiff import distillation
from jaxdiff import grids
from jaxdiff import jobs
from jaxdiff import learning
from jaxdiff import locks
from jaxdiff import models
from jaxdiff import parallel
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables
from jaxdiff import training
from jaxdiff import tree
from jaxdiff.data import shards
from jaxdiff.processes import agreement
from jaxdiff.solvers import specs
from jaxdiff.solvers import v3_statistics

from .parts import chosen
from .parts import console
from .parts import plots
from .parts import sources

FLAGS = flags.FLAGS
_ONE_FILE = 1000  # samples, at most, that become one file by themselves
_SHOWN = 100
_NOISES = 64  # that a table is chosen on
_OF_STUDENTS = ("gamma", "start", "lowest", "to_zero")
# of the statistics for dpm_solver_v3: nodes, and samples in one batch
_STATISTICS = dict(m=121, batch=256, trace="hutchinson")


def table_for(
  model: Any, solver: str, grid: str, calls: int, **options: Any
) -> tables.Tableau:
  """Returns a solver's table to sigma = 0 for a budget of calls.

  Args:
    model: the model, whose process and width of the data it is made for; or
      a process.
    solver: its name and options, "unipc(order=3)", or "default", which has its
      own grid.
    grid: a name in `grids.GRIDS`.
    calls: network calls, at most.
    **options: options of the solver, unless `solver` gives them.

  Raises:
    ValueError: for text that names no solver, and if not even one step fits
      the budget, beside the last call, which goes to sigma = 0.
  """
  build, given = specs.parse(solver)
  process = agreement.process_of(model) or model
  if build is solvers.default:
    return solvers.default(model, calls, to_zero=True, **given)
  build = functools.partial(specs.bind(build, options | given), process)
  times = functools.partial(grids.GRIDS[grid], process)
  per_step = build(times(1)).nfe
  table = solvers.for_budget(
    build, functools.partial(times, to_zero=True), calls
  )
  if table is None or table.nfe < min(calls, per_step):
    raise ValueError(
      f"{solver} takes {per_step} calls for a step and one more to reach"
      f" sigma = 0, which --calls={calls} does not allow; give at least"
      f" --calls={per_step + 1}, or another --solver"
    )
  return table


def draw(
  model: denoisers.Denoiser,
  table: tables.Tableau,
  shape: tuple[int, ...],
  *,
  num: int,
  batch: int = 256,
  **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (samples f32[num, *shape], labels i32[num]), keeping no files.

  Args:
    model: the denoiser.
    table: the solver.
    shape: shape of one sample.
    num: number of samples.
    batch: samples drawn at a time; the last batch is padded to it.
    **options: seed, classes, label and others of `jobs.Job`.

  Raises:
    ValueError: for options that do not go together.
  """
  job = jobs.Job(model, table, shape, **options)
  spans = [
    jobs.Span(0, first, min(first + batch, num))
    for first in range(0, num, batch)
  ]
  parts = [x for _, x in jobs.draw(job, spans, batch)]
  return np.concatenate(parts), job.labels(np.arange(num))


def setting_of(
  config: models.ModelConfig, model: denoisers.Denoiser, step: int | None
) -> dict[str, Any]:
  """Returns everything that the samples depend on, as JSON can store it.

  Args:
    config: the model.
    model: the same with its weights.
    step: step of the checkpoint, if it is known.
  """
  fields = dataclasses.asdict(config)
  for name in ("dataset", "dataset_options"):  # tell nothing of the samples
    del fields[name]
  names = ("solver", "grid", "calls", "label", "guidance_scale", "seed")
  setting = {name: FLAGS[name].value for name in names}
  solver, _ = _solver()
  if solver is solvers.gamma_sampling:
    setting |= {name: FLAGS[name].value for name in _OF_STUDENTS}
  if solver in _OWN_GRID:
    setting["grid"] = None
  return {
    **setting,
    **{f"model.{name}": value for name, value in fields.items()},
    "step": step,
    "weights": tree.digest(model.params),
    "generator": str(jax.random.key_impl(jax.random.key(0))),
  }


def process_of() -> tuple[int, int]:
  """Returns (index, count) of this process among those that share the job.

  Called before anything uses a device.

  Raises:
    ValueError: for one flag without the other, or an index beyond the count.
  """
  index, count = FLAGS.process_index, FLAGS.process_count
  if FLAGS.coordinator:
    parallel.initialize(FLAGS.coordinator, count, index)
    return jax.process_index(), jax.process_count()
  if index is None and count is None:
    return jax.process_index(), jax.process_count()
  if index is None or count is None or index >= count:
    raise ValueError(
      f"--process_index={index} --process_count={count}: give both, with an"
      " index of 0 .. count - 1 that no other process has"
    )
  return index, count


def dtype_of(shape: tuple[int, ...], in_shards: bool) -> str:
  """Returns what samples are stored as: pixels where it is a large set."""
  if FLAGS.format is not None:
    return FLAGS.format
  pixels = len(shape) == 3 and shape[-1] in (1, 3)
  return "uint8" if in_shards and pixels else "float32"


def first_images(folder: pathlib.Path, count: int) -> np.ndarray | None:
  """Returns the first samples f32[count, ...]; None until they are drawn."""
  parts, held = [], 0
  while held < count:
    try:
      image = shards.read(folder, len(parts))["image"]
    except (FileNotFoundError, ValueError):  # still to be drawn, or anew
      return None
    parts.append(jobs.decode(image))
    held += len(image)
  return np.concatenate(parts)[:count]


def trajectory(
  job: jobs.Job, path: pathlib.Path, rows: int = 8, columns: int = 12
) -> str:
  """Draws what the network took for the clean samples, call after call.

  Args:
    job: job of images.
    path: path of the PNG file.
    rows: number of samples, the first ones.
    columns: number of calls shown, at most, evenly spread; the last is.
  """
  if len(job.shape) != 3 or job.shape[-1] not in (1, 3):
    return "No trajectory: it is drawn of images of 1 or 3 channels alone."
  every = math.ceil(job.table.nfe / columns)
  collect = sampling.every(every, sampling.denoised)
  devices = job.mesh.size if job.mesh else 1
  index = np.arange(-(-rows // devices) * devices)
  _, kept = jobs.launch(job, index, collect)
  images = np.swapaxes(np.asarray(kept), 0, 1)[:rows]  # f32[rows, calls, ...]
  flat = images.reshape(-1, *images.shape[2:])
  title = f"denoised previews, one in {every} of {job.table.nfe} calls"
  return plots.image_grid(flat, path, columns=images.shape[1], title=title)


def define_flags() -> None:
  """Defines the command line; not at import, for others import this file."""
  _define_model()
  _define_solver()
  _define_results()
  _define_devices()


def _define_model():
  """Defines which model is asked, and for what."""
  flags.DEFINE_string(
    "workdir", "runs/digits", "Folder of a run of experiments.train."
  )
  flags.DEFINE_integer(
    "step", None, "Checkpoint to use; the latest by default."
  )
  flags.DEFINE_float(
    "sigma_rel",
    None,
    "Width of an average of the weights that is put together now, from the"
    " snapshots of a run that kept them.",
  )
  flags.DEFINE_integer(
    "label", None, "Class to draw; by default every class in turn."
  )
  flags.DEFINE_float(
    "guidance_scale",
    1.0,
    "Classifier-free guidance: 1 is conditional, 0 unconditional, more than 1"
    " sharpens.",
  )


def _define_solver():
  """Defines the solver, its grid and what students need."""
  flags.DEFINE_string(
    "solver",
    "default",
    "Solver to sample with, and its options: unipc, or"
    ' --solver="unipc(order=2)". `choose` measures which table suits the model'
    " best, once for each number of calls and guidance, and keeps it in"
    " WORKDIR/choices; `default` is a rule that brings its own grid;"
    " `gamma_sampling` is for students of experiments.distill, one call for"
    " each step; dpm_solver_v3 estimates its statistics from the model and its"
    " data unless it is given a file. Solvers and what their options are by"
    f" default:\n{specs.usage()}",
  )
  flags.DEFINE_float(
    "gamma",
    1.0,
    "Of gamma_sampling: 1 renoises, as students of distribution matching and"
    " consistency models are sampled; 0 jumps from time to time.",
  )
  flags.DEFINE_bool(
    "to_zero",
    True,
    "Of gamma_sampling: whether the last call leads to no noise; consistency"
    " models and jumps end at the process's t_min, --noto_zero.",
  )
  flags.DEFINE_float(
    "start",
    None,
    "Of gamma_sampling: sigma / alpha that it begins at, where its student"
    " does (2.5 for SIM); by default the largest.",
  )
  flags.DEFINE_float(
    "lowest", None, "Of gamma_sampling: sigma / alpha of the last call."
  )
  flags.DEFINE_enum(
    "grid",
    "vp_quadratic",
    sorted(grids.GRIDS),
    "Grid of times, of all solvers but `choose` and `default`.",
  )
  flags.DEFINE_integer(
    "calls", 18, "Network calls for each sample, at most.", lower_bound=1
  )


def _define_results():
  """Defines how many samples are drawn, and what becomes of them."""
  flags.DEFINE_integer("num", 100, "Number of samples.", lower_bound=1)
  flags.DEFINE_integer("batch", 256, "Samples drawn at a time.", lower_bound=1)
  console.define_seed("Seed of the samples.")
  flags.DEFINE_string("out", None, "Folder of the results; --workdir if none.")
  flags.DEFINE_bool(
    "shards",
    None,
    f"Whether to leave shards; by default for more than {_ONE_FILE} samples.",
  )
  flags.DEFINE_integer(
    "shard_size",
    None,
    "Samples in a shard; --batch by default, or what the folder has. A job that"
    " is killed loses one unfinished shard.",
    lower_bound=1,
  )
  flags.DEFINE_enum(
    "format",
    None,
    jobs.FORMATS,
    "What samples are stored as. By default shards of images with 1 or 3"
    " channels hold uint8, 0..255 for [-1, 1]; all else is float32.",
  )
  flags.DEFINE_bool(
    "trajectory", False, "Whether to draw OUT/trajectory.png, too."
  )


def _define_devices():
  """Defines the devices and processes that share the job."""
  flags.DEFINE_integer(
    "devices",
    None,
    "Devices of this process to split batches over; all by default.",
    lower_bound=1,
  )
  flags.DEFINE_enum(
    "params",
    "replicated",
    jobs.PARAMS,
    "Parameters: copied to every device, or split over them and gathered where"
    " they are used.",
  )
  flags.DEFINE_integer(
    "process_index", None, "Number of this process, from 0.", lower_bound=0
  )
  flags.DEFINE_integer(
    "process_count", None, "Processes that share the job.", lower_bound=1
  )
  flags.DEFINE_string(
    "coordinator",
    None,
    'HOST:PORT of process 0, or "auto", where devices need jax.distributed;'
    " sampling itself does not.",
  )


def check_solver() -> None:
  """Raises a ValueError for a --solver that is none, or flags of another."""
  solver, given = _solver()
  if solver is not solvers.gamma_sampling:
    wrong = [name for name in _OF_STUDENTS if FLAGS[name].present]
    if wrong:
      raise ValueError(
        f"--{wrong[0]} belongs to --solver=gamma_sampling, and this is"
        f" --solver={FLAGS.solver}; leave it out, or write options of a solver"
        f' in brackets: --solver="{solver.__name__}(...)"'
      )
  elif "gamma" in given:
    FLAGS.gamma = given["gamma"]
  if solver in _OWN_GRID and FLAGS["grid"].present:
    raise ValueError(
      f"--solver={FLAGS.solver} brings its own grid, but --grid={FLAGS.grid};"
      " leave --grid out, or name another solver"
    )


_OWN_GRID = (solvers.default, solvers.gamma_sampling, choosing.choose)


def _solver():
  """Returns (function, options) of --solver; `choose` is no solver by name."""
  if FLAGS.solver == "choose":
    return choosing.choose, {}
  return specs.parse(FLAGS.solver)


def choice_of(
  config: models.ModelConfig,
  model: denoisers.Denoiser,
  setting: dict[str, Any],
  folder: pathlib.Path,
  keep: bool,
) -> tables.Tableau:
  """Returns the table that is measured to suit the model, chosen once.

  Args:
    config: the model.
    model: the same with its weights.
    setting: what the samples depend on; of it the weights, label, guidance and
      number of calls.
    folder: where it is kept, to be read the next time.
    keep: whether this process writes it.
  """
  told = ("weights", "label", "guidance_scale", "calls")
  told = {name: setting[name] for name in told} | dict(noises=_NOISES)
  label = np.arange(_NOISES) % max(config.num_classes, 1)
  if FLAGS.label is not None:
    label = np.full(_NOISES, FLAGS.label)
  guided = jobs.conditional(
    model,
    label.astype(np.int32),
    classes=config.num_classes,
    scale=FLAGS.guidance_scale,
  )
  kept = chosen.keep(
    folder,
    told,
    lambda: choosing.choose(
      jax.random.key(0),
      guided,
      model.process,
      (FLAGS.calls,),
      config.shape,
      noises=_NOISES,
      to_zero=True,
      progress=True,
    ),
    write=keep,
  )
  print(kept.report)
  return kept.tables[FLAGS.calls]


def statistics_of(
  config: models.ModelConfig,
  model: denoisers.Denoiser,
  setting: dict[str, Any],
  folder: pathlib.Path,
  keep: bool,
) -> v3_statistics.ModelStatistics:
  """Returns the model's statistics for dpm_solver_v3, estimated once.

  Args:
    config: the model; its data set is what they are estimated on.
    model: the same with its weights.
    setting: what the samples depend on; of it the weights, label and guidance.
    folder: where they are kept, to be read when the job goes on.
    keep: whether this process writes them.

  Raises:
    ValueError: if the data set is not here.
  """
  kept = ("weights", "label", "guidance_scale")
  text = json.dumps({name: setting[name] for name in kept} | _STATISTICS)
  code = hashlib.sha256(text.encode()).hexdigest()[:16]
  path = folder / f"dpm_solver_v3-{code}.npz"
  if path.is_file():
    return v3_statistics.load(path, model.process)
  mend = (
    "; give a file of jaxdiff.solvers.v3_statistics.save:"
    " --solver=\"dpm_solver_v3(statistics='FILE.npz')\""
  )
  if not config.dataset:
    raise ValueError(
      "dpm_solver_v3 needs statistics of the model on data, and this model"
      f" does not say what it was trained on{mend}"
    )
  try:
    options = dict(config.dataset_options)
    sample = sources.subset(
      data.load(config.dataset, **options), _STATISTICS["batch"]
    )
  except (OSError, ValueError, ImportError) as e:
    raise ValueError(
      "dpm_solver_v3 needs statistics of the model on data, and those that it"
      f" was trained on cannot be read: {e}{mend}"
    ) from e
  x0 = sample["image"]
  label = sample.get("label", np.arange(len(x0)) % max(config.num_classes, 1))
  if FLAGS.label is not None:
    label = np.full(len(x0), FLAGS.label)
  guided = jobs.conditional(
    model,
    label.astype(np.int32),
    classes=config.num_classes,
    scale=FLAGS.guidance_scale,
  )
  print("Estimating the model's statistics for dpm_solver_v3.", flush=True)
  found = learning.v3_statistics.estimate(
    jax.random.key(0), guided, model.process, x0, **_STATISTICS
  )
  if keep:
    folder.mkdir(parents=True, exist_ok=True)
    v3_statistics.save(path, found)
  return found


def main() -> None:
  check_solver()
  process = process_of()
  workdir = FLAGS.workdir
  config = models.load_config(models.checkpoint_directory(workdir))
  mesh = jobs.mesh_of(FLAGS.devices)
  model = training.load_denoiser(
    workdir,
    step=FLAGS.step,
    sigma_rel=FLAGS.sigma_rel,
    mesh=mesh if FLAGS.params == "sharded" else None,
  )
  step = FLAGS.step
  if step is None:
    step = int(training.fingerprint(workdir).partition("-")[0])
  out = pathlib.Path(FLAGS.out or workdir)
  # several processes of a job draw shards of their own
  job = "sampling" if process[1] == 1 else f"sampling-{process[0]}"
  with locks.hold(out, job):
    _sample(config, model, mesh, step, out, process)


def _sample(config, model, mesh, step, out, process):
  """Draws, writes and shows the samples, and says where they are."""
  setting = setting_of(config, model, step)
  model = jobs.place(model, mesh, FLAGS.params)
  model, table = _solved(config, model, setting, out, process)
  if _solver()[0] is solvers.dpm_solver_v3:
    setting["table"] = tree.digest(table)
  job = jobs.Job(
    model,
    table,
    config.shape,
    seed=FLAGS.seed,
    classes=config.num_classes,
    label=FLAGS.label,
    guidance_scale=FLAGS.guidance_scale,
    mesh=mesh,
  )
  in_shards = _in_shards(process[1])
  setting["dtype"] = dtype_of(config.shape, in_shards)
  folder = _folder_of(setting, out, in_shards)
  stored = jobs.stored_setting(folder)
  size = FLAGS.shard_size or stored.get("shard_size") or FLAGS.batch
  jobs.keep_setting(folder, setting | dict(num=FLAGS.num, shard_size=size))
  shown = []
  show = functools.partial(
    _show, shown, folder, out / "samples.png", _title(table)
  )
  drawn = jobs.write(
    job,
    folder,
    num=FLAGS.num,
    shard_size=size,
    batch=FLAGS.batch,
    dtype=setting["dtype"],
    process=process,
    on_shard=show,
  )
  show()
  print(_finished(folder, out, in_shards, size, table.nfe, drawn))
  for line in shown:
    print(line)
  if FLAGS.trajectory:
    print(trajectory(job, out / "trajectory.png"))


def _solved(config, model, setting, out, process):
  """Returns (model, table) of --solver: students are told where they jump."""
  solver, given = _solver()
  if solver is solvers.gamma_sampling:
    grid = distillation.few_step_grid(
      model.process,
      FLAGS.calls,
      start=FLAGS.start,
      lowest=FLAGS.lowest,
      to_zero=FLAGS.to_zero,
    )
    return distillation.sampler(model, grid, gamma=FLAGS.gamma)
  if solver is choosing.choose:
    folder = pathlib.Path(FLAGS.workdir) / "choices"
    return model, choice_of(config, model, setting, folder, process[0] == 0)
  more = {}
  if solver is solvers.dpm_solver_v3 and "statistics" not in given:
    found = statistics_of(config, model, setting, out, process[0] == 0)
    more = dict(statistics=found)
  return model, table_for(model, FLAGS.solver, FLAGS.grid, FLAGS.calls, **more)


def _in_shards(processes):
  """Returns whether shards are left, as --shards says or the job needs."""
  in_shards = FLAGS.shards
  if in_shards is None:
    in_shards = FLAGS.num > _ONE_FILE or processes > 1
  if processes > 1 and not in_shards:
    raise ValueError(
      f"--noshards is for one process, but {processes} share this job; leave"
      " it out"
    )
  return in_shards


def _folder_of(setting, out, in_shards):
  """Returns the folder of shards; without them one of its own for every job."""
  if in_shards:
    return out / "samples"
  text = json.dumps(setting | dict(num=FLAGS.num), sort_keys=True)
  code = hashlib.sha256(text.encode()).hexdigest()[:16]
  return out / f".samples-{code}"


def _title(table):
  """Returns the title of the picture."""
  title = f"{FLAGS.solver}, {table.nfe} calls"
  if _solver()[0] not in _OWN_GRID:
    title += f", {FLAGS.grid} grid"
  return title


def _show(shown, folder, path, title):
  """Draws the first samples once they are there, and notes it in `shown`."""
  images = first_images(folder, min(_SHOWN, FLAGS.num)) if not shown else None
  if images is not None:
    shown.append(plots.samples(images, path, title=title))


def _finished(folder, out, in_shards, size, nfe, drawn):
  """Makes one file of what are no shards; returns what is written where."""
  if in_shards:
    count = -(-FLAGS.num // size)
    there = sum(k < count for k in shards.numbers(folder))
    return (
      f"{folder} holds {there} of {count} shards"
      f" ({FLAGS.num} samples, {nfe} calls each; {drawn} drawn now)."
    )
  jobs.merge(folder, out / "samples.npz")
  shutil.rmtree(folder)
  return f"Wrote {out}/samples.npz ({FLAGS.num} samples, {nfe} calls each)."


if __name__ == "__main__":
  define_flags()
  console.run(main)
