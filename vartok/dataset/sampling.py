"""Divide the rows of a data set among ranks."""

from __future__ import annotations

import torch

from vartok.errors import DatasetError


def find_rank(rank: int | None, world: int | None) -> tuple[int, int]:
    """Return the rank of this process, from 0, and the number of ranks.

    Args:
        rank: the rank; if None, that of torch.distributed, or 0 without it.
        world: the number of ranks; if None, that of torch.distributed, or 1 without it.

    Raises:
        DatasetError: only one of both is given, or `rank` is not from 0 to `world` - 1.
    """
    if rank is not None and world is not None and 0 <= rank < world:
        return rank, world
    if rank is not None or world is not None:
        raise DatasetError(f"rank {rank} and world {world}: give both or none, rank from 0 to world - 1")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
