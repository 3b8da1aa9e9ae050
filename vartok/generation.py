"""Generation: the state of sampling one scale after the other with a next-scale transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vartok.errors import TokensError, counted
from vartok.runner import ModelRunner
from vartok.schedule import Schedule, describe
from vartok.tokens import check_indices_without_waiting, check_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Generation:
    """The sum over the scales sampled so far, from which the next scale's inputs are computed.

    `Tokenizer.generation` makes it. A loop over the scales adds each scale's tokens once, and no scale is
    computed twice:

        steps = tokenizer.generation(schedule)
        inputs = steps.add(first_tokens)         # the first scale has no inputs
        while inputs is not None:
            inputs = steps.add(sample(inputs))   # your transformer
        images = tokenizer.decode_latent(steps.f_hat)

    Attributes:
        schedule: (h, w) of every scale, coarse to fine.
        added: number of scales added so far.
    """

    def __init__(self, runner: ModelRunner, schedule: Schedule, vocab_size: int) -> None:
        self.schedule = schedule
        self.added = 0
        self._runner = runner
        self._vocab_size = vocab_size
        self._f_hat: list[Tensor] = []  # in parts of the batch

    def __repr__(self) -> str:
        return f"Generation(schedule={describe(self.schedule)!r}, added={self.added})"

    @property
    def f_hat(self) -> Tensor:
        """A copy of f_hat of the scales added so far, [B, C, h, w] float32, for `Tokenizer.decode_latent`.

        Raises:
            TokensError: no scale was added.
        """
        if not self._f_hat:
            raise TokensError("there is no f_hat before the first scale is added")
        return torch.cat(self._f_hat)

    def add(self, tokens: Tensor | NDArray[Any]) -> Tensor | None:
        """Add the tokens of the next scale.

        Args:
            tokens: [B, h_k, w_k] integers in [0, V); the same B for all scales.

        Returns:
            The inputs of the scale after it: [B, h_{k+1} w_{k+1}, C] float32, row by row, the rows of
            `Tokenizer.var_inputs` for that scale to the bit; None after the last scale.

        Raises:
            TokensError: `tokens` has another type or shape, or an index outside the vocabulary, see
                `Tokenizer.var_inputs` for those on a CUDA device; or all scales have been added. The state
                stays as it was.

        Source: `get_next_autoregressive_input` of VAR's code.
        """
        k = self.added
        if k == len(self.schedule):
            raise TokensError(f"token map {k} is too many: the schedule has {counted(k, 'scale')}")
        tokens = check_tensor(f"token map {k}", tokens, 3)
        B = sum(len(part) for part in self._f_hat) if k else len(tokens)
        if tokens.shape != (B, *self.schedule[k]):
            raise TokensError(f"token map {k} must be {[B, *self.schedule[k]]}, not {list(tokens.shape)}")
        check_indices_without_waiting([tokens], self._vocab_size)
        self._f_hat, inputs = self._runner.add_scale(self._f_hat, tokens, k, self.schedule)
        self.added += 1
        return inputs
