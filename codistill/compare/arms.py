"""Which runs and which of their replicas make up an arm. Reads specs and results, no predictions yet.

One job may hold several arms: besides its own replicas (`replica-0`, `replica-1`) it may have trained controls from the
same seed (`solo-0`, `smoothing-0`); the arm of a replica is its name before the last hyphen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codistill.compare.predictions import NothingToCompare
from codistill.run_dir import RunDir, read_json
from codistill.spec import JobSpec

MAIN = "replica"
NOT_PART_OF_AN_ARM = {"seed", "name", "labels", "controls"}


class ArmError(ValueError):
    """Arms that cannot be told apart, or a name that none of them has."""


@dataclass(frozen=True)
class Entry:
    """What one run has trained for one arm."""

    run: RunDir
    fence: int
    seed: int
    replicas: tuple[str, ...]
    """Those that succeeded, at least one."""
    seconds: float
    """Of the slowest."""
    bytes_exchanged: int


def group_by_spec(runs: Sequence[RunDir]) -> dict[str, list[RunDir]]:
    """Runs whose specs agree but for seed, name and labels are one arm, called after the first one's spec.

    Raises `ArmError` when two arms would have the same name, `StorageError` for a run without a spec.
    """
    names: dict[str, str] = {}
    firsts: dict[str, RunDir] = {}
    arms: dict[str, list[RunDir]] = {}
    for run in runs:
        spec = run.read_spec()
        key = json.dumps(_essence(spec), sort_keys=True)
        if key not in names and spec.name in arms:
            first = firsts[spec.name]
            where = _differing_keys(_essence(spec), _essence(first.read_spec()))
            raise ArmError(
                f"{first.job_id} and {run.job_id} are both called '{spec.name}' but differ in {', '.join(where)};"
                f" name the arms: one={first.job_id} other={run.job_id}"
            )
        name = names.setdefault(key, spec.name)
        firsts.setdefault(name, run)
        arms.setdefault(name, []).append(run)
    return arms


def find_entries(arms: Mapping[str, Sequence[RunDir]]) -> tuple[dict[str, list[Entry]], list[str]]:
    """The entries of every arm, given arms first, then the controls found in their runs; and what was left out and why.

    A control bears its own name, or `<arm>/<control>` where several given arms have brought it or another arm is called
    so. Raises `NothingToCompare` when a run has not succeeded, `ArmError` when an arm is empty or names a run twice.
    """
    found = {arm: [_entries(run) for run in _distinct(arm, runs)] for arm, runs in arms.items()}
    notes = [note for runs in found.values() for _, left_out in runs for note in left_out]
    entries: dict[str, list[Entry]] = {}
    for arm, runs in found.items():
        entries[arm] = [by_arm[MAIN] for by_arm, _ in runs if MAIN in by_arm]
        if not entries[arm]:
            raise NothingToCompare(f"no replica of arm '{arm}' has succeeded; leave it out")
    brought = [(arm, name) for arm, runs in found.items() for name in _controls(runs)]
    for arm, name in brought:
        unique = name not in arms and [other for _, other in brought].count(name) == 1
        key = name if unique else f"{arm}/{name}"
        entries[key] = [by_arm[name] for by_arm, _ in found[arm] if name in by_arm]
    return entries, notes


def default_baseline(arms: Sequence[str]) -> str:
    """An arm named solo, else the first."""
    return "solo" if "solo" in arms else arms[0]


def known_arm(name: str, arms: Sequence[str], option: str) -> str:
    """`name` if it is one of `arms`; raises `ArmError` otherwise, naming the option it came from."""
    if name not in arms:
        raise ArmError(f"{option} {name}: there is no such arm; arms are {', '.join(arms)}; choose one of them")
    return name


def finished_attempt(run: RunDir) -> tuple[int, dict[str, Any]]:
    """Fence and result of the newest attempt; raises `NothingToCompare` unless it succeeded."""
    fence = (run.fences() or [0])[-1]
    result = read_json(run.result(fence)) if fence else None
    if result is None or result["outcome"] != "succeeded":
        state = "has not ended" if result is None else f"ended as {result['outcome']}"
        raise NothingToCompare(f"job {run.job_id} {state}; only runs that succeeded can be compared; leave it out")
    return fence, result


def arm_of(replica: str) -> str:
    """`solo` of `solo-1`."""
    return replica.rpartition("-")[0] or replica


# ---------------------------------------------------------------- one run


def _entries(run: RunDir) -> tuple[dict[str, Entry], list[str]]:
    """What a run has for each of its arms, and a note for each replica that cannot be counted."""
    fence, result = finished_attempt(run)
    seed = run.read_spec().seed
    replicas: dict[str, dict[str, Any]] = result["replicas"]
    ended = {name: entry for name, entry in replicas.items() if entry["outcome"] == "succeeded"}
    notes = [f"{name} of {run.job_id} {replicas[name]['outcome']}: left out" for name in replicas if name not in ended]
    by_arm: dict[str, Entry] = {}
    for arm in dict.fromkeys(map(arm_of, ended)):
        own = {name: entry for name, entry in ended.items() if arm_of(name) == arm}
        seconds = max(entry["seconds"] for entry in own.values())
        received = sum(entry["bytes_received"] for entry in own.values())
        by_arm[arm] = Entry(run, fence, seed, tuple(own), seconds, received)
    return by_arm, notes


def _controls(runs: Sequence[tuple[Mapping[str, Entry], list[str]]]) -> list[str]:
    return [name for name in dict.fromkeys(arm for by_arm, _ in runs for arm in by_arm) if name != MAIN]


def _distinct(arm: str, runs: Sequence[RunDir]) -> Sequence[RunDir]:
    if not runs:
        raise ArmError(f"arm '{arm}' has no runs; write {arm}=RUN[,RUN]...")
    for run in runs:
        if list(runs).count(run) > 1:
            raise ArmError(f"arm '{arm}' names {run.job_id} twice; name it once")
    return runs


def _essence(spec: JobSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude=NOT_PART_OF_AN_ARM)


def _differing_keys(one: Mapping[str, Any], other: Mapping[str, Any], most: int = 3) -> list[str]:
    flat, flat_other = _flat(one), _flat(other)
    keys = [key for key in dict.fromkeys([*flat, *flat_other]) if flat.get(key) != flat_other.get(key)]
    return keys if len(keys) <= most else [*keys[:most], f"{len(keys) - most} more"]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) and item else {f"{prefix}{key}": item}
    return flat
