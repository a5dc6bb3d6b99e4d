"""What a plain PyTorch script makes of the images. It shares no code with nap_stream."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score, roc_curve
from torchvision import transforms

from tests.support.cifar_models import densenet_bc100

Scores = NDArray[np.float64]
BATCH = 50


@dataclass(frozen=True, slots=True)
class Reading:
    """Of N images: NAP, energy, MSP and predicted class (N,), features (N, D), logits (N, K).

    ``head`` is the weight (K, D) of the layer that makes logits of features.
    """

    nap: Scores
    energy: Scores
    msp: Scores
    class_id: NDArray[np.int64]
    features: Scores
    logits: Scores
    head: Scores


def read_plain(
    images: Sequence[bytes], weights: Path, mean: Sequence[float], std: Sequence[float]
) -> Reading:
    """Decode, resize and normalise as torchvision's users do on PIL images, and score.

    S_NAP = mean over channels of (max / (mean + 1))^2 of the map that enters global pooling
    (arXiv 2402.18162), here the ReLU of the last batch norm; energy = logsumexp of the logits.
    """
    prepare = transforms.Compose(
        [
            transforms.Resize(32, transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    model = densenet_bc100()
    model.load_state_dict(load_file(weights))
    model.eval()
    maps: list[torch.Tensor] = []
    model.bn1.register_forward_hook(lambda _module, _inputs, output: maps.append(output.relu()))
    logits = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            pixels = [prepare(Image.open(io.BytesIO(data)).convert("RGB")) for data in batch]
            logits.append(model(torch.stack(pixels)))
    everything, feature_map = torch.cat(logits), torch.cat(maps)
    ratio = feature_map.amax((2, 3)) / (feature_map.mean((2, 3)) + 1.0)
    return Reading(
        nap=(ratio**2).mean(1).double().numpy(),
        energy=torch.logsumexp(everything, 1).double().numpy(),
        msp=everything.softmax(1).amax(1).double().numpy(),
        class_id=everything.argmax(1).numpy(),
        features=feature_map.mean((2, 3)).double().numpy(),
        logits=everything.double().numpy(),
        head=model.fc.weight.detach().double().numpy(),
    )


def plain_scores(reading: Reading, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Scores]:
    """The scores that the default method may choose, by name, each (N,).

    ``arrays`` are those of a calibration; fDBD and Mahalanobis are there where it was fitted.
    """
    scores = {"nap": reading.nap, "energy": reading.energy, "msp": reading.msp}
    if "fit.feature_mean" in arrays:
        scores["fdbd"] = _fdbd(reading, arrays["fit.feature_mean"])
    if "fit.gaussian_mean" in arrays:
        scores["mahalanobis"] = _mahalanobis(reading, arrays)
    return scores


def plain_sum(
    scores: Mapping[str, Scores],
    weights: Mapping[str, float],
    arrays: Mapping[str, NDArray[Any]],
) -> Scores:
    """The sum of weighted log p-values against the references of a calibration's arrays, (N,)."""
    columns = [
        weight * np.array([_log_p(arrays[f"reference.{name}"], value) for value in scores[name]])
        for name, weight in weights.items()
    ]
    return np.asarray(np.sum(columns, axis=0))


def _fdbd(reading: Reading, mean: NDArray[np.float32]) -> Scores:
    """Equations 4 and 6 of arXiv 2312.11536, image by image."""
    scores = []
    for feature, logit, own in zip(reading.features, reading.logits, reading.class_id, strict=True):
        others = [number for number in range(len(logit)) if number != own]
        distances = [
            (logit[own] - logit[k]) / np.linalg.norm(reading.head[own] - reading.head[k])
            for k in others
        ]
        scores.append(np.mean(distances) / np.linalg.norm(feature - mean))
    return np.array(scores)


def _mahalanobis(reading: Reading, arrays: Mapping[str, NDArray[Any]]) -> Scores:
    """By the inverse covariance: the directions' variances, and one for all that is beside them."""
    directions = arrays["fit.gaussian_directions"].astype(np.float64)
    variances = arrays["fit.gaussian_variances"].astype(np.float64)
    beside = np.eye(directions.shape[1]) - directions.T @ directions
    inverse = directions.T @ np.diag(1 / variances[:-1]) @ directions + beside / variances[-1]
    unit = reading.features / np.linalg.norm(reading.features, axis=1, keepdims=True)
    rows = unit - arrays["fit.gaussian_mean"]
    return -np.asarray(np.einsum("nd,de,ne->n", rows, inverse, rows))


def _log_p(reference: Scores, score: float) -> float:
    """The log of the share of references below, with a Pareto tail of shape 1 at either end."""
    r, outer = len(reference), int(np.ceil(len(reference) / 10))
    low, high = reference[:outer], reference[-outer:]
    if score < reference[0]:
        scale = np.mean(low[-1] - low[:-1])
        return float(-np.log(r + 1) - np.log(1 + (reference[0] - score) / scale))
    if score > reference[-1]:
        scale = np.mean(high[1:] - high[0])
        return float(np.log(1 - 1 / (r + 1) / (1 + (score - reference[-1]) / scale)))
    return float(np.log(np.interp(score, reference, np.arange(1, r + 1) / (r + 1))))


def auroc(inside: Scores, outside: Scores) -> float:
    """Area under the ROC curve; in-distribution is positive, higher = in-distribution."""
    return float(roc_auc_score(_truth(inside, outside), np.concatenate([inside, outside])))


def fpr95(inside: Scores, outside: Scores) -> float:
    """False positive rate where 95 % of the in-distribution images are kept."""
    false, true, _ = roc_curve(
        _truth(inside, outside), np.concatenate([inside, outside]), drop_intermediate=False
    )
    return float(false[np.argmax(true >= 0.95)])


def _truth(inside: Scores, outside: Scores) -> NDArray[np.int64]:
    return np.repeat(np.array([1, 0]), [len(inside), len(outside)])
