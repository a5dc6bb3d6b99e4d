"""The tables of docs/methods.md: every method on every network of `benchmarks.networks`.

    python -m benchmarks.paper_table --out DIR [--cache DIR] [--only NETWORK ...]

No OOD image takes part in fitting or choosing anything. Prints, for each network, what `auto` chose
and a table of all methods; then how far each method is from the best on each network, what NAP adds
to base scores at several weights, what other rules would choose, and which transforms tell most of
the OOD sets. Ends with 1 if a claim of the documentation does not hold.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import selection_rules
from benchmarks.networks import NETWORKS, SEED, Network, available
from nap_stream.calibration.cache import FeatureCache
from nap_stream.calibration.read import Values
from nap_stream.cli.options import progress_bar
from nap_stream.core.methods import Combination, Method, method_scores, parse_method
from nap_stream.core.score_specs import BaseScore
from nap_stream.core.selection import WEIGHTS, Selection
from nap_stream.evaluation.metrics import measure
from nap_stream.evaluation.output import to_markdown, write_table
from nap_stream.evaluation.run import Evaluation, EvaluationRequest, evaluate
from nap_stream.settings.schema import LimitSettings, ScoringSettings

DEFAULT = parse_method("auto")
BEFORE = parse_method("fisher-knn")
ALLOWED_REGRET = 1.5
ALLOWED_WORST = 6.0
"""Of mild corruptions, which no method sees well, and of a set of twelve images."""
RESAMPLES = 200
PAIRS = (BaseScore.ENERGY, BaseScore.ASH, BaseScore.SCALE)


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of the documentation, and whether it holds."""

    text: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """Mean AUROC over a network's OOD sets, and that of the worst, in per cent, by method."""

    mean: Mapping[str, float]
    worst: Mapping[str, float]

    @classmethod
    def of(cls, evaluation: Evaluation) -> "Outcome":
        """Read them from the table."""
        table = evaluation.table
        return cls(
            {row.method: 100 * row.metrics.auroc for row in table.averages},
            {row.method: 100 * row.metrics.auroc for row in table.worst},
        )

    def regret(self, method: str) -> tuple[float, float]:
        """How far a method is below the best one, in points: on average, on the worst set."""
        return (
            max(self.mean.values()) - self.mean[method],
            max(self.worst.values()) - self.worst[method],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and sets")
    parser.add_argument("--cache", type=Path, help="folder for the models' outputs")
    parser.add_argument(
        "--only", nargs="+", choices=NETWORKS, help="names of networks; all by default"
    )
    arguments = parser.parse_args()
    cache = None if arguments.cache is None else FeatureCache(arguments.cache)
    evaluations, scored = {}, {}
    for name in arguments.only or available():
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        network = NETWORKS[name](folder)
        evaluation = run(name, network, cache)
        evaluations[name] = evaluation
        scored[name] = selection_rules.read(network, cache)
        write_table(evaluation.table, folder / "table")
        print(f"## {name}\n\n{chosen(evaluation.selections[DEFAULT])}\n")
        print(to_markdown(evaluation.table), flush=True)
    outcomes = {name: Outcome.of(evaluation) for name, evaluation in evaluations.items()}
    print(f"## Below the best of each network\n\n{regret_table(outcomes)}\n")
    print(f"## What NAP adds\n\n{pair_table(evaluations)}\n")
    best = {
        name: (max(one.mean.values()), max(one.worst.values())) for name, one in outcomes.items()
    }
    print(f"## Rules\n\n{selection_rules.rule_tables(scored, best)}\n")
    print(f"## Transforms\n\n{selection_rules.transform_table(scored)}\n")
    claims = [claim for name, outcome in outcomes.items() for claim in claims_about(name, outcome)]
    print("## Claims\n")
    for claim in claims:
        print(f"- {'holds' if claim.holds else 'DOES NOT HOLD'}: {claim.text}")
    raise SystemExit(0 if all(claim.holds for claim in claims) else 1)


def run(name: str, network: Network, cache: FeatureCache | None) -> Evaluation:
    request = EvaluationRequest(
        model=network.model,
        scoring=ScoringSettings(),
        inside=network.inside,
        outside=network.outside,
        fit_images=network.fit,
        methods=(),
        batch_size=50,
        limits=LimitSettings(),
        resamples=RESAMPLES,
        seed=SEED,
    )
    with progress_bar(name, unit="images") as advance:
        return evaluate(
            request,
            device=torch.device("cpu"),
            cache=cache,
            progress=advance,
        )


def chosen(selection: Selection) -> str:
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in selection.weights.items())
    return f"`auto` chose {weights} (mean pseudo-OOD AUROC {100 * selection.mean:.1f})."


