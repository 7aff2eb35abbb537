"""Pickles as data: what is read of them, and that nothing in them runs."""

import contextlib
import io
import os
import pickle
import sys
import types
import zipfile

import flax.traverse_util
import jax
import numpy as np
import pytest

from jaxdiff import pickles
from jaxdiff import weights
from tests.networks import reference_networks as reference


def test_pickles_of_plain_values_are_what_they_were():
  values = dict(
    array=np.arange(6, dtype=np.float32).reshape(2, 3),
    fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    big_endian=np.arange(3, dtype=">i4"),
    scalar=np.float64(0.5),
    plain=[1, -(2**70), 2.5, None, True, "é", b"\x00\xff", (), (1, (2, 3))],
    sets={1, 2},
    nested={"a": {"b": []}},
  )
  values["same"] = values["array"]
  for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    found = pickles.loads(pickle.dumps(values, protocol))
    for name in ("array", "fortran", "big_endian"):
      np.testing.assert_array_equal(found[name], values[name])
    assert found["same"] is found["array"]
    for name in ("scalar", "plain", "sets", "nested"):
      assert found[name] == values[name]


def test_arrays_of_python_2_are_read():
  """Whose strings are bytes, as in the published batches of CIFAR-10."""
  short = lambda b: b"U" + bytes([len(b)]) + b
  raw = bytes(range(200, 206))
  data = (
    b"\x80\x02}(" + short(b"data") + b"cnumpy.core.multiarray\n_reconstruct\n"
    b"cnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R(K\x01K\x02K\x03\x86"
    b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03" + short(b"|")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    + short(raw) + b"tb" + short(b"labels") + b"](K\x03K\x04eu."
  )  # fmt: skip
  assert pickle.loads(data, encoding="bytes")[b"labels"] == [3, 4]
  found = pickles.loads(data)
  assert found["labels"] == [3, 4]
  np.testing.assert_array_equal(
    found["data"], np.frombuffer(raw, np.uint8).reshape(2, 3)
  )


class Calls:
  """Pickled as a call of module.name(*args), the function as it is named."""

  def __init__(self, module, name, *args, state=None):
    self.function = types.FunctionType((lambda: None).__code__, {}, name)
    self.function.__module__, self.function.__qualname__ = module, name
    self.args, self.state = args, state

  def __reduce__(self):
    return self.function, self.args, self.state


@pytest.fixture
def dump(monkeypatch):
  """Returns dump(value, protocol=4) -> bytes, with any names it may hold."""

  def save_function(pickler, function):
    name = f"{function.__module__}\n{function.__qualname__}\n".encode()
    pickler.write(pickle.GLOBAL + name)

  def dump(value, protocol=4, identify=None):
    class Pickler(pickle._Pickler):
      dispatch = pickle._Pickler.dispatch | {types.FunctionType: save_function}

      def persistent_id(self, value):
        return identify(value) if identify else None

    file = io.BytesIO()
    Pickler(file, protocol).dump(value)
    return file.getvalue()

  return dump


def storage_stream(dump, numbers, kind="Float", count=None):
  """Returns a storage as torch's older format writes it."""
  storage = Calls("torch", f"{kind}Storage")
  identity = ("storage", storage.function, "7", "cpu", count or numbers.size)
  parts = [dump(0x1950A86A20F9469CFC6C, 2), dump(1001, 2)]
  parts.append(dump(dict(little_endian=True, protocol_version=1001), 2))
  only = lambda v: (*identity, None) if v is storage else None
  parts += [dump(storage, 2, only), dump(["7"], 2)]
  raw = numbers.tobytes()
  return b"".join([*parts, numbers.size.to_bytes(8, "little"), raw])


