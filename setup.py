"""Packaging: the packages under barlowtwins/, and the top-level weights/ folder as `barlowtwins.weights_data`.

A wheel takes only packages, so weights/ (registry, cards, small weights; at the top level for readers and for the hub)
is mapped to a package of data inside `barlowtwins`.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "barlowtwins" / "version.py").read_text("utf-8"))
assert VERSION, "barlowtwins/version.py must name the version"

EXTRAS = {
    "fast": ["opencv-python-headless>=4.8", "simplejpeg>=1.7"],
    "onnx": ["onnx>=1.16", "onnxscript>=0.3", "onnxruntime>=1.18"],
    "report": ["matplotlib>=3.8"],
    "eval": ["scikit-learn>=1.4"],
    "map": ["scikit-learn>=1.4", "umap-learn>=0.5.6"],
    "parquet": ["pyarrow>=15"],
    "shards": ["fsspec>=2023.10"],  # behind URLs; a plain tar needs nothing
    "ray": ["ray>=2.40", "fsspec>=2023.10"],
    "timm": ["timm>=1.0"],
    "track": ["tensorboard>=2.16"],
}
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})
EXTRAS["bench"] = ["lightly>=1.5"]
EXTRAS["test"] = [
    "build>=1.2",
    "hypothesis>=6.100",
    "mypy>=1.11",
    "pandas>=2.1",  # reads what a map exports
    "pytest>=8.2",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
    "scikit-learn>=1.4",
    "selenium>=4.20",  # opens pages in Chromium
    "setuptools>=70.1",  # the tests build a wheel without the network
    *EXTRAS["parquet"],
    *EXTRAS["report"],
    *EXTRAS["track"],
    *EXTRAS["fast"],
    *EXTRAS["onnx"],  # what is exported is compared in ONNX Runtime and in timm
    *EXTRAS["timm"],
    "ray>=2.40; python_version < '3.15'",  # a cluster of two nodes, one of which is killed; without it that test skips
]

setup(
    name="barlowtwins",
    version=VERSION[1],
    description="Barlow Twins: self-supervised pretraining, pretrained weights and image embeddings in PyTorch",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="The barlowtwins authors",
    license="MIT",
    packages=[*find_packages(include=["barlowtwins", "barlowtwins.*"]), "barlowtwins.weights_data"],
    package_dir={"barlowtwins.weights_data": "weights"},
    package_data={
        "": ["py.typed", "*.css", "*.html", "*.js", "*.json", "*.toml", "*.txt"],  # beside the modules that read them
        "barlowtwins.weights_data": ["*", "**/*"],
    },
    include_package_data=False,
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.8",
        "torchvision>=0.23",
        "requests>=2.28",
        "pillow>=10.1",
        "numpy>=1.26",
        "safetensors>=0.4.3",
        "tomli>=2.0; python_version < '3.11'",
        "tqdm>=4.64",
        "tyro>=1.0",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["barlowtwins=barlowtwins.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
