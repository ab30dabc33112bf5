"""Example specs, ready to run; every one is loaded by a test."""

from __future__ import annotations

from importlib import resources


def example_text(name: str) -> str:
    """The text of an example, e.g. `digits-pair`."""
    return resources.files(__name__).joinpath(f"{name}.toml").read_text()
