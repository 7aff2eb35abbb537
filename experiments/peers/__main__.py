"""Runs every peer that is there and prints how far its samples are from ours.

  pip install -e ".[peers]"
  python -m experiments.peers                     # diffusers
  python -m experiments.peers --code=FOLDER       # and the authors' own code
  python -m experiments.peers --code=FOLDER --docs=docs/peers.md

FOLDER holds checkouts named as their repositories are (`wl-zhao/UniPC` in
FOLDER/wl-zhao/UniPC): none of that code is part of this project.
"""

import importlib.metadata
import pathlib
import subprocess

from absl import flags

from ..parts import console

_CODE = flags.DEFINE_string("code", None, "Folder with published code.")
_DOCS = flags.DEFINE_string("docs", None, "Markdown file to write.")
_ONLY = flags.DEFINE_string("only", "", "Part of the names of peers to run.")

_HEAD = """# Our tables beside other implementations

Written by `python -m experiments.peers --code=FOLDER --docs=docs/peers.md`.
Both sides start from the same noise on the same grid, in float64, and ask the
same exact denoiser (`oracles.g16`, 16 dimensions, 32 noises, ten steps). The
number is the largest difference of any coordinate over the root mean square of
the result; the bar is 1e-5, and "differs" marks where we differ on purpose.

diffusers makes grids of integer time steps and rounds to float32 in places: its
schedulers were given our grid in float64 (`sigmas`, `timesteps` or
`alphas_cumprod` set on the instance), and the `torch.float32` that their
modules cast to meant float64 for the run. The authors' code makes the same
grids by its own options, in torch's float64; it is no part of this project.
"""


def main() -> None:
  # after the flags, so that --help answers at once
  from .. import peers

  code = None if _CODE.value is None else pathlib.Path(_CODE.value).resolve()
  if code is not None and not code.is_dir():
    raise ValueError(f"--code={_CODE.value} is no folder")
  lines = []
  missing = set()
  for one in peers.load():
    if _ONLY.value not in f"{one.solver} {one.library} {one.implementation}":
      continue
    if not peers.available(one, code):
      missing.add(one.library)
      continue
    value = peers.difference(one, code)
    met = "differs" if one.differs else "yes" if value < peers.BAR else "NO"
    lines.append((one, value, met))
    print(
      f"{value:9.1e}  {met:7s}  {one.solver:18s}  {one.library}:"
      f" {one.implementation} [{one.problem}]",
      flush=True,
    )
  for library in sorted(missing):
    mend = (
      f"put its checkout in FOLDER/{library} and pass --code=FOLDER"
      if "/" in library
      else 'install it with: pip install -e ".[peers]"'
    )
    print(f"skipped {library}: {mend}")
  if not lines:
    raise ValueError("no peer was run")
  if _DOCS.value:
    path = pathlib.Path(_DOCS.value)
    path.write_text(_page(lines, code))
    print(f"Wrote {path}")


def _version(library, code) -> str:
  if "/" not in library:
    return importlib.metadata.version(library)
  head = subprocess.run(
    ["git", "-C", code / library, "rev-parse", "--short=12", "HEAD"],
    capture_output=True,
    text=True,
  )
  return f"at {head.stdout.strip() or 'an unknown commit'}"


def _page(lines, code) -> str:
  text = [_HEAD]
  libraries = dict.fromkeys(one.library for one, *_ in lines)
  for library in libraries:
    text.append(f"\n## {library} {_version(library, code)}\n")
    text.append("| ours | theirs | process | difference | within the bar |")
    text.append("|---|---|---|---|---|")
    notes = []
    for one, value, met in lines:
      if one.library == library:
        if one.note and one.note not in notes:
          notes.append(one.note)
        mark = f" ({notes.index(one.note) + 1})" if one.note else ""
        text.append(
          f"| `{one.solver}` | {one.implementation}{mark} | {one.problem} |"
          f" {value:.1e} | {met} |"
        )
    text.append("")
    text += [f"{i + 1}. {note}" for i, note in enumerate(notes)]
  return "\n".join(text).rstrip() + "\n"


if __name__ == "__main__":
  console.run(main)
