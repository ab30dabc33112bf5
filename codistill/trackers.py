"""Where metrics are mirrored to beside the run directory: TensorBoard, MLflow, Weights & Biases.

Nothing leaves the machine unless its owner has said so in the environment: MLflow writes into the run directory unless
MLFLOW_TRACKING_URI is set, W&B is offline unless WANDB_MODE is, and neither reports on its own use.
A tracker is a convenience, the records are the truth: one that fails is logged once, its failures are counted, and
training goes on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from codistill import mirror
from codistill.run_dir import RunDir
from codistill.spec import JobSpec

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """What a replica needs of one; nothing here raises."""

    @property
    def failures(self) -> int:
        """How many calls have not reached it; opening it is one."""
        ...

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        """Named values after `step` completed steps."""
        ...

    def flush(self) -> None:
        """Make what was added outlive this process, as far as the tracker can; before every checkpoint."""
        ...

    def close(self) -> None: ...


class Sink(Protocol):
    """A tracker that may raise whatever it likes."""

    def add_values(self, step: int, values: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def open_trackers(
    names: Sequence[str], run: RunDir, replica: str, spec: JobSpec, resume_step: int = 0
) -> list[Tracker]:
    """One tracker per name: `tensorboard`, `mlflow`, `wandb`. `resume_step` is where training goes on, 0 at its start.

    One that cannot be opened, because its package is missing, say, stays and counts every call as a failure.
    """
    openers: dict[str, Callable[[], Sink]] = {
        "tensorboard": lambda: mirror.TensorBoardMirror(run.root / "tensorboard" / replica, resume_step=resume_step),
        "mlflow": lambda: MlflowSink(run, replica, spec),
        "wandb": lambda: WandbSink(run, replica, spec, resume_step),
    }
    return [Guarded(name, openers[name]) for name in names]


class Guarded:
    """A sink whose failures are counted instead of raised."""

    def __init__(self, name: str, opener: Callable[[], Sink]) -> None:
        self.failures = 0
        self._name = name
        self._sink: Sink | None = None

        def assign() -> None:
            self._sink = opener()

        self._attempt("open", assign)

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        self._attempt("add_values", lambda: self._opened().add_values(step, values))

    def flush(self) -> None:
        self._attempt("flush", lambda: self._opened().flush())

    def close(self) -> None:
        self._attempt("close", lambda: self._opened().close())
        if self.failures:
            log.warning("tracker %s has failed %d times in all", self._name, self.failures)

    def _opened(self) -> Sink:
        if self._sink is None:
            raise RuntimeError("it could not be opened")
        return self._sink

    def _attempt(self, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self.failures += 1
            if self.failures == 1:
                hint = f"; pip install 'codistill[{self._name}]'" if isinstance(error, ImportError) else ""
                kind = type(error).__name__
                log.warning("tracker %s fails (%s): %s: %s%s; training goes on", self._name, what, kind, error, hint)


class MlflowSink:
    """One MLflow run per replica, in the experiment called after the spec; a resumed replica goes on with its run.

    MLflow takes nothing back, so of a step that is made again the first value stays and the second is left out.
    """

    def __init__(self, run: RunDir, replica: str, spec: JobSpec) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        store = None
        if "MLFLOW_TRACKING_URI" not in os.environ:
            # Plain files: a database needs packages that MLflow's slim edition does not bring.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            store = (run.root / "mlflow").absolute().as_uri()
        from mlflow import MlflowClient

        tags = {"codistill.job": run.job_id, "codistill.replica": replica}
        # MLflow makes a store, an experiment and a run without asking whether another process does so at this moment,
        # and cannot search among runs of which one is half made.
        with _one_at_a_time(run.root / "mlflow.lock"):
            self._client = MlflowClient(tracking_uri=store)
            found = self._client.get_experiment_by_name(spec.name)
            experiment = self._client.create_experiment(spec.name) if found is None else found.experiment_id
            self._run_id, self._last_steps = self._continued_or_new(experiment, tags)
        self._log_spec(spec)

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        new = {name: value for name, value in values.items() if step > self._last_steps.get(name, -1)}
        now_ms = int(time.time() * 1000)
        self._client.log_batch(self._run_id, metrics=[Metric(name, new[name], now_ms, step) for name in new])

    def flush(self) -> None:
        """Nothing to do: every call is written before it returns."""

    def close(self) -> None:
        self._client.set_terminated(self._run_id)

    def _continued_or_new(self, experiment: str, tags: Mapping[str, str]) -> tuple[str, dict[str, int]]:
        """The id of this replica's run, and the last step of each metric that stands there already."""
        words = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found = self._client.search_runs([experiment], filter_string=words, max_results=1)
        if not found:
            name = "/".join(tags.values())
            return self._client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id, {}
        run_id = found[0].info.run_id
        self._client.update_run(run_id, status="RUNNING")
        histories = {name: self._client.get_metric_history(run_id, name) for name in found[0].data.metrics}
        return run_id, {name: max(metric.step for metric in history) for name, history in histories.items()}

    def _log_spec(self, spec: JobSpec) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)) for key, value in flat(spec.model_dump(mode="json")).items()]
        self._client.log_batch(self._run_id, params=params)


class WandbSink:
    """One W&B run per incarnation of a replica, grouped by job: what is offline cannot be resumed."""

    def __init__(self, run: RunDir, replica: str, spec: JobSpec, resume_step: int) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        directory = run.root / "wandb"
        directory.mkdir(parents=True, exist_ok=True)
        # Metrics and the spec only: no output, no source, no address of a git remote, no command line.
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True,
            x_disable_stats=True, x_disable_meta=True, x_save_requirements=False,
            x_transaction_log_flush_interval=mirror.FLUSH_INTERVAL_S,
        )  # fmt: skip
        self._run: Any = wandb.init(
            project=spec.name,
            group=run.job_id,
            job_type=replica,
            name=replica if resume_step == 0 else f"{replica} from step {resume_step}",
            config={**spec.model_dump(mode="json"), "resume_step": resume_step},
            dir=str(directory),
            mode=cast(Any, os.environ.get("WANDB_MODE") or "offline"),
            settings=settings,
            reinit="create_new",
        )

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Nothing can be done: a process of W&B's own writes every two seconds, and a kill loses what came after."""

    def close(self) -> None:
        self._run.finish()


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, keys joined by dots."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= (
            flat(cast(Mapping[str, Any], item), f"{prefix}{key}.")
            if isinstance(item, dict) and item
            else {f"{prefix}{key}": item}
        )
    return found


@contextmanager
def _one_at_a_time(path: Path) -> Generator[None]:
    """Wait until no other process is in here; the system lets go of the lock when its holder dies."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
