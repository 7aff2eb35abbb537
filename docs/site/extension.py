"""Makes Markdown of the library's docstrings while they are read."""

import docstrings
import griffe
import rooms


class Markdown(griffe.Extension):
  """Rewrites every docstring of the package once it is loaded."""

  def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
    """Visits the package."""
    if pkg.name == rooms.PACKAGE:
      _visit(pkg, pkg.path)


def _visit(thing, module: str) -> None:
  """Rewrites the docstrings of a thing and of all in it."""
  if thing.is_alias:
    return
  if thing.is_module:
    module = thing.path
  if thing.docstring:
    text = docstrings.formulas(thing.docstring.value)
    thing.docstring.value = docstrings.links(text, module, thing.path)
  for inner in list(thing.members.values()):
    _visit(inner, module)
