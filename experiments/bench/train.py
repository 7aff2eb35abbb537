r"""What an update of `training` costs beside a bare one, and what it holds.

  python -m experiments.bench.train
  python -m experiments.bench.train --config=experiments/configs/cifar10.py \
      --updates=50 --json=bench.json

Throughput of the whole loop (data, reports, guards, averages) over that of the
shortest loop around a step written by hand: the same network, EDM's loss, Adam
and one average, nothing else. Both in one process, in turn; the median of the
pairs. About a minute on two cores; expect at least 0.95.

Then the compiled update's memory: the state goes in and comes out in the same
buffers (aliased), and what it needs beside them is compared with the bare
step's. Then the share of the time in which the loop waits for data.
"""

import json
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import flags

from jaxdiff import data
from jaxdiff import models
from jaxdiff import training

from ..parts import console
from ..parts import recipe
from ..parts import sources
from . import flops

FLAGS = flags.FLAGS


class _Bench(NamedTuple):
  """What is timed: one network, one loss, one optimizer, two loops.

  Attributes:
    config: configuration of the training.
    source: the data.
    denoiser: the model without parameters.
    params: its parameters at the beginning.
    optimizer: the optimizer.
    update: the update of `training`.
    step: the step written by hand.
    waits: shares of the time in which our loop waited for data; grows.
  """

  config: Any
  source: Any
  denoiser: Any
  params: Any
  optimizer: optax.GradientTransformation
  update: Any
  step: Any
  waits: list[float]


def main() -> None:
  bench = _bench(console.config_like("base"))
  for run in (_ours, _bare):
    run(bench, 3)  # compile
  bench.waits.clear()
  pairs = _timed(bench)
  results = _results(bench, pairs)
  ratios = [b / a for a, b in pairs]
  print(
    f"throughput: {statistics.median(ratios):.3f} of the bare loop (median of"
    f" {len(pairs)} pairs of {FLAGS.updates} updates; {min(ratios):.3f} to"
    f" {max(ratios):.3f}), {results['images_per_second']:.0f} images/s"
  )
  print(
    f"model FLOPs: {results['gflops_per_image']} G for an image of an update,"
    f" {100 * results['utilisation']:.1f} % of the peak"
    f" ({results['peak_source']})"
  )
  wait = statistics.median(bench.waits)
  print(f"waiting for data: {100 * wait:.2f} % of the time")
  for name in ("ours", "bare"):
    held = results[name]
    print(
      f"memory, {name}: arguments {held['arguments_mb']} MB, of which donated"
      f" {held['donated_mb']} MB; beside them {held['temporary_mb']} MB, output"
      f" that is not donated {held['new_output_mb']} MB"
    )
  print(json.dumps(results))
  if FLAGS.json:
    with open(FLAGS.json, "w") as f:
      json.dump(results, f, indent=1)


def _bench(config):
  source = data.load(config.dataset, **recipe.plain(config, "dataset_options"))
  model = recipe.model(config, sources.subset(source))
  denoiser = models.make_denoiser(model)
  optimizer = recipe.optimizer(config)
  update = training.make_update(
    recipe.loss(config, denoiser),
    optimizer,
    ema=config.ema,
    clip_norm=config.clip_norm,
  )
  step = bare_update(
    denoiser.apply.module, optimizer, config.ema, config.sigma_data
  )
  params = models.make_denoiser(model, jax.random.key(0)).params
  return _Bench(config, source, denoiser, params, optimizer, update, step, [])


def _read(bench):
  return data.batches(bench.source, bench.config.batch_size, seed=0)


def _state(bench):
  return training.init_state(jax.random.key(1), bench.params, bench.optimizer)


def _ours(bench, updates):
  """Runs the loop of `training`."""
  with data.to_device(_read(bench)) as iterator:
    training.train(
      _state(bench),
      bench.update,
      iterator,
      steps=updates,
      log_every=bench.config.log_every,
      on_metrics=lambda _, m: bench.waits.append(m["data_wait"]),
      progress=False,
    )


def _bare(bench, updates):
  """Runs the shortest loop around the step written by hand."""
  state = bare_state(bench.params, bench.optimizer)
  iterator, key = _read(bench), jax.random.key(1)
  for i in range(updates):
    batch = next(iterator)
    state, loss = bench.step(state, batch, jax.random.fold_in(key, i))
    if i % bench.config.log_every == 0:
      float(loss)
  jax.block_until_ready(state)


def _timed(bench):
  """Returns the pairs (seconds of ours, seconds of the bare loop)."""
  pairs = []
  for i in range(FLAGS.pairs):
    both = [(_ours, _bare), (_bare, _ours)][i % 2]  # who is first, in turn
    took = {run: _seconds(run, bench, FLAGS.updates) for run in both}
    pairs.append((took[_ours], took[_bare]))
  return pairs


