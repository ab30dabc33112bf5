"""Predictions as currency: what every form keeps, how it travels, what the gate lets pass, the join by sample id."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch

from codistill.exchange.clock import PublishRule
from codistill.exchange.draws import drawn
from codistill.exchange.gate import Verdict
from codistill.exchange.prediction_records import NAME, OfPredictions, from_arrays, of_all_ranks, to_arrays
from codistill.exchange.prediction_table import PredictionTable
from codistill.exchange.predictions import Columns, Form, Rows, form_of, no_rows, packed, unpacked
from codistill.exchange.snapshot import Array, SnapshotId
from codistill.randomness import uniforms
from codistill.ranks import ALONE, Ranks
from codistill.spec import Codistillation, Predictions, Solo, Weights
from codistill.spec_errors import SpecError
from tests.support import small_spec

DENSE, TOP_2 = Form("dense", 5), Form("top_k", 5, size=2)
FORMS = [DENSE, TOP_2, Form("sampled", 5, size=8), Form("dense", 300, (3,)), Form("top_k", 300, (3,), 4)]
FORMS += [Form("sampled", 300, (3,), 20)]
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.kind} {form.classes}")


def logits_of(form: Form, n: int, seed: int = 0, sharpness: float = 2.0) -> torch.Tensor:
    shape = (n, *form.places, form.classes)
    return sharpness * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def columns_of(form: Form, logits: torch.Tensor) -> Columns:
    draws = uniforms(torch.arange(len(logits)), form.count * form.size, 0) if form.kind == "sampled" else None
    return packed(form, logits, labels_of(form, len(logits)), draws)


def labels_of(form: Form, n: int) -> torch.Tensor:
    return torch.arange(n * form.count).reshape(n, *form.places) * 7 % form.classes


def rows_of(form: Form, ids: list[int], step: int = 0, seed: int = 0) -> Rows:
    columns = columns_of(form, logits_of(form, len(ids), seed))
    return Rows(np.array(ids, np.int64), np.full(len(ids), step, np.int64), columns)


def assert_same(left: Rows, right: Rows) -> None:
    np.testing.assert_array_equal(left.ids, right.ids, strict=True)
    np.testing.assert_array_equal(left.made_at, right.made_at, strict=True)
    assert set(left.columns) == set(right.columns)
    for name, values in right.columns.items():
        np.testing.assert_array_equal(left.columns[name], values, strict=True)


# ---------------------------------------------------------------- forms


def test_dense_is_every_log_probability_in_float16_renormalised() -> None:
    logits = logits_of(DENSE, 7)
    exact = logits.double() - logits.double().exp().sum(-1, keepdim=True).log()
    halves = exact.numpy().astype(np.float16).astype(np.float64)
    found = unpacked(DENSE, columns_of(DENSE, logits)).double()
    expected = torch.from_numpy(halves - np.log(np.exp(halves).sum(-1, keepdims=True)))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)  # an exact tie may round the other way
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(7).double(), atol=1e-6, rtol=0)
    assert ((found - exact).abs() <= exact.abs() / 1024 + 1e-3).all()


@pytest.mark.parametrize("form", [DENSE, TOP_2], ids=["dense", "top_k"])
def test_what_is_impossible_stays_finite(form: Form) -> None:
    found = unpacked(form, columns_of(form, torch.tensor([[0.0, 1e38, -1e38, 3.0, 1e5]])))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.exp(), torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]]))


def test_top_k_spreads_the_rest_evenly() -> None:
    said = torch.tensor([[1 / 16, 1 / 2, 1 / 8, 1 / 4, 1 / 16]]).log()
    columns = columns_of(TOP_2, said)
    assert columns["classes"].tolist() == [[1, 3]]
    assert columns["classes"].dtype == np.uint8
    assert np.exp(columns["log_rest"].astype(float)) == pytest.approx(1 / 4, rel=1e-3)
    third = (1 / 4) / 3
    torch.testing.assert_close(
        unpacked(TOP_2, columns).exp(), torch.tensor([[third, 1 / 2, third, 1 / 4, third]]), rtol=2e-3, atol=0
    )


def test_sampled_counts_where_the_numbers_fall() -> None:
    form, half = Form("sampled", 3, (2,), 4), torch.tensor([0.5, 0.25, 0.25]).log()
    numbers = torch.tensor([[0.76, 0.0, 0.49, 0.51, 0.9, 0.8, 0.99, 0.76]])
    columns = packed(form, torch.stack([half, half])[None], torch.zeros(1, 2).long(), numbers)
    assert columns["draws"].tolist() == [[0, 0, 1, 2, 2, 2, 2, 2]]
    estimate = unpacked(form, columns)
    torch.testing.assert_close(estimate.exp(), torch.tensor([[[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]]]))
    assert torch.isfinite(estimate).all()


def test_beside_draws_the_label_has_its_log_probability() -> None:
    """However unlikely; of classes without a label that of class 0."""
    form = Form("sampled", 3, (4,), 2)
    logits = torch.tensor([[[0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [500.0, 0.0, 0.0], [5.0, 5.0, 5.0]]])
    labels, total = torch.tensor([[2, -100, 1, 0]]), math.log(1 + math.e + math.e**2)
    found = packed(form, logits, labels, torch.zeros(1, 8))["log_labels"]
    assert found.dtype == np.float16
    assert found[0].tolist() == pytest.approx([2 - total, 2 - total, -500.0, -math.log(3)], rel=1e-3)


def test_what_is_impossible_is_never_drawn() -> None:
    form = Form("sampled", 3, size=4)
    numbers = torch.tensor([[0.0, 0.5, 0.25, 1 - 2**-24]])
    columns = packed(form, torch.tensor([[-1e5, 0.0, -1e5]]), torch.tensor([1]), numbers)
    assert columns["draws"].tolist() == [[1, 1, 1, 1]]


def test_sampled_is_right_in_the_mean() -> None:
    form, n = Form("sampled", 40, size=10), 4000
    logits = logits_of(form, 1, seed=3)
    p = logits.double().softmax(-1)[0]
    columns = packed(form, logits.expand(n, -1), torch.zeros(n).long(), uniforms(torch.arange(n), 10, "draws"))
    mean = unpacked(form, columns).double().exp().mean(0)
    sigma = (p * (1 - p) / (n * 10)).sqrt()
    assert ((mean - p).abs() <= 3 * sigma).all()
    biased = unpacked(Form("top_k", 40, size=10), columns_of(Form("top_k", 40, size=10), logits)).double().exp()[0]
    assert ((biased - p).abs() > 3 * sigma).any(), "what this test would not let pass"


@pytest.mark.parametrize("classes", [300, 5000], ids=["at once", "by blocks"])
def test_the_middle_of_the_share_of_a_class_draws_it(classes: int) -> None:
    """Masses in 2^-14ths, so that sums are exact; many classes have none."""
    parts = torch.randint(0, 4, (2, classes), generator=torch.Generator().manual_seed(1)).double()
    parts[:, : classes // 4] = 0
    parts[:, -100:] = 0
    ends = parts.cumsum(-1)
    for row in range(2):
        possible = parts[row].nonzero().squeeze(1)
        middles = (ends[row] - parts[row] / 2)[possible] / ends[row, -1]
        numbers = torch.cat([torch.tensor([0.0]), middles, torch.tensor([1 - 2**-24])])
        expected = [possible[0].item(), *possible.tolist(), possible[-1].item()]
        assert drawn((parts[row] / 2**14).float()[None], numbers[None])[0].tolist() == expected
    numbers = torch.tensor([[0.3, 0.4, 0.5], [0.8, 0.3, 0.6]])
    expected = (ends.unsqueeze(1) <= (numbers.double() * ends[:, -1:]).unsqueeze(-1)).sum(-1)
    assert drawn((parts / 2**14).float(), numbers).tolist() == expected.tolist(), "each row by its own numbers"


@every_form
def test_places_of_a_sequence_keep_their_order(form: Form) -> None:
    if form.kind == "sampled":
        logits = torch.full((4, *form.places, form.classes), -50.0)
        likeliest = (torch.arange(4 * form.count) * 7 % form.classes).reshape(4, *form.places, 1)
        logits.scatter_(-1, likeliest, 50.0)
    else:
        logits = logits_of(form, 4, sharpness=4.0)
    found = unpacked(form, columns_of(form, logits))
    assert found.shape == logits.shape
    assert (found.argmax(-1) == logits.argmax(-1)).all()


@pytest.mark.parametrize(
    ("asked", "method", "classes", "expected"),
    [
        ({}, {}, 64, Form("dense", 64, (2,))),
        ({}, {}, 65, Form("sampled", 65, (2,), 50)),
        ({"draws": 9}, {"divergence": "kl"}, 65, Form("sampled", 65, (2,), 9)),
        ({}, {"temperature": 2.0}, 64, Form("dense", 64, (2,))),
        ({}, {"temperature": 2.0}, 65, Form("top_k", 65, (2,), 16)),
        ({}, {"divergence": "reverse_kl"}, 65, Form("top_k", 65, (2,), 16)),
        ({"top_k": 9}, {"divergence": "logit_regression"}, 65, Form("top_k", 65, (2,), 9)),
        ({"form": "dense"}, {}, 256, Form("dense", 256, (2,))),
        ({"top_k": 100}, {}, 80, Form("dense", 80, (2,))),
        ({"form": "top_k", "top_k": 9}, {}, 10, Form("top_k", 10, (2,), 9)),
        ({"form": "sampled", "draws": 7}, {}, 10, Form("sampled", 10, (2,), 7)),
    ],
)
def test_forms_follow_method_and_classes(
    asked: dict[str, Any], method: dict[str, Any], classes: int, expected: Form
) -> None:
    assert form_of(Predictions(**asked), Codistillation(**method), classes, (2,)) == expected


def test_without_a_method_that_hears_predictions_there_is_no_form() -> None:
    assert form_of(Predictions(), Solo(), 10, ()) is None
    assert form_of(Weights(), Codistillation(), 10, ()) is None


def test_more_classes_than_there_are_cannot_be_named() -> None:
    with pytest.raises(ValueError, match=r"exchange.currency.top_k is 10 and there are 10 classes; lower it"):
        form_of(Predictions(form="top_k", top_k=10), Codistillation(), 10, ())


# ---------------------------------------------------------------- travel


@every_form
def test_a_stream_gives_back_what_went_in(form: Form) -> None:
    rows = rows_of(form, [7, 3, 2**40], step=5)
    assert_same(from_arrays(form, to_arrays(form, rows)), rows)
    assert_same(from_arrays(form, to_arrays(form, no_rows(form))), no_rows(form))


@pytest.mark.parametrize("form", [f for f in FORMS if f.kind != "sampled"], ids=lambda form: f"{form.kind}")
def test_reading_copies_nothing(form: Form) -> None:
    arrays = to_arrays(form, rows_of(form, [1, 2, 3]))
    for values in from_arrays(form, arrays).columns.values():
        assert np.shares_memory(values, arrays[NAME])


@pytest.mark.parametrize(
    ("form", "row_bytes"),
    [
        (DENSE, 8 + 8 + 5 * 2),
        (TOP_2, 8 + 8 + 2 * (1 + 2) + 2),
        (Form("top_k", 300, (3,), 4), 8 + 8 + 3 * (4 * (2 + 2) + 2)),
        (Form("top_k", 100_000, (3,), 4), 8 + 8 + 3 * (4 * (4 + 2) + 2)),
    ],
)
def test_bytes_of_a_row(form: Form, row_bytes: int) -> None:
    one, two = (to_arrays(form, rows_of(form, list(range(n))))[NAME].nbytes for n in (64, 128))
    assert two - one == 64 * row_bytes == 64 * form.row_bytes


def test_draws_travel_as_counts() -> None:
    """At each of 3 places 2 bytes for the label's log-probability, one for the number of classes, then 2 + 1 for each;
    two offsets for the sample."""
    form = Form("sampled", 300, (3,), 50)
    rows = rows_of(form, list(range(256)))
    one, two = (to_arrays(form, rows.at(np.arange(n)))[NAME].nbytes for n in (128, 256))
    draws = rows.columns["draws"].reshape(256, 3, 50)[128:]
    distinct = sum(len(set(place)) for sample in draws.tolist() for place in sample)
    assert two - one == pytest.approx(128 * (8 + 8 + 6 + 3 + 2 * 4) + 3 * distinct, abs=64 * 5)
    assert two - one < 128 * form.sent_bytes
    assert form.sent_bytes == 8 + 8 + 2 * 4 + 3 * (2 + 1 + 50 * 3)


def test_a_stream_of_another_form_is_refused() -> None:
    arrays = to_arrays(DENSE, rows_of(DENSE, [1]))
    with pytest.raises(ValueError, match="are not those of Form"):
        from_arrays(TOP_2, arrays)
    with pytest.raises(ValueError, match="are not those of Form"):
        from_arrays(dataclasses.replace(DENSE, classes=1, places=(5,)), arrays)  # of the same columns


# ---------------------------------------------------------------- the gate


@every_form
def test_the_gate_lets_predictions_pass_and_knows_their_faults(form: Form) -> None:
    gate, who = OfPredictions(form).gate(), SnapshotId(0, 1, 0, 3)
    good = to_arrays(form, rows_of(form, [1, 2]))
    nothing = to_arrays(form, no_rows(form))
    header = gate.describe(who, good, 0.0)
    for arrays in (nothing, good, nothing, good):
        assert gate.judge(gate.describe(who, arrays, 0.0), arrays) is Verdict.ACCEPTED
    flipped = {NAME: good[NAME].copy()}
    flipped[NAME][-40] ^= 1
    assert gate.judge(header, flipped) is Verdict.BAD_DIGEST
    assert gate.judge(header, {NAME: good[NAME][:20]}) is Verdict.WRONG_SCHEMA
    assert gate.judge(header, {"weight": good[NAME]}) is Verdict.WRONG_SCHEMA
    other = dataclasses.replace(form, classes=form.classes + 1)
    arrays = to_arrays(other, rows_of(other, [1]))
    assert gate.judge(gate.describe(who, arrays, 0.0), arrays) is Verdict.WRONG_SCHEMA


def spoilt(form: Form, name: str, value: float) -> dict[str, Array]:
    rows = rows_of(form, [1, 2])
    rows.columns[name][1, -1] = value
    return to_arrays(form, rows)


@pytest.mark.parametrize(
    ("form", "name", "value"),
    [
        (DENSE, "log_probabilities", np.nan),
        (DENSE, "log_probabilities", np.inf),
        (DENSE, "log_probabilities", 0.7),
        (DENSE, "log_probabilities", -0.01),
        (DENSE, "log_probabilities", -60000.0),
        (TOP_2, "log_rest", np.nan),
        (TOP_2, "log_rest", 0.0),
        (TOP_2, "log_rest", -60000.0),
        (TOP_2, "classes", 5),
        (Form("sampled", 5, size=8), "draws", 5),
        (Form("sampled", 5, size=8), "log_labels", np.nan),
        (Form("sampled", 5, size=8), "log_labels", -np.inf),
        (Form("sampled", 5, size=8), "log_labels", 0.1),
    ],
)
def test_what_is_no_distribution_is_refused(form: Form, name: str, value: float) -> None:
    gate, arrays = OfPredictions(form).gate(), spoilt(form, name, value)
    assert gate.judge(gate.describe(SnapshotId(0, 1, 0, 3), arrays, 0.0), arrays) is Verdict.NON_FINITE


@pytest.mark.parametrize("classes", [5, 256, 4000])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["dense", "sampled"])
def test_what_a_broken_replica_says_is_refused(kind: Literal["dense", "sampled"], value: float, classes: int) -> None:
    form, logits = Form(kind, classes, (3,), 1 if kind == "sampled" else 0), torch.zeros(2, 3, classes)
    logits[1, 2, 1] = value
    columns = columns_of(form, logits)
    rows = Rows(np.array([1, 2]), np.array([0, 0]), columns)
    gate = OfPredictions(form).gate()
    for there, verdict in ((rows, Verdict.NON_FINITE), (rows.at(np.array([0])), Verdict.ACCEPTED)):
        arrays = to_arrays(form, there)
        assert gate.judge(gate.describe(SnapshotId(0, 1, 0, 3), arrays, 0.0), arrays) is verdict


def test_counts_that_do_not_add_up_are_refused() -> None:
    form = Form("sampled", 5, size=8)
    gate, whole = OfPredictions(form).gate(), to_arrays(form, rows_of(form, [1, 2]))
    with pa.ipc.open_stream(pa.py_buffer(whole[NAME])) as reader:
        (batch,) = list(reader)
    counts = batch.column("counts")
    first, second = counts.to_pylist()
    more = pa.array([[first[0] + 1, *first[1:]], [second[0] - 1, *second[1:]]], counts.type)  # as many in all
    wrong = pa.record_batch([*batch.columns[:5], more], schema=batch.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(wrong)
    arrays = {NAME: np.frombuffer(sink.getvalue(), np.uint8)}
    assert gate.judge(gate.describe(SnapshotId(0, 1, 0, 3), arrays, 0.0), arrays) is Verdict.NON_FINITE


def test_the_first_rank_speaks_for_all_and_each_sample_is_said_once() -> None:
    ours, theirs = rows_of(DENSE, [5, 1], step=4), rows_of(DENSE, [2, 9], step=4, seed=1)
    again = rows_of(DENSE, [1], step=6, seed=2)

    class OneOfTwo(Ranks):
        def gather_bytes(self, mine: Any) -> list[Any]:
            return [mine, to_arrays(DENSE, theirs)[NAME]]

    alone = of_all_ranks(DENSE, [ours, again], ALONE)
    assert (alone.ids.tolist(), alone.made_at.tolist()) == ([1, 5], [6, 4])
    said = of_all_ranks(DENSE, [ours, again], OneOfTwo(0, 2))
    assert (said.ids.tolist(), said.made_at.tolist()) == ([1, 2, 5, 9], [6, 4, 4, 4])
    expected = [again.columns, theirs.columns, ours.columns, theirs.columns]
    for row, (columns, at) in enumerate(zip(expected, [0, 0, 0, 1], strict=True)):
        np.testing.assert_array_equal(said.columns["log_probabilities"][row], columns["log_probabilities"][at])


def test_what_is_gathered_is_what_was_said_since_the_version_before() -> None:
    rule = PublishRule(burn_in_steps=5, interval_steps=3)  # versions 5, 6, 9, 12
    assert [rule.gathered_from(step) for step in range(13)] == [2, 2, 2, 2, 2, 5, 6, 6, 6, 9, 9, 9, 12]
    assert [rule.due_between(5, version) for version in (5, 6, 9, 12, 13)] == [0, 0, 1, 2, 2]


# ---------------------------------------------------------------- the table


@every_form
def test_the_newest_of_each_sample_is_found_by_id(form: Form) -> None:
    table = PredictionTable(form)
    first, second = rows_of(form, [30, 10, 20], step=1), rows_of(form, [20, 40, 10], step=5, seed=1)
    table.take(first)
    before = table.look_up(torch.tensor([10, 40]))
    table.take(second)
    answers = table.look_up(torch.tensor([10, 5, 30, 40, 99, 10]))
    assert answers.found.tolist() == [True, False, True, True, False, True]
    assert answers.made_at.tolist() == [5, 0, 1, 5, 0, 5]
    for nobody in (1, 4):
        torch.testing.assert_close(answers.log_probabilities[nobody].exp().unique(), torch.tensor([1 / form.classes]))
    new, old = unpacked(form, second.columns), unpacked(form, first.columns)
    for at, expected in {0: new[2], 2: old[0], 3: new[1], 5: new[2]}.items():
        assert torch.equal(answers.log_probabilities[at], expected)
    if form.kind == "sampled":
        assert answers.log_labels is not None
        new_labels, old_labels = second.columns["log_labels"], first.columns["log_labels"]
        told = np.stack(
            [new_labels[2], 0 * old_labels[0], old_labels[0], new_labels[1], 0 * old_labels[0], new_labels[2]]
        )
        np.testing.assert_array_equal(answers.log_labels.reshape(6, -1).numpy(), told.astype(np.float32))
    else:
        assert answers.log_labels is None
    assert (before.found.tolist(), before.made_at.tolist()) == ([True, False], [1, 0])
    assert torch.equal(before.log_probabilities[0], old[1]), "an answer stays what it was"
    assert len(table) == 4


def test_a_restarted_peer_says_anew_and_the_rest_stays() -> None:
    table = PredictionTable(DENSE)
    table.take(rows_of(DENSE, [1, 2], step=9))
    table.take(rows_of(DENSE, [2], step=4, seed=1))
    assert table.look_up(torch.tensor([1, 2])).made_at.tolist() == [9, 4]


@every_form
def test_a_table_comes_back_from_its_tensors(form: Form) -> None:
    table, again = PredictionTable(form), PredictionTable(form)
    table.take(rows_of(form, [3, 1, 2], step=7))
    again.restore({name: tensor.clone() for name, tensor in table.tensors().items()})
    again.take(rows_of(form, [2], step=8, seed=1))  # can be written to
    assert again.look_up(torch.tensor([1, 2, 3])).made_at.tolist() == [7, 8, 7]
    assert table.look_up(torch.tensor([2])).made_at.tolist() == [7]


def test_what_arrives_is_not_written_to() -> None:
    arrays = to_arrays(DENSE, rows_of(DENSE, [1, 2], step=1))
    arrays[NAME].flags.writeable = False
    table = PredictionTable(DENSE)
    table.take(from_arrays(DENSE, arrays))
    table.take(from_arrays(DENSE, to_arrays(DENSE, rows_of(DENSE, [1, 2], step=2))))
    assert from_arrays(DENSE, arrays).made_at.tolist() == [1, 1]


# ---------------------------------------------------------------- refused at the door

PREDICTIONS = {"exchange": {"currency": {"kind": "predictions"}}}
SAMPLED = {"exchange": {"currency": {"kind": "predictions", "form": "sampled"}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"kind": "images", "shift_pixels": 2}}, "recipe.shift_pixels shows each replica a sample"),
        ({"recipe": {"kind": "images", "flip": True}}, "recipe.flip shows each replica a sample"),
        ({"data": {"kind": "disjoint"}}, "data gives no sample to two replicas"),
        ({"data": {"kind": "overlap", "ratio": 0.0}}, "data gives no sample to two replicas"),
        ({"exchange": {"precision": "bf16"}}, "exchange.precision 'bf16' is for weights"),
        ({"exchange": {"max_lag_steps": 7}}, "exchange.max_lag_steps bounds the age of snapshots"),
        (SAMPLED | {"method": {"divergence": "reverse_kl"}}, "method.divergence 'reverse_kl' needs the probability"),
        (SAMPLED | {"method": {"temperature": 2.0}}, "method.temperature 2 softens teachers"),
    ],
)
def test_where_predictions_cannot_meet_the_spec_is_refused(change: dict[str, Any], message: str) -> None:
    exchange = {**PREDICTIONS["exchange"], **change.get("exchange", {})}
    with pytest.raises(SpecError, match=message):
        small_spec(**{**change, "exchange": exchange})
    small_spec(**change | {"exchange": {k: v for k, v in change.get("exchange", {}).items() if k != "currency"}})


@pytest.mark.parametrize(
    "change",
    [{"data": {"kind": "overlap"}}, {"recipe": {"kind": "images"}}, {"exchange": {"max_offset_steps": 90}}],
)
def test_where_they_meet_it_is_not(change: dict[str, Any]) -> None:
    small_spec(**{**change, "exchange": {**PREDICTIONS["exchange"], **change.get("exchange", {})}})
