"""Reports as HTML pages: one file, without network access, with pictures, charts and sortable tables.

    gallery = Gallery()
    report = evaluate_files("photos", recursive=True, tokenizer=tokenizer, gallery=gallery)
    page = evaluation_page(report, tokenizer, gallery)     # str, the whole HTML file

Every text is escaped, and a Content-Security-Policy lets the page run vartok's own script alone. Names load
when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vartok.lazy import lazy_names

if TYPE_CHECKING:
    from vartok.reports.codebook import codebook_page
    from vartok.reports.evaluation import evaluation_page
    from vartok.reports.gallery import Gallery
    from vartok.reports.training import RunFigures, training_page

__all__ = ["Gallery", "RunFigures", "codebook_page", "evaluation_page", "training_page"]

__getattr__ = lazy_names(
    __name__,
    {
        "Gallery": "gallery",
        "RunFigures": "training",
        "codebook_page": "codebook",
        "evaluation_page": "evaluation",
        "training_page": "training",
    },
)


def __dir__() -> list[str]:
    return list(__all__)
