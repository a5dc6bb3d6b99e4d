"""The Kubernetes manifests: they render, fit the real schemas, and mean what the program means."""

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml

from deploy.kubernetes.prometheus_rule import MANIFEST, manifest
from tests.deploy.manifests import (
    KUBERNETES,
    OVERLAYS,
    PROJECT,
    SCHEMAS,
    Tree,
    all_of,
    groups,
    overlay,
    pod_templates,
    problems,
    rendered,
    settings_in,
    signature,
    supervisor,
    the,
)

EACH = pytest.mark.parametrize("name", OVERLAYS)
KUBERNETES_VERSIONS = ("1.34", "1.37")
"""The oldest and the newest of which kubernetes-validate has the schemas."""
MADE_BY_OPERATORS = {
    "nap-stream": {"auth_token"},  # KubeRay, of a RayCluster with authOptions
    "nap-stream-monitor": {"password"},  # Strimzi, of a KafkaUser
    "images-cluster-ca-cert": {"ca.crt"},  # Strimzi, of a Kafka
}
"""Secrets and their keys."""
GUIDE = PROJECT / "docs" / "kubernetes.md"


def every_document() -> list[Tree]:
    found = {signature(document): document for name in OVERLAYS for document in overlay(name)}
    return list(found.values())


def test_custom_resources_fit_the_schemas_of_their_operators() -> None:
    custom = [document for document in every_document() if document["kind"] in SCHEMAS]
    assert {document["kind"] for document in custom} == {*SCHEMAS}
    found = {f"{d['kind']} {d['metadata']['name']}": problems(d) for d in custom}
    assert {name: said for name, said in found.items() if said} == {}


def test_a_field_that_no_schema_knows_is_found() -> None:
    cluster = copy.deepcopy(the("RayCluster", overlay("cpu-trial")))
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMount"] = []

    assert any("volumeMount" in said for said in problems(cluster))


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kubernetes_own_kinds_fit_its_schemas(version: str) -> None:
    own = [document for document in every_document() if document["kind"] not in SCHEMAS]
    # A pod in a custom resource is validated with it, by an older copy of Kubernetes' schema.
    own += [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        for name in OVERLAYS
        for _, template in pod_templates(overlay(name))
    ]
    for document in {signature(each): each for each in own}.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_rules_are_those_of_the_file_for_prometheus() -> None:
    assert MANIFEST.read_text() == manifest(), f"run python {MANIFEST.parent.parent.name}/…"
    rules = yaml.safe_load((PROJECT / "deploy" / "prometheus-rules.yaml").read_text())
    assert unfolded(the("PrometheusRule", overlay("cpu-trial"))["spec"]) == unfolded(rules)


def unfolded(tree: Any) -> Any:
    """A tree whose texts have single spaces: kustomize breaks lines in its own way."""
    if isinstance(tree, str):
        return " ".join(tree.split())
    if isinstance(tree, list):
        return [unfolded(each) for each in tree]
    if isinstance(tree, dict):
        return {key: unfolded(each) for key, each in tree.items()}
    return tree


