"""Where prior and head are found in the classifiers of torchvision, timm and Hugging Face.

Run: `python -m benchmarks.model_table --out FOLDER [torchvision timm transformers]`, and
`python -m benchmarks.model_table --write FOLDER` for the tables of docs/models.md. Weights
are random, since the places do not depend on them, and nothing is downloaded. What is read is
checked against what the libraries themselves give: `forward_features`, `hidden_states`, attention
maps. The names of the timm models stand in benchmarks/model_table.txt.
"""

import argparse
import gc
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks import model_table_hub as hub
from nap_stream.errors import FeatureMapError
from nap_stream.model.facts import FeatureSite
from nap_stream.model.find import choose_site, probe
from nap_stream.model.forward import capture, run_forward

CLASSES = 10
_SMALL = 160
_LARGEST = 150_000_000
_TOLERANCE = 1e-4
_NAMES = Path(__file__).with_suffix(".txt")


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a model: where it is read and how that was checked, or the refusal."""

    library: str
    model: str
    side: int
    kind: str
    where: str
    shape: str
    head: str
    checked: str
    nap: float


Truth = Callable[[torch.Tensor], Iterator[tuple[str, torch.Tensor]]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model of a library: how it is built, its input's side, and what it says of its maps."""

    library: str
    model: str
    side: int
    module: nn.Module
    truth: Truth


def as_map(value: torch.Tensor, site: FeatureSite) -> Iterator[torch.Tensor]:
    """A library's features as (N, C, positions), in each layout that they can have."""
    channels, positions = site.shape[0], site.positions
    for axis in range(1, value.ndim):
        if value.ndim > 2 and value.shape[axis] == channels:
            flat = value.movedim(axis, 1).flatten(2)
            extra = flat.shape[2] - positions
            if extra >= 0:
                yield flat[:, :, extra:]
                yield flat[:, :, : flat.shape[2] - extra]


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    if first.shape != second.shape:
        return False
    return bool((first - second).abs().max() <= _TOLERANCE * first.abs().max().clamp_min(1e-6))


def checked(candidate: Candidate, site: FeatureSite, pixels: torch.Tensor) -> str:
    """By which of a library's own outputs a site's map is confirmed; empty if by none."""
    with torch.inference_mode():
        with capture(candidate.module, site, torch.clone) as captured:
            candidate.module(pixels)
        missing = dict(enumerate(site.parts))
        found: list[str] = []
        # What is not needed is not computed.
        for name, value in candidate.truth(pixels):
            for number, part in list(missing.items()):
                if _is(captured.parts[number], value, part):
                    found.append(name)
                    del missing[number]
            if not missing:
                return found[0]
    return ""


def _is(read: torch.Tensor, value: torch.Tensor, site: FeatureSite) -> bool:
    if site.kind == "cls_attention":
        if value.ndim != 4:
            return False
        rows = value[:, :, list(site.tokens.queries)].mean(dim=(1, 2))
        return close(read, rows[:, site.tokens.first :])
    flat = read.flatten(2)
    if value.ndim == 2 and value.shape[1] == flat.shape[1]:
        return close(flat.mean(dim=2), value) or close(flat.amax(dim=2), value)
    return any(close(flat, candidate) for candidate in as_map(value, site))


def row_of(candidate: Candidate) -> Row:
    """Find a candidate's prior, and check it."""
    torch.manual_seed(0)
    side, module = candidate.side, candidate.module.eval().requires_grad_(requires_grad=False)
    pixels = torch.randn(2, 3, side, side)
    seen = probe(module, pixels)
    head = seen.head.module if seen.head else "none"
    try:
        site = choose_site(seen, None)
    except FeatureMapError as error:
        said = str(error)
        return Row(candidate.library, candidate.model, side, "refused", said, "", head, "", 0.0)
    how = checked(candidate, site, pixels)
    with torch.inference_mode():
        plain = module(pixels)
    forward = run_forward(module, site, seen.head, pixels, classes=plain.shape[1])
    if not torch.equal(forward.logits, plain.float()) or not forward.nap.isfinite().all():
        raise ArithmeticError(f"{candidate.model}: the captures change the logits, or NAP is off")
    size = "+".join("x".join(map(str, part.shape)) for part in site.parts)
    kind = {3: "tokens", 4: "map"}.get(site.layout.dimensions, "map")
    if site.kind == "cls_attention":
        kind = "attention"
    elif kind == "map" and site.layout.channels == 3:
        kind = "map, channels last"
    found = (side, kind, str(site), size, head, how, float(forward.nap[0]))
    return Row(candidate.library, candidate.model, *found)


