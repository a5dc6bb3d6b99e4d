"""References to objects in buckets, on a server of each cloud; S3's behind a proxy that fails."""

import base64
import http.client
import json
from typing import Any
from urllib.parse import quote_plus

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import S3Store

from nap_stream.clouds import CLOUDS, connect
from nap_stream.messages.bucket_objects import _meaning
from nap_stream.messages.pieces import Away, Unreadable
from nap_stream.messages.reader import MessageReader
from tests.messages.chains import chain, one, read, refused
from tests.support.clouds import EMULATED
from tests.support.s3 import ACCESS_KEY_ID, BUCKET, HOST, SECRET_ACCESS_KEY, Fault, FaultProxy
from tests.support.waiting import PATIENCE_S

IMAGE = b"\xff\xd8\xff the bytes of an image"


def asked(port: int, method: str, path: str, body: bytes = b"") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        response.read()
        assert response.status == http.HTTPStatus.OK, response.status
        return response
    finally:
        connection.close()


def put(s3: FaultProxy, key: str, body: bytes = IMAGE, bucket: str = BUCKET) -> str | None:
    """Store an object; its version."""
    assert s3.port
    store = S3Store(bucket, client_options={"allow_http": True})
    return obstore.put(store, key, body)["version"]


def fetching(*before: Any, wait_s: float | None = 0, **changes: Any) -> MessageReader:
    settings: dict[str, Any] = {"allow_buckets": [BUCKET], "attempts": 3, "backoff_s": 0.01}
    settings["timeout_s"] = PATIENCE_S
    return chain(*before, {"fetch": settings | changes}, wait_s=wait_s)


@pytest.mark.parametrize(
    "key",
    ["in/a.jpg", "in/a b+c%20d.jpg", "in/é ü.jpg", "in/a?b&c=d#e.jpg", "in/x*[1]{2}.jpg", "a'\"~"],
)
def test_keys_of_all_kinds(s3: FaultProxy, key: str) -> None:
    put(s3, key)
    found = one(fetching(), f"s3://{BUCKET}/{key}")
    assert (found.data, found.source_uri) == (IMAGE, f"s3://{BUCKET}/{key}")
    event = {"eventName": "ObjectCreated:Put", "s3": {
        "bucket": {"name": BUCKET}, "object": {"key": quote_plus(key), "size": 3}}}  # fmt: skip
    found = one(fetching("s3_event"), json.dumps({"Records": [event]}))
    assert (found.data, found.source_uri) == (IMAGE, f"s3://{BUCKET}/{key}")


def test_a_version_of_an_object(s3: FaultProxy) -> None:
    bucket = "versioned-images"
    asked(s3.target, "PUT", f"/{bucket}")
    status = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    asked(s3.target, "PUT", f"/{bucket}?versioning", status)
    first = put(s3, "a.jpg", b"first", bucket)
    put(s3, "a.jpg", b"second", bucket)
    reader = fetching(allow_buckets=[bucket])
    assert one(reader, f"s3://{bucket}/a.jpg").data == b"second"
    found = one(reader, f"s3://{bucket}/a.jpg?versionId={first}")
    assert (found.data, found.source_uri) == (b"first", f"s3://{bucket}/a.jpg?versionId={first}")
    assert refused(reader, f"s3://{bucket}/a.jpg?versionId=none")[0] in ("missing", "fetch_failed")


def test_records_of_one_message_are_rows_each(s3: FaultProxy) -> None:
    put(s3, "one.jpg", b"1")
    put(s3, "three.jpg", b"3")

    def record(key: str, bucket: str = BUCKET) -> dict[str, Any]:
        named = {"bucket": {"name": bucket}, "object": {"key": key}}
        return {"eventName": "ObjectCreated:Put", "s3": named}

    records = [record("one.jpg"), record("none.jpg"), record("three.jpg"), record("x", "other")]
    found = read(fetching("s3_event"), json.dumps({"Records": records}))
    assert [image.status.value for image in found] == ["ok", "missing", "ok", "not_allowed"]
    assert [image.data for image in found] == [b"1", None, b"3", None]
    assert found[1].source_uri == f"s3://{BUCKET}/none.jpg"


