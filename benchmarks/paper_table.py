"""The paper's table on the shared data: every method, two CIFAR-10 networks, five OOD sets.

    python -m benchmarks.paper_table --out DIR [--cache DIR]

In-distribution are 3,000 CIFAR-10 test images; fits, references and weights come from 1,000
others, and no OOD image takes part in either. Prints the tables, what the default loses or gains
against every other method, how much each weight chosen without OOD data loses against the best
in hindsight, and other ways to combine the p-values. Ends with 1 if a claim of the documentation
does not hold.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torchvision.io import encode_png

from benchmarks.cifar_sets import CLASSES, CORRUPTED, DATA, DENSENET, IN_DISTRIBUTION, RESNET
from benchmarks.cifar_sets import out_of_distribution as pixels_of_sets
from nap_stream.calibration.read import FeatureCache
from nap_stream.cli.options import progress_bar
from nap_stream.core.conformal import p_values, two_sided_p_values
from nap_stream.core.methods import NAP, Method, method_scores, parse_method
from nap_stream.core.score_specs import BaseScore
from nap_stream.core.selection import WEIGHTS, WeightSearch
from nap_stream.evaluation.metrics import measure
from nap_stream.evaluation.output import to_markdown, write_table
from nap_stream.evaluation.run import (
    Evaluation,
    EvaluationRequest,
    all_scores,
    evaluate,
)
from nap_stream.evaluation.tables import EvaluationTable, evaluate_scores
from nap_stream.settings.schema import (
    LimitSettings,
    ModelSettings,
    PreprocessingSettings,
    ScoringSettings,
)

DEFAULT = parse_method("auto")
CORRUPTIONS = ("+ noise 0.1", "blur", "contrast", "bright")
SEED = 0
ALLOWED_REGRET = 1.5
ALLOWED_WORST = 4

Scores = NDArray[np.float64]
Score = Callable[[Mapping[str, NDArray[np.floating]]], Scores]


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of the documentation, and whether it holds."""

    text: str
    holds: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and sets")
    parser.add_argument("--cache", type=Path, help="folder for the models' outputs")
    arguments = parser.parse_args()
    sets = write_sets(arguments.out / "sets")
    evaluations = {
        name: run(name, settings, sets, arguments.cache) for name, settings in networks().items()
    }
    claims: list[Claim] = []
    for name, evaluation in evaluations.items():
        write_table(evaluation.table, arguments.out / name)
        print(f"# {name}\n\n{to_markdown(evaluation.table)}")
        print(f"## {name}: kinds of corruption\n\n{to_markdown(corruption_table(evaluation))}")
        print(f"## {name}: weights\n\n{weight_table(evaluation)}")
        print(f"## {name}: other combinations\n\n{combination_table(evaluation)}")
        claims += claims_about(name, evaluation)
    print("# Claims\n")
    for claim in claims:
        print(f"- {'holds' if claim.holds else 'DOES NOT HOLD'}: {claim.text}")
    raise SystemExit(0 if all(claim.holds for claim in claims) else 1)


def networks() -> dict[str, ModelSettings]:
    common = {"class_names": tuple(CLASSES), "python_path": (Path(__file__).parents[1],)}
    densenet_mean, densenet_std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
    return {
        "DenseNet-BC-100": ModelSettings(
            factory="tests.support.cifar_models:densenet_bc100",
            weights=DENSENET,
            preprocessing=PreprocessingSettings(
                resize=32,
                crop=32,
                mean=tuple(value / 255 for value in densenet_mean),
                std=tuple(value / 255 for value in densenet_std),
            ),
            **common,
        ),
        "ResNet-20": ModelSettings(
            factory="tests.support.cifar_models:resnet20",
            weights=RESNET,
            preprocessing=PreprocessingSettings(resize=32, crop=32),
            **common,
        ),
    }


