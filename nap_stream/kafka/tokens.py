"""Tokens for OAUTHBEARER: by client credentials, or signed for Amazon MSK.

kafka-python asks for a token when it connects, and again before a broker ends the session
(KIP-368), in the thread that all its connections share. So a token is renewed in a thread of its
own once most of its time is over, and one that is still good bridges an endpoint that does not
answer.
"""

import base64
import json
import logging
import math
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus, urlencode

import structlog
import urllib3
from kafka import errors
from kafka.net.sasl import register_sasl_mechanism
from kafka.net.sasl.oauth import AbstractTokenProvider, SaslMechanismOAuth
from urllib3.exceptions import HTTPError, SSLError

from nap_stream.clock import Clock, Deadline, SystemClock
from nap_stream.errors import BrokerError, BrokerUnavailableError, ConfigError, NapStreamError
from nap_stream.files import read_secret
from nap_stream.settings.oauth import OAuthSettings
from nap_stream.settings.schema import KafkaSettings
from nap_stream.text import duration, moment, plain, rfc3339

_GOOD_SHARE = 0.8
"""Of a token's time; brokers ask again after 85 % of it."""
_PATIENCE_S = 10.0
"""How long a new token is waited for, where no setting says."""
_PAUSE_S = 5.0
"""For so long an endpoint is left alone that failed."""
_ANOTHER_S = 60.0
"""A broker that refuses a token is sent another one at most so often."""
_MOST_BYTES = 2**20
_PIECE_BYTES = 2**16
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
"""RFC 6750, 2.1. Anything else could add fields to what the broker is sent."""
_ERROR_CODE = re.compile(r"[a-z_]{1,60}")
"""RFC 6749, 5.2. Other words of an endpoint may hold what it was sent, in any form."""
_REFUSED = {400, 401, 403}
_BUSY = 429
_AWS_LOGGER = "botocore"
"""It logs at DEBUG what makes a token, and answers that hold credentials."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token, since when it is had and when it ends, in milliseconds since the epoch.

    ``ends_ms`` is null where nobody tells. The text is not shown.
    """

    text: str
    had_ms: int
    ends_ms: int | None

    def __repr__(self) -> str:
        return f"Token({self.words})"

    @property
    def words(self) -> str:
        """When it ends."""
        if self.ends_ms is None:
            return "with no known end"
        left = duration(self.ends_ms - self.had_ms)
        return f"valid until {moment(rfc3339(self.ends_ms))}, {left} from when it was had"

    def is_fresh(self, now_ms: int) -> bool:
        """Whether it need not be renewed yet."""
        if self.ends_ms is None:
            return False
        return self.had_ms <= now_ms < self.had_ms + _GOOD_SHARE * (self.ends_ms - self.had_ms)

    def is_good(self, now_ms: int) -> bool:
        """Whether it has not ended."""
        return self.ends_ms is not None and now_ms < self.ends_ms


class _RefusedError(BrokerError):
    """The endpoint refuses the client."""


