"""Which jobs a list has, and what it says of those that wait; over the real routes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from jobs.callers import LOCAL
from jobs.job import Reason
from jobs.serve_settings import Listen
from jobs.store_terms import Submission
from tests.unit.jobs.fakes import spec
from tests.unit.jobs.test_api import Service, problem


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    with made.http:
        yield made
    made.store.close()


def names(service: Service, **asked: str) -> list[str]:
    return [item["name"] for item in service.get("", **asked)["items"]]


def test_a_time_means_the_same_in_every_zone(service: Service) -> None:
    job = service.store.submit(Submission(spec(name="now")))
    made = datetime.fromtimestamp(job.created_at, UTC)
    far_west = timezone(timedelta(hours=-9))
    for seconds, found in ((-60, ["now"]), (60, [])):
        at = made + timedelta(seconds=seconds)
        assert names(service, created_from=at.isoformat()) == found
        assert names(service, created_from=at.astimezone(far_west).isoformat()) == found
        assert names(service, created_from=at.replace(tzinfo=None).isoformat()) == found, "without a zone, UTC"
        assert names(service, created_before=at.astimezone(far_west).isoformat()) == (["now"] if not found else [])


def test_children_are_found_by_their_parent(service: Service) -> None:
    parent = service.store.submit(Submission(spec(name="parent")))
    service.store.submit(Submission(spec(name="child"), LOCAL, parent.id, "fork"))
    assert names(service, parent=parent.id) == ["child"]
    assert names(service) == ["child", "parent"]


@pytest.mark.parametrize("label", ["", "team", "=a"])
def test_a_label_is_a_key_and_a_value(service: Service, label: str) -> None:
    answer = service.http.get("/api/v1/jobs", params={"label": label})
    assert problem(answer, 422, "bad_parameter")["errors"][0]["path"] == "query.label"


@pytest.mark.parametrize("label", ['team"x=1', 'team"=a', "team\\=a", "team[0]=a", '"team"=a', "other=a", "team=b"])
def test_a_label_that_no_job_has_is_an_empty_page(service: Service, label: str) -> None:
    service.submit(labels={"team": "a"})
    assert names(service, label=label) == []
    assert names(service, label="team=a") == ["pair"]


def test_whoever_was_next_and_is_no_longer_is_told_so(service: Service) -> None:
    """What the manager said of the one who was next is not true of it any more."""
    first = service.store.submit(Submission(spec(name="first")))
    service.store.explain_wait(first, Reason("no_room_yet", "waits for room"))
    assert service.get(f"/{first.id}")["status"]["reason"]["code"] == "no_room_yet"
    service.submit(name="urgent", priority=9)
    status = service.get(f"/{first.id}")["status"]
    assert (status["queue_position"], status["reason"]["code"]) == (2, "queued")
    assert status["reason"]["message"] == "waits behind 1 other"
    assert [item["status"]["queue_position"] for item in service.get("")["items"]] == [1, 2]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8700"),
        ("0.0.0.0", "http://127.0.0.1:8700"),
        ("::", "http://127.0.0.1:8700"),
        ("::1", "http://[::1]:8700"),
        ("box.example", "http://box.example:8700"),
    ],
)
def test_a_service_on_all_addresses_is_asked_at_one_of_them(host: str, url: str) -> None:
    assert Listen(host, 8700, (), needs_token=False).own_url == url
