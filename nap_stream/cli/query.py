"""nap-stream query, sql: the commands that ask the scored log."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from nap_stream.cli.filters import (
    day_span_ms,
    fingerprints,
    groups_of,
    header_of,
    key_of,
    offsets_of,
    sha256_of,
)
from nap_stream.cli.options import (
    ConfigOption,
    KeySecretOption,
    LogOption,
    SinceOption,
    TopicOption,
    UntilOption,
    hashes_of,
    log_store,
    tell,
    tell_pruned,
)
from nap_stream.clock import SystemClock
from nap_stream.errors import ChainBrokenError, ConfigError
from nap_stream.records import Status
from nap_stream.text import printable, rfc3339

if TYPE_CHECKING:
    import pyarrow as pa

    from nap_stream.scored_log.counting import GroupBy
    from nap_stream.scored_log.index import IndexUse
    from nap_stream.scored_log.query import Query
    from nap_stream.scored_log.stores import SegmentStore

EXIT_UNREAD = 3
DEFAULT_TABLE_ROWS = 50
DEFAULT_SQL_ROWS = 100_000
MOST_LIMIT = 10**12
MOST_MIB = 2**30
SHOWN_GAPS = 20

# The values of OutputFormat, which stands beside pyarrow and would load it for --help.
RowFormat = Literal["table", "json", "csv", "parquet"]
PartitionOption = Annotated[
    list[int] | None, typer.Option(help="Only this partition; may be repeated.")
]
DayOption = Annotated[
    str | None, typer.Option(metavar="DATE", help="Only this day of event time, UTC.")
]
FormatOption = Annotated[
    RowFormat,
    typer.Option(
        "--format",
        "-f",
        help="In CSV a text that begins with = + - @, a tab, a line break or an apostrophe gets an "
        "apostrophe before it, so that no spreadsheet takes it for a formula; an empty key is "
        "base64: and null is nothing.",
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="A file instead of standard output.")
]


def query(
    config: ConfigOption = None,
    log: LogOption = None,
    topic: TopicOption = None,
    partition: PartitionOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    day: DayOption = None,
    offset: Annotated[
        str | None, typer.Option(metavar="N[-M]", help="Only this offset, or these.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="Only this message key, as query writes it; repeatable."),
    ] = None,
    key_secret: KeySecretOption = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]", help="Only with this header, or one of this value; repeatable."
        ),
    ] = None,
    sha256: Annotated[
        list[str] | None, typer.Option(help="Only the image of this SHA-256; repeatable.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Only by this model: its fingerprint, or how it begins; repeatable."),
    ] = None,
    calibration: Annotated[
        list[str] | None, typer.Option(help="Only by this calibration, likewise; repeatable.")
    ] = None,
    class_name: Annotated[
        list[str] | None,
        typer.Option("--class", help="Only this predicted class, by name or id; repeatable."),
    ] = None,
    ood: Annotated[
        bool | None, typer.Option("--ood/--in-distribution", help="Only flagged, or unflagged.")
    ] = None,
    min_p_value: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    max_p_value: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    status: Annotated[
        list[Status] | None, typer.Option(help="Only rows with this status; repeatable.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help="Count rows and give the OOD fraction with Wilson's interval of 95 %, as if rows "
            "were independent, by hour, day, key, class, status, model, calibration or partition, "
            "or by two of them. Hours and days without rows are shown, and named.",
        ),
    ] = None,
    sort: Annotated[
        Literal["p-value"] | None, typer.Option(help="The most anomalous rows first.")
    ] = None,
    output_format: FormatOption = "table",
    output: OutputOption = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_LIMIT,
            help=f"At most so many rows, or counts; a table shows {DEFAULT_TABLE_ROWS} rows.",
        ),
    ] = None,
    no_index: Annotated[
        bool,
        typer.Option(
            "--no-index",
            help="Rest on rows alone. Else what compaction noted of files is used, and told, which "
            "verify --deep compares with the rows. --export never uses it.",
        ),
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write all rows that pass, as Parquet, and a signed manifest, to a new folder.",
        ),
    ] = None,
    sign_with: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The private key that signs --export."),
    ] = None,
) -> None:
    """Show rows of the scored log, or count them.

    A row passes that meets all options. A name that the log does not have is an error. No answer
    rests on the statistics in Parquet files, which verify --deep alone proves; where one rests on
    the index of the log, it says so.

    Exit code 3 where a file could not be read: it is named, and the answer is without its rows.

    \b
    Examples:
      nap-stream query --log scored-log --since 1h --ood
      nap-stream query --log scored-log --key camera-7 --since 2026-05-01 --until 2026-06-01 --ood
      nap-stream query --log scored-log --by day,class --format csv
      nap-stream query --log scored-log --since 7d --sort p-value --limit 10
      nap-stream query --log scored-log --day 2026-05-31 --export may-31 --sign-with signing.key
    """
    from nap_stream.scored_log.index import IndexUse
    from nap_stream.scored_log.query import Query, require_partitions

    store = log_store(config, log, output, export)
    if (min_p_value or 0) > (1 if max_p_value is None else max_p_value):
        raise ConfigError(
            f"{min_p_value:g} is above {max_p_value:g}", "--min-p-value, --max-p-value"
        )
    since_ms, until_ms = day_span_ms(since, until, day)
    keys, headers = tuple(map(key_of, key or ())), tuple(map(header_of, header or ()))
    values = [*keys, *(value for _, value in headers if value is not None)]
    filters = Query(
        topic=topic,
        partitions=tuple(partition or ()),
        since_ms=since_ms,
        until_ms=until_ms,
        classes=tuple(class_name or ()),
        is_ood=ood,
        min_p_value=min_p_value,
        max_p_value=max_p_value,
        statuses=tuple(status or ()),
        keys=keys,
        headers=headers,
        hashes=hashes_of(config, key_secret, values),
        offsets=None if offset is None else offsets_of(offset),
        sha256=tuple(map(sha256_of, sha256 or ())),
        models=fingerprints("--model", model),
        calibrations=fingerprints("--calibration", calibration),
    )
    require_partitions(store, filters)
    groups = None if by is None else groups_of(by)
    if sort is not None and (groups is not None or (limit is None and output_format != "table")):
        raise ConfigError("expected --limit and no --by", "--sort", "Give --limit 10, for instance")
    if export is not None or sign_with is not None:
        if (by, sort, limit, output, output_format) != (None, None, None, None, "table"):
            raise ConfigError(
                "it writes all rows, as Parquet",
                "--export",
                "Leave out --by, --sort, --limit, --format and --output",
            )
        _export(store, filters, export, sign_with)
        return
    use = None if no_index else IndexUse()
    several = (filters.classes, filters.keys, filters.models, filters.calibrations)
    unread: list[ChainBrokenError] = []
    if any(len(names) > 1 for names in several):
        unread += _require_names(store, filters, use)
    if limit is None and output_format == "table" and groups is None:
        limit = DEFAULT_TABLE_ROWS
    if groups is None:
        schema, batches = _rows(store, filters, limit if sort else None, unread, use)
    else:
        counts = _counts(store, filters, groups, unread, use)
        schema, batches = counts.schema, iter(counts.to_batches())
    write_rows(schema, batches, output_format, output, limit)
    _tell_index(use)
    _tell_query_pruned(store, filters)
    _tell_unread(unread)


def sql(
    statement: Annotated[str, typer.Argument(metavar="SELECT", help="One SELECT, for DuckDB.")],
    config: ConfigOption = None,
    log: LogOption = None,
    topic: TopicOption = None,
    partition: PartitionOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    day: DayOption = None,
    output_format: FormatOption = "table",
    output: OutputOption = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_LIMIT,
            help=f"At most so many rows; a table shows {DEFAULT_TABLE_ROWS}, "
            f"other formats {DEFAULT_SQL_ROWS}.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="Give up after so many seconds.")
    ] = 300,
    memory: Annotated[
        int,
        typer.Option(
            min=64,
            max=MOST_MIB,
            help="MiB of memory for DuckDB's tables; a single value, such as a list of a million "
            "names, may take more. It writes no files.",
        ),
    ] = 4096,
) -> None:
    """Ask the scored log in SQL: the view is named records, its columns are those of a row.

    Only the log is read, file by file as its chains say, and nothing written: no other file, no
    network, extension or setting can be reached. --topic, --partition, --day, --since and --until
    choose files first: what the SELECT itself asks of them does not, and all files are read.

    Exit code 3 where a file could not be read: it is named, and the answer is without its rows.

    \b
    Example:
      nap-stream sql --log scored-log "select class_name, avg(nap) from records group by all"
    """
    from nap_stream.scored_log.query import Query, require_partitions
    from nap_stream.scored_log.sql import run_sql

    store = log_store(config, log, output)
    since_ms, until_ms = day_span_ms(since, until, day)
    filters = Query(
        topic=topic, partitions=tuple(partition or ()), since_ms=since_ms, until_ms=until_ms
    )
    require_partitions(store, filters)
    unread: list[ChainBrokenError] = []
    if limit is None:
        limit = DEFAULT_TABLE_ROWS if output_format == "table" else DEFAULT_SQL_ROWS
    found = run_sql(
        store,
        statement,
        filters,
        limit=limit,
        seconds=timeout,
        memory_bytes=memory * 2**20,
        unread=unread,
    )
    try:
        write_rows(found.schema, iter(found.to_batches()), output_format, output, limit)
    except (OverflowError, ValueError) as error:
        # Arrow holds times that Python does not.
        problem = f"a value of the answer cannot be written: {error}"
        raise ConfigError(problem, "the SQL", "Cast it to VARCHAR, or choose other rows") from error
    if found.num_rows > limit and output_format != "table":
        typer.echo(f"Only the first {limit:,} rows; there are more: give --limit.", err=True)
    _tell_query_pruned(store, filters)
    _tell_unread(unread)


def _rows(
    store: "SegmentStore",
    filters: "Query",
    most: int | None,
    unread: list[ChainBrokenError],
    use: "IndexUse | None",
) -> "tuple[pa.Schema, Iterator[pa.RecordBatch]]":
    """All rows in the log's order, or the ``most`` anomalous ones."""
    from nap_stream.scored_log.files import SCAN_SCHEMA
    from nap_stream.scored_log.query import most_anomalous, scan

    batches = (
        scan(store, filters, unread=unread, use=use)
        if most is None
        else iter(most_anomalous(store, filters, most, unread=unread, use=use).to_batches())
    )
    first = next(batches, None)
    if first is None:
        _tell_empty(store, filters, unread, use)
        return SCAN_SCHEMA, iter(())
    return SCAN_SCHEMA, itertools.chain([first], batches)


