"""How a token for Kafka's OAUTHBEARER is had."""

from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from nap_stream.settings.values import (
    ExistingPath,
    HttpAddress,
    PositiveSeconds,
    SecretFile,
    Section,
    require_unread,
)


class OAuthSettings(Section):
    """A token by client credentials (RFC 6749, 4.4); it is had anew before it ends."""

    token_endpoint: HttpAddress
    """Such as https://idp.example/realms/a/protocol/openid-connect/token; http on this machine."""
    client_id: str = Field(min_length=1, max_length=500)
    client_secret: SecretStr | None = None
    """Only from NAP_STREAM__KAFKA__OAUTH__CLIENT_SECRET or `client_secret_file`."""
    client_secret_file: SecretFile | None = None
    """A file that holds the secret, such as a mounted one. It is read for each token."""
    scope: str | None = Field(default=None, min_length=1, max_length=1_000)
    """What the token is for, where the endpoint wants to be told; several with spaces between."""
    ca_file: ExistingPath | None = None
    """Certificates to trust for the endpoint, instead of the system's."""
    timeout_s: PositiveSeconds = 10.0
    """From connecting to the endpoint to the end of its answer."""

    @field_validator("token_endpoint")
    @classmethod
    def _encrypted(cls, value: str) -> str:
        require_unread(value, "secret")
        return value

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.client_secret is None) == (self.client_secret_file is None):
            raise ValueError(
                "expected one of client_secret_file and NAP_STREAM__KAFKA__OAUTH__CLIENT_SECRET"
            )
        return self
