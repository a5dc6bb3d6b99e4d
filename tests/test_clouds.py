"""What goes wrong with a cloud's object store, in its terms, and without a secret."""

import os
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import pytest
from obstore.exceptions import GenericError, PermissionDeniedError

from nap_stream.clouds import as_log_error, forms, parsed
from nap_stream.errors import LogRootError, ScoredLogError
from nap_stream.objects import ObjectStore, RequestLimits
from tests.support import s3
from tests.support.certificates import Authority
from tests.support.clouds import ACCOUNT_KEY, TOKEN, Emulator, environment
from tests.support.s3 import HOST, MESSAGE, Fault, FaultProxy, fault_proxy
from tests.support.waiting import PATIENCE_S

QUICK = RequestLimits(
    connect_timeout_s=2,
    request_timeout_s=1,
    max_retries=1,
    retry_timeout_s=2,
    backoff_initial_s=0.02,
    backoff_max_s=0.1,
)
PATIENT = replace(
    QUICK,
    connect_timeout_s=PATIENCE_S,
    request_timeout_s=PATIENCE_S,
    retry_timeout_s=PATIENCE_S,
)
"""For all that answers, or refuses the connection, at once."""
AZ, GS, S3 = "az://logs/x", "gs://logs/x", "s3://logs/x"
KEY = "AZURE_STORAGE_ACCOUNT_KEY"
HUSH = "hush-hush"


@pytest.fixture(autouse=True)
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GCE_METADATA_HOST", f"{HOST}:1")


@pytest.fixture
def failing() -> Iterator[FaultProxy]:
    """What stands for a store, and for a service of tokens: nothing is behind it."""
    with fault_proxy(1) as proxy:
        yield proxy


def requests(root: str, limits: RequestLimits = PATIENT) -> dict[str, Callable[[], object]]:
    store = ObjectStore(root, limits=limits)
    return {
        "create": lambda: store.create("a", b"mine"),
        "read": lambda: store.read("a"),
        "the end": lambda: store.read_part("a", -3, 3),
        "open": lambda: store.open("a"),
        "names": lambda: store.names(""),
        "names from": lambda: store.names("", "a"),
        "replace": lambda: store.replace("a", b"mine"),
        "remove": lambda: store.remove(["a"]),
    }


def set_all(monkeypatch: pytest.MonkeyPatch, environ: Mapping[str, str]) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def told(error: ScoredLogError) -> str:
    """All that anybody sees of it."""
    shown = "".join(traceback.format_exception(error))
    assert HUSH not in shown
    assert TOKEN not in shown
    assert ACCOUNT_KEY not in shown
    return str(error)


@pytest.mark.parametrize(
    ("root", "fault", "said"),
    [
        (GS, Fault.NO_BUCKET, ("there is no such bucket", "")),
        (AZ, Fault.NO_CONTAINER, ("there is no such container", "")),
        (GS, Fault.DENIED, ("no permission", "GOOGLE_APPLICATION_CREDENTIALS")),
        (AZ, Fault.DENIED, ("no permission", "AZURE_STORAGE_ACCOUNT_KEY")),
        (GS, Fault.SLOW_DOWN, ("it answered 503 SlowDown", "GOOGLE_BASE_URL")),
        (AZ, Fault.SLOW_DOWN, ("it answered 503 SlowDown", "AZURE_STORAGE_ENDPOINT")),
        (AZ, Fault.HANG_BEFORE, ("did not answer in time", "AZURE_STORAGE_ACCOUNT_NAME")),
    ],
)
def test_each_request_says_what_is_wrong_and_what_to_set(
    failing: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    root: str,
    fault: Fault,
    said: tuple[str, str],
) -> None:
    words, variable = said
    set_all(monkeypatch, environment(root[:2], failing.endpoint))
    failing.draw = lambda _: fault
    hangs = fault is Fault.HANG_BEFORE
    for name, request in requests(root, QUICK if hangs else PATIENT).items():
        if hangs and name != "read":
            continue
        with pytest.raises(ScoredLogError, match=words) as caught:
            request()
        assert variable in caught.value.action, name
        assert caught.value.where.startswith(root)
        assert caught.value.retriable is not isinstance(caught.value, LogRootError)
        told(caught.value)


