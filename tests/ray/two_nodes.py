"""Two raylets of one CPU each, so that two replicas must be apart: `python -m tests.ray.two_nodes STORAGE`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cluster.driver import Attempt
from tests.ray.running import create, spec_of

NODE = {"num_cpus": 1, "object_store_memory": 3 * 10**8, "include_dashboard": False}


def main(storage: Path) -> None:
    temporary = tempfile.mkdtemp(prefix="cd-", dir="/tmp")
    # Where it notes the cluster's address, which otherwise is the place of this machine's own cluster.
    os.environ["RAY_TMPDIR"] = temporary
    (Path(temporary) / "ray").mkdir()
    nodes: Any = Cluster(initialize_head=True, head_node_args={**NODE, "temp_dir": temporary})
    try:
        nodes.add_node(**NODE)
        ray.init(address=nodes.address, log_to_driver=False)
        assert len(ray.nodes()) == 2
        Attempt(create(storage, spec_of(300)), 1).execute()
    finally:
        ray.shutdown()
        nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
