"""The link that fetches what messages refer to, after the pattern of the claim check."""

import threading
from collections.abc import Callable, Sequence

from nap_stream.clock import Clock
from nap_stream.messages.addresses import AllowedHosts, Resolve, resolve_host
from nap_stream.messages.bucket_objects import (
    PREFIXES,
    BucketObjects,
    parsed_reference,
    shown_reference,
)
from nap_stream.messages.http_objects import HttpObjects, parsed_url, shown_url
from nap_stream.messages.pieces import (
    Away,
    Flawed,
    Piece,
    Reference,
    Unreadable,
    as_text,
    shown,
)
from nap_stream.records import Status
from nap_stream.settings.messages import FetchSettings
from nap_stream.settings.schema import LimitSettings

BACKOFF_MAX_S = 10.0
MAX_REFERENCE = 8 * 2**10


class FetchLink:
    """Fetches the object of a reference: its address in an object store, or one over HTTP."""

    def __init__(
        self,
        settings: FetchSettings,
        limits: LimitSettings,
        clock: Clock,
        *,
        resolve: Resolve = resolve_host,
    ) -> None:
        self._settings, self._closing = settings, threading.Event()
        max_bytes = settings.max_bytes or limits.max_image_bytes
        hosts = AllowedHosts(settings.allow_hosts, settings.allow_networks, resolve)
        self._http = HttpObjects(settings, hosts, max_bytes, clock)
        self._buckets = BucketObjects(settings, max_bytes)

    def __call__(self, piece: Piece) -> Sequence[Piece]:
        """The object's bytes; ``source_uri`` says where they are from."""
        value = piece.value
        if not isinstance(value, Reference):
            text = as_text(value, "fetch").strip()
            if len(text) > MAX_REFERENCE:
                raise Unreadable(f"fetch: {len(text)} characters are no reference; {shown(text)}")
            if not text.lower().startswith((*PREFIXES, "http://", "https://")):
                known = ", ".join(f"{prefix}…" for prefix in PREFIXES)
                raise Unreadable(
                    f"fetch: expected {known}, http://… or https://…, got {_scheme(text)}"
                )
            value = text
        data, uri = self._fetched(value)
        return (Piece(data, piece.key, piece.has_key, piece.event_time_ms, uri),)

    def close(self) -> None:
        """End what is waited for, and close connections. Safe to call twice."""
        self._closing.set()
        self._http.close()

    def _fetched(self, value: Reference | str) -> tuple[bytes, str]:
        if isinstance(value, str) and value.lower().startswith(PREFIXES):
            value = parsed_reference(value)
        if isinstance(value, Reference):
            reference, uri = value, shown_reference(value)
            return self._tried(lambda: self._buckets.get(reference), uri), uri
        url = parsed_url(value)
        uri = shown_url(url)
        return self._tried(lambda: self._http.get(url), uri), uri

    def _tried(self, get: Callable[[], bytes], uri: str) -> bytes:
        """The bytes, in several attempts.

        Raises:
            Unreadable: There are none; or the last answer was no whole one.
            Away: The last attempt had no answer.
        """
        pause_s = self._settings.backoff_s
        last: Flawed | Away | None = None
        for number in range(self._settings.attempts):
            if number:
                self._closing.wait(min(pause_s, BACKOFF_MAX_S))
                pause_s *= 2
            if self._closing.is_set():
                break
            try:
                return get()
            except Unreadable as unreadable:
                error = f"{unreadable.error} ({uri})"
                raise Unreadable(error, unreadable.status, uri) from None
            except (Flawed, Away) as error:
                last = error
        if isinstance(last, Flawed):
            attempts = self._settings.attempts
            raise Unreadable(
                f"fetch: {last}, in {attempts} attempts ({uri})", Status.FETCH_FAILED, uri
            )
        what, cause = (last.what, last.cause) if last else ("fetching", "it was ended")
        raise Away(what, cause, uri)


def _scheme(text: str) -> str:
    """The beginning of what is no reference; of an address its scheme: the rest may be secret."""
    scheme, found, _ = text.partition("://")
    return f"{scheme[:20]}://…" if found and scheme.isalnum() else shown(text)