def _counts(
    store: "SegmentStore",
    filters: "Query",
    groups: "list[GroupBy]",
    unread: list[ChainBrokenError],
    use: "IndexUse | None",
) -> "pa.Table":
    from nap_stream.core.hidden_keys import told_apart
    from nap_stream.scored_log.counting import GroupBy, aggregate, empty_spans

    now_ms = SystemClock().now_ms()
    counts = aggregate(store, filters, *groups, now_ms=now_ms, unread=unread, use=use)
    if not counts.num_rows:
        _tell_empty(store, filters, unread, use)
    if GroupBy.KEY in groups and (words := told_apart(counts.column("key").to_pylist())):
        tell(words)
    for span in {GroupBy.HOUR, GroupBy.DAY} & set(groups):
        gaps = empty_spans(counts, span)
        for start, end in gaps[:SHOWN_GAPS]:
            typer.echo(f"no rows  from {rfc3339(start)} to {rfc3339(end)}", err=True)
        if len(gaps) > SHOWN_GAPS:
            typer.echo(f"no rows  in {len(gaps) - SHOWN_GAPS} more stretches", err=True)
    return counts


def _tell_empty(
    store: "SegmentStore",
    filters: "Query",
    unread: list[ChainBrokenError],
    use: "IndexUse | None",
) -> None:
    unread += _require_names(store, filters, use)
    _tell_no_row(unread)
    if filters.offsets is not None:
        why = "nap-stream show TOPIC/PARTITION/OFFSET tells why an offset has no row"
        typer.echo(f"{why}: a declared gap, for instance.", err=True)


