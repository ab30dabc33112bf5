"""Control arms: when they are trained, and on what. Imports no torch.

A control is compared with the job's own replicas, so its replica i differs from theirs in the method alone: random
streams are functions of (seed, index, phase, step), and the data follow from index and count.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from codistill import records
from codistill.outcome import ReplicaOutcome
from codistill.run_dir import RunDir
from codistill.spec import Arm, JobSpec, replica_name

log = logging.getLogger(__name__)

STRENGTH = "distill/teacher_off_label"


class NobodyHeard(RuntimeError):
    """Label smoothing is to be as strong as the teachers were, and there were none."""


def may_follow(main: Mapping[str, ReplicaOutcome]) -> bool:
    """Whether the controls are trained after the job's own replicas have ended so."""
    return all(replica.outcome == "succeeded" for replica in main.values())


def spec_of(run: RunDir, spec: JobSpec, index: int, arm: Arm) -> JobSpec:
    """What replica `index` of `arm` trains. Reads the records of the job's replica of that index where the strength of
    its teachers is needed; raises `NobodyHeard` when it had none."""
    if arm != "smoothing":
        return spec.for_arm(arm)
    epsilon = strength_of_teachers(run, index)
    log.info("%s smooths by %.6f, as the teachers of %s did", replica_name(index, arm), epsilon, replica_name(index))
    return spec.for_arm(arm, epsilon=epsilon)


def strength_of_teachers(run: RunDir, index: int) -> float:
    """What the teachers of the job's replica `index` took off the label at temperature 1, at which labels are smoothed,
    0 to 1: the mean over its logged steps.

    Raises `NobodyHeard` when it has logged no step with a teacher.
    """
    name = replica_name(index)
    steps, values = records.values(records.read(run, name, "metrics"), STRENGTH)
    if not steps:
        raise NobodyHeard(
            f"{replica_name(index, 'smoothing')} is to smooth labels as strongly as the teachers of {name} did, but"
            f" {name} has logged no step in which it heard one ({STRENGTH}); see why, or lower method.burn_in_steps,"
            " exchange.interval_steps or training.log_interval_steps"
        )
    return sum(values) / len(values)
