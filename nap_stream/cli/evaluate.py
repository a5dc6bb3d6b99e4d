"""nap-stream evaluate."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nap_stream.cli.options import (
    BatchSizeOption,
    CacheOption,
    DeviceOption,
    ModelOption,
    ThreadsOption,
    choose_torch,
    progress_bars,
    require_can_make,
    show_warnings,
)
from nap_stream.errors import ConfigError
from nap_stream.text import encodable


def evaluate(
    model: ModelOption,
    inside: Annotated[
        Path, typer.Option("--id", help="In-distribution images that the model was not trained on.")
    ],
    ood: Annotated[
        list[str],
        typer.Option(help="NAME=SET, an out-of-distribution set; give as many as there are."),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write table.{md,csv,json,png} to.")],
    fit_images: Annotated[
        Path | None,
        typer.Option(
            help="In-distribution images to fit scores and weights on, such as training images; "
            "without it a third of --id, which the table then leaves out."
        ),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="A method to evaluate; repeat it. All without it.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=1, help="Bootstrap resamples behind the intervals.")
    ] = 200,
    seed: Annotated[int, typer.Option(help="The seed of the resamples.")] = 0,
    cache: CacheOption = None,
    batch_size: BatchSizeOption = 32,
    device: DeviceOption = "cpu",
    torch_threads: ThreadsOption = None,
) -> None:
    """Measure how well each method tells out-of-distribution images apart.

    A set is a folder of images, or Parquet with `image`. Prints AUROC and FPR95, and writes them
    and AUPR with bootstrap intervals. With --cache, a run that was cut off goes on where it was.

    \b
    Example:
      nap-stream evaluate --model monitor.yaml --id held-out/ --ood fog=foggy/ \\
        --ood floor=floor.parquet --out evaluation/ --cache .nap-stream-cache
    """
    from nap_stream.calibration.cache import FeatureCache
    from nap_stream.core.methods import parse_method
    from nap_stream.evaluation.metrics import require_evaluate_extra
    from nap_stream.evaluation.output import render, write_table
    from nap_stream.evaluation.run import EvaluationRequest
    from nap_stream.evaluation.run import evaluate as run_evaluation
    from nap_stream.process import configure_logging
    from nap_stream.settings.load import load_model_settings, load_scoring_settings
    from nap_stream.settings.schema import LimitSettings

    messages = Console(stderr=True)
    configure_logging(for_people=messages.is_terminal)
    require_evaluate_extra()
    require_can_make(out)
    sets = _named_sets(ood)
    try:
        methods = tuple(parse_method(name) for name in method or ())
    except ValueError as error:
        raise ConfigError(str(error), "--method") from error
    request = EvaluationRequest(
        model=load_model_settings(model),
        scoring=load_scoring_settings(model),
        inside=inside,
        outside=sets,
        fit_images=fit_images,
        methods=methods,
        batch_size=batch_size,
        limits=LimitSettings(),
        resamples=resamples,
        seed=seed,
    )
    with progress_bars(messages) as new_bar:
        evaluation = run_evaluation(
            request,
            device=choose_torch(device, torch_threads),
            cache=None if cache is None else FeatureCache(cache),
            progress=new_bar("evaluating", "images"),
            bootstrap_progress=new_bar("bootstrap", "methods x sets"),
        )
    show_warnings(evaluation.warnings, messages)
    paths = write_table(evaluation.table, out)
    console = Console()
    console.print(render(evaluation.table))
    console.print(f"computed in {evaluation.table.context['execution']}", markup=False)
    console.print(f"written to {', '.join(path.name for path in paths)} in {out}", markup=False)


def _named_sets(pairs: list[str]) -> dict[str, Path]:
    sets: dict[str, Path] = {}
    for pair in pairs:
        name, separator, path = pair.partition("=")
        if not (name and separator and path) or name in sets or name != encodable(name):
            raise ConfigError(
                f"expected NAME=SET, each name once, got {pair!r}", "--ood", "Write fog=foggy/"
            )
        sets[name] = Path(path)
    return sets
