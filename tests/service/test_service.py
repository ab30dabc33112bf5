"""The whole stack over real sockets: a head, Serve, the store, Ray Jobs, training; and what kill -9 does to it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from codistill import records
from codistill.price import PROCESS_BYTES
from codistill.records import METRICS, Recorder
from codistill.run_dir import RunDir, read_json
from jobs.kept_answers import KEEP
from jobs.status import State
from tests.service.running import Service, lives, spec_of, title, until, words

pytestmark = [pytest.mark.slow]

GONE_S = 15


def test_a_job_from_post_to_its_model(service: Service) -> None:
    job_id = service.client.submit(spec_of("whole", 600)).id
    job = service.wait_end(job_id)
    assert job.state is State.SUCCEEDED
    status = job.value["status"]
    assert [t["state"] for t in status["transitions"]] == ["QUEUED", "ADMITTED", "STARTING", "RUNNING", "SUCCEEDED"]
    assert status["progress"]["completed"] == 1200
    assert {r["replica"]: r["state"] for r in status["replicas"]} == {"replica-0": "ended", "replica-1": "ended"}
    assert set(job.value["result"]["replicas"]) == {"replica-0", "replica-1"}
    assert job.value["result"]["estimate"] == job.value["estimate"], "what was told stands beside what it took"
    assert job.value["estimate"]["steps"] == 600
    kept = read_json(service.run_of(job_id).estimate)["node_bytes_per_rank"]
    assert kept is None or kept > PROCESS_BYTES, "Ray kept the memory free, which it was asked for"
    assert job.value["result"]["took"]["step_s"] > 0
    metrics = service.client.metrics(job_id, names=["train/task_loss"])
    assert [row["step"] for row in metrics] == list(range(5, 601, 5))
    teachers = service.client.ledger(job_id)
    assert {(row["teacher"], row["verdict"]) for row in teachers} - {(None, "nobody")} == {("replica-1", "accepted")}
    assert "succeeded" in service.client.logs(job_id, replica="driver")[0]
    for replica in ("replica-0", "replica-1"):
        assert (service.run_of(job_id).export(replica) / "model.safetensors").exists()


def test_polls_that_follow_closely_are_answered_by_the_proxy(service: Service) -> None:
    job_id = service.client.submit(spec_of("polled", 10**6, replicas={"count": 2, "cpus": 1.0})).id

    def request_id(headers: dict[str, str]) -> str:
        answer = service.poll(job_id, headers)
        assert KEEP not in answer.headers
        return answer.headers["x-request-id"]

    anew = {"Cache-Control": "no-cache"}
    until("two have one answer", lambda: request_id({}) == request_id({}), 10)
    assert request_id(anew) != request_id(anew)
    service.client.cancel(job_id)
    assert service.client.show(job_id).state in {State.CANCELLING, State.CANCELLED}
    assert service.wait_end(job_id).state is State.CANCELLED


def test_what_is_started_is_guarded(service: Service) -> None:
    """Ray's ports are open to the network: its token is the guard. The token is this user's alone."""
    token = Path(service.head.token_path)
    assert token.stat().st_mode & 0o777 == 0o600
    assert (service.home / "service").stat().st_mode & 0o777 == 0o700
    commands = [" ".join(words(process.pid)) for process in service.own_processes()]
    assert any("gcs_server" in command for command in commands)
    assert not any("log_monitor" in command for command in commands), "nobody listens to it"
    import urllib.error
    import urllib.request

    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{service.head.dashboard_url}/api/jobs/", timeout=10)
    with refused.value:
        assert refused.value.code in {401, 403}
    second = subprocess.run(
        service.command("serve", "--port", str(service.port)),
        capture_output=True, text=True, env=service.environment, check=False, timeout=30,
    )  # fmt: skip
    assert second.returncode == 3
    assert "is running already" in second.stderr


def test_the_service_killed_and_started_again_finds_its_job_going_on(service: Service) -> None:
    job_id = service.client.submit(spec_of("service-killed", 1500)).id
    service.wait_step(job_id, 100)
    service.kill()
    at_kill = steps_of(service, job_id)
    head_id = service.head.head_id
    service.start()
    assert service.head.head_id == head_id
    assert "going on with the Ray head" in service.log.read_text()
    between = steps_of(service, job_id)
    assert all(between[name] > step for name, step in at_kill.items()), (at_kill, between)
    job = service.wait_end(job_id)
    assert (job.state, job.value["status"]["attempts"]) == (State.SUCCEEDED, 1)
    assert nothing_counts_twice(service, job_id, 1500)


PARTS = ("ray::ProxyActor", "ray::ServeReplica:codistill:api", "ray::ServeReplica:codistill:manager")


def test_each_part_of_the_service_that_is_killed_alone_is_replaced(service: Service) -> None:
    """The proxy, the routes and the manager, one after another under the same job, which goes on."""
    job_id = service.client.submit(spec_of("parts-killed", 3000)).id
    service.wait_step(job_id, 20)
    for part in PARTS:
        killed = pids_of(service, part)
        assert len(killed) == 1, part
        assert min(steps_of(service, job_id).values()) < 3000, "in mid-job"
        os.kill(*killed, signal.SIGKILL)
        until(f"{part} is replaced", lambda part=part, killed=killed: pids_of(service, part) - killed, 30)
        until("the service answers", service.client.ready, 30)
    job = service.wait_end(job_id)
    assert (job.state, job.value["status"]["attempts"]) == (State.SUCCEEDED, 1)
    assert nothing_counts_twice(service, job_id, 3000)


def pids_of(service: Service, part: str) -> set[int]:
    return {process.pid for process in service.own_processes() if title(process.pid).startswith(part)}


def steps_of(service: Service, job_id: str) -> dict[str, int]:
    return {name: beat["step"] for name, beat in service.run_of(job_id).read_heartbeats(1).items()}


def nothing_counts_twice(service: Service, job_id: str, steps: int) -> bool:
    """Every logged step of every replica is there, once."""
    for replica in ("replica-0", "replica-1"):
        rows = service.client.metrics(job_id, replica=replica)
        counted = Counter((row["step"], row["name"]) for row in rows)
        assert set(counted.values()) == {1}
        assert [row["step"] for row in rows if row["name"] == "train/task_loss"] == list(range(5, steps + 1, 5))
    return True


def test_a_driver_killed_leaves_nothing_and_the_next_attempt_succeeds(service: Service) -> None:
    before = {process.pid for process in service.own_processes()}
    steps = 800
    job_id = service.client.submit(spec_of("driver-killed", steps)).id
    service.wait_state(job_id, State.RUNNING)
    service.wait_step(job_id, 120)
    run = service.run_of(job_id)
    driver = service.driver_pid(job_id, 1)
    workers = [beat["pid"] for beat in run.read_heartbeats(1).values()]
    started = {process.pid for process in service.own_processes()} - before
    assert {driver, *workers} <= started
    killed_at = time.time()
    os.kill(driver, signal.SIGKILL)
    until("the first attempt is gone", lambda: not [p for p in started if lives(p) and not is_idle(p)], GONE_S)
    written = last_write(run)
    service.wait_step(job_id, 1, fence=2)
    plant_late_row(run, 7)  # a step that nobody logs: nothing else could hide it
    job = service.wait_end(job_id)
    assert (job.state, job.value["status"]["fence"]) == (State.SUCCEEDED, 2)
    states = [t["state"] for t in job.value["status"]["transitions"]]
    assert states == ["QUEUED", "ADMITTED", "STARTING", "RUNNING", "RECOVERING", "STARTING", "RUNNING", "SUCCEEDED"]
    assert "exit code -9" in job.value["status"]["transitions"][4]["reason"]["message"]
    assert written < killed_at + GONE_S
    assert nothing_counts_twice(service, job_id, steps)
    rows = service.client.metrics(job_id)
    assert {row["fence"] for row in rows} == {1, 2}
    assert LATE not in [row["value"] for row in rows]
    begun = read_json(run.attempt(2) / "attempt.json")["started_at"]
    for row in records.read(run, "replica-0", "metrics").to_pylist():
        assert row["fence"] == 2 or row["time"].timestamp() < begun, (
            "what the first attempt wrote before the second began"
        )


LATE = 12345.0


def is_idle(pid: int) -> bool:
    """Ray keeps some workers for the next task; they belong to nobody."""
    return title(pid).startswith("ray::IDLE")


def last_write(run: RunDir) -> float:
    return max(path.stat().st_mtime for path in run.attempt(1).rglob("*") if path.is_file())


def plant_late_row(run: RunDir, step: int) -> None:
    """What a worker of the first attempt would write that came back from a frozen node."""
    late = Recorder(run.replica(1, "replica-0") / "metrics", METRICS, fence=1, incarnation=99)
    late.add_values(step, {"train/task_loss": LATE})
    late.flush()


def test_a_job_that_waits_for_room_is_told_so_and_can_be_cancelled(service: Service) -> None:
    first = service.client.submit(spec_of("first", 100_000, replicas={"count": 2, "cpus": 1.0})).id
    second = service.client.submit(spec_of("second", 10)).id
    try:
        # Until the first one is admitted, the second waits behind it.
        until("it is told why", lambda: "waits for room" in (reasoned(service, second) or ""), 20)
        assert service.client.cancel(second).state is State.CANCELLED
    finally:
        service.client.cancel(first)
    assert service.wait_end(first).state is State.CANCELLED


def reasoned(service: Service, job_id: str) -> str | None:
    job = service.client.show(job_id)
    assert job.state is State.QUEUED
    return job.reason.message if job.reason else None


def test_run_on_a_dashboard_is_one_ray_job(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(spec_of("direct", 40).model_dump_json())
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": service.head.token_path}
    environment = {**service.environment, **token}
    environment.pop("RAY_AUTH_TOKEN", None)
    words = ["run", str(path), "--on", service.head.dashboard_url, "--storage", str(tmp_path), "--name", "direct"]
    done = subprocess.run(service.command(*words), capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, "direct\n"), done.stderr
    assert (tmp_path / "direct" / "attempts" / "1" / "result.json").exists()
