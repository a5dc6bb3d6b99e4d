"""The fused score energy^w * NAP^(1-w) where the energy is negative: AUROC under each policy.

    .venv/bin/python -m benchmarks.negative_energies --cache DIR

Subtracting a constant c from every logit leaves the softmax as it is and lowers the energy
(logsumexp) by c. A policy that keeps the fused score's worth must not care. Judged on the two
given CIFAR-10 networks, and on ResNet-20 fine-tuned with a sigmoid and binary cross-entropy a
class, whose energies are low by nature. Prints Markdown: mean / worst AUROC in per cent over
eight out-of-distribution sets.

One fine-tuning of about a minute an epoch (kept in the cache folder and used again), and two to
three minutes for the DenseNet, on one core.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.cifar_sets import (
    CORRUPTED,
    DENSENET,
    IN_DISTRIBUTION,
    RESNET,
    densenet_input,
    load,
    out_of_distribution,
    resnet_input,
)
from benchmarks.negative_maps import markdown
from benchmarks.signed_resnet import binary_cross_entropy, fine_tuned
from nap_stream.core.base_scores import ash, dice, dice_weight, energy, react, react_clip, scale
from nap_stream.core.prior import nap
from tests.support.cifar_models import DenseNetBC, ResNet20, densenet_bc100, resnet20

Scores = NDArray[np.float64]
Normalise = Callable[[torch.Tensor], torch.Tensor]

BATCH = 100
CONSTANTS = (0, 5, 10, 20)
LARGEST_PER_IMAGE = 20
REACT_PERCENTILE = 0.9
ASH_PERCENTILE = 0.9
SCALE_PERCENTILE = 0.85
DICE_SPARSITY = 0.9
SMALLEST = float(np.finfo(np.float64).tiny)

console = Console(stderr=True)


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """What a network makes of one set: features (N, D) and NAP scores (N,)."""

    features: torch.Tensor
    nap: Scores


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network's head, (K, D) and (K,), and what it makes of the sets."""

    weight: torch.Tensor
    bias: torch.Tensor
    inside: Passed
    calibration: Passed
    outside: dict[str, Passed]


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """A base score, and the mean over the classes of the logits it was computed from, (N,)."""

    score: Scores
    mean_logit: Scores

    def lowered(self, constant: Scores) -> "Base":
        """What it is where ``constant``, (N,), has been subtracted from the logits."""
        return Base(self.score - constant, self.mean_logit - constant)


HeadScore = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From features (N, D), weight (K, D) and bias (K,) to scores (N,)."""
Policy = Callable[[Base, Base], Scores]
"""From a base score and the calibration images' to what is raised to the power."""


def _softplus(values: Scores) -> Scores:
    raised: Scores = np.logaddexp(0, values)
    return raised


def _above(base: Base, calibration: Base, percentile: float) -> Scores:
    lifted: Scores = base.score - np.percentile(calibration.score, percentile)
    return lifted