def _normal(tensor: torch.Tensor, mean: float = 0, std: float = 1, *_ends: float) -> torch.Tensor:
    return nn.init.normal_(tensor, mean, std)


def torchvision_models(done: str) -> Iterator[Candidate]:
    """The classifiers of torchvision that are not ``done``; the largest takes 6 GB of memory."""
    from torchvision import models  # noqa: PLC0415  one library at a time

    for name in models.list_models(module=models):
        if f'"{name}"' in done:
            continue
        quick = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
        # Cutting normal numbers off takes minutes for the largest.
        with patch.object(nn.init, "trunc_normal_", _normal):
            module = models.get_model(name, num_classes=CLASSES, **quick)
        side = 224 if any(word in name for word in ("vit", "swin")) else 128
        with torch.no_grad():
            for part in module.modules():
                # A head of zeros would say the same of all images.
                if isinstance(part, nn.Linear) and not part.weight.any():
                    nn.init.normal_(part.weight)
        yield Candidate("torchvision", name, side, module, hub.torchvision_truth(module))


def timm_models(done: str) -> Iterator[Candidate]:
    """The configurations of timm that stand in the list."""
    import timm  # noqa: PLC0415  one library at a time

    for name in _NAMES.read_text().split():
        if f'"{name}"' in done:
            continue
        try:
            module = timm.create_model(name, num_classes=CLASSES)
        except Exception as error:  # noqa: BLE001  the list outlives a release
            print(f"skipped {name}: {error!r}", file=sys.stderr)
            continue
        size = sum(p.numel() for p in module.parameters())
        if size > _LARGEST:
            print(f"skipped {name}: {size} parameters", file=sys.stderr)
            continue
        config: Any = module.pretrained_cfg
        side = int(config["input_size"][1])
        module.eval()
        if not config.get("fixed_input_size") and side > _SMALL and _takes(module, _SMALL):
            side = _SMALL
        yield Candidate("timm", name, side, module, hub.timm_truth(module))


def _takes(module: nn.Module, side: int) -> bool:
    """Whether a model takes images of a side; halo attention wants a multiple of its block."""
    try:
        with torch.no_grad():
            module(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError):
        return False
    return True


def transformers_models(done: str) -> Iterator[Candidate]:
    """Architectures of transformers, built tiny from their configurations."""
    for name, side, module in hub.tiny_transformers(CLASSES):
        if f'"{name}"' not in done:
            yield Candidate("transformers", name, side, module, hub.transformers_truth(module))


def document(folder: Path) -> str:
    """The tables of what was found, by library and prior, in Markdown."""
    lines = []
    for path in sorted(folder.glob("*.jsonl")):
        rows = [
            Row(**found)
            for line in path.read_text().splitlines()
            if _is_row(found := json.loads(line))
        ]
        kinds: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            kind = row.kind + (", several" if "+" in row.shape else "")
            kinds.setdefault((kind, row.checked or "-"), []).append(row.model)
        lines += [f"### {path.stem}: {len(rows)} models", ""]
        lines += ["| Prior | The same as | Models |", "|---|---|---|"]
        for (kind, how), names in sorted(kinds.items()):
            if kind != "refused":
                lines.append(f"| {kind} | {how} | {len(names)}: {' '.join(sorted(names))} |")
        lines += [
            "",
            *(f"- Refused: `{row.model}`: {row.where}" for row in rows if row.kind == "refused"),
            "",
        ]
    return "\n".join(lines)


def _is_row(found: dict[str, Any]) -> bool:
    return "fault" not in found


LIBRARIES = {
    "torchvision": torchvision_models,
    "timm": timm_models,
    "transformers": transformers_models,
}


def main() -> None:
    """Run the libraries that are named, and write one JSON line a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("libraries", nargs="*", default=list(LIBRARIES))
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.write:
        print(document(given.write), end="")
        return
    given.out.mkdir(parents=True, exist_ok=True)
    for library in given.libraries:
        with ExitStack() as stack:
            path = given.out / f"{library}.jsonl"
            done = path.read_text() if path.exists() else ""
            file = stack.enter_context(path.open("a"))
            start = time.monotonic()
            for candidate in LIBRARIES[library](done):
                try:
                    found: Any = asdict(row_of(candidate))
                except Exception as error:  # noqa: BLE001  a fault is a row, not the end
                    found = {"library": library, "model": candidate.model, "fault": repr(error)}
                print(json.dumps(found), file=file, flush=True)
                took = time.monotonic() - start
                print(f"{took:6.0f} s {json.dumps(found)}", file=sys.stderr, flush=True)
                gc.collect()


if __name__ == "__main__":
    main()
