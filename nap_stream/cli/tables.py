"""Short tables for people."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nap_stream.text import printable

if TYPE_CHECKING:
    from nap_stream.calibration.calibration import Calibration, CalibrationDocument, ImageFacts
    from nap_stream.core.conformal import Group

_GROUPS_SHOWN = 20


def show_calibration(calibration: "Calibration", folder: Path, console: Console) -> None:
    """What a calibration came to: sizes, method, weight, threshold, flag rate, fingerprints."""
    table = Table(show_header=False, show_edge=False, pad_edge=False, box=None)
    for name, value in _rows(calibration, folder):
        table.add_row(Text(name, style="bold"), Text(printable(value), overflow="fold"))
    console.print(table)
    show_warnings(calibration.document.warnings, console)


def show_warnings(warnings: Iterable[str], console: Console) -> None:
    """Sentences for people, one a line."""
    for warning in warnings:
        console.print(Text(f"warning: {printable(warning)}", style="yellow"), soft_wrap=True)


def _rows(calibration: "Calibration", folder: Path) -> Iterator[tuple[str, str]]:
    document = calibration.document
    yield "images", _images(document.images)
    if document.fit_images is not None:
        yield "fitted on", _images(document.fit_images)
    yield "mean confidence", f"{document.mean_confidence:.3f}"
    if document.accuracy is not None:
        yield "accuracy", f"{document.accuracy:.3f}"
    yield "feature map", str(document.model.feature_site)
    yield "scores", ", ".join(("nap", *document.scores))
    yield "method", document.method
    yield from _weight(document)
    rule = document.rule
    per_class = ", per predicted class" if rule.per_class else ""
    yield "rule", f"p-value at most {rule.alpha:g}, {rule.sides}-sided{per_class}"
    for group in document.groups[:_GROUPS_SHOWN]:
        yield _group_name(group, document), _group(group, document.flag_rate_confidence)
    if len(document.groups) > _GROUPS_SHOWN:
        yield "…", f"{len(document.groups) - _GROUPS_SHOWN} more classes"
    yield "model", f"{document.model.fingerprint[:16]}  {document.model.factory}"
    yield "calibration", calibration.fingerprint[:16]
    yield "folder", str(folder)


def _images(facts: "ImageFacts") -> str:
    place = f" of {facts.source}" if facts.source is not None else ", a share of the others"
    return f"{facts.scored:,} scored, {facts.undecodable:,} undecodable{place}"


def _weight(document: "CalibrationDocument") -> Iterator[tuple[str, str]]:
    if document.weight is None:
        return
    base = document.parsed_method.base
    yield "weight", f"{base} {document.weight:g}, NAP {1 - document.weight:g}"
    if document.location:
        yield "location", f"{document.location:.6g}, taken off {base} before it is weighed"
    search = document.weight_search
    if search is None:
        yield "weight chosen", "given"
        return
    where = (
        f"on {search.pseudo_images} images x {len(search.transforms)} pseudo-OOD transforms; "
        f"{search.interval[0]:g} to {search.interval[1]:g} over resampled transforms, "
        f"{search.near_best[0]:g} to {search.near_best[1]:g} within a point of the best AUROC"
    )
    yield "weight chosen", where


def _group_name(group: "Group", document: "CalibrationDocument") -> str:
    if group.class_id is None:
        return "threshold"
    return f"class {document.model.class_names[group.class_id]}"


def _group(group: "Group", confidence: float) -> str:
    low, high = group.flag_rate_interval(confidence)
    above = "" if group.upper is None else f" or above {group.upper:.6g}"
    return (
        f"flagged below {group.lower:.6g}{above}; m = {group.size:,}, true flag rate "
        f"{low:.4f} to {high:.4f} ({confidence:.0%})"
    )
