"""How a run works: its workers, how they are supervised, and where it is watched."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nap_stream.settings.values import (
    AnyPath,
    ExistingPath,
    HttpAddress,
    Positive,
    PositiveSeconds,
    SecretFile,
    Section,
    require_unread,
)

MAX_CPU_SHARE = 8
"""CPUs that a worker takes by itself at most: one process makes good use of no more."""


class WorkerSettings(Section):
    """The worker actors."""

    count: Positive | Literal["auto"] = 1
    """How many. auto follows the number of partitions, and the room that the nodes of the Ray
    cluster have, while it runs, between the next two."""
    min_count: Positive = 1
    """With count auto: a cluster without room for so many is refused at the start, and fewer are
    told by /healthz."""
    max_count: Positive = 16
    """With count auto: the most, where partitions and room are enough for them."""
    autoscaled: bool = False
    """Whether the Ray cluster grows when more is asked of it, as with KubeRay's autoscaler. Then
    workers that have no room yet are asked for all the same, and wait for a node. It needs
    num_gpus: nodes that are not there yet do not say whether they have GPUs."""
    num_gpus: Annotated[float, Field(ge=0, le=16)] | None = None
    """GPUs a worker, fractions allowed; null takes 1 where Ray has GPUs, else 0."""
    batch_size: Positive | None = None
    """Images of a forward pass. Null takes 32, and of inputs smaller than 224 x 224 as many as have
    the same number of pixels, 128 at most."""
    linger_ms: Annotated[int, Field(ge=0)] = 50
    """The longest that an image waits for its batch to fill."""
    num_cpus: Annotated[int, Field(gt=0, le=256)] | None = None
    """CPUs that Ray counts for a worker. Null takes torch_threads on a cluster; where `run` starts
    Ray by itself, an equal share of the machine's, 8 at most."""
    torch_threads: Positive = 1
    """Threads of torch for one batch on the CPU. One for each of several batches is faster."""
    batches_in_flight: Annotated[int, Field(gt=0, le=64)] | None = None
    """Batches that a worker scores at once, a thread and the model's activations for each. Null
    takes num_cpus / torch_threads on a CPU, 2 on a GPU."""
    decode_threads: Positive | None = None
    """Null takes num_cpus."""
    max_in_hand_images: Positive = 2_048
    """Images between poll and score before fetching pauses: some batches for each CPU."""
    max_in_hand_bytes: Positive = 256 * 2**20
    """Bytes before fetching pauses: of messages until they are decoded, of pixels at the model's
    input size, or JPEGs left to a GPU, until they are scored, of failed images until they are dead
    letters. Beside it a fetch may bring kafka.max_fetch_bytes more, each of decode_threads takes
    about 16 bytes a pixel of its image, and each partition holds rows of at most
    log.segment_max_bytes. With evidence.root the images' own bytes may take half of it more."""
    revoke_deadline_s: PositiveSeconds = 5.0
    """How long a rebalance may wait for what is in flight."""

    @property
    def at_most(self) -> int:
        """How many workers there may be at any time."""
        return self.max_count if self.count == "auto" else self.count

    @property
    def at_least(self) -> int:
        """How many workers there are to be at any time."""
        return self.min_count if self.count == "auto" else self.count

    @model_validator(mode="after")
    def _least_and_most(self) -> Self:
        if self.min_count > self.max_count:
            raise ValueError("min_count must be at most max_count")
        return self

    @model_validator(mode="after")
    def _nodes_to_come_are_known(self) -> Self:
        if self.autoscaled and self.num_gpus is None:
            raise ValueError(
                "autoscaled needs num_gpus: nodes that are not there yet do not say whether they "
                "have GPUs. 0 for workers on CPUs"
            )
        return self

    @model_validator(mode="after")
    def _threads_have_cpus(self) -> Self:
        if self.num_cpus is not None and self.num_cpus < self.torch_threads:
            raise ValueError("num_cpus must be at least torch_threads")
        return self


def cpus_a_worker(settings: WorkerSettings, shared: int, on_gpus: int = 0) -> int:
    """How many CPUs a worker counts as, and uses, of those that all workers share; 0 for none.

    Where ``count`` is auto, as few workers share them as make good use of them, and of the GPUs,
    which have room for ``on_gpus``.
    """
    if settings.num_cpus is not None:
        return settings.num_cpus
    few = min(max(-(-shared // MAX_CPU_SHARE), on_gpus), settings.max_count)
    count = max(few, settings.at_least) if settings.count == "auto" else settings.count
    return max(settings.torch_threads, min(MAX_CPU_SHARE, shared // max(1, count)))


class DriverSettings(Section):
    """How the driver looks after the workers."""

    max_restarts: Annotated[int, Field(ge=0)] = 20
    """Restarts of one worker, or of the coordinator, before the run ends: some eight minutes of
    what ends it at once. Progress for stall_timeout_s earns them back."""
    backoff_initial_s: PositiveSeconds = 1.0
    backoff_max_s: PositiveSeconds = 30.0
    stall_timeout_s: PositiveSeconds = 120.0
    """A worker without progress for so long is replaced, and a coordinator silent for so long. The
    run ends where the new coordinator is silent, too."""
    start_timeout_s: PositiveSeconds = 600.0
    """How long a worker may take to be placed, to load its model and to join the group."""
    shutdown_deadline_s: PositiveSeconds = 30.0
    """One deadline for the whole shutdown."""


class TracingSettings(Section):
    """Traces by OpenTelemetry, a trace a segment. They need the extra traces."""

    endpoint: HttpAddress
    """Of OTLP over HTTP, such as http://collector:4318/v1/traces."""
    sample: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of segments that are traced, with what comes of them."""
    bearer_token_file: SecretFile | None = None
    """A file that holds a token for the Authorization header, such as a mounted secret. It is read
    for each request, and needs https, but for an endpoint on this machine."""
    ca_file: ExistingPath | None = None
    """Certificates to trust for the endpoint, instead of the system's."""

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        if self.bearer_token_file is not None:
            require_unread(self.endpoint, "token")
        return self


class MetricsSettings(Section):
    """The one scrape target of the job: /metrics, /healthz, /livez and /readyz, and a page at /."""

    host: str = "127.0.0.1"
    """0.0.0.0 lets other machines scrape it."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 9_464
    """0 takes a free port."""
    page: bool = True
    """Whether / shows how the run is. It names keys and alerts, to whoever reaches the port."""
    discovery_file: AnyPath | None = None
    """Where the driver tells Prometheus (`file_sd_configs`) on which node the coordinator is."""
