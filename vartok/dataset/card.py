"""README.md of a data set: its header tells Hugging Face's loader which files hold the rows."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from vartok.dataset.formats import find_format
from vartok.dataset.schema import README, shard_file, write_text
from vartok.files import atomic_write

CARD = """---
{configs}---
Pictures as the tokens of {model}, made by `vartok dataset`; dataset.json tells how.
"""

CONFIGS = re.compile(rb"^configs:\n(- config_name: .*\n  data_files: .*\n)+", re.MULTILINE)
"""Matches the part of the header that `write_card` has written."""


def write_card(out: Path, format: str, buckets: Collection[str], model: str) -> None:
    """Write the README.md of a data set; of one that exists, only the names of its buckets.

    Args:
        out: folder of the data set.
        format: format of its shards.
        buckets: names of the buckets that have shards, [""] without buckets; if there are none, a README.md
            that exists stays. Hugging Face's loader loads nothing if a configuration has no files.
        model: name of the checkpoint.

    Raises:
        OSError: the file cannot be written.
    """
    suffix = find_format(format).suffix
    configs = "configs:\n" + "".join(
        f"- config_name: {bucket or 'default'}\n  data_files: {shard_file('*', bucket, suffix)}\n"
        for bucket in buckets
    )
    path = out / README
    if not path.exists():
        write_text(path, CARD.format(configs=configs, model=model))
    elif buckets:
        old = path.read_bytes()
        new = CONFIGS.sub(lambda _: configs.encode(), old, count=1)
        if new != old:
            with atomic_write(path, overwrite=True, durable=True) as file:
                file.write(new)
