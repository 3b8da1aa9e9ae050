"""Data sets of tokens: encode pictures into shards, verify the shards, and load them for training.

    vartok.dataset.build("photos", "tokens")
    vartok.dataset.verify("tokens").problems               # [] if all is well
    dataset = vartok.dataset.TokenDataset("tokens")
    for batch in DataLoader(dataset, batch_size=64, shuffle=True):
        batch["tokens"]                                    # [64, L] int64
        dataset.var_inputs(tokenizer, batch["tokens"])     # [64, L - 1, C] float32

Names load when they are first used, so that `import vartok.dataset` imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vartok.lazy import lazy_names

if TYPE_CHECKING:
    from vartok.dataset.builder import build
    from vartok.dataset.dry_run import BuildPlan, preview
    from vartok.dataset.exporter import ExportSummary, export
    from vartok.dataset.loader import TokenDataset
    from vartok.dataset.progress import Progress, Summary
    from vartok.dataset.sampling import BucketBatchSampler
    from vartok.dataset.stream import TokenStream
    from vartok.dataset.verification import Report, verify

__all__ = [
    "BucketBatchSampler",
    "BuildPlan",
    "ExportSummary",
    "Progress",
    "Report",
    "Summary",
    "TokenDataset",
    "TokenStream",
    "build",
    "export",
    "preview",
    "verify",
]

__getattr__ = lazy_names(
    __name__,
    {
        "BucketBatchSampler": "sampling",
        "BuildPlan": "dry_run",
        "ExportSummary": "exporter",
        "Progress": "progress",
        "Report": "verification",
        "Summary": "progress",
        "TokenDataset": "loader",
        "TokenStream": "stream",
        "build": "builder",
        "export": "exporter",
        "preview": "dry_run",
        "verify": "verification",
    },
)


def __dir__() -> list[str]:
    return list(__all__)
