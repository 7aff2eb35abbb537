"""What the sampling loop costs beside the bare network.

  python -m experiments.bench.overhead

Wall time of a 20-call run over 20 x the time of one jitted network call, in the
same process, on the demo's U-Net at batch 64; the median of 20 pairs, each
measured back to back. A minute on two cores. Expect at most 1.03.

Then the first call, which compiles, beside that of a scan written by hand for
this one solver (expect at most 1.2), and what the compiled step of a table with
a memory of four moves by the compiler's own count, in units of one state,
beside the least that a step with an anchor must move (expect at most 12 of a
multistep table).
"""

import json
import platform
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

from jaxdiff import denoisers
from jaxdiff import grids
from jaxdiff import networks
from jaxdiff import processes
from jaxdiff import sampling
from jaxdiff import solvers
from jaxdiff import tableau as tables

from ..parts import console

FLAGS = flags.FLAGS
_TABLES = (
  "dpmpp_2m",
  "ipndm(order=4)",
  "unipc(order=3)",
  "angular_adams(order=4)",
  "ddpm",
)


def main() -> None:
  network = networks.digits_unet()
  shape = (FLAGS.batch, FLAGS.size, FLAGS.size, FLAGS.channels)
  key = jax.random.key(0)
  x = 80.0 * jax.random.normal(key, shape)
  label = jnp.arange(FLAGS.batch) % 10
  params = jax.jit(network.init)(key, x, x[:, 0, 0, 0], label)["params"]
  process = processes.edm()
  model = denoisers.with_label(
    denoisers.from_linen(network, params, process), label
  )
  results, milliseconds = loops(model, process, x)
  device = jax.devices()[0].device_kind
  print(
    f"one network call: {milliseconds:.2f} ms; batch {FLAGS.batch}, {device},"
    f" jax {jax.__version__}, {platform.machine()}"
  )
  first = first_call(
    model, solvers.dpmpp_2m(process, grids.karras(process, 20)), x
  )
  print(
    f"first call, dpmpp_2m: {first['seconds']:.2f} s, {first['first_call']:.3f}"
    f" of a scan by hand ({first['seconds_by_hand']:.2f} s); the program's text"
    f" {first['program']:.2f} of its"
  )
  moves, least = steps_moved(process)
  if FLAGS.json:
    with open(FLAGS.json, "w") as f:
      json.dump(
        dict(
          overhead=results,
          states_moved=moves,
          states_least=least,
          **first,
          call_ms=milliseconds,
          device=device,
          jax=jax.__version__,
          shape=shape,
          calls=FLAGS.calls,
        ),
        f,
        indent=1,
      )


def loops(
  model: Any, process: processes.GaussianProcess, x: jax.Array
) -> tuple[dict[str, float], float]:
  """Times the loop of every table; prints and returns what it costs.

  Args:
    model: model(x, t) -> Prediction.
    process: its process.
    x: where to start.

  Returns:
    (medians of the loop's time over that of as many bare network calls, by
    table; milliseconds of one such call).
  """
  bare = jax.jit(lambda model, x, t: model(x, t).x0)
  key, t = jax.random.key(0), jnp.float32(2.0)
  call = lambda: bare(model, x, t)
  results = {}
  for name in _TABLES:
    grid = grids.karras(process, FLAGS.calls)
    table = solvers.from_spec(name)(process, grid)
    run = lambda table=table: sampling.sample(key, model, table, x)
    _seconds(run), _seconds(call, 3)  # compile and warm up
    ratios = [
      _seconds(run) / _seconds(call, FLAGS.calls) for _ in range(FLAGS.pairs)
    ]
    results[name] = statistics.median(ratios)
    low, *_, high = statistics.quantiles(ratios, n=10)
    print(
      f"{name:22s} {FLAGS.calls} calls: median {results[name]:.3f} of"
      f" {FLAGS.calls} bare network calls (10 % to 90 %: {low:.3f} to"
      f" {high:.3f})",
      flush=True,
    )
  return results, 1e3 * _seconds(call, FLAGS.calls) / FLAGS.calls


def steps_moved(
  process: processes.GaussianProcess,
) -> tuple[dict[str, float], int]:
  """Prints and returns (states moved in a step by kind of table, the least)."""
  grid = grids.karras(process, 8)
  steps = {
    "every row ends a step": solvers.ipndm(process, grid, order=4),
    "stages": tables.pad(solvers.heun(process, grid), memory=4),
  }
  moves = {}
  for name, table in steps.items():
    moved, least, products = traffic(table)
    moves[name] = moved
    print(
      f"one step with K = 4, {name}: {moved:.1f} states moved (of an anchor's"
      f" {least} at least); matrix products: {products}"
    )
  return moves, least


