"""The Kubernetes manifests as kustomize renders them, and the schemas that they must fit."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from nap_stream.settings.load import load_settings
from nap_stream.settings.schema import Settings
from tests.support.shared_data import shared_data
from tests.support.waiting import PATIENCE_S

PROJECT = Path(__file__).parents[2]
KUBERNETES = PROJECT / "deploy" / "kubernetes"
OVERLAYS = ("cpu-trial", "gpu-pool", "s3-log")
REQUIRE_KUBECTL = "NAP_STREAM_REQUIRE_KUBECTL"
SCHEMAS = {
    "RayCluster": "ray.io_rayclusters.yaml",
    "RayJob": "ray.io_rayjobs.yaml",
    "PodMonitor": "monitoring.coreos.com_podmonitors.yaml",
    "PrometheusRule": "monitoring.coreos.com_prometheusrules.yaml",
    "KafkaTopic": "strimzi_043-Crd-kafkatopic.yaml",
    "KafkaUser": "strimzi_044-Crd-kafkauser.yaml",
}
"""Of what is no kind of Kubernetes itself, in the shared data."""

Tree = dict[str, Any]


@cache
def rendered(folder: Path) -> list[Tree]:
    """What kustomize makes of a folder; skips with the reason where there is no kubectl."""
    if shutil.which("kubectl") is None:
        reason = "kubectl is not on the path: it renders the manifests"
        if os.environ.get(REQUIRE_KUBECTL) == "1":
            pytest.fail(f"{REQUIRE_KUBECTL}=1, but {reason}")
        pytest.skip(reason)
    done = subprocess.run(
        ["kubectl", "kustomize", folder],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "kustomize warns"
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


def overlay(name: str) -> list[Tree]:
    """An overlay's documents."""
    return rendered(KUBERNETES / "overlays" / name)


def the(kind: str, documents: list[Tree], name: str = "nap-stream") -> Tree:
    """The one document of a kind and a name."""
    (found,) = [d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return found


def all_of(kind: str, documents: list[Tree]) -> list[Tree]:
    """Every document of a kind."""
    return [document for document in documents if document["kind"] == kind]


def groups(cluster: Tree) -> dict[str, Tree]:
    """The groups of a RayCluster, the head's among them, by the label of their pods."""
    found = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return {
        group["template"]["metadata"]["labels"]["nap-stream.dev/role"]: group for group in found
    }


def pod_templates(documents: list[Tree]) -> Iterator[tuple[str, Tree]]:
    """The name of what each pod is made by, and the pod's template."""
    for document in documents:
        name = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "RayCluster":
            for role, group in groups(document).items():
                yield f"{name} {role}", group["template"]
        elif document["kind"] == "RayJob":
            yield name, document["spec"]["submitterPodTemplate"]
        elif "template" in document.get("spec", {}):
            yield name, document["spec"]["template"]


@cache
def validator(kind: str) -> Any:
    """What a custom resource must fit: its operator's schema, and no field beside it."""
    text = shared_data(f"schemas/{SCHEMAS[kind]}").read_text()
    definition = yaml.load(text, yaml.CSafeLoader)
    (schema,) = [
        version["schema"]["openAPIV3Schema"]
        for version in definition["spec"]["versions"]
        if version["name"] == "v1"
    ]
    return jsonschema.Draft202012Validator(_closed(schema))


def _closed(schema: Any) -> Any:
    """A schema that refuses what the API server would drop in silence."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    keeps = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not keeps:
        closed["additionalProperties"] = False
    return closed


def problems(document: Tree) -> list[str]:
    """What a custom resource's schema says against it."""
    errors = validator(document["kind"]).iter_errors(document)
    return [f"{error.json_path}: {error.message[:300]}" for error in errors]


def signature(document: Tree) -> str:
    """A document as a text: overlays share most of them."""
    return json.dumps(document, sort_keys=True)


def settings_in(documents: list[Tree], folder: Path) -> Settings:
    """The settings of the ConfigMap, with the files that the driver's pod mounts in a folder."""
    pod = groups(the("RayCluster", documents))["driver"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    (config,) = all_of("ConfigMap", documents)
    for mount in pod["containers"][0]["volumeMounts"]:
        place = folder / mount["mountPath"].lstrip("/")
        place.mkdir(parents=True)
        volume = volumes[mount["name"]]
        for item in volume.get("secret", {}).get("items", []):
            (place / item["path"]).touch()
        if volume.get("configMap", {}).get("name") == config["metadata"]["name"]:
            for file, text in config["data"].items():
                # The paths of the pod's, under the folder.
                moved = re.sub(r" (/(?:etc|data)/)", rf" {folder}\1", text)
                (place / file).write_text(moved)
    for given in ("data/model/weights.safetensors", "data/model/classes.txt"):
        (folder / given).parent.mkdir(exist_ok=True)
        (folder / given).touch()
    (folder / "data/calibration").mkdir()
    return load_settings(folder / entrypoint_config(documents).lstrip("/"), {})


def entrypoint_config(documents: list[Tree]) -> str:
    """The path of the settings that the job is started with, as its pod has it."""
    if jobs := all_of("RayJob", documents):
        words: list[str] = jobs[0]["spec"]["entrypoint"].split()
        assert words[:5] == ["python", "-m", "nap_stream", "run", "--config"]
        return words[-1]
    container = supervisor(documents)
    assert container["command"][0] == "/opt/nap-stream/ray-job.sh"
    return str(container["command"][-1])


def supervisor(documents: list[Tree]) -> Any:
    """The container of the component that starts the job again."""
    deployment = the("Deployment", documents, "nap-stream-supervisor")
    return deployment["spec"]["template"]["spec"]["containers"][0]
