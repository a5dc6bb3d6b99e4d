"""nap-stream checkpoint-key, checkpoint: signing where the log's chains end; verify-export."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nap_stream.cli.options import ConfigOption, JsonReportOption, LogOption, log_store
from nap_stream.clock import SystemClock
from nap_stream.errors import ConfigError
from nap_stream.text import printable, rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nap_stream.scored_log.proof.export import VerifiedExport

KeyOption = Annotated[
    Path, typer.Option(metavar="FILE", help="The private key that signs, of checkpoint-key.")
]


def checkpoint_key(
    out: Annotated[Path, typer.Option(metavar="FILE", help="A file that is not there yet.")],
    name: Annotated[
        str,
        typer.Option(help="Of whom the key is, such as example.org/line-3: no spaces, no +."),
    ],
) -> None:
    """Make a key that signs checkpoints and exports, and print its public key.

    The file is for who signs alone. The printed line is for everybody: verify --checkpoints and
    verify-export take a file of such lines. To change the key, put a new one in the old one's place
    and add its line to that file: what the old key has signed stays proved.

    \b
    Example:
      nap-stream checkpoint-key --out signing.key --name example.org/line-3 >> keys.txt
    """
    from nap_stream.scored_log.proof.note import create_key

    typer.echo(str(create_key(out, name)))


def checkpoint(
    key: KeyOption,
    config: ConfigOption = None,
    log: LogOption = None,
) -> None:
    """Sign where all chains of the log end now, by hand, and write that into the log.

    A monitor does the same every log.checkpoints.every_s seconds. Exit code 1 where a chain could
    not be read, or has no longer what the key had signed of it, and so is not signed anew.

    \b
    Example:
      nap-stream checkpoint --log scored-log --key signing.key
    """
    from nap_stream.scored_log.proof.checkpoint import (
        changed_words,
        last_signed,
        take_checkpoint,
        write_checkpoint,
    )
    from nap_stream.scored_log.proof.note import read_signer

    store = log_store(config, log)
    signer = read_signer(key, "--key")
    before = last_signed(store, signer.public)
    taken = take_checkpoint(store, SystemClock().now_ms(), before)
    if not taken.heads and not taken.changed:
        unread = ", ".join(map(str, taken.unread))
        raise ConfigError(
            f"there is no chain to sign{f': {unread} cannot be read' if unread else ''}",
            store.root,
            "Name the folder of log.root",
        )
    signed, _ = write_checkpoint(store, taken, signer, before)
    path = signed.last[0] if signed.last else ""
    said = f"{len(taken.heads)} chains of the log {signed.log_id}, by {signer.public}"
    typer.echo(printable(f"{store.root}/{path}: {said}"))
    for partition in taken.unread:
        typer.echo(printable(f"not signed  {partition}: it cannot be read"), err=True)
    for head in taken.changed:
        typer.echo(printable(f"not signed  {head.partition}: {changed_words(head)}"), err=True)
    raise typer.Exit(1 if taken.unread or taken.changed else 0)


def verify_export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What query --export wrote.")],
    keys: Annotated[Path, typer.Option(metavar="KEYS", help="A file of public keys, one a line.")],
    as_json: JsonReportOption = False,
) -> None:
    """Check rows that were exported and signed, without the log and without a network.

    Exit code 0 where the folder holds what a given key has signed, else 1. 3 where it does, and
    the export was made without rows that could not be read.

    \b
    Example:
      nap-stream verify-export may-31 --keys keys.txt
    """
    from nap_stream.cli.query import EXIT_UNREAD
    from nap_stream.scored_log.proof.export import verify_export as verify
    from nap_stream.scored_log.proof.note import read_public_keys

    found = verify(folder, read_public_keys(keys, "--keys"))
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        for line in _export_words(found):
            typer.echo(printable(line))
    raise typer.Exit(EXIT_UNREAD if found.manifest.unread else 0)


def _export_words(found: "VerifiedExport") -> "Iterator[str]":
    manifest = found.manifest
    yield f"signed  by {', '.join(found.signers)} at {rfc3339(manifest.created_time_ms)}"
    for each in found.unknown:
        yield f"signed  by {each}, which no given key is; not counted"
    yield f"log     {manifest.log}"
    asked = ", ".join(f"{name}={value}" for name, value in manifest.filter.items())
    yield f"filter  {asked or 'none: all rows'}"
    counts = ", ".join(f"{count:,} {name}" for name, count in manifest.rows_by_status.items())
    yield f"rows    {manifest.rows:,}: {counts}"
    for chain in manifest.chains:
        where = f"{chain.topic}/{chain.partition}: [{chain.start_offset}, {chain.end_offset})"
        yield f"chain   {where} {chain.sha256}, {chain.rows:,} rows"
    for file, problem in manifest.unread.items():
        yield f"unread  {file}: {problem}"
    for words in manifest.pruned:
        yield f"pruned  {words}"
    yield "proved  these rows are what the signer exported, and nothing of them was changed"
    yield "not     that these are all that the filter gives, nor that the log was right: by the"
    yield "        signer's word. verify --checkpoints proves the log, whose chains ended so"
