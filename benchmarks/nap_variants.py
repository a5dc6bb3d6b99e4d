"""Other ways to read the map before pooling than NAP's, alone and in NAP's place in `auto`.

    python -m benchmarks.nap_variants --out DIR [--cache DIR] [--only NETWORK ...]

``DIR`` and the cache are those of `benchmarks.paper_table`, whose sets are used. For each network
prints the mean AUROC over its OOD sets, and that of the worst, of each variant alone, and of the
sum that `auto` chose with the variant's log p-value in the place of NAP's. A Vision Transformer has
no such map, and is left out.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.networks import NETWORKS, available
from benchmarks.selection_rules import BATCH, LogPs, Scored, chosen, read
from nap_stream.calibration.cache import FeatureCache
from nap_stream.calibration.pseudo_ood import PSEUDO_OOD
from nap_stream.core.methods import NAP, POOL, LogP
from nap_stream.core.prior import EPSILON, nap
from nap_stream.decode.image import decode_image
from nap_stream.decode.picture import Refusal
from nap_stream.image_files import iter_images
from nap_stream.model.forward import capture
from nap_stream.model.load import LoadedModel, load_model
from nap_stream.model.preprocessing import preprocess
from nap_stream.model.sites import head_parameters
from nap_stream.settings.schema import LimitSettings

LARGEST = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """What a variant may use of N images: the map (N, C, H x W), logits, the head's weights."""

    activations: torch.Tensor
    logits: torch.Tensor
    head: torch.Tensor

    @property
    def scale(self) -> torch.Tensor:
        """NAP's divisor, (N, C)."""
        return self.activations.abs().mean(dim=2) + EPSILON

    @property
    def peak(self) -> torch.Tensor:
        """The maximum of each channel, at least 0, (N, C)."""
        return self.activations.amax(dim=2).clamp_min(0)


def paper(seen: Seen) -> torch.Tensor:
    return nap(seen.activations[..., None])


def standard_deviation(seen: Seen) -> torch.Tensor:
    return (seen.activations.std(dim=2) / seen.scale).square().mean(dim=1)


def largest(seen: Seen) -> torch.Tensor:
    """The mean of the largest activations for the maximum."""
    count = min(LARGEST, seen.activations.shape[2])
    top = seen.activations.topk(count, dim=2).values.mean(dim=2).clamp_min(0)
    return (top / seen.scale).square().mean(dim=1)


def of_class(seen: Seen) -> torch.Tensor:
    """Channels weighted by what the predicted class's head has above zero."""
    weights = seen.head[seen.logits.argmax(dim=1)].clamp_min(0)
    ratios = (seen.peak / seen.scale).square()
    return (weights * ratios).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-9)


def catalyst_deviation(seen: Seen) -> torch.Tensor:
    """Energy times the mean standard deviation of the channels (arXiv 2602.02409, unclipped)."""
    return torch.logsumexp(seen.logits, dim=1) * seen.activations.std(dim=2).mean(dim=1)


def catalyst_maximum(seen: Seen) -> torch.Tensor:
    """Energy times the mean maximum of the channels (arXiv 2602.02409, unclipped)."""
    return torch.logsumexp(seen.logits, dim=1) * seen.peak.mean(dim=1)


VARIANTS: dict[str, Callable[[Seen], torch.Tensor]] = {
    "NAP (paper)": paper,
    "standard deviation for maximum": standard_deviation,
    f"mean of the {LARGEST} largest for maximum": largest,
    "weighted by the predicted class's head": of_class,
    "energy x standard deviation": catalyst_deviation,
    "energy x maximum": catalyst_maximum,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for sets")
    parser.add_argument("--cache", type=Path, help="folder for the models' outputs")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, help="all by default")
    arguments = parser.parse_args()
    cache = None if arguments.cache is None else FeatureCache(arguments.cache)
    print(f"| network | {' | '.join(f'{name}: alone | in auto' for name in VARIANTS)} |")
    print(f"|---|{'---:|' * (2 * len(VARIANTS))}")
    for name in arguments.only or available():
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        network = NETWORKS[name](folder)
        loaded = load_model(network.model, torch.device("cpu"))
        if loaded.feature_site.kind == "cls_attention":
            continue
        fitted = _variants(loaded, network.fit)
        inside = _variants(loaded, network.inside)
        outside = {one: _variants(loaded, path) for one, path in network.outside.items()}
        own = read(network, cache)
        weights = chosen((*(str(one) for one in POOL), NAP), tuple(PSEUDO_OOD))(own)
        cells = []
        for variant in VARIANTS:
            swapped = _in_place_of_nap(variant, own, fitted, inside, outside)
            cells += [_cell(swapped.area({NAP: 1.0})), _cell(swapped.area(weights))]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _cell(areas: tuple[float, float]) -> str:
    return f"{areas[0]:.1f} / {areas[1]:.1f}"


def _in_place_of_nap(
    variant: str, own: Scored, fitted: LogPs, inside: LogPs, outside: dict[str, LogPs]
) -> Scored:
    reference = np.sort(fitted[variant])

    def swapped(known: LogPs, values: LogPs) -> LogPs:
        return known | {NAP: LogP(reference)(values[variant])}

    return Scored(
        own.fitted,
        own.pseudo,
        swapped(own.inside, inside),
        {name: swapped(known, outside[name]) for name, known in own.outside.items()},
    )


def _variants(loaded: LoadedModel, images: Path) -> dict[str, NDArray[np.float64]]:
    """Every variant of every image of a file."""
    assert loaded.head is not None
    head, _ = head_parameters(loaded.module, loaded.head)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in VARIANTS}
    for pixels in _batches(loaded, images):
        with (
            torch.inference_mode(),
            capture(loaded.module, loaded.feature_site, _flat) as captured,
        ):
            logits = loaded.module(pixels)
        assert captured.parts.get(0) is not None
        seen = Seen(captured.parts[0], logits, head)
        for name, variant in VARIANTS.items():
            found[name].append(variant(seen))
    return {name: torch.cat(parts).double().numpy() for name, parts in found.items()}


def _flat(feature_map: torch.Tensor) -> torch.Tensor:
    return feature_map.flatten(start_dim=2).float().clone()


def _batches(loaded: LoadedModel, images: Path) -> Iterator[torch.Tensor]:
    """The model's input."""
    files = iter_images(images)
    while batch := list(islice(files, BATCH)):
        pixels = []
        for file in batch:
            decoded = decode_image(file.data, LimitSettings())
            assert not isinstance(decoded, Refusal)
            pixels.append(preprocess(decoded.pixels, loaded.preprocessing))
        yield loaded.normalise(torch.stack(pixels))


if __name__ == "__main__":
    main()
