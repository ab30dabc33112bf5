"""What brings features of a student into the form of a teacher's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from codistill.surgery.critics import Transition


def regressor(student: Sequence[int], teacher: Sequence[int]) -> Transition:
    """One linear map at each place (a 1 x 1 convolution of maps), from what a student's stage gives for one sample,
    [channels, height, width], [places, width] or [width], to the channels or the width of a teacher's stage.

    Raises `ValueError` when the two are not of the same kind, or have other numbers of places.
    """
    alike = len(student) == len(teacher) and (len(student) == 3 or student[:-1] == teacher[:-1])
    if not alike:
        raise ValueError(
            f"the student's stage gives {list(student)} and the teacher's {list(teacher)}; both must give maps"
            " [channels, height, width], or states of as many places: name other stages by method.stage and"
            " method.teacher_stage"
        )
    return Transition(student, teacher[0] if len(teacher) == 3 else teacher[-1])


def at_common_places(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [N, channels, height, width] of both, averaged over areas down to the smaller height and width of the two;
    anything else as it is."""
    if student.ndim != 4 or student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    height, width = (min(sizes) for sizes in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return adaptive_avg_pool2d(student, (height, width)), adaptive_avg_pool2d(teacher, (height, width))
