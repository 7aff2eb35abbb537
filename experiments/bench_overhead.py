"""What the sampling loop costs beside the bare network.

  python -m experiments.bench_overhead

Wall time of a 20-call run over 20 x the time of one jitted network call, in the
same process, on the demo's U-Net at batch 64; the median of 20 pairs, each
measured back to back. A minute on two cores. Expect at most 1.03.
"""

import json
import platform
import statistics
import time

import jax
import jax.numpy as jnp
from absl import flags

from experiments import console
from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import networks
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers

_BATCH = flags.DEFINE_integer("batch", 64, "Batch size.", lower_bound=1)
_CALLS = flags.DEFINE_integer("calls", 20, "Network calls.", lower_bound=1)
_PAIRS = flags.DEFINE_integer("pairs", 20, "Timed pairs.", lower_bound=1)
_SIZE = flags.DEFINE_integer("size", 8, "Side of the images, in pixels.")
_CHANNELS = flags.DEFINE_integer("channels", 1, "Channels of the images.")
_JSON = flags.DEFINE_string("json", None, "File to write the numbers to.")


def main() -> None:
  network = networks.digits_unet()
  shape = (_BATCH.value, _SIZE.value, _SIZE.value, _CHANNELS.value)
  key = jax.random.key(0)
  x = 80.0 * jax.random.normal(key, shape)
  label = jnp.arange(_BATCH.value) % 10
  params = jax.jit(network.init)(key, x, x[:, 0, 0, 0], label)["params"]
  process = processes.edm()
  model = denoisers.with_label(
    denoisers.from_linen(network, params, process), label
  )
  bare = jax.jit(lambda model, x, t: model(x, t).x0)
  t = jnp.float32(2.0)
  results = {}
  for name in ("dpmpp_2m", "ipndm_4", "unipc_3", "ddpm"):
    grid = grids.karras(process, _CALLS.value)
    table = solvers.CASES[name].build(process, grid)
    run = lambda table=table: sampling.sample(key, model, table, x)

    def seconds(f, repeat=1):
      begin = time.perf_counter()
      for _ in range(repeat):
        out = f()
      jax.block_until_ready(out)
      return time.perf_counter() - begin

    call = lambda: bare(model, x, t)
    seconds(run), seconds(call, 3)  # compile and warm up
    ratios = [
      seconds(run) / seconds(call, _CALLS.value) for _ in range(_PAIRS.value)
    ]
    results[name] = statistics.median(ratios)
    low, *_, high = statistics.quantiles(ratios, n=10)
    print(
      f"{name:10s} {_CALLS.value} calls: median {results[name]:.3f} of"
      f" {_CALLS.value} bare network calls (10 % to 90 %: {low:.3f} to"
      f" {high:.3f})",
      flush=True,
    )
  milliseconds = 1e3 * seconds(call, _CALLS.value) / _CALLS.value
  device = jax.devices()[0].device_kind
  print(
    f"one network call: {milliseconds:.2f} ms; batch {_BATCH.value}, {device},"
    f" jax {jax.__version__}, {platform.machine()}"
  )
  if _JSON.value:
    with open(_JSON.value, "w") as f:
      json.dump(
        dict(
          overhead=results,
          call_ms=milliseconds,
          device=device,
          jax=jax.__version__,
          shape=shape,
          calls=_CALLS.value,
        ),
        f,
        indent=1,
      )


if __name__ == "__main__":
  console.run(main)
