"""How every script starts: flags, errors in a line, and a quiet terminal."""

import ast
import errno
import importlib
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from absl import app
from absl import flags
from absl import logging

_FOLDER = pathlib.Path(__file__).resolve().parent.parent
_CONFIGS = _FOLDER / "configs"
_PROJECT = ("jaxdiff", "experiments")
flags.disclaim_key_flags()  # what is defined here is the script's, in --help
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (
  errno.EACCES,
  errno.EPERM,
  errno.EROFS,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.EEXIST,
  errno.ELOOP,
  errno.ENAMETOOLONG,
)
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
    except (*_MISTAKES, RuntimeError, AssertionError) as e:
      said = _line(e)
      if flags.FLAGS["verbosity"].value >= 1 or said is None:
        raise
      print(f"error: {said}", file=sys.stderr)
      return 1
    return 0

  script = sys.modules["__main__"]
  if getattr(script, "INSTALLED", False):
    script.__doc__ = as_typed(script.__doc__ or "")
  app.run(checked, flags_parser=_parse)


def as_typed(text: str) -> str:
  """Returns a help text for who typed `jaxdiff NAME`.

  Args:
    text: with commands as in a checkout, `python -m experiments.NAME`.
  """
  words = lambda m: "jaxdiff " + m[1].replace(".", " ").replace("_", "-")
  text = re.sub(r"python -m experiments\.([\w.]+\w)", words, text)
  return re.sub(r"=experiments/configs/(\w+)\.py", r"=\1", text)


def _parse(argv: list[str]) -> list[str]:
  """Parses the flags; mistakes in --config end in a line, too."""
  try:
    argv = with_config(argv)
    return app.parse_flags_with_usage(argv)
  except FileNotFoundError as e:
    mistake = str(e)
  except Exception as e:
    mistake = _config_mistake(e, argv)
    if mistake is None and isinstance(e, AttributeError | KeyError):
      mistake = unknown_entry(e, argv)
    if mistake is None:
      raise
  print(f"error: {mistake}", file=sys.stderr)
  sys.exit(1)


def checkout(what: str) -> pathlib.Path:
  """Returns the root of the checkout that the scripts stand in.

  Args:
    what: what is to be written there, for the message.

  Raises:
    ValueError: if they stand in an installed package.
  """
  root = _FOLDER.parent
  if not (root / "setup.py").is_file() or _FOLDER.name != "experiments":
    raise ValueError(
      f"{what} would be written into the installed package {_FOLDER}; run this"
      " in a checkout of jaxdiff"
    )
  return root


def define_seed(help_string: str, values: Any = flags.FLAGS) -> None:
  """Defines --seed; a key holds 32 bits of it, and more would be cut off."""
  limits = dict(lower_bound=0, upper_bound=2**32 - 1)
  flags.DEFINE_integer("seed", 0, help_string, flag_values=values, **limits)


def define_publish() -> None:
  """Defines --publish, for what a checkout has under version control."""
  flags.DEFINE_bool(
    "publish",
    False,
    "Write the results and pages of this checkout anew, rather than files in"
    " the folder of the runs.",
  )


def place(folder: pathlib.Path, committed: str) -> pathlib.Path:
  """Returns where a result goes: into `folder`, or with --publish to its place.

  Args:
    folder: folder of the runs; the result has the same name there.
    committed: its path in a checkout.

  Raises:
    ValueError: for --publish of an installed package.
  """
  if flags.FLAGS.publish:
    return checkout(committed) / committed
  folder.mkdir(parents=True, exist_ok=True)
  return folder / pathlib.PurePath(committed).name


def define_config_file(
  default: str | None, help_string: str, **options: Any
) -> None:
  """Defines --config=FILE, a file of configs/ or one's own.

  The help lists the files of the same kind, each with its first line.

  Args:
    default: name of a file of configs/, without its suffix; None for none.
    help_string: help of the flag.
    **options: options of `config_flags.DEFINE_config_file`.
  """
  from ml_collections import config_flags

  path = None if default is None else str(_CONFIGS / f"{default}.py")
  listed = "\n".join(configs(default))
  config_flags.DEFINE_config_file(
    "config", path, f"{help_string} There are\n{listed}\n", **options
  )


def configs(kind: str | None) -> list[str]:
  """Returns the files of configs/ of a kind, a line each: name and what it is.

  Args:
    kind: name of one of them; None for those of experiments/train.py.
  """
  found = {}
  first = lambda name: name and name.split("_")[0]
  others = ("base", "distill", "frontier", "learn", "search")
  kind = first(kind) if first(kind) in others else None
  for file in sorted(_CONFIGS.glob("[a-z]*.py")):
    text = file.read_text("utf-8")
    own = first(file.stem)
    if own == kind or (kind is None and own not in others):
      found[file.stem] = ast.get_docstring(ast.parse(text)).partition("\n")[0]
  width = max(map(len, found))
  return [f"{name:{width}}  {what}" for name, what in found.items()]


def define_config(config: Any, help_string: str) -> None:
  """Defines --config.NAME=VALUE over a configuration; mistakes end in a line.

  Args:
    config: a ConfigDict.
    help_string: help of the flag.
  """
  from ml_collections import config_flags

  try:
    config_flags.DEFINE_config_dict("config", config, help_string)
  except (AttributeError, KeyError) as e:
    mistake = unknown_entry(e, sys.argv)
    if mistake is None:
      raise
    print(f"error: {mistake}", file=sys.stderr)
    sys.exit(1)


