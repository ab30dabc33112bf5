"""What a replica predicted, sample by sample, in few bytes: from logits to columns and back.

Every form keeps log-probabilities, in float16 (11 bits of mantissa: a probability p comes back within about
|log p| / 4096 of itself). A distribution is renormalised when it comes back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codistill.exchange.draws import drawn
from codistill.exchange.snapshot import Array
from codistill.spec import Codistillation, Currency, Method, Predictions, why_not_sampled

DENSE_UP_TO_CLASSES = 64
"""What `auto` sends whole: 128 bytes."""
LOWEST = -60000.0
"""Log-probability of what is impossible: finite in float16, and 0 as a probability."""

Columns = Mapping[str, Array]
"""By name, an array [n, width] each; the widths are those of the form."""


@dataclass(frozen=True)
class Form:
    """How the prediction for a sample is written down."""

    kind: Literal["dense", "top_k", "sampled"]
    classes: int
    places: tuple[int, ...] = ()
    """Shape of a sample's predictions: () for one, (L,) for one at each place of a sequence."""
    size: int = 0
    """Classes that `top_k` names, draws of `sampled`."""

    @property
    def count(self) -> int:
        """Predictions of one sample."""
        return math.prod(self.places)

    @property
    def class_type(self) -> np.dtype[np.unsignedinteger]:
        """The smallest that holds every class."""
        return np.min_scalar_type(self.classes - 1)

    @property
    def columns(self) -> dict[str, tuple[np.dtype[np.generic], int]]:
        """Type and width of each column."""
        half, many = np.dtype(np.float16), self.count * self.size
        match self.kind:
            case "dense":
                return {"log_probabilities": (half, self.count * self.classes)}
            case "top_k":
                return {
                    "classes": (self.class_type, many),
                    "log_probabilities": (half, many),
                    "log_rest": (half, self.count),
                }
            case "sampled":
                return {"draws": (self.class_type, many), "log_labels": (half, self.count)}
            case _:
                assert_never(self.kind)

    @property
    def row_bytes(self) -> int:
        """Of one sample where it is held, with its id and age."""
        return 16 + sum(dtype.itemsize * width for dtype, width in self.columns.values())

    @property
    def sent_bytes(self) -> int:
        """Of one sample where it travels; at most, for `sampled`, since draws travel as counts."""
        if self.kind != "sampled":
            return self.row_bytes
        return 16 + 2 * 4 + self.count * (2 + 1 + self.size * (self.class_type.itemsize + 1))


@dataclass(frozen=True)
class Rows:
    """Predictions for n samples."""

    ids: npt.NDArray[np.int64]
    """[n], in no order; of a sample that is there twice the later row counts."""
    made_at: npt.NDArray[np.int64]
    """[n]: updates its replica had completed when it said so."""
    columns: Columns

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, index: Array) -> Rows:
        """Those at `index`, copies."""
        return Rows(
            self.ids[index], self.made_at[index], {name: values[index] for name, values in self.columns.items()}
        )

    def newest(self) -> Rows:
        """Each sample once, ascending by id."""
        _, from_the_end = np.unique(self.ids[::-1], return_index=True)
        return self.at(len(self) - 1 - from_the_end)


def no_rows(form: Form) -> Rows:
    """Nothing, in this form."""
    none = np.zeros(0, np.int64)
    return Rows(none, none, {name: np.zeros((0, width), dtype) for name, (dtype, width) in form.columns.items()})


def joined(form: Form, parts: Sequence[Rows]) -> Rows:
    """One after another."""
    parts = [no_rows(form), *parts]
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in form.columns}
    return Rows(np.concatenate([p.ids for p in parts]), np.concatenate([p.made_at for p in parts]), columns)


def form_of(asked: Currency, method: Method, classes: int, places: tuple[int, ...]) -> Form | None:
    """What `asked` means for `method` and that many classes; None where it is not predictions that travel. Raises
    `ValueError` when it names more classes than there are."""
    if not isinstance(asked, Predictions) or not isinstance(method, Codistillation):
        return None
    match asked.form:
        case "auto" if classes <= max(DENSE_UP_TO_CLASSES, asked.top_k):
            return Form("dense", classes, places)
        case "auto" if why_not_sampled(method) is None:
            return Form("sampled", classes, places, asked.draws)
        case "auto" | "top_k":
            if asked.top_k >= classes:
                raise ValueError(
                    f"exchange.currency.top_k is {asked.top_k} and there are {classes} classes; lower it, or use form"
                    " 'dense'"
                )
            return Form("top_k", classes, places, asked.top_k)
        case "dense":
            return Form("dense", classes, places)
        case "sampled":
            return Form("sampled", classes, places, asked.draws)
        case _:
            assert_never(asked.form)


