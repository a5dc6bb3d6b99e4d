"""The image: its Dockerfile linted, and its steps run where no container can be built."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE_S

PROJECT = Path(__file__).parents[2]
DOCKERFILE = PROJECT / "deploy" / "Dockerfile"
PREFIX = "/opt/nap-stream"
NAMELESS = """
import nap_stream.monitor.worker, ray
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
default_cache_dir()
"""
"""What fails first where a user has no name and no home."""
STRANGER = 54_321
"""A user that /etc/passwd does not know."""


@dataclass
class Stage:
    """A stage of the Dockerfile: the value of each ARG and ENV, and its instructions in order."""

    variables: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[str, str]] = field(default_factory=list)

    def of(self, instruction: str) -> list[str]:
        return [value for name, value in self.steps if name == instruction]


def stages() -> list[Stage]:
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found = [Stage()]
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        instruction, _, value = line.partition(" ")
        if instruction == "FROM":
            found.append(Stage())
        found[-1].steps.append((instruction, value.strip()))
        if instruction in ("ARG", "ENV"):
            pairs = (word.partition("=") for word in shlex.split(value))
            found[-1].variables |= {name: given for name, _, given in pairs}
    return found


def test_hadolint_finds_nothing() -> None:
    # Beside this Python: whoever runs the tests need not have activated its environment.
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint is not None, "it comes with the development dependencies"
    done = subprocess.run(
        [hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_last_stage_builds_nothing_and_is_for_any_user() -> None:
    last = stages()[-1]
    assert "pip uninstall" in last.of("RUN")[0]
    assert not re.search(r"pip install|apt|uv |gcc", " ".join(last.of("RUN")))
    assert last.of("USER") == ["10001:0"]
    assert last.variables["HOME"] == "/tmp"
    assert json.loads(last.of("VOLUME")[0]) == ["/tmp", "/data"]
    assert "pod.py" in last.of("HEALTHCHECK")[0]
    labels = set(re.findall(r"([\w.-]+)=", last.of("LABEL")[0]))
    wanted = ("title", "description", "licenses", "version", "revision", "created")
    assert labels >= {f"org.opencontainers.image.{name}" for name in wanted}
    assert "dev.nap-stream.sbom" in labels


def test_what_is_copied_is_there_and_let_through_to_the_builder() -> None:
    ignored = (PROJECT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied = {
        source
        for stage in stages()
        for value in stage.of("COPY")
        if "--from" not in value
        for source in value.split()[:-1]
    }
    assert copied == let_through
    assert all((PROJECT / source).exists() for source in copied)


def test_the_variant_for_cpus_leaves_out_what_is_for_gpus(tmp_path: Path) -> None:
    (filters,) = [step for step in stages()[1].of("RUN") if "image.lock" in step]
    shutil.copy(PROJECT / "requirements.lock", tmp_path)
    stub = tmp_path / "uv"
    stub.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    stub.chmod(0o755)

    _run(filters, tmp_path, {**stages()[1].variables, "VARIANT": "cpu"}, path=tmp_path)

    locked = _names(tmp_path / "requirements.lock")
    left_out = locked - _names(tmp_path / "image.lock")
    assert {"torch", "torchvision", "triton"} < left_out
    assert all(re.match("torch|triton|nvidia-|cuda-", name) for name in left_out)
    lock = (tmp_path / "requirements.lock").read_text()
    pins = re.findall(r"^(torch(?:vision)?==[\d.]+) ", lock, re.MULTILINE)
    wanted = [f"{pin}+cpu" for pin in pins]
    assert len(wanted) == 2
    assert (tmp_path / "torch.txt").read_text().split() == wanted
    asked = (tmp_path / "asked").read_text().splitlines()
    assert "--require-hashes" in asked[0]
    assert "https://download.pytorch.org/whl/cpu" in asked[1]


def test_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    (filters,) = [step for step in stages()[1].of("RUN") if "image.lock" in step]
    with pytest.raises(subprocess.CalledProcessError) as caught:
        _run(filters, tmp_path, {**stages()[1].variables, "VARIANT": "rocm"}, path=tmp_path)
    assert "expected cpu or cuda" in caught.value.stderr


def _names(lock: Path) -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+)==", lock.read_text(), re.MULTILINE))


@pytest.fixture
def root() -> Iterator[Path]:
    """An empty folder that every user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="nap-stream-image-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_its_steps_make_what_a_stranger_can_run_and_nobody_can_change(root: Path) -> None:
    """The variant for GPUs: PyTorch's own index is no package registry that tests may ask."""
    _build(root)

    prefix = root / PREFIX.lstrip("/")
    for path in (prefix, *prefix.rglob("*")):
        mode = path.lstat().st_mode
        assert path.is_symlink() or mode & 0o044 == 0o044, f"{path} cannot be read"
        assert path.is_symlink() or not mode & 0o022, f"{path} can be changed"
    components = json.loads((prefix / "sbom.cdx.json").read_text())["components"]
    assert {part["name"] for part in components} >= {"nap-stream", "torch", "ray"}
    writable = root / "tmp"
    writable.mkdir()
    writable.chmod(0o1777)
    last = stages()[-1]
    environ = {**last.variables, "HOME": "/", "TMPDIR": str(writable)}
    environ["PATH"] = f"{prefix}/venv/bin:/usr/bin:/bin"
    _as_stranger(["nap-stream", "--version"], environ, writable)
    _as_stranger(["python", "-c", NAMELESS], environ, writable)
    _as_stranger([f"{prefix}/ray-job.sh", "--help"], environ, writable)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        _as_stranger(["python", f"{prefix}/pod.py", "live"], environ, writable)
    assert "nobody listens on port 9464" in caught.value.stdout