class Tokens(AbstractTokenProvider):  # type: ignore[misc]  # no types
    """Gives kafka-python a token that is good; renews it before it ends. Safe for threads.

    ``fetch`` gets a new one, at the time in milliseconds since the epoch. It runs in a thread of
    its own, for which nobody waits longer than ``patience_s``, and nobody while a token is good.
    """

    def __init__(
        self,
        fetch: Callable[[int], Token],
        clock: Clock | None = None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        super().__init__()
        self._fetch, self._clock, self._patience_s = fetch, clock or SystemClock(), patience_s
        self._lock = threading.Lock()
        self._kept: Token | None = None
        self._was_had = False
        self._asking: Future[Token] | None = None
        self._failed: tuple[float, NapStreamError] | None = None
        self._forgot_s = float("-inf")

    def current(self) -> Token:
        """Give the token that is kept, or a new one.

        Raises:
            BrokerUnavailableError: The endpoint does not answer, and no token is good.
            BrokerError: It refuses, or what it gives is no token.
            ConfigError: A secret cannot be read, or a library is missing.
        """
        now_ms, now_s = self._clock.now_ms(), self._clock.monotonic()
        with self._lock:
            kept, failed = self._kept, self._failed
            if kept is not None and kept.is_fresh(now_ms):
                return kept
            is_paused = failed is not None and now_s < failed[0] + _PAUSE_S
            if self._asking is None and not is_paused:
                self._asking = Future()
                # Nobody can end it in time where the endpoint hangs, so nobody waits for its end.
                threading.Thread(
                    target=self._ask, args=(self._asking, now_ms), name="token", daemon=True
                ).start()
            asking = self._asking
        if kept is not None and kept.is_good(now_ms):
            return kept
        if asking is None:
            assert failed is not None
            raise type(failed[1])(*failed[1].args)
        try:
            return asking.result(self._patience_s)
        except TimeoutError:
            away = BrokerUnavailableError(
                f"the token endpoint does not answer within {self._patience_s:g} s",
                "kafka, a token to log in with",
                "Check the network, and that the endpoint runs",
            )
            with self._lock:
                if self._asking is asking:
                    self._asking, self._failed = None, (self._clock.monotonic(), away)
            raise away from None

    def forget(self, text: str) -> bool:
        """Drop a token that a broker refused. Whether it makes sense to log in with another."""
        with self._lock:
            if self._kept is None or self._kept.text != text:
                return True
            now_s = self._clock.monotonic()
            if now_s < self._forgot_s + _ANOTHER_S:
                return False
            self._kept, self._forgot_s = None, now_s
        structlog.get_logger().warning("token_refused_by_broker")
        return True

    def _ask(self, asking: "Future[Token]", now_ms: int) -> None:
        try:
            token = self._fetch(now_ms)
        except Exception as error:  # noqa: BLE001 - whoever waits for it is told
            asking.set_exception(self._note_failure(asking, error))
            return
        with self._lock:
            self._kept, self._was_had, self._failed = token, True, None
            if self._asking is asking:
                self._asking = None
        asking.set_result(token)

    def _note_failure(self, asking: "Future[Token]", error: Exception) -> Exception:
        # What has worked may work again, unless the client itself is refused.
        may_pass = self._was_had and not isinstance(error, _RefusedError)
        if isinstance(error, NapStreamError) and may_pass:
            error = BrokerUnavailableError(*error.args)
        with self._lock:
            if self._asking is asking:
                self._asking = None
            now_s, kept = self._clock.monotonic(), self._kept
            is_good = kept is not None and kept.is_good(self._clock.now_ms())
            if isinstance(error, NapStreamError) and (is_good or error.retriable):
                self._failed = now_s, error
        if is_good:
            # Others may quote anything.
            cause = str(error) if isinstance(error, NapStreamError) else type(error).__name__
            structlog.get_logger().warning("token_not_renewed", token=kept, cause=cause)
        return error

    def token(self) -> str:
        """Give it to kafka-python, whose errors say whether another attempt makes sense."""
        try:
            return self.current().text
        except BrokerUnavailableError as error:
            raise errors.KafkaConnectionError(str(error)) from error
        except NapStreamError as error:
            raise errors.SaslAuthenticationFailedError(str(error)) from error


class _Bearer(SaslMechanismOAuth):  # type: ignore[misc]  # no types
    """kafka-python's mechanism, which tries another token where a broker refuses one."""

    def auth_bytes(self) -> bytes:
        """What is sent to the broker."""
        sent: bytes = super().auth_bytes()
        self._sent = sent.partition(b"auth=Bearer ")[2].partition(b"\x01")[0].decode()
        return sent

    def receive(self, auth_bytes: bytes) -> None:
        """Take the broker's answer: nothing, or why it refuses."""
        if auth_bytes and self._sent and self.token_provider.forget(self._sent):
            raise errors.KafkaConnectionError("the broker refused a token; another one is tried")
        super().receive(auth_bytes)


def tokens(settings: KafkaSettings, clock: Clock | None = None) -> Tokens | None:
    """What gives tokens for the mechanism of the settings; None for one that needs none."""
    oauth = settings.oauth
    if settings.sasl_mechanism == "AWS_MSK_IAM":
        provider = Tokens(lambda now_ms: _signed(settings, now_ms), clock)
    elif settings.sasl_mechanism == "OAUTHBEARER" and oauth is not None:
        provider = Tokens(lambda now_ms: _granted(oauth, now_ms), clock, oauth.timeout_s)
    else:
        return None
    # kafka-python takes mechanisms from nowhere else.
    register_sasl_mechanism("OAUTHBEARER", _Bearer, overwrite=True)
    return provider


def login_words(settings: KafkaSettings) -> str:
    """Say how the program logs in, and until when its token is good; empty where it does not.

    Raises:
        BrokerError: There is no token.
        ConfigError: A secret cannot be read, or a library is missing.
    """
    if not settings.security_protocol.startswith("SASL"):
        return ""
    provider = tokens(settings)
    if provider is None:
        return f"{settings.sasl_mechanism} as {settings.sasl_username}"
    token = provider.current()
    if settings.oauth is None:
        return f"AWS_MSK_IAM in {settings.aws_region}, with a signed token {token.words}"
    return f"OAUTHBEARER as {settings.oauth.client_id}, with a token {token.words}"


def _granted(oauth: OAuthSettings, now_ms: int) -> Token:
    """Ask the endpoint for a token."""
    if oauth.client_secret is not None:
        secret = oauth.client_secret.get_secret_value()
    else:
        assert oauth.client_secret_file is not None, "settings have a secret or its file"
        secret = read_secret(oauth.client_secret_file, "kafka.oauth.client_secret_file")
    status, body = _ask(oauth, secret)
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        tree = None
    tree = tree if isinstance(tree, Mapping) else {}
    if status != 200:  # noqa: PLR2004 - HTTP
        raise _refusal(oauth, secret, status, tree)
    text, kind = tree.get("access_token"), str(tree.get("token_type", "bearer"))
    if not isinstance(text, str) or not _TOKEN.fullmatch(text) or kind.lower() != "bearer":
        raise _error(oauth, "answers without a bearer token", "Is it the token endpoint?")
    token = Token(text, now_ms, _end_of(text, tree.get("expires_in"), now_ms))
    if token.ends_ms is not None and token.ends_ms <= now_ms:
        ended = moment(rfc3339(token.ends_ms))
        raise _error(
            oauth,
            f"gives a token that has ended already, at {ended}",
            f"Check the clocks: here it is {moment(rfc3339(now_ms))}",
        )
    return token


def _ask(oauth: OAuthSettings, secret: str) -> tuple[int, bytes]:
    deadline = Deadline(SystemClock(), oauth.timeout_s)
    user = f"{quote_plus(oauth.client_id)}:{quote_plus(secret)}"
    form = {"grant_type": "client_credentials"} | ({"scope": oauth.scope} if oauth.scope else {})
    try:
        with urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=oauth.timeout_s, read=oauth.timeout_s),
            ca_certs=None if oauth.ca_file is None else str(oauth.ca_file),
            cert_reqs="CERT_REQUIRED",
        ) as pool:
            answer = pool.request(
                "POST",
                oauth.token_endpoint,
                body=urlencode(form),
                headers={
                    "Authorization": f"Basic {base64.b64encode(user.encode()).decode()}",
                    "Content-Type": "application/x-www-form-urlencoded",
                    "Accept": "application/json",
                },
                redirect=False,
                retries=False,
                preload_content=False,
            )
            with closing(answer):
                body = bytearray()
                while part := answer.read1(_PIECE_BYTES, decode_content=False):
                    body += part
                    if len(body) > _MOST_BYTES:
                        raise _error(
                            oauth, "answers with more than 1 MiB", "Is it the token endpoint?"
                        )
                    if deadline.expired():
                        raise _away(oauth, f"does not answer within {oauth.timeout_s:g} s")
                return answer.status, bytes(body)
    except SSLError as error:
        raise _error(
            oauth, f"has no TLS that is trusted ({plain(str(error))})", "Check kafka.oauth.ca_file"
        ) from None
    except (HTTPError, OSError) as error:
        raise _away(oauth, f"does not answer ({type(error).__name__})") from None


