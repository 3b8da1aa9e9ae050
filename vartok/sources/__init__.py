"""Sources of pictures: folders, tars, tables, lists, files and URLs.

`find_files` lists the files of a source. `find_input_shards` groups the files of several sources into input
shards, and `InputShard.samples` yields the samples of an input shard.
"""

from vartok.sources.columns import NamedColumns
from vartok.sources.find import FoundFile, SearchReport, find_files
from vartok.sources.places import is_url, open_place
from vartok.sources.samples import Sample
from vartok.sources.shards import InputShard, PictureFile, find_input_shards, folder_classes
from vartok.sources.tars import read_tar

__all__ = [
    "FoundFile",
    "InputShard",
    "NamedColumns",
    "PictureFile",
    "Sample",
    "SearchReport",
    "find_files",
    "find_input_shards",
    "folder_classes",
    "is_url",
    "open_place",
    "read_tar",
]
