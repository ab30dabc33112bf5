"""Fixtures for all tests: one small Ray cluster for those that need one, and none for those that do not."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Ray reads these when it is first imported. Its ports are open to the network even on a loopback head: the token is
# the guard, here as everywhere, and the tests do not leave one in the home directory.
os.environ.setdefault("RAY_AUTH_MODE", "token")
if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Its workers give way to all else (niceness 15): replicas would starve while a test beside them computes.
os.environ.setdefault("RAY_worker_niceness", "0")

# What a person has set up for their own jobs, or has in their home, is nothing to the tests: they bring their data.
for name in [name for name in os.environ if name.startswith("CODISTILL_") and not name.startswith("CODISTILL_TEST_")]:
    del os.environ[name]
os.environ["CODISTILL_HOME"] = str(Path(tempfile.gettempdir()) / "no-home-for-tests-of-codistill")

# The tests start some two hundred processes, and each would compile our sources anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Worker processes and subprocesses import helpers of the tests by their full name.
ROOT = str(Path(__file__).parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)


APART = ("ray", "service", "page")
"""Directories of tests that start Ray, a service or a browser, and wait for them: two at a time, as more are slow."""
APART_IN = (*APART, "contracts")
"""Where all such tests are: to look for them elsewhere, too, would take ten seconds."""
APART_TIMEOUT_S = 450


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m apart` only the directories that have such tests are looked at."""
    inside = collection_path.relative_to(Path(__file__).parent).parts
    return True if config.option.markexpr == "apart" and inside and inside[0] not in APART_IN else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is not to be run beside all other tests. What takes long comes first, so that at the end nobody waits
    for it."""
    here = Path(__file__).parent
    for item in items:
        directory = item.path.relative_to(here).parts[0]
        if directory == "ray":
            item.add_marker("ray")
        if directory not in APART and not item.get_closest_marker("ray"):
            continue
        if directory not in APART_IN:
            raise pytest.UsageError(f"{item.nodeid} needs Ray; such tests are in {', '.join(APART_IN)}")
        item.add_marker("apart")
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(APART_TIMEOUT_S))
    items.sort(key=lambda item: (shares(item.nodeid) is None, not item.get_closest_marker("slow")))


def shares(nodeid: str) -> str | None:
    """The directory whose tests share a service or a browser, where a test is one of them."""
    path = Path(nodeid.partition("::")[0])
    return next((directory for directory in ("service", "page") if directory in path.parts), None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-m apart` those stay in one process, and each other test goes to whichever is free. xdist's own `loadgroup`
    does not see groups in pytest 9.2."""
    if config.option.markexpr.split()[:1] != ["apart"]:
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return shares(nodeid) or nodeid

    return Together(config, log)


def pytest_configure() -> None:
    from tests.stores import KIND, KINDS

    if KIND not in KINDS:
        raise pytest.UsageError(f"CODISTILL_TEST_STORE is {KIND!r}; use {' or '.join(KINDS)}")


def pytest_report_header() -> str:
    from tests.stores import KIND

    return f"store of the service: {KIND}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Here and not in those directories: where processes run tests side by side, the one that reports looks into
    none."""
    from tests.left_out import lines

    everything = config.args_source is config.ArgsSource.TESTPATHS
    for directory, line in lines().items():
        if everything or any(directory in Path(argument).parts for argument in config.args):
            terminalreporter.write_line(line)


def pytest_sessionfinish() -> None:
    from tests.stores import close

    close()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Two CPUs and 1 GB of object store, shared by all tests; yields its address."""
    import ray

    # Socket paths may not exceed 107 bytes, and pytest's own directories are long already.
    directory = tempfile.mkdtemp(prefix="cd-", dir="/tmp")
    context: Any = ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=10**9,
        _temp_dir=directory,
    )
    try:
        yield str(context.address_info["address"])
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_cluster_in_unit_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit test cannot quietly become a cluster test."""
    if Path(__file__).parent / "unit" not in request.path.parents:
        return

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a unit test called ray.init; tests that need a cluster live in tests/ray")

    monkeypatch.setattr("ray.init", refuse)
