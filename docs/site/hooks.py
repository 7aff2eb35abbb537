"""Gathers the site: README, docs, notebooks, a page for every room."""

import ast
import html as html_entities
import json
import pathlib
import posixpath
import re
import sys

import latex2mathml.converter
import notebooks
import rooms
from mkdocs.structure.files import File

_LINK = re.compile(r"(!?\[[^\]\n]*\]\()([^)\s#]*)(#[^)\s]*)?(\))")
_FORMULA = re.compile(
  r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S
)
# Where a page of the site has its source, if that is not docs/NAME itself.
_SOURCES = {}


def _address() -> str:
  """Returns the project's address, which stands in setup.py alone."""
  tree = ast.parse((rooms.ROOT / "setup.py").read_text("utf-8"))
  values = [
    node.value
    for node in tree.body
    if isinstance(node, ast.Assign) and node.targets[0].id == "URL"
  ]
  return ast.literal_eval(values[0])


def on_config(config):
  """Sets the address, and where extension.py finds what it imports.

  It is no `repo_url`: for that one the theme asks the host for numbers.
  """
  icon = "fontawesome/brands/git-alt"
  config.extra["social"] = [{"icon": icon, "link": _address()}]
  sys.path.append(str(pathlib.Path(__file__).parent))
  return config


def on_files(files, config):
  """Adds the pages that do not stand in docs/, and the navigation."""
  add = lambda uri, source, **content: _add(files, config, uri, source, content)
  add("index.md", "README.md", content=_text("README.md"))
  guides = [f.src_uri for f in files.documentation_pages()]
  guides.remove("index.md")
  order = [match[2] for match in _LINK.finditer(_text("README.md"))]
  rank = lambda uri: (
    order.index(f"docs/{uri}") if f"docs/{uri}" in order else len(order)
  )
  guides.sort(key=lambda uri: (rank(uri), uri))
  for path in sorted((rooms.ROOT / rooms.PACKAGE).rglob("README.md")):
    source = path.relative_to(rooms.ROOT).as_posix()
    uri = f"{path.parent.name}.md"
    add(uri, source, content=path.read_text("utf-8"))
    guides.append(uri)
  colabs = []
  for path in sorted((rooms.ROOT / "colabs").glob("*.ipynb")):
    uri = f"notebooks/{path.stem}.md"
    document = json.loads(path.read_text("utf-8"))
    text, pictures = notebooks.markdown(document, path.stem)
    add(uri, f"colabs/{path.name}", content=text)
    for name, data in pictures.items():
      add(f"notebooks/{name}", None, content=data)
    colabs.append(uri)
  shown, inside = [], []
  for room in rooms.rooms():
    uri = f"api/{room}.md"
    add(uri, None, content=reference(room))
    title = room.removeprefix(f"{rooms.PACKAGE}.")
    (shown if rooms.is_shown(room) else inside).append({title: uri})
  config.nav = [
    {"Home": "index.md"},
    {"Guide": guides},
    {"Notebooks": colabs},
    {"Reference": [*shown, {"what the rooms share": inside}]},
  ]
  return files


def _text(path: str) -> str:
  return (rooms.ROOT / path).read_text("utf-8")


def _add(files, config, uri, source, content):
  """Adds one generated file."""
  if source:
    _SOURCES[uri] = source
  files.append(File.generated(config, uri, **content))


def reference(room: str) -> str:
  """Returns the page of a room: its docstring, a table of names, the names."""
  lines = [_directive(room, 1, [], full=True)]
  entries = rooms.entries(room)
  if entries:
    lines += ["", "| | |", "|---|---|"]
    for entry in entries:
      line = entry.line.replace("|", r"\|")
      lines.append(f"| [`{entry.name}`][{entry.target}] | {line} |")
    lines.append("")
  for file, names in rooms.files(room).items():
    if file == room:
      lines += [_directive(f"{room}.{name}", 2, None) for name in names]
    else:
      lines.append(_directive(file, 2, names))
  return "\n".join(lines)


def _directive(target, level, members, full=False) -> str:
  """Returns the lines that tell mkdocstrings what to show."""
  lines = [f"::: {target}", "    options:", f"      heading_level: {level}"]
  if full:
    lines.append("      show_root_full_path: true")
  if members is not None:
    lines.append(f"      members: {json.dumps(members or False)}")
  return "\n".join([*lines, "", ""])


def on_page_markdown(markdown, page, config, files):
  """Points links of the repository's files to pages, or to the repository."""
  uri = page.file.src_uri
  if uri.startswith("api/"):
    return markdown
  source = _SOURCES.get(uri, f"docs/{uri}")
  pages = {f"docs/{f.src_uri}": f.src_uri for f in files}
  pages |= {where: page_uri for page_uri, where in _SOURCES.items()}
  for room in rooms.rooms():  # a room's folder or file is its page
    folder = room.replace(".", "/")
    pages |= dict.fromkeys((folder, f"{folder}.py"), f"api/{room}.md")

  def repoint(match):
    start, target, anchor, end = match.groups()
    beside = posixpath.join(posixpath.dirname(uri), target)
    if not target or ":" in target or files.get_file_from_path(beside):
      return match[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if path in pages:
      target = posixpath.relpath(pages[path], posixpath.dirname(uri) or ".")
    elif (rooms.ROOT / path).exists():
      kind = "tree" if (rooms.ROOT / path).is_dir() else "blob"
      target = f"{_address()}/{kind}/main/{path}"
    return f"{start}{target}{anchor or ''}{end}"

  return _outside_code(lambda text: _LINK.sub(repoint, text), markdown)


def _outside_code(change, markdown: str) -> str:
  """Returns the text changed outside of its fenced blocks."""
  parts = re.split(r"(^ *(`{3,}).*?^ *\2 *$)", markdown, flags=re.M | re.S)
  kept = [part for i, part in enumerate(parts) if i % 3 != 2]
  return "".join(part if i % 2 else change(part) for i, part in enumerate(kept))


def on_page_content(html, page, config, files):
  """Sets formulas; a file that shows only its own name has one heading."""
  html = _FORMULA.sub(_mathml, html)
  if not page.file.src_uri.startswith("api/"):
    return html
  for top in page.toc:
    for file in top.children:
      if [inner.title for inner in file.children] == [file.title]:
        only = file.children[0]
        file.children = only.children
        heading = f'id="{only.id}" class="doc doc-heading'
        html = html.replace(heading, f"{heading} only")
  return html


def _mathml(match: re.Match) -> str:
  """Returns a formula in the browsers' own language: no script, no font."""
  display = "block" if match[1] == "div" else "inline"
  formula = html_entities.unescape(match[2].strip())
  return latex2mathml.converter.convert(formula, display=display)
