"""The settings of a monitor: frozen models, units in the names, unknown keys refused.

`nap_stream.settings.load` reads them from YAML and the environment.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    PositiveFloat,
    SecretStr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from nap_stream.core.methods import every_method
from nap_stream.core.score_specs import BaseScore, ScoreParameters
from nap_stream.fetched import shown
from nap_stream.settings.alerts import AlertSettings
from nap_stream.settings.drift import DriftSettings
from nap_stream.settings.elsewhere import ElsewhereSettings
from nap_stream.settings.evidence import EvidenceSettings, apart
from nap_stream.settings.frames import RawSettings
from nap_stream.settings.log import LogSettings
from nap_stream.settings.messages import MessageSettings
from nap_stream.settings.oauth import OAuthSettings
from nap_stream.settings.run import DriverSettings, MetricsSettings, TracingSettings, WorkerSettings
from nap_stream.settings.topics import (
    LONGEST_PATTERN,
    TopicSelection,
    require_names,
    require_pattern,
)
from nap_stream.settings.values import (
    AnyPath,
    ExistingObject,
    ExistingPath,
    Positive,
    PositiveSeconds,
    Probability,
    SecretFile,
    Section,
    Sides,
    TopicName,
    is_unset,
    require_server,
)

EVERY_KEY = {"every_key": True}
"""The context in which settings are dumped whole, for people."""
_KEYS_OF_ELSEWHERE = frozenset(
    {"elsewhere", "output_kind", "class_names", "class_names_file", "python_path"}
)
"""Of a model that runs elsewhere. A path does no harm, and is there by default."""
_FIRST_PREPROCESSING_KEYS = frozenset({"resize", "crop", "interpolation", "mean", "std"})

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
CompileMode = Literal["off", "default", "max-autotune"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "AWS_MSK_IAM"]
OutputKind = Literal["logits", "probabilities", "log_probabilities", "sigmoid"]


class KafkaSettings(Section):
    """Where messages come from, and how to connect."""

    bootstrap_servers: tuple[str, ...] = ("localhost:9092",)
    """Brokers to ask first, as host:port."""
    topic: TopicName
    """The topic of image messages. With one of the next two keys it need not be a topic: it is the
    name under which alerts, checkpoints and metrics tell of all of them together."""
    topics: tuple[TopicName, ...] = ()
    """Several topics of image messages, which are judged as one stream."""
    topic_pattern: str | None = Field(default=None, min_length=1, max_length=LONGEST_PATTERN)
    """In place of them a regular expression for the whole name of a topic. One that appears later
    is read from offset 0 on. The topics that this monitor writes never fit."""
    group_id: str = Field(default="nap-stream", min_length=1, max_length=200)
    """The consumer group. Each monitor has its own."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where a first run begins without committed offsets. Partitions added later begin at 0, topics
    added between two runs where they do then."""
    resume_from: Literal["log", "committed"] = "log"
    """What to do where the committed offset is ahead of the log, as after an operator's reset: log
    reads the offsets between; committed leaves them out, and the log declares them as a gap. A
    committed offset behind the log never counts. Where the group has read and there is no log, log
    refuses to start, and committed begins one there."""
    session_timeout_s: PositiveSeconds = 45.0
    """How long the group waits for a silent worker before its partitions move."""
    max_poll_interval_s: PositiveSeconds = 300.0
    """The longest time between two polls before a worker is taken for stuck."""
    max_fetch_bytes: Positive = 50 * 2**20
    """The most that one fetch may bring; must exceed the largest message."""
    connect_timeout_s: PositiveSeconds = 30.0
    """How long to wait for a broker at start before giving up."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: SaslMechanism | None = None
    """AWS_MSK_IAM needs SASL_SSL, `aws_region`, the extra msk and the usual AWS credentials."""
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    """Only from NAP_STREAM__KAFKA__SASL_PASSWORD or `sasl_password_file`."""
    sasl_password_file: SecretFile | None = None
    """A file that holds the password, such as a mounted secret."""
    oauth: OAuthSettings | None = None
    """For OAUTHBEARER."""
    aws_region: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,50}$")] | None = None
    """Of the cluster, for AWS_MSK_IAM."""
    ssl_cafile: ExistingPath | None = None
    ssl_certfile: ExistingPath | None = None
    ssl_keyfile: SecretFile | None = None

    def selection(self, never: Iterable[str] = ()) -> TopicSelection:
        """Which topics are read, but for those of ``never``."""
        if self.topic_pattern is not None:
            return TopicSelection((), self.topic_pattern, frozenset(never))
        return TopicSelection(self.topics or (self.topic,))

    def one(self, topic: str) -> Self:
        """The same, of one topic."""
        return self.model_copy(update={"topic": topic, "topics": (), "topic_pattern": None})

    @field_validator("topic_pattern")
    @classmethod
    def _can_be_compiled(cls, value: str | None) -> str | None:
        if value is not None:
            require_pattern(value)
        return value

    @model_validator(mode="after")
    def _topics_once(self) -> Self:
        require_names(self.topic, self.topics, self.topic_pattern)
        return self

    @field_validator("bootstrap_servers", mode="before")
    @classmethod
    def _split_servers(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("bootstrap_servers")
    @classmethod
    def _need_host_and_port(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for server in value:
            require_server(server)
        if not value:
            raise ValueError("expected at least one host:port")
        return value

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> Self:
        mechanism, password = self.sasl_mechanism, self.sasl_password or self.sasl_password_file
        if not self.security_protocol.startswith("SASL"):
            # A password may stand in an environment that is shared: without SASL nobody gets it.
            if mechanism or self.oauth:
                raise ValueError(
                    f"sasl_mechanism and oauth need security_protocol SASL_SSL or SASL_PLAINTEXT, "
                    f"and it is {self.security_protocol}: change it, or set them to null"
                )
            return self
        if mechanism == "OAUTHBEARER":
            if self.oauth is None:
                raise ValueError("OAUTHBEARER needs oauth: token_endpoint, client_id and a secret")
        elif mechanism == "AWS_MSK_IAM":
            if self.security_protocol != "SASL_SSL" or self.aws_region is None:
                raise ValueError("AWS_MSK_IAM needs security_protocol SASL_SSL, and aws_region")
        elif not (mechanism and self.sasl_username and password):
            raise ValueError(
                f"{self.security_protocol} needs sasl_mechanism, sasl_username and a password "
                "(NAP_STREAM__KAFKA__SASL_PASSWORD or sasl_password_file)"
            )
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        files = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
        given = [name for name in files if getattr(self, name) is not None]
        if given and not self.security_protocol.endswith("SSL"):
            raise ValueError(
                f"{', '.join(given)} need security_protocol SSL or SASL_SSL, and it is "
                f"{self.security_protocol}: change it, or set them to null"
            )
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile, the certificate that it belongs to")
        return self


class PreprocessingSettings(Section):
    """From a decoded image to the model's input. The defaults are those of ImageNet models."""

    resize: Sides | None = 256
    """Pixels of the short side, or (height, width); null to leave the size as it is."""
    crop: Sides = 224
    """Pixels of the centre crop, square or (height, width). It fixes the input's size."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per channel, of pixels scaled to [0, 1]."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """Standard deviation per channel, of pixels scaled to [0, 1]."""
    scaled_decoding: bool = False
    """Whether a JPEG that is larger than ``resize`` by a factor of 2, 4 or 8 is decoded to that
    part of its sides. Much faster for the large frames of cameras, and not quite the same pixels:
    docs/speed.md says what it does to scores."""
    jpeg_decoder: Literal["cpu", "nvjpeg"] = "cpu"
    """Who decodes, resizes and crops baseline JPEGs: the CPU, or the GPU, in batches. Their pixels
    differ a little."""
    bits: Literal[8, 10, 12, 14, 16] | None = None
    """Significant bits of samples that take 16, in the low ones: 12 for a 12-bit camera's PNG. Null
    takes all 16, and warns of images that seem to have fewer."""
    exif_orientation: Literal["ignore", "apply"] = "ignore"
    """Whether an image is turned as its EXIF data say. Training sets of torchvision are not."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """bgr swaps red and blue of every image: for a model of BGR input, or for producers who encode
    BGR as if it were RGB. mean and std are in the order after that."""
    raw: RawSettings | None = None
    """The format and size of raw frames; null where messages hold image files alone."""
    from_model: bool = False
    """Take those of the first five keys that are not given from what the model states: timm's data
    configuration, a Hugging Face folder's preprocessor_config.json, or torchvision's weights.
    `preprocessing: from_model` is short for it."""

    @model_serializer(mode="wrap")
    def _later_keys_where_set(
        self, dump: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        # Fingerprints cover what is dumped. Without the defaults of keys that came later, those of
        # before stay valid: such a default keeps its value, and does what was done without the key.
        fields = type(self).model_fields
        return {
            key: value
            for key, value in dump(self).items()
            if key in _FIRST_PREPROCESSING_KEYS
            or getattr(self, key) != fields[key].default
            or info.context == EVERY_KEY
        }

    @model_validator(mode="after")
    def _scaled_to_something(self) -> Self:
        if self.scaled_decoding and self.resize is None:
            raise ValueError(
                "scaled_decoding needs resize, the size that it decodes for, and resize is null"
            )
        if self.scaled_decoding and self.jpeg_decoder == "nvjpeg":
            raise ValueError("scaled_decoding is of the CPU's decoder, and jpeg_decoder is nvjpeg")
        is_changed = self.exif_orientation == "apply" or self.channel_order == "bgr"
        if is_changed and self.jpeg_decoder == "nvjpeg":
            raise ValueError(
                "exif_orientation: apply and channel_order: bgr are of the CPU's decoder, and "
                "jpeg_decoder is nvjpeg"
            )
        return self


class ModelSettings(Section):
    """The classifier: a callable that builds it, its weights, its classes, its input."""

    model_config = ConfigDict(protected_namespaces=())

    factory: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
    """An importable callable that returns a torch.nn.Module, as package.module:name, or with a
    dotted name after the colon. Null where `weights` is a whole model."""
    kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Keyword arguments of the factory."""
    weights: ExistingObject | None = None
    """A .safetensors file, or a torch file of a state dict (loaded with weights_only). Without a
    factory a whole model: a folder of Hugging Face's save_pretrained, a TorchScript archive, a
    .pt2 file of torch.export, or an .onnx file. A path, or an address as s3://bucket/key
    (gs://, az://)."""
    output: str | None = Field(default=None, min_length=1)
    """Where the logits stand in what the model returns, a tuple, a dict or the like: logits, 0,
    out.cls. Null finds them where there is one place only."""
    output_kind: OutputKind | None = None
    """What the model returns. Null takes it for logits, and refuses what is not. logits takes them
    as they are, whatever they look like; the others are turned into logits. A single output is that
    of the second of two classes."""
    class_names: tuple[str, ...] | None = None
    """In order of the logits; null takes those of a Hugging Face folder, and else names classes by
    their number."""
    class_names_file: ExistingObject | None = None
    """The same, one a line: a path or an address."""
    feature_layer: str | None = None
    """The dotted name of the module whose output is the pre-pooling feature map, or whose input is,
    if it is the pooling itself. Null finds the map; name a module where that fails."""
    elsewhere: ElsewhereSettings | None = None
    """In place of factory and weights: the model runs elsewhere, and messages hold its outputs."""
    python_path: tuple[AnyPath, ...] = Field(default=(Path(),), validate_default=True)
    """Folders from which the factory may be imported, beside the installed packages."""
    preprocessing: PreprocessingSettings = PreprocessingSettings()
    precision: Literal["auto"] | Precision = "auto"
    """Of the forward pass; scores are float32. auto takes the fastest of what `calibrate` measures,
    of those that predict the same class for 99.5 % of the images. tf32 is float32 with the TF32
    kernels of NVIDIA GPUs. A run takes what its calibration says."""
    channels_last: bool | None = None
    """Lay weights and images out with the channels last. Null takes what `calibrate` measures to be
    faster."""
    compile: CompileMode = "off"
    """Run the model under torch.compile, in this mode. Compiling takes up to a minute at each
    start, and a C++ compiler; where it fails, the model runs as it is."""

    @field_validator("preprocessing", mode="before")
    @classmethod
    def _of_the_model(cls, value: object) -> object:
        return {"from_model": True} if value == "from_model" else value

    @field_validator("compile", mode="before")
    @classmethod
    def _off_of_yaml(cls, value: object) -> object:
        # YAML 1.1 reads off as false.
        return "off" if value is False else value

    @model_validator(mode="after")
    def _one_source_of_names(self) -> Self:
        if self.class_names and self.class_names_file:
            raise ValueError("give class_names or class_names_file, not both")
        return self

    @model_validator(mode="after")
    def _a_factory_or_a_whole_model(self) -> Self:
        if self.elsewhere is not None:
            others = self.model_fields_set - _KEYS_OF_ELSEWHERE
            if here := sorted(key for key in others if not is_unset(getattr(self, key))):
                raise ValueError(
                    f"the model runs elsewhere, and {', '.join(here)} would say how it runs here: "
                    "leave out one or the other"
                )
            if self.elsewhere.head is not None and self.output_kind not in {None, "logits"}:
                raise ValueError(
                    f"elsewhere.head is a layer that makes logits, and output_kind is "
                    f"{self.output_kind}: the scores that take the layer are left out there. Leave "
                    "out head, or have logits sent"
                )
            return self
        if self.factory is None and self.weights is None:
            raise ValueError("give factory, or weights that are a whole model, or elsewhere")
        if self.factory is None and self.kwargs:
            raise ValueError("kwargs are a factory's, and there is none")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_refused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        kept = type(self).model_fields if self.elsewhere is None else _KEYS_OF_ELSEWHERE
        return {key: value for key, value in dump(self).items() if key in kept}

    @property
    def origin(self) -> str:
        """For people: the factory, or the name of the file or folder that is the whole model.

        Of a model that runs elsewhere, its name there.
        """
        if self.elsewhere is not None:
            return self.elsewhere.name
        return self.factory or (self.weights.name if self.weights else "")

    @property
    def where(self) -> str:
        """For errors: the key that says what the model is, and its value."""
        if self.elsewhere is not None:
            return f"model.elsewhere.name = {self.elsewhere.name!r}"
        if self.factory is None:
            return f"model.weights = {self.weights and shown(self.weights)}"
        return f"model.factory = {self.factory!r}"


class ScoringSettings(Section):
    """Which scores are computed, and which one flags. Fixed when the model is calibrated.

    A method is auto, the weighted sum of log p-values of several scores that calibration chooses;
    nap; a base score alone (msp, max_logit, energy, react, ash, scale, dice, knn, fdbd,
    mahalanobis, gen, nci); nap-<base>, the weighted geometric mean of both; or fisher-<base>, the
    weighted sum of their log p-values, NAP's two-sided. The last two take the first eight.
    """

    method: str | None = None
    """Null takes auto."""
    scores: tuple[BaseScore, ...] = ()
    """Base scores to compute and log beside msp, max_logit, energy and the method's own."""
    react_percentile: Probability = 0.9
    """Percentile of the activations at which ReAct clips, as a fraction, like the next three."""
    ash_percentile: Probability = 0.9
    """Share of the features that ASH prunes."""
    scale_percentile: Probability = 0.85
    """Share of the features that SCALE leaves out of its denominator."""
    dice_sparsity: Probability = 0.9
    """Share of the head's weights that DICE masks."""
    knn_k: Positive = 10
    """KNN's distance is that to the k-th nearest neighbour."""
    fit_limit: Positive = 1_000
    """Images to fit on, at most: KNN's bank, and the references of p-values."""

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str | None) -> str | None:
        names = [str(method) for method in every_method()]
        if value is not None and value not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return value

    @model_validator(mode="after")
    def _neighbours_among_fitted(self) -> Self:
        if self.knn_k >= self.fit_limit:
            raise ValueError("knn_k must be below fit_limit")
        return self

    def parameters(self) -> ScoreParameters:
        """The parameters of the base scores."""
        return ScoreParameters(
            knn_bank_size=self.fit_limit,
            **self.model_dump(exclude={"method", "scores", "fit_limit"}),
        )


class LimitSettings(Section):
    """What is refused before it is decoded."""

    max_image_bytes: Positive = 20 * 2**20
    max_image_pixels: Positive = 64_000_000
    max_message_bytes: Positive = 45 * 2**20
    max_images_per_message: Positive = 1_000
    damaged: Literal["keep", "refuse"] = "keep"
    """What becomes of an image that is decoded although its decoder found damage, such as a lost
    packet: keep scores it, with what was found in the column decode_warning; refuse makes it
    corrupt, without scores."""
    max_key_bytes: Positive = 16 * 2**10
    """Of a message's key and kept headers together: each row of a batch repeats them."""


class DeadLetterSettings(Section):
    """Where messages go that cannot be decoded."""

    topic: TopicName = "nap-stream-dead-letters"


class Settings(Section):
    """Everything that a run needs to know."""

    kafka: KafkaSettings
    model: ModelSettings
    scoring: ScoringSettings = ScoringSettings()
    calibration: ExistingObject
    """The folder that `nap-stream calibrate` wrote, or the address of its files, as
    s3://bucket/prefix (gs://, az://)."""
    log: LogSettings
    evidence: EvidenceSettings = EvidenceSettings()
    limits: LimitSettings = LimitSettings()
    messages: MessageSettings = MessageSettings()
    worker: WorkerSettings = WorkerSettings()
    driver: DriverSettings = DriverSettings()
    drift: DriftSettings = DriftSettings()
    alerts: AlertSettings = AlertSettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings | None = None

    @property
    def written(self) -> tuple[str, ...]:
        """All topics that a run writes."""
        signed = self.log.checkpoints
        copies = () if signed is None or signed.topic is None else (signed.topic,)
        return (self.alerts.topic, self.dead_letters.topic, *copies)

    @property
    def reads(self) -> TopicSelection:
        """Which topics a run reads."""
        return self.kafka.selection(self.written)

    @property
    def topics(self) -> tuple[str, ...]:
        """All topics that a run reads, or may write, by name; none that a pattern finds."""
        return (*self.reads.names, *self.written)

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.drift.keys is not None:
            self.log.require_key(self.drift.keys.by)
        if self.model.elsewhere is not None and self.messages.read:
            raise ValueError(
                "messages.read finds images, and with model.elsewhere messages hold a model's "
                "outputs: leave out one or the other"
            )
        if self.model.elsewhere is not None and self.worker.num_gpus:
            raise ValueError(
                "worker.num_gpus asks for a GPU, and with model.elsewhere nothing computes on one: "
                "leave it out"
            )
        if self.evidence.root is not None and not apart(self.evidence.root, self.log.root):
            raise ValueError("evidence.root and log.root must lie apart: neither in the other")
        if self.evidence.root is not None and self.model.elsewhere is not None:
            raise ValueError("evidence.root keeps images, and with model.elsewhere there are none")
        if len({*self.written}) < len(self.written):
            raise ValueError("alerts, dead letters and checkpoints need a topic each")
        if both := sorted({*self.reads.names} & {*self.written}):
            key = "kafka.topics has" if self.kafka.topics else "kafka.topic is"
            raise ValueError(f"{key} {', '.join(both)}, which this monitor writes")
        if self.worker.revoke_deadline_s * 2 > self.kafka.session_timeout_s:
            raise ValueError(
                "worker.revoke_deadline_s must be at most half of kafka.session_timeout_s"
            )
        return self
