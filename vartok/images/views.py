"""Views: the parts of a picture, and their mirror images, that a data set has rows of."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import NamedTuple

from vartok.errors import ImageError, quoted
from vartok.metadata import MAX_VIEWS

COUNTS = {"center": 1, "flip": 2, "ten-crop": 10}
"""Number of views of each kind; "random" has any number up to `MAX_VIEWS`."""


class Place(NamedTuple):
    """The place of a crop in a scaled picture.

    Attributes:
        left: columns left of it.
        top: rows above it.
        flipped: True if the crop is then mirrored, left to right.
    """

    left: int
    top: int
    flipped: bool


@dataclass(frozen=True)
class Views:
    """The views of each picture.

    Attributes:
        kind: "center": the fitted picture alone; "flip": it and its mirror image; "ten-crop": the four
            corners of the central square and the centre, then those of its mirror image, as torchvision's
            TenCrop, by which LlamaGen encodes pictures; "random": crops anywhere in the scaled
            picture, each of which is mirrored or not, as VAR trains on them.
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

    def __str__(self) -> str:
        """Return the text that `parse` takes."""
        return f"random:{self.count}" if self.kind == "random" else self.kind

    def places(
        self,
        key: str,
        *,
        center: tuple[int, int],
        corner: tuple[int, int] = (0, 0),
        margin: tuple[int, int] = (0, 0),
        free: tuple[int, int] = (0, 0),
    ) -> list[Place]:
        """Return the place of every view in a scaled picture. All pairs are (columns, rows).

        Args:
            key: key of the picture. Random places depend on it, the seed and `free` alone, so that they are
                the same in every run, and those of fewer views are the first of more.
            center: columns left of the central crop, and rows above it.
            corner: columns left of the central area of `size` times `zoom`, and rows above it.
            margin: columns and rows of that area beyond the size of a crop.
            free: columns and rows of the whole picture beyond the size of a crop.
        """
        if self.kind == "random":
            # Only random() has the same results in all versions of Python.
            draw = random.Random(f"{self.seed}/{key}".encode(errors="surrogatepass")).random
            return [
                Place(int(draw() * (free[0] + 1)), int(draw() * (free[1] + 1)), draw() < 0.5)
                for _ in range(self.count)
            ]
        if self.kind == "ten-crop":
            left, top = corner
            right, bottom = left + margin[0], top + margin[1]
            spots = [(left, top), (right, top), (left, bottom), (right, bottom), center]
            # The mirrored ones are the same spots of the mirrored picture: its left is the picture's right.
            mirrored = [Place(left + right - x, y, True) for x, y in spots]
            return [Place(x, y, False) for x, y in spots] + mirrored
        upright = Place(*center, flipped=False)
        return [upright] if self.kind == "center" else [upright, upright._replace(flipped=True)]


CENTER = Views()
"""The fitted picture alone."""
