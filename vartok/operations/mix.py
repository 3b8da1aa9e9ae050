"""Mix the tokens of two images: the coarse scales of one, the fine ones of the other."""

from __future__ import annotations

from dataclasses import replace

from vartok.errors import TokenFileError, TokensError
from vartok.metadata import MAX_TEXT
from vartok.schedule import describe
from vartok.tokens import ImageTokens


def mix_tokens(coarse: ImageTokens, fine: ImageTokens, scales: int) -> ImageTokens:
    """Join the first scales of one image with the other scales of another.

    Args:
        coarse: tokens of an image, of `scales` scales or more.
        fine: tokens of another image of the same codebook and schedule, of more scales than `scales`.
        scales: number of scales that are taken from `coarse`.

    Returns:
        Tokens with the metadata of `coarse`; their source names both images, as "a.png+b.png".

    Raises:
        TokenFileError: the images' codebooks or schedules differ.
        TokensError: `scales` is below 1, above the number of scales of `coarse`, or leaves none of `fine`.
    """
    if coarse.model.fingerprint != fine.model.fingerprint:
        names = (f"{model.name} ({model.fingerprint[:12]})" for model in (coarse.model, fine.model))
        raise TokenFileError(
            f"the tokens are of two codebooks, {' and '.join(names)}: their sum has no sense"
        )
    if coarse.schedule != fine.schedule:
        told = " and ".join(describe(tokens.schedule) for tokens in (coarse, fine))
        raise TokenFileError(f"the schedules differ: {told}")
    most = min(len(coarse.scales), len(fine.scales) - 1)
    if not 1 <= scales <= most:
        raise TokensError(f"`scales` must be from 1 to {most} to mix these tokens, not {scales}")
    source = f"{coarse.image.source}+{fine.image.source}"[:MAX_TEXT]
    return ImageTokens(
        coarse.scales[:scales] + fine.scales[scales:],
        coarse.model,
        replace(coarse.image, source=source),
        schedule=coarse.schedule,
    )
