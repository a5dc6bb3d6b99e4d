"""Making a calibration of a model that runs elsewhere: from its outputs, without images.

What images alone can give is not there: weights of scores that are chosen on transformed images
(the sum has equal ones), what is seen of faults of cameras, and speeds.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from nap_stream.calibration import checks
from nap_stream.calibration.calibration import Calibration
from nap_stream.calibration.document import ElsewhereFacts
from nap_stream.calibration.fit import (
    ALWAYS,
    FitPart,
    Fitted,
    Folds,
    fit,
    in_order,
    unfitted,
    with_equal_weights,
)
from nap_stream.calibration.read import Reading, ScoredImages
from nap_stream.calibration.run import (
    CalibrationRequest,
    FitFound,
    assemble,
    candidates,
    choose_method,
)
from nap_stream.clock import Clock, Progress
from nap_stream.core.methods import Method, parse_method
from nap_stream.core.score_specs import BaseScore, Head, TooFewImagesError, needs_fit
from nap_stream.core.selection import NoScoreError
from nap_stream.decode.arrow import BatchError, positions
from nap_stream.decode.outputs import COLUMNS, OutputShapes, check_columns, outputs_of, shapes_of
from nap_stream.errors import CalibrationError, InputDataError
from nap_stream.image_files import files_of
from nap_stream.model.elsewhere import (
    ElsewhereModel,
    are_of_head,
    describe_elsewhere,
    elsewhere_of,
    load_head,
)
from nap_stream.model.output import as_logits, wrong_kind
from nap_stream.settings.schema import OutputKind
from nap_stream.text import described, encodable

_ROWS_AT_ONCE = 256
_OTHER_COLUMNS = ("label", "name")


@dataclass(frozen=True, slots=True, eq=False)
class OutputReading:
    """The outputs of a file or folder: as a reading, their shapes, and the SHA-256 of each row."""

    reading: Reading
    shapes: OutputShapes
    sha256: tuple[str, ...]

    def only(self, rows: NDArray[np.bool_]) -> Reading:
        """Those of all rows that were given where the mask is true."""
        read = self.reading
        kept = np.flatnonzero(rows[read.positions])
        features = None if read.features is None else read.features[kept]
        return replace(
            read,
            names=tuple(read.names[row] for row in kept),
            labels=tuple(read.labels[row] for row in kept),
            positions=np.searchsorted(np.flatnonzero(rows), read.positions[kept]),
            logits=read.logits[kept],
            features=features,
            nap=read.nap[kept],
        )

    @property
    def given(self) -> int:
        """How many rows there were."""
        return len(self.reading) + self.reading.undecodable


def calibrate_outputs(
    request: CalibrationRequest, *, clock: Clock, progress: Progress | None = None
) -> Calibration:
    """Calibrate on the outputs of a model that runs elsewhere, for images that it has not seen.

    ``request.images`` and ``request.fit_images`` are files or folders of Arrow or Parquet with the
    columns of `nap_stream.decode.outputs`, and perhaps ``label`` and ``name``. ``progress`` is told
    how many steps are done.

    Raises:
        ConfigError: The weight is out of range, or the method has none.
        ModelError: The last linear layer cannot be read, or does not fit the outputs.
        InputDataError: There are no outputs, or they cannot be read.
        CalibrationError: Half of the rows or more cannot be used, fewer are left than the rule or
            a score needs, values are not finite or no logits, or the method needs images.
    """
    method, scoring = choose_method(request.scoring), request.scoring
    checks.require_weight(
        None if scoring.method is None else parse_method(scoring.method), request.weight
    )
    if method.has_weight and request.weight is None:
        raise CalibrationError(
            f"the weight of {method} is chosen on transformed images, and here are outputs alone",
            request.model.where,
            "Give it with --weight, or choose auto, which takes equal weights, or a single score",
        )
    told = progress or (lambda _done, _total: None)
    told(0, 3)
    kind = request.model.output_kind
    main = read_outputs_of(request.images, kind)
    own = None
    if request.fit_images is not None:
        own = read_outputs_of(request.fit_images, kind, main.shapes)
    told(1, 3)
    checks.require_enough(main.given, request.rule, request.images)
    head = load_head(elsewhere_of(request.model))
    model = describe_elsewhere(
        request.model,
        head,
        classes=main.reading.logits.shape[1],
        map_shape=main.shapes.map_shape,
        features=main.shapes.features,
    )
    model = replace(model, notes=(*model.notes, *_head_notes(main.reading, head, request)))
    fit_found, scored, copies = _fitted(request, method, model, main, own)
    told(2, 3)
    calibration = assemble(
        request,
        model,
        method,
        fit_found,
        scored,
        weights_fingerprint="unknown",
        copies=copies,
        created_ms=clock.now_ms(),
        elsewhere=ElsewhereFacts(features=main.shapes.features, are_means=main.shapes.are_means),
    )
    told(3, 3)
    return calibration


def _fitted(
    request: CalibrationRequest,
    method: Method,
    model: ElsewhereModel,
    main: OutputReading,
    own: OutputReading | None,
) -> tuple[FitFound, ScoredImages, int]:
    """What was fitted, the scores of the others, and how many of these were fitted on too."""
    scoring = request.scoring
    asked = in_order((*ALWAYS, *scoring.scores, *(() if method.selects else method.candidates)))
    checks.require_head(asked, model, request.model.origin)
    moves = method.needs_location and own is not None
    if not (moves or method.needs_reference or any(map(needs_fit, asked))):
        fitted = unfitted(asked, model, scoring.parameters())
        scored = ScoredImages.of(main.reading, fitted.base_scores)
        return FitFound(fitted, None, {}, {}), scored, 0
    source = request.images if request.fit_images is None else request.fit_images
    from_own = own or main
    part = FitPart.of_count(from_own.given, source, scoring.fit_limit, own=own is not None)
    if own is None:
        checks.require_enough(
            main.given - len(part), request.rule, request.images, fitted_on=len(part)
        )
    reading = from_own.only(part.rows)
    others = np.ones(main.given, np.bool_) if own is not None else ~part.rows
    copies = _copies(from_own, part.rows, main, others)
    if own is not None and copies:
        raise CalibrationError(
            f"{copies} of the outputs are also among those to fit on: what is fitted on cannot "
            "judge others",
            f"{request.images} and {source}",
            "Name other outputs to fit on, or none: then a third of these is fitted on",
        )
    names = in_order((*asked, *candidates(method, model, len(reading))))
    checks.require_fittable(names, (method,), part, scoring.knn_k, reading)
    try:
        fitted = fit(names, reading, Folds.choose(len(part)), model, scoring.parameters())
        selections = {}
        if method.selects:
            left_out = checks.left_out(method, model, len(reading))
            selections[method] = with_equal_weights(method, fitted, left_out)
            fitted = _only_chosen(fitted, selections[method].weights, names, request, model)
    except (TooFewImagesError, NoScoreError) as error:
        raise CalibrationError(
            f"the outputs to fit on do not do: {error}", str(source), "Give more, or other ones"
        ) from error
    found = FitFound(fitted, reading, {}, selections, limited=part.limited)
    return found, ScoredImages.of(main.only(others), fitted.base_scores), copies


def _only_chosen(
    fitted: Fitted,
    weights: dict[str, float],
    names: tuple[BaseScore, ...],
    request: CalibrationRequest,
    model: ElsewhereModel,
) -> Fitted:
    chosen = (name for name in names if name in weights)
    kept = in_order((*ALWAYS, *chosen, *request.scoring.scores))
    return fitted.only(kept, model, request.scoring.parameters())


def _copies(
    fitted_on: OutputReading,
    rows: NDArray[np.bool_],
    main: OutputReading,
    others: NDArray[np.bool_],
) -> int:
    def hashes(read: OutputReading, mask: NDArray[np.bool_]) -> list[str]:
        return [read.sha256[row] for row in np.flatnonzero(mask[read.reading.positions])]

    there = set(hashes(fitted_on, rows))
    return sum(one in there for one in hashes(main, others))


def _head_notes(reading: Reading, head: Head | None, request: CalibrationRequest) -> Iterator[str]:
    """Refuse a head that does not lead from the features to the logits; say where it does not.

    Of another layer nearly all rows differ. Of the right one in int8 some do, whose features are
    small beside the largest of all, by which int8 rounds.
    """
    kind = request.model.output_kind
    if head is None or reading.features is None or kind not in {None, "logits"}:
        return
    others = np.flatnonzero(~are_of_head(head, reading.features, reading.logits))
    if not len(others):
        return
    said = (
        f"features @ weight.T + bias is not the logits in {len(others)} of {len(reading)} rows, "
        f"first {reading.names[others[0]]}"
    )
    if 2 * len(others) >= len(reading):
        raise CalibrationError(
            said,
            f"model.elsewhere.head = {elsewhere_of(request.model).head}",
            "Give the layer that makes the logits, and as features what enters it; or leave it out",
        )
    yield f"{said}: a coarse precision does that to a few, several layers in one file to many"


def read_outputs_of(
    path: Path, kind: OutputKind | None, shapes: OutputShapes | None = None
) -> OutputReading:
    """Read all outputs of a file or folder; the first row says of what shapes they are.

    Raises:
        InputDataError: There are none, or they cannot be read.
        CalibrationError: Half of the rows or more cannot be used, or values are not finite or are
            no logits.
    """
    parts: list[Reading] = []
    sha256: list[str] = []
    given = 0
    for file, batch in _batches(path):
        try:
            positions(batch.schema, (*COLUMNS, *_OTHER_COLUMNS))
            shapes = shapes or shapes_of(batch)
            check_columns(batch.schema, shapes)
            outputs = outputs_of(batch, shapes)
        except BatchError as error:
            raise InputDataError(str(error), str(file), "docs/outputs.md has an example") from error
        names = _texts(batch, "name")
        labels = _texts(batch, "label")
        kept = outputs.rows.tolist()
        sha256 += outputs.sha256
        parts.append(
            Reading(
                tuple(names[row] or f"row {given + row}" for row in kept),
                tuple(labels[row] for row in kept),
                given + outputs.rows,
                as_logits(torch.from_numpy(outputs.logits), kind).numpy(),
                outputs.features,
                outputs.nap,
                len(outputs.problems),
                _first(outputs.problems, given),
            )
        )
        given += batch.num_rows
    if shapes is None:
        raise InputDataError("there are no rows", str(path), "Name the outputs of held-out images")
    if kind is None and shapes.widths == (1,):
        raise CalibrationError(
            "logits has one value a row, and one class alone tells nothing",
            str(path),
            "If it is the logit of the second of two classes, set model.output_kind: logits; if it "
            "went through a sigmoid, set model.output_kind: sigmoid. Name both in class_names",
        )
    reading = Reading.join(parts)
    _require_usable(reading, kind, path)
    return OutputReading(reading, shapes, tuple(sha256))


def _first(problems: dict[int, str], given: int) -> str:
    return "" if not problems else f"row {given + min(problems)}: {problems[min(problems)]}"


def _texts(batch: pa.RecordBatch, name: str) -> list[str | None]:
    if name not in batch.schema.names:
        return [None] * batch.num_rows
    values = batch.column(name).to_pylist()
    return [None if value is None else encodable(_text(value)) for value in values]


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _require_usable(reading: Reading, kind: OutputKind | None, path: Path) -> None:
    if reading.undecodable >= len(reading):
        raise CalibrationError(
            f"{reading.undecodable} of {reading.undecodable + len(reading)} rows cannot be used; "
            f"first {reading.first_problem}",
            str(path),
            "Write all rows as the first one is",
        )
    if reading.not_finite:
        raise CalibrationError(
            f"values are not finite in {len(reading.not_finite)} of {len(reading)} rows, first "
            f"{reading.not_finite[0]}",
            str(path),
            "Check the model where it runs",
        )
    facts = reading.outputs
    wrong = None if facts is None else wrong_kind(facts, kind)
    if wrong is not None:
        raise CalibrationError(wrong.problem, str(path), wrong.action)


def _batches(path: Path) -> Iterator[tuple[Path, pa.RecordBatch]]:
    """The rows of all files, in order of their paths, some at a time."""
    for file in files_of(path) if path.is_dir() else [path]:
        try:
            with ExitStack() as opened:
                for batch in _of_file(file, opened):
                    batch.validate(full=True)
                    if batch.num_rows:
                        yield file, batch
        except (pa.ArrowException, OSError) as error:
            raise InputDataError(
                f"the file cannot be read as Parquet or Arrow ({described(error)})",
                str(file),
                "Name a file, or a folder of files, of Parquet or of Arrow's IPC format",
            ) from error


def _of_file(file: Path, opened: ExitStack) -> Iterator[pa.RecordBatch]:
    source = opened.enter_context(pa.OSFile(str(file)))
    magic = source.read(6)
    source.seek(0)
    wanted = (*COLUMNS, *_OTHER_COLUMNS)
    if magic[:4] == b"PAR1":
        parquet = opened.enter_context(pq.ParquetFile(source))
        columns = [name for name in parquet.schema_arrow.names if name in wanted]
        yield from parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns)
    elif magic == b"ARROW1":
        reader = opened.enter_context(pa.ipc.open_file(source))
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        yield from opened.enter_context(pa.ipc.open_stream(source))
