from pathlib import Path

import pytest
from pydantic import ValidationError

from nap_stream.clock import ManualClock
from nap_stream.errors import ConfigError
from nap_stream.scored_log.chain import ScoredLog, WriterIdentity
from nap_stream.scored_log.stores import check_writable, store_at
from nap_stream.scored_log.stores.base import MemoryStore
from nap_stream.scored_log.stores.local import LocalStore
from nap_stream.scored_log.stores.s3 import ObjectStore
from nap_stream.settings.schema import LogSettings
from tests.scored_log.builders import (
    CALIBRATION,
    CARS,
    MODEL,
    NOON_MS,
    failed,
    memory_log,
    origin,
    scored,
)
from tests.support.log_files import footers_in, rows_in
from tests.support.s3 import FaultProxy


@pytest.mark.parametrize("address", ["s3://bucket", "s3://bucket/a", "s3://my.bucket-1/a_b/c=1/"])
def test_an_address_is_not_taken_from_the_folder_of_the_configuration(address: str) -> None:
    settings = LogSettings.model_validate({"root": address}, context={"folder": Path("/etc")})
    assert settings.root == address
    assert LogSettings.model_validate(settings.model_dump(mode="json")) == settings
    store = store_at(settings.root)
    assert isinstance(store, ObjectStore)
    assert store.root == address.rstrip("/")


@pytest.mark.parametrize("root", ["scored-log", Path("scored-log")])
def test_a_path_is_taken_from_the_folder_of_the_configuration(root: str | Path) -> None:
    settings = LogSettings.model_validate({"root": root}, context={"folder": Path("/etc")})
    assert settings.root == Path("/etc/scored-log")
    store = store_at(settings.root)
    assert isinstance(store, LocalStore)
    assert store.root == "/etc/scored-log"


@pytest.mark.parametrize(
    "root",
    [
        "s3://",
        "s3://UPPER/x",
        "s3://bucket//x",
        "s3://bucket/../x",
        "s3://key:secret@bucket/x",
        "s3://bucket/x?y=1",
        "gs://bucket/x",
        "file:///x",
    ],
)
def test_other_addresses_are_refused(root: str) -> None:
    with pytest.raises(ValidationError, match="s3://bucket/prefix"):
        LogSettings(root=root)
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        store_at(root)


def test_a_folder_given_as_text_is_a_folder(tmp_path: Path) -> None:
    check_writable(str(tmp_path / "log"))
    assert list((tmp_path / "log").iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "object store"])
def test_every_root_is_opened_the_same_way(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    root = tmp_path / "log" if kind == "folder" else request.getfixturevalue("s3_root")
    check_writable(root)
    log = ScoredLog(
        store_at(root), WriterIdentity("worker-0", MODEL, CALIBRATION), ManualClock(NOON_MS)
    )
    published = log.publish(CARS, log.begin(CARS, 3), 5, [scored(origin(3)), failed(origin(4))])
    store = store_at(root)
    assert store.names("") == ["topic=cars"]
    assert store.read(published.path) is not None
    assert log.end(CARS, 5) == published.position


def test_the_secret_is_in_no_representation(s3: FaultProxy, s3_root: str) -> None:
    assert s3.port
    store = store_at(s3_root)
    assert "secret" not in repr(store) + str(vars(store))


def test_what_was_written_can_be_looked_at() -> None:
    store = MemoryStore()
    log = memory_log(store, "a")
    assert rows_in(store, CARS).num_rows == 0
    first = log.publish(CARS, log.begin(CARS, 0), 2, [scored(origin(0)), failed(origin(1))])
    log.publish(CARS, first.position, 7, [], gap="retention")
    assert rows_in(store, CARS).column("status").to_pylist() == ["ok", "corrupt"]
    assert [footer.gap for footer in footers_in(store, CARS)] == [None, "retention"]
    assert [footer.writer_id for footer in footers_in(store, CARS)] == ["a", "a"]
    assert [footer.scored_rows for footer in footers_in(store, CARS)] == [1, 0]


def test_a_store_outlives_its_writers() -> None:
    store = MemoryStore()
    position = memory_log(store, "a").begin(CARS, 4)
    assert memory_log(store, "b").end(CARS) == position
