"""Packaging of jaxdiff: `pip install -e ".[test]"` for a checkout."""

import pathlib

import setuptools

# Lower bounds are versions that the tests have really run with. There are no
# upper bounds: a library that pins them cannot be installed beside others.
REQUIRES = [
  "absl-py>=2.5",
  "chex>=0.1.92",
  "flax>=0.12.8",
  "jax>=0.10.2",
  "ml-collections>=1.1.0",
  "numpy>=2.4",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12.8",
  "scipy>=1.17",
  "tqdm>=4.70",
]

DATA = [
  "array_record>=0.8.6",
  # tensorflow-datasets imports it and does not declare it.
  "importlib_resources>=7.1",
  "pillow>=13.0",
  "scikit-learn>=1.9.1",
  "tensorflow-datasets>=4.9.10",
]

PLOTS = ["matplotlib>=3.11"]

EXTRAS = {
  "data": DATA,
  "plots": PLOTS,
  "notebooks": ["ipykernel>=7.4", "jupyterlab", *PLOTS],
  "peers": ["diffusers", "torch"],
  "test": [
    "ipykernel>=7.4",
    "mpmath>=1.4.1",
    "nbclient>=0.11",
    "nbformat>=5.11",
    "pytest>=9.2",
    "pytest-xdist>=3.8",
    "ruff>=0.17.5",
    *DATA,
    *PLOTS,
  ],
}

README = pathlib.Path(__file__).parent / "README.md"

setuptools.setup(
  name="jaxdiff",
  version="0.1.0",
  description="Diffusion solvers and samplers as data, in JAX and Flax.",
  long_description=README.read_text("utf-8") if README.exists() else "",
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["jaxdiff", "jaxdiff.*"]),
  install_requires=REQUIRES,
  extras_require=EXTRAS,
  classifiers=[
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)