@pytest.mark.parametrize(
    ("root", "fault", "words"),
    [
        (AZ, Fault.REMOVAL_DENIED, "no permission: the request was denied.*AZURE_STORAGE_ACC"),
        (AZ, Fault.REMOVAL_KEPT, "it keeps what is to be removed.*a policy of immutability"),
        (S3, Fault.REMOVAL_DENIED, "no permission: AccessDenied.*AWS_ACCESS_KEY_ID"),
    ],
)
def test_an_object_that_may_not_be_removed_is_no_outage_although_the_request_is_well(
    failing: FaultProxy, monkeypatch: pytest.MonkeyPatch, root: str, fault: Fault, words: str
) -> None:
    endpoint = failing.endpoint
    set_all(monkeypatch, s3.environment(endpoint) if root == S3 else environment("az", endpoint))
    failing.draw = lambda _: fault
    with pytest.raises(LogRootError, match=words) as caught:
        ObjectStore(root, limits=PATIENT).remove(["a (code: 503)", "b"])
    assert MESSAGE not in told(caught.value)


def test_a_clock_that_is_wrong_is_named_and_waited_for(
    failing: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, s3.environment(failing.endpoint))
    failing.draw = lambda _: Fault.SKEWED
    for name, request in requests(S3).items():
        with pytest.raises(ScoredLogError, match="this machine's clock is wrong") as caught:
            request()
        assert caught.value.retriable, name


@pytest.mark.parametrize(
    ("root", "answer"),
    [
        (
            AZ,
            (
                "403 Forbidden: <Error><Code>AuthenticationFailed</Code><AuthenticationErrorDetail>"
                "Request date header too old: 'Mon, 30 Nov 2026 01:00:00 GMT'"
                "</AuthenticationErrorDetail></Error>"
            ),
        ),
        (
            GS,
            (
                '400 Bad Request: {"error":"invalid_grant","error_description":"Invalid JWT: Token '
                "must be a short-lived token (60 minutes) and in a reasonable timeframe. Check "
                'your iat and exp values in the JWT claim."}'
            ),
        ),
    ],
)
def test_a_clock_that_is_wrong_is_named_as_other_clouds_say_it(root: str, answer: str) -> None:
    token = "Error performing token request: " if root == GS else ""
    error = PermissionDeniedError(f"{token}Server returned non-2xx status code: {answer}")
    found = as_log_error(error, root)
    assert "this machine's clock is wrong" in str(found)
    assert found.retriable


@pytest.mark.parametrize(
    ("root", "changes", "words"),
    [
        (AZ, {"AZURE_STORAGE_ACCOUNT_NAME": None}, "no storage account .* Set AZURE_STORAGE_ACC"),
        (AZ, {KEY: f"{HUSH}!"}, "account's key is not base64"),
        (AZ, {KEY: f"{ACCOUNT_KEY}\n"}, "account's key is not base64"),
        (AZ, {KEY: None, "AZURE_STORAGE_SAS_TOKEN": HUSH}, "a variable .* cannot be used"),
        (AZ, {KEY: None, "AZURE_STORAGE_TOKEN": f"{HUSH}\n"}, "a variable .* a line break"),
        (
            AZ,
            {"AZURE_STORAGE_ENDPOINT": "no address"},
            "Look at AZURE_STORAGE_ACCOUNT_NAME, .* AZURE_… var",
        ),
        (AZ, {"AZURE_STORAGE_USE_EMULATOR": HUSH}, "a variable .* cannot be used"),
        (GS, {"GOOGLE_BASE_URL": "no address"}, "a variable .* Look at GOOGLE_BASE_URL"),
        (GS, {"GOOGLE_BEARER_TOKEN": f"{HUSH}\n"}, "a variable .* a line break"),
        (
            GS,
            {"GOOGLE_BEARER_TOKEN": None, "GOOGLE_APPLICATION_CREDENTIALS": "/none"},
            "credentials cannot be opened",
        ),
        (GS, {"GOOGLE_SERVICE_ACCOUNT": "/none"}, "credentials cannot be opened"),
        (GS, {"GOOGLE_SERVICE_ACCOUNT_KEY": HUSH}, "not the key of a service account"),
        (
            GS,
            {"GOOGLE_SERVICE_ACCOUNT_KEY": '{"type": "external_account", "key": "hush-hush"}'},
            "external_account is not supported",
        ),
        (
            S3,
            {"AWS_ENDPOINT_URL": "no address"},
            "a variable .* Look at AWS_ENDPOINT_URL and the other AWS_… var",
        ),
        (S3, {"AWS_ACCESS_KEY_ID": f"{HUSH}\n"}, "a variable .* a line break"),
    ],
)
def test_what_the_environment_says_and_cannot_be_used_is_no_outage(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    root: str,
    changes: dict[str, str | None],
    words: str,
) -> None:
    endpoint = f"http://{HOST}:1"
    set_all(
        monkeypatch,
        s3.environment(endpoint) if root == S3 else environment(root[:2], endpoint),
    )
    for name, value in changes.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(LogRootError, match=words) as caught:
        ObjectStore(root, limits=PATIENT).read("a")
    assert not caught.value.retriable
    told(caught.value)
    # Where the client breaks down, Rust says so on its own.
    printed = "".join(capfd.readouterr())
    assert HUSH not in printed
    assert TOKEN not in printed
    assert ACCOUNT_KEY not in printed


