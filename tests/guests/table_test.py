"""The library inside other JAX code: every call, transform and mesh.

A cell is one call (`guest_run`) under one transform on one kind of mesh of so
many devices: it must give what the plain call gives on one device, samples of
an elementwise model bit by bit, updates but for the rounding of sums that are
split. All cells of a run are one process with eight virtual devices.
"""

import ast
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import control
from tests import ROOT
from tests import virtual_devices
from tests.guests import run as guest_run

FAST = (
  "samples-jit-explicit-8",
  "samples-call-explicit_set-2",
  "samples-vmap-explicit-2",
  "samples-shard_map-auto-4",
  "samples-shard_map-explicit_set-2",
  "samples-pmap-any-2",
  "updates-jit-explicit-2",
  "updates-shard_map-explicit_set-4",
  "updates-pmap-any-2",
)
MESHES = ("auto", "auto_set", "explicit", "explicit_set")
TRANSFORMS = dict(
  samples=("call", "jit", "vmap", "shard_map"),
  updates=("call", "jit", "vmap", "shard_map", "shardings"),
)
ALL = [
  f"{calls}-{transform}-{mesh}-{devices}"
  for calls, transforms in TRANSFORMS.items()
  for transform in transforms
  for mesh in MESHES
  for devices in (1, 2, 4, 8)
] + [f"{calls}-pmap-any-{d}" for calls in TRANSFORMS for d in (1, 2, 4, 8)]
REST = [case for case in ALL if case not in FAST]
NAMES = dict(samples=guest_run.SAMPLES, updates=guest_run.UPDATES)


@functools.cache
def table(cases):
  """Returns what tests/guests/run.py prints."""
  return virtual_devices.answer(
    guest_run.__name__, *cases, devices=8, optimized=False
  )


def cells(cases):
  return [(case, name) for case in cases for name in NAMES[case.split("-")[0]]]


def check(found, case, name):
  assert not isinstance(found, str), found
  if name in guest_run.UPDATES:
    assert found < 1e-5
  elif name == "guided" and case.split("-")[1] != "call":
    # a program around it may fuse the sum of both answers otherwise: one unit
    # in the last place of numbers of order 1, against values from 1e-2 on; that
    # the noise is the same bits is what "stochastic" says
    assert found < 1e-5
  else:
    assert found == 0.0


@pytest.mark.parametrize(("case", "name"), cells(FAST))
def test_a_guest_gets_what_the_plain_call_gives(case, name):
  check(table(FAST)[case][name], case, name)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), cells(REST))
def test_a_guest_gets_it_everywhere_else(case, name):
  check(table(tuple(REST))[case][name], case, name)


def test_no_loop_of_the_library_goes_around_control():
  """A loop of jax.lax keeps the smaller type of its first carry."""
  loops = {"scan", "while_loop", "fori_loop", "cond", "switch"}
  wrong = []
  for path in (ROOT / "jaxdiff").rglob("*.py"):
    if path.name == "control.py":
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
      if name.rpartition("lax.")[2] in loops and "lax." in name:
        wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
  assert not wrong, f"use jaxdiff.control instead of jax.lax: {wrong}"


def in_one(f, x):
  """Returns f(x) in the default shard_map, of one device."""
  mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
  split = jax.P("data")
  return jax.shard_map(f, mesh=mesh, in_specs=split, out_specs=split)(x)


def test_loops_widen_what_they_carry():
  x = np.arange(4.0, dtype=np.float32)

  def loops(x):
    zero = jnp.zeros(4)  # varies over no axis, as what is added does
    scanned, _ = control.scan(lambda c, _: (c + x, None), zero, None, length=3)
    counted = control.fori_loop(0, 3, lambda i, c: c + i * x, zero)
    whole = control.while_loop(
      lambda c: c[1] < 3, lambda c: (c[0] + x, c[1] + 1), (zero, 0)
    )[0]
    same, add = lambda v: v, lambda v: v + x
    either = control.cond(True, add, same, zero)
    other = control.switch(1, [same, add, same], zero)
    return scanned, counted, whole, either, other

  found = in_one(loops, x)
  for got, times in zip(found, (3, 3, 3, 1, 1), strict=True):
    np.testing.assert_array_equal(got, times * x)


def test_a_loop_whose_carry_changes_its_shape_is_still_refused():
  grow = lambda x: control.scan(lambda c, _: ((c, x), None), x, length=2)[0]
  with pytest.raises(TypeError, match="carry"):
    in_one(grow, np.zeros(4, np.float32))


def test_rows_and_numbers_are_those_of_the_whole_batch():
  draw = lambda n: jax.random.normal(jax.random.key(0), (n, 2))
  x = np.zeros((4, 2), np.float32)
  np.testing.assert_array_equal(control.own_rows(draw, x), draw(4))
  np.testing.assert_array_equal(control.numbers(x), np.arange(4))
  own = jax.pmap(
    lambda x: _told(lambda: (control.own_rows(draw, x), control.numbers(x))),
    axis_name="data",
    devices=jax.devices()[:1],
  )(x[None])
  np.testing.assert_array_equal(own[0][0], draw(4))
  np.testing.assert_array_equal(own[1][0], np.arange(4))


def _told(f):
  with control.batch_over("data"):
    return f()


def test_the_three_ways_of_the_page_give_the_same_samples():
  page = (ROOT / "docs" / "training.md").read_text()
  (program,) = [p for p in page.split("```python\n") if "jax.pmap(" in p]
  scope = dict(
    jax=jax,
    jd=jaxdiff,
    jnp=jnp,
    process=guest_run.EDM,
    key=guest_run.KEY,
    model=guest_run.model,
    table=guest_run.NOISY,
  )
  exec(program.split("```")[0], scope)
  want = jaxdiff.sample(
    scope["key"], scope["model"], scope["table"], scope["x"]
  )
  for way in ("one", "two", "three"):
    np.testing.assert_allclose(scope[way], want, rtol=1e-6, atol=1e-6)
