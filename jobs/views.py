"""How a job looks over HTTP: JSON made of its row and its run directory. Nothing is asked of the trainers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from codistill.run_dir import RunDir, read_json
from codistill.spec import replica_name
from jobs.deadlines import end_by, start_by
from jobs.job import Job, Reason, Transition
from jobs.usage import usage_of


def summary(job: Job, place: int | None = None) -> dict[str, Any]:
    """A job as an item of a list; `place` is where it stands in the queue, while it waits."""
    return {
        "id": job.id,
        "name": job.name,
        "owner": job.owner,
        "parent": job.parent,
        "labels": dict(job.labels),
        "priority": job.priority,
        "status": {
            "state": job.state.value,
            "reason": _reason(waits_for(job, place)),
            "attempts": job.attempts,
            "queue_position": place,
        },
        "created_at": rfc3339(job.created_at),
        "updated_at": rfc3339(job.updated_at),
        "started_at": rfc3339(job.started_at),
        "ended_at": rfc3339(job.ended_at),
        "links": {"self": f"/api/v1/jobs/{job.id}"},
    }


def waits_for(job: Job, place: int | None) -> Reason | None:
    """What the manager said of it; of whoever is not next, that others are before it."""
    if place is None or place == 1:
        return job.reason
    return Reason("queued", f"waits behind {place - 1} other{'s' if place > 2 else ''}")


def full(
    job: Job, transitions: Sequence[Transition], run: RunDir, now: float, place: int | None = None
) -> dict[str, Any]:
    """A job with everything known about it. Only the current fence's result and heartbeats are looked at."""
    beats = run.read_heartbeats(job.fence) if job.fence else {}
    result = read_json(run.result(job.fence)) if job.fence else None
    value = summary(job, place)
    value["spec"] = job.spec_json
    value["estimate"] = job.estimate
    value["status"] |= {
        "fence": job.fence,
        "degraded": bool(result and result.get("degraded")),
        "progress": progress(job, beats),
        "replicas": [_replica(name, beats.get(name), now) for name in replica_names(job)],
        "transitions": [transition_view(t) for t in transitions],
    }
    limits = job.spec.limits
    value["deadlines"] = {"start_by": rfc3339(start_by(job, limits)), "end_by": rfc3339(end_by(job, limits))}
    value["usage"] = usage_of(job, now)
    value["result"] = result
    return finite(value)


def replica_names(job: Job) -> list[str]:
    """Of the job's own replicas, then of its controls'."""
    spec = job.spec
    return [replica_name(index, arm) for arm in spec.arms for index in range(spec.replicas.count)]


def progress(job: Job, beats: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Over all replicas."""
    spec = job.spec
    phases = {str(beat.get("phase")) for beat in beats.values() if beat.get("phase")}
    return {
        "phase": phases.pop() if len(phases) == 1 else ("mixed" if phases else None),
        "completed": sum(int(beat.get("step") or 0) for beat in beats.values()),
        "total": spec.total_steps * len(replica_names(job)),
        "unit": "steps",
    }


def _replica(name: str, beat: Mapping[str, Any] | None, now: float) -> dict[str, Any]:
    if beat is None:
        return {"replica": name, "state": None, "step": None, "seconds_since_beat": None, "teachers": []}
    return dict(beat) | {"replica": name, "seconds_since_beat": round(max(0.0, now - float(beat["time"])), 3)}


def transition_view(transition: Transition) -> dict[str, Any]:
    """One change of state."""
    return {
        "state": transition.state.value,
        "fence": transition.fence,
        "reason": _reason(transition.reason),
        "time": rfc3339(transition.time),
    }


def _reason(reason: Reason | None) -> dict[str, Any] | None:
    return None if reason is None else reason.as_json()


def rfc3339(seconds: float | None) -> str | None:
    """Seconds since the epoch as RFC 3339 in UTC, to the millisecond."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity as None: JSON has neither, and a diverged loss must not break a page."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): finite(part) for key, part in value.items()}
        case list() | tuple():
            return [finite(part) for part in value]
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case _:
            return value
