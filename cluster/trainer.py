"""One replica as one Ray Train run. What is private to Ray Train 2.60 is in this file and in `slim_train.py`."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from cluster.slim_train import SlimTrainer

MOST_LETTERS = 1000
"""Of an error that training raised, in the reason of a job."""
RANK_TIMEOUT_S = 600
"""Longest wait of a rank for another that hangs; one that dies is noticed at once."""


class RunFailed(RuntimeError):
    """A replica's run has ended without a result; the message is one sentence."""

    def __init__(self, message: str, *, died: bool) -> None:
        super().__init__(message)
        self.died = died
        """Whether a process vanished, rather than the training raising an error."""


@dataclass(frozen=True)
class TrainRun:
    """What Ray Train is asked to run."""

    replica: str
    function: Callable[[dict[str, Any]], dict[str, Any]]
    config: dict[str, str | int]
    ranks: int
    cpus: float
    gpus: float
    memory_bytes: int | None
    """Of its node, that each rank reserves; None where it is not known."""
    scratch: Path
    """Where Ray Train may keep its own files."""
    directory: Any
    """The exchange directory, which also holds the handles by which a run is stopped."""

    @property
    def bundle(self) -> dict[str, float]:
        """What Ray keeps free for a rank, on one node. With its memory in it, two ranks never lie where the memory is
        only enough for one, whatever order the jobs came in."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory_bytes or 0)}
        return {name: amount for name, amount in asked.items() if amount > 0}

    def fit(self) -> dict[str, Any]:
        """Run to the end and return what the function returned on rank 0. Raises `RunFailed` at the first failure.

        Ray Train restarts nothing: doing so ourselves takes about half a second longer, and leaves budget, back-off
        and the reason of every failure in one place, also when it is the controller that died.
        """
        trainer = SlimTrainer(
            self.function,
            train_loop_config=dict(self.config),
            backend_config=_process_group(self.ranks),
            scaling_config=ScalingConfig(
                num_workers=self.ranks,
                use_gpu=self.gpus > 0,
                resources_per_worker=self.bundle,
            ),
            run_config=RunConfig(
                name=self.replica,
                storage_path=str(self.scratch),
                failure_config=FailureConfig(max_failures=0),
                callbacks=[Registrar(self.directory, self.replica)],  # pyright: ignore[reportArgumentType]
            ),
        )
        try:
            value: Any = trainer.fit().return_value
        except (TrainingFailedError, RayError) as error:
            raise RunFailed(sentence_of(error), died=is_death(error)) from error
        return value


def _process_group(ranks: int) -> Any:
    """What joins the ranks of one replica: nothing for one, since torch takes seconds to import in the controller."""
    if ranks == 1:
        return None
    from ray.train.torch import TorchConfig

    return TorchConfig(timeout_s=RANK_TIMEOUT_S)


class Registrar(ControllerCallback, WorkerGroupCallback):
    """Leaves, in the directory, the handles that stop this run. Runs in the controller: never waits, never raises."""

    def __init__(self, directory: Any, replica: str) -> None:
        self._directory, self._replica = directory, replica

    def after_controller_start(self, train_run_context: Any) -> None:
        self._register(controller=ray.get_runtime_context().current_actor)

    def after_worker_group_start(self, worker_group: Any) -> None:
        state = worker_group.get_worker_group_state()
        self._register(
            workers=[worker.actor for worker in state.workers],
            placement_group=state.placement_group_handle.placement_group,
        )

    def _register(self, **handles: Any) -> None:
        # As bytes: of the handles themselves the directory would import Ray Train to unpack them.
        packed = {name: pickle.dumps(handle) for name, handle in handles.items()}
        self._directory.register.remote(self._replica, packed)


# ---------------------------------------------------------------- what a failure means


def is_death(error: BaseException) -> bool:
    """Whether a worker or the controller vanished, in contrast to an error raised by the training."""
    match error:
        case WorkerGroupError():
            # Of several ranks one is enough: the others fail because they lost it.
            return any(isinstance(e, WorkerHealthCheckFailedError) for e in error.worker_failures.values())
        case ControllerError() | RayActorError():
            return True
        case _:
            return False


def sentence_of(error: BaseException) -> str:
    """A failure in one sentence, without traceback or Ray's colours."""
    match error:
        case WorkerGroupError() if is_death(error):
            return "its worker process died (killed, out of memory, or its node was lost)"
        case WorkerGroupError():
            failure = next(iter(error.worker_failures.values()))
            return _named(getattr(failure, "_base_exc", failure))  # Ray Train keeps the text of the traceback beside it
        case ControllerError():
            return f"Ray Train could not run it: {_named(error.controller_failure)}"
        case RayActorError():
            return "its controller process died"
        case _:
            return _named(error)


def _named(error: BaseException) -> str:
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    text = text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} ... (the whole of it is in the replica's log)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
