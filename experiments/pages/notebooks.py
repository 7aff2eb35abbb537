r"""Runs the notebooks of colabs/ and stores what they show in them.

  python -m experiments.pages.notebooks  # all of them, fifteen minutes
  python -m experiments.pages.notebooks --names=first_steps,pfgmpp
  python -m experiments.pages.notebooks --noexecute  # badges and installs alone

Each notebook names in its metadata the extras of jaxdiff that it needs:

  "jaxdiff": {"extras": ["data", "plots"], "code": "<sha256>"}

From these and from URL in setup.py its badge and its install cell are written.
Then its cells are run from first to last on one CPU, in an empty folder, by the
jaxdiff of this checkout; its outputs are tidied and stored, and with them
`code`, the hash of the cells that gave them. The install cell is left out of
the hash: another address changes no result. Nothing is stored if a cell fails,
or if `faults` finds something that does not belong into a notebook.
"""

import ast
import base64
import hashlib
import io
import json
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

import jaxdiff

from ..parts import console

FLAGS = flags.FLAGS
INSTALL = "install"  # id of the cell that installs jaxdiff
_BADGE = "[![Open in Colab]"
_FOLDER = "colabs"
_LIMIT = 900  # seconds for one cell
_COLAB = "https://colab.research.google.com"
# Folders that machines have and Colab's reader does not.
_PATHS = re.compile(
  r"(?<![\w.:/])/(tmp|home|root|usr|var|opt|work|mnt|private|Users)/"
  r"|\b[A-Z]:\\"
)
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")

Notebook = dict[str, Any]


def url(root: pathlib.Path) -> str:
  """Returns the project's address, URL in setup.py.

  Args:
    root: checkout.

  Raises:
    ValueError: there is no such line in setup.py.
  """
  for node in ast.parse((root / "setup.py").read_text("utf-8")).body:
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "URL":
      return ast.literal_eval(node.value)
  raise ValueError(f"{root / 'setup.py'} has no line URL = ...")


def read(path: pathlib.Path) -> Notebook:
  """Returns a notebook; `cells[i]["source"]` is one string."""
  notebook = json.loads(path.read_text("utf-8"))
  for cell in notebook["cells"]:
    cell["source"] = "".join(cell["source"])
  return notebook


def write(path: pathlib.Path, notebook: Notebook) -> None:
  """Writes a notebook as Jupyter does: sources in lines, indented by one."""
  cells = [
    cell | {"source": cell["source"].splitlines(keepends=True)}
    for cell in notebook["cells"]
  ]
  text = json.dumps(notebook | {"cells": cells}, indent=1, ensure_ascii=False)
  path.write_text(text + "\n", "utf-8")


def code(notebook: Notebook) -> str:
  """Returns the hash of the cells whose outputs are stored."""
  cells = [
    cell["source"]
    for cell in notebook["cells"]
    if cell["cell_type"] == "code" and cell["id"] != INSTALL
  ]
  return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def badge(name: str, address: str) -> str:
  """Returns the Markdown of the badge that opens a notebook in Colab."""
  target = address.replace("https://github.com", f"{_COLAB}/github", 1)
  return (
    f"{_BADGE}({_COLAB}/assets/colab-badge.svg)]"
    f"({target}/blob/main/{_FOLDER}/{name}.ipynb)"
  )


def install(extras: list[str], address: str) -> dict[str, Any]:
  """Returns the cell that installs jaxdiff where there is none."""
  source = (
    "import importlib.util\n\n"
    'if importlib.util.find_spec("jaxdiff") is None:  # a fresh Colab\n'
    f'  %pip install -q "jaxdiff[{",".join(extras)}] @ git+{address}"'
  )
  return dict(
    cell_type="code",
    id=INSTALL,
    metadata={},
    source=source,
    execution_count=None,
    outputs=[],
  )


def with_head(notebook: Notebook, name: str, address: str) -> Notebook:
  """Returns the notebook with badge and install cell written anew.

  The badge stands under the title in the first cell, the install cell is the
  second.

  Args:
    notebook: as `read` returns it; its first cell begins with the title.
    name: name of its file, without suffix.
    address: address of the project on GitHub.

  Raises:
    ValueError: its metadata do not say which extras it needs.
  """
  extras = notebook["metadata"].get("jaxdiff", {}).get("extras")
  if not extras:
    raise ValueError(
      f"{name}.ipynb does not say which extras of jaxdiff it needs; add"
      ' "jaxdiff": {"extras": ["plots"]} to its metadata'
    )
  first, *rest = (c for c in notebook["cells"] if c["id"] != INSTALL)
  title, *parts = first["source"].split("\n\n")
  parts = [part for part in parts if not part.startswith(_BADGE)]
  parts = [title, badge(name, address), *parts]
  first = first | {"source": "\n\n".join(parts)}
  return notebook | {"cells": [first, install(extras, address), *rest]}


def _small(png: str) -> str:
  """Returns a picture in 128 colours, which takes half the space or less."""
  from PIL import Image

  with Image.open(io.BytesIO(base64.b64decode(png))) as image:
    if image.mode == "P":  # it was made small before
      return png.strip()
    few = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
  file = io.BytesIO()
  few.save(file, "png", optimize=True)
  return base64.b64encode(file.getvalue()).decode()


def _tidy(output: dict[str, Any]) -> dict[str, Any]:
  """Returns an output without what the next run would have otherwise."""
  output = dict(output)
  if "execution_count" in output:
    output["execution_count"] = None
  if "text" in output:
    output["text"] = _ADDRESS.sub("0x...", "".join(output["text"]))
  data = dict(output.get("data", {}))
  if "image/png" in data:  # the picture says more than "<Figure size ...>"
    data["image/png"] = _small(data["image/png"])
    data.pop("text/plain", None)
  if "text/plain" in data:
    data["text/plain"] = _ADDRESS.sub("0x...", "".join(data["text/plain"]))
  return output | {"data": data} if data else output


