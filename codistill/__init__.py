"""Training neural networks together: replicas that teach each other through stale copies.

Reading order: `spec` (what may be asked for), `phase` (the words methods are written in), `methods/` (one short file
each), `loop` (training, top to bottom), `teachers` and `exchange/` (who is heard, how old), `checkpoint`, `local`.

In a training loop of one's own: `codistill.join`, see `own_loop`.

This package never imports Ray, and importing it does not import torch: a service checks specs without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codistill.own_loop import join

__all__ = ["__version__", "join"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "join":  # only now, since it brings torch
        return import_module("codistill.own_loop").join
    raise AttributeError(f"module 'codistill' has no attribute {name!r}")
