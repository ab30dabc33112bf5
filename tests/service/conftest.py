"""One real service for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobs import processes
from tests.service.running import Service


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service") / "home")
    try:
        service.start()
        head_id = service.head.head_id
        yield service
    finally:
        service.client.close()
        done = service.down()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + service.log.read_text()
    assert processes.belonging(processes.snapshot(head_id)) == []
