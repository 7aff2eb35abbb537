"""How every script starts: flags, a usage error, and a quiet terminal."""

from collections.abc import Callable

from absl import app
from absl import flags
from absl import logging


def run(main: Callable[[], None]) -> None:
  """Parses the flags and calls main().

  Libraries below report every file they open at the level INFO; such lines are
  shown with --verbosity=0 alone.
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
    return 0

  app.run(checked)