POLICIES: Mapping[str, Policy] = {
    "E": lambda base, _: base.score,
    "softplus(E)": lambda base, _: _softplus(base.score),
    "E - 1st percentile": lambda base, cal: _above(base, cal, 1),
    "softplus(E - 1st percentile)": lambda base, cal: _softplus(_above(base, cal, 1)),
    "softplus(E - minimum)": lambda base, cal: _softplus(_above(base, cal, 0)),
    "softplus((E - mean) / sd)": lambda base, cal: _softplus(
        (base.score - cal.score.mean()) / cal.score.std()
    ),
    "E - mean calibration logit": lambda base, cal: base.score - cal.mean_logit.mean(),
    "softplus(E - mean calibration logit)": lambda base, cal: _softplus(
        base.score - cal.mean_logit.mean()
    ),
    "E - mean logit of the image": lambda base, _: base.score - base.mean_logit,
}
"""E is the base score. What comes out is clamped at the smallest positive float."""


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    networks = dict(_networks(options))
    for name, network in networks.items():
        print(f"{name}\n\n{_summary(network)}\n")
        print(_constants_table(network, options))
        print(_scores_table(network, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder of fine-tuned weights")
    parser.add_argument("--weight", type=float, default=0.4, help="w (default 0.4)")
    parser.add_argument("--epochs", type=int, default=4, help="of fine-tuning (default 4)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of training, noise and c by image (default 0)"
    )
    return parser.parse_args()


def _networks(options: argparse.Namespace) -> Iterator[tuple[str, Network]]:
    given = resnet20()
    given.load_state_dict(load_file(RESNET))
    yield "ResNet-20", _pass(given.eval(), given.linear, resnet_input(), options.seed)
    images, labels = load("cifar10_train.parquet")
    sigmoid = fine_tuned(
        "ReLU",
        start=RESNET,
        cache=options.cache,
        images=images,
        labels=labels,
        normalise=resnet_input(),
        epochs=options.epochs,
        seed=options.seed,
        loss=binary_cross_entropy,
    )
    name = "ResNet-20, binary cross-entropy"
    yield name, _pass(sigmoid, sigmoid.linear, resnet_input(), options.seed)
    densenet = densenet_bc100()
    densenet.load_state_dict(load_file(DENSENET))
    yield "DenseNet", _pass(densenet.eval(), densenet.fc, densenet_input(), options.seed)


@torch.inference_mode()
def _pass(
    model: ResNet20 | DenseNetBC, head: nn.Linear, normalise: Normalise, seed: int
) -> Network:
    def passed(images: torch.Tensor) -> Passed:
        features, naps = [], []
        for batch in torch.split(images, BATCH):
            feature_map = model.feature_map(normalise(batch))
            features.append(feature_map.mean(dim=(2, 3)))
            naps.append(nap(feature_map))
        return Passed(torch.cat(features), torch.cat(naps).double().numpy())

    inside, _ = load("cifar10_test.parquet", rows=IN_DISTRIBUTION)
    calibration, _ = load("cifar10_test.parquet", IN_DISTRIBUTION + CORRUPTED)
    console.print(f"reading {type(model).__name__}")
    return Network(
        weight=head.weight.detach(),
        bias=head.bias.detach(),
        inside=passed(inside),
        calibration=passed(calibration),
        outside={name: passed(images) for name, images in out_of_distribution(seed).items()},
    )


def _base_scores(network: Network) -> dict[str, Callable[[torch.Tensor], Base]]:
    """Base scores of logsumexp's kind, by name, from features."""
    calibration = network.calibration.features
    clip = react_clip(calibration.numpy(), REACT_PERCENTILE)
    sparse = dice_weight(network.weight, calibration.mean(dim=0), DICE_SPARSITY)
    bias = network.bias
    return {
        "energy": _base(lambda x, w, b: energy(x @ w.T + b), network.weight, bias),
        "ReAct": _base(lambda x, w, b: react(x, clip, w, b), network.weight, bias),
        "ASH": _base(lambda x, w, b: ash(x, ASH_PERCENTILE, w, b), network.weight, bias),
        "SCALE": _base(lambda x, w, b: scale(x, SCALE_PERCENTILE, w, b), network.weight, bias),
        "DICE": _base(dice, sparse, bias),
    }


def _base(score: HeadScore, weight: torch.Tensor, bias: torch.Tensor) -> Callable[..., Base]:
    """The mean logit is what the score loses where the head's mean over classes is removed."""

    def base(features: torch.Tensor) -> Base:
        given = score(features, weight, bias).double().numpy()
        centred = score(features, weight - weight.mean(dim=0), bias - bias.mean())
        return Base(given, given - centred.double().numpy())

    return base


def _summary(network: Network) -> str:
    energies = _base_scores(network)["energy"]
    inside = energies(network.inside.features)
    outside = np.concatenate([energies(seen.features).score for seen in network.outside.values()])
    location = energies(network.calibration.features).mean_logit.mean()
    return (
        f"in-distribution energies {inside.score.min():.1f} to {inside.score.max():.1f}, "
        f"mean logits {inside.mean_logit.mean():.2f} (sd over images "
        f"{inside.mean_logit.std():.3f}). At or below 0: {_share(inside.score, 0)} of the "
        f"in-distribution and {_share(outside, 0)} of the out-of-distribution energies; at or "
        f"below the mean calibration logit, {location:.2f}: {_share(inside.score, location)} "
        f"and {_share(outside, location)}."
    )


def _share(scores: Scores, limit: float) -> str:
    return f"{(scores <= limit).mean():.1%}"


def _constants_table(network: Network, options: argparse.Namespace) -> str:
    """Fused with the energy, at each constant and at one drawn for each image."""
    energies = _base_scores(network)["energy"]
    rows = [
        [
            policy,
            *(
                _mean_and_worst(network, energies, policy, options, drawn=(constant, constant))
                for constant in CONSTANTS
            ),
            _mean_and_worst(network, energies, policy, options, drawn=(0, LARGEST_PER_IMAGE)),
        ]
        for policy in POLICIES
    ]
    columns = [f"c = {constant}" for constant in CONSTANTS]
    return markdown(
        ["energy, mean / worst AUROC", *columns, f"0 to {LARGEST_PER_IMAGE}, by image"], rows
    )


def _scores_table(network: Network, options: argparse.Namespace) -> str:
    """Fused with each other score of logsumexp's kind, at c = 0 and c = 10."""
    scores = {name: base for name, base in _base_scores(network).items() if name != "energy"}
    rows = [
        [
            policy,
            *(
                _mean_and_worst(network, base, policy, options, drawn=(constant, constant))
                for base in scores.values()
                for constant in (0, 10)
            ),
        ]
        for policy in POLICIES
    ]
    columns = [f"{name}, c = {constant}" for name in scores for constant in (0, 10)]
    return markdown(["mean / worst AUROC", *columns], rows)


def _mean_and_worst(
    network: Network,
    base: Callable[[torch.Tensor], Base],
    policy: str,
    options: argparse.Namespace,
    *,
    drawn: tuple[float, float],
) -> str:
    """AUROC over the sets where a constant drawn uniformly is subtracted from the logits."""
    generator = np.random.default_rng(options.seed)

    def lowered(seen: Passed) -> Base:
        return base(seen.features).lowered(generator.uniform(*drawn, size=len(seen.nap)))

    calibration = lowered(network.calibration)

    def fused(seen: Passed) -> Scores:
        raised = np.maximum(POLICIES[policy](lowered(seen), calibration), SMALLEST)
        product: Scores = raised**options.weight * seen.nap ** (1 - options.weight)
        return product

    inside = fused(network.inside)
    aurocs = []
    for seen in network.outside.values():
        scores = np.concatenate([inside, fused(seen)])
        labels = np.repeat([1, 0], [len(inside), len(seen.nap)])
        aurocs.append(100 * roc_auc_score(labels, scores))
    return f"{np.mean(aurocs):.1f} / {min(aurocs):.1f}"


if __name__ == "__main__":
    main()
