"""How tests are shared out to processes, and the brokers and the S3 server that they use.

`make test` and `make test-slow` share them out to a few processes. Each process has brokers, a Ray
cluster and a server of its own, started when the first test asks for one. So tests that share what
is slow to start form a group, which runs in one process, one after the other.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import settings

from nap_stream.demo.processes import embedded_broker
from tests.support.apache_kafka import ApacheKafka, KafkaNotThereError, resolve_jars
from tests.support.clouds import EACH_STORE, RUNNING, Emulator, EmulatorNotThereError
from tests.support.clouds import REQUIRE as REQUIRE_CLOUDS
from tests.support.leftovers import watch_over_this_process
from tests.support.ray_start import RAY_ENVIRON
from tests.support.s3 import BUCKET, FaultProxy, environment, fault_proxy, s3_server
from tests.support.schema_registry import Registry, resolve_registry, running_registry
from tests.support.seaweedfs import REQUIRE as REQUIRE_S3
from tests.support.seaweedfs import (
    Seaweed,
    SeaweedNotThereError,
    resolve_weed,
    running_seaweed,
)

if TYPE_CHECKING:
    import torch

REQUIRE_KAFKA = "NAP_STREAM_REQUIRE_KAFKA"
REQUIRE_GPU = "NAP_STREAM_REQUIRE_GPU"

# Two processes with a torch thread for each core would only wait for each other. PyTorch reads
# this when it is imported, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.update(RAY_ENVIRON)

# How long an example takes depends on what else the machine does. A test that looks for bytes that
# do harm asks for more examples.
settings.register_profile("nap-stream", deadline=None, max_examples=25)
settings.load_profile("nap-stream")


def pytest_configure() -> None:
    watch_over_this_process()


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Have processes that begin together import the tests from different ones on.

    On a clean checkout pytest rewrites the asserts of each module, which costs as much as all
    imports, and keeps what it has made of it: so each process finds most of it made by another.
    """
    worker: dict[str, Any] | None = getattr(session.config, "workerinput", None)
    if worker is None or session.config.args != session.config.getini("testpaths"):
        return
    number, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
    root = Path(__file__).parents[1]
    files = [
        file
        for file in sorted(root.glob("tests/**/test_*.py"))
        if not pytest_ignore_collect(file, session.config)
    ]
    first = number * len(files) // count
    for file in files[first:] + files[:first]:
        # What else is wrong with a file is reported when it is collected.
        with suppress(pytest.skip.Exception, Exception):
            import_module(".".join(file.relative_to(root).with_suffix("").parts))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where only slow tests run, no process imports the four of five files that have none."""
    is_test = collection_path.match("test_*.py")
    if is_test and config.option.markexpr == "slow" and "slow" not in collection_path.read_text():
        return True
    return None


LONGEST_ID = 120


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name what is megabytes by its length: ids go between processes in each report."""
    if isinstance(val, str | bytes) and len(val) > LONGEST_ID:
        return f"{argname} of {len(val)}"
    return None


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        group = _group(item)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))


STOPPING = frozenset({"test_stop", "test_stop_in_faults", "test_wedged"})
"""Slow files that wait for runs to stop: six of the thirteen slow tests that share Ray."""

SHARED_RAY = frozenset({"ray_head", "logical_gpus"})
"""Fixtures of a Ray that tests share; the others start their own, and need not wait for these."""

LONG = frozenset({"test_seeded_kills", "test_zombie"})
"""Slow files that keep a broker for as long as all the others on Kafka do."""


def _group(item: pytest.Item) -> str | None:
    is_slow = item.get_closest_marker("slow") is not None
    if item.get_closest_marker("ray"):
        if item.path.parent.name == "demo":
            return "demo"  # it starts Ray and its broker by itself
        if not is_slow:
            return "ray"
        if not SHARED_RAY & set(getattr(item, "fixturenames", ())):
            return "ray-alone"
        return "ray-stopping" if item.path.stem in STOPPING else "ray"
    if not item.get_closest_marker("kafka"):
        alone = (name for name in ("seaweed", "clouds") if item.get_closest_marker(name))
        return next(alone, None)
    return "kafka-long" if is_slow and item.path.stem in LONG else "kafka"


@pytest.fixture(scope="session")
def cuda() -> "torch.device":
    """The GPU; skips with the reason where torch sees none."""
    import torch  # noqa: PLC0415  it reads the number of threads above

    if not torch.cuda.is_available():
        reason = f"torch {torch.__version__} sees no GPU"
        if os.environ.get(REQUIRE_GPU) == "1":
            pytest.fail(f"{REQUIRE_GPU}=1, but {reason}")
        pytest.skip(reason)
    return torch.device("cuda")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> "torch.device":
    """Each device in turn."""
    import torch  # noqa: PLC0415  likewise

    if request.param == "cpu":
        return torch.device("cpu")
    found: torch.device = request.getfixturevalue("cuda")
    return found


