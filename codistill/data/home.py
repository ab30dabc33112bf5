"""Where data sets live, and what they and models are called there. Imports no torch.

<data home>/
  registry.json            names that the operator gave to data sets and models elsewhere
  <name>/                  one imported data set
    dataset.json           what it is: columns, splits, licence, digest
    train-00000.parquet    ...
"""

from __future__ import annotations

import os
from pathlib import Path


class DataError(RuntimeError):
    """A data set or model is missing, damaged, or not what it should be; the message says what to do."""


def data_home() -> Path:
    """`$CODISTILL_DATA`, else `data` in `$CODISTILL_HOME`, else `~/.codistill/data`; it need not exist."""
    given = os.environ.get("CODISTILL_DATA")
    if given:
        return Path(given).expanduser().absolute()
    home = os.environ.get("CODISTILL_HOME") or Path.home() / ".codistill"
    return Path(home).expanduser().absolute() / "data"
