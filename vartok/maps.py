"""Pictures of token maps, and of what each scale adds to the decoded picture."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vartok.images import to_pixels
from vartok.images.tensors import drawable, to_bytes
from vartok.tokens import ImageTokens, TokenMaps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vartok.images.tensors import Pixels
    from vartok.schedule import Grid
    from vartok.tokenizer import Tokenizer


def draw_maps(tokenizer: Tokenizer, tokens: ImageTokens, scales: int | None = None) -> NDArray[np.uint8]:
    """Draw an image's token maps above what each scale adds to the picture; see `MapPainter.draw`.

    Args:
        tokenizer: the tokenizer that decodes the tokens.
        tokens: tokens of its codebook.
        scales: draw only the first `scales` scales; all if None.

    Returns:
        [2 H, K W, C] uint8.

    Raises:
        TokensError: an index is outside the vocabulary, or `scales` is not from 1 to K.
    """
    prefixes = tokenizer.decode_prefixes(TokenMaps.stack([tokens]), scales)
    return MapPainter(tokenizer).draw(tokens, [to_pixels(image)[0] for image in prefixes])


def enlarge(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Scale [h, w, ...] to [H, W, ...] by the nearest neighbour; `size` is (H, W)."""
    rows, columns = (np.arange(n) * cells // n for n, cells in zip(size, values.shape, strict=False))
    enlarged: NDArray[Any] = values[rows[:, None], columns]
    return enlarged


class MapPainter:
    """Draws token maps in the colours of a checkpoint's codes; several threads may use it.

    The colour of a code is the mean of its picture, see `Tokenizer.draw_codes`. It is computed when the code
    is first drawn.

    Args:
        tokenizer: the tokenizer that decodes the tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        config = tokenizer.config
        self._colors = np.zeros((config.vocab_size, config.in_channels), np.uint8)
        self._known = np.zeros(config.vocab_size, bool)
        self._blank: tuple[Grid | None, NDArray[np.uint8]] = (None, np.empty(0, np.uint8))
        self._lock = threading.Lock()

    def draw(self, tokens: ImageTokens, pictures: Sequence[Pixels]) -> NDArray[np.uint8]:
        """Draw the token maps of the first K scales side by side, above what each scale adds to the picture.

        A cell has the colour of its code. What a scale adds is half the difference between the pictures
        decoded with and without it, on mid-grey.

        Args:
            tokens: tokens of the tokenizer's codebook.
            pictures: the images decoded from the first 1, 2, ... K scales: [H, W, C] uint8 or uint16.

        Returns:
            [2 H, K W, 3 or 1] uint8, as `drawable` shows the channels.
        """
        return np.concatenate(list(self.draw_scales(tokens, pictures)), axis=1)

    def draw_scales(self, tokens: ImageTokens, pictures: Sequence[Pixels]) -> Iterator[NDArray[np.uint8]]:
        """Yield the map of each scale above what the scale adds, [2 H, W, 3 or 1] uint8; see `draw`."""
        size = pictures[0].shape[0], pictures[0].shape[1]
        additions = self.draw_additions(tokens.schedule[-1], pictures)
        for scale, added in zip(tokens.scales, additions, strict=False):
            yield drawable(np.concatenate([self.draw_map(scale, size), added]))

    def draw_map(self, scale: NDArray[Any], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Draw one token map: [h, w] indices in [0, V) -> [H, W, C] uint8; `size` is (H, W)."""
        codes = np.unique(scale)
        with self._lock:
            new = codes[~self._known[codes]]
            if new.size:
                pictures = to_pixels(self._tokenizer.draw_codes(new.tolist()))
                self._colors[new] = np.rint(pictures.mean((1, 2)))
                self._known[new] = True
        return enlarge(self._colors[scale], size)

    def draw_additions(self, latent: Grid, pictures: Sequence[Pixels]) -> Iterator[NDArray[np.uint8]]:
        """Yield what each scale adds: half the difference from the picture before it, on mid-grey.

        Args:
            latent: (h, w) of the latent.
            pictures: the images decoded from the first 1, 2, ... scales: [H, W, C] uint8 or uint16. The
                first is compared with the picture of an f_hat of zeros.

        Yields:
            [H, W, C] uint8.
        """
        before = self.draw_blank(latent)
        for picture in pictures:
            after = to_bytes(picture)
            yield ((after.astype(np.int16) - before + 256) // 2).clip(0, 255).astype(np.uint8)
            before = after

    def draw_blank(self, latent: Grid) -> NDArray[np.uint8]:
        """Return the picture of an f_hat of zeros, [H, W, C]; that of the last grid is kept."""
        import torch

        with self._lock:
            if self._blank[0] != latent:
                zeros = torch.zeros(1, self._tokenizer.config.z_channels, *latent)
                self._blank = latent, to_pixels(self._tokenizer.decode_latent(zeros))[0]
            return self._blank[1]
