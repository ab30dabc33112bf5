"""Training neural networks together: replicas that teach each other through stale copies.

Reading order: `spec` (what may be asked for), `phase` (the words methods are written in), `methods/` (one short file
each), `loop` (training, top to bottom), `teachers` and `exchange/` (who is heard, how old), `checkpoint`, `local`.

This package never imports Ray, and importing it does not import torch: a service checks specs without.
"""

__version__ = "0.1.0"
