"""What is installed by hash is what pyproject.toml asks for, in the releases that constraints.txt names."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LOCKS = {"run": ("cluster", "postgres", "digits"), "dev": ("dev",), "page": ("browser",)}
"""Which extras each is for."""
UNLOCKED = {"torch", "uv"}
"""torch, since its build is the installer's choice; and what makes the locks."""


def locked(name: str) -> dict[str, tuple[Requirement, set[str]]]:
    """Each requirement of a lock, and its hashes."""
    text = (ROOT / f"requirements/{name}.lock").read_text().replace("\\\n", " ")
    found: dict[str, tuple[Requirement, set[str]]] = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            words, *hashes = line.split("--hash=sha256:")
            assert all(re.fullmatch("[0-9a-f]{64}", one.strip()) for one in hashes)
            requirement = Requirement(words.strip())
            found[canonicalize_name(requirement.name)] = requirement, {one.strip() for one in hashes}
    return found


def releases(name: str) -> dict[str, str]:
    return {key: str(one.specifier).removeprefix("==") for key, (one, _) in locked(name).items()}


PINS = {
    canonicalize_name(name): release
    for name, release in (line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
}


def asked(extras: tuple[str, ...]) -> list[Requirement]:
    """What pyproject.toml asks for, with its extras of extras followed."""
    wanted = [Requirement(text) for text in (*PROJECT["dependencies"], *(t for e in extras for t in EXTRAS[e]))]
    own = [one for one in wanted if one.name == PROJECT["name"]]
    return [one for one in wanted if one not in own] + [r for one in own for r in asked(tuple(sorted(one.extras)))]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_a_hash_and_the_pinned_release_of_each(name: str) -> None:
    found = locked(name)
    assert all(hashes for _, hashes in found.values())
    assert releases(name) == {key: PINS[key] for key in found}
    assert not UNLOCKED & found.keys()


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_what_is_asked_for_and_all_that_needs(name: str) -> None:
    found = releases(name)
    wanted = asked(LOCKS[name])
    seen: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        one = wanted.pop()
        key = canonicalize_name(one.name)
        if key in UNLOCKED or (key, frozenset(one.extras)) in seen:
            continue
        seen.add((key, frozenset(one.extras)))
        assert key in found, f"{one} is not in requirements/{name}.lock; make lock"
        assert one.specifier.contains(found[key]), f"{one}, and the lock has {found[key]}; make lock"
        wanted += needs(key, one.extras)


def needs(key: str, extras: set[str]) -> list[Requirement]:
    """What a package that is installed here needs here; of one that is not (the browser's), nothing is known."""
    try:
        texts = metadata.requires(key) or []
    except metadata.PackageNotFoundError:
        return []
    every = [Requirement(text) for text in texts]
    return [one for one in every if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in {"", *extras})]


def test_every_pin_is_locked_somewhere_and_the_tests_run_what_runs() -> None:
    run, dev, page = (locked(name) for name in LOCKS)
    assert PINS.keys() - UNLOCKED == run.keys() | dev.keys() | page.keys()
    assert run.items() <= dev.items(), "dev has all of run, by the same hashes"


def test_whatever_installs_checks_hashes() -> None:
    make, image = (ROOT / "Makefile").read_text(), (ROOT / "Dockerfile").read_text()
    assert "LOCKED := $(PIP) --no-deps --require-hashes" in make
    for name in LOCKS:
        assert f"$(LOCKED) -r requirements/{name}.lock" in make
    assert "--no-deps --require-hashes -r requirements/run.lock" in image
    installs = re.findall(r"pip install (.*)", image) + re.findall(r"^\t\$\(PIP\) (.*)", make, re.MULTILINE)
    allowed = r"--require-hashes|--no-deps --no-build-isolation|-c constraints\.txt (?:torch|uv)$"
    assert [line for line in installs if not re.search(allowed, line)] == []
