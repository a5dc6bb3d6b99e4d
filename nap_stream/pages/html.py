"""Pages of HTML that need nothing else: no script, no network, one style sheet of ours.

The templates escape every value; `_shown` writes out what is not printable before that, so that no
name can end a line or turn the direction of what follows it.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nap_stream.text import bounded, duration, listed, number, percent, plain, printable, rfc3339

HERE = Path(__file__).parent
_FILTERS: Mapping[str, Callable[..., Any]] = {
    "n": number,
    "pct": percent,
    "short": bounded,
    "plain": plain,
    "listed": listed,
    "lasting": duration,
    "rfc3339": rfc3339,
}


@cache
def style() -> Markup:
    """The style sheet of all pages, for light, dark, narrow and printed ones."""
    return Markup((HERE / "page.css").read_text(encoding="utf-8"))  # noqa: S704  our own file


@cache
def policy() -> str:
    """The Content-Security-Policy of all pages: no script, and no style but `style`."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    allowed = f"style-src 'sha256-{digest}'; img-src data:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def write_page(
    template: Path, values: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]]
) -> str:
    """Fill a template, which may use the macros that stand beside this module.

    It has ``values``, ``filters`` beside those of all pages, and ``style``, ``policy`` and
    ``version``.
    """
    environment = _environment(template.parent, tuple(filters.items()))
    page = environment.get_template(template.name).render(
        **values, style=style(), policy=policy(), version=version("nap-stream")
    )
    return "\n".join(line for line in page.splitlines() if line.strip()) + "\n"


@cache
def _environment(folder: Path, filters: tuple[tuple[str, Callable[..., Any]], ...]) -> Environment:
    """It keeps the templates that it has compiled, which takes most of a page's time."""
    environment = Environment(
        loader=FileSystemLoader((folder, HERE)),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        auto_reload=False,
    )
    environment.filters |= {**_FILTERS, **dict(filters)}
    return environment


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
