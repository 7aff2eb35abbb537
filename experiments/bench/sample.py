r"""How fast a model samples: images a second, and utilisation of the device.

  python -m experiments.bench.sample
  python -m experiments.bench.sample --workdir=runs/cifar10 --batches=256,1024 \
      --dtypes=bfloat16,float32

Measures every batch size, dtype and number of devices, after one run to
compile, and writes OUT/bench_sample.json and .md. Utilisation is model FLOPs a
second over the peak of the devices (experiments/bench/flops.py). For each cell
it also asserts in the compiled program that all network calls are one loop of
one program, which nothing on the host interrupts. Half a minute on two cores.
"""

import dataclasses
import json
import pathlib
import re
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxdiff import models

from ..parts import console

FLAGS = flags.FLAGS

_NETWORK_OPS = ("dot_general", "conv_general_dilated")
_HOST = ("callback", "infeed", "outfeed", "SendToHost", "RecvFromHost")


def measure(
  job: Any, batch: int, repeats: int, dtype: str = "float32"
) -> dict[str, Any]:
  """Returns speed and memory of drawing batches of a job.

  Args:
    job: a `jobs.Job`.
    batch: samples at a time.
    repeats: timed runs.
    dtype: that the network computes in.
  """
  from jaxdiff import jobs

  from . import flops

  devices = job.mesh.size if job.mesh else 1
  index = np.arange(batch)

  def seconds() -> float:
    begin = time.perf_counter()
    jax.block_until_ready(jobs.launch(job, index))
    return time.perf_counter() - begin

  compile_s = seconds()
  times = [seconds() for _ in range(repeats)]
  compiled = program_of(job, batch)
  memory = compiled.memory_analysis()
  x = jax.ShapeDtypeStruct((batch, *job.shape), jnp.float32)
  label = jax.ShapeDtypeStruct((batch,), jnp.int32) if job.classes else None
  call = lambda model, x, label: model(x, jnp.float32(1.0), label).x0
  per_image = flops.count(call, job.model, x, label) / batch * job.table.nfe
  speed = batch / statistics.median(times)
  used = flops.utilisation(per_image, speed, dtype=dtype, devices=devices)
  return dict(
    batch=batch,
    calls=job.table.nfe,
    images_per_second=speed,
    slowest=batch / max(times),
    fastest=batch / min(times),
    gflops_per_image=per_image / 1e9,
    first_run_s=compile_s,
    bytes_per_device=memory.temp_size_in_bytes + memory.argument_size_in_bytes,
    **one_loop(compiled.as_text()),
    **used,
  )


def program_of(job: Any, batch: int) -> Any:
  """Returns the compiled program that draws a batch."""
  from jaxdiff import jobs

  def draw(model: Any) -> Any:
    own = dataclasses.replace(job, model=model)
    return jobs.launch(own, np.arange(batch))

  return jax.jit(draw).lower(job.model).compile()


def one_loop(text: str) -> dict[str, int]:
  """Returns what a compiled program holds, refusing one that is not one loop.

  Every instruction carries the path of the operation that it comes from, on
  all devices; what runs in the solver's loop has `while/body` in it.

  Args:
    text: HLO.

  Raises:
    AssertionError: if network calls lie outside of the loop, there is not
      exactly one loop of them, or the host takes part.
  """
  entry = text[text.index("\nENTRY") :]
  paths = re.findall(r'op_name="([^"]*)"', text)
  network = [p for p in paths if p.rpartition("/")[2] in _NETWORK_OPS]
  outside = [p for p in network if "while/body" not in p]
  origins = {p.partition("/body")[0] for p in network}  # other loops draw noise
  whiles = [line for line in entry.splitlines() if " while(" in line]
  loops = sum(f'op_name="{p}"' in line for p in origins for line in whiles)
  targets = re.findall(r'custom_call_target="([^"]*)"', text)
  host = [t for t in targets if any(name in t for name in _HOST)]
  if outside or host or loops != 1:
    raise AssertionError(
      f"expected one loop of network calls: {loops} loops, {len(network)}"
      f" products and convolutions of which {len(outside)} outside of it"
      f" ({outside[:2]}), calls to the host {host}"
    )
  return dict(loops=loops, products_in_loop=len(network))


