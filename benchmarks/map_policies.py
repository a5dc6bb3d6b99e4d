"""Ways to apply NAP to a map with negative activations, and what they give a network's images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Images = torch.Tensor
Policy = Callable[[torch.Tensor], torch.Tensor]
View = Callable[[torch.Tensor], torch.Tensor]
Network = Callable[[Images], tuple[torch.Tensor, torch.Tensor]]
"""From a batch of uint8 images to a feature map (N, C, H, W) and logits (N, classes)."""
Scores = NDArray[np.float64]

BATCH = 100


def _nap(peak: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    return (peak / (mean + 1)).square().mean(dim=1)


def _clamp(a: torch.Tensor) -> torch.Tensor:
    positive = a.clamp_min(0)
    return _nap(positive.amax(2), positive.mean(2))


def _shift(a: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    return _nap(a.amax(2) - floor, a.mean(2) - floor)


POLICIES: Mapping[str, Policy] = {
    "clamp A at 0": _clamp,
    "raw: Max / (Mean + 1)": lambda a: _nap(a.amax(2), a.mean(2)),
    "Max / (abs(Mean) + 1)": lambda a: _nap(a.amax(2), a.mean(2).abs()),
    "Max / (Mean of abs(A) + 1)": lambda a: _nap(a.amax(2), a.abs().mean(2)),
    "Max+ / (Mean of abs(A) + 1)": lambda a: _nap(a.amax(2).clamp_min(0), a.abs().mean(2)),
    "abs(A) throughout": lambda a: _nap(a.abs().amax(2), a.abs().mean(2)),
    "A - Min": lambda a: _shift(a, a.amin(2)),
    "A - min(Min, 0)": lambda a: _shift(a, a.amin(2).clamp_max(0)),
    "Max+ / (Mean+ + 1)": lambda a: _nap(a.amax(2).clamp_min(0), a.mean(2).clamp_min(0)),
    "(Max - Mean) / (sd + 1)": lambda a: _nap(a.amax(2) - a.mean(2), a.std(2, unbiased=False)),
}
"""From activations (N, C, positions) to scores (N,); a plus marks a value clamped at zero."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One view of a network's map on every set.

    Attributes:
        accuracy: On the in-distribution images.
        negative: Share of negative activations on them.
        below_minus_one: Share of (image, channel) pairs on them whose mean is below -1.
        inside: Scores by policy, each (N,).
        outside: Scores by set, then policy.
    """

    accuracy: float
    negative: float
    below_minus_one: float
    inside: dict[str, Scores]
    outside: dict[str, dict[str, Scores]]


@torch.inference_mode()
def read(
    network: Network,
    views: Mapping[str, View],
    inside: Images,
    labels: torch.Tensor,
    outside: Mapping[str, Images],
) -> dict[str, Reading]:
    """Run a network once over every set; each view is a function of its map."""
    measured = _measure(network, views, inside)
    measured_outside = {name: _measure(network, views, images) for name, images in outside.items()}
    return {
        view: Reading(
            accuracy=float((of_view["class"] == labels.numpy()).mean()),
            negative=float(of_view["negative"].mean()),
            below_minus_one=float(of_view["below -1"].mean()),
            inside={name: of_view[name] for name in POLICIES},
            outside={
                name: {policy: sets[view][policy] for policy in POLICIES}
                for name, sets in measured_outside.items()
            },
        )
        for view, of_view in measured.items()
    }


def _measure(
    network: Network, views: Mapping[str, View], images: Images
) -> dict[str, dict[str, Scores]]:
    """Figures of each image, by view and name."""
    parts: dict[str, list[dict[str, torch.Tensor]]] = {view: [] for view in views}
    for batch in torch.split(images, BATCH):
        feature_map, logits = network(batch)
        for view, seen in views.items():
            activations = seen(feature_map).flatten(start_dim=2).double()
            parts[view].append(
                {
                    "class": logits.argmax(1),
                    "negative": (activations < 0).double().mean(dim=(1, 2)),
                    "below -1": (activations.mean(2) < -1).double().mean(1),
                    **{name: policy(activations) for name, policy in POLICIES.items()},
                }
            )
    return {
        view: {name: torch.cat([part[name] for part in of_view]).numpy() for name in of_view[0]}
        for view, of_view in parts.items()
    }
