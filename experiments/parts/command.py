"""The command `jaxdiff`: every script by its name, from any directory.

  jaxdiff train --config=digits --workdir=runs/digits
  jaxdiff sample --workdir=runs/digits
  jaxdiff bench sample

is `python -m experiments.train ...`, `python -m experiments.bench.sample` and
so on: the same flags, the same files.
"""

import ast
import difflib
import pathlib
import runpy
import sys

_FOLDER = pathlib.Path(__file__).resolve().parent.parent

# Folders of scripts and what these do. Their commands have two words.
GROUPS = {
  "bench": "measure speed and memory on this machine",
  "pages": "write the generated pages, tables and files of a checkout",
}


def commands() -> dict[str, str]:
  """Returns the module of every script by the words of its command.

  What a user runs comes first, then the scripts that check the library as a
  whole, then those of GROUPS. A module is named relative to `experiments`.
  """
  top = [*_FOLDER.glob("*.py"), *_FOLDER.glob("*/__main__.py")]
  files = sorted(top, key=lambda f: (f.stem == "__main__", f))
  files += [f for g in GROUPS for f in sorted((_FOLDER / g).glob("*.py"))]
  found = {}
  for file in files:
    if "\nif __name__ ==" in file.read_text("utf-8"):
      parts = file.relative_to(_FOLDER).with_suffix("").parts
      parts = parts[:-1] if parts[-1] == "__main__" else parts
      found[" ".join(parts).replace("_", "-")] = ".".join(parts)
  return found


def summary(module: str) -> str:
  """Returns the first line of a script's docstring, without running it."""
  path = _FOLDER / module.replace(".", "/")
  path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
  text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
  return text.partition("\n")[0]


def usage() -> str:
  """Returns what --help prints: what a user runs, then the other ranks."""
  found = commands()
  width = max(map(len, found))
  rank = lambda chosen: [
    f"  {name:{width}}  {summary(module)}"
    for name, module in found.items()
    if chosen(name, module)
  ]
  package = lambda module: (_FOLDER / module).is_dir()
  lines = [
    "usage: jaxdiff COMMAND --flags; jaxdiff COMMAND --help lists the flags",
    "",
    *rank(lambda name, module: " " not in name and not package(module)),
    "",
    "Check the library against papers and against other libraries:",
    *rank(lambda _, module: package(module)),
  ]
  for group, what in GROUPS.items():
    lines += ["", f"jaxdiff {group} NAME: {what}:"]
    lines += rank(lambda name, _, group=group: name.startswith(f"{group} "))
  return "\n".join(lines)


def _split(words: list[str]) -> tuple[str, list[str]]:
  """Splits the command line into the name of a command and its flags."""
  name, *rest = words
  name = name.replace("_", "-")
  if name in GROUPS and rest and not rest[0].startswith("-"):
    return f"{name} {rest[0].replace('_', '-')}", rest[1:]
  return name, rest


def main() -> None:
  """Runs the script that the first words name, as its own main program."""
  name, flags = _split(sys.argv[1:] or ["--help"])
  found = commands()
  if name in ("-h", "--help", "--helpfull", "--helpshort", "help", *GROUPS):
    print(usage())
    return
  if name not in found:
    near = difflib.get_close_matches(name, found, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    sys.exit(
      f"error: there is no command {name!r}; {hint}There are {', '.join(found)}"
    )
  # The names of experiments/ themselves, wherever the folder is installed.
  home = __package__.rpartition(".")[0]
  sys.argv = [f"jaxdiff {name}", *flags]
  runpy.run_module(
    f"{home}.{found[name]}",
    init_globals=dict(INSTALLED=True),  # for help texts: how it was typed
    run_name="__main__",
    alter_sys=True,
  )
