"""Google's and Microsoft's object stores, as far as emulators have them: one process each.

`python -m tests.support.clouds` builds both, as the first test that asks for one does:
fake-gcs-server is a Go module (a minute of CPU), Azurite an npm package (360 MB).
"""

import base64
import hashlib
import hmac
import http.client
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.ports import free_port
from tests.support.s3 import BUCKET, HOST
from tests.support.waiting import PATIENCE_S, wait_until

REQUIRE = "NAP_STREAM_REQUIRE_CLOUDS"
BUILD_S = 1_800.0
ACCOUNT = "napstream"
ACCOUNT_KEY = base64.b64encode(b"a-key-that-no-message-may-hold-0").decode()
TOKEN = "a-token-that-no-message-may-hold"
GCS_VERSION = "v1.56.1"
_GCS_MODULE = "github.com/fsouza/fake-gcs-server"
_GO_MOD = f"""\
module nap-stream/fake-gcs

go 1.26.0

require {_GCS_MODULE} {GCS_VERSION}
"""
_MAIN = """\
// fake-gcs-server takes writes of the XML interface by signed URLs alone, without their conditions.
// Here they become those of the JSON interface, whose conditions it holds. It knows no If-Match on
// GET either: the answer of the moment is compared.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

func main() {
	address, bucket := os.Args[1], os.Args[2]
	server, err := fakestorage.NewServerWithOptions(
		fakestorage.Options{NoListener: true, PublicHost: address})
	if err != nil {
		log.Fatal(err)
	}
	server.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: bucket})
	store := server.HTTPHandler()
	log.Fatal(http.ListenAndServe(address, http.HandlerFunc(
		func(answer http.ResponseWriter, request *http.Request) {
			request.Host = address // it would take a proxy's for a bucket
			isPut, match := request.Method == http.MethodPut, request.Header.Get("If-Match")
			if isPut {
				asJSONUpload(request)
			}
			found := httptest.NewRecorder()
			store.ServeHTTP(found, request)
			if isPut && found.Code == http.StatusOK {
				var object struct{ Etag string }
				json.Unmarshal(found.Body.Bytes(), &object)
				found.Header().Set("ETag", fmt.Sprintf("%q", object.Etag))
			}
			if match != "" && found.Code < 300 && found.Header().Get("ETag") != match {
				http.Error(answer, "", http.StatusPreconditionFailed)
				return
			}
			for name, values := range found.Header() {
				answer.Header()[name] = values
			}
			answer.WriteHeader(found.Code)
			answer.Write(found.Body.Bytes())
		})))
}

func asJSONUpload(request *http.Request) {
	bucket, name, _ := strings.Cut(strings.TrimPrefix(request.URL.Path, "/"), "/")
	query := url.Values{"uploadType": {"media"}, "name": {name}}
	if wanted := request.Header.Get("x-goog-if-generation-match"); wanted != "" {
		query.Set("ifGenerationMatch", wanted)
	}
	request.Method = http.MethodPost
	request.URL = &url.URL{
		Path: "/upload/storage/v1/b/" + bucket + "/o", RawQuery: query.Encode()}
}
"""
AZURITE_VERSION = "3.37.0"
_NPM = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
_AZURITE_SETTLED = "2026-11-29"
"""Packages that it needs are taken as they were that day."""
_AZURITE_MAIN = "node_modules/azurite/dist/src/blob/main.js"


class EmulatorNotThereError(Exception):
    """An emulator cannot be run here, and why."""


@dataclass(frozen=True, slots=True)
class Emulator:
    """A server that runs, with the bucket `BUCKET`."""

    scheme: str
    port: int

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def new_root(self) -> str:
        """The root of a log of its own."""
        return f"{self.scheme}://{BUCKET}/logs/{uuid4().hex}"

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """What the client reads; ``endpoint`` is that of a proxy, if any."""
        return environment(self.scheme, self.endpoint if endpoint is None else endpoint)


def environment(scheme: str, endpoint: str) -> dict[str, str]:
    """What the client of a cloud reads."""
    if scheme == "gs":
        return {"GOOGLE_BASE_URL": endpoint, "GOOGLE_BEARER_TOKEN": TOKEN}
    return {
        "AZURE_STORAGE_ENDPOINT": f"{endpoint}/{ACCOUNT}",
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
    }


def resolve_gcs() -> Path:
    """The program of fake-gcs-server, built the first time.

    Raises:
        EmulatorNotThereError: Go is missing, or the modules cannot be had.
    """
    digest = hashlib.sha256((_GO_MOD + _MAIN).encode()).hexdigest()[:8]
    build = ["go", "build", "-mod=mod", "-trimpath", "-ldflags=-s -w", "-o", "program", "."]
    return _made(
        f"fake-gcs-{GCS_VERSION}-{digest}",
        {"go.mod": _GO_MOD, "main.go": _MAIN},
        build,
        {"CGO_ENABLED": "0", "GOFLAGS": ""},
    )


