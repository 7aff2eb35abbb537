"""What the sampling loop costs beside the bare network.

  python -m experiments.bench.overhead

Wall time of a 20-call run over 20 x the time of one jitted network call, in the
same process, on the demo's U-Net at batch 64; the median of 20 pairs, each
measured back to back. A minute on two cores. Expect at most 1.03.

Then what the compiled step of a table with a memory of four moves, read off its
HLO, in units of one state: beside the least that any step must move.
"""

import json
import platform
import re
import statistics
import time

import jax
import jax.numpy as jnp
from absl import flags

from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import networks
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers

from ..parts import console

_BATCH = flags.DEFINE_integer("batch", 64, "Batch size.", lower_bound=1)
_CALLS = flags.DEFINE_integer("calls", 20, "Network calls.", lower_bound=1)
_PAIRS = flags.DEFINE_integer("pairs", 20, "Timed pairs.", lower_bound=1)
_SIZE = flags.DEFINE_integer("size", 8, "Side of the images, in pixels.")
_CHANNELS = flags.DEFINE_integer("channels", 1, "Channels of the images.")
_TABLES = (
  "dpmpp_2m",
  "ipndm(order=4)",
  "unipc(order=3)",
  "angular_adams(order=4)",
  "ddpm",
)
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
  for name in _TABLES:
    grid = grids.karras(process, _CALLS.value)
    table = solvers.from_spec(name)(process, grid)
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
      f"{name:22s} {_CALLS.value} calls: median {results[name]:.3f} of"
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
  moved, least, products = traffic()
  print(
    f"one step with K = 4, noise aside: {moved:.1f} states moved, at least"
    f" {least}; matrix products: {products}"
  )
  if _JSON.value:
    with open(_JSON.value, "w") as f:
      json.dump(
        dict(
          overhead=results,
          states_moved=moved,
          states_least=least,
          call_ms=milliseconds,
          device=device,
          jax=jax.__version__,
          shape=shape,
          calls=_CALLS.value,
        ),
        f,
        indent=1,
      )


def traffic(memory: int = 4) -> tuple[float, int, int]:
  """Returns (states moved by a compiled step, the least, matrix products).

  Counts what the fusions and copies of the step's program read and write, the
  network and the branches that draw noise aside; of the history written in
  place only the slot.
  """
  table = solvers.ipndm(
    processes.edm(), grids.karras(processes.edm(), 8), order=memory
  )
  row = jax.tree.map(lambda v: v[4], sampling.rows_of(table, jnp.float32))
  x = jnp.zeros((64, 32, 32, 3))

  def step(state, x0, eps, row):
    model = lambda x, t: (x0, eps)
    index = jnp.arange(x.shape[0])
    return sampling.table_advance(model, index)(jax.random.key(0), row, state)[
      0
    ]

  compiled = jax.jit(step, donate_argnums=0).lower(
    sampling.initial_state(x, memory), x, x, row
  )
  text = compiled.compile().as_text()
  entry = text[text.index("ENTRY") :]
  whole = ",".join(map(str, x.shape))
  sizes = {f"f32[{whole}]": 1, f"f32[{memory},{whole}]": memory}
  of = {}  # states held by each name
  for name, shape in re.findall(r"%?([\w.-]+) = (f32\[[\d,]*\])", entry):
    of[name] = sizes.get(shape, 0)
  moved = 0
  for line in entry.splitlines():
    found = re.match(
      r"\s*(?:ROOT )?%?([\w.-]+) = .*? (fusion|copy)\((.*?)\)", line
    )
    if found is None:
      continue
    operands = re.findall(r"%([\w.-]+)", found[3])
    parts = [of.get(name, 0) for name in operands]
    if "dynamic-update-slice" in found[1]:  # in place: writes one slot
      moved += 1 + sum(part for part in parts if part == 1)
    else:
      moved += of.get(found[1], 0) + sum(parts)
  least = 4 + (memory - 1) + 3  # y, a, x0, eps, old outputs; y', a', one slot
  return moved, least, text.count(" dot(")


if __name__ == "__main__":
  console.run(main)
