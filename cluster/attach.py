"""Which Ray cluster a run uses: a named one, one of this machine, or one that is started for it."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable
from typing import Any

OBJECT_STORE_BYTES = 2 * 10**9
"""Of an embedded cluster; what does not fit goes to disk. (Ray would take 30 % of all memory.)"""
ANSWER_TIMEOUT_S = 5.0


class NoCluster(RuntimeError):
    """There is no Ray cluster to run on; the message says what would help."""


def attach(address: str | None, say: Callable[[str], None]) -> None:
    """Join the cluster at `address` (HOST:PORT), or start one that ends with this process.

    None means the one that RAY_ADDRESS names; "auto" that, else one started with `ray start` on this machine, else a
    new one; "local" always a new one. Raises `NoCluster`.
    """
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or (_started_here() if address == "auto" else None)
        if address is None:
            raise NoCluster("no Ray cluster is named; give --address (HOST:PORT, 'auto' or 'local') or set RAY_ADDRESS")
    if address == "local":
        _start_embedded(say)
    else:
        _join(address)


def _started_here() -> str:
    from ray._private.services import find_bootstrap_address  # pyright: ignore[reportPrivateImportUsage]

    found = find_bootstrap_address(None)
    return found if found is not None and _answers(found) else "local"


def _join(address: str) -> None:
    if not _answers(address):
        raise NoCluster(f"no Ray cluster answers at {address}; an address is the HOST:PORT that `ray start` printed")
    try:
        _init(address=address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NoCluster(f"the Ray cluster at {address} cannot be joined: {reason}") from error


def _answers(address: str) -> bool:
    """Whether anything listens there. (Ray itself would try again for more than ten minutes.)"""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return False
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S):
            return True
    except (OSError, OverflowError):
        return False


def _start_embedded(say: Callable[[str], None]) -> None:
    cpus = len(os.sched_getaffinity(0))
    say(f"starting a Ray cluster of {cpus} CPUs for this run only")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        # Ray's ports are open to the network even here. Left to itself, Ray writes its token for all to read.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    _init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)


def _init(**where: Any) -> None:
    import ray

    ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
