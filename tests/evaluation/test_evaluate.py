import numpy as np
import pytest

from nap_stream.evaluation.metrics import DetectionMetrics, Metric, Scores, measure
from nap_stream.evaluation.tables import EvaluationTable, Summary, evaluate_scores

Inside = dict[str, Scores]
Outside = dict[str, dict[str, Scores]]


def noisy(*, sets: tuple[str, ...] = ("near", "far"), methods: int = 3) -> tuple[Inside, Outside]:
    """Methods that share most of their noise, each a little worse than the one before."""
    generator = np.random.default_rng(11)
    images = {name: generator.normal(-position, 1, 100) for position, name in enumerate(sets)}
    base = generator.normal(1, 1, 200)
    inside, outside = {}, {name: {} for name in sets}  # type: tuple[Inside, Outside]
    for number in range(methods):
        method, shift = f"method {number}", -0.1 * number
        inside[method] = base + shift + generator.normal(0, 0.05, 200)
        for name, scores in images.items():
            outside[name][method] = scores + generator.normal(0, 0.05, 100)
    return inside, outside


def by_method(summaries: tuple[Summary, ...]) -> dict[str, Summary]:
    return {summary.method: summary for summary in summaries}


def test_cells_are_the_metrics_by_method_and_set() -> None:
    inside, outside = noisy()

    table = evaluate_scores(inside, outside, resamples=20)

    assert [(cell.method, cell.ood_set) for cell in table.cells] == [
        (method, ood_set) for method in inside for ood_set in outside
    ]
    for cell in table.cells:
        assert cell.metrics == measure(inside[cell.method], outside[cell.ood_set][cell.method])
        for metric in Metric:
            low, high = cell.intervals.low.value(metric), cell.intervals.high.value(metric)
            assert low < high
            assert low - 0.05 < cell.metrics.value(metric) < high + 0.05
    assert (table.in_distribution_size, table.ood_sizes) == (200, {"near": 100, "far": 100})


def test_average_and_worst_set_by_hand(table: EvaluationTable) -> None:
    energy = by_method(table.averages)["energy"].metrics, by_method(table.worst)["energy"].metrics

    # On the second set 30 of 40 images are above 9.5, and 95 % are kept only from 2 on.
    assert (energy[0].auroc, energy[1].auroc) == pytest.approx(((1 + 0.75) / 2, 0.75))
    assert (energy[0].fpr95, energy[1].fpr95) == pytest.approx(((0 + 1) / 2, 1))


def test_differences_are_to_the_best_method_of_each_metric(table: EvaluationTable) -> None:
    averages = by_method(table.averages)
    best = averages["energy"]

    assert best.to_best == DetectionMetrics(0, 0, 0, 0)
    assert best.to_best_intervals.low == best.to_best_intervals.high == DetectionMetrics(0, 0, 0, 0)
    # All ties on the first set, all below on the second.
    msp = averages["msp"]
    assert msp.metrics.auroc == pytest.approx((0.5 + 0) / 2)
    assert msp.to_best.auroc == pytest.approx(0.25 - 0.875)
    assert msp.to_best_intervals.high.auroc < 0
    assert not msp.is_level_with_best(Metric.AUROC)
    assert best.is_level_with_best(Metric.AUROC)


def test_all_methods_share_the_resamples() -> None:
    inside, outside = noisy(methods=2)
    inside["twin"] = inside["method 1"] * 2
    for scores in outside.values():
        scores["twin"] = scores["method 1"] * 2

    table = evaluate_scores(inside, outside, resamples=50)

    averages = by_method(table.averages)
    assert averages["twin"].intervals == averages["method 1"].intervals
    assert averages["twin"].to_best_intervals == averages["method 1"].to_best_intervals


def test_paired_differences_are_sharper_than_the_methods_themselves() -> None:
    table = evaluate_scores(*noisy())

    worse = by_method(table.averages)["method 2"]

    def width(low: DetectionMetrics, high: DetectionMetrics) -> float:
        return high.auroc - low.auroc

    alone = width(worse.intervals.low, worse.intervals.high)
    paired = width(worse.to_best_intervals.low, worse.to_best_intervals.high)
    assert paired < alone / 2
    assert not worse.is_level_with_best(Metric.AUROC)


def test_the_seed_decides_everything() -> None:
    scores = noisy()

    first = evaluate_scores(*scores, resamples=20, seed=1)

    assert evaluate_scores(*scores, resamples=20, seed=1) == first
    assert evaluate_scores(*scores, resamples=20, seed=2).cells != first.cells


def test_methods_and_later_sets_leave_the_intervals_of_others_alone() -> None:
    inside, outside = noisy(sets=("near", "far", "later"))
    few = evaluate_scores(
        {"method 1": inside["method 1"]},
        {name: {"method 1": outside[name]["method 1"]} for name in ("near", "far")},
        resamples=20,
    )

    many = evaluate_scores(inside, outside, resamples=20)

    assert set(few.cells) < set(many.cells)


def test_reports_its_progress() -> None:
    calls: list[tuple[int, int]] = []

    evaluate_scores(*noisy(), resamples=2, progress=lambda *call: calls.append(call))

    assert calls == [(done, 6) for done in range(1, 7)]


def test_refuses_what_does_not_fit_together() -> None:
    inside, outside = noisy()

    def refused(message: str, inside: Inside, outside: Outside) -> None:
        with pytest.raises(ValueError, match=message):
            evaluate_scores(inside, outside)

    refused("Got 0 methods, 2 OOD sets", {}, outside)
    refused("Got 3 methods, 0 OOD sets", inside, {})
    one_less = {name: scores for name, scores in inside.items() if name != "method 1"}
    refused(r"near: not the methods .*\['method 1'\]", one_less, outside)
    shorter = inside | {"method 1": inside["method 1"][1:]}
    refused("in-distribution: the methods have scores of different images", shorter, outside)
    unusable = inside | {"method 1": np.append(inside["method 1"][1:], np.nan)}
    refused("1 of 200 in-distribution: method 1 scores are not finite", unusable, outside)
    empty = outside | {"far": {name: np.array([]) for name in inside}}
    refused(r"far: method 0 scores have shape \(0,\)", inside, empty)


@pytest.mark.parametrize(("resamples", "confidence"), [(0, 0.95), (10, 0), (10, 1), (10, 95)])
def test_refuses_numbers_out_of_range(resamples: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="expected >= 1 and in"):
        evaluate_scores(*noisy(), resamples=resamples, confidence=confidence)
