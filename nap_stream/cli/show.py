"""nap-stream show, erase: one row with its image and what decided it; images that are to go."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from nap_stream.cli.filters import key_of, sha256_of
from nap_stream.cli.options import (
    ConfigOption,
    EvidenceOption,
    KeySecretOption,
    LogOption,
    evidence_store,
    hashes_of,
    log_store,
    pairs,
    show_warnings,
    tell,
    tell_pruned,
)
from nap_stream.clock import SystemClock
from nap_stream.errors import (
    CalibrationError,
    ChainBrokenError,
    ConfigError,
    InputDataError,
    ScoredLogError,
)
from nap_stream.files import publish
from nap_stream.text import percent, printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nap_stream.calibration.calibration import Calibration
    from nap_stream.settings.schema import Settings
    from nap_stream.show import Row

EXIT_GONE = 1
DIGESTS_AN_EVENT = 10_000
PICTURE_COLUMNS = 48
"""Characters that the picture in a terminal is wide at most; each is two pixels high."""


def show(
    address: Annotated[
        str,
        typer.Argument(
            metavar="TOPIC/PARTITION/OFFSET[/INDEX] | ALERT",
            help="Which row; or an alert's id, or how it alone begins: the first of its examples.",
        ),
    ],
    config: ConfigOption = None,
    log: LogOption = None,
    evidence: EvidenceOption = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The calibration, instead of --config's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Write the picture to this file.")
    ] = None,
    nap_map: Annotated[
        Path | None,
        typer.Option(
            "--map",
            metavar="FILE.png",
            help="Write what the model of --config sees to this file, and over it where its "
            "strongest activations lie, of which NAP is made; for convolutional networks.",
        ),
    ] = None,
    rescore: Annotated[
        bool,
        typer.Option("--rescore", help="Run the model of --config again, and compare each value."),
    ] = False,
    output_format: Annotated[
        Literal["text", "json"], typer.Option("--format", "-f", help="json is for machines.")
    ] = "text",
) -> None:
    """Show one row: its picture, prediction, scores, neighbours, alerts, and all its fields.

    Each score is set against the images of the calibration, if that is the one which the row was
    judged by: at_most is the share of these whose score is no higher. The image is what was kept as
    evidence, else it is read from Kafka, by --config. It always has the SHA-256 that the row has.

    Exit code 1 where the image is asked for (--out, --map, --rescore) and gone.

    \b
    Examples:
      nap-stream show images/3/1412 --config monitor.yaml --out picture.png
      nap-stream show images/3/1412 --log scored-log --evidence evidence --calibration calibration
      nap-stream show images/3/1412 --config monitor.yaml --rescore --map where.png
      nap-stream show 3f2a90c1d2e4 --config monitor.yaml --out example.png
    """
    from nap_stream import show as of_row
    from nap_stream.scored_log.output import plain_value

    if config is None and (rescore or nap_map is not None):
        raise ConfigError("expected --config FILE, which names the model", "--rescore, --map")
    settings = _settings(config)
    store = log_store(config if log is None else None, log, out, nap_map)
    unread: list[ChainBrokenError] = []
    row, neighbours = of_row.find_row(store, address, unread)
    image = of_row.find_image(row, evidence_store(evidence, settings), settings)
    folder = calibration or (None if settings is None else settings.calibration)
    judged_by, notes = _judged_by(folder, row, is_named=calibration is not None)
    scores = of_row.scores_of(row, judged_by)
    defects: list[Any] = []
    shown = {
        "row": row,
        "image": {"found": image.data is not None, "where": image.where, "looked": image.looked},
        "alpha": None if judged_by is None else judged_by.alpha,
        "scores": scores,
        "neighbours": neighbours,
        "alerts": of_row.alerts_of(store, row, defects),
        "rescored": None,
        "notes": notes,
    }
    notes += _absent(scores, judged_by)
    notes += [f"an event of the log cannot be read: {defect}" for defect in defects]
    notes += [f"rows about it cannot be read: {error}" for error in unread]
    if settings is not None and folder and image.data and (rescore or nap_map is not None):
        chosen = settings.model_copy(update={"calibration": folder})
        shown["rescored"] = _again(row, image.data, chosen, nap_map, rescored=rescore)
    console = Console(highlight=False)
    in_colours = console.color_system is not None and output_format == "text"
    pixels = None
    if image.data is not None and (out is not None or in_colours):
        pixels = _pixels(image.data, settings, None if out else notes)
    if out is not None and pixels is not None:
        publish(out, _png(pixels))
    if output_format == "json":
        typer.echo(json.dumps(plain_value(shown), indent=2))
    else:
        _print(console, shown, pixels if in_colours else None)
    if image.data is None and (rescore or out is not None or nap_map is not None):
        sys.exit(EXIT_GONE)


def _settings(config: Path | None) -> "Settings | None":
    if config is None:
        return None
    from nap_stream.settings.load import load_uncalibrated_settings

    return load_uncalibrated_settings(config)


def _again(
    row: "Row", data: bytes, settings: "Settings", nap_map: Path | None, *, rescored: bool
) -> "list[Row] | None":
    """What the model makes of an image now, written to a file and compared as is asked for."""
    from nap_stream.model.load import LoadedModel, choose_device
    from nap_stream.monitor.worker import load_calibrated
    from nap_stream.show_again import nap_picture, rescore

    device = choose_device(settings.worker.num_gpus or 0)
    held, loaded, _ = load_calibrated(settings, device, settings.worker.torch_threads)
    if not isinstance(loaded, LoadedModel):
        raise ConfigError("the model runs elsewhere, and cannot be run here", "--config")
    if nap_map is not None:
        publish(nap_map, _png(nap_picture(data, loaded, settings.limits)))
    return rescore(row, data, settings.limits, loaded, held) if rescored else None


def erase(
    by: Annotated[str, typer.Option(metavar="NAME", help="Who erases; it is recorded.")],
    config: ConfigOption = None,
    log: LogOption = None,
    evidence: EvidenceOption = None,
    sha256: Annotated[
        list[str] | None, typer.Option(help="The image of this SHA-256; repeatable.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="The images of all rows of this key, as query writes it; repeatable."),
    ] = None,
    key_secret: KeySecretOption = None,
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")] = "",
) -> None:
    """Erase images that were kept as evidence. Rows stay, and their chain as it is.

    What is asked for, by whom and why, is written as an event of the log first, of the kind
    erasing, and then how many files there were, of the kind erased. An image goes whatever row it
    was kept for; one that comes again may be kept again. Kafka, what messages refer to, and the
    old versions in a bucket that keeps them are not touched.

    Exit code 1 where there was no file of what was asked for.

    \b
    Examples:
      nap-stream erase --config monitor.yaml --key person-17 --by "A. Auditor" --reason "request 8"
      nap-stream erase --log scored-log --evidence evidence --sha256 5f0c... --by "A. Auditor"
    """
    from nap_stream.scored_log.events import Event, EventKind, append_event, require_text
    from nap_stream.scored_log.evidence import erase_evidence
    from nap_stream.scored_log.history import MAX_BY, MAX_COMMENT
    from nap_stream.scored_log.index import IndexUse
    from nap_stream.scored_log.names import require_names
    from nap_stream.scored_log.query import Query, scan

    store = log_store(config if log is None else None, log)
    kept = evidence_store(evidence, _settings(config))
    if kept is None or not (sha256 or key):
        raise ConfigError("expected --evidence or evidence.root, and --sha256 or --key", "erase")
    require_text("by", by, MAX_BY)
    require_text("reason", reason, MAX_COMMENT, may_be_empty=True)
    digests = set(map(sha256_of, sha256 or ()))
    for name in key or ():
        own = key_of(name)
        query = Query(keys=(own,), hashes=hashes_of(config, key_secret, [own]))
        found = set[str]()
        for batch in scan(store, query, ["sha256"]):
            found |= set(batch.column(0).drop_null().to_pylist())
        tell_pruned(store)
        if not found:
            require_names(store, query, use=IndexUse(), tell=tell)
        digests |= found
    names, erased = sorted(digests), 0
    for start in range(0, len(names), DIGESTS_AN_EVENT):
        some = names[start : start + DIGESTS_AN_EVENT]
        now_ms = SystemClock().now_ms()
        data: dict[str, Any] = {"evidence": kept.root, "sha256": some, "reason": reason}
        event = Event(time_ms=now_ms, kind=EventKind.ERASING, by=by, data=data)
        # First, so that nothing can be gone without a word of it.
        asked = append_event(store, event).number
        files = erase_evidence(kept, set(some), now_ms)
        done = replace(event, kind=EventKind.ERASED, data={"asked": asked, "files": files})
        append_event(store, done, near=asked)
        erased += files
    if "://" in kept.root:
        typer.echo(
            "a bucket that keeps versions, or what is deleted, has them still: remove those there",
            err=True,
        )
    if not erased:
        typer.echo(f"nothing erased: {kept.root} holds none of the {len(names):,} images asked for")
        sys.exit(EXIT_GONE)
    typer.echo(f"{erased:,} files erased, of {len(names):,} images that were asked for")


def _judged_by(
    folder: Path | None, row: "Row", *, is_named: bool
) -> "tuple[Calibration | None, list[str]]":
    """The calibration in a folder, if a row was judged by it; else what is to be said of that.

    One that the user has named is to be there; that of the settings may be gone.
    """
    problem = "none is given"
    if folder is not None:
        from nap_stream.calibration.artifact import load_calibration

        try:
            held = load_calibration(folder)
        except (CalibrationError, ScoredLogError) as error:
            if is_named:
                raise
            problem = str(error)
        else:
            if held.fingerprint == row["calibration_fingerprint"]:
                return held, []
            was = row["calibration_fingerprint"]
            problem = f"{folder} is {held.fingerprint}, and this row was judged by {was}"
    return None, [f"scores are not set against a calibration: {problem}"]


def _absent(scores: "list[Row]", judged_by: "Calibration | None") -> list[str]:
    """What is to be said of scores of which the calibration has no values."""
    names = [score["score"] for score in scores if score["at_most"] is None]
    if judged_by is None or not names:
        return []
    which = "calibration" if judged_by.document.baseline is None else "baseline"
    return [f"not set against anything: the {which} holds no values of {', '.join(names)}"]


def _pixels(
    data: bytes, settings: "Settings | None", notes: list[str] | None
) -> "NDArray[np.uint8] | None":
    """The picture; where it cannot be decoded, ``notes`` says so, or it is raised."""
    from nap_stream.show_again import pixels_of

    try:
        return pixels_of(data, settings)
    except InputDataError as error:
        if notes is None:
            raise
        notes.append(str(error))
        return None


def _png(pixels: "NDArray[np.uint8]") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _print(console: Console, shown: "Row", pixels: "NDArray[np.uint8] | None") -> None:
    from nap_stream.scored_log.files import SCAN_SCHEMA
    from nap_stream.scored_log.output import plain_value

    row, image = shown["row"], shown["image"]
    place = f"{row['topic']}/{row['partition']}/{row['offset']}/{row['index']}"
    told = Text(printable(f"{place}  {_verdict(row, shown['alpha'])}"), style="bold")
    console.print(told, soft_wrap=True)
    if pixels is not None:
        console.print(half_blocks(pixels, min(PICTURE_COLUMNS, console.width)), end="")
    lines = [image["where"]] if image["found"] else ["not there; looked for in", *image["looked"]]
    for number, line in enumerate(lines):
        console.print(
            Text(("image  " if number == 0 else "       ") + printable(line)), soft_wrap=True
        )
    _print_table(console, "scores", shown["scores"])
    _print_table(console, "neighbours in the partition", shown["neighbours"], SCAN_SCHEMA)
    title = "alerts of the log's events that reach over this row"
    _print_table(console, title, shown["alerts"])
    if shown["rescored"] is not None:
        texts = [
            {name: value if name == "grown_by" else str(value) for name, value in one.items()}
            for one in shown["rescored"]
        ]
        _print_table(console, "scored again", texts)
    console.print("\nall fields", style="bold")
    fields = {name: plain_value(value) for name, value in row.items() if value is not None}
    said = (
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in fields.items()
    )
    console.print(pairs(said))
    show_warnings(shown["notes"], console)


def _verdict(row: "Row", alpha: float | None) -> str:
    if row["is_ood"] is None:
        return f"not scored: {row['status']}, {row['error']}"
    flagged = "flagged" if row["is_ood"] else "not flagged"
    at = "" if alpha is None else f", alpha {alpha:g}"
    p_value = f"p {row['ood_p_value']:.4g}{at}"
    return f"{row['class_name']}, {percent(row['confidence'])}  {flagged}: {p_value}"


def _print_table(
    console: Console, title: str, rows: "list[Row] | None", schema: Any = None
) -> None:
    import pyarrow as pa

    from nap_stream.scored_log.output import OutputFormat, write_batches

    console.print(f"\n{title}", style="bold")
    if not rows:
        recorded = "none" if rows is not None else "not recorded: no run had written of itself then"
        console.print(recorded)
        return
    table, held = pa.Table.from_pylist(rows, schema), io.BytesIO()
    width = console.width if console.is_terminal else None
    write_batches(table.schema, table.to_batches(), OutputFormat.TABLE, held, width=width)
    console.print(Text(held.getvalue().decode().rstrip("\n")), soft_wrap=True)


def half_blocks(pixels: "NDArray[np.uint8]", columns: int) -> Text:
    """A picture, (H, W, 3), in at most so many columns of characters, each two pixels high."""
    import numpy as np
    from PIL import Image

    height, width = pixels.shape[:2]
    columns = min(columns, width)
    rows = max(1, min(columns, round(columns * height / width / 2)))
    small = np.asarray(Image.fromarray(pixels).resize((columns, 2 * rows), Image.Resampling.BOX))
    text = Text(no_wrap=True, end="")
    for above, below in zip(small[::2], small[1::2], strict=True):
        for pair in zip(above.tolist(), below.tolist(), strict=True):
            upper, lower = (Color.from_rgb(*colour) for colour in pair)
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text
