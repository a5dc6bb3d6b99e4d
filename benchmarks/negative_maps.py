"""NAP on feature maps with negative activations: AUROC under each policy and network.

    .venv/bin/python -m benchmarks.negative_maps --cache DIR

The paper's S_NAP = mean_j (Max(A_j) / (Mean(A_j) + 1))^2 assumes a map after a ReLU. Here the
map is negative in places: ResNet-20 with SiLU, with GELU, without an activation before the
pooling (as in ConvNeXt), and with a layer norm there (as in Swin), each fine-tuned on CIFAR-10
from the ReLU network; and the two given ReLU networks read before their last ReLU. Prints
Markdown: AUROC in per cent over eight out-of-distribution sets.

Fine-tuning takes about a minute an epoch and network on one core, the DenseNet two to three
minutes. The fine-tuned weights are kept in the cache folder and used again.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.cifar_sets import (
    DENSENET,
    IN_DISTRIBUTION,
    RESNET,
    densenet_input,
    load,
    out_of_distribution,
    resnet_input,
)
from benchmarks.map_policies import POLICIES, Network, Reading, Scores, View, read
from benchmarks.signed_resnet import SignedResNet20, fine_tuned, variants
from tests.support.cifar_models import densenet_bc100

REFERENCE = "clamp A at 0"
LEAST_ACCURACY = 0.75
GIVEN = "given"

console = Console(stderr=True)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    inside, labels = load("cifar10_test.parquet", rows=IN_DISTRIBUTION)
    outside = out_of_distribution(options.seed)
    readings: dict[str, Reading] = {}
    for views, network in _networks(options):
        console.print(f"reading {', '.join(views)}")
        readings.update(read(network, views, inside, labels, outside))
    for name, reading in readings.items():
        if reading.accuracy < LEAST_ACCURACY:
            raise SystemExit(f"{name}: accuracy {reading.accuracy:.3f}; train for more epochs")
    print(_networks_table(readings))
    print(_policy_table(readings))
    print(_difference_table(readings, options.resamples, options.seed))
    for name, reading in readings.items():
        print(f"{name}\n\n{_set_table(reading)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder of fine-tuned weights")
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=[GIVEN, *variants()],
        default=[GIVEN, *variants()],
        help="the two given ones, and the last steps of those fine-tuned (default all)",
    )
    parser.add_argument("--epochs", type=int, default=4, help="of fine-tuning (default 4)")
    parser.add_argument("--resamples", type=int, default=50, help="of the bootstrap (default 50)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of training, noise and bootstrap (default 0)"
    )
    return parser.parse_args()


def _networks(options: argparse.Namespace) -> Iterator[tuple[dict[str, View], Network]]:
    """Each network with the views of its map that are judged."""
    if GIVEN in options.networks:
        resnet = variants()["none"]
        resnet.load_state_dict(load_file(RESNET))
        yield _given_views("ResNet-20"), _resnet(resnet.eval(), before_pooling=torch.relu)
        yield _given_views("DenseNet"), _densenet()
    images, labels = load("cifar10_train.parquet")
    for name in [name for name in variants() if name in options.networks]:
        console.print(f"fine-tuning {name}")
        model = fine_tuned(
            name,
            start=RESNET,
            cache=options.cache,
            images=images,
            labels=labels,
            normalise=resnet_input(),
            epochs=options.epochs,
            seed=options.seed,
        )
        yield {f"tuned: {name}": nn.Identity()}, _resnet(model, before_pooling=nn.Identity())


def _given_views(name: str) -> dict[str, View]:
    return {f"{name}, given": torch.relu, f"{name}, before ReLU": nn.Identity()}


def _resnet(model: SignedResNet20, *, before_pooling: View) -> Network:
    normalise = resnet_input()

    def network(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        feature_map = model.feature_map(normalise(images))
        return feature_map, model.linear(before_pooling(feature_map).mean(dim=(2, 3)))

    return network


def _densenet() -> Network:
    """DenseNet-BC-100; its map is the one before the last ReLU."""
    model = densenet_bc100()
    model.load_state_dict(load_file(DENSENET))
    model.eval()
    normalise = densenet_input()
    seen: list[torch.Tensor] = []
    model.bn1.register_forward_hook(lambda _module, _inputs, output: seen.append(output))

    def network(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(normalise(images))
        return seen.pop(), logits

    return network


def _aurocs(inside: Mapping[str, Scores], outside: Mapping[str, Scores]) -> NDArray[np.float64]:
    """AUROC in per cent of each policy."""
    labels = np.repeat([1, 0], [len(inside[REFERENCE]), len(outside[REFERENCE])])
    return np.array(
        [
            100 * roc_auc_score(labels, np.concatenate([inside[name], outside[name]]))
            for name in POLICIES
        ]
    )


def _by_set(reading: Reading) -> NDArray[np.float64]:
    """AUROC in per cent, shape (sets, policies)."""
    return np.stack([_aurocs(reading.inside, scores) for scores in reading.outside.values()])


def _resampled(reading: Reading, generator: np.random.Generator) -> NDArray[np.float64]:
    """Mean AUROC over the sets of each policy, on images drawn with replacement."""

    def draw(scores: Mapping[str, Scores]) -> dict[str, Scores]:
        size = len(scores[REFERENCE])
        rows = generator.integers(size, size=size)
        return {name: values[rows] for name, values in scores.items()}

    inside = draw(reading.inside)
    drawn = np.stack([_aurocs(inside, draw(scores)) for scores in reading.outside.values()])
    means: NDArray[np.float64] = drawn.mean(axis=0)
    return means


def _networks_table(readings: Mapping[str, Reading]) -> str:
    rows = [
        [
            name,
            f"{reading.accuracy:.3f}",
            f"{reading.negative:.1%}",
            f"{reading.below_minus_one:.1%}",
            f"{max(scores.max() for scores in _raw(reading)):.3g}",
        ]
        for name, reading in readings.items()
    ]
    return markdown(
        ["network", "accuracy", "activations < 0", "channel means < -1", "largest raw score"], rows
    )


def _raw(reading: Reading) -> list[Scores]:
    name = "raw: Max / (Mean + 1)"
    return [reading.inside[name], *(scores[name] for scores in reading.outside.values())]


def _policy_table(readings: Mapping[str, Reading]) -> str:
    tables = [_by_set(reading) for reading in readings.values()]
    rows = [
        [policy, *(f"{t[:, index].mean():.1f} / {t[:, index].min():.1f}" for t in tables)]
        for index, policy in enumerate(POLICIES)
    ]
    return markdown(["mean / worst AUROC", *readings], rows)


def _difference_table(readings: Mapping[str, Reading], resamples: int, seed: int) -> str:
    """Difference to the clamp in mean AUROC, with its bootstrap standard error."""
    columns = []
    reference = list(POLICIES).index(REFERENCE)
    for reading in readings.values():
        generator = np.random.default_rng(seed)
        means = _by_set(reading).mean(axis=0)
        drawn = np.stack([_resampled(reading, generator) for _ in range(resamples)])
        errors = (drawn - drawn[:, [reference]]).std(axis=0, ddof=1)
        columns.append(list(zip(means - means[reference], errors, strict=True)))
    rows = [
        [policy, *(f"{column[index][0]:+.1f} ± {column[index][1]:.1f}" for column in columns)]
        for index, policy in enumerate(POLICIES)
        if index != reference
    ]
    return markdown([f"mean AUROC less that of {REFERENCE}, ± 1 se", *readings], rows)


def _set_table(reading: Reading) -> str:
    table = _by_set(reading)
    rows = [
        [policy, *(f"{value:.1f}" for value in table[:, index])]
        for index, policy in enumerate(POLICIES)
    ]
    return markdown(["policy", *reading.outside], rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
