"""The command `jaxdiff`: every script by its name, from any directory.

  jaxdiff train --config=digits --workdir=runs/digits
  jaxdiff sample --workdir=runs/digits

is `python -m experiments.train ...` and so on: the same flags, the same files.
"""

import ast
import difflib
import pathlib
import runpy
import sys

_FOLDER = pathlib.Path(__file__).resolve().parent


def commands() -> dict[str, pathlib.Path]:
  """Returns the file of every script, by the name of its command."""
  files = [*_FOLDER.glob("*.py"), *_FOLDER.glob("*/__main__.py")]
  scripts = [f for f in files if "\nif __name__ ==" in f.read_text()]
  name = lambda f: f.parent.name if f.stem == "__main__" else f.stem
  return {name(f).replace("_", "-"): f for f in sorted(scripts, key=name)}


def summary(path: pathlib.Path) -> str:
  """Returns the first line of a script's docstring, without running it."""
  text = ast.get_docstring(ast.parse(path.read_text())) or ""
  return text.partition("\n")[0]


def usage() -> str:
  """Returns what --help prints."""
  found = commands()
  width = max(map(len, found))
  lines = [f"  {name:{width}}  {summary(p)}" for name, p in found.items()]
  head = (
    "usage: jaxdiff COMMAND --flags; jaxdiff COMMAND --help lists the flags"
  )
  return "\n".join([head, "", *lines])


def main() -> None:
  """Runs the script that the first argument names, as its own main program."""
  name, *flags = sys.argv[1:] or ["--help"]
  found = commands()
  if name in ("-h", "--help", "--helpfull", "--helpshort", "help"):
    print(usage())
    return
  name = name.replace("_", "-")
  if name not in found:
    near = difflib.get_close_matches(name, found, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    sys.exit(
      f"error: there is no command {name!r}; {hint}There are {', '.join(found)}"
    )
  path = found[name]
  module = path.parent.name if path.stem == "__main__" else path.stem
  sys.argv = [f"jaxdiff {name}", *flags]
  runpy.run_module(
    f"{__package__}.{module}", run_name="__main__", alter_sys=True
  )
