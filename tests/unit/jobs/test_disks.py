"""Disks that fill up: where admission stops, who goes on, who is told."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from jobs.disks import STANDARD_PERCENT, Disks, used_percent
from jobs.manager import Manager
from jobs.routes import build_api
from jobs.routes.backend import Backend
from jobs.status import State
from tests.unit.jobs.test_api import PAIR, problem
from tests.unit.jobs.test_lineage_routes import World

STORAGE, SPILL = Path("/storage"), Path("/spill")


def disks(storage: float | None, spill: float | None = None) -> Disks:
    measured = {STORAGE: storage, SPILL: spill}
    return Disks({"the storage": STORAGE, "Ray": SPILL}, measure=measured.__getitem__)


@pytest.mark.parametrize(
    ("storage", "spill", "full"),
    [
        (84.99, None, None),
        (85.0, None, "the storage"),
        (10.0, 84.99, None),
        (10.0, 85.0, "Ray"),
        (None, None, None),
    ],
)
def test_a_disk_is_full_from_its_limit_on(storage: float | None, spill: float | None, full: str | None) -> None:
    short = disks(storage, spill).shortage()
    assert STANDARD_PERCENT == 85.0
    assert (short is None) if full is None else (short is not None and short.startswith(f"the disk of {full} ("))


def test_how_full_is_what_df_says(tmp_path: Path) -> None:
    said = subprocess.run(["df", "--output=pcent", str(tmp_path)], capture_output=True, text=True, check=True).stdout
    percent = used_percent(tmp_path)
    assert percent is not None
    assert 0 <= int(said.split()[-1].rstrip("%")) - percent < 1.5, "df rounds up; others write meanwhile"
    assert used_percent(tmp_path / "nowhere") is None


class Filling(World):
    """Routes and a manager on disks that fill up when told."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.percent = 50.0
        watched = Disks({"the storage": self.storage}, measure=lambda _: self.percent)
        nodes = lambda: self.nodes  # noqa: E731
        self.http = TestClient(build_api(Backend(self.store, self.storage, nodes, disks=watched)), "http://127.0.0.1")
        self.manager = Manager(self.store, self.runner, self.storage, nodes, disks=watched)

    def figures(self) -> dict[str, float]:
        text = self.http.get("/metrics").text
        return {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}


@pytest.fixture
def filling(tmp_path: Path) -> Iterator[Filling]:
    made = Filling(tmp_path)
    with made.http:
        yield made
    made.store.close()


def test_on_a_full_disk_nobody_is_taken_those_who_wait_are_told_and_the_rest_goes_on(filling: Filling) -> None:
    runs = filling.submit()
    for _ in range(2):
        filling.tick()
    ended = filling.parent()
    waits = filling.submit()
    filling.percent = 91.25
    for path in ("", f"/{ended}/resume"):
        answer = filling.http.post(f"/api/v1/jobs{path}", json={} if path else PAIR)
        value = problem(answer, 503, "storage_unavailable")
        assert "is 91.2 % full" in value["detail"]
        assert "codistill prune" in value["detail"]
        assert answer.headers["retry-after"] == "60"
    filling.runner.begin(runs, 1)
    filling.runner.step(runs, 1, 2)
    filling.runner.finish(runs, 1, "succeeded")
    for _ in range(3):
        filling.tick()
    assert filling.get(f"/{runs}")["status"]["state"] == "SUCCEEDED"
    status = filling.get(f"/{waits}")["status"]
    assert (status["state"], status["reason"]["code"]) == ("QUEUED", "disk_full")
    assert "no job begins" in status["reason"]["message"]
    figures = filling.figures()
    assert (figures["codistill_disk_used_ratio"], figures["codistill_disk_full"]) == (0.9125, 1.0)
    filling.percent = 84.0
    filling.tick()
    job = filling.store.get(waits)
    assert job is not None
    assert (job.state, job.reason) == (State.ADMITTED, None)
    assert filling.figures()["codistill_disk_full"] == 0.0


def test_a_full_disk_does_not_keep_anybody_from_making_room(filling: Filling) -> None:
    ended = filling.parent()
    filling.percent = 99.0
    assert filling.http.get("/readyz").status_code == 200
    assert filling.http.delete(f"/api/v1/jobs/{ended}").status_code == 204
