"""By what the driver stops a replica's Ray Train run from outside: handles that its controller left with it."""

from __future__ import annotations

import contextlib
import pickle
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import remove_placement_group

REPLY_TIMEOUT_S = 2.0


@dataclass
class Handles:
    """Of one replica. What the directory told once is kept: started again, it knows nothing of runs that go on."""

    directory: Any
    replica: str
    _known: dict[str, Any] = field(default_factory=dict[str, Any])
    _known_of: int = -1
    """The newest incarnation whose handles are known."""

    def keep(self, incarnation: int) -> None:
        """Have those of an incarnation that has shown life."""
        if incarnation > self._known_of and self._look():
            self._known_of = incarnation

    def abort(self) -> None:
        """Ask the run's controller to end it now. `TrainRun.fit` then raises `RunFailed`."""
        self._look()
        if "controller" in self._known:
            self._known["controller"].abort.remote()

    def kill(self) -> None:
        """End the run without asking, and free what it reserved, which a killed controller cannot do."""
        self._look()
        if "controller" in self._known:
            ray.kill(self._known["controller"])
        if "placement_group" in self._known:
            with contextlib.suppress(ValueError, RayError):  # gone already
                remove_placement_group(self._known["placement_group"])

    def kill_workers(self) -> int:
        """End the run's worker processes, as if they had died by themselves; how many there were."""
        self._look()
        workers = self._known.get("workers", [])
        for worker in workers:
            ray.kill(worker)
        return len(workers)

    def _look(self) -> bool:
        """Ask the directory; whether it knew any."""
        try:
            packed: dict[str, bytes] = ray.get(self.directory.registered.remote(self.replica), timeout=REPLY_TIMEOUT_S)
        except RayError:
            return False
        # From our own controllers, by way of Ray, which pickles its messages anyway.
        self._known |= {name: pickle.loads(handle) for name, handle in packed.items()}  # noqa: S301
        return bool(packed)
