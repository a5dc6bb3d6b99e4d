"""How a run is supervised, and where it is watched."""

from typing import Annotated

from pydantic import Field

from nap_stream.settings.values import AnyPath, PositiveSeconds, Section


class DriverSettings(Section):
    """How the driver looks after the workers."""

    max_restarts: Annotated[int, Field(ge=0)] = 20
    """Restarts of one worker, or of the coordinator, before the run ends: some eight minutes of
    what ends it at once. Progress for stall_timeout_s earns them back."""
    backoff_initial_s: PositiveSeconds = 1.0
    backoff_max_s: PositiveSeconds = 30.0
    stall_timeout_s: PositiveSeconds = 120.0
    """A worker without progress for so long is replaced. A coordinator silent for so long ends the
    run."""
    start_timeout_s: PositiveSeconds = 600.0
    """How long a worker may take to be placed, to load its model and to join the group."""
    shutdown_deadline_s: PositiveSeconds = 30.0
    """One deadline for the whole shutdown."""


class MetricsSettings(Section):
    """The one scrape target of the job: /metrics, /healthz, /livez and /readyz."""

    host: str = "127.0.0.1"
    """0.0.0.0 lets other machines scrape it."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 9_464
    """0 takes a free port."""
    discovery_file: AnyPath | None = None
    """Where the driver tells Prometheus (`file_sd_configs`) on which node the coordinator is."""
