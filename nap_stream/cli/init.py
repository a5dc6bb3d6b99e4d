"""nap-stream init."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.text import Text

from nap_stream.cli.images import images_table
from nap_stream.errors import ConfigError
from nap_stream.text import printable

if TYPE_CHECKING:
    from nap_stream.first_config import Asked, Learnt

_WHAT = 9


def init(
    bootstrap_servers: Annotated[
        str | None, typer.Option("--bootstrap-servers", help="Brokers as host:port,…")
    ] = None,
    topic: Annotated[str | None, typer.Option(help="The topic of image messages.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A callable that builds the model, as package.module:name; or the file or folder "
            "of a whole model."
        ),
    ] = None,
    kwargs: Annotated[
        str, typer.Option(help="The callable's arguments, as in '{num_classes: 12}'.")
    ] = "{}",
    weights: Annotated[
        Path | None, typer.Option(help="A .safetensors or torch file of the state dict.")
    ] = None,
    class_names_file: Annotated[
        Path | None, typer.Option(help="Class names, one a line, in order of the logits.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Labelled images: their sub-folders are taken for the classes."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("monitor.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write a first monitor.yaml: look at the topic and the model, and fill in what they tell.

    Asks for what is not given. Of the topic the newest ten messages are read; no group is joined
    and nothing is committed. What a cluster needs beside its address comes from the environment,
    such as NAP_STREAM__KAFKA__SASL_PASSWORD.

    \b
    Example:
      nap-stream init --bootstrap-servers localhost:9092 --topic images \\
        --model torchvision.models:resnet18 --kwargs '{num_classes: 12}' \\
        --weights parts.safetensors --images held-out/
    """
    whole = model is not None
    bootstrap_servers = bootstrap_servers or _ask(
        "Brokers", "--bootstrap-servers", "localhost:9092"
    )
    topic = topic or _ask("Topic of the images", "--topic")
    model = model or _ask("Model, package.module:name or a path", "--model")
    if not whole:
        kwargs = _ask("Its arguments, as YAML", "--kwargs", kwargs)
        named = _ask("File of its weights, empty for none", "--weights", str(weights or ""))
        weights = Path(named) if named else None
    console = Console(stderr=True)
    # Before the imports, which take seconds.
    with console.status("starting") as status:
        from nap_stream.first_config import learn, require_free, write_config

        require_free([out], force=force)
        asked = _asked(
            *(bootstrap_servers, topic, model, _mapping(kwargs)),
            *(weights, class_names_file, images),
        )
        status.update("looking at the model and the topic")
        learnt = learn(asked, out)
        written = write_config(asked, learnt, out, force=force)
    _show(asked, learnt, written)


def _ask(what: str, option: str, default: str | None = None) -> str:
    if not _is_terminal():
        raise ConfigError(f"{what.partition(',')[0]}: not given", option, "Give the option")
    answer: str = typer.prompt(what, default=default)
    return answer.strip()


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigError(f"not keys and values: {text!r}", "--kwargs", "As in '{num_classes: 12}'")
    return found


def _asked(
    bootstrap_servers: str,
    topic: str,
    model: str,
    kwargs: dict[str, Any],
    weights: Path | None,
    class_names_file: Path | None,
    images: Path | None,
) -> "Asked":
    from nap_stream.first_config import Asked

    is_whole = Path(model).exists()
    if is_whole and weights is not None:
        raise ConfigError(
            f"{model} is a whole model, and --weights are given too", "--model", "Give one of them"
        )
    for option, path in (
        ("--weights", weights),
        ("--class-names-file", class_names_file),
        ("--images", images),
    ):
        if path is not None and not path.exists():
            raise ConfigError(f"no such file or folder: {path}", option)
    return Asked(
        bootstrap_servers=bootstrap_servers,
        topic=topic,
        factory=None if is_whole else model,
        kwargs=kwargs,
        weights=Path(model) if is_whole else weights,
        class_names_file=class_names_file,
        images=images,
    )


def _show(asked: "Asked", learnt: "Learnt", written: tuple[Path, ...]) -> None:
    """What was found, guessed and not seen, and what to do next."""
    from nap_stream.first_config import model_words, names_itself, topic_words

    console = Console(soft_wrap=True, highlight=False)

    def say(what: str, text: str, style: str) -> None:
        console.print(Text.assemble((f"{what:{_WHAT}}", style), printable(" ".join(text.split()))))

    said = "not seen" if learnt.peeked is None or not learnt.peeked.messages else "found"
    for line in topic_words(learnt):
        say(said, line, "green" if said == "found" else "yellow")
    if learnt.images:
        Console(highlight=False).print(images_table(learnt.images))
    said = "not seen" if learnt.loaded is None else "found"
    for line in model_words(learnt):
        say(said, line, "green" if said == "found" else "yellow")
    if learnt.preprocessing is None:
        say("guessed", "preprocessing: as for ImageNet", "yellow")
    else:
        what, style = ("guessed", "yellow") if learnt.preprocessing.is_guess else ("found", "green")
        say(what, f"preprocessing: {learnt.preprocessing.source}", style)
    if learnt.names is not None:
        say("guessed", f"class names: {learnt.names.source}", "yellow")
    elif learnt.loaded is not None and names_itself(learnt.loaded):
        say("found", "class names: those that come with the model", "green")
    elif asked.class_names_file is None:
        say("not seen", "class names: classes show as numbers", "yellow")
    if learnt.drift_key:
        say("guessed", f"a drift monitor for each {learnt.drift_key}: its values repeat", "yellow")
    say("written", ", ".join(map(str, written)), "bold")
    config = written[-1]
    say("next", f"nap-stream doctor --config {config} --create-topics", "bold")
    calibrate = f"nap-stream calibrate --model {config} --images held-out/ --out"
    say("", f"{calibrate} {config.parent / 'calibration'}", "bold")
    say("", f"nap-stream run --config {config}", "bold")