def _refusal(
    oauth: OAuthSettings, secret: str, status: int, tree: Mapping[str, Any]
) -> BrokerError:
    code, words = tree.get("error"), f"HTTP {status}"
    if isinstance(code, str) and _ERROR_CODE.fullmatch(code) and secret not in code:
        words += f", {code}"
    if status in _REFUSED:
        return _RefusedError(
            f"the token endpoint refuses client {oauth.client_id} ({words})",
            f"kafka.oauth.token_endpoint {oauth.token_endpoint}",
            "Check kafka.oauth.client_id, its secret and the scope",
        )
    if status == _BUSY or status >= 500:  # noqa: PLR2004 - HTTP
        return _away(oauth, f"answers {words}")
    return _error(oauth, f"answers {words}", "Is it the token endpoint?")


def _error(oauth: OAuthSettings, problem: str, action: str) -> BrokerError:
    where = f"kafka.oauth.token_endpoint {oauth.token_endpoint}"
    return BrokerError(f"the token endpoint {problem}", where, action)


def _away(oauth: OAuthSettings, problem: str) -> BrokerUnavailableError:
    return BrokerUnavailableError(
        f"the token endpoint {problem}",
        f"kafka.oauth.token_endpoint {oauth.token_endpoint}",
        "Check the address, the network, and that the endpoint runs",
    )