@pytest.mark.parametrize(
    ("reference", "status", "telling"),
    [
        (f"s3://{BUCKET}/none.jpg", "missing", "no such object"),
        ("s3://other-bucket/a.jpg", "not_allowed", "'s3://other-bucket' is not in allow_buckets"),
        (f"s3://{BUCKET}/../other-bucket/a.jpg", "fetch_failed", "between slashes"),
        (f"s3://{BUCKET}/a/./b.jpg", "fetch_failed", "between slashes"),
        (f"s3://{BUCKET}//a.jpg", "fetch_failed", "between slashes"),
        (f"s3://{BUCKET}@evil.example/a.jpg", "not_allowed", "allow_buckets"),
        (f"s3://{BUCKET}.evil.example/a.jpg", "not_allowed", "allow_buckets"),
        (f"S3://{BUCKET.upper()}/a.jpg", "not_allowed", "allow_buckets"),
        (f"s3://{BUCKET}/a%2F..%2F..%2Fb", "missing", "no such object"),
        (f"s3://{BUCKET}/" + "k" * 3_000, "missing", "no such object"),
        (f"s3://{BUCKET}/a\0b", "fetch_failed", "no store can be asked for such a key"),
        (f"s3://{BUCKET}/a\nb", "fetch_failed", "no store can be asked for such a key"),
    ],
)
def test_references_that_give_nothing(
    s3: FaultProxy, reference: str, status: str, telling: str
) -> None:
    found = refused(fetching(wait_s=None), reference)
    assert (found[0], telling in found[1]) == (status, True), found
    assert not any("other-bucket" in path for _, path in s3.requests)


def test_objects_that_are_too_large(s3: FaultProxy) -> None:
    put(s3, "large.jpg", bytes(100_001))
    found = refused(fetching(), f"s3://{BUCKET}/large.jpg")
    assert (found[0], "100001 bytes" in found[1]) == ("too_large", True)
    requests = len(s3.requests)
    named = {"bucket": {"name": BUCKET}, "object": {"key": "large.jpg", "size": 10**15}}
    event = {"Records": [{"eventName": "ObjectCreated:Put", "s3": named}]}
    assert refused(fetching("s3_event"), json.dumps(event))[0] == "too_large"
    assert len(s3.requests) == requests


@pytest.mark.parametrize(
    ("answer", "is_away"),
    [
        ("404 NoSuchVersion", False),
        ("400 KeyTooLongError", False),
        ("403 AccessDenied", False),
        ("403 InvalidObjectState", False),
        ("403 AuthorizationPermissionMismatch", False),
        ("405 MethodNotAllowed", False),
        ("409 BlobArchived", False),
        ("409 BlobUsesCustomerSpecifiedEncryption", False),
        ("400 AuthorizationHeaderMalformed", True),
        ("400 ExpiredToken", True),
        ("400 RequestTimeout", True),
        ("401 Unauthorized", True),
        ("403 AuthenticationFailed", True),
        ("403 InvalidAccessKeyId", True),
        ("403 RequestTimeTooSkewed", True),
        ("404 ContainerNotFound", True),
        ("404 NoSuchBucket", True),
        ("425 TooEarly", True),
        ("429 TooManyRequests", True),
        ("500 InternalError", True),
        ("503 SlowDown", True),
    ],
)
def test_what_holds_of_one_object_is_no_outage(answer: str, is_away: bool) -> None:
    status, code = answer.split()
    error = GenericError(f"Error performing GET, status code: {status}: <Code>{code}</Code>")
    found = _meaning(error, f"s3://{BUCKET}")
    assert isinstance(found, Away if is_away else Unreadable), str(found)


@pytest.mark.parametrize(
    "fault", [Fault.INTERNAL, Fault.SLOW_DOWN, Fault.LOSE_ANSWER, Fault.CUT_BODY]
)
def test_what_may_pass_is_tried_again(s3: FaultProxy, fault: Fault) -> None:
    put(s3, "a.jpg")
    s3.fail("GET", fault, fault)
    assert one(fetching(), f"s3://{BUCKET}/a.jpg").data == IMAGE
    assert s3.pending() == 0


def test_an_outage_is_held_until_it_is_over(s3: FaultProxy) -> None:
    put(s3, "a.jpg")
    s3.fail("GET", *[Fault.SLOW_DOWN] * 4)
    reader = fetching(attempts=2, wait_s=None)
    assert one(reader, f"s3://{BUCKET}/a.jpg").data == IMAGE
    assert s3.pending() == 0
    assert reader.waiting_for is None