def _results(bench, pairs):
  """Returns all that is written: throughput, work and memory of the update."""
  config = bench.config
  seconds = statistics.median(a for a, _ in pairs)
  rate = FLAGS.updates * config.batch_size / seconds
  with data.to_device(_read(bench)) as iterator:
    example = next(iterator)
  state = jax.eval_shape(lambda: _state(bench))
  other = bench.step.lower(
    jax.eval_shape(lambda: bare_state(bench.params, bench.optimizer)),
    example,
    jax.random.key(0),
  )
  used = flops.utilisation(
    flops.count(bench.update, state, example),
    rate / config.batch_size,
    dtype=bench.denoiser.apply.module.dtype or jnp.float32,
  )
  return dict(
    device=jax.devices()[0].device_kind,
    devices=jax.device_count(),
    jax=jax.__version__,
    dataset=config.dataset,
    batch=config.batch_size,
    parameters=sum(p.size for p in jax.tree.leaves(bench.params)),
    throughput_ratio=round(statistics.median(b / a for a, b in pairs), 4),
    images_per_second=round(rate, 1),
    data_wait=round(statistics.median(bench.waits), 5),
    state_mb=_mb(sum(_bytes(v) for v in jax.tree.leaves(state))),
    ours=memory(bench.update.lower(state, example).compile()),
    bare=memory(other.compile()),
    gflops_per_image=round(used["flops"] / config.batch_size / 1e9, 4),
    **used,
  )


def bare_state(params: Any, optimizer: optax.GradientTransformation) -> Any:
  """Returns (params, optimizer state, average), copied."""
  copy = lambda tree: jax.tree.map(jnp.copy, tree)
  return copy(params), copy(optimizer.init(params)), copy(params)


def bare_update(
  network: Any,
  optimizer: optax.GradientTransformation,
  ema: float,
  sigma_data: float,
) -> Any:
  """Returns the shortest step of EDM's training: (state, batch, key) -> ...

  Written as one would in a notebook: Karras et al. (2022), table 1.
  """

  def step(state, batch, key):
    params, opt_state, mean = state
    y = data.scaled(batch)["image"]
    level, noise, drop = jax.random.split(key, 3)
    sigma = jnp.exp(-1.2 + 1.2 * jax.random.normal(level, (len(y), 1, 1, 1)))
    x = y + sigma * jax.random.normal(noise, y.shape)
    args = ()
    if network.num_classes:
      null = jax.random.uniform(drop, batch["label"].shape) < 0.1
      args = (jnp.where(null, network.num_classes, batch["label"]),)
    both = jnp.sqrt(sigma**2 + sigma_data**2)

    def loss(params):
      c = jnp.log(sigma[:, 0, 0, 0]) / 4
      f = network.apply({"params": params}, x / both, c, *args)
      d = sigma_data**2 / both**2 * x + sigma * sigma_data / both * f
      return jnp.mean((both / (sigma * sigma_data)) ** 2 * (d - y) ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    norm = optax.tree.norm(grads)
    grads = jax.tree.map(lambda g: g / jnp.maximum(norm, 1.0), grads)
    changes, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, changes)
    mean = jax.tree.map(lambda m, p: ema * m + (1 - ema) * p, mean, params)
    return (params, opt_state, mean), value

  return jax.jit(step, donate_argnums=0)


def memory(compiled: Any) -> dict[str, float]:
  """Returns what XLA says a program holds, in megabytes."""
  held = compiled.memory_analysis()
  return dict(
    arguments_mb=_mb(held.argument_size_in_bytes),
    donated_mb=_mb(held.alias_size_in_bytes),
    new_output_mb=_mb(held.output_size_in_bytes - held.alias_size_in_bytes),
    temporary_mb=_mb(held.temp_size_in_bytes),
  )


def _seconds(run: Any, bench: _Bench, updates: int) -> float:
  begin = time.perf_counter()
  run(bench, updates)
  return time.perf_counter() - begin


def _bytes(leaf: Any) -> int:
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return 8
  return leaf.size * leaf.dtype.itemsize


def _mb(size: float) -> float:
  return round(size / 1e6, 3)


if __name__ == "__main__":
  console.define_config_file(
    "digits",
    "What to train: a file of experiments/configs/.",
    lock_config=True,
  )
  flags.DEFINE_integer("updates", 60, "Updates of a timed run.", lower_bound=1)
  flags.DEFINE_integer("pairs", 8, "Timed pairs.", lower_bound=1)
  flags.DEFINE_string("json", None, "File to write the numbers to.")
  console.run(main)
