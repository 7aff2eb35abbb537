"""The layer diagram of the library, asserted on the syntax tree of every file.

A module may import modules of lower layers and those of its own unit (a unit
is a top-level module or package of jaxdiff, or the whole of experiments).
Imports inside functions count too.
"""

import ast
import pathlib

import pytest

from tests import ROOT

# Lowest first; units of one line do not know each other. A layer of the
# diagram may be several lines here, where one of its modules builds on others.
LAYERS = [
  ("00", ("types",)),
  ("0a", ("archives", "checks", "control", "locks", "numerics", "pickles")),
  ("0b", ("checkpoints", "jacobians", "modules", "parallel", "tree")),
  ("1a", ("data", "metrics", "networks", "predictions", "processes")),
  ("1b", ("grids", "tableau")),
  (
    "2",
    ("denoisers", "guidance", "inverse", "losses", "oracles", "solvers"),
  ),
  ("3a", ("models", "sampling")),
  (
    "3b",
    (
      "densities",
      "discrete",
      "jobs",
      "phase_space",
      "quantization",
      "samplers",
      "steering",
      "training",
    ),
  ),
  ("3c", ("likelihood",)),
  ("3d", ("interpolants",)),
  (
    "4",
    (
      "choosing",
      "diagnostics",
      "distillation",
      "finetuning",
      "learning",
      "search",
      "weights",
      "zoo",
    ),
  ),
  ("5", ("domains",)),
  ("6", ("colabs", "experiments")),
]
RANK = {unit: i for i, (_, units) in enumerate(LAYERS) for unit in units}
NAME = {unit: name for name, units in LAYERS for unit in units}

# It hands on names of every layer; nothing else may import from it.
FRONT = "jaxdiff"


def modules(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the dotted name of every module of jaxdiff and experiments."""
  found = {}
  for package in ("jaxdiff", "experiments"):
    for path in sorted((root / package).rglob("*.py")):
      parts = path.relative_to(root).with_suffix("").parts
      parts = parts[:-1] if parts[-1] == "__init__" else parts
      found[".".join(parts)] = path
  return found


def unit(module: str) -> str:
  """Returns what of the table `module` belongs to, FRONT for jaxdiff itself."""
  parts = module.split(".")
  return parts[1] if parts[0] == "jaxdiff" and len(parts) > 1 else parts[0]


def imports(path: pathlib.Path, module: str) -> list[tuple[int, str]]:
  """Returns (line, module) for every import of this repository's modules."""
  package = module if path.name == "__init__.py" else module.rpartition(".")[0]
  found = []
  for node in ast.walk(ast.parse(path.read_text("utf-8"))):
    if isinstance(node, ast.Import):
      found += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        parts = package.split(".")
        parts = parts[: len(parts) - node.level + 1]
        base = ".".join([*parts, base] if base else parts)
      # `from jaxdiff import tree` imports jaxdiff.tree; a name that is no
      # unit comes from jaxdiff/__init__.py.
      if base == "jaxdiff":
        found += [
          (node.lineno, f"jaxdiff.{a.name}" if a.name in RANK else FRONT)
          for a in node.names
        ]
      else:
        found.append((node.lineno, base))
  mine = ("jaxdiff", "experiments", "colabs")
  return [(line, name) for line, name in found if name.split(".")[0] in mine]


def violations(root: pathlib.Path) -> list[str]:
  """Returns one line for every import that the table does not allow."""
  wrong = []
  for module, path in modules(root).items():
    own = unit(module)
    if own == FRONT:
      continue
    if own not in RANK:
      wrong.append(f"{module}: has no layer; give it one in layers_test.py")
      continue
    for line, target in imports(path, module):
      other = unit(target)
      where = f"{path.relative_to(root)}:{line}"
      if other == own:
        continue
      if other == FRONT:
        # Scripts are users of the library, the library itself is not.
        if own not in ("experiments", "colabs"):
          wrong.append(f"{where}: imports from jaxdiff/__init__.py")
      elif other not in RANK:
        wrong.append(f"{where}: imports {target}, which has no layer")
      elif RANK[other] >= RANK[own]:
        wrong.append(
          f"{where}: {own} (layer {NAME[own]}) imports {other} "
          f"(layer {NAME[other]}); what both need moves down"
        )
  return wrong


def test_imports_go_only_downward():
  wrong = violations(ROOT)
  assert not wrong, "\n".join(wrong)


def diagram() -> str:
  """Returns the layers that have files, the highest first, as a table."""
  there = {unit(name) for name in modules(ROOT)} | {"colabs"}
  rows = [
    f"| {name} | {', '.join(f'`{u}`' for u in units if u in there)} |"
    for name, units in reversed(LAYERS)
    if set(units) & there
  ]
  return "\n".join(["| layer | units |", "|---|---|", *rows])


def test_the_page_shows_these_layers():
  page = (ROOT / "docs" / "design.md").read_text("utf-8")
  _, rest = page.split("<!-- layers -->\n")
  shown, _ = rest.split("\n<!-- /layers -->")
  assert shown == diagram(), f"docs/design.md should have\n{diagram()}"


def test_every_unit_has_one_layer():
  listed = [unit for _, units in LAYERS for unit in units]
  assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
  ("module", "source", "expected"),
  [
    ("tree", "import jaxdiff.solvers.euler", "tree (layer 0b) imports solvers"),
    (
      "tree",
      "from jaxdiff import parallel",
      "tree (layer 0b) imports parallel",
    ),
    ("processes", "from jaxdiff import grids", "processes (layer 1a) imports"),
    ("grids", "from jaxdiff import processes", None),
    ("training", "from jaxdiff import samplers", "training (layer 3b) imports"),
    ("solvers.x", "from . import y", None),
    ("solvers.x", "from ..guidance import cfg", "solvers (layer 2) imports"),
    ("solvers.x", "def f():\n  from jaxdiff import search", "imports search"),
    ("solvers.x", "from jaxdiff import sample", "jaxdiff/__init__.py"),
    ("solvers.x", "import jaxdiff", "jaxdiff/__init__.py"),
    ("novel", "import jax", "has no layer"),
    ("domains.x", "from jaxdiff.novel import f", "has no layer"),
    ("solvers.x", "from jaxdiff.tree import normal", None),
  ],
)
def test_the_walk_sees_what_it_should(tmp_path, module, source, expected):
  path = tmp_path / "jaxdiff" / (module.replace(".", "/") + ".py")
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(source + "\n")
  wrong = violations(tmp_path)
  if expected is None:
    assert not wrong
  else:
    assert len(wrong) == 1
    assert expected in wrong[0]