def markdown(rows: list[dict[str, Any]]) -> str:
  """Returns the results as a table."""
  head = (
    "| device | devices | params | dtype | batch | calls | images/s | GFLOP per"
    " image | utilisation | MB per device |"
  )
  lines = [head, "|" + (head.count("|") - 1) * "---|"]
  for row in rows:
    lines.append(
      f"| {row['device']} | {row['devices']} | {row['params']} |"
      f" {row['dtype']} | {row['batch']} | {row['calls']} |"
      f" {row['images_per_second']:,.1f} | {row['gflops_per_image']:.4g} |"
      f" {100 * row['utilisation']:.1f} % |"
      f" {row['bytes_per_device'] / 1e6:,.1f} |"
    )
  return "\n".join(lines) + "\n"


def main() -> None:
  config, params = _config_and_params()
  rows = []
  for devices in FLAGS.devices or [jax.local_device_count()]:
    for dtype in FLAGS.dtypes:
      job = _job(config, params, int(devices), dtype)
      for batch in map(int, FLAGS.batches):
        found = measure(job, batch, FLAGS.repeats, dtype)
        rows.append(
          dict(
            device=jax.devices()[0].device_kind,
            devices=int(devices),
            params=FLAGS.params,
            dtype=dtype,
            network=config.network,
            shape=config.shape,
            jax=jax.__version__,
            **found,
          )
        )
        print(
          f"{dtype}, batch {batch}, {devices} device(s):"
          f" {found['images_per_second']:,.1f} images/s,"
          f" {100 * found['utilisation']:.1f} % of the peak"
          f" ({found['peak_source']})",
          flush=True,
        )
  out = pathlib.Path(FLAGS.out)
  out.mkdir(parents=True, exist_ok=True)
  (out / "bench_sample.json").write_text(json.dumps(rows, indent=1) + "\n")
  (out / "bench_sample.md").write_text(markdown(rows))
  print("\n" + markdown(rows))
  print(f"Wrote {out}/bench_sample.json and .md.")


def _config_and_params():
  """Returns (config, params) of --workdir, or of a network of no training."""
  from jaxdiff import training  # after the flags: --help answers at once

  if FLAGS.workdir:
    config = models.load_config(models.checkpoint_directory(FLAGS.workdir))
    return config, training.load_denoiser(FLAGS.workdir).params
  config = models.ModelConfig(
    shape=tuple(int(d) for d in FLAGS.shape),
    network=FLAGS.network,
    network_options=json.loads(FLAGS.network_options),
    num_classes=FLAGS.num_classes,
  )
  return config, models.make_denoiser(config, jax.random.key(0)).params


def _job(config, params, devices, dtype):
  """Returns the job of the network that computes in `dtype`."""
  from jaxdiff import grids
  from jaxdiff import jobs
  from jaxdiff import solvers

  mesh = jobs.mesh_of(devices)
  options = {**config.network_options, "dtype": dtype}
  model = models.make_denoiser(
    dataclasses.replace(config, network_options=options)
  )
  model = dataclasses.replace(model, params=params)
  table = solvers.euler(
    model.process, grids.vp_quadratic(model.process, FLAGS.calls)
  )
  return jobs.Job(
    jobs.place(model, mesh, FLAGS.params),
    table,
    config.shape,
    classes=config.num_classes,
    mesh=mesh,
  )


def define_flags() -> None:
  """Defines the flags of the command line."""
  flags.DEFINE_string(
    "workdir", None, "Run of experiments.train; without one --network is taken."
  )
  flags.DEFINE_string(
    "network", "digits_unet", "Network with weights of no training."
  )
  flags.DEFINE_string("network_options", "{}", "Its attributes, as JSON.")
  flags.DEFINE_list("shape", ["8", "8", "1"], "Of one sample.")
  flags.DEFINE_integer("num_classes", 10, "Classes of the network.")
  flags.DEFINE_list("batches", ["16", "64"], "Samples at a time.")
  flags.DEFINE_list(
    "dtypes", ["float32", "bfloat16"], "What the network computes in."
  )
  flags.DEFINE_list(
    "devices", None, "Numbers of devices; all that there are by default."
  )
  flags.DEFINE_enum(
    "params", "replicated", ("replicated", "sharded"), "Parameters on devices."
  )
  flags.DEFINE_integer("calls", 18, "Network calls.", lower_bound=1)
  flags.DEFINE_integer("repeats", 5, "Timed runs.", lower_bound=1)
  flags.DEFINE_string("out", "runs/bench_sample", "Folder of the results.")


if __name__ == "__main__":
  define_flags()
  console.run(main)
