"""What 8-bit quantization saves and costs: size, speed, error.

  python -m experiments.bench.quantization
  python -m experiments.bench.quantization --network=digits_mlp --width=1024

A fresh network with random kernels (size and speed do not depend on training),
calibrated on the path of its own sampler: bytes of the parameters, the median
wall time of one jitted call in float32, on grids in float and in int8, and the
relative error of x0 over all noise levels. Under a minute on one core. Whether
int8 is faster is the device's affair: CPUs and TPUs before v5e have no fast
int8 product in XLA.
"""

import dataclasses
import json
import statistics
import time

import jax
import jax.numpy as jnp
from absl import flags

from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import networks
from jaxdiff import processes
from jaxdiff import quantization
from jaxdiff import solvers

from ..parts import console

FLAGS = flags.FLAGS


def main() -> None:
  width = dict(digits_mlp="width", digits_unet="channels")[FLAGS.network]
  network = networks.make(FLAGS.network, num_classes=0, **{width: FLAGS.width})
  process = processes.edm()
  shape = (8, 8, 1)
  model, x, t = _untrained(network, process, shape)
  inputs = quantization.calibration_set(
    jax.random.key(2),
    model,
    solvers.dpmpp_2m(process, grids.karras(process, 20)),
    process,
    shape,
    quantization.Calibration(n=256),
  )
  config = quantization.Config(FLAGS.bits, FLAGS.bits)
  begin = time.perf_counter()
  on_grid = quantization.quantize(model, inputs, config)
  fitted = time.perf_counter() - begin
  models = {"float32": model, "on grids, float": on_grid}
  if FLAGS.bits <= 8:
    apply = dataclasses.replace(on_grid.apply, arithmetic="integer")
    models["integer"] = dataclasses.replace(on_grid, apply=apply)
  call = jax.jit(lambda model, x, t: model(x, t).x0)
  x = x * jnp.sqrt(0.25 + t**2)[:, None, None, None]
  exact, results = call(model, x, t), {}
  device = jax.devices()[0].device_kind
  print(
    f"{FLAGS.network}, width {FLAGS.width}, batch {FLAGS.batch}, {device};"
    f" ranges fitted in {fitted:.1f} s"
  )
  seconds = _seconds(call, models, x, t)
  for name, m in models.items():
    error = jnp.linalg.norm(call(m, x, t) - exact) / jnp.linalg.norm(exact)
    results[name] = dict(
      bytes=quantization.size_in_bytes(m.params),
      milliseconds=1e3 * statistics.median(seconds[name]),
      error=float(error),
    )
    r = results[name]
    print(
      f"  {name:16s} {r['bytes'] / 1e6:8.3f} MB {r['milliseconds']:8.2f} ms"
      f"   relative error {r['error']:.2e}",
      flush=True,
    )
  if FLAGS.json:
    with open(FLAGS.json, "w") as f:
      json.dump(dict(results=results, device=device), f, indent=1)


def _untrained(network, process, shape):
  """Returns (model, x, t): none of its kernels is zero; times all over."""
  x = jax.random.normal(jax.random.key(0), (FLAGS.batch, *shape))
  t = process.log_snr_inverse(jnp.linspace(4.0, -3.0, FLAGS.batch))
  params = jax.jit(network.init)(jax.random.key(1), x[:1], t[:1])["params"]
  leaves, structure = jax.tree.flatten(params)
  # kernels that start at zero would be nothing to quantize
  leaves = [
    v + jax.random.normal(jax.random.key(i), v.shape) * v.shape[0] ** -0.5
    if v.ndim > 1
    else v
    for i, v in enumerate(leaves)
  ]
  params = jax.tree.unflatten(structure, leaves)
  model = denoisers.from_linen(network, params, process)
  return model, x, t


def _seconds(call, models, x, t):
  """Returns the seconds of every call of every model, which take turns."""
  seconds = {name: [] for name in models}
  for _ in range(FLAGS.repeat + 1):  # the first call compiles
    for name, m in models.items():
      begin = time.perf_counter()
      jax.block_until_ready(call(m, x, t))
      seconds[name].append(time.perf_counter() - begin)
  return {name: taken[1:] for name, taken in seconds.items()}


def define_flags() -> None:
  """Defines the flags of the command line."""
  flags.DEFINE_enum(
    "network", "digits_mlp", ["digits_mlp", "digits_unet"], "The network."
  )
  flags.DEFINE_integer("width", 256, "Its width.", lower_bound=4)
  flags.DEFINE_integer("batch", 256, "Batch size.", lower_bound=1)
  flags.DEFINE_integer("bits", 8, "Of weights and activations.")
  flags.DEFINE_integer("repeat", 20, "Timed calls.", lower_bound=2)
  flags.DEFINE_string("json", None, "File to write the numbers to.")


if __name__ == "__main__":
  define_flags()
  console.run(main)
