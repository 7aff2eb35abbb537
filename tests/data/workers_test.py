"""Batches by other processes and on devices: the same ones, in every way."""

import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import weakref

import jax
import numpy as np
import pytest

from jaxdiff import data
from jaxdiff import parallel
from tests import ROOT
from tests import virtual_devices


class Squares:
  """A source read one by one, which is pickled for a worker by its name."""

  def __init__(self, size, broken=None):
    self.size = size
    self.broken = broken

  def __len__(self):
    return self.size

  def __getitem__(self, index):
    if index == self.broken:
      raise ValueError(f"source: example {index} is broken")
    image = np.full((2, 2, 1), index**2, np.float32)
    return {"image": image, "label": np.int32(index)}


def doubled(batch):
  return {**batch, "image": 2 * batch["image"]}


def digest(batches):
  """Returns a hash of the bytes, dtypes and names of all batches."""
  code = hashlib.sha256()
  for batch in batches:
    for name, array in sorted(batch.items()):
      code.update(f"{name} {array.dtype} {array.shape}".encode())
      code.update(np.ascontiguousarray(array).tobytes())
  return code.hexdigest()


OPTIONS = dict(seed=3, transform=doubled)


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


# Worker processes.


def test_workers_give_the_same_batches_also_resumed_and_by_host():
  pytest.importorskip("grain")
  source, size, count = Squares(22), 4, 13  # 5 batches an epoch
  expected = digest(take(data.batches(source, size, **OPTIONS), count))
  iterator = data.batches(source, size, workers=2, **OPTIONS)
  first = take(iterator, 7)  # in the middle of the second epoch
  state = json.loads(json.dumps(iterator.get_state()))
  iterator.close()
  # Two hosts go on from there, each with one worker.
  halves = []
  for host in range(2):
    part = data.batches(
      source, size, workers=1, host_index=host, host_count=2, **OPTIONS
    )
    part.set_state(state)
    halves.append(take(part, count - 7))
    part.close()
  rest = [
    {name: np.concatenate([a[name], b[name]]) for name in a}
    for a, b in zip(*halves)
  ]
  assert digest(first + rest) == expected


@pytest.mark.parametrize(
  "readers",
  [
    {},
    dict(prefetch=2),
    # three starts of two processes
    pytest.param(dict(workers=2), marks=pytest.mark.slow),
  ],
)
def test_readers_end_with_the_epochs_and_hand_over_errors(readers):
  if "workers" in readers:
    pytest.importorskip("grain")
  options = dict(seed=0, shuffle=False, num_epochs=1, **readers)
  source = Squares(12, broken=6)
  iterator = data.batches(source, 4, **options)
  assert next(iterator)["label"].tolist() == [0, 1, 2, 3]
  for _ in range(2):  # whoever asks again meets the same batch
    with pytest.raises(ValueError, match="example 6 is broken"):
      next(iterator)
  assert iterator.get_state()["step"] == 1
  iterator.set_state({**iterator.get_state(), "step": 2})
  assert [b["label"].tolist() for b in iterator] == [[8, 9, 10, 11]]
  with pytest.raises(StopIteration):
    next(iterator)