def test_a_file_that_is_no_credentials_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key.json").write_text(f'{{"type": "{HUSH}"}}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(LogRootError, match="not the key of a service account") as caught:
        ObjectStore(GS, limits=PATIENT)
    told(caught.value)


IDENTITY = {"AZURE_CLIENT_ID": "client", "AZURE_TENANT_ID": "tenant"}


@pytest.mark.parametrize(
    ("root", "environ"),
    [
        (GS, {}),
        (AZ, {"AZURE_MSI_ENDPOINT": f"http://{HOST}:1/metadata/identity/oauth2/token"}),
        (AZ, {**IDENTITY, "AZURE_FEDERATED_TOKEN_FILE": "/none"}),
    ],
)
def test_a_machine_without_credentials_is_told_how_to_give_some(
    monkeypatch: pytest.MonkeyPatch, root: str, environ: dict[str, str]
) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    set_all(monkeypatch, {"AZURE_STORAGE_ACCOUNT_NAME": "account", **environ})
    with pytest.raises(ScoredLogError, match="no credentials were found") as caught:
        ObjectStore(root, limits=PATIENT).read("a")
    assert caught.value.retriable
    assert "_ACCOUNT" in caught.value.action or "GOOGLE_APPLICATION" in caught.value.action
    told(caught.value)


@pytest.mark.parametrize(
    ("root", "environ"),
    [
        (AZ, {**IDENTITY, "AZURE_FEDERATED_TOKEN_FILE": "/none"}),
        (AZ, {"AZURE_USE_AZURE_CLI": "true", "PATH": "/none"}),
        (S3, {"AWS_WEB_IDENTITY_TOKEN_FILE": "/none", "AWS_ROLE_ARN": "arn"}),
        (S3, {"AWS_METADATA_ENDPOINT": f"http://{HOST}:1"}),
    ],
)
def test_credentials_that_cannot_be_read_are_none(
    monkeypatch: pytest.MonkeyPatch, root: str, environ: dict[str, str]
) -> None:
    set_all(monkeypatch, {"AZURE_STORAGE_ACCOUNT_NAME": "account", **environ})
    with pytest.raises(ScoredLogError, match="no credentials were found"):
        ObjectStore(root, limits=PATIENT).read("a")


