"""What `auto` would choose by other rules, and how well it would do; transforms by their worth.

Rules differ in the scores to choose from, in the transforms to choose on, and in whether there is a
choice at all. `leave_one_out` tells what it costs to settle on a rule without the network at hand.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.networks import Network
from benchmarks.tried_transforms import TRIED, transformed
from nap_stream.calibration import checks
from nap_stream.calibration.cache import FeatureCache
from nap_stream.calibration.faults import FAULTS
from nap_stream.calibration.fit import FitPart, Folds, fit, in_order
from nap_stream.calibration.pseudo_ood import PSEUDO_OOD
from nap_stream.calibration.read import Reader, Values
from nap_stream.core.methods import NAP, POOL, LogP
from nap_stream.core.score_specs import BaseScore
from nap_stream.core.selection import auroc, select
from nap_stream.image_files import iter_images
from nap_stream.model.load import load_model
from nap_stream.settings.schema import LimitSettings, ScoringSettings

BATCH = 50
FURTHER = ("knn", "gen", "nci", "scale", "ash", "react", "dice", "max_logit")

LogPs = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """log p-values by score of a network's images: to fit on, pseudo-OOD by transform, tested."""

    fitted: LogPs
    pseudo: Mapping[str, LogPs]
    inside: LogPs
    outside: Mapping[str, LogPs]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scores that this network has."""
        return tuple(self.fitted)

    def area(self, weights: Mapping[str, float]) -> tuple[float, float]:
        """Mean AUROC of a sum over the OOD sets, and that of the worst, in per cent."""
        own = _summed(weights, self.inside)
        areas = [100 * auroc(own, _summed(weights, one)) for one in self.outside.values()]
        return float(np.mean(areas)), min(areas)


def read(network: Network, cache: FeatureCache | None) -> Scored:
    """Score a network's images by every score that it allows."""
    part = FitPart.choose(network.inside, network.fit, ScoringSettings().fit_limit)
    loaded = load_model(network.model, torch.device("cpu"))
    names = in_order(name for name in BaseScore if checks.is_possible(name, loaded))
    reader = Reader(loaded, LimitSettings(), part.source, cache)
    reading = reader.read(part.files(), BATCH, _untold)
    folds = Folds.choose(len(part))
    fitted = fit(names, reading, folds, loaded, ScoringSettings().parameters())
    files = list(part.files())
    blocks = [[files[number] for number in block] for block in folds.blocks]
    left_out = fitted.left_out[: len(blocks)]
    reference = {name: np.sort(values.astype(np.float64)) for name, values in fitted.values.items()}

    def log_p_of(values: Values) -> LogPs:
        return {name: LogP(reference[name])(values[name]) for name in reference}

    def tested(path: Path) -> LogPs:
        scored = reader.score(iter_images(path), fitted.base_scores, BATCH, _untold)
        return log_p_of(scored.values)

    with mock.patch("nap_stream.calibration.read.transformed", transformed):
        pseudo = {
            name: log_p_of(reader.score_transformed(blocks, name, left_out, _untold, BATCH).values)
            for name in (*PSEUDO_OOD, *TRIED, *FAULTS)
        }
    return Scored(
        log_p_of(fitted.values),
        pseudo,
        tested(network.inside),
        {name: tested(path) for name, path in network.outside.items()},
    )


def _untold(_images: int) -> None:
    pass


def _summed(weights: Mapping[str, float], values: LogPs) -> NDArray[np.float64]:
    terms = [weight * values[name] for name, weight in weights.items()]
    summed: NDArray[np.float64] = np.sum(terms, axis=0)
    return summed


Rule = Callable[[Scored], Mapping[str, float]]


def chosen(pool: tuple[str, ...], transforms: tuple[str, ...]) -> Rule:
    """Choose greedily from a pool, on some transforms."""

    def rule(scored: Scored) -> Mapping[str, float]:
        names = [name for name in pool if name in scored.names]
        inside = {name: scored.fitted[name] for name in names}
        pseudo = {
            transform: {name: scored.pseudo[transform][name] for name in names}
            for transform in transforms
        }
        return select(inside, pseudo).weights

    return rule


def equal(pool: tuple[str, ...]) -> Rule:
    """Weigh all of a pool alike."""

    def rule(scored: Scored) -> Mapping[str, float]:
        names = [name for name in pool if name in scored.names]
        return dict.fromkeys(names, 1 / len(names))

    return rule