KILLED = """
import multiprocessing, os, signal
from tests.data import workers_test
from jaxdiff import data

if __name__ == "__main__":
  iterator = data.batches(workers_test.Squares(22), 4, seed=0, workers=2)
  next(iterator)
  print(*[p.pid for p in multiprocessing.active_children()], flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path):
  pytest.importorskip("grain")
  (tmp_path / "killed.py").write_text(KILLED)
  done = subprocess.run(
    [sys.executable, tmp_path / "killed.py"],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  pids = [int(pid) for pid in done.stdout.split()]
  assert len(pids) == 2, done.stderr
  end = time.monotonic() + 20
  while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
    assert time.monotonic() < end, f"still there: {pids}"
    time.sleep(0.1)


def test_arrays_in_memory_need_no_workers(monkeypatch):
  source = {"image": np.arange(8.0)}
  iterator = data.batches(source, 4, seed=0, workers=2)
  one = next(iterator)
  assert iterator._from_workers is None
  np.testing.assert_array_equal(
    one["image"], next(data.batches(source, 4, seed=0))["image"]
  )
  monkeypatch.setitem(sys.modules, "grain", None)
  with pytest.raises(ImportError, match=r'pip install "jaxdiff\[data\]"'):
    data.batches(Squares(8), 4, seed=0, workers=2)


# On devices.


def readers():
  return [t for t in threading.enumerate() if t.name == "to_device"]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_state_is_that_of_the_batch_last_handed_out(size):
  expected = take(data.batches(Squares(22), 4, seed=3), 12)
  for stop in (0, 1, 6):
    with data.to_device(
      data.batches(Squares(22), 4, seed=3), size=size
    ) as iterator:
      first = take(iterator, stop)
      time.sleep(0.01)  # the thread reads ahead of what was handed out
      state = json.loads(json.dumps(iterator.get_state()))
      assert state["step"] == stop
      on = take(iterator, 2)  # and then goes back
      iterator.set_state(state)
      again = take(iterator, 12 - stop)
    assert digest(jax.device_get(first + again)) == digest(expected)
    assert digest(jax.device_get(on)) == digest(expected[stop : stop + 2])
  assert not readers()


def test_a_closed_iterator_leaves_the_host_where_the_device_was():
  host = data.batches(Squares(22), 4, seed=3)
  iterator = data.to_device(host)
  take(iterator, 3)
  iterator.close()
  assert not readers()
  assert host.get_state()["step"] == 3
  assert next(iterator)["label"].tolist() == (
    take(data.batches(Squares(22), 4, seed=3), 4)[3]["label"].tolist()
  )
  iterator.close()


def test_batches_are_laid_out_as_asked():
  mesh = parallel.data_mesh()
  sharding = parallel.batch_sharding(mesh)
  source = {"image": np.arange(32.0, dtype=np.float32).reshape(8, 2, 2)}
  options = dict(seed=0, num_epochs=2)
  host = list(data.batches(source, 8, **options))
  for wanted in (None, sharding):
    device = list(data.to_device(data.batches(source, 8, **options), wanted))
    assert digest(jax.device_get(device)) == digest(host)
    for batch in device:
      assert isinstance(batch["image"], jax.Array)
      if wanted is not None:
        assert batch["image"].sharding.is_equivalent_to(sharding, 3)


PROCESS = """
import sys
import jax
import numpy as np
address, index = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(address, 2, index)
from jaxdiff import data, parallel
host = data.batches(
  {"x": np.arange(24)}, 8, seed=1,
  host_index=jax.process_index(), host_count=jax.process_count(),
)
sharding = parallel.batch_sharding(parallel.data_mesh())
with data.to_device(host, sharding) as iterator:
  for _ in range(4):
    x = next(iterator)["x"]
    assert x.shape == (8,) and len(x.sharding.device_set) == 4
    for shard in x.addressable_shards:
      start = shard.index[0].start
      print("row", start, *np.asarray(shard.data), flush=True)
"""


def test_processes_give_their_own_rows_of_one_global_batch():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, address, str(i)],
      cwd=ROOT,
      env=virtual_devices.environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]
  found = [[None] * 8 for _ in range(4)]
  for process in processes:
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    rows = [l.split()[1:] for l in text.splitlines() if l.startswith("row")]
    assert len(rows) == 8  # two devices, four batches
    for i, (start, *values) in enumerate(rows):
      for j, value in enumerate(values):
        found[i // 2][int(start) + j] = int(value)
  alone = data.batches({"x": np.arange(24)}, 8, seed=1)
  assert found == [b["x"].tolist() for b in take(alone, 4)]


def test_errors_of_the_reader_reach_the_consumer_and_nothing_is_skipped():
  source = Squares(12, broken=6)
  host = data.batches(source, 4, seed=0, shuffle=False, num_epochs=1)
  iterator = data.to_device(host, size=3)
  assert next(iterator)["label"].tolist() == [0, 1, 2, 3]
  for _ in range(2):
    with pytest.raises(ValueError, match="example 6 is broken"):
      next(iterator)
  source.broken = None  # mended
  assert [b["label"].tolist() for b in iterator] == [
    [4, 5, 6, 7],
    [8, 9, 10, 11],
  ]
  with pytest.raises(StopIteration):
    next(iterator)
  assert not readers()


def test_an_iterator_without_a_state_will_do():
  iterator = data.to_device(iter([{"x": np.float32(i)} for i in range(5)]))
  assert [float(b["x"]) for b in iterator] == [0, 1, 2, 3, 4]
  assert iterator.get_state() is None
  with pytest.raises(ValueError, match="size: got 0"):
    data.to_device(iter([]), size=0)


def test_a_forgotten_iterator_ends_its_thread():
  iterator = data.to_device(data.batches(Squares(22), 4, seed=0))
  next(iterator)
  assert readers()
  gone = weakref.ref(iterator)
  del iterator
  assert gone() is None
  assert not readers()


def test_reading_goes_on_while_a_batch_is_used_as_far_as_was_asked():
  class Watched(Squares):
    read = 0
    changed = threading.Condition()

    def __getitem__(self, index):
      with self.changed:
        self.read += 1
        self.changed.notify_all()
      return super().__getitem__(index)

  source = Watched(64)
  size = 3
  with data.to_device(data.batches(source, 1, seed=0), size=size) as iterator:
    for used in range(1, 9):
      next(iterator)
      # `size` lie ready beside the one in use, and one is on its way; the
      # iterator isn't asked for any of them here.
      ahead = used + size + 1
      with source.changed:
        assert source.changed.wait_for(lambda n=ahead: source.read >= n, 60)
        assert source.read == ahead