def write_sets(folder: Path) -> dict[str, Path]:
    """Write the sets as image files; those of `in` and `fit` are the original JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    test = pq.read_table(DATA / "cifar10_test.parquet")
    used = IN_DISTRIBUTION + CORRUPTED
    pq.write_table(test.slice(0, IN_DISTRIBUTION), folder / "in.parquet")
    pq.write_table(test.slice(used), folder / "fit.parquet")
    images = pixels_of_sets(SEED)
    images["corruptions"] = torch.cat([images.pop(name) for name in CORRUPTIONS])
    for name, pixels in images.items():
        data = [encode_png(image).numpy().tobytes() for image in pixels]
        pq.write_table(pa.table({"image": pa.array(data, pa.binary())}), folder / f"{name}.parquet")
    names = ("textures", "ImageNet", "signs", "noise", "corruptions")
    return {name: folder / f"{name}.parquet" for name in ("in", "fit", *names)}


def run(
    name: str, settings: ModelSettings, sets: Mapping[str, Path], cache: Path | None
) -> Evaluation:
    request = EvaluationRequest(
        model=settings,
        scoring=ScoringSettings(),
        inside=sets["in"],
        outside={name: path for name, path in sets.items() if name not in {"in", "fit"}},
        fit_images=sets["fit"],
        methods=(),
        batch_size=50,
        limits=LimitSettings(),
        resamples=200,
        seed=SEED,
    )
    with progress_bar(name, unit="images") as advance:
        return evaluate(
            request,
            device=torch.device("cpu"),
            cache=None if cache is None else FeatureCache(cache),
            progress=advance,
        )


def corruption_table(evaluation: Evaluation) -> EvaluationTable:
    """The corruptions apart: `corruptions` holds them one after the other."""
    methods = tuple(
        parse_method(name) for name in ("nap", "energy", "knn", "nap-energy", str(DEFAULT))
    )
    whole = evaluation.outside["corruptions"]
    kinds = {
        kind: {name: column[CORRUPTED * k : CORRUPTED * (k + 1)] for name, column in whole.items()}
        for k, kind in enumerate(CORRUPTIONS)
    }
    return evaluate_scores(
        all_scores(methods, evaluation.inside, evaluation.fitted, evaluation.searches),
        {
            kind: all_scores(methods, values, evaluation.fitted, evaluation.searches)
            for kind, values in kinds.items()
        },
        in_distribution="in",
    )


def mean_auroc(evaluation: Evaluation, score: Score) -> tuple[float, float]:
    """The mean and the worst AUROC over the sets, in per cent."""
    inside = score(evaluation.inside)
    found = [100 * measure(inside, score(values)).auroc for values in evaluation.outside.values()]
    return float(np.mean(found)), min(found)


def weight_regret(
    evaluation: Evaluation, method: Method, search: WeightSearch
) -> tuple[float, float, float]:
    """The best weight in hindsight, its mean AUROC, and what the chosen one loses against it."""
    reference = evaluation.fitted.references(method)
    location = evaluation.fitted.location(method)

    def at(weight: float) -> Score:
        return lambda values: method_scores(
            method, values, weight=weight, location=location, reference=reference
        )

    means = [mean_auroc(evaluation, at(weight))[0] for weight in WEIGHTS]
    best = int(np.argmax(means))
    return WEIGHTS[best], means[best], means[best] - means[WEIGHTS.index(search.chosen)]


def weight_table(evaluation: Evaluation) -> str:
    lines = [
        "| method | chosen (90 % interval) | best in hindsight | mean AUROC there | regret |",
        "|---|---|---|---|---|",
    ]
    for method, search in evaluation.searches.items():
        best, mean, regret = weight_regret(evaluation, method, search)
        low, high = search.interval
        lines.append(
            f"| {method.label} | {search.chosen:.2f} ({low:.2f} to {high:.2f}) | {best:.2f} | "
            f"{mean:.2f} | {regret:.2f} |"
        )
    return "\n".join(lines) + "\n"


def combination_table(evaluation: Evaluation) -> str:
    lines = ["| NAP (two-sided p) and KNN by | mean AUROC | worst |", "|---|---|---|"]
    for name, score in _combinations(evaluation):
        mean, worst = mean_auroc(evaluation, score)
        lines.append(f"| {name} | {mean:.2f} | {worst:.2f} |")
    return "\n".join(lines) + "\n"


def _combinations(
    evaluation: Evaluation,
) -> Iterator[tuple[str, Score]]:
    reference = evaluation.fitted.references(DEFAULT)

    def pair(values: Mapping[str, NDArray[np.floating]]) -> tuple[Scores, Scores]:
        return (
            two_sided_p_values(reference[NAP], values[NAP]),
            p_values(reference[BaseScore.KNN], values[BaseScore.KNN]),
        )

    def by(combine: Callable[[Scores, Scores], Scores]) -> Score:
        return lambda values: combine(*pair(values))

    chosen = evaluation.searches[DEFAULT].chosen
    yield (
        f"Fisher, weight {chosen:g} (chosen)",
        by(lambda n, k: (1 - chosen) * np.log(n) + chosen * np.log(k)),
    )
    yield "Fisher, unweighted", by(lambda n, k: np.log(n) + np.log(k))
    yield "the smaller p-value (Tippett)", by(np.minimum)
    yield "Cauchy", by(lambda n, k: -(np.tan(np.pi * (0.5 - n)) + np.tan(np.pi * (0.5 - k))))
    yield "harmonic mean", by(lambda n, k: -(1 / n + 1 / k))
    yield "Stouffer", by(lambda n, k: norm.ppf(n * 0.999) + norm.ppf(k * 0.999))


def claims_about(name: str, evaluation: Evaluation) -> Iterator[Claim]:
    table = evaluation.table
    mean = {row.method: 100 * row.metrics.auroc for row in table.averages}
    worst = {row.method: 100 * row.metrics.auroc for row in table.worst}
    if name.startswith("DenseNet"):
        yield from _densenet_claims(table)
    alone = ["NAP", *(parse_method(base).label for base in BaseScore)]
    rival = max(alone, key=mean.__getitem__)
    yield Claim(
        f"{name}: {DEFAULT.label} has a mean AUROC of {mean[DEFAULT.label]:.2f}, the best of NAP "
        f"and the base scores is {rival} with {mean[rival]:.2f}",
        mean[DEFAULT.label] > mean[rival],
    )
    best = max(worst, key=worst.__getitem__)
    yield Claim(
        f"{name}: its worst set has {worst[DEFAULT.label]:.2f}, that of {best} {worst[best]:.2f}: "
        f"at most {ALLOWED_WORST} points below",
        worst[DEFAULT.label] >= worst[best] - ALLOWED_WORST,
    )
    for method in (DEFAULT, parse_method("nap-energy")):
        regret = weight_regret(evaluation, method, evaluation.searches[method])[2]
        yield Claim(
            f"{name}: the weight chosen for {method.label} loses {regret:.2f} points of mean AUROC "
            f"against the best in hindsight: at most {ALLOWED_REGRET:g}",
            regret <= ALLOWED_REGRET,
        )


def _densenet_claims(table: EvaluationTable) -> Iterator[Claim]:
    cells = {cell.method: cell.metrics for cell in table.cells_of("textures")}
    nap, energy = cells["NAP"], cells["Energy"]
    yield Claim(
        f"textures, NAP: AUROC {100 * nap.auroc:.1f} >= 91, FPR95 {100 * nap.fpr95:.1f} <= 31",
        nap.auroc >= 0.91 and nap.fpr95 <= 0.31,
    )
    yield Claim(
        f"textures, energy: AUROC {100 * energy.auroc:.1f}, FPR95 {100 * energy.fpr95:.1f}: about "
        "66 and 90",
        abs(energy.auroc - 0.66) < 0.03 and abs(energy.fpr95 - 0.90) < 0.05,
    )


if __name__ == "__main__":
    main()
