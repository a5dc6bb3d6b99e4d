"""The settings of alerts: where they go, and what they show."""

import re
from typing import Annotated, Self

from pydantic import Field, field_serializer, field_validator, model_validator
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from nap_stream.settings.values import (
    ExistingPath,
    HttpAddress,
    PositiveSeconds,
    Probability,
    SecretFile,
    Section,
    TopicName,
    require_unread,
)

LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,99}")
RESERVED_LABELS = ("alertname", "monitor", "topic", "key", "severity")
MAX_LABEL = 1_000
MASK = "…"
"""Stands for what is not shown of an address."""


class WebhookSettings(Section):
    """An HTTP endpoint that takes what Alertmanager's POST /api/v2/alerts takes.

    Some addresses have a secret in their path or query: only the origin is shown.
    """

    url: str = Field(pattern=r"^https?://[^\s@]+$", max_length=2_000, repr=False)
    """Such as http://alertmanager:9093/api/v2/alerts; without a user or password in it."""
    bearer_token_file: SecretFile | None = None
    """A file that holds a token for the Authorization header, such as a mounted secret. It needs
    https, but for an endpoint on this machine."""
    ca_file: ExistingPath | None = None
    """Certificates to trust instead of the system's."""
    timeout_s: PositiveSeconds = 10.0
    """For each attempt, to connect and to answer."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 4
    """Attempts before the alert goes back to the queue, to be sent again later."""

    @field_validator("url")
    @classmethod
    def _whole_address(cls, value: str) -> str:
        if MASK in value:
            raise ValueError(f"the address is masked: fill in what {MASK} stands for")
        try:
            host = parse_url(value).host
        except LocationParseError:
            host = None
        if not host:
            raise ValueError("not an address")
        return value

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        if self.bearer_token_file is not None:
            require_unread(self.url, "token")
        return self

    @field_serializer("url", when_used="json")
    def _masked(self, value: str) -> str:
        return value if value.rstrip("/") == self.origin else f"{self.origin}/{MASK}"

    @property
    def origin(self) -> str:
        """Scheme, host and port of the address: the part that may be shown."""
        parsed = parse_url(self.url)
        return f"{parsed.scheme}://{parsed.netloc}"


class AlertSettings(Section):
    """Where alerts go, and what they show."""

    topic: TopicName = "nap-stream-alerts"
    monitor: str = Field(default="ood-fraction", min_length=1, max_length=200)
    """The name of this monitor: Kafka key and part of every alert's id."""
    examples: Annotated[int, Field(ge=0, le=100)] = 5
    """How many of the most extreme records an alert shows."""
    contributors: Annotated[int, Field(ge=0, le=100)] = 5
    """Keys and predicted classes that an alert names: those with the most flagged records."""
    repeat_interval_s: Annotated[float, Field(ge=1, le=30 * 86_400)] = 4 * 3_600.0
    """A firing alert is sent again after this time, in event time."""
    critical_fraction: Probability = 0.3
    """OOD fraction from which on the severity of a firing alert is critical; below, warning."""
    runbook_url: HttpAddress | None = None
    """Shown in every alert: what to do."""
    dashboard_url: HttpAddress | None = None
    """Shown in every alert: where to look."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Put on every alert, such as team or site, for routing."""
    log: bool = False
    """Write alerts to the program's log too."""
    webhook: WebhookSettings | None = None
    """Send alerts there too; null for none."""

    @field_validator("labels")
    @classmethod
    def _label_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not LABEL_NAME.fullmatch(name) or name in RESERVED_LABELS or len(text) > MAX_LABEL:
                raise ValueError(
                    f"{name!r}: expected letters, digits and _, a value of at most {MAX_LABEL} "
                    f"characters, and none of {', '.join(RESERVED_LABELS)}"
                )
        return value
