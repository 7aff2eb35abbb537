"""What the reference shows: a page a room, each public name in one place.

A room is a package of `jaxdiff`, or a file that stands beside the packages. All
is read from the source: `__all__` and the imports of every `__init__`, nothing
listed by hand and nothing imported, so that a room that moves or comes later is
found by itself. A name that several rooms hand on is shown in the room of its
file if that makes it public, and linked from the others.
"""

import ast
import dataclasses
import functools
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = "jaxdiff"
# jaxdiff/experiments/ only points to the scripts, which have --help.
LEFT_OUT = "jaxdiff.experiments"


@dataclasses.dataclass(frozen=True)
class Module:
  """A file of the package.

  Attributes:
    name: dotted name.
    is_package: whether it is an `__init__`.
    doc: its docstring.
    defined: names that it defines, each with its docstring.
    imported: names that it imports, each with the module and the name there.
    declared: its `__all__`, or None.
    on_demand: modules that its `__getattr__` loads.
  """

  name: str
  is_package: bool
  doc: str
  defined: dict[str, str]
  imported: dict[str, tuple[str, str]]
  declared: tuple[str, ...] | None
  on_demand: tuple[str, ...]

  @property
  def public(self) -> tuple[str, ...]:
    """The names that it shows: `__all__`, or what it defines without _."""
    if self.declared is not None:
      return self.declared
    return tuple(name for name in self.defined if not name.startswith("_"))


@dataclasses.dataclass(frozen=True)
class Entry:
  """A public name of a room.

  Attributes:
    name: the name in the room.
    target: dotted name of what it is, where it is defined.
    home: the room that shows it.
    line: first line of its docstring.
  """

  name: str
  target: str
  home: str
  line: str


@functools.cache
def modules() -> dict[str, Module]:
  """Returns every module of the package by its dotted name."""
  found = {}
  for path in sorted((ROOT / PACKAGE).rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    if name != LEFT_OUT:
      found[name] = _read(path, name, is_package)
  return found


def _read(path: pathlib.Path, name: str, is_package: bool) -> Module:
  """Returns what the file says of itself."""
  tree = ast.parse(path.read_text("utf-8"))
  defined, imported, lists = {}, {}, {}
  for node in tree.body:
    match node:
      case ast.FunctionDef() | ast.ClassDef():
        defined[node.name] = ast.get_docstring(node) or ""
      case ast.ImportFrom(module=str(source), level=0):
        for alias in node.names:
          imported[alias.asname or alias.name] = (source, alias.name)
      case ast.Assign(targets=[ast.Name(id="__all__" | "_ON_DEMAND" as key)]):
        lists[key] = tuple(ast.literal_eval(node.value))
      case ast.Assign(value=ast.Name(id="Any")):
        pass  # a name for the reader of annotations
      case ast.Assign(
        targets=[ast.Name(id=key)],
        value=ast.Attribute(value=ast.Name(id=owner), attr=attribute),
      ) if owner in imported:
        imported[key] = (".".join(imported[owner]), attribute)
      case ast.Assign(targets=[ast.Name(id=key)]):
        defined[key] = ""
      case ast.AnnAssign(target=ast.Name(id=key)):
        defined[key] = ""
  return Module(
    name,
    is_package,
    ast.get_docstring(tree) or "",
    defined,
    imported,
    lists.get("__all__"),
    lists.get("_ON_DEMAND", ()),
  )


def resolve(module: str, name: str) -> str | None:
  """Returns the dotted name of what `name` means in a module, or None."""
  here = modules().get(module)
  if here is None:
    return None
  if name in here.defined:
    return f"{module}.{name}"
  if name in here.imported:
    source, original = here.imported[name]
    if (source, original) != (module, name):
      return resolve(source, original)
  inner = f"{module}.{name}"
  return inner if inner in modules() else None


@functools.cache
def rooms() -> tuple[str, ...]:
  """Returns the rooms: those that `import jaxdiff` shows, then the others."""
  found = [
    name
    for name, module in modules().items()
    if module.is_package or name.count(".") == 1
  ]
  return tuple(sorted(found, key=lambda name: (not is_shown(name), name)))


def is_shown(room: str) -> bool:
  """Returns whether `import jaxdiff` leads to the room."""
  top = modules()[PACKAGE]
  return room == PACKAGE or room.split(".")[1] in top.public + top.on_demand


def room_of(target: str) -> str:
  """Returns the room in whose folder a dotted name stands."""
  while target not in rooms():
    target = target.rpartition(".")[0]
  return target


def _names(room: str) -> list[tuple[str, str]]:
  """Returns the names of a room, each with what it is."""
  module = modules()[room]
  names = [*module.public, *module.on_demand]
  if module.is_package and module.declared is None:
    # A folder of shared parts lists nothing: its files are its names.
    inner = [name for name in modules() if name.rpartition(".")[0] == room]
    names += [name.rpartition(".")[2] for name in inner]
  found = []
  for name in dict.fromkeys(names):
    target = resolve(room, name)
    if target is None:
      raise ValueError(f"{room}.{name} is in __all__ and nowhere defined.")
    if target.rpartition(".")[2].startswith("_") and name not in module.public:
      continue
    found.append((name, target))
  return found


@functools.cache
def homes() -> dict[str, str]:
  """Returns the room that shows it, of every public thing by dotted name."""
  shown = {room: room for room in rooms()}
  listed = {room: [target for _, target in _names(room)] for room in rooms()}
  for room in rooms():  # a file that is itself a name brings its own names
    for target in list(listed[room]):
      if target in modules() and target not in shown:
        inner = [resolve(target, name) for name in modules()[target].public]
        listed[room] += [x for x in inner if x and x.startswith(target)]
  for own in (True, False):
    for room, targets in listed.items():
      for target in targets:
        if not own or room_of(target) == room:
          shown.setdefault(target, room)
  return shown


@functools.cache
def entries(room: str) -> tuple[Entry, ...]:
  """Returns the public names of a room in order of the alphabet."""
  found = [
    Entry(name, target, homes()[target], first_line(target))
    for name, target in _names(room)
  ]
  return tuple(sorted(found, key=lambda entry: entry.name.lower()))


def first_line(target: str) -> str:
  """Returns the first line of the docstring of what a dotted name means.

  A method has a file of its own, whose first line says which method it is; the
  function's own line says what it returns.
  """
  if target in modules():
    return modules()[target].doc.partition("\n")[0]
  file, _, name = target.rpartition(".")
  if file.rpartition(".")[2] == name:
    return modules()[file].doc.partition("\n")[0]
  return modules()[file].defined[name].partition("\n")[0]


def files(room: str) -> dict[str, list[str]]:
  """Returns the files that a room shows, each with the names of it to show."""
  found = {}
  for target, home in homes().items():
    if home == room and target != room:
      if target in modules():
        found.setdefault(target, [])
      else:
        file, _, name = target.rpartition(".")
        found.setdefault(file, []).append(name)
  key = lambda file: (file != room, file.rpartition(".")[2].lower(), file)
  return {file: found[file] for file in sorted(found, key=key)}
