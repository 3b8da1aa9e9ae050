"""The checkpoints that have a name: the shipped one, and published ones of VAR's family on the hub.

The facts about published ones are from the public code of their authors; `unverified` names the others.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vartok.schedule import VAR_256, VAR_512, VAR_1024, Schedule, to_json

SHIPPED = "shipped"
"""Another name of the checkpoint that is installed with vartok; it wins over a file of that name."""

PUBLISHED_NAME = "vae_ch160v4096z32"
"""Name of the tokenizer that VAR's authors published."""

PUBLISHED_SHA256 = "7c3ec27ae28a3f87055e83211ea8cc8558bd1985d7b51742d074fb4c2fcf186c"
"""The sha256 of the .pth file of `PUBLISHED_NAME`."""


@dataclass(frozen=True)
class KnownCheckpoint:
    """A checkpoint that has a name.

    Attributes:
        authors: whose it is.
        purpose: whose models take its tokens.
        schedules: names of the schedules that it is used with; the first one is its own.
        source: hf://OWNER/REPO/FILE or hf://OWNER/REPO/FOLDER; None for the shipped one.
        size: bytes of the file; None if not known.
        sha256: of the file; None if not known.
        license: licence of the weights; None if not known.
        model: name of the checkpoint, which token files record; None: the file's own.
        config: values of the configuration, by their keys in `TokenizerConfig.to_json`, that replace the
            file's: the schedules by which names of one file differ, and "last_phi".
        expected: values of the configuration as the authors' code sets them, for what the file does not
            state.
        key: key of the tokenizer in a file of several, or None.
        unverified: what was never checked against the file itself.
    """

    authors: str
    purpose: str
    schedules: tuple[str, ...]
    source: str | None = None
    size: int | None = None
    sha256: str | None = None
    license: str | None = None
    model: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    expected: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    unverified: tuple[str, ...] = ()


EUCLIDEAN: Mapping[str, Any] = {"using_znorm": False, "quant_resi": 0.5}
"""Values that the code of VAR, Switti, HART and VARSR sets alike."""


def _grids(schedule: Schedule) -> Mapping[str, Any]:
    return {"patch_nums": to_json(schedule)}


# github.com/yandex-research/switti: models/pipeline.py, models/vqvae.py (VQVAEHF), utils/arg_util.py
SWITTI_512 = KnownCheckpoint(
    authors="Yandex Research",
    purpose="Switti and Switti-AR (512 px)",
    schedules=("switti-512",),
    source="hf://yresearch/VQVAE-Switti/model.safetensors",
    model="VQVAE-Switti",
    config=_grids(VAR_512),
    expected=EUCLIDEAN,
    unverified=("size", "sha256", "licence of the weights (the code's is Apache-2.0)"),
)

KNOWN: Mapping[str, KnownCheckpoint] = {
    "light": KnownCheckpoint(
        authors="vartok",
        purpose="models that you train; ships with vartok, fast on a CPU",
        schedules=("var-256",),
        license="MIT",
    ),
    # github.com/FoundationVision/VAR: README.md, demo_sample.ipynb, models/vqvae.py, utils/arg_util.py;
    # github.com/krennic999/STAR/issues/2
    "var": KnownCheckpoint(
        authors="FoundationVision",
        purpose="VAR d16, d20, d24, d30, d30-re (256 px), d36 (512 px); STAR (512 px); Switti's train.py",
        schedules=("var-256", "var-512", "star-512"),
        source=f"hf://FoundationVision/var/{PUBLISHED_NAME}.pth",
        size=436_075_834,
        sha256=PUBLISHED_SHA256,
        license="MIT",
        model=PUBLISHED_NAME,
        expected={**EUCLIDEAN, **_grids(VAR_256)},
        unverified=("the file was never at hand; size and sha256 are as others state them",),
    ),
    "switti-512": SWITTI_512,
    "switti-1024": dataclasses.replace(
        SWITTI_512,
        purpose="Switti-1024 and Switti-1024-AR; the file of switti-512",
        schedules=("switti-1024",),
        config=_grids(VAR_1024),
    ),
    # github.com/mit-han-lab/hart: README.md, hart_transformer_t2i.py, configuration.py
    "hart": KnownCheckpoint(
        authors="MIT HAN Lab",
        purpose="HART (1024 px), without its continuous residual",
        schedules=("var-1024",),
        source="hf://mit-han-lab/hart-0.7b-1024px/tokenizer",
        model="hart-0.7b-1024px",
        config={"last_phi": False},
        expected={**EUCLIDEAN, **_grids(VAR_1024)},
        unverified=("file", "size", "sha256", "schedule", "licence of the weights (the code's is MIT)"),
    ),
    # github.com/qyp2000/VARSR: README.md, test_varsr.py, utils/arg_util.py
    "varsr": KnownCheckpoint(
        authors="qyp2000 (Tsinghua, Kuaishou)",
        purpose="VARSR, super-resolution (512 px)",
        schedules=("var-512", "varsr-512"),
        source="hf://qyp2000/VARSR/VQVAE.pth",
        model="VARSR-VQVAE",
        config={"last_phi": False},
        expected={**EUCLIDEAN, **_grids(VAR_512)},
        key="trainer.vae_local",
        unverified=("size", "sha256", "licence"),
    ),
}
"""The known checkpoints by name."""


def shipped_checkpoint() -> Path:
    """Return the path of the checkpoint that is installed with vartok."""
    return Path(str(importlib.resources.files("vartok.weights") / "vartok-light-v2.safetensors"))


def suggest_name(name: str) -> str:
    """Return a hint for a name that is not known, with the known one most like it, if any is."""
    close = difflib.get_close_matches(name.lower(), KNOWN, n=1, cutoff=0.6)
    return (
        f"did you mean {close[0]}? see vartok models for known names"
        if close
        else "see vartok models for known names"
    )