@pytest.mark.parametrize("root", [AZ, GS, S3])
def test_the_names_of_objects_say_nothing_of_what_went_wrong(
    monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    endpoint = f"http://{HOST}:1"
    set_all(
        monkeypatch,
        s3.environment(endpoint) if root == S3 else environment(root[:2], endpoint),
    )
    odd = "AzureCli/FederatedTokenFile/169.254.1.1/latest/api/token/TimedOut/PermanentRedirect"
    store = ObjectStore(f"{root}/{odd}", limits=PATIENT)
    for request in (lambda: store.read(odd), lambda: store.names(odd)):
        with pytest.raises(ScoredLogError, match="it cannot be reached") as caught:
            request()
        assert caught.value.retriable


@pytest.mark.parametrize("fault", [Fault.DENIED, Fault.INTERNAL, Fault.TOO_MANY, Fault.TOO_LATE])
@pytest.mark.parametrize("secret", ["AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE"])
def test_an_identity_that_gets_no_token_is_refused_or_waited_for(
    failing: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: Fault,
    secret: str,
) -> None:
    (tmp_path / "token").write_text(HUSH)
    value = HUSH if secret.endswith("SECRET") else str(tmp_path / "token")
    given = {**IDENTITY, "AZURE_AUTHORITY_HOST": failing.endpoint, secret: value}
    set_all(monkeypatch, {"AZURE_STORAGE_ACCOUNT_NAME": "account", **given})
    failing.draw = lambda _: fault
    with pytest.raises(ScoredLogError, match="the credentials got no token: it answered") as caught:
        ObjectStore(AZ, limits=PATIENT).read("a")
    assert caught.value.retriable is (fault is not Fault.DENIED)
    assert failing.requests[0] == ("POST", "/tenant/oauth2/v2.0/token")
    told(caught.value)


def test_what_a_service_of_tokens_says_is_told_by_its_code() -> None:
    answer = '{"error":"invalid_grant","error_description":"hush-hush"}'
    text = f"Error performing token request: Server returned non-2xx status code: 400: {answer}"
    error = as_log_error(GenericError(text), GS)
    assert isinstance(error, LogRootError)
    assert error.problem == "the credentials got no token: it answered 400 invalid_grant"
    told(error)


def test_the_bucket_of_the_address_counts_and_not_that_of_the_environment(
    failing: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing.draw = lambda _: Fault.NO_BUCKET
    others = {"GOOGLE_BUCKET": "other", "AZURE_CONTAINER_NAME": "other"}
    for root in (GS, AZ):
        set_all(monkeypatch, {**environment(root[:2], failing.endpoint), **others})
        with pytest.raises(LogRootError, match="no such"):
            ObjectStore(root, limits=PATIENT).read("a")
    assert all("logs/x" in path.replace("%2F", "/") for _, path in failing.requests)


def test_addresses() -> None:
    assert forms("key") == "s3://bucket/key, gs://bucket/key or az://container/key"
    found = parsed("az://my-container/a_b/c=1/")
    assert found is not None
    assert (found[0].scheme, *found[1:]) == ("az", "my-container", "a_b/c=1")
    for address in ("gs://my-bucket", "gs://my-bucket/"):
        found = parsed(address)
        assert found is not None
        assert found[1:] == ("my-bucket", None)


@pytest.mark.clouds
@pytest.mark.parametrize("replacements", [3, None])
def test_the_end_of_an_object_that_is_replaced_meanwhile_is_looked_for_a_few_times(
    azure: Emulator, monkeypatch: pytest.MonkeyPatch, replacements: int | None
) -> None:
    root, asked = azure.new_root(), 0
    set_all(monkeypatch, azure.environment())
    writer = ObjectStore(root)
    writer.create("a", b"0")

    def replaced(_method: str) -> None:
        nonlocal asked
        asked += 1
        if replacements is None or asked <= replacements:
            writer.replace("a", b"0123456789"[:asked])

    with fault_proxy(azure.port) as proxy:
        set_all(monkeypatch, azure.environment(proxy.endpoint))
        store = ObjectStore(root)
        proxy.draw = replaced
        if replacements is not None:
            assert store.read_part("a", -2, 2) == (b"12", 3)
            return
        with pytest.raises(ScoredLogError, match="replaced 5 times while its end was read") as seen:
            store.read_part("a", -2, 2)
    assert seen.value.retriable
    assert seen.value.where == f"{root}/a"
    assert "try again" in seen.value.action
    assert proxy.count("GET") == 6


@pytest.mark.parametrize(
    ("is_tls", "words"),
    [(True, r"its certificate is refused \(UnknownIssuer\); SSL_CERT_FILE"), (False, "no TLS")],
)
def test_what_is_wrong_with_the_tls_of_a_store_is_said(
    is_tls: bool, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with http_server() as server:
        if is_tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(Authority(tmp_path, "authority").issue("store"))
            server.socket = context.wrap_socket(server.socket, server_side=True)
        set_all(monkeypatch, s3.environment(f"https://127.0.0.1:{server.server_port}"))
        with pytest.raises(ScoredLogError, match=words):
            ObjectStore(S3, limits=PATIENT).read("a")


@contextmanager
def http_server() -> Iterator[HTTPServer]:
    """It answers every method with 501."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()