def test_an_outage_that_lasts_is_a_row_where_the_settings_say_so(s3: FaultProxy) -> None:
    put(s3, "a.jpg")
    s3.fail("GET", *[Fault.SLOW_DOWN] * 3)
    status, error = refused(fetching(), f"s3://{BUCKET}/a.jpg")
    assert (status, "503 SlowDown" in error) == ("fetch_failed", True)


def test_a_refusal_of_one_object_is_a_row(s3: FaultProxy) -> None:
    put(s3, "a.jpg")
    s3.fail("GET", Fault.DENIED)
    status, error = refused(fetching(wait_s=None), f"s3://{BUCKET}/a.jpg")
    assert (status, "403 AccessDenied" in error) == ("fetch_failed", True)
    assert ACCESS_KEY_ID not in error
    assert SECRET_ACCESS_KEY not in error


def test_a_store_that_hangs_is_left_in_time(s3: FaultProxy) -> None:
    put(s3, "a.jpg")
    s3.fail("GET", Fault.HANG_AFTER)
    status, error = refused(fetching(attempts=1, timeout_s=0.5), f"s3://{BUCKET}/a.jpg")
    assert (status, "did not answer in time" in error) == ("fetch_failed", True)


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("value", ["no address", "http://[::1"])
def test_an_endpoint_that_is_no_address_is_told_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    status, error = refused(fetching(), f"s3://{BUCKET}/a.jpg")
    assert (status, "Look at AWS_ENDPOINT_URL and the other AWS_" in error) == (
        "fetch_failed",
        True,
    )


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_gone_is_an_outage() -> None:
    status, error = refused(fetching(allow_buckets=["gone-bucket"]), "s3://gone-bucket/a.jpg")
    assert (status, "there is no such bucket" in error) == ("fetch_failed", True)


ELSEWHERE = pytest.mark.parametrize("store", EMULATED)


def stored(root: str, key: str) -> str:
    """Store the image in a bucket of Google's or Azure's; the bucket's address."""
    scheme = root.partition(":")[0]
    cloud = CLOUDS[scheme]
    options = {"client_options": {"allow_http": True}}
    obstore.put(connect(cloud, BUCKET, None, root, options), key, IMAGE)
    return f"{scheme}://{BUCKET}"


@ELSEWHERE
def test_other_clouds_give_objects_too(store: str, request: pytest.FixtureRequest) -> None:
    key = "in/a b+c%20d é?versionId=1.jpg"
    bucket = stored(request.getfixturevalue(f"{store}_root"), key)
    reader = fetching(allow_buckets=[bucket])
    found = one(reader, f"{bucket}/{key}")
    assert (found.data, found.source_uri) == (IMAGE, f"{bucket}/{key}")
    assert one(reader, f"{bucket.upper().replace(BUCKET.upper(), BUCKET)}/{key}").data == IMAGE
    assert refused(reader, f"{bucket}/none.jpg")[0] == "missing"
    assert refused(reader, f"s3://{BUCKET}/{key}")[0] == "not_allowed"
    assert refused(reader, f"{bucket}s/{key}")[0] == "not_allowed"
    large = fetching(allow_buckets=[bucket], max_bytes=3)
    assert refused(large, f"{bucket}/{key}")[0] == "too_large"


@ELSEWHERE
def test_what_is_away_in_other_clouds_is_told(
    store: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = stored(request.getfixturevalue(f"{store}_root"), "a.jpg")
    variable = {"gcs": "GOOGLE_BASE_URL", "azure": "AZURE_STORAGE_ENDPOINT"}[store]
    for value, telling in (("http://127.0.0.1:1", "cannot be reached"), ("nowhere", variable)):
        monkeypatch.setenv(variable, value)
        status, error = refused(fetching(allow_buckets=[bucket]), f"{bucket}/a.jpg")
        assert (status, telling in error) == ("fetch_failed", True), error


@pytest.mark.clouds
@pytest.mark.usefixtures("azure_root")
def test_azures_refusals_are_an_outage_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = refused(fetching(allow_buckets=["az://gone"]), "az://gone/a.jpg")
    assert (gone[0], "there is no such container" in gone[1]) == ("fetch_failed", True)
    wrong = base64.b64encode(b"another-key-that-no-message-holds").decode()
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", wrong)
    status, error = refused(fetching(allow_buckets=[f"az://{BUCKET}"]), f"az://{BUCKET}/a.jpg")
    assert (status, "no permission" in error) == ("fetch_failed", True), error
    assert wrong not in error
