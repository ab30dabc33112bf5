"""What runs on every rank of a replica: the bridge from Ray Train to `codistill.replica.train_replica`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, assert_never, cast

from cluster.decisions import MEMORY_REFUSED
from cluster.transport import ObjectStoreTransport
from codistill.exchange.transport import SnapshotScope, Transport, connect_files
from codistill.run_dir import RunDir
from codistill.spec import Arm, Exchange
from codistill.spec import AutoTransport as AutoTransportSpec
from codistill.spec import FilesTransport as FilesTransportSpec
from codistill.spec import MemoryTransport as MemoryTransportSpec
from codistill.spec import ObjectStoreTransport as ObjectStoreTransportSpec


def train(config: dict[str, str | int]) -> dict[str, Any]:
    """The train function: from `storage`, `data_home`, `job`, `fence`, `index`, `arm` and `namespace` to this
    replica's entry of `result.json`."""
    os.environ["CODISTILL_DATA"] = str(config["data_home"])
    from codistill.ranks import Ranks  # with torch, which the driver need not wait for
    from codistill.replica import train_replica

    run = RunDir(Path(str(config["storage"])), str(config["job"]))
    spec, namespace = run.read_spec(), str(config["namespace"])
    return train_replica(
        run,
        fence=int(config["fence"]),
        index=int(config["index"]),
        arm=cast(Arm, config["arm"]),
        connect=lambda scope: connect(scope, spec.exchange, namespace),
        ranks=Ranks.joined(),
        device=_device() if spec.on_cuda else None,
    )


def _device() -> Any:
    """The GPU that Ray Train has dealt to this rank."""
    from ray.train.torch import get_device

    return get_device()


def connect(scope: SnapshotScope, exchange: Exchange, namespace: str) -> Transport:
    """This replica's end of the exchange that the spec asks for."""
    match exchange.transport:
        case ObjectStoreTransportSpec():
            files = False
        case FilesTransportSpec():
            files = True
        case AutoTransportSpec():
            # In lockstep a replica that comes back needs the versions of before, and objects die with their owner.
            files = exchange.mode == "lockstep"
        case MemoryTransportSpec():
            raise ValueError(MEMORY_REFUSED)
        case _:
            assert_never(exchange.transport)
    if files:
        return connect_files(scope)
    return ObjectStoreTransport(scope.run, scope.index, namespace=namespace, keep=scope.keep)
