"""Whether images can be gone on with, from what was read of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nap_stream.errors import CalibrationError


@dataclass(slots=True)
class ReadingCheck:
    """Counts images, batch by batch. ``not_finite`` are names."""

    decoded: int = 0
    undecodable: int = 0
    first_problem: str = ""
    not_finite: list[str] = field(default_factory=list)

    def add(
        self,
        names: Sequence[str],
        finite: NDArray[np.bool_],
        undecodable: int,
        first_problem: str,
    ) -> None:
        """Count a batch.

        Args:
            names: Of the n decoded images.
            finite: Whether all that the model made of each is finite, (n,).
            undecodable: How many more there are.
            first_problem: About the first of those; empty if there is none.
        """
        self.decoded += len(names)
        self.undecodable += undecodable
        self.first_problem = self.first_problem or first_problem
        self.not_finite += [names[int(row)] for row in np.flatnonzero(~finite)]

    def require_usable(self, source: Path) -> None:
        """Refuse images that nothing can be concluded from.

        Raises:
            CalibrationError: Half of them or more cannot be decoded, or the model's outputs are
                not finite.
        """
        if not self.decoded:
            raise CalibrationError(
                f"none of the {self.undecodable} images could be decoded; first "
                f"{self.first_problem or 'there are none'}",
                str(source),
                "Name a folder of JPEG, PNG or WebP files, or a Parquet file",
            )
        if self.undecodable >= self.decoded:
            raise CalibrationError(
                f"{self.undecodable} of {self.undecodable + self.decoded} images cannot be "
                f"decoded; first {self.first_problem}",
                str(source),
                "Name a folder of images alone: what is left may not be like the stream",
            )
        if self.not_finite:
            raise CalibrationError(
                f"the model's activations or logits are not finite for {len(self.not_finite)} of "
                f"{self.decoded} images, first {self.not_finite[0]}",
                str(source),
                "Check the weights and the preprocessing",
            )
