"""The code of a model card: the very text of the file that the model was built from, and three lines that load it."""

from __future__ import annotations

import inspect
from types import ModuleType

LOADING = """
import json
from safetensors.torch import load_model

model = build(json.load(open("config.json")))
load_model(model, "model.safetensors")
model.eval()
model.register_forward_hook(lambda module, inputs, taps: taps["logits"])  # maps {maps}
"""


def loading_code(models: ModuleType, maps: str) -> str:
    """Python that builds and loads `model`. `models` needs torch alone and has a `build(config)`; `maps` says what the
    model maps to what."""
    # The import of annotations has to stand first in a file, and whoever uses the code may put something before it.
    source = inspect.getsource(models).replace("from __future__ import annotations\n", "")
    return source + LOADING.replace("{maps}", maps)
