"""What the service bears: `python -m tests.benchmarks.service_load`.

Real services, each with a head of its own. One that needs tokens is polled with five of them while nothing else goes
on: as clients do, to whom the proxy tells again what it told a moment ago, and so that each poll is answered anew. Of
another, twenty clients submit a thousand jobs between them, and the next one is refused; the queue is listed and
polled; then a job trains alone and under five polls a second.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2

from codistill.spec import JobSpec
from codistill.spec_errors import parse_spec
from jobs.client import Client, ServiceRefused
from jobs.status import State
from tests.benchmarks.report import seconds, spread, table
from tests.service.running import Service, spec_of

CLIENTS, JOBS, POLLS, CONNECTIONS = 20, 1000, 2000, 50
CALM_S, ROUNDS, POLLS_PER_S = 8.0, 12, 5
TOKENS, IDLE_S, RATE_PER_S = 5, 15.0, 20


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(table("Idle, with tokens", ["what", "measured", "aim"], idle_rows(Path(folder) / "home")), flush=True)
    with tempfile.TemporaryDirectory() as folder, served(Path(folder) / "home") as service:
        first = service.client.submit(both_cpus()).id
        service.wait_state(first, State.RUNNING)
        rows = submit_rows(service) + poll_rows(service, first)
        print(table("The queue, while a job trains", ["what", "measured", "aim"], rows), flush=True)
        for job in waiting(service):
            service.client.cancel(job)
        print(
            table("Training under polls", ["", "steps/s: median (range)", "of unpolled"], training_rows(service, first))
        )
        service.client.cancel(first)


def both_cpus() -> JobSpec:
    """A job that holds both CPUs, so that all others wait: the default model, in steps of about 10 ms."""
    training = {"steps": 10**6, "batch_size": 256, "evaluate_interval_steps": 10**6}
    return parse_spec({"name": "first", "training": training, "replicas": {"count": 2, "cpus": 1.0}})


@contextmanager
def served(home: Path) -> Iterator[Service]:
    home.mkdir()
    service = Service(home)
    service.start()
    try:
        yield service
    finally:
        service.down()


def idle_rows(home: Path) -> list[list[str]]:
    """A job that has ended, polled by five tokens as fast as it goes; each may ask RATE_PER_S times a second."""
    home.mkdir()
    service = Service(home)
    tokens = [made(service, f"owner-{number}") for number in range(TOKENS)]
    service.client = Client(service.client.url, timeout_s=30, token=tokens[0])
    service.start("--host", "0.0.0.0")
    rows: list[list[str]] = []
    try:
        job = service.client.submit(spec_of("ended", 20)).id
        service.wait_end(job)
        for anew in (False, True):
            polls, refused = polled_by_tokens(service, job, tokens, anew)
            cost_ms = poll_cost_ms(service, job, tokens[0], anew)
            rows += [
                [
                    f"polls of {TOKENS} tokens in {IDLE_S:g} s{', each answered anew' if anew else ''}",
                    f"{len(polls) / IDLE_S:.0f} a second",
                    ">= 100",
                ],
                ["refused, since faster than a token may", str(refused), ""],
                ["one poll: median, 99th percentile", percentiles(polls), "<= 300 ms"],
                [f"processor time of one poll, at {POLLS_PER_S} a second", f"{cost_ms:.1f} ms", ""],
            ]
    finally:
        service.down()
    return rows


def polled_by_tokens(service: Service, job: str, tokens: Sequence[str], anew: bool) -> tuple[list[float], int]:
    """How long each poll took, and how many were refused."""
    polls: list[float] = []
    refused: list[int] = []

    def poll(number: int) -> None:
        with httpx2.Client(timeout=60) as http:
            give_up = time.monotonic() + IDLE_S
            while time.monotonic() < give_up:
                began_s = time.monotonic()
                if show(http, service, job, tokens[number], anew) == 200:
                    polls.append(time.monotonic() - began_s)
                else:  # faster than this token may
                    refused.append(number)
                    time.sleep(1 / RATE_PER_S)

    in_parallel(TOKENS, poll)
    return polls, len(refused)


def show(http: httpx2.Client, service: Service, job: str, token: str, anew: bool) -> int:
    """The status of an answer to one poll, 200 or 429."""
    headers = {"Authorization": f"Bearer {token}"} | ({"Cache-Control": "no-cache"} if anew else {})
    answer = http.get(f"{service.client.url}/api/v1/jobs/{job}", headers=headers)
    if answer.status_code not in {200, 429}:
        raise RuntimeError(f"a poll was answered {answer.status_code}: {answer.text}")
    return answer.status_code


def poll_cost_ms(service: Service, job: str, token: str, anew: bool) -> float:
    """Of all processes of the service and its head, less what they take by themselves."""
    before = processor_s(service)
    time.sleep(CALM_S)
    idle_s, polls, give_up = processor_s(service) - before, 0, time.monotonic() + CALM_S
    before = processor_s(service)
    with httpx2.Client(timeout=60) as http:
        while time.monotonic() < give_up:
            show(http, service, job, token, anew)
            polls += 1
            time.sleep(1 / POLLS_PER_S)
    return 1000 * (processor_s(service) - before - idle_s) / polls


def processor_s(service: Service) -> float:
    """Seconds that the living ones have taken so far."""
    taken = 0.0
    for process in service.own_processes():
        with suppress(OSError):  # one that has just ended
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            taken += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return taken


def made(service: Service, owner: str) -> str:
    """A token; each sees all jobs, so that all can poll the same."""
    words = service.command("token", "create", owner, "--scope", "admin")
    return subprocess.run(words, capture_output=True, text=True, env=service.environment, check=True).stdout.strip()


def submit_rows(service: Service) -> list[list[str]]:
    taken: list[float] = []
    waits = spec_of("waits", 100, replicas={"count": 2, "cpus": 1.0})

    def submit(_: int) -> None:
        with Client(service.client.url, timeout_s=60) as client:
            for _ in range(JOBS // CLIENTS):
                taken.append(seconds(lambda: client.submit(waits)))

    all_s = seconds(lambda: in_parallel(CLIENTS, submit))
    try:
        service.client.submit(waits)
        refused = "accepted"
    except ServiceRefused as error:
        refused = f"{error.status} {error.code}"
    return [
        [f"{JOBS} jobs from {CLIENTS} clients, all on the disk", f"{all_s:.1f} s", "<= 60 s"],
        ["one submission: median, 99th percentile", percentiles(taken), "<= 1 s"],
        [f"job {JOBS + 1}", refused, "429"],
    ]


def poll_rows(service: Service, running: str) -> list[list[str]]:
    polls: list[float] = []

    def poll(_: int) -> None:
        with Client(service.client.url, timeout_s=60) as client:
            for _ in range(POLLS // CONNECTIONS):
                polls.append(seconds(lambda: client.show(running)))

    all_s = seconds(lambda: in_parallel(CONNECTIONS, poll))
    pages = [seconds(lambda: service.client.list(limit=50)) for _ in range(40)]
    return [
        [
            f"{POLLS} polls of it over {CONNECTIONS} connections",
            f"{POLLS / all_s:.0f} a second",
            "none: both CPUs train",
        ],
        ["one poll: median, 99th percentile", percentiles(polls), "<= 300 ms"],
        ["a page of the queue: median, 99th percentile", percentiles(pages), "<= 200 ms"],
    ]


def training_rows(service: Service, job: str) -> list[list[str]]:
    """In turns, since the machine drifts: each polled stretch is set against the mean of those before and after it."""
    alone: list[float] = [speed(service, job)]
    polled: list[float] = []
    for _ in range(ROUNDS):
        done = threading.Event()
        poller = threading.Thread(target=poll_steadily, args=(service, job, done))
        poller.start()
        polled.append(speed(service, job))
        done.set()
        poller.join()
        alone.append(speed(service, job))
    ratios = [2 * here / (before + after) for here, before, after in zip(polled, alone, alone[1:], strict=False)]
    return [
        ["unpolled", spread(alone, ".1f"), "1"],
        [f"{POLLS_PER_S} polls a second (aim: >= 0.95)", spread(polled, ".1f"), spread(ratios, ".2f")],
    ]


def poll_steadily(service: Service, job: str, done: threading.Event) -> None:
    with Client(service.client.url) as client:
        while not done.wait(1 / POLLS_PER_S):
            client.show(job)


def speed(service: Service, job: str) -> float:
    """Steps a second of both replicas, by their own heartbeats."""
    before = steps(service, job)
    time.sleep(CALM_S)
    after = steps(service, job)
    return sum((after[name][0] - step) / (after[name][1] - at) for name, (step, at) in before.items())


def steps(service: Service, job: str) -> dict[str, tuple[int, float]]:
    beats = service.run_of(job).read_heartbeats(1)
    return {name: (int(beat["step"]), float(beat["time"])) for name, beat in beats.items()}


def waiting(service: Service) -> list[str]:
    found: list[str] = []
    cursor: int | None = None
    while True:
        page = service.client.list(limit=500, state=State.QUEUED, cursor=cursor)
        found += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def in_parallel(count: int, work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work, number) for number in range(count)]:
            done.result()


def percentiles(taken_s: Sequence[float]) -> str:
    cuts = statistics.quantiles(taken_s, n=100)
    return f"{1000 * cuts[49]:.0f} ms, {1000 * cuts[98]:.0f} ms"


if __name__ == "__main__":
    main()
