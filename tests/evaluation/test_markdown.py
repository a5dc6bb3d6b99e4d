import re

import numpy as np
import pytest

from nap_stream.evaluation.output import escape, to_markdown
from nap_stream.evaluation.tables import EvaluationTable, evaluate_scores


def grids(markdown: str) -> list[list[list[str]]]:
    """The tables, as rows of cells."""
    blocks = [block for block in markdown.split("\n\n") if block.startswith("| ")]
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in blocks]


def test_has_a_row_a_method_and_the_columns_of_the_papers(table: EvaluationTable) -> None:
    header, rule, *rows = grids(to_markdown(table))[0]

    assert [cell.strip() for cell in header] == [
        "Method",
        "textures AUROC ↑",
        "textures FPR95 ↓",
        r"hand\|signs \*two\* AUROC ↑",
        r"hand\|signs \*two\* FPR95 ↓",
        "average AUROC ↑",
        "average FPR95 ↓",
        "worst set AUROC ↑",
        "worst set FPR95 ↓",
    ]
    assert set("".join(rule)) <= set("-: ")
    assert [row[0].strip() for row in rows] == ["energy", "msp", r"nap_e\|\[bold\]\$x_1\$"]


def test_the_best_of_a_column_is_bold(table: EvaluationTable) -> None:
    _, _, *rows = grids(to_markdown(table))[0]

    columns = [[cell.strip() for cell in column] for column in zip(*rows, strict=True)]
    assert columns[1] == ["**100.0**", "50.0", "0.0"]
    assert columns[2] == ["**0.0**", "100.0", "100.0"]
    assert columns[3] == ["75.0", "0.0", "**97.5**"]
    assert columns[5] == ["**87.5**", "25.0", "48.8"]


def test_what_is_equal_as_shown_is_equally_bold(table: EvaluationTable) -> None:
    worst_fpr95 = [row[-1].strip() for row in grids(to_markdown(table))[0][2:]]

    assert worst_fpr95 == ["**100.0**", "**100.0**", "**100.0**"]


def test_what_the_images_do_not_tell_from_the_best_is_marked() -> None:
    generator = np.random.default_rng(4)
    inside, outside = generator.normal(2, 1, 300), generator.normal(0, 1, 200)
    noise = generator.normal(0, 0.3, 300), generator.normal(0, 0.3, 200)
    table = evaluate_scores(
        {"best": inside, "level": inside + noise[0], "worse": -inside},
        {"far": {"best": outside, "level": outside + noise[1], "worse": -outside}},
        resamples=60,
        seed=5,
    )

    markdown = to_markdown(table)

    by_method = [[cell.strip() for cell in row] for row in grids(markdown)[0][2:]]
    # The set itself has no mark; the average over the one set has.
    assert not any("†" in row[1] for row in by_method)
    assert by_method[0][3].startswith("**")
    assert by_method[1][3] == f"{by_method[1][1]} †"
    assert by_method[2][3] == by_method[2][1]
    assert "60 paired bootstrap resamples, seed 5" in markdown


def test_all_tables_have_as_many_cells_in_every_row(table: EvaluationTable) -> None:
    found = grids(to_markdown(table))

    assert [len(grid) for grid in found] == [5, 5, 5, 5]
    assert {len(row) for grid in found for row in grid} == {9}
    intervals = [cell.strip() for row in found[2][2:] for cell in row[1:]]
    assert all(re.fullmatch(r"\d+\.\d-\d+\.\d", cell) for cell in intervals)


def test_says_what_identifies_the_evaluation(table: EvaluationTable) -> None:
    markdown = to_markdown(table)

    assert "cifar10_test, 40 images; OOD: textures 20, " in markdown
    assert "\n- model: a\\|b\n- versions: {" in markdown


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("max_logit", "max_logit"),
        ("_private_", r"\_private\_"),
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("two\nlines\x1b[0m", r"two lines \[0m"),
        ("<b>*`~$&", r"\<b\>\*\`\~\$\&"),
    ],
)
def test_names_stay_names(name: str, escaped: str) -> None:
    assert escape(name) == escaped
