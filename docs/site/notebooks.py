"""Notebooks with what they stored, as Markdown."""

import base64
import re

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def markdown(document: dict, stem: str) -> tuple[str, dict[str, bytes]]:
  """Returns a notebook with what it stored as Markdown, and its pictures."""
  parts, pictures = [], {}
  for cell in document["cells"]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
      parts.append(source)
    elif cell["cell_type"] == "code" and source.strip():
      parts.append(_fenced(source, "python"))
      for output in cell["outputs"]:
        parts.append(_output(output, stem, pictures))
  return "\n\n".join(parts) + "\n", pictures


def _output(output: dict, stem: str, pictures: dict[str, bytes]) -> str:
  """Returns one stored output as Markdown; keeps its picture."""
  data = output.get("data", {})
  if "image/png" in data:
    name = f"{stem}_{len(pictures)}.png"
    pictures[name] = base64.b64decode("".join(data["image/png"]))
    return f"![output of the cell above]({name})"
  if "text/markdown" in data:
    return "".join(data["text/markdown"])
  text = output.get("text", data.get("text/plain", output.get("traceback", "")))
  text = _ANSI.sub("", "".join(text)).rstrip()
  return _fenced(text, "{ .text .output }") if text else ""


def _fenced(text: str, language: str) -> str:
  """Returns a block of code, whatever marks stand in it."""
  marks = "`" * max(3, *(len(x) + 1 for x in re.findall("`+", text)), 3)
  return f"{marks} {language}\n{text}\n{marks}"
