"""Apicurio Registry, a real schema registry with Confluent's interface, in a process of its own."""

import base64
import json
import os
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.apache_kafka import JAVA_OPTIONS, KafkaNotThereError
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S, wait_until

VERSION = "3.0.9"  # later ones need Java 21
ARTIFACT = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"


def resolve_registry() -> Path:
    """The folder of Apicurio Registry, fetched with Maven the first time.

    Raises:
        KafkaNotThereError: Java or Maven is missing, or it cannot be had.
    """
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise KafkaNotThereError(f"{program} is not on the path")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nap-stream"
    folder = cache / f"apicurio-{VERSION}"
    if folder.is_dir():
        return folder
    partial = cache / f".apicurio-{VERSION}.{os.getpid()}"
    command = ["mvn", "--batch-mode", "--quiet", "dependency:copy", f"-Dartifact={ARTIFACT}"]
    try:
        subprocess.run(
            [*command, f"-DoutputDirectory={partial}"],
            check=True,
            capture_output=True,
            timeout=PATIENCE_S,
        )
        (packed,) = partial.glob("*.tar.gz")
        with tarfile.open(packed) as archive:
            archive.extractall(partial, filter="data")
        packed.unlink()
        partial.rename(folder)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if folder.is_dir():  # another run was first
            return folder
        raise KafkaNotThereError(f"Maven could not fetch {ARTIFACT}: {error}") from error
    return folder


@dataclass
class Registry:
    """A registry that runs; ``url`` is that of its interface like Confluent's."""

    url: str

    def register(
        self, subject: str, schema: str, kind: str = "AVRO", references: Sequence[Any] = ()
    ) -> int:
        """Register a schema; its id."""
        body: dict[str, Any] = {"schema": schema, "schemaType": kind}
        if references:
            body["references"] = list(references)
        request = urllib.request.Request(
            f"{self.url}/subjects/{subject}/versions",
            json.dumps(body).encode(),
            {"Content-Type": "application/vnd.schemaregistry.v1+json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return int(json.load(response)["id"])


@contextmanager
def running_registry(folder: Path, output: Path) -> Iterator[Registry]:
    """The registry of a folder, with nothing in it, gone afterwards."""
    port = free_port()
    environ = {"QUARKUS_HTTP_PORT": str(port), "QUARKUS_HTTP_HOST": "127.0.0.1"}
    (jar,) = folder.glob("*-runner.jar")
    with (
        (output / "registry.log").open("wb") as log,
        subprocess.Popen(
            ["java", *JAVA_OPTIONS, "-jar", jar],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, **environ},
        ) as process,
    ):
        registry = Registry(f"http://127.0.0.1:{port}/apis/ccompat/v7")
        try:
            wait_until(lambda: _answers(registry.url, process), "the schema registry")
            yield registry
        finally:
            process.kill()


def _answers(url: str, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, "the schema registry has ended"
    try:
        with urllib.request.urlopen(f"{url}/subjects", timeout=PATIENCE_S):
            return True
    except OSError:
        return False


def framed(number: int, data: bytes, indexes: bytes = b"") -> bytes:
    """A datum in the wire format; ``indexes`` are those of a Protobuf message."""
    return b"\0" + number.to_bytes(4, "big") + indexes + data


def basic(user: str, password: str) -> str:
    """The header of a user."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
