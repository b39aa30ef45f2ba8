"""The packages: those under barlowtwins/, and the folder weights/ as `barlowtwins.weights_data`.

A wheel holds only packages, so weights/ (registry, cards, small weights; at the top level for readers and for the hub)
is installed as a package of data inside `barlowtwins`. Everything else is in pyproject.toml.
"""

from __future__ import annotations

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["barlowtwins", "barlowtwins.*"]), "barlowtwins.weights_data"],
    package_dir={"barlowtwins.weights_data": "weights"},
    package_data={
        "": ["py.typed", "*.css", "*.html", "*.js", "*.json", "*.toml", "*.txt"],  # beside the modules that read them
        "barlowtwins.weights_data": ["*", "**/*"],
    },
)