def _tell_no_row(unread: Sequence[ChainBrokenError]) -> None:
    typer.echo(f"No row matches{' in what could be read' if unread else ''}.", err=True)


def _require_names(
    store: "SegmentStore", filters: "Query", use: "IndexUse | None"
) -> list[ChainBrokenError]:
    """Refuse names that the log does not have, and say first what was pruned of it.

    Returns:
        What could not be read, where a name may be in it.
    """
    from nap_stream.scored_log.index import IndexUse
    from nap_stream.scored_log.names import require_names

    own = None if use is None else IndexUse()
    try:
        return require_names(store, filters, use=own, tell=tell)
    except ConfigError:
        _tell_query_pruned(store, filters)
        raise


def _tell_query_pruned(store: "SegmentStore", filters: "Query") -> None:
    span = (filters.topic, filters.since_ms, filters.until_ms)
    tell_pruned(store, *span, chains=filters.partitions, offsets=filters.offsets)


def write_rows(
    schema: "pa.Schema",
    batches: "Iterable[pa.RecordBatch]",
    output_format: RowFormat,
    output: Path | None,
    limit: int | None,
) -> None:
    """Write rows as --format and --output say.

    Raises:
        ConfigError: The file cannot be written, or Parquet is asked for in a terminal.
    """
    from nap_stream.scored_log.output import OutputFormat, write_batches

    shape = OutputFormat(output_format)
    if shape is OutputFormat.PARQUET and output is None and sys.stdout.isatty():
        raise ConfigError("Parquet is not text", "--format parquet", "Give --output FILE")
    with _opened(output) as stream:
        write_batches(schema, batches, shape, stream, limit=limit)


