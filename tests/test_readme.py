"""What README and docs show is run as it stands there."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from nap_stream import OODScorer, load_settings
from nap_stream.core.conformal import Rule
from nap_stream.ood_scorer import OODScores
from tests.support.image_bytes import picture
from tests.support.ray_here import ray_here
from tests.support.small_calibration import write_calibrated, write_images
from tests.support.small_models import SIZE, by_name

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def snippets(page: str, language: str) -> list[str]:
    """The fenced blocks of one language on a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_and_headings_that_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.is_file(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in map(_anchor, headings), target


def _anchor(title: str) -> str:
    """As GitHub makes it: without punctuation."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def build_model() -> nn.Module:
    return by_name("SmallNet").eval()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a calibration."""
    images = write_images(tmp_path / "held-out", 19)
    write_calibrated(tmp_path / "calibration", images, rule=Rule(alpha=0.2), weight=0.5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_configuration_of_a_first_monitor(folder: Path) -> None:
    (yaml,) = snippets("README.md", "yaml")
    (folder / "monitor.yaml").write_text(yaml, encoding="utf-8")
    (folder / "resnet18-parts.safetensors").touch()
    (folder / "classes.txt").touch()
    settings = load_settings(folder / "monitor.yaml", {})
    assert settings.kafka.bootstrap_servers == ("broker-1:9092", "broker-2:9092")
    assert settings.model.kwargs == {"num_classes": 12}
    assert settings.model.weights == folder / "resnet18-parts.safetensors"
    assert settings.log.root == folder / "scored-log"


@pytest.mark.usefixtures("folder")
def test_scoring_without_kafka(capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.linspace(-2, 2, 12).reshape(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE)
    python, outputs, _ = snippets("docs/library.md", "python")
    names: dict[str, Any] = {"build_model": build_model, "images": images}
    exec(python, names)
    scores = names["scores"]
    model = build_model().eval()
    with torch.no_grad():
        maps = model.get_submodule("features")(images)
        given = {"logits": model(images), "features": maps.mean((2, 3)), "feature_map": maps}
    exec(outputs, names | given)
    assert isinstance(scores, OODScores)
    flagged = scores.is_ood.nonzero().flatten().tolist()
    assert 0 < len(flagged) < 12
    assert capsys.readouterr().out.splitlines() == [
        f"image {index}: class {scores.class_id[index]}, p = {scores.ood_p_value[index]:.4f}"
        for index in flagged
    ]


@pytest.fixture
def ray_with_tests() -> Iterator[None]:
    """Ray, whose workers can import the tests."""
    with ray_here(cpus=2, python_path=str(ROOT)):
        yield


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_with_tests")
# Ray Data warns of its own defaults.
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.data\.context")
def test_scoring_with_ray_data(folder: Path) -> None:
    write_images(folder / "incoming", 40, first_seed=100)
    *_, python = snippets("docs/library.md", "python")
    exec(python, {"build_model": build_model})

    table = pq.read_table(folder / "scored").sort_by("path")
    assert table.column_names == ["path", "class_id", "ood_p_value", "is_ood", "score", "nap"]
    assert [Path(path).stem for path in table["path"].to_pylist()] == [
        f"{number:04}" for number in range(40)
    ]
    pixels = [
        torch.from_numpy(np.array(picture(9 + number % 3, 9, seed=100 + number))).permute(2, 0, 1)
        for number in range(40)
    ]
    expected = OODScorer(folder / "calibration", build_model)(pixels)
    assert table["is_ood"].to_pylist() == expected.is_ood.tolist()
    assert table["class_id"].to_pylist() == expected.class_id.tolist()
    for name in ("ood_p_value", "score"):
        np.testing.assert_allclose(table[name].to_numpy(), getattr(expected, name), rtol=1e-5)
    np.testing.assert_allclose(table["nap"].to_numpy(), expected.values["nap"], rtol=1e-5)
    assert 0 < sum(table["is_ood"].to_pylist()) < 40
