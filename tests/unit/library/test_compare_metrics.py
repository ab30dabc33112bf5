"""What is measured of predictions, against numbers worked out by hand, and how a file of them is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import rel_entr

from codistill.compare import NothingToCompare, read_predictions
from codistill.compare import metrics as measured
from codistill.run_dir import RunDir
from tests.ended_runs import predictions, write_rows

SURE = [[0.9, 0.1], [0.2, 0.8]]
DOUBT = [[0.6, 0.4], [0.6, 0.4]]


def test_accuracy_and_log_loss() -> None:
    model = predictions([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], [0, 1, 1])
    assert measured.accuracy(model) == pytest.approx(2 / 3)
    assert measured.log_loss(model) == pytest.approx(-(np.log(0.9) + np.log(0.8) + np.log(0.3)) / 3)


def test_a_probability_of_zero_costs_690_nats_and_not_infinity() -> None:
    with np.errstate(divide="ignore"):
        model = predictions([[1.0, 0.0]], [1])
    assert measured.log_loss(model) == 690.0


def test_calibration_by_hand() -> None:
    # Confidences 0.61 and 0.66 fall into the bin (9/15, 10/15], one of the two right; 0.68 and 0.95 into two others.
    model = predictions([[0.61, 0.39], [0.34, 0.66], [0.68, 0.32], [0.95, 0.05]], [0, 0, 0, 1])
    found = measured.calibration(model)
    assert found.error == pytest.approx((2 * abs(0.635 - 0.5) + abs(0.68 - 1) + 0.95) / 4)
    assert found.confidence_gap == pytest.approx((0.61 + 0.66 + 0.68 + 0.95) / 4 - 2 / 4)


def test_calibration_errors_of_both_signs_do_not_cancel_between_bins_but_the_gap_does() -> None:
    model = predictions([[0.6, 0.4], [0.9, 0.1]], [0, 1])
    found = measured.calibration(model)
    assert found.error == pytest.approx((0.4 + 0.9) / 2)
    assert found.confidence_gap == pytest.approx((-0.4 + 0.9) / 2)


def test_bins_are_closed_above() -> None:
    # 0.8 = 12/15 shares a bin with 0.75, so that their errors cancel: 0.8 - 1 + 0.75 - 0.
    model = predictions([[0.8, 0.2], [0.75, 0.25]], [0, 1])
    assert np.ceil(np.exp(model.log_probabilities[0, 0]) * 15) == 12  # else rounding hides what is tested
    assert measured.calibration(model).error == pytest.approx((1.55 - 1) / 2)


def test_churn_by_hand() -> None:
    one, other = predictions(SURE, [0, 1]), predictions(DOUBT, [0, 1])
    assert measured.mean_abs_difference(one, other) == pytest.approx((0.3 + 0.3 + 0.4 + 0.4) / 4)
    assert measured.flips(one, other) == 0.5


@pytest.mark.parametrize("values_at_once", [1, 7, 10**6])
def test_matrices_hold_the_churn_of_every_pair(monkeypatch: pytest.MonkeyPatch, values_at_once: int) -> None:
    monkeypatch.setattr(measured, "VALUES_AT_ONCE", values_at_once)
    draws = np.random.default_rng(0).dirichlet(np.ones(3), size=(4, 10))
    models = [predictions(draw.tolist(), [0] * 10) for draw in draws]
    differences, flipped = measured.difference_matrix(models), measured.flips_matrix(models)
    for i in range(4):
        for j in range(4):
            assert differences[i, j] == pytest.approx(measured.mean_abs_difference(models[i], models[j]))
            assert flipped[i, j] == pytest.approx(measured.flips(models[i], models[j]))


def test_diversity_is_the_mean_over_pairs() -> None:
    rows = [SURE, DOUBT, [[0.1, 0.9], [0.5, 0.5]]]
    models = [predictions(one, [0, 1]) for one in rows]
    found = measured.diversity(models)
    assert found is not None

    def kl(p: Sequence[Sequence[float]], q: Sequence[Sequence[float]]) -> float:
        both = rel_entr(np.array(p), np.array(q)) + rel_entr(np.array(q), np.array(p))
        return float(both.sum(-1).mean() / 2)

    assert found.kl_nats == pytest.approx((kl(rows[0], rows[1]) + kl(rows[0], rows[2]) + kl(rows[1], rows[2])) / 3)
    assert found.flips == pytest.approx((0.5 + 1.0 + 0.5) / 3)  # of two equally likely classes the first counts
    assert measured.diversity(models[:1]) is None


def test_an_ensemble_is_the_mean_of_probabilities() -> None:
    mean = measured.ensemble([predictions(SURE, [0, 1]), predictions(DOUBT, [0, 1])])
    assert mean.probabilities == pytest.approx(np.array([[0.75, 0.25], [0.4, 0.6]]))


# ---------------------------------------------------------------- reading


def file_of(tmp_path: Path) -> tuple[RunDir, Path]:
    path = RunDir(tmp_path, "a").replica(1, "replica-0") / "predictions" / "test.parquet"
    path.parent.mkdir(parents=True)
    return RunDir(tmp_path, "a"), path


@pytest.mark.parametrize("fixed", [True, False])
def test_lists_of_fixed_and_of_varying_size_read_alike_and_sorted(tmp_path: Path, fixed: bool) -> None:
    run, path = file_of(tmp_path)
    logs = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4]], dtype=np.float32))
    kind = pa.list_(pa.float32(), 3) if fixed else pa.list_(pa.float32())
    table = pa.table(
        {
            "sample_id": pa.array([7, 3, 7, 5]),
            "position": pa.array([1, 0, 0, 0], pa.int32()),
            "label": pa.array([0, 1, 2, 1]),
            "log_probabilities": pa.array(logs.tolist(), kind),
        }
    )
    pq.write_table(table, path, row_group_size=2)
    read = read_predictions(run, 1, "replica-0", "test")
    assert read.ids.tolist() == [3, 5, 7, 7]
    assert read.positions.tolist() == [0, 0, 0, 1]
    assert read.labels.tolist() == [1, 1, 2, 0]
    np.testing.assert_array_equal(read.log_probabilities, logs[[1, 3, 2, 0]])


def test_files_without_positions_are_of_one_row_a_sample(tmp_path: Path) -> None:
    run, path = file_of(tmp_path)
    write_rows(path, SURE, [0, 1])
    pq.write_table(pq.read_table(path).drop_columns("position"), path)
    read = read_predictions(run, 1, "replica-0", "test")
    assert read.positions.tolist() == [0, 0]
    assert read.probabilities == pytest.approx(np.array(SURE))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sample_id": [1, 1]}, "sample 1 stands there more than once"),
        ({"label": [0, 2]}, "labels reach from 0 to 2, classes are 2"),
        ({"log_probabilities": [[0.0, 0.0], [-0.7, -0.7]]}, "2 of 2 rows are no distributions, first that of sample 0"),
        ({"log_probabilities": [[float("nan")] * 2, [np.log(0.5)] * 2]}, "1 of 2 rows are no distributions"),
        ({"log_probabilities": [[0.0], [np.log(0.5)] * 2]}, "of different lengths"),
        ({"log_probabilities": [None, [np.log(0.5)] * 2]}, "missing"),
        ({"sample_id": [], "label": [], "log_probabilities": []}, "holds no rows"),
    ],
)
def test_what_holds_no_distributions_is_refused(tmp_path: Path, change: dict[str, list[object]], says: str) -> None:
    run, path = file_of(tmp_path)
    columns = {"sample_id": [0, 1], "label": [0, 1], "log_probabilities": [[np.log(0.5)] * 2] * 2} | change
    kinds = {"sample_id": pa.int64(), "label": pa.int64(), "log_probabilities": pa.list_(pa.float32())}
    pq.write_table(pa.table({key: pa.array(column, kinds[key]) for key, column in columns.items()}), path)
    with pytest.raises(NothingToCompare, match=says):
        read_predictions(run, 1, "replica-0", "test")


def test_half_a_million_rows_are_read_at_once(tmp_path: Path) -> None:
    run, path = file_of(tmp_path)
    draws = np.random.default_rng(0).random(500_000)
    write_rows(path, np.stack([draws, 1 - draws], axis=1), np.zeros(500_000, dtype=int))  # pyright: ignore
    read = read_predictions(run, 1, "replica-0", "test")
    assert measured.log_loss(read) == pytest.approx(1.0, abs=0.01)  # the mean of -log of a uniform draw
    assert (np.diff(read.ids) == 1).all()