def rules() -> dict[str, Rule]:
    """The rules to compare, `auto` first."""
    pool, all_of_now = (*(str(name) for name in POOL), NAP), tuple(PSEUDO_OOD)
    found = {"auto": chosen(pool, all_of_now), "equal weights": equal(pool)}
    for name in pool:
        found[f"without {name}"] = chosen(tuple(one for one in pool if one != name), all_of_now)
    for name in FURTHER:
        found[f"with {name}"] = chosen((*pool, name), all_of_now)
    swapped = tuple("knn" if name == BaseScore.MAHALANOBIS else name for name in pool)
    found["knn for mahalanobis"] = chosen(swapped, all_of_now)
    found["with all of these"] = chosen((*pool, *FURTHER), all_of_now)
    found["on all that were tried"] = chosen(pool, (*all_of_now, *TRIED))
    for name in TRIED:
        found[f"on one more: {name}"] = chosen(pool, (*all_of_now, name))
    for name in all_of_now:
        found[f"on one less: {name}"] = chosen(
            pool, tuple(one for one in all_of_now if one != name)
        )
    found["on faults too"] = chosen(pool, (*all_of_now, *FAULTS))
    found["on faults alone"] = chosen(pool, tuple(FAULTS))
    return found


def rule_tables(networks: Mapping[str, Scored], best: Mapping[str, tuple[float, float]]) -> str:
    """Points below the best method of each network, by rule; then the leave-one-out table.

    ``best`` are the mean and the worst AUROC of the best of all methods in hindsight.
    """
    found = rules()
    regrets = {
        name: np.array([_regret(rule, networks[key], best[key]) for key in networks])
        for name, rule in found.items()
    }
    lines = [
        f"| rule | {' | '.join(networks)} | average | largest |",
        f"|---|{'---:|' * (len(networks) + 2)}",
    ]
    for name, values in sorted(regrets.items(), key=lambda item: item[1][:, 0].mean()):
        columns = [*values, values.mean(axis=0), values.max(axis=0)]
        cells = " | ".join(f"{mean:.1f} / {worst:.1f}" for mean, worst in columns)
        lines.append(f"| {name} | {cells} |")
    return "\n".join([*lines, "", *_leave_one_out(list(networks), regrets)])


def _regret(rule: Rule, scored: Scored, best: tuple[float, float]) -> tuple[float, float]:
    mean, worst = scored.area(rule(scored))
    return best[0] - mean, best[1] - worst


def _leave_one_out(names: list[str], regrets: Mapping[str, NDArray[np.float64]]) -> Iterator[str]:
    """The rule that is best on average without a network, and its regret there."""
    yield "| network left out | best rule on the others | its regret there | that of auto |"
    yield "|---|---|---:|---:|"
    for row, name in enumerate(names):
        others = [number for number in range(len(names)) if number != row]
        rule = min(regrets, key=lambda one: float(regrets[one][others, 0].mean()))
        own, of_auto = regrets[rule][row], regrets["auto"][row]
        yield (
            f"| {name} | {rule} | {own[0]:.1f} / {own[1]:.1f} | "
            f"{of_auto[0]:.1f} / {of_auto[1]:.1f} |"
        )


def transform_table(networks: Mapping[str, Scored]) -> str:
    """How well each transform and fault ranks all scores as the real sets do.

    Rank correlation of the scores' AUROC on it and their mean AUROC on the OOD sets.
    """
    lines = [
        f"| transform | {' | '.join(networks)} | average |",
        f"|---|{'---:|' * (len(networks) + 1)}",
    ]
    for transform in (*PSEUDO_OOD, *TRIED, *FAULTS):
        found = [_rank_correlation(one, transform) for one in networks.values()]
        cells = " | ".join(f"{value:.2f}" for value in (*found, np.mean(found)))
        lines.append(f"| {transform} | {cells} |")
    together = [_rank_correlation(one, *PSEUDO_OOD) for one in networks.values()]
    cells = " | ".join(f"{value:.2f}" for value in (*together, np.mean(together)))
    return "\n".join([*lines, f"| mean of the {len(PSEUDO_OOD)} transforms | {cells} |"])


def _rank_correlation(scored: Scored, *transforms: str) -> float:
    real = [scored.area({name: 1.0})[0] for name in scored.names]
    pseudo = [
        np.mean([auroc(scored.fitted[name], scored.pseudo[one][name]) for one in transforms])
        for name in scored.names
    ]
    return float(spearmanr(pseudo, real).statistic)