def resolve_azurite() -> Path:
    """The folder of Azurite, installed the first time.

    Raises:
        EmulatorNotThereError: Node or npm is missing, or the packages cannot be had.
    """
    if shutil.which("node") is None:
        raise EmulatorNotThereError("node is not on the path (20 or newer)")
    install = [*_NPM, f"--before={_AZURITE_SETTLED}", f"azurite@{AZURITE_VERSION}"]
    return _made(f"azurite-{AZURITE_VERSION}", {}, install, {})


def _made(
    name: str, files: Mapping[str, str], command: Sequence[str], environ: Mapping[str, str]
) -> Path:
    """A folder of the cache in which a command has run once, with some files."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nap-stream"
    folder = cache / name
    if folder.is_dir():
        return folder
    if shutil.which(command[0]) is None:
        raise EmulatorNotThereError(f"{command[0]} is not on the path")
    partial = cache / f".{name}.{os.getpid()}"
    partial.mkdir(parents=True)
    for file, text in files.items():
        (partial / file).write_text(text)
    try:
        subprocess.run(
            command,
            check=True,
            cwd=partial,
            env={**os.environ, **environ},
            capture_output=True,
            timeout=BUILD_S,
        )
        partial.rename(folder)
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", b"") or b""
        if not folder.is_dir():  # another run may have been first
            raise EmulatorNotThereError(
                f"it cannot be made: {error} {said[-500:].decode(errors='replace')}"
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


@contextmanager
def running_gcs(folder: Path) -> Iterator[Emulator]:
    """fake-gcs-server on a free port, its objects in memory, for as long as the block runs."""
    server = Emulator("gs", free_port())
    command = [str(resolve_gcs() / "program"), f"{HOST}:{server.port}", BUCKET]
    with _running(
        command, folder, lambda: _answers(server, "GET", f"/{BUCKET}", {}) == http.HTTPStatus.OK
    ):
        yield server


@contextmanager
def running_azurite(folder: Path) -> Iterator[Emulator]:
    """Azurite's blobs on a free port, its files in a folder, for as long as the block runs."""
    server = Emulator("az", free_port())
    options = {"--blobHost": HOST, "--blobPort": str(server.port), "--location": str(folder)}
    command = ["node", str(resolve_azurite() / _AZURITE_MAIN), "--silent", "--disableTelemetry"]
    command += [part for option in options.items() for part in option]
    with _running(command, folder, lambda: _makes_container(server)):
        yield server


RUNNING = {"gcs": running_gcs, "azure": running_azurite}
EMULATED = [pytest.param(name, marks=pytest.mark.clouds) for name in RUNNING]
REAL_STORES = [pytest.param("seaweed", marks=pytest.mark.seaweed), *EMULATED]
EACH_STORE = ["s3", *REAL_STORES]
"""Parameters: the fixture `<name>_root` has a root there. "s3" is moto's server."""


@contextmanager
def _running(command: Sequence[str], folder: Path, is_ready: Callable[[], bool]) -> Iterator[None]:
    log = folder / "server.log"
    environ = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{ACCOUNT_KEY}"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=environ)

    def ready() -> bool:
        assert process.poll() is None, f"it has ended: {log.read_text()[-3000:]}"
        return is_ready()

    try:
        wait_until(ready, lambda: f"{command[0]}: {log.read_text()[-3000:]}")
        yield
    finally:
        process.kill()
        process.wait()


def _answers(server: Emulator, method: str, path: str, headers: Mapping[str, str]) -> int | None:
    connection = http.client.HTTPConnection(HOST, server.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers=dict(headers))
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def _makes_container(server: Emulator) -> bool:
    """Whether the container is there now; obstore makes none, so it is asked for by hand."""
    headers = {
        "x-ms-date": datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"),
        "x-ms-version": "2021-08-06",
    }
    place = f"/{ACCOUNT}/{BUCKET}"
    parts = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
    text = "\n".join([*parts, f"/{ACCOUNT}{place}", "restype:container"])
    key = base64.b64decode(ACCOUNT_KEY)
    signature = base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Length": "0"}
    answer = _answers(server, "PUT", f"{place}?restype=container", headers)
    # It is made also where the answer to whoever made it was lost.
    return answer in {http.HTTPStatus.CREATED, http.HTTPStatus.CONFLICT}


if __name__ == "__main__":
    try:
        for resolve in (resolve_gcs, resolve_azurite):
            sys.stdout.write(f"{resolve()}\n")
    except EmulatorNotThereError as error:
        sys.exit(str(error))
