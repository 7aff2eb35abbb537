"""Checks every link and anchor of a built site: python check.py FOLDER.

The pages are read as a browser reads them from a folder: a link that begins
with / leads nowhere there. Links to other hosts are left alone.
"""

import html.parser
import pathlib
import sys
import urllib.parse


class _Page(html.parser.HTMLParser):
  """Collects what a page links to and the anchors that it has."""

  def __init__(self, text: str):
    super().__init__()
    self.links, self.anchors, self.doubled = [], set(), set()
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    for name in {attrs.get("id"), tag == "a" and attrs.get("name")}:
      if name:
        (self.doubled if name in self.anchors else self.anchors).add(name)
    for key in ("href", "src"):
      if attrs.get(key):
        self.links.append(attrs[key])


def faults(folder: pathlib.Path) -> list[str]:
  """Returns a line for each broken link and doubled anchor in a folder."""
  pages = {
    path.resolve(): _Page(path.read_text("utf-8"))
    for path in sorted(folder.rglob("*.html"))
    if path.name != "404.html"  # it is shown at any address, by a server
  }
  found = []
  for path, page in pages.items():
    name = path.relative_to(folder.resolve())
    found += [f"{name}: id {x!r} twice" for x in sorted(page.doubled)]
    for link in page.links:
      parts = urllib.parse.urlsplit(link)
      if parts.scheme or parts.netloc:
        continue
      file = urllib.parse.unquote(parts.path)
      target = (path.parent / file).resolve() if file else path
      anchor = urllib.parse.unquote(parts.fragment)
      if file.startswith("/") or not target.is_file():
        found.append(f"{name}: {link} leads nowhere")
      elif anchor and target in pages and anchor not in pages[target].anchors:
        found.append(f"{name}: {link} has no such anchor")
  return found


def main(argv: list[str]) -> int:
  """Prints the faults; returns how many there are, as an exit status."""
  folder = pathlib.Path(argv[1])
  found = faults(folder)
  print(*found, sep="\n", end="\n" if found else "")
  if not found:
    print(f"Open {(folder / 'index.html').resolve()}")
  return min(len(found), 1)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