def _seconds(f, repeat=1):
  begin = time.perf_counter()
  for _ in range(repeat):
    out = f()
  jax.block_until_ready(out)
  return time.perf_counter() - begin


def first_call(
  model: Any, table: tables.Tableau, x: jax.Array, repeats: int = 5
) -> dict[str, float]:
  """Returns what the first call costs, beside a scan written by hand.

  The scan is what one writes for this one solver: its coefficients as arrays,
  its memory of two as a carry. Both are compiled anew, one after the other,
  without a cache on the disk.

  Args:
    model: model(x, t) -> Prediction.
    table: a multistep table of memory 2 whose output is x0, as dpmpp_2m.
    x: where to start.
    repeats: pairs of compilations.
  """
  cast = lambda leaf: jnp.asarray(leaf, jnp.float32)
  rows = (table.t, table.state[:, 0].sum(-1), table.history[:, 0])
  rows = jax.tree.map(cast, rows)
  key = jax.random.key(0)

  @jax.jit
  def by_hand(model, x, rows):
    def step(carry, row):
      y, last = carry
      t, keep, weights = row
      x0 = model(y, t).x0
      return (keep * y + weights[0] * x0 + weights[1] * last, x0), None

    return jax.lax.scan(step, (x, jnp.zeros_like(x)), rows)[0][0]

  ours = lambda model, x, rows: sampling.sample(key, model, table, x)

  def seconds(f):
    jax.clear_caches()
    begin = time.perf_counter()
    jax.block_until_ready(f(model, x, rows))
    return time.perf_counter() - begin

  cached = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # it looks at the setting once
  pairs = [(seconds(ours), seconds(by_hand)) for _ in range(repeats)]
  jax.config.update("jax_enable_compilation_cache", cached)
  compilation_cache.reset_cache()
  difference = jnp.abs(ours(model, x, rows) - by_hand(model, x, rows)).max()
  if difference > 1e-3:
    raise AssertionError(f"the scan by hand is another solver: {difference}")
  texts = [
    len(jax.jit(f).lower(model, x, rows).compile().as_text())
    for f in (ours, by_hand)
  ]
  return dict(
    first_call=statistics.median(mine / other for mine, other in pairs),
    seconds=statistics.median(mine for mine, _ in pairs),
    seconds_by_hand=statistics.median(other for _, other in pairs),
    program=texts[0] / texts[1],
  )


def traffic(
  table: tables.Tableau, shape: tuple[int, ...] = (64, 32, 32, 3)
) -> tuple[float, int, int]:
  """Returns (states moved by a compiled step, the least, matrix products).

  What the compiler counts as read and written by the step of a row, where the
  model's answer is there already, over the bytes of one state.

  Args:
    table: a table with at least five rows.
    shape: that of a state.
  """
  table = sampling.simplest(table)
  row = jax.tree.map(lambda v: v[4], sampling.rows_of(table, jnp.float32))
  x = jnp.zeros(shape)

  def step(state, x0, eps, row):
    model = lambda x, t: (x0, eps)
    index = jnp.arange(x.shape[0])
    return sampling.table_advance(model, index)(jax.random.key(0), row, state)[
      0
    ]

  compiled = (
    jax.jit(step, donate_argnums=0)
    .lower(sampling.initial_state(x, table.memory), x, x, row)
    .compile()
  )
  moved = compiled.cost_analysis()["bytes accessed"] / x.nbytes
  # y, a, x0, eps, old outputs; y', a', one slot
  least = 4 + (table.memory - 1) + 3
  return moved, least, compiled.as_text().count(" dot(")


def define_flags() -> None:
  """Defines the flags of the command line."""
  flags.DEFINE_integer("batch", 64, "Batch size.", lower_bound=1)
  flags.DEFINE_integer("calls", 20, "Network calls.", lower_bound=1)
  flags.DEFINE_integer("pairs", 20, "Timed pairs.", lower_bound=1)
  flags.DEFINE_integer("size", 8, "Side of the images, in pixels.")
  flags.DEFINE_integer("channels", 1, "Channels of the images.")
  flags.DEFINE_string("json", None, "File to write the numbers to.")


if __name__ == "__main__":
  define_flags()
  console.run(main)
