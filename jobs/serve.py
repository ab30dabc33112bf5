"""The service on Ray Serve: two deployments, the API and the manager, and the command that puts them there."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from codistill.capacity import Node, nodes_from_ray
from jobs.describer import Describer
from jobs.disks import Disks
from jobs.door import DoorRules
from jobs.errors import HeadError
from jobs.log_lines import configure
from jobs.manager import Manager
from jobs.manager_loop import ManagerLoop
from jobs.receiving import ReceiveOnDemand
from jobs.routes import build_api
from jobs.routes.backend import Backend
from jobs.runner import connect_runner
from jobs.serve_settings import Listen, Settings
from jobs.store import Store
from jobs.store_terms import Quota

APP_NAME = "codistill"
NODE_LABEL = "ray.io/node-id"
"""Ray's own label of each node."""
MAX_OPEN_REQUESTS = 200
"""Of a copy of the API: streams of events and slow readers count."""
OPEN_ALONE = 150
"""Of them, what comes without tokens may have: there is nobody else but the probes and the page."""


def living_nodes() -> list[Node]:
    """The nodes of the cluster this process is attached to."""
    import ray

    return nodes_from_ray(ray.nodes())


def disks_of(settings: Settings) -> Disks:
    """The storage, and Ray's own directory on this node, where objects go that its store has no room for."""
    import ray

    node = ray._private.worker._global_node  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue, reportPrivateImportUsage]
    places = {"the storage": Path(settings.storage)}
    if node is not None:
        places["Ray"] = Path(str(node.get_session_dir_path()))
    return Disks(places, settings.max_disk_percent)


def rules_of(listen: Listen) -> DoorRules:
    """How strict the door of such a service is."""
    rules = DoorRules(needs_token=listen.needs_token, hosts=frozenset(listen.names))
    return rules if listen.needs_token else replace(rules, open_at_once=OPEN_ALONE)


# A copy that was killed is seen as gone after one period: 2 s instead of 9.
@serve.deployment(
    name="manager",
    num_replicas=1,
    health_check_period_s=1,
    health_check_timeout_s=10,
)
class ManagerDeployment:
    """The one copy of the manager; the store's lease holds even when Serve has two for a moment."""

    def __init__(self, settings: Settings) -> None:
        configure(settings.log_format)
        store, storage = Store.open(settings.store_url), Path(settings.storage)
        runner = connect_runner(storage, {"CODISTILL_DATA": settings.data_home})
        self._loop = ManagerLoop(
            store,
            Manager(store, runner, storage, living_nodes, keep_days=settings.keep_days, disks=disks_of(settings)),
        )
        self._loop.start()

    def check_health(self) -> None:
        self._loop.check()

    def __del__(self) -> None:
        self._loop.close()


@serve.deployment(
    name="api",
    max_ongoing_requests=MAX_OPEN_REQUESTS,  # five by default
    # Each request is a line in the proxy's log already; a copy's own would pass through Ray's log monitor besides.
    logging_config={"enable_access_log": False},
    health_check_period_s=1,
    health_check_timeout_s=10,
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
        rules = rules_of(listen)
        stored = self._settings.stored_bytes_per_owner
        quota = Quota(stored_bytes_per_owner=stored) if listen.needs_token else Quota.alone(stored_bytes=stored)
        storage, data, facts = Path(self._settings.storage), Path(self._settings.data_home), self._describer.facts
        disks = disks_of(self._settings)
        app = build_api(Backend(store, storage, living_nodes, rules, quota, facts=facts, disks=disks, data_home=data))
        app.add_middleware(ReceiveOnDemand)
        return app


def application(settings: Settings, node_id: str) -> Any:
    """Both deployments, bound, and to run on one node. Beside a cluster that was there before, that node has the
    release of the service, a way to its store, and an address that is its own; the others have the release that trains.
    """
    here = {"num_cpus": 0, "label_selector": {NODE_LABEL: node_id}}
    manager = ManagerDeployment.options(ray_actor_options=here).bind(settings)
    return ApiDeployment.options(ray_actor_options=here).bind(settings, manager)


def attach(address: str, directory: Path) -> None:
    """Attach this process to a cluster, of which its machine has to be a node. `directory` becomes the working
    directory: Ray puts the one it is called in first on its workers' import path, where a folder named `jobs` would
    shadow ours. Raises `HeadError` where Ray would look for a node for a minute."""
    import ray
    from ray._private.services import find_node_ids  # pyright: ignore[reportPrivateImportUsage]

    if not find_node_ids():
        raise HeadError(f"this machine is no node of it; let it join: ray start --address={address} --num-cpus=0")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    os.chdir(directory)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace=APP_NAME)


def is_served() -> bool:
    """Whether the attached cluster has the service, though whoever put it there may be gone."""
    return APP_NAME in serve.status().applications


def deploy(settings: Settings) -> None:
    """Put the service on the node of this process, or replace the one that is there, and wait until it runs."""
    import ray

    listen, node_id = settings.listen, str(ray.get_runtime_context().get_node_id())
    # A proxy on each node that has a part of the service, which is this one; and on the head, where Serve wants one.
    serve.start(proxy_location="EveryNode", http_options={"host": listen.host, "port": listen.port})
    serve.run(application(settings, node_id), name=APP_NAME, route_prefix="/")


def withdraw() -> None:
    """End the service on the attached cluster, and Serve with it unless that serves something else. Jobs go on."""
    # Ray tells the terminal that the controller died, which is what was asked for.
    with contextlib.redirect_stderr(io.StringIO()):
        if serve.status().applications.keys() - {APP_NAME}:
            serve.delete(APP_NAME)
        else:
            serve.shutdown()
