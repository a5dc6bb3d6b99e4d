import io

import pytest
from rich.console import Console

from nap_stream.evaluation.output import render
from nap_stream.evaluation.tables import EvaluationTable


def printed(table: EvaluationTable, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(render(table))
    return console.export_text()


def test_a_row_a_method_with_auroc_and_fpr95_a_set(table: EvaluationTable) -> None:
    lines = printed(table, 160).splitlines()

    rows = [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]
    assert rows == [
        ["energy", "100.0 0.0", "75.0 100.0", "87.5 50.0", "75.0 100.0"],
        ["msp", "50.0 100.0", "0.0 100.0", "25.0 100.0", "0.0 100.0"],
        ["nap_e|[bold]$x_1$", "0.0 100.0", "97.5 0.0", "48.8 50.0", "0.0 100.0"],
    ]
    assert "hand|signs *two*" in lines[0]
    assert "cifar10_test, 40 images" in lines[-1]


@pytest.mark.parametrize("width", [50, 60, 80])
def test_a_narrow_terminal_loses_no_figure(table: EvaluationTable, width: int) -> None:
    text = printed(table, width)

    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.split().count("97.5") == 1


def test_the_best_figures_are_bold(table: EvaluationTable) -> None:
    console = Console(width=160)
    lines = console.render_lines(render(table), pad=False)

    bold = {
        segment.text.strip()
        for segment in [segment for line in lines[2:] for segment in line]
        if segment.style is not None and segment.style.bold
    }
    assert bold == {"100.0", "0.0", "97.5", "87.5", "50.0", "75.0"}
