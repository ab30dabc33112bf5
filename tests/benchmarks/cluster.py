"""A Ray cluster for a benchmark."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager


@contextmanager
def small_cluster(object_store_bytes: int = 10**9, environment: Mapping[str, str] | None = None) -> Generator[str]:
    """Two CPUs; yields the address. Ends with the block. `environment` is set before Ray is imported."""
    os.environ.update(environment or {})
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    directory = tempfile.mkdtemp(prefix="cd-", dir="/tmp")
    context = ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=object_store_bytes,
        _temp_dir=directory,
    )
    try:
        yield str(context.address_info["address"])
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)