def _build(root: Path) -> None:
    """Run the steps of the first stage in a folder, with a clean Python in place of its image."""
    stage = stages()[1]
    subprocess.run([sys.executable, "-m", "venv", root / "python"], check=True)
    folder = root
    for instruction, value in stage.steps:
        if instruction == "WORKDIR":
            folder = root / value.lstrip("/")
            folder.mkdir(parents=True)
        elif instruction == "COPY":
            *given, target = value.split()
            place = root / target.lstrip("/") if target.startswith("/") else folder / target
            for name in given:
                _copy(PROJECT / name, place)
        elif instruction == "RUN":
            _run(value, folder, stage.variables, path=root / "python/bin", root=root)


def _copy(path: Path, place: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, place, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(path, place)


def _run(
    step: str, folder: Path, variables: dict[str, str], *, path: Path, root: Path | None = None
) -> None:
    """A RUN of the Dockerfile; with ``root``, its prefix is a folder there."""
    if root is not None:
        # Bytecode of all packages takes minutes, and nothing here needs it.
        step = step.replace(PREFIX, f"{root}{PREFIX}").replace("--compile-bytecode", "")
    environ = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    environ |= variables | {"PATH": f"{path}:/usr/bin:/bin"}
    # Its cache and links, so that gigabytes that are on this disk already are not written again.
    for name in ("UV_LINK_MODE", "UV_NO_CACHE", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
        environ.pop(name, None)
    subprocess.run(
        ["bash", "-o", "pipefail", "-c", step],
        cwd=folder,
        env=environ,
        check=True,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
    )


def _as_stranger(command: list[str], environ: dict[str, str], folder: Path) -> None:
    """Run a command as a user whom nobody knows, of group 0."""
    if os.geteuid() == 0:
        # Reading is allowed to it, because this Python itself may lie in root's own home. That all
        # can read the image is asked of the files; it is writing that matters here.
        command = [
            *("setpriv", f"--reuid={STRANGER}", "--regid=0", "--clear-groups"),
            *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
            *("--bounding-set=-all,+dac_read_search", *command),
        ]
    subprocess.run(
        command,
        env=environ,
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