@EACH
def test_the_program_takes_the_settings_with_what_the_pods_mount(name: str, tmp_path: Path) -> None:
    documents = overlay(name)
    settings = settings_in(documents, tmp_path)
    cluster = groups(the("RayCluster", documents))
    workers, driver = cluster["worker"], cluster["driver"]

    # `run` refuses a cluster that is too small, and autoscaling comes after that.
    assert settings.worker.count <= workers["minReplicas"] <= workers["replicas"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (settings.worker.num_cpus or settings.worker.torch_threads) <= int(limits["cpu"])
    assert (settings.worker.num_gpus or 0) <= int(limits.get("nvidia.com/gpu", 0))
    ports = driver["template"]["spec"]["containers"][0]["ports"]
    assert {"name": "metrics", "containerPort": settings.metrics.port} in ports
    assert settings.metrics.host == "0.0.0.0"  # kubelet's probes are exec, Prometheus is elsewhere
    partitions = the("KafkaTopic", documents, settings.kafka.topic)["spec"]["partitions"]
    assert partitions >= settings.worker.count
    assert {topic["metadata"]["name"] for topic in all_of("KafkaTopic", documents)} == {
        *settings.topics
    }
    assert all_of("KafkaUser", documents)[0]["metadata"]["name"] == settings.kafka.sasl_username


@EACH
def test_every_name_that_a_pod_uses_is_there(name: str) -> None:
    documents = overlay(name)
    there = {(d["kind"], d["metadata"]["name"]) for d in documents}
    secrets = MADE_BY_OPERATORS | secrets_of_the_guide()
    claimed = {
        template["metadata"]["name"]
        for document in all_of("StatefulSet", documents)
        for template in document["spec"]["volumeClaimTemplates"]
    }
    for owner, template in pod_templates(documents):
        pod = template["spec"]
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there, owner
            if "persistentVolumeClaim" in volume:
                wanted = volume["persistentVolumeClaim"]["claimName"]
                assert ("PersistentVolumeClaim", wanted) in there, owner
            if "secret" in volume:
                keys = {item["key"] for item in volume["secret"]["items"]}
                assert keys <= secrets[volume["secret"]["secretName"]], owner
        for container in pod["containers"]:
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted <= {*volumes, *claimed}, owner
            for reference in secret_references(container):
                assert reference["key"] in secrets[reference["name"]], owner
            for source in container.get("envFrom", []):
                assert source["secretRef"]["name"] in secrets, owner
        assert pod.get("serviceAccountName") is None, "none is made"


def secret_references(container: Tree) -> list[Tree]:
    sources = [variable.get("valueFrom", {}) for variable in container.get("env", [])]
    return [source["secretKeyRef"] for source in sources if "secretKeyRef" in source]


def secrets_of_the_guide() -> dict[str, set[str]]:
    """Those that whoever deploys makes by the commands of the guide, with their keys."""
    text = GUIDE.read_text().replace("\\\n", " ")
    made = re.findall(r"create secret generic (\S+)(.*)", text)
    return {name: set(re.findall(r"--from-\w+=([\w.]+)=", rest)) for name, rest in made}


@EACH
def test_selectors_ports_and_names_of_one_manifest_in_another_exist(name: str) -> None:
    documents = overlay(name)
    cluster = the("RayCluster", documents)
    # KubeRay gives every pod of a cluster this label.
    of_ray = {"ray.io/cluster": cluster["metadata"]["name"]}
    labels = [
        {**template["metadata"]["labels"], **(of_ray if owner.startswith("RayCluster") else {})}
        for owner, template in pod_templates(documents)
    ]
    selectors = [
        selector
        for kind in ("NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "Service")
        for document in all_of(kind, documents)
        for selector in own_selectors(document)
    ]
    assert len(selectors) >= 12
    for selector in selectors:
        assert any(selector.items() <= each.items() for each in labels), selector

    driver = groups(cluster)["driver"]
    endpoints = the("PodMonitor", documents)["spec"]["podMetricsEndpoints"]
    named = {port["name"] for port in driver["template"]["spec"]["containers"][0]["ports"]}
    assert {endpoint["port"] for endpoint in endpoints} <= named
    redis = the("Service", documents, "nap-stream-redis")
    host, _, port = cluster["spec"]["gcsFaultToleranceOptions"]["redisAddress"].partition(":")
    assert (host, int(port)) == ("nap-stream-redis", redis["spec"]["ports"][0]["port"])
    namespaces = {d["metadata"].get("namespace") for d in documents if d["kind"] != "Namespace"}
    assert namespaces == {"nap-stream"}
    images = {
        container["image"]
        for owner, template in pod_templates(documents)
        if "redis" not in owner
        for container in template["spec"]["containers"]
    }
    assert len(images) == 1


def own_selectors(document: Tree) -> list[dict[str, str]]:
    """What a document selects of this namespace's pods."""
    spec = document["spec"]
    if document["kind"] == "Service":
        return [spec["selector"]]
    found = [spec.get("podSelector") or spec.get("selector")]
    for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
        for peer in [*rule.get("from", []), *rule.get("to", [])]:
            if "namespaceSelector" not in peer:
                found.append(peer["podSelector"])  # noqa: PERF401  a comprehension of four loops
    return [selector["matchLabels"] for selector in found]


@EACH
def test_everything_has_the_labels_by_which_the_guide_deletes(name: str) -> None:
    wanted = {f"app.kubernetes.io/{label}": "nap-stream" for label in ("name", "part-of")}
    without = [
        f"{document['kind']} {document['metadata']['name']}"
        for document in overlay(name)
        if not wanted.items() <= document["metadata"].get("labels", {}).items()
    ]
    assert without == []
    assert "delete rayjob,deployment -l app.kubernetes.io/name=nap-stream\n" in GUIDE.read_text()


@EACH
def test_what_stops_has_the_time_that_the_program_takes(name: str, tmp_path: Path) -> None:
    documents = overlay(name)
    deadline_s = settings_in(documents, tmp_path).driver.shutdown_deadline_s
    cluster = groups(the("RayCluster", documents))
    if all_of("RayJob", documents):
        environment = yaml.safe_load(the("RayJob", documents)["spec"]["runtimeEnvYAML"])
        stop_wait_s = float(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    else:
        variables = {each["name"]: each.get("value") for each in supervisor(documents)["env"]}
        stop_wait_s = float(variables["NAP_STREAM_STOP_WAIT_S"])
    assert deadline_s < stop_wait_s
    for role in ("head", "worker"):
        # They outlive the driver, which needs them to publish and commit.
        pod = cluster[role]["template"]["spec"]
        pause_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert stop_wait_s < pause_s < pod["terminationGracePeriodSeconds"]
    # Its workers publish and commit while Ray drains the node, which it gives them 30 s for.
    assert pod["terminationGracePeriodSeconds"] > pause_s + 30
    assert stop_wait_s < cluster["driver"]["template"]["spec"]["terminationGracePeriodSeconds"]


@EACH
def test_what_kuberay_refuses_or_undoes_is_not_asked_of_it(name: str) -> None:
    """What its webhook and controller check beyond the schema, in KubeRay 1.6's validation.go."""
    documents = overlay(name)
    cluster = the("RayCluster", documents)
    assert cluster["spec"]["rayVersion"] == ray.__version__
    for group in groups(cluster).values():
        amounts = {"num-cpus", "num-gpus", "memory", "resources"} & {*group["rayStartParams"]}
        assert not (amounts and group.get("resources"))
        assert "labels" not in group["rayStartParams"]
        assert "restartPolicy" not in group["template"]["spec"]  # autoscaler v2
    head, driver = groups(cluster)["head"], groups(cluster)["driver"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert driver["resources"] == {"CPU": "0", "nap-stream-driver": "1"}
    for job in all_of("RayJob", documents):
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
        assert job["spec"]["submissionMode"] == "K8sJobMode"
        assert "backoffLimit" not in job["spec"]
        assert yaml.safe_load(job["spec"]["entrypointResources"]) == {"nap-stream-driver": 1}
    # Of pods of a custom resource without a scale Kubernetes takes nothing but this.
    for budget in all_of("PodDisruptionBudget", documents):
        assert isinstance(budget["spec"]["minAvailable"], int)
    for budget in all_of("PodDisruptionBudget", documents):
        role = budget["spec"]["selector"]["matchLabels"]["nap-stream.dev/role"]
        spare = groups(cluster)[role]["minReplicas"] - budget["spec"]["minAvailable"]
        assert spare == (0 if role == "driver" else 1)


@EACH
def test_no_pod_asks_for_a_right_that_it_does_not_need(name: str) -> None:
    for owner, template in pod_templates(overlay(name)):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, owner
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, owner
        # KubeRay's account for the autoscaler, in the head alone.
        is_head = owner.endswith(" head")
        assert pod.get("automountServiceAccountToken") is (None if is_head else False), owner
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, owner
            assert "memory" in container["resources"]["limits"], owner
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts & {"/tmp", "/run/redis"}, owner


def test_the_pool_of_gpus_is_that_of_the_workers() -> None:
    workers = groups(the("RayCluster", overlay("gpu-pool")))["worker"]
    assert workers["groupName"] == "workers"
    assert workers["labels"] == {"ray.io/accelerator-type": "L4"}
    pod = workers["template"]["spec"]
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert pod["nodeSelector"]
    assert pod["containers"][0]["image"].endswith("-cuda")


def test_the_log_in_a_bucket_has_its_credentials_in_every_pod_of_ray(tmp_path: Path) -> None:
    documents = overlay("s3-log")
    assert str(settings_in(documents, tmp_path).log.root).startswith("s3://")
    keys = secrets_of_the_guide()["nap-stream-s3"]
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"} <= keys
    for role, group in groups(the("RayCluster", documents)).items():
        container = group["template"]["spec"]["containers"][0]
        assert container["envFrom"] == [{"secretRef": {"name": "nap-stream-s3"}}], role


def test_the_kafka_folder_can_be_applied_to_another_namespace() -> None:
    documents = rendered(KUBERNETES / "kafka")
    assert {document["kind"] for document in documents} == {"KafkaTopic", "KafkaUser"}
    assert all("namespace" not in document["metadata"] for document in documents)
    assert {d["metadata"]["labels"]["strimzi.io/cluster"] for d in documents} == {"images"}


def test_a_setting_that_the_program_does_not_know_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, folder)
    file = folder / "overlays" / "cpu-trial" / "monitor.yaml"
    file.write_text(file.read_text().replace("count:", "counts:"))

    with pytest.raises(Exception, match="counts"):
        settings_in(rendered(folder / "overlays" / "cpu-trial"), tmp_path / "pod")