def _end_of(text: str, expires_in: object, now_ms: int) -> int | None:
    """When a token ends: as the endpoint says, or, of a JWT, as that does; the earlier one."""
    told: int | None = None
    if isinstance(expires_in, str) and expires_in.isascii() and expires_in.isdigit():
        expires_in = int(expires_in[:12])
    if isinstance(expires_in, float) and not math.isfinite(expires_in):
        expires_in = None
    if isinstance(expires_in, int | float) and not isinstance(expires_in, bool):
        # From here on by this machine's clock, whatever the endpoint's says.
        told = now_ms + int(max(-1e9, min(1e9, expires_in)) * 1000)
    parts = text.split(".")
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        own = int(float(claims["exp"]) * 1000)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError):
        return told
    # One that seems to have ended when it was given tells of clocks that differ.
    return own if told is None else min(told, own) if own > now_ms else told


def _signed(settings: KafkaSettings, now_ms: int) -> Token:
    """Sign a token for Amazon MSK with the AWS credentials of this machine."""
    where = "kafka.sasl_mechanism AWS_MSK_IAM"
    try:
        from aws_msk_iam_sasl_signer import MSKAuthTokenProvider  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            "aws-msk-iam-sasl-signer-python is not installed",
            where,
            "Install it: pip install 'nap-stream[msk]'",
        ) from error
    logging.getLogger(_AWS_LOGGER).setLevel(logging.INFO)
    try:
        text, ends_ms = MSKAuthTokenProvider.generate_auth_token(settings.aws_region)
    except Exception as error:  # noqa: BLE001 - of botocore, which knows many
        # Without its text and cause, which may hold what was read.
        raise ConfigError(
            f"no token can be signed ({type(error).__name__}): there are no AWS credentials, or "
            "none that can be used",
            where,
            "Give this machine a role, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY",
        ) from None
    return Token(text, now_ms, ends_ms)
