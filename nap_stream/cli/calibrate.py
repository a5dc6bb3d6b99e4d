"""nap-stream calibrate, and nap-stream calibration, which shows what calibrate wrote."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nap_stream.cli.options import (
    BatchSizeOption,
    CacheOption,
    DeviceOption,
    ModelOption,
    ThreadsOption,
    choose_torch,
    pairs,
    progress_bars,
    require_can_make,
    show_warnings,
)
from nap_stream.core.tails import Sides
from nap_stream.errors import ConfigError
from nap_stream.text import printable

if TYPE_CHECKING:
    from nap_stream.calibration.calibration import Calibration
    from nap_stream.calibration.document import CalibrationDocument, ImageFacts
    from nap_stream.core.conformal import Group
    from nap_stream.core.labels import ClassSeen
    from nap_stream.core.selection import Selection
    from nap_stream.model.facts import Execution, Speeds

_GROUPS_SHOWN = 20


_OF_A_MODEL_HERE = ("cache", "device", "batch_size")


def calibrate(
    context: typer.Context,
    model: ModelOption,
    images: Annotated[
        Path,
        typer.Option(
            help="Held-out in-distribution images: a folder, or Parquet with `image`. With "
            "model.elsewhere the model's outputs for them: Parquet or Arrow."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write the calibration to.")],
    fit_images: Annotated[
        Path | None,
        typer.Option(
            help="In-distribution images to fit scores and the weight on, such as training "
            "images; without it a third of --images, which then does not calibrate."
        ),
    ] = None,
    alpha: Annotated[
        float,
        typer.Option(min=1e-6, max=0.5, help="Share of in-distribution images to be flagged."),
    ] = 0.05,
    method: Annotated[
        str | None,
        typer.Option(
            help="The score that flags: auto, nap, energy, mahalanobis, …, nap-energy, …, "
            "fisher-knn, …; without it scoring.method of the configuration."
        ),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Weight of the base score in a method nap-… or fisher-…; NAP has the rest. "
            "Without it the weight is chosen on pseudo-OOD images.",
        ),
    ] = None,
    sides: Annotated[
        Sides,
        typer.Option(
            help="Flag low scores, or those at either end; fisher methods look at both ends of "
            "NAP already."
        ),
    ] = Sides.ONE,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Hold alpha within each predicted class (Mondrian).")
    ] = False,
    cache: CacheOption = None,
    batch_size: BatchSizeOption = 32,
    device: DeviceOption = "cpu",
    torch_threads: ThreadsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a calibration in --out.")] = False,
) -> None:
    """Run the model over held-out in-distribution images and write what scores are compared with.

    The images must not be among those that the model was trained on.

    \b
    Example:
      nap-stream calibrate --model monitor.yaml --images held-out/ --out calibration/
    """
    console = Console(stderr=True)
    # The imports take seconds.
    with console.status("starting"):
        from nap_stream.calibration.artifact import require_free, write_calibration
        from nap_stream.calibration.cache import FeatureCache
        from nap_stream.calibration.elsewhere import calibrate_outputs
        from nap_stream.calibration.run import CalibrationRequest
        from nap_stream.calibration.run import calibrate as run_calibration
        from nap_stream.clock import SystemClock
        from nap_stream.core.conformal import Rule
        from nap_stream.process import configure_logging
        from nap_stream.settings.load import (
            load_drift_settings,
            load_model_settings,
            load_scoring_settings,
        )
        from nap_stream.settings.schema import LimitSettings

    configure_logging(for_people=console.is_terminal)
    require_free(out, force=force)
    # A new calibration is made beside its place, and then renamed.
    require_can_make(out.resolve().parent)
    request = CalibrationRequest(
        model=load_model_settings(model),
        scoring=load_scoring_settings(model, method=method),
        images=images,
        fit_images=fit_images,
        rule=Rule(alpha, sides, per_class),
        weight=weight,
        batch_size=batch_size,
        limits=LimitSettings(),
        drift=load_drift_settings(model),
    )
    sources = {name: context.get_parameter_source(name) for name in _OF_A_MODEL_HERE}
    given = [name for name, source in sources.items() if source and source.name != "DEFAULT"]
    if request.model.elsewhere is not None and given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(
            f"{options}: for a model that runs here",
            request.model.where,
            "Leave them out: outputs are read, and no model runs",
        )
    # Scores of outputs are computed with torch, too.
    torch_device = choose_torch(device, torch_threads)
    with progress_bars(console) as new_bar:
        calibration = (
            calibrate_outputs(
                request, clock=SystemClock(), progress=new_bar("calibrating on outputs", "steps")
            )
            if request.model.elsewhere is not None
            else run_calibration(
                request,
                device=torch_device,
                clock=SystemClock(),
                cache=None if cache is None else FeatureCache(cache),
                loading_progress=new_bar("loading the model", "model"),
                measuring_progress=new_bar("measuring speed", "ways to compute"),
                progress=new_bar("calibrating", "images"),
                trying_progress=new_bar("low accuracy: trying other preprocessings", "images"),
            )
        )
    write_calibration(calibration, out, force=force)
    show_calibration(calibration, out, Console())


def build_calibration_app() -> typer.Typer:
    """The commands about calibrations that are there."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
    app.command()(show)

    @app.callback()
    def _root() -> None:
        """Look at a calibration."""

    return app


