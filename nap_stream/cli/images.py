"""Images of a topic as a table, for `nap-stream doctor` and `nap-stream init`."""

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nap_stream.text import bounded, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nap_stream.preview import ImageSeen

_INDENT = 8


def images_table(images: "Sequence[ImageSeen]") -> Padding:
    """One row an image: where it stands, what it is, and what the model predicts."""
    from nap_stream.core.panes import key_text

    table = Table("offset", "key", "format", "size", "prediction", box=None, pad_edge=False)
    for image in images:
        origin = image.origin
        partition, row = origin.partition.partition, f" #{origin.index}" if origin.index else ""
        table.add_row(
            Text(f"{partition}:{origin.offset}{row}"),
            Text("" if origin.key is None else bounded(printable(key_text(origin.key)))),
            Text(image.format or ""),
            Text("" if image.width is None else f"{image.width} x {image.height}"),
            _told(image),
        )
    return Padding(table, (0, 0, 0, _INDENT))


def _told(image: "ImageSeen") -> Text:
    if image.error is not None:
        return Text(f"{image.status}: {printable(image.error)}", style="yellow")
    if image.prediction is None:
        return Text("")
    class_name = bounded(printable(image.prediction.class_name))
    return Text(f"{class_name} ({image.prediction.confidence:.1%})")
