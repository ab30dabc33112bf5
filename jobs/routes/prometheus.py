"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

import codistill
from jobs.callers import Caller
from jobs.figures import Room, replica_figures, service_figures
from jobs.routes.backend import Backend, Reader
from jobs.status import RESERVING, State

TEXT = "text/plain; version=0.0.4; charset=utf-8"


class _Found(Collector):
    """Families as they were found."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def prometheus_routes(backend: Backend, of_requests: CollectorRegistry) -> APIRouter:
    """`/metrics`; `of_requests` has the latency of this copy of the service."""
    router = APIRouter(tags=["service"])

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics(caller: Reader) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Jobs, queue, manager, requests, and replicas that run, in Prometheus' text format. Of owners and jobs, only
        what the caller may see."""
        registry = CollectorRegistry()
        registry.register(_Found(_families(backend, caller)))
        return Response(generate_latest(registry) + generate_latest(of_requests), media_type=TEXT)

    return router


def _families(backend: Backend, caller: Caller) -> list[Metric]:
    nodes, holding = backend.nodes(), backend.store.in_states(RESERVING)
    room = Room(
        nodes=len(nodes),
        cpus=sum(node.cpus for node in nodes),
        gpus=sum(node.gpus for node in nodes),
        reserved_cpus=sum(job.ranks * job.cpus for job in holding),
        reserved_gpus=sum(job.ranks * job.gpus for job in holding),
        disks_percent=backend.disks.used(),
        disk_full=backend.disks.shortage() is not None,
    )
    running = [job for job in holding if job.state is State.RUNNING and caller.sees in (None, job.owner)]
    beats = {job.id: backend.run_of(job).read_heartbeats(job.fence) for job in running}
    facts = backend.store.facts(caller.sees)
    return [*service_figures(facts, room, codistill.__version__), *replica_figures(beats, backend.store.now())]
