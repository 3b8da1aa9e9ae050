"""Export of checkpoints to files that run without vartok: ONNX, and torch's own exported programs.

Names load when they are first used, as all of them need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vartok.lazy import lazy_names

if TYPE_CHECKING:
    from vartok.export.agreement import Agreement
    from vartok.export.exporter import ExportReport, export_checkpoint

__all__ = ["Agreement", "ExportReport", "export_checkpoint"]

__getattr__ = lazy_names(
    __name__, {"Agreement": "agreement", "ExportReport": "exporter", "export_checkpoint": "exporter"}
)


def __dir__() -> list[str]:
    return __all__
