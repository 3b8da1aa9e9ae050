"""The fingerprint of a quantizer, by which token files identify their checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def quantizer_fingerprint(
    codebook: NDArray[Any],
    phis: Sequence[tuple[float, NDArray[Any], NDArray[Any] | None]],
    *,
    last_phi: bool = True,
) -> str:
    """Return the sha256, 64 hex digits, of everything that maps tokens to f_hat.

    The hash covers the codebook, every phi's weight, bias and ratio, and the number of phis, which assigns
    phis to scales; and that the last scale has no phi, where that is so. Values are hashed as little-endian
    float32, so that device and file format make no difference. Encoder and decoder are not part of it.

    Args:
        codebook: [V, C] floating point.
        phis: ratio, weight [C, C, 3, 3] and bias [C] or None of every phi, in the order of `phi_index`.
        last_phi: whether the last scale goes through its phi. Without phis it makes no difference.
    """
    digest = hashlib.sha256()
    digest.update(f"codebook {codebook.shape[0]}x{codebook.shape[1]} phis {len(phis)}\n".encode())
    digest.update(_float32_bytes(codebook))
    for ratio, weight, bias in phis:
        digest.update(f"ratio {float(ratio)!r}\n".encode())
        digest.update(_float32_bytes(weight))
        digest.update(b"" if bias is None else _float32_bytes(bias))
    if phis and not last_phi:
        digest.update(b"no phi at the last scale\n")
    return digest.hexdigest()


def _float32_bytes(values: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(values, "<f4").tobytes()