# --- the size of a function ---------------------------------------------------

LONGEST = 60  # lines of a function; its docstring does not count


def lengths(text: str) -> dict[str, int]:
  """Returns the lines of every function of a file, without its docstring."""
  found = {}
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      lines = node.end_lineno - node.lineno + 1
      if ast.get_docstring(node, clean=False) is not None:
        lines -= node.body[0].end_lineno - node.body[0].lineno + 1
      found[f"{node.name}:{node.lineno}"] = lines
  return found


def test_no_function_is_longer_than_a_screen():
  long = [
    f"{path.relative_to(ROOT)}: {name} has {n} lines"
    for path in modules(ROOT).values()
    for name, n in lengths(path.read_text("utf-8")).items()
    if n > LONGEST
  ]
  assert not long, "\n".join(long)


def test_lines_are_counted_without_the_docstring():
  text = 'def f(\n  x,\n):\n  """One\n  Two"""\n  y = x\n  return y\n'
  assert lengths(text) == {"f:1": 5}
  assert lengths("class A:\n  @b\n  def f(x):\n    pass\n") == {"f:3": 2}


# --- where a test is ----------------------------------------------------------

# What has no test of its own, and the file that tests it beside others.
TESTED_IN = {"transition_matching/fhtm": "transition_matching/variants"}


def test_every_file_of_distillation_has_its_test():
  room = ROOT / "jaxdiff" / "distillation"
  for path in sorted(room.rglob("*.py")):
    name = path.relative_to(room).with_suffix("").as_posix()
    if path.name != "__init__.py":
      name = TESTED_IN.get(name, name)
      test = ROOT / "tests" / "distillation" / f"{name}_test.py"
      assert test.is_file(), f"{path.relative_to(ROOT)} has no {test.name}"