def show(
    folder: Annotated[Path, typer.Argument(help="The folder that `calibrate` wrote.")],
    png: Annotated[
        Path | None,
        typer.Option(
            help="Draw the scores, the threshold, how the weights were chosen and what faults are "
            "seen to this file."
        ),
    ] = None,
) -> None:
    """Show what a calibration holds, for people; its JSON is for machines.

    \b
    Example:
      nap-stream calibration show calibration/ --png calibration.png
    """
    from nap_stream.calibration.artifact import load_calibration

    calibration = load_calibration(folder)
    show_calibration(calibration, folder, Console())
    if png is not None:
        from nap_stream.evaluation.output import plot_calibration

        plot_calibration(calibration, png)
        Console().print(f"drawn to {png}", markup=False)


def show_calibration(calibration: "Calibration", folder: Path, console: Console) -> None:
    """What a calibration came to: sizes, method, weight, threshold, flag rate, fingerprints."""
    console.print(pairs(_rows(calibration, folder)))
    if calibration.document.worst_classes:
        console.print(_worst(calibration.document.worst_classes))
    if calibration.document.speeds is not None:
        console.print(_speeds(calibration.document.speeds, calibration.document.execution))
    if calibration.document.faults:
        console.print(_faults(calibration.document))
    show_warnings(calibration.document.warnings, console)


def _worst(classes: "tuple[ClassSeen, ...]") -> Table:
    """The classes that are predicted worst."""
    table = Table("class", "images", "right", "mostly taken for", box=None, pad_edge=False)
    table.title, table.title_justify = "\nThe worst classes, by their labels", "left"
    for column in table.columns[1:3]:
        column.justify = "right"
    for seen in classes:
        taken = f"{printable(seen.taken_for or '')} ({seen.taken / seen.images:.0%})"
        table.add_row(
            Text(printable(seen.name)),
            f"{seen.images:,}",
            f"{seen.right / seen.images:.0%}",
            Text(taken if seen.taken_for else ""),
        )
    return table


def _faults(document: "CalibrationDocument") -> Table:
    """What the detector sees of faulty cameras, the most visible first."""
    from nap_stream.calibration.document import most_visible_first

    table = Table("fault", "flagged", "alarm after", box=None, pad_edge=False, title_justify="left")
    table.title = f"\nWhat it sees, of {document.faults[0].images} images each"
    table.columns[1].justify = "right"
    for seen in most_visible_first(document.faults):
        table.add_row(seen.fault, f"{seen.flagged:.0%}", seen.alarm)
    return table


def _speeds(speeds: "Speeds", chosen: "Execution") -> Table:
    """What was measured to choose how the model computes."""
    table = Table(
        "computed in",
        "images/s",
        "same class",
        "largest change of p",
        "",
        box=None,
        pad_edge=False,
        title_justify="left",
    )
    table.title = (
        f"\nHow fast the model is on {speeds.device}, {speeds.images} images in batches of "
        f"{speeds.batch_size}, torch threads: {speeds.torch_threads}"
    )
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in speeds.rows:
        note = "taken" if row.execution == chosen else ""
        if row.images_per_s is None or row.agreement is None:
            table.add_row(str(row.execution), "", "", "", Text(printable(row.problem)))
            continue
        change = "" if row.p_value_change is None else f"{row.p_value_change:.4f}"
        speed = f"{row.images_per_s:,.1f}"
        table.add_row(str(row.execution), speed, f"{row.agreement:.1%}", change, note)
    return table


def _rows(calibration: "Calibration", folder: Path) -> Iterator[tuple[str, str]]:
    document = calibration.document
    yield "images", _images(document.images)
    if document.fit_images is not None:
        yield "fitted on", _images(document.fit_images)
    yield "mean confidence", f"{document.mean_confidence:.3f}"
    if document.accuracy is not None:
        yield "accuracy", f"{document.accuracy:.3f} of {document.images.scored:,} labelled images"
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
    yield "computed in", str(document.execution)
    facts = calibration.facts.baseline
    if document.baseline is not None and facts is not None:
        from nap_stream.baselines.report import rows_of

        yield from rows_of(document.baseline, facts.blocks)
    yield "model", f"{document.model.fingerprint[:16]}  {document.model.factory}"
    yield "calibration", calibration.fingerprint[:16]
    yield "folder", str(folder)


def _images(facts: "ImageFacts") -> str:
    place = f" of {facts.source}" if facts.source is not None else ", a share of the others"
    warned = f", {facts.warned:,} with a warning of the decoder" if facts.warned else ""
    return f"{facts.scored:,} scored{warned}, {facts.undecodable:,} undecodable{place}"


def _selection(selection: "Selection") -> Iterator[tuple[str, str]]:
    weights = sorted(selection.weights.items(), key=lambda item: -item[1])
    yield "weights", ", ".join(f"{name} {weight:.2f}" for name, weight in weights)
    if not selection.is_chosen:
        yield "chosen", "not at all: the weights are equal, for lack of images to choose them on"
        yield from (("left out", f"{name}: {why}") for name, why in selection.left_out.items())
        return
    means = sorted(selection.means.items(), key=lambda item: -item[1])
    alone = ", ".join(f"{name} {mean * 100:.1f}" for name, mean in means)
    on = f"{selection.pseudo_images} images x {len(selection.transforms)} pseudo-OOD transforms"
    yield "chosen", f"on {on}: mean AUROC {selection.mean * 100:.1f} %; alone {alone}"
    for name, why in selection.left_out.items():
        yield "left out", f"{name}: {why}"


def _weight(document: "CalibrationDocument") -> Iterator[tuple[str, str]]:
    if document.selection is not None:
        yield from _selection(document.selection)
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