def packed(form: Form, logits: Tensor, labels: Tensor, uniforms: Tensor | None = None) -> Columns:
    """The columns of `logits` [n, *places, classes] for samples of `labels` [n, *places].

    `sampled` draws by `uniforms` [n, count x draws] in [0, 1). Draws say nothing of the logarithm of a probability, so
    that of the label is sent beside them (of class 0 where there is no label): what is not finite shows in it too.
    """
    n, values = len(logits), logits.detach().float().reshape(len(logits), form.count, form.classes)
    match form.kind:
        case "dense":
            return {"log_probabilities": _half(values.log_softmax(-1)).reshape(n, -1)}
        case "top_k":
            log_probabilities = values.log_softmax(-1)
            top, classes = log_probabilities.topk(form.size, dim=-1)
            rest = log_probabilities.scatter(-1, classes, -math.inf).logsumexp(-1)
            named = classes.cpu().numpy().astype(form.class_type)
            return {
                "classes": named.reshape(n, -1),
                "log_probabilities": _half(top).reshape(n, -1),
                "log_rest": _half(rest).reshape(n, -1),
            }
        case "sampled":
            assert uniforms is not None
            probabilities = values.softmax(-1)
            draws = drawn(probabilities.flatten(0, 1), uniforms.reshape(-1, form.size)).numpy().astype(form.class_type)
            draws.sort(axis=-1)  # so that repetitions lie together
            of_label = values.gather(-1, labels.reshape(n, form.count, 1).clamp(min=0)).squeeze(-1)
            # Less the logarithm of the sum of exponentials: the likeliest is never too small for a logarithm.
            of_label = of_label - values.amax(-1) + probabilities.amax(-1).log()
            return {"draws": draws.reshape(n, -1), "log_labels": _half(of_label)}
        case _:
            assert_never(form.kind)


def unpacked(form: Form, columns: Columns) -> Tensor:
    """Log-probabilities [n, *places, classes], float32: of n distributions, or of estimates of them for `sampled`."""
    match form.kind:
        case "dense":
            whole = _wide(columns["log_probabilities"], form.count, form.classes).log_softmax(-1)
        case "top_k":
            top = _wide(columns["log_probabilities"], form.count, form.size)
            rest = _wide(columns["log_rest"], form.count, 1)
            parts = torch.cat([top, rest], dim=-1).log_softmax(-1)
            others = parts[..., -1:] - math.log(form.classes - form.size)
            named = _long(columns["classes"], form)
            whole = others.expand(-1, -1, form.classes).scatter(-1, named, parts[..., :-1])
        case "sampled":
            named = _long(columns["draws"], form)
            whole = torch.zeros(len(named), form.count, form.classes)
            counts = whole.scatter_add_(-1, named, torch.ones(named.shape)).gather(-1, named)
            # Logarithms of what was drawn alone, which is little of the whole.
            whole.fill_(LOWEST).scatter_(-1, named, (counts / form.size).log())
        case _:
            assert_never(form.kind)
    return whole.reshape(-1, *form.places, form.classes)


def are_distributions(form: Form, columns: Columns) -> bool:
    """Whether every row is finite, adds up to 1 as far as float16 allows, and names classes that exist."""
    classes = columns.get("classes", columns.get("draws"))
    if classes is not None and classes.size and int(classes.max()) >= form.classes:
        return False
    if form.kind == "sampled":
        log_labels = columns["log_labels"]
        return bool(np.all(np.isfinite(log_labels) & (log_labels <= 0)))
    named = ["log_probabilities", "log_rest"] if form.kind == "top_k" else ["log_probabilities"]
    masses = sum(
        np.exp(columns[name].astype(np.float32)).reshape(-1, form.columns[name][1] // form.count).sum(-1)
        for name in named
    )
    return bool(np.all(np.abs(np.asarray(masses) - 1) <= TOLERANCE))


TOLERANCE = 0.01
"""How far from 1 a mass in float16 may be: entropy / 4096, which is 0.003 for a million classes, and some."""


def _half(values: Tensor) -> Array:
    return values.clamp(LOWEST, 0.0).half().cpu().numpy()


def _wide(values: Array, count: int, width: int) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).reshape(-1, count, width)


def _long(values: Array, form: Form) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).reshape(-1, form.count, form.size)
