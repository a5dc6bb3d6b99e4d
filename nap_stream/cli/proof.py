"""nap-stream checkpoint-key, checkpoint: signing where the log's chains end."""

from pathlib import Path
from typing import Annotated

import typer

from nap_stream.cli.options import ConfigOption, LogOption, log_store
from nap_stream.clock import SystemClock
from nap_stream.errors import ConfigError
from nap_stream.text import printable

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
    """Make a key that signs checkpoints, and print its public key.

    The file is for who signs alone. The printed line is for everybody: verify --checkpoints
    takes a file of such lines. To change the key, put a new one in the old one's place
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
    not be read, and so is not in it.

    \b
    Example:
      nap-stream checkpoint --log scored-log --key signing.key
    """
    from nap_stream.scored_log.proof.checkpoint import take_checkpoint, write_checkpoint
    from nap_stream.scored_log.proof.note import read_signer

    store = log_store(config, log)
    signer = read_signer(key, "--key")
    taken = take_checkpoint(store, SystemClock().now_ms())
    if not taken.heads:
        unread = ", ".join(map(str, taken.unread))
        raise ConfigError(
            f"there is no chain to sign{f': {unread} cannot be read' if unread else ''}",
            store.root,
            "Name the folder of log.root",
        )
    path, _ = write_checkpoint(store, taken, signer)
    typer.echo(printable(f"{store.root}/{path}: {len(taken.heads)} chains, by {signer.public}"))
    for partition in taken.unread:
        typer.echo(printable(f"not signed  {partition}: it cannot be read"), err=True)
    raise typer.Exit(1 if taken.unread else 0)
