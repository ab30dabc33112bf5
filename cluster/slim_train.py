"""Ray Train 2.60 without what a replica does not use.

Start-up is mostly processes importing Ray, and each keeps its memory from then on; so a run has those it needs:
controller and workers, and the synchronisation actor where there are several workers. (Two replicas on two cores reach
their first step in half the time.)
"""

from __future__ import annotations

import os
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import state as worker_group_state
from ray.train.v2._internal.execution.worker_group import worker_group
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more process per replica; our restarts do not need a warning
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a dead worker is noticed within this
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
UNUSED_CALLBACKS = {"PlacementGroupCleanerCallback", "DatasetsCallback"}


def prepare_environment() -> None:
    """Set what Ray Train reads from the environment; it hands these on to controllers and workers."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class SlimTrainer(DataParallelTrainer):
    """Without the helpers of features that are not used."""

    def _create_default_callbacks(self) -> list[Any]:
        used = [c for c in super()._create_default_callbacks() if type(c).__name__ not in UNUSED_CALLBACKS]
        return [*used, OneRank()] if self.scaling_config.num_workers == 1 else used

    def _initialize_and_run_controller(self, **of_controller: Any) -> Any:
        of_controller["scaling_policy"] = PlacementGroupAlone(self.scaling_config)
        return super()._initialize_and_run_controller(**of_controller)


class PlacementGroupAlone(FixedScalingPolicy):
    """Asks for the workers' place by their placement group, to which an autoscaler answers as well, and not once more
    through Ray Data's coordinator: an actor that the first run on a cluster waits for, and that never ends."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class OneRank(ControllerCallback):
    """Has the controller leave out the actor through which ranks agree on what they report to Ray Train: a process per
    replica, for one rank that has nobody to agree with, and that reports nothing there."""

    def after_controller_start(self, train_run_context: Any) -> None:
        # Both in the controller's process alone.
        worker_group.SynchronizationActor = NoActor()  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
        worker_group_state._shutdown_sync_actor = lambda sync_actor: None  # pyright: ignore[reportPrivateUsage]


class NoActor:
    """Stands where Ray Train makes that actor; what it hands out goes to the worker, and nobody calls it."""

    def options(self, **_: Any) -> NoActor:
        return self

    def remote(self, **_: Any) -> str:
        return "left out: the replica has one rank"
