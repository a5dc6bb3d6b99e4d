"""SeaweedFS: an S3 server that keeps its objects, built from its Go module, as one process.

`python -m tests.support.seaweedfs` builds it, once: that takes many minutes, so that tests do it
only where NAP_STREAM_REQUIRE_S3=1 says that they are to.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.support.ports import free_port
from tests.support.s3 import ACCESS_KEY_ID, BUCKET, HOST, SECRET_ACCESS_KEY, environment
from tests.support.waiting import wait_until

REQUIRE = "NAP_STREAM_REQUIRE_S3"
BUILD = "python -m tests.support.seaweedfs"
MODULE = "github.com/seaweedfs/seaweedfs"
VERSION = "v0.0.0-20261109003541-7506e5f91cd6"
BUILD_S = 3_600.0
SLOTS = 64
"""Volumes of 64 MiB at most; it makes several at once, and needs some for itself."""
_GO_MOD = f"""\
module nap-stream/weed

go 1.26.6

require {MODULE} {VERSION}

// As its own go.mod does, which counts for nobody else: the other one was deleted.
replace github.com/tyler-smith/go-bip39 => github.com/cosmos/go-bip39 v1.0.0
"""


class SeaweedNotThereError(Exception):
    """SeaweedFS cannot be run here, and why."""


@dataclass(frozen=True, slots=True)
class Seaweed:
    """A server that runs. Its bucket is `tests.support.s3.BUCKET`, its keys are those of there."""

    port: int

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """What the client reads; ``endpoint`` is that of a proxy, if any."""
        return environment(self.endpoint if endpoint is None else endpoint)

    def new_root(self) -> str:
        """The root of a log of its own."""
        return f"s3://{BUCKET}/logs/{uuid4().hex}"


def resolve_weed(*, build: bool) -> Path:
    """Its program, built the first time where it may be.

    Raises:
        SeaweedNotThereError: It is not built, or Go is missing, or the modules cannot be had.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nap-stream"
    program = cache / f"weed-{VERSION}"
    if program.is_file():
        return program
    if shutil.which("go") is None:
        raise SeaweedNotThereError("go is not on the path (1.26 or newer)")
    if not build:
        raise SeaweedNotThereError(f"it is not built: `{BUILD}` does it, in some 20 minutes")
    partial = cache / f".weed-{VERSION}.{os.getpid()}"
    partial.mkdir(parents=True)
    (partial / "go.mod").write_text(_GO_MOD)
    command = ["go", "build", "-mod=mod", "-trimpath", "-ldflags=-s -w", "-o", "weed"]
    environ = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": ""}
    try:
        subprocess.run(
            [*command, f"{MODULE}/weed"],
            check=True,
            cwd=partial,
            env=environ,
            stderr=subprocess.PIPE,
            timeout=BUILD_S,
        )
        (partial / "weed").rename(program)
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", b"") or b""
        raise SeaweedNotThereError(
            f"it cannot be built: {error} {said[-500:].decode(errors='replace')}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return program


@contextmanager
def running_seaweed(program: Path, folder: Path) -> Iterator[Seaweed]:
    """A server on free ports with its files in a folder, for as long as the block runs."""
    keys = {"accessKey": ACCESS_KEY_ID, "secretKey": SECRET_ACCESS_KEY}
    identity = {"name": "monitor", "credentials": [keys], "actions": ["Admin", "Read", "Write"]}
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    data = folder / "data"
    data.mkdir()
    port = free_port()
    ports = {"s3.port": port} | {
        f"{part}.port{kind}": free_port()
        for part in ("master", "volume", "filer", "s3")
        for kind in ("", ".grpc")
        if (part, kind) != ("s3", "")
    }
    options = {
        **ports,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.config": config,
        # Sockets of the machine as a whole would be others'.
        "s3.localSocket": folder / "s3.sock",
        "filer.localSocket": folder / "filer.sock",
        "dir": data,
        "ip": HOST,
        "volume.max": SLOTS,
        "volume.preStopSeconds": 0,
        "master.volumeSizeLimitMB": 64,
        "master.telemetry": "false",
    }
    command = [str(program), "server", "-s3", *(f"-{name}={v}" for name, v in options.items())]
    log = folder / "weed.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    try:
        server = Seaweed(port)
        wait_until(
            lambda: _takes_objects(process, server), lambda: f"SeaweedFS: {log.read_text()[-3000:]}"
        )
        yield server
    finally:
        process.kill()
        process.wait()


def _takes_objects(process: "subprocess.Popen[bytes]", server: Seaweed) -> bool:
    """Whether an object can be written, which makes the bucket, too."""
    assert process.poll() is None, "SeaweedFS has ended"
    store = S3Store(
        BUCKET,
        endpoint=server.endpoint,
        region="us-east-1",
        access_key_id=ACCESS_KEY_ID,
        secret_access_key=SECRET_ACCESS_KEY,
        client_options={"allow_http": True, "timeout": timedelta(seconds=5)},
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
    )
    try:
        obstore.put(store, "ready", b"")
    except BaseError:
        return False
    return True


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{resolve_weed(build=True)}\n")
    except SeaweedNotThereError as error:
        sys.exit(str(error))
