"""Views: the parts of a picture, and their mirror images, that a data set has rows of."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vartok.errors import ImageError, quoted
from vartok.metadata import MAX_VIEWS

COUNTS = {"center": 1, "flip": 2, "ten-crop": 10}
"""Number of views of each kind; "random" has any number up to `MAX_VIEWS`."""


@dataclass(frozen=True)
class Views:
    """The views of each picture.

    Attributes:
        kind: "center": the fitted picture alone; "flip": it and its mirror image; "ten-crop": the four
            corners and the centre, then their mirror images; "random": crops at random positions, each of
            which is mirrored or not.
        count: number of the views, from 1.
        seed: seed of random views.
    """

    kind: str = "center"
    count: int = 1
    seed: int = 0

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> Views:
        """Parse "center", "flip", "ten-crop" or "random:N".

        Args:
            text: the views; N is from 1 to `MAX_VIEWS`.
            seed: seed of random views.

        Raises:
            ImageError: another text.
        """
        if isinstance(text, str) and text in COUNTS:
            return cls(text, COUNTS[text])
        found = re.fullmatch(r"random:([1-9][0-9]{0,2})", text) if isinstance(text, str) else None
        if not found or int(found[1]) > MAX_VIEWS:
            raise ImageError(
                f"views are center, flip, ten-crop or random:N, N from 1 to {MAX_VIEWS}, not {quoted(text)}"
            )
        return cls("random", int(found[1]), seed)