def tidied(notebook: Notebook) -> Notebook:
  """Returns an executed notebook without what is only of this machine.

  Progress bars, warnings and logs, which are what stderr carries, counts and
  times of execution, and addresses in memory are taken out.
  """
  cells = []
  for cell in notebook["cells"]:
    if cell["cell_type"] == "code":
      outputs = []
      for output in cell["outputs"]:
        if output.get("name") == "stderr":
          continue
        output = _tidy(output)
        if "text" in output and outputs and "text" in outputs[-1]:
          outputs[-1]["text"] += output["text"]  # one print in two pieces
        else:
          outputs.append(output)
      cell = cell | dict(execution_count=None, outputs=outputs)
    cells.append(cell)
  return notebook | {"cells": cells}


def pictures(notebook: Notebook) -> list[str]:
  """Returns the stored pictures, PNG files in base64."""
  data = [o.get("data", {}) for _, o in _outputs(notebook)]
  return [d["image/png"] for d in data if "image/png" in d]


def _outputs(notebook: Notebook) -> Iterator[tuple[str, dict[str, Any]]]:
  for cell in notebook["cells"]:
    for output in cell.get("outputs", []):
      yield cell["id"], output


def faults(notebook: Notebook, name: str, address: str) -> list[str]:
  """Returns what is wrong with a stored notebook, a line for each fault.

  Args:
    notebook: as `read` returns it.
    name: name of its file, without suffix.
    address: address of the project.
  """
  found = []
  if with_head(notebook, name, address)["cells"] != notebook["cells"]:
    found.append(
      "badge or install cell is not that of setup.py's URL; run"
      " python -m experiments.pages.notebooks --noexecute"
    )
  if notebook["metadata"]["jaxdiff"].get("code") != code(notebook):
    found.append(
      "the stored outputs are those of other code; run"
      f" python -m experiments.pages.notebooks --names={name}"
    )
  if not pictures(notebook):
    found.append("no picture is stored")
  for cell, output in _outputs(notebook):
    if output["output_type"] == "error":
      found.append(f"{cell} is stored with an error: {output['ename']}")
    if output.get("name") == "stderr":
      found.append(f"{cell} is stored with warnings or logs")
    data = output.get("data", {})
    told = [v for kind, v in data.items() if not kind.startswith("image/")]
    for text in (output.get("text", ""), *told):
      if at := _PATHS.search("".join(text)):
        found.append(f"{cell} names a path of a machine: {at.group()}...")
      if at := _ADDRESS.search("".join(text)):
        found.append(f"{cell} shows an address in memory: {at.group()}")
  return found


def execute(notebook: Notebook, root: pathlib.Path) -> Notebook:
  """Returns the notebook with the outputs of a run in an empty folder.

  Args:
    notebook: as `read` returns it.
    root: checkout, whose jaxdiff is imported.

  Raises:
    ValueError: the jaxdiff that is imported is not that of the checkout.
  """
  import nbclient
  import nbformat

  # The kernel must find the jaxdiff that this command was started with.
  library = pathlib.Path(jaxdiff.__file__).resolve().parent.parent
  if library != root:
    raise ValueError(f"jaxdiff is imported from {library}, not from {root}")
  paths = [str(root), os.environ.get("PYTHONPATH", "")]
  environment = os.environ | dict(
    PYTHONPATH=os.pathsep.join(filter(None, paths)),
    JAX_PLATFORMS="cpu",
    PYTHONWARNINGS="ignore",
  )
  with tempfile.TemporaryDirectory() as folder:
    client = nbclient.NotebookClient(
      nbformat.from_dict(notebook),
      timeout=_LIMIT,
      kernel_name="python3",
      record_timing=False,
      resources={"metadata": {"path": folder}},
    )
    ran = client.execute(env=environment)
  # as plain data, with the lists of lines that JSON has
  return json.loads(json.dumps(ran))


def chosen(names: list[str], root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the files of notebooks by name.

  Args:
    names: names of notebooks, without suffix; empty for all.
    root: checkout.

  Raises:
    ValueError: there is no notebook of such a name.
  """
  files = sorted((root / _FOLDER).glob("*.ipynb"))
  known = {path.stem: path for path in files}
  for name in names:
    if name not in known:
      raise ValueError(
        f"there is no notebook {name!r}; there are {', '.join(known)}"
      )
  return {name: known[name] for name in names or known}


def main() -> None:
  root = console.checkout("outputs of notebooks")
  address = url(root)
  for name, path in chosen(FLAGS.names, root).items():
    notebook = with_head(read(path), name, address)
    if not FLAGS.execute:
      write(path, notebook)
      continue
    begin = time.perf_counter()
    notebook = tidied(execute(notebook, root))
    notebook["metadata"]["jaxdiff"]["code"] = code(notebook)
    if found := faults(notebook, name, address):
      raise ValueError(f"{name}.ipynb is left as it was: {'; '.join(found)}")
    write(path, notebook)
    print(
      f"{name}: {time.perf_counter() - begin:.0f} s,"
      f" {len(pictures(notebook))} pictures,"
      f" {path.stat().st_size / 1e3:.0f} kB"
    )


if __name__ == "__main__":
  flags.DEFINE_list("names", [], "Notebooks without suffix; all by default.")
  flags.DEFINE_bool(
    "execute", True, "Run the cells; else badge and install cell alone."
  )
  console.run(main)
