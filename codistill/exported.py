"""Models that have been exported, opened again as teachers."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from codistill.data.catalog import find_model
from codistill.data.home import DataError
from codistill.recipes import Recipe, recipe_of
from codistill.run_dir import RunDir, read_json
from codistill.spec import OfJob, RegisteredModel, replica_name
from codistill.spec import Recipe as RecipeChoice

RECIPE_FILE = "recipe.json"


def exported_model(source: OfJob | RegisteredModel, storage: Path, student: Recipe) -> nn.Module:
    """The model that `source` names, where `student` can learn from it; jobs are looked for in `storage`.

    Raises `DataError` when there is no such export, it is damaged, or it answers something else than the student.
    """
    directory, teacher = _directory(source, storage), exported_recipe(source, storage)
    if (problem := mismatch(teacher, student)) is not None:
        raise DataError(f"the teacher in {directory} {problem}: choose another")
    _check_digests(directory)
    model = teacher.build_model()
    try:
        load_model(model, directory / "model.safetensors")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"the weights in {directory} do not fit the model of its {RECIPE_FILE}: {error}; name another teacher"
        ) from error
    return model


def exported_recipe(source: OfJob | RegisteredModel, storage: Path) -> Recipe:
    """What the model that `source` names was trained with. Raises `DataError` when there is no such export, or it does
    not say so."""
    directory = _directory(source, storage)
    try:
        choice = TypeAdapter[RecipeChoice](RecipeChoice).validate_python(read_json(directory / RECIPE_FILE))
    except ValueError as error:
        raise DataError(
            f"{directory} does not say what its model is ({RECIPE_FILE}: {error}); name another teacher"
        ) from error
    return recipe_of(choice)


def mismatch(teacher: Recipe, student: Recipe) -> str | None:
    """Why a student cannot learn from a teacher; None when it can."""
    if teacher.classes != student.classes:
        return f"knows {teacher.classes} classes, the student {student.classes}; both must have the same"
    shown, known = student.example(1).views["x"], teacher.example(1).views["x"]
    if shown.shape != known.shape:
        return f"takes views {list(known.shape[1:])}, the student's are {list(shown.shape[1:])}; both must be the same"
    return None


def _check_digests(directory: Path) -> None:
    manifest = read_json(directory / "manifest.json") or {}
    for name, digest in manifest.get("sha256", {}).items():
        if hashlib.sha256((directory / name).read_bytes()).hexdigest() != digest:
            raise DataError(f"{name} in {directory} is not what its manifest says; name another teacher")


def _directory(source: OfJob | RegisteredModel, storage: Path) -> Path:
    if isinstance(source, RegisteredModel):
        return find_model(source.name)
    directory = RunDir(storage, source.job).export(replica_name(source.replica))
    if not (directory / "manifest.json").is_file():
        raise DataError(
            f"job '{source.job}' has left no export of {replica_name(source.replica)} in {storage}; it must have ended"
            " well, in the same storage; choose another"
        )
    return directory
