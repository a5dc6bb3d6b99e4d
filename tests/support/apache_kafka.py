"""Apache Kafka in KRaft mode, as one process that a test can stop, kill and start again."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Self

from nap_stream.errors import NapStreamError
from nap_stream.kafka.client import connect
from nap_stream.settings.schema import KafkaSettings
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S

POM = Path(__file__).parent / "kafka" / "pom.xml"
KAFKA_VERSION = "4.1.2"
JAVA_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

CLUSTER_ID = "bmFwLXN0cmVhbS10ZXN0cw"

_PROPERTIES = """\
node.id={node}
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
    required user_{user}="{password}";
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
auto.create.topics.enable=false
message.max.bytes=52428800
"""
_FIRST_NODE = """\
process.roles=broker,controller
listeners=PLAINTEXT://{host}:{port},SASL://{host}:{sasl_port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port},SASL://{host}:{sasl_port}
"""
_OTHER_NODE = """\
process.roles=broker
listeners=PLAINTEXT://{host}:{port},SASL://{host}:{sasl_port}
advertised.listeners=PLAINTEXT://{host}:{port},SASL://{host}:{sasl_port}
"""
ACCESS_CONTROL = """\
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""
"""For `ApacheKafka`'s ``extra``: `SASL_USER` may do nothing that no ACL allows."""


SASL_USER = "monitor"
SASL_PASSWORD = "right"


class KafkaNotThereError(Exception):
    """Apache Kafka cannot be run here, and why."""


def resolve_jars() -> Path:
    """The folder of Kafka's jars, fetched with Maven the first time.

    Raises:
        KafkaNotThereError: Java or Maven is missing, or the jars cannot be had.
    """
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise KafkaNotThereError(f"{program} is not on the path")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nap-stream"
    folder = cache / f"kafka-{KAFKA_VERSION}"
    if folder.is_dir():
        return folder
    partial = cache / f".kafka-{KAFKA_VERSION}.{os.getpid()}"
    command = [
        *("mvn", "--batch-mode", "--quiet", "--file", str(POM)),
        *("dependency:copy-dependencies", f"-DoutputDirectory={partial}"),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
        partial.rename(folder)
    except (subprocess.SubprocessError, OSError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if folder.is_dir():  # another run was first
            return folder
        output = getattr(error, "stdout", b"") or b""
        raise KafkaNotThereError(
            f"Maven could not fetch the jars: {error} {output[-500:].decode(errors='replace')}"
        ) from error
    return folder


class ApacheKafka:
    """A broker and controller in one process, on free ports, with its data in a folder.

    ``bootstrap`` is its address for everybody, ``sasl_bootstrap`` that for `SASL_USER` alone.

    Args:
        jars: From `resolve_jars`.
        folder: For configuration, data and log; it must be empty.
        first: Makes this one a second broker, of the cluster of that first one.
        extra: Lines to add to the configuration.
        host: The address at which clients find it.
        keeps_classes: Has Java's archive of its classes written when it ends, where there is none
            yet: whatever starts after that takes half of the time.
    """

    def __init__(
        self,
        jars: Path,
        folder: Path,
        *,
        first: "ApacheKafka | None" = None,
        extra: str = "",
        host: str = "127.0.0.1",
        keeps_classes: bool = False,
    ) -> None:
        self._classpath = f"{jars}/*"
        self._folder = folder
        self._classes = jars.parent / f"{jars.name}.jsa"
        self._new_classes = folder / "classes.jsa" if keeps_classes else None
        self._process: subprocess.Popen[bytes] | None = None
        port, sasl_port = free_port(), free_port()
        self.node = 2 if first else 1
        self.controller_port: int = first.controller_port if first else free_port()
        self.bootstrap = f"{host}:{port}"
        self.sasl_bootstrap = f"{host}:{sasl_port}"
        self._properties = folder / "server.properties"
        template = _PROPERTIES + (_OTHER_NODE if first else _FIRST_NODE) + extra
        self._properties.write_text(
            template.format(
                node=self.node,
                host=host,
                port=port,
                sasl_port=sasl_port,
                controller_port=self.controller_port,
                data=folder / "data",
                user=SASL_USER,
                password=SASL_PASSWORD,
            )
        )
        self._java(
            *("kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER_ID),
            *("--config", str(self._properties)),
        )

    def start(self) -> None:
        """Start, and return when it answers."""
        options = self._java_options()
        if self._new_classes and not self._classes.exists():
            options = (*options, f"-XX:ArchiveClassesAtExit={self._new_classes}")
        with (self._folder / "kafka.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["java", *options, "-cp", self._classpath, "kafka.Kafka", self._properties],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            connect(
                KafkaSettings(
                    bootstrap_servers=(self.bootstrap,), topic="none", connect_timeout_s=PATIENCE_S
                )
            )
        except NapStreamError:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop in good order."""
        self._end(graceful=True)

    def kill(self) -> None:
        """End the process at once."""
        self._end(graceful=False)

    def freeze(self) -> None:
        """Have the process answer nothing, without closing a connection."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have a frozen process go on."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._new_classes and not self._classes.exists():
            self.stop()
            if self._new_classes.exists():
                partial = self._classes.with_name(f".{self._classes.name}.{os.getpid()}")
                shutil.copyfile(self._new_classes, partial)
                partial.rename(self._classes)
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, *, graceful: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if graceful:
            process.terminate()
        else:
            process.kill()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _java_options(self) -> tuple[str, ...]:
        if not self._classes.exists():
            return JAVA_OPTIONS
        # Java goes on without an archive that is of another Java or other jars.
        return (*JAVA_OPTIONS, f"-XX:SharedArchiveFile={self._classes}")

    def _java(self, *arguments: str) -> None:
        subprocess.run(
            ["java", *self._java_options(), "-cp", self._classpath, *arguments],
            check=True,
            capture_output=True,
            timeout=PATIENCE_S,
        )
