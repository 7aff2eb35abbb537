"""Imports optional packages of readers, with the command that installs them."""

import importlib
import types


def require(module: str, purpose: str, extra: str = "data") -> types.ModuleType:
  """Imports `module`, or says how to install it.

  Args:
    module: full name, for instance `"sklearn.datasets"`.
    purpose: what it is needed for, to open the message with.
    extra: the extra of this package that installs it.

  Returns:
    The module.

  Raises:
    ImportError: it, or something that it needs itself, is not installed.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(
      f"{purpose} needs {module.partition('.')[0]}, which could not be "
      f'imported ({error}). Install it with: pip install "jaxdiff[{extra}]"'
    ) from error
