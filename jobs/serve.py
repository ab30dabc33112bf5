"""The service on Ray Serve: two deployments, the API and the manager, and the command that puts them there."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from codistill.capacity import Node, nodes_from_ray
from jobs.describer import Describer
from jobs.door import DoorRules
from jobs.log_lines import configure
from jobs.manager import Manager
from jobs.manager_loop import ManagerLoop
from jobs.routes import build_api
from jobs.routes.backend import Backend
from jobs.runner import connect_runner
from jobs.serve_settings import Settings
from jobs.store import Quota, Store

APP_NAME = "codistill"


def living_nodes() -> list[Node]:
    """The nodes of the cluster this process is attached to."""
    import ray

    return nodes_from_ray(ray.nodes())


# A copy that was killed is seen as gone after one period: 2 s instead of 9.
@serve.deployment(
    name="manager",
    num_replicas=1,
    health_check_period_s=1,
    health_check_timeout_s=10,
    ray_actor_options={"num_cpus": 0},
)
class ManagerDeployment:
    """The one copy of the manager; the store's lease holds even when Serve has two for a moment."""

    def __init__(self, settings: Settings) -> None:
        configure(settings.log_format)
        store, storage = Store.open(settings.store_url), Path(settings.storage)
        runner = connect_runner(storage, {"CODISTILL_DATA": settings.data_home})
        self._loop = ManagerLoop(store, Manager(store, runner, storage, living_nodes))
        self._loop.start()

    def check_health(self) -> None:
        self._loop.check()

    def __del__(self) -> None:
        self._loop.close()


@serve.deployment(
    name="api",
    # Five by default, and a slow reader counts.
    max_ongoing_requests=200,
    health_check_period_s=1,
    health_check_timeout_s=10,
    ray_actor_options={"num_cpus": 0},
)
@serve.ingress()  # pyright: ignore[reportUntypedClassDecorator]
class ApiDeployment:
    """The routes. Holds the manager's handle only so that Serve starts both as one application."""

    def __init__(self, settings: Settings, manager: Any) -> None:
        self._settings, self._manager = settings, manager
        self._describer = Describer({"CODISTILL_DATA": settings.data_home})
        self._describer.warm_up()

    def __serve_build_asgi_app__(self) -> FastAPI:
        configure(self._settings.log_format)
        store, listen = Store.open(self._settings.store_url), self._settings.listen
        rules = DoorRules(needs_token=listen.needs_token, hosts=frozenset(listen.names))
        quota = Quota() if listen.needs_token else Quota.alone()
        storage, facts = Path(self._settings.storage), self._describer.facts
        return build_api(Backend(store, storage, living_nodes, rules, quota, facts=facts))


def application(settings: Settings) -> Any:
    """Both deployments, bound."""
    return ApiDeployment.bind(settings, ManagerDeployment.bind(settings))


def attach(address: str, directory: Path) -> None:
    """Attach this process to a cluster. `directory` becomes the working directory: Ray puts the one it is called in
    first on its workers' import path, where a folder named `jobs` would shadow ours."""
    import ray

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    os.chdir(directory)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace=APP_NAME)


def deploy(settings: Settings) -> None:
    """Put the service on the attached cluster, or replace the one that is there, and wait until it runs."""
    listen = settings.listen
    serve.start(proxy_location="HeadOnly", http_options={"host": listen.host, "port": listen.port})
    serve.run(application(settings), name=APP_NAME, route_prefix="/")


def withdraw() -> None:
    """End Serve on the attached cluster. Jobs go on."""
    # Ray tells the terminal that the controller died, which is what was asked for.
    with contextlib.redirect_stderr(io.StringIO()):
        serve.shutdown()
