"""What scoring costs beside the forward pass it rides on: its own time against ResNet-18's.

    python -m benchmarks.scorer_cost [--batch 8] [--rounds 15]

Both are timed directly and in turn, in one process and on the same tensors; the ratio of the
medians is what counts, the times depend on the machine and on who else uses it.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torchvision import models

from nap_stream.calibration.fit import ALWAYS, in_order
from nap_stream.core.base_scores import BaseScores, fit_scores
from nap_stream.core.methods import POOL
from nap_stream.core.prior import nap
from nap_stream.core.score_specs import BaseScore, Head, ScoreParameters

ALLOWED_PERCENT = 1.5
DEFAULT = in_order((*ALWAYS, *POOL))
AUTO = f"auto with all it may choose: nap, {', '.join(DEFAULT)}"
EVERY = "nap and every base score"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = measure(arguments.batch, arguments.rounds)
    forward = rows.pop("forward")
    print(f"ResNet-18 at 224x224, batch {arguments.batch}, {arguments.threads} thread(s)\n")
    print("| what | ms | % of the forward pass |")
    print("|---|---|---|")
    print(f"| forward pass | {1000 * forward:.1f} | 100 |")
    for name, seconds in rows.items():
        print(f"| {name} | {1000 * seconds:.3f} | {100 * seconds / forward:.3f} |")
    total = 100 * rows[AUTO] / forward
    print(f"\nThe default: at most {total:.2f} %, allowed {ALLOWED_PERCENT:g} %.")
    raise SystemExit(0 if total < ALLOWED_PERCENT else 1)


def measure(batch: int, rounds: int) -> dict[str, float]:
    """Median seconds of each part over the rounds, all parts in turn within a round."""
    with torch.inference_mode():
        parts = _parts(batch)
        for part in parts.values():
            part()
        times: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(rounds):
            for name, part in parts.items():
                started = time.perf_counter()
                part()
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _parts(batch: int) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    model = models.resnet18().eval()
    images = torch.rand(batch, 3, 224, 224)
    captured: list[torch.Tensor] = []
    handle = model.layer4.register_forward_hook(lambda _m, _i, output: captured.append(output))
    logits = model(images)
    handle.remove()
    feature_map = captured[0]
    features = feature_map.mean((2, 3))
    scores = {name: _scorer(model.fc, features, (name,)) for name in BaseScore}
    default = _scorer(model.fc, features, DEFAULT)
    every = _scorer(model.fc, features, tuple(BaseScore))

    def with_nap(score: BaseScores) -> Callable[[], object]:
        return lambda: (nap(feature_map), score(logits, features))

    def alone(score: BaseScores) -> Callable[[], object]:
        return lambda: score(logits, features)

    return {
        "forward": lambda: model(images),
        "nap": lambda: nap(feature_map),
        **{str(name): alone(score) for name, score in scores.items()},
        AUTO: with_nap(default),
        EVERY: with_nap(every),
    }


def _scorer(head: nn.Linear, features: torch.Tensor, names: tuple[BaseScore, ...]) -> BaseScores:
    parameters = ScoreParameters()
    bank = np.random.default_rng(0).random((1_000, features.shape[1]), dtype=np.float32)
    fits = fit_scores(names, bank, parameters)
    weight, bias = (part.detach().numpy() for part in (head.weight, head.bias))
    return BaseScores(names, parameters, Head(weight, bias), fits, "cpu")


if __name__ == "__main__":
    main()