@pytest.fixture(scope="session")
def embedded() -> Iterator[str]:
    """The address of the embedded broker."""
    with embedded_broker() as address:
        yield address


@pytest.fixture(scope="session")
def kafka_jars() -> Path:
    """Apache Kafka's jars; skips with the reason where they cannot be had."""
    try:
        return resolve_jars()
    except KafkaNotThereError as error:
        if os.environ.get(REQUIRE_KAFKA) == "1":
            pytest.fail(f"{REQUIRE_KAFKA}=1, but Apache Kafka cannot be run: {error}")
        pytest.skip(f"Apache Kafka cannot be run: {error}")


@pytest.fixture(scope="session")
def apache_kafka(
    kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApacheKafka]:
    """Apache Kafka, shared by all tests that leave it running."""
    folder = tmp_path_factory.mktemp("kafka")
    with ApacheKafka(kafka_jars, folder, keeps_classes=True) as kafka:
        yield kafka


@pytest.fixture
def own_kafka(kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """Apache Kafka for a test that stops or kills it."""
    with ApacheKafka(kafka_jars, tmp_path_factory.mktemp("own-kafka")) as kafka:
        yield kafka


@pytest.fixture(scope="session")
def schema_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Apicurio Registry; skips with the reason where it cannot be had."""
    try:
        folder = resolve_registry()
    except KafkaNotThereError as error:
        if os.environ.get(REQUIRE_KAFKA) == "1":
            pytest.fail(f"{REQUIRE_KAFKA}=1, but the schema registry cannot be run: {error}")
        pytest.skip(f"the schema registry cannot be run: {error}")
    with running_registry(folder, tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(
    params=[
        pytest.param("embedded", marks=pytest.mark.embedded),
        pytest.param("apache", marks=pytest.mark.kafka),
    ]
)
def broker(request: pytest.FixtureRequest) -> str:
    """The address of each broker in turn."""
    if request.param == "embedded":
        address: str = request.getfixturevalue("embedded")
        return address
    kafka: ApacheKafka = request.getfixturevalue("apache_kafka")
    return kafka.bootstrap


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3_server(tmp_path_factory.mktemp("s3")) as port:
        yield port


@pytest.fixture
def s3(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The proxy before the S3 server; this process's environment leads to it."""
    with fault_proxy(s3_port) as proxy:
        for name, value in environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def s3_root(s3: FaultProxy) -> str:
    """The root of a log of its own on moto's server."""
    assert s3.port
    return f"s3://{BUCKET}/logs/{uuid4().hex}"


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A real S3 server; skips with the reason where it cannot be had."""
    is_required = os.environ.get(REQUIRE_S3) == "1"
    try:
        program = resolve_weed(build=is_required)
    except SeaweedNotThereError as error:
        if is_required:
            pytest.fail(f"{REQUIRE_S3}=1, but SeaweedFS cannot be run: {error}")
        pytest.skip(f"SeaweedFS cannot be run: {error}")
    with running_seaweed(program, tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def seaweed_root(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> str:
    """The root of a log of its own on the real S3 server, which the environment leads to."""
    return _root(seaweed, monkeypatch)


def _root(server: Seaweed | Emulator, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server.new_root()


def _emulator(name: str, folder: Path) -> Iterator[Emulator]:
    try:
        with RUNNING[name](folder) as server:
            yield server
    except EmulatorNotThereError as error:
        if os.environ.get(REQUIRE_CLOUDS) == "1":
            pytest.fail(f"{REQUIRE_CLOUDS}=1, but there is no emulator of {name}: {error}")
        pytest.skip(f"there is no emulator of {name}: {error}")


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """Google's object store, emulated; skips with the reason where it cannot be had."""
    yield from _emulator("gcs", tmp_path_factory.mktemp("gcs"))


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """Microsoft's object store, emulated; skips with the reason where it cannot be had."""
    yield from _emulator("azure", tmp_path_factory.mktemp("azure"))


@pytest.fixture
def gcs_root(gcs: Emulator, monkeypatch: pytest.MonkeyPatch) -> str:
    """The root of a log of its own there, which the environment leads to."""
    return _root(gcs, monkeypatch)


@pytest.fixture
def azure_root(azure: Emulator, monkeypatch: pytest.MonkeyPatch) -> str:
    """The root of a log of its own there, which the environment leads to."""
    return _root(azure, monkeypatch)


@pytest.fixture(params=EACH_STORE)
def each_store_root(request: pytest.FixtureRequest) -> str:
    """The root of a log of its own on each object store in turn."""
    root: str = request.getfixturevalue(f"{request.param}_root")
    return root
