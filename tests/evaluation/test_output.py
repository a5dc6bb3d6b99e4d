import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from nap_stream.evaluation.output import to_csv, to_json, write_table
from nap_stream.evaluation.tables import EvaluationTable


def test_csv_has_a_row_a_method_set_and_metric(table: EvaluationTable) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(table), newline="")))

    cells = {
        (row["method"], row["ood_set"], row["metric"]): row for row in rows if row["scope"] == "set"
    }
    assert len(cells) == 3 * 2 * 4
    for cell in table.cells:
        row = cells[cell.method, cell.ood_set, "fpr95"]
        assert float(row["value"]) == cell.metrics.fpr95
        assert float(row["low"]) == cell.intervals.low.fpr95
        assert float(row["high"]) == cell.intervals.high.fpr95
    scopes = [row["scope"] for row in rows]
    for scope in ("average", "average_to_best", "worst", "worst_to_best"):
        assert scopes.count(scope) == 3 * 4


def test_json_holds_the_whole_table(table: EvaluationTable) -> None:
    document = json.loads(to_json(table))

    assert document["in_distribution"] == {"name": "cifar10_test", "images": 40}
    assert {one["name"]: one["images"] for one in document["ood_sets"]} == table.ood_sizes
    assert document["methods"] == list(table.methods)
    assert (document["resamples"], document["seed"], document["confidence"]) == (50, 7, 0.95)
    assert document["context"] == table.context
    assert document["cells"] == [
        {
            "method": cell.method,
            "ood_set": cell.ood_set,
            "metrics": dataclasses.asdict(cell.metrics),
            "low": dataclasses.asdict(cell.intervals.low),
            "high": dataclasses.asdict(cell.intervals.high),
        }
        for cell in table.cells
    ]
    worst = document["worst"][0]
    assert worst["metrics"] == dataclasses.asdict(table.worst[0].metrics)
    assert worst["to_best"]["high"] == dataclasses.asdict(table.worst[0].to_best_intervals.high)


def test_json_is_the_same_every_time(table: EvaluationTable) -> None:
    assert to_json(table) == to_json(dataclasses.replace(table))


def test_json_takes_no_number_that_json_has_not(table: EvaluationTable) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(dataclasses.replace(table, context={"accuracy": float("nan")}))


def test_writes_every_form_and_leaves_the_rest_of_the_folder(
    table: EvaluationTable, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "results"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "table.md").write_text("old")

    files = write_table(table, folder)

    names = ["table.md", "table.csv", "table.json", "table.png"]
    assert [path.name for path in files] == names
    assert {path.name for path in folder.iterdir()} == {*names, "notes.txt"}
    assert files[0].read_text(encoding="utf-8").startswith("# cifar10")
    assert json.loads(files[2].read_bytes())["format"] == "nap-stream evaluation"
    with Image.open(files[3]) as image:
        assert image.format == "PNG"
