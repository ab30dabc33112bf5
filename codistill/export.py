"""The model as it is served: weights, what it takes to build the model, and a card. Loads without this package."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_model
from torch import nn

from codistill.recipes import Recipe
from codistill.run_dir import RunDir, StorageError, write_json
from codistill.spec import JobSpec

CARD = """\
# {job}, {replica}

Trained by codistill with method `{method}` on recipe `{recipe}`, {steps} steps, seed {seed}.

Validation: {metrics}.

`model.safetensors` holds the weights, `config.json` what it takes to build the model. To load it, {needed}:

```python
{code}
```
"""
NEEDED = "no more than torch and safetensors is needed"
NEEDED_OF_INSTALLED = "the package that the recipe comes from is needed, too"


def write_export(
    run: RunDir, replica: str, module: nn.Module, spec: JobSpec, recipe: Recipe, metrics: Mapping[str, float]
) -> Path:
    """Write `export/<replica>/`, replacing an older one; `manifest.json` is written last.

    Raises `StorageError` when the disk refuses.
    """
    directory = run.export(replica)
    temporary = directory.with_name(f".{replica}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_model(module.cpu(), str(temporary / "model.safetensors"))
        write_json(temporary / "config.json", recipe.config())
        write_json(temporary / "recipe.json", spec.recipe.model_dump(mode="json"))
        card = CARD.format(
            job=run.job_id,
            replica=replica,
            method=spec.method.kind,
            recipe=spec.recipe.kind,
            steps=spec.training.steps,
            seed=spec.seed,
            metrics=", ".join(f"{name.removeprefix('eval/')} {value:.4f}" for name, value in metrics.items()),
            needed=NEEDED_OF_INSTALLED if spec.recipe.kind == "installed" else NEEDED,
            code=recipe.loading_code().strip(),
        )
        (temporary / "README.md").write_text(card)
        files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(temporary.iterdir())}
        spec_text = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
        spec_digest = hashlib.sha256(spec_text.encode()).hexdigest()
        write_json(
            temporary / "manifest.json", {"sha256": files, "steps": spec.training.steps, "spec_sha256": spec_digest}
        )
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(f"cannot write the export {directory}: {error}; is there room and permission?") from error
    return directory