def tensor(dump, array, offset=0, size=None, stride=None, stream=None):
  """Returns what pickles as torch pickles a tensor."""
  stream = stream or storage_stream(dump, array.ravel())
  stride = stride or tuple(s // array.itemsize for s in array.strides)
  storage = Calls("torch.storage", "_load_from_bytes", stream)
  args = (storage, offset, size or array.shape, stride, False, {})
  return Calls("torch._utils", "_rebuild_tensor_v2", *args)


def test_a_tensor_is_a_view_of_its_storage(dump):
  numbers = np.arange(12, dtype=np.float32)
  stored = dump(tensor(dump, numbers, 2, (2, 3), (5, 1)))
  np.testing.assert_array_equal(pickles.loads(stored), [[2, 3, 4], [7, 8, 9]])
  for offset, size, stride in [(8, (2, 3), (5, 1)), (-1, (2,), (1,))]:
    bad = dump(tensor(dump, numbers, offset, size, stride))
    with pytest.raises(
      ValueError, match=r"leaves its storage|a tensor of size"
    ):
      pickles.loads(bad)
  with pytest.raises(ValueError, match="leaves its storage"):
    pickles.loads(dump(tensor(dump, numbers, 0, (10**9,), (0,))))


def zipped(dump, numbers, kind="Float"):
  """Returns a storage as torch's newer format, an archive, holds it."""
  storage = Calls("torch", f"{kind}Storage")
  identity = ("storage", storage.function, "0", "cpu", numbers.size)
  only = lambda v: identity if v is storage else None
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("archive/data.pkl", dump(storage, 2, only))
    archive.writestr("archive/byteorder", "little")
    archive.writestr("archive/data/0", numbers.tobytes())
  return file.getvalue()


def test_a_storage_may_be_a_zip_archive(dump):
  half = np.arange(4, dtype=np.float16)
  stored = dump(tensor(dump, half, stream=zipped(dump, half, "Half")))
  found = pickles.loads(stored)
  assert found.dtype == np.float16
  np.testing.assert_array_equal(found, half)


def module(dump, cls, parameters, modules, **attributes):
  """Returns what pickles as a network of NVIDIA's."""
  wrapped = {
    k: Calls("torch._utils", "_rebuild_parameter", tensor(dump, v), False, {})
    for k, v in parameters.items()
  }
  state = dict(_parameters=wrapped, _buffers={}, _modules=modules)
  meta = dict(
    type="class",
    version=6,
    module_src=attributes.pop("source", "raise SystemExit('the source ran')"),
    class_name=cls,
    state=state | attributes,
  )
  path = ("torch_utils.persistence", "_reconstruct_persistent_obj")
  return Calls(*path, meta)


def snapshot(dump, name="edm", source="raise SystemExit('the source ran')"):
  """Returns (bytes, arrays) of a network of `reference.EDM` in a pickle."""
  _, shapes = reference.golden(name)
  cls, kwargs = reference.EDM[name]
  arrays = reference.torch_weights(shapes)
  tree = flax.traverse_util.unflatten_dict(arrays, sep=".")

  def build(cls, tree, **attributes):
    children = {
      k: build("Layer", v) for k, v in tree.items() if isinstance(v, dict)
    }
    own = {k: v for k, v in tree.items() if not isinstance(v, dict)}
    return module(dump, cls, own, children, source=source, **attributes)

  net = build(cls, tree, _init_kwargs=kwargs, _init_args=())
  return dump(dict(ema=net, loss_fn=None)), arrays


def test_a_snapshot_is_read_without_its_source(dump, tmp_path):
  data, arrays = snapshot(dump)
  path = tmp_path / "network-snapshot-000100.pkl"
  path.write_bytes(data)
  config, params = weights.edm.load(path)
  assert (config.network, config.num_classes) == ("ddpmpp", 4)
  expected = weights.edm.convert(*reference.EDM["edm"], arrays)
  assert config == expected[0]
  assert jax.tree.all(jax.tree.map(np.array_equal, params, expected[1]))
  with pytest.raises(ValueError, match="holds EDMPrecond, but .* Precond"):
    weights.edm2.load(path)


class Attack:
  """Pickled as a call of os.system, by the class's own __reduce__."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f"touch {self.path}",)


def attacks(dump, victim):
  """Returns name to bytes of files that would make the file `victim`."""
  command = f"open({str(victim)!r}, 'w')"
  system = Attack(victim)
  stream = storage_stream(dump, np.zeros(2, np.float32))
  inside = [dump(0x1950A86A20F9469CFC6C, 2), dump(1001, 2), dump({}, 2)]
  hidden = b"".join(inside) + pickle.dumps(system, 2) + dump([], 2)
  archive = io.BytesIO()
  with zipfile.ZipFile(archive, "w") as file:
    file.writestr("archive/data.pkl", pickle.dumps(system, 2))
  getattr_ = Calls("builtins", "getattr", Calls("builtins", "__import__", "os"))
  shell = f"(S'touch {victim}'\nios\nsystem\n.".encode()
  load = ("torch.storage", "_load_from_bytes")
  persistent = ("torch_utils.persistence", "_reconstruct_persistent_obj")
  empty = module(dump, "EDMPrecond", {}, {}, source=command)
  return {
    "reduce": pickle.dumps(system),
    "reduce, protocol 0": pickle.dumps(system, 0),
    "inside the weights": dump(dict(ema=dict(a=[1, system]))),
    "eval": dump(Calls("builtins", "eval", command)),
    "exec": dump(Calls("builtins", "exec", command)),
    "getattr": dump(getattr_),
    "inst": shell,
    "numpy": dump(Calls("numpy.testing._private.utils", "runstring", command)),
    "torch": dump(Calls("torch.load", "f")),
    "in a storage": dump(Calls(*load, hidden)),
    "behind a storage": dump([Calls(*load, stream), system]),
    "in a zipped storage": dump(Calls(*load, archive.getvalue())),
    "in the older format": hidden,
    "in an archive": archive.getvalue(),
    "meta is a call": dump(Calls(*persistent, system)),
    "state of an object": dump(Calls(*persistent, dict(state=system))),
    "setstate": dump(Calls("collections", "OrderedDict", state=system)),
    "source": dump(dict(ema=empty)),
  }


def test_files_that_attack_do_nothing(dump, tmp_path):
  victim = tmp_path / "victim"
  pickle.loads(pickle.dumps(Attack(victim)))  # a real one
  assert victim.exists()
  victim.unlink()
  for name, data in attacks(dump, victim).items():
    path = tmp_path / "network.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
      weights.edm.load(path)
    assert not victim.exists(), name
    message = str(caught.value)
    if name == "source":  # read, for nothing runs; but it is no network
      assert "made with" in message or "lack" in message
    else:
      assert "nothing in it was run" in message, (name, message)
      assert "pickle asks to call" in message or "INST os system" in message


def test_arrays_of_objects_are_refused():
  for value in (np.array([{}, None]), np.zeros(2, "i4,f4")):
    with pytest.raises(ValueError, match="values of dtype"):
      pickles.loads(pickle.dumps(value))


def test_nothing_that_a_pickle_names_is_imported(dump):
  name = "wave"  # of the standard library, and loaded by nobody here
  sys.modules.pop(name, None)
  found = pickles.loads(dump(Calls(name, "open").function))
  assert str(found) == "wave.open"
  assert name not in sys.modules


def test_truncated_files_are_refused_at_every_length(dump):
  data = dump(dict(ema=tensor(dump, np.arange(6, dtype=np.float32))))
  assert pickles.loads(data)["ema"].shape == (6,)
  for length in range(len(data)):
    with pytest.raises(ValueError):
      pickles.loads(data[:length])


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_damaged_files_are_read_or_refused_and_nothing_else(dump):
  numbers = np.zeros(3, np.float32)
  files = [dump(dict(ema=tensor(dump, numbers))), storage_stream(dump, numbers)]
  files.append(zipped(dump, numbers))
  draw = np.random.default_rng(0)
  for data in files * 700:
    damaged = bytearray(data)
    for where in draw.integers(len(data), size=2):
      damaged[where] = draw.integers(256)
    with contextlib.suppress(ValueError):
      pickles.loads(bytes(damaged))


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "cannot be read"),
    (b"\x89PNG\r\n\x1a\n....", "no file of weights"),
    (b"PK\x03\x04 cut", "archive is damaged"),
    (pickle.dumps(dict(step=1)), "holds a dict with 'step', but a network"),
    (pickle.dumps([1, 2]), "holds list"),
    (pickle.dumps(np.zeros(3)), "holds ndarray"),
  ],
)
def test_foreign_files_are_refused(data, message, tmp_path):
  path = tmp_path / "edm.pkl"
  path.write_bytes(data)
  with pytest.raises(ValueError, match=message):
    weights.edm.load(path)
  with pytest.raises(FileNotFoundError, match="check the path"):
    weights.edm.load(tmp_path / "missing.pkl")
