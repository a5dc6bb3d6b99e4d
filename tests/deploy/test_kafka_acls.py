"""What the KafkaUser may do, on a real broker that allows nothing else: enough, and all needed."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)

from nap_stream.alert.event import AlertEvent
from nap_stream.alert.kafka import KafkaAlertSink
from nap_stream.dead_letter import KafkaDeadLetters
from nap_stream.demo.produce import produce
from nap_stream.errors import BrokerError
from nap_stream.kafka.client import create_topics, require_topics
from nap_stream.settings.schema import KafkaSettings, Settings
from nap_stream.source.kafka import KafkaSource
from tests.dead_letter.test_contract import failed
from tests.deploy.manifests import all_of, overlay, settings_in
from tests.e2e.calibrated import calibrated
from tests.e2e.monitor import Monitor, health, metrics_url, model_section
from tests.e2e.on_ray import running_alone
from tests.source.test_contract import Listener, poll_messages
from tests.support.apache_kafka import ACCESS_CONTROL, SASL_PASSWORD, SASL_USER, ApacheKafka
from tests.support.images import write_images
from tests.support.leftovers import short_folder
from tests.support.topics import administering, read_to_end, send
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.data, pytest.mark.slow]

Right = tuple[str, str, str]
"""(kind of resource, its name, operation)."""


@dataclass(frozen=True)
class Guarded:
    """A broker with the topics of the manifests, and the settings of the user whom ACLs bind."""

    kafka: ApacheKafka
    admin: KafkaAdminClient
    manifest: Settings
    user: KafkaSettings
    rights: frozenset[Right]

    def allow(self, rights: frozenset[Right]) -> None:
        """Give the user these rights and no others; return when the broker knows."""
        everything = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
        of_user = ACLFilter(
            f"User:{SASL_USER}", "*", ACLOperation.ANY, ACLPermissionType.ANY, everything
        )
        self.admin.delete_acls([of_user])
        wait_until(lambda: not self.admin.describe_acls(of_user)[0], "no right")
        self.admin.create_acls([_acl(right) for right in rights])
        wait_until(lambda: len(self.admin.describe_acls(of_user)[0]) == len(rights), "the rights")

    @property
    def anybody(self) -> KafkaSettings:
        """The same topic and group, as one whom no ACL binds."""
        return KafkaSettings(
            bootstrap_servers=(self.kafka.bootstrap,),
            topic=self.manifest.kafka.topic,
            group_id=self.manifest.kafka.group_id,
        )


def _acl(right: Right) -> ACL:
    kind, name, operation = right
    return ACL(
        f"User:{SASL_USER}",
        "*",
        ACLOperation[operation.upper()],
        ACLPermissionType.ALLOW,
        ResourcePattern(ResourceType[kind.upper()], name),
    )


def rights_of_the_manifest() -> frozenset[Right]:
    (user,) = all_of("KafkaUser", overlay("cpu-trial"))
    found = set()
    for rule in user["spec"]["authorization"]["acls"]:
        resource = rule["resource"]
        assert resource["patternType"] == "literal"
        assert rule.get("type", "allow") == "allow"
        for operation in rule["operations"]:
            found.add((resource["type"], resource["name"], operation))
    return frozenset(found)


@pytest.fixture(scope="module")
def guarded(kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    manifest = settings_in(overlay("cpu-trial"), tmp_path_factory.mktemp("pod"))
    folder = tmp_path_factory.mktemp("guarded-kafka")
    with (
        ApacheKafka(kafka_jars, folder, extra=ACCESS_CONTROL) as kafka,
        administering(kafka.bootstrap) as admin,
    ):
        user = KafkaSettings(
            bootstrap_servers=(kafka.sasl_bootstrap,),
            topic=manifest.kafka.topic,
            group_id=manifest.kafka.group_id,
            connect_timeout_s=PATIENCE_S,
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_username=SASL_USER,
            sasl_password=SASL_PASSWORD,
        )
        found = Guarded(kafka, admin, manifest, user, rights_of_the_manifest())
        create_topics(found.anybody, manifest.topics, 2)
        yield found


def do_all(guarded: Guarded, instance: str) -> None:
    """All that a run asks of the broker, one after the other."""
    settings, names = guarded.user, guarded.manifest
    require_topics(settings, names.topics)
    source = KafkaSource(settings, Listener(), instance_id=instance)
    try:
        send(guarded.anybody, [b"x"])
        (message, *_) = poll_messages(source, 1)
        assert source.commit({message.partition: message.offset + 1})
    finally:
        source.close(10)
    letters = KafkaDeadLetters(settings, names.dead_letters.topic, max_payload_bytes=1_000)
    try:
        letters.send(failed(b"bad"))
        letters.flush(PATIENCE_S)
    finally:
        letters.close()
    sink = KafkaAlertSink(settings, names.alerts.topic)
    try:
        sink.publish(AlertEvent("monitor", {"id": instance}))
        assert instance in sink.delivered()
    finally:
        sink.close()


def test_the_rights_are_enough_and_without_any_of_them_something_fails(guarded: Guarded) -> None:
    assert len(guarded.rights) == 5
    guarded.allow(guarded.rights)
    do_all(guarded, "all")
    for right in sorted(guarded.rights):
        guarded.allow(guarded.rights - {right})
        with pytest.raises(BrokerError) as caught:
            do_all(guarded, "-".join(right))
        assert not caught.value.retriable, right
        assert f"llow user {SASL_USER}" in caught.value.action, right


@pytest.mark.ray
def test_a_whole_run_needs_no_more_than_these_rights(guarded: Guarded, tmp_path: Path) -> None:
    guarded.allow(guarded.rights)
    names = guarded.manifest
    monitor = Monitor(guarded.anybody, tmp_path)
    (tmp_path / "password").write_text(SASL_PASSWORD)
    tree = {
        "kafka": {
            "bootstrap_servers": guarded.kafka.sasl_bootstrap,
            "topic": names.kafka.topic,
            "group_id": names.kafka.group_id,
            "resume_from": "committed",  # others of this group may have read before
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_username": SASL_USER,
            "sasl_password_file": "password",
        },
        "model": model_section(),
        "calibration": str(calibrated(tmp_path, model_section())),
        "log": {"root": "log", "segment_max_age_s": 0.5},
        "worker": {"count": 1, "num_gpus": 0},
        "drift": {"window_records": 200, "pane_ms": 100, "expected_run_length": 100_000},
        "alerts": {"topic": names.alerts.topic},
        "dead_letters": {"topic": names.dead_letters.topic},
        "metrics": {"port": 0},
    }
    monitor.config.write_text(yaml.safe_dump(tree))
    files = tmp_path / "files"
    write_images(files, 300)
    write_images(files, 300, first_seed=300, flat=True)
    letters = len(read_to_end(guarded.anybody, names.dead_letters.topic))
    alerts = len(read_to_end(guarded.anybody, names.alerts.topic))
    send(guarded.anybody, [b"this is no image"])
    produce(guarded.anybody, files, rate=250)

    def all_done() -> bool:
        assert run.running, run.tail
        return (
            len(monitor.rows()) >= 601  # and what others have left in the topic uncommitted
            and len(read_to_end(guarded.anybody, names.dead_letters.topic)) > letters
            and len(read_to_end(guarded.anybody, names.alerts.topic)) > alerts
        )

    with short_folder() as ray, running_alone(monitor, {"RAY_TMPDIR": str(ray)}, tmp_path) as run:
        url = metrics_url(run)
        wait_until(all_done, lambda: f"rows, a dead letter and an alert of {run}")
        wait_until(lambda: health(url)[0] == 200, "a healthy run")
        run.send(signal.SIGTERM)
        assert run.wait() == 0, run.tail
    assert "AuthorizationFailed" not in run.stderr
    assert monitor.committed() == monitor.chain_ends()
