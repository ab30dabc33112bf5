"""Specs from files: TOML, YAML or JSON; several are merged from left to right, single settings go over them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codistill.lineage import merged
from codistill.spec import JobSpec
from codistill.spec_errors import MAX_SPEC_BYTES, Problem, SpecError, parse_spec

SUFFIXES = (".toml", ".yaml", ".yml", ".json")


def load_spec(*paths: Path, settings: Mapping[str, Any] | None = None) -> JobSpec:
    """The spec that `paths` make together: tables are merged key by key, lists and what gets another kind replaced;
    `settings`, a part of a spec, comes last. Raises `SpecError` for a bad spec or file."""
    found: dict[str, Any] = {}
    for path in paths:
        found = merged(found, read_table(path))
    return parse_spec(merged(found, settings or {}))


def read_table(path: Path) -> Mapping[str, Any]:
    """What stands in one file, unchecked. Raises `SpecError` when that is no table."""
    if path.suffix not in SUFFIXES:
        raise _refused(f"{path}: a spec file ends in {', '.join(SUFFIXES)}; rename it")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise _refused(f"cannot read {path}: {error.strerror}; codistill init writes an example") from None
    if len(raw) > MAX_SPEC_BYTES:
        raise _refused(f"{path} has {len(raw):,} bytes; at most {MAX_SPEC_BYTES:,} are accepted")
    kind = {".toml": "TOML", ".json": "JSON"}.get(path.suffix, "YAML")
    try:
        value = _parsed(raw, kind)
    # YAML's own error is none of ours; ValueError is what TOML, JSON and text that is no UTF-8 raise.
    except (ValueError, RecursionError) as error:
        raise _refused(f"{path} is not valid {kind}: {' '.join(str(error).split())}") from None
    if not isinstance(value, Mapping):
        raise _refused(f"{path}: a spec should be an object, with keys and values; codistill init writes an example")
    return value


def _parsed(raw: bytes, kind: str) -> Any:
    if kind == "TOML":
        return tomllib.loads(raw.decode())
    if kind == "JSON":
        return json.loads(raw)
    import yaml

    try:
        # A few aliases of aliases are a text of many gigabytes.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(raw, Loader=yaml.SafeLoader)):
            raise ValueError("it has an alias (*name); write out what that stands for")
        return yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _refused(message: str) -> SpecError:
    return SpecError([Problem("", message)])