def regret_table(outcomes: Mapping[str, Outcome]) -> str:
    """Points of mean AUROC below the best listed method, and of the worst set."""
    shared = set.intersection(*(set(outcome.mean) for outcome in outcomes.values()))
    regrets = {
        method: np.array([one.regret(method) for one in outcomes.values()])
        for method in next(iter(outcomes.values())).mean
        if method in shared
    }
    lines = [
        f"| method | {' | '.join(outcomes)} | average | largest |",
        f"|---|{'---:|' * (len(outcomes) + 2)}",
    ]
    for method, found in sorted(regrets.items(), key=lambda item: item[1][:, 0].mean()):
        cells = [f"{mean:.1f} / {worst:.1f}" for mean, worst in found]
        average, largest = found.mean(axis=0), found.max(axis=0)
        over = [f"{each[0]:.1f} / {each[1]:.1f}" for each in (average, largest)]
        lines.append(f"| {method} | {' | '.join([*cells, *over])} |")
    return "\n".join(lines)


def pair_table(evaluations: Mapping[str, Evaluation]) -> str:
    """What a base score gains by NAP: at the weight that was chosen, and at the best one."""
    lines = [
        "| network | base | alone | with NAP | weight chosen | in hindsight | weight |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, evaluation in evaluations.items():
        for base in PAIRS:
            method = Method(base, Combination.GEOMETRIC)
            if method not in evaluation.searches:
                continue
            found = {weight: _pair(evaluation, method, weight) for weight in WEIGHTS}
            own = evaluation.searches[method].chosen
            best = min(WEIGHTS, key=lambda weight: found[weight][1])
            cells = [
                f"{found[weight][0]:.1f} / {found[weight][1]:.1f}" for weight in (1.0, own, best)
            ]
            lines.append(
                f"| {name} | {base} | {cells[0]} | {cells[1]} | {own:g} | {cells[2]} | {best:g} |"
            )
    return "\n".join(lines)


def _pair(evaluation: Evaluation, method: Method, weight: float) -> tuple[float, float]:
    """Mean AUROC and mean FPR95 over the sets, in per cent, at a weight of the base score."""

    def score(values: Values) -> NDArray[np.float64]:
        return method_scores(
            method,
            values,
            weight=weight,
            location=evaluation.fitted.location(method),
            reference={},
        )

    inside = score(evaluation.inside)
    found = [measure(inside, score(values)) for values in evaluation.outside.values()]
    return (
        100 * float(np.mean([one.auroc for one in found])),
        100 * float(np.mean([one.fpr95 for one in found])),
    )


def claims_about(name: str, outcome: Outcome) -> Iterator[Claim]:
    mean, worst = outcome.mean, outcome.worst
    best, safest = max(mean, key=mean.__getitem__), max(worst, key=worst.__getitem__)
    own, own_worst = mean[DEFAULT.label], worst[DEFAULT.label]
    yield Claim(
        f"{name}: {DEFAULT.label} has a mean AUROC of {own:.1f}, {best} {mean[best]:.1f}: at most "
        f"{ALLOWED_REGRET:g} points below",
        own >= mean[best] - ALLOWED_REGRET,
    )
    yield Claim(
        f"{name}: its worst set has {own_worst:.1f}, that of {safest} {worst[safest]:.1f}: at most "
        f"{ALLOWED_WORST:g} points below",
        own_worst >= worst[safest] - ALLOWED_WORST,
    )
    for label in ("MSP", "Energy", "NAP", BEFORE.label):
        yield Claim(
            f"{name}: {DEFAULT.label} {own:.1f} is above {label}, {mean[label]:.1f}",
            own > mean[label],
        )


if __name__ == "__main__":
    main()