def _export(store: "SegmentStore", filters: "Query", folder: Path | None, key: Path | None) -> None:
    from nap_stream import __version__
    from nap_stream.scored_log.proof.export import write_export
    from nap_stream.scored_log.proof.note import read_signer

    if folder is None or key is None:
        raise ConfigError("expected --export DIR and --sign-with FILE")
    signer = read_signer(key, "--sign-with")
    unread = _require_names(store, filters, None)
    now_ms = SystemClock().now_ms()
    manifest = write_export(store, filters, folder, signer, version=__version__, now_ms=now_ms)
    unread += [ChainBrokenError(said, file) for file, said in manifest.unread.items()]
    if not manifest.rows:
        _tell_no_row(unread)
    typer.echo(printable(f"{folder}: {manifest.rows:,} rows, signed by {signer.public}"))
    _tell_query_pruned(store, filters)
    _tell_unread(unread)


def _tell_index(use: "IndexUse | None") -> None:
    """Say what of the answer rests on what nothing but verify --deep compares with the rows."""
    if use is not None and use.files:
        typer.echo(
            f"{use.files:,} files were listed by the index: {use.counted:,} of them were counted "
            f"by it, {use.passed_over:,} passed over. verify --deep compares it with the rows; "
            "--no-index does without.",
            err=True,
        )


def _tell_unread(unread: Sequence[ChainBrokenError]) -> None:
    """Name the files whose rows are not in the answer, and end with a code that says so."""
    told = {error.where: error.problem for error in unread}
    for where, problem in told.items():
        typer.echo(printable(f"not read  {where}: {problem}"), err=True)
    if told:
        typer.echo(f"The answer is without the rows of {len(told)} files.", err=True)
        sys.exit(EXIT_UNREAD)


@contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or the file."""
    if output is None:
        yield sys.stdout.buffer
        return
    try:
        with output.open("wb") as stream:
            yield stream
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", f"--output {output}") from error
