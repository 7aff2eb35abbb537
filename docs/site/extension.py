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
  for name, inner in list(thing.members.items()):
    if thing.is_class and inner.is_attribute and not inner.docstring:
      thing.del_member(name)  # a field: its class says under Attributes what
    else:
      _visit(inner, module)