def config_like(name: str) -> Any:
  """Returns --config once it is seen to be one of this script's.

  Args:
    name: a file of configs/ whose entries the script reads.

  Raises:
    ValueError: if the configuration lacks some of them, as one of another
      script does.
  """
  config, flag = flags.FLAGS.config, flags.FLAGS["config"]
  module = importlib.import_module(f"..configs.{name}", __package__)
  needed = module.get_config()
  missing = [n for n in needed if n not in config] if _is_config(config) else 0
  if missing == []:
    return config
  path = getattr(flag, "config_filename", None) or "FILE"
  lacks = "its get_config() returns no ConfigDict"
  if missing:
    shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    lacks = f"it lacks {shown}"
  raise ValueError(
    f"--config={path} is no configuration of this script: {lacks}; begin with"
    f" --config={name}, or with a copy of {_CONFIGS / f'{name}.py'}"
  )


def _is_config(config: Any) -> bool:
  from ml_collections import config_dict

  return isinstance(config, config_dict.ConfigDict)


def _config_mistake(e: Exception, argv: list[str]) -> str | None:
  """Returns which line of --config=FILE made an error, None if none did."""
  matches = (re.fullmatch(r"--?config=([^:]*)(:.*)?", a) for a in argv)
  files = [m[1] for m in matches if m]
  if isinstance(e, SyntaxError) and e.filename in files:
    return f"--config={e.filename}, line {e.lineno}: {e.msg}"
  if "no attribute 'get_config'" in str(e) and files:
    return (
      f"--config={files[-1]} defines no get_config(), which returns the"
      f" configuration; begin with a copy of a file of {_CONFIGS}"
    )
  for frame in reversed(traceback.extract_tb(e.__traceback__)):
    if frame.filename in files:
      said = str(e).partition("\n")[0]
      return (
        f"--config={frame.filename}, line {frame.lineno}:"
        f" {type(e).__name__}: {said}"
      )
  return None


def with_config(argv: list[str]) -> list[str]:
  """Returns a command line in which --config=NAME is the path of a file.

  A name stands for a file of experiments/configs, with or without its folder:
  --config=digits works from any directory.

  Raises:
    FileNotFoundError: if there is no such file.
  """
  argv = list(argv)
  for i, argument in enumerate(argv):
    match = re.fullmatch(r"--?config(?:=(.*))?", argument)
    if not match or (match[1] is None and i + 1 == len(argv)):
      continue
    path, colon, rest = (match[1] or argv[i + 1]).partition(":")
    ours = _CONFIGS / f"{pathlib.Path(path).stem}.py"
    if not pathlib.Path(path).is_file():
      if not ours.is_file():
        names = sorted(p.stem for p in _CONFIGS.glob("[a-z]*.py"))
        raise FileNotFoundError(
          f"--config={path}: there is no such file, and experiments/configs has"
          f" only {', '.join(names)}"
        )
      path = str(ours)
    argv[i : i + 1 + (match[1] is None)] = [f"--config={path}{colon}{rest}"]
  return argv


def unknown_entry(e: Exception, argv: list[str]) -> str | None:
  """Returns which --config.NAME=VALUE names no entry, None if none does.

  ml_collections ends in an error of its own there, which knows no flag.

  Args:
    e: its error.
    argv: the command line.
  """
  said = str(e)
  name = re.search(r"\.(\w+) does not exist", said)
  name = name or re.search(r"'(\w+)\\?'", said)
  if name is None:
    return None
  pattern = rf"--?(no)?[\w.]+\.{name[1]}\b.*"
  flag = next((a for a in argv if re.fullmatch(pattern, a)), None)
  if flag is None:
    return None
  near = re.search(r'Did you mean "(\w+)"', said)
  hint = f"; did you mean {near[1]!r}?" if near else ""
  return f"{flag}: the configuration has no such entry{hint}"


def _line(e: Exception) -> str | None:
  """Returns what to tell of an error in a line, None for a bug."""
  number = getattr(e, "errno", None)
  if isinstance(e, _MISTAKES) and _is_ours(e):
    return e.strerror if number else str(e)  # without "[Errno 28]"
  if isinstance(e, RuntimeError | AssertionError):
    return _no_device(e)
  if number in _NOT_WRITABLE and e.filename:
    return (
      f"{e.filename} cannot be read or written ({e.strerror}); look at who may,"
      " or give another path"
    )
  if number in _FULL:
    return (
      f"the disk is full ({e.filename or e.strerror}); whatever was complete is"
      " kept: make room and run the same command again"
    )
  return None


def _no_device(e: Exception) -> str | None:
  """Returns what to do where JAX has not the device that it was told to use."""
  frames = traceback.extract_tb(e.__traceback__)
  if not any(f.filename.endswith("xla_bridge.py") for f in frames):
    return None
  asked = os.environ.get("JAX_PLATFORMS", "")
  reason = str(e).partition("\n")[0] or "there is none"
  return (
    f"JAX_PLATFORMS={asked!r}, but JAX cannot use such a device ({reason});"
    " unset it to take what there is, set it to cpu, or install JAX for that"
    " device"
  )


def _is_ours(e: Exception) -> bool:
  """Returns whether an error was raised by a module of this project."""
  for frame, _ in traceback.walk_tb(e.__traceback__):
    module = frame.f_globals.get("__name__", "")
  return module == "__main__" or module.partition(".")[0] in _PROJECT
