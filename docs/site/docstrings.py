"""Markdown of docstrings.

A formula in them is plain text, indented below a blank line or a sentence: it
becomes a block that keeps its lines. A name stands in backquotes: where it
means something that the reference shows, it becomes a link. A star is a star,
but for *one word* between two.
"""

import re

import rooms

# What the Google style gives a meaning of its own.
_SECTION = re.compile(
  r"(Args|Arguments|Attributes|Examples?|Raises|Returns|Yields):\s*$"
)
_NAME = re.compile(r"(?<![`\[\w])`([A-Za-z_][\w.]*)`(?![`\]\w])")
# *args and **options of an `Args` section are names, whose stars belong there.
_STAR = re.compile(
  r"(^ +\*{1,2}\w+(?=:| \())|(?<!\w)(\*\w+\*)(?!\w)|(`[^`]*`)|\*"
)
_FENCE = "```"


def formulas(text: str) -> str:
  """Returns the docstring with its indented formulas as fenced blocks."""
  out, block = [], []
  section = listed = False

  def close():
    while block and not block[-1].strip():
      block.pop()
    if block:
      width = min(len(x) - len(x.lstrip()) for x in block if x.strip())
      out.extend(["", _FENCE + " { .text .formula }"])
      out.extend(line[width:] for line in block)
      out.extend([_FENCE, ""])
    block.clear()

  for line in text.splitlines():
    indented = line.startswith(" ")
    if block and (indented or not line.strip()):
      block.append(line)
      continue
    close()
    if line.rstrip() == "Example:":
      line = "Examples:"  # the one of the two that becomes a block of code
    if not indented and line.strip():
      section = bool(_SECTION.match(line))
      listed = bool(re.match(r"([-*]|\d+\.) ", line))
    if indented and not section and not listed:
      block.append(line)
    else:
      out.append(line)
  close()
  return "\n".join(out).strip("\n")


def links(text: str, module: str, path: str) -> str:
  """Returns the text with links from names to what the reference shows."""
  fenced, out = False, []

  def link(match: re.Match) -> str:
    target = meaning(match[1], module)
    if target in rooms.homes() and target != path:
      return f"[`{match[1]}`][{target}]"
    return match[0]

  for line in text.splitlines():
    # A line of prose may begin with a "greater than": that is no quotation.
    line = re.sub(r"^( *)>(?!>>)", r"\1\\>", line) if not fenced else line
    if line.lstrip().startswith((_FENCE, ">>>", "...")):
      fenced ^= line.lstrip().startswith(_FENCE)
      out.append(line)
    else:
      out.append(line if fenced else _NAME.sub(link, _STAR.sub(_star, line)))
  return "\n".join(out)


def _star(match: re.Match) -> str:
  """Returns names, emphasis and code as they are, a star as one that shows."""
  return match[1] or match[2] or match[3] or r"\*"


def meaning(name: str, module: str) -> str | None:
  """Returns what a name in the prose of a module means, or None.

  It is looked for as a reader would: in the file, in its room, in the rooms
  above it.
  """
  first, *rest = name.split(".")
  scopes = [module]
  while "." in scopes[-1]:
    scopes.append(scopes[-1].rpartition(".")[0])
  if first in (rooms.PACKAGE, "jd"):
    starts = [rooms.PACKAGE]
  else:
    starts = [rooms.resolve(scope, first) for scope in scopes]
  for target in starts:
    for part in rest:
      target = target and rooms.resolve(target, part)
    if target:
      return target
  return None
