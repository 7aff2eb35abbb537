"""How every script starts: flags, errors in a line, and a quiet terminal."""

import linecache
import pathlib
import sys
import traceback
from collections.abc import Callable

from absl import app
from absl import flags
from absl import logging

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_CODE = (_ROOT / "jaxdiff", _ROOT / "experiments")
_MISTAKES = (ValueError, TypeError, OSError, ImportError, FloatingPointError)


def run(main: Callable[[], None]) -> None:
  """Parses the flags and calls main().

  Libraries below report every file they open at the level INFO; such lines are
  shown with --verbosity=0 alone. What the project's own checks refuse ends in
  a line "error: ..." and exit code 1; --verbosity=1 shows where it was found.
  """

  def checked(argv: list[str]) -> int:
    if len(argv) > 1:
      raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)
    try:
      main()
    except KeyboardInterrupt:
      print("\nInterrupted. Run the same command again to go on from here.")
      return 130  # what shells expect of a program stopped by Ctrl-C
    except _MISTAKES as e:
      if flags.FLAGS["verbosity"].value >= 1 or not _is_check(e):
        raise
      print(f"error: {e}", file=sys.stderr)
      return 1
    return 0

  app.run(checked)


def _is_check(e: Exception) -> bool:
  """Whether a `raise` of this project made the error, rather than a bug."""
  *_, last = traceback.extract_tb(e.__traceback__)
  inside = any(f in pathlib.Path(last.filename).parents for f in _CODE)
  line = linecache.getline(last.filename, last.lineno).strip()
  return inside and line.startswith("raise ")
