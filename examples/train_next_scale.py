"""A toy next-scale transformer, trained on a data set of tokens.

    vartok dataset PHOTOS -o OUT
    python examples/train_next_scale.py OUT

Like VAR's transformer, it predicts all tokens of a scale at once, from the coarser scales.

Source: Tian et al. 2024, arXiv:2404.02905.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import vartok
from vartok.dataset import TokenDataset
from vartok.schedule import Schedule


class NextScale(nn.Module):
    """A transformer that predicts the tokens of every scale from the coarser scales, and from a label.

    Args:
        schedule: the (h, w) grid of every scale; L cells in all.
        channels: C, the number of channels of the codebook.
        vocab_size: V, the number of codes.
        width: number of channels of the transformer, a multiple of its 4 heads.
        depth: number of transformer blocks.
        classes: number of labels, 0 to `classes` - 1; 0 for a model without labels.
    """

    scale: Tensor  # [L], the scale of every token, from 0
    mask: Tensor  # [L, L], True where a query must not attend to a key, as its scale is finer

    def __init__(
        self, schedule: Schedule, channels: int, vocab_size: int, *, width: int, depth: int, classes: int = 0
    ) -> None:
        super().__init__()
        sizes = torch.tensor([h * w for h, w in schedule])
        scale = torch.arange(len(schedule)).repeat_interleave(sizes)
        self.register_buffer("scale", scale)
        self.register_buffer("mask", scale[:, None] < scale)
        self.first = int(sizes[0])
        self.start = nn.Embedding(classes + 1, width)  # row 0 is for pictures without a label
        self.lift = nn.Linear(channels, width)
        self.position = nn.Embedding(len(scale), width)
        self.level = nn.Embedding(len(schedule), width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocab_size))

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the logits of all tokens.

        Args:
            inputs: [B, L - h_0 w_0, C], from `TokenDataset.var_inputs`.
            labels: [B] integers; -1 where unknown.

        Returns:
            [B, L, V].
        """
        start = self.start(labels + 1)[:, None].expand(-1, self.first, -1)
        x = torch.cat([start, self.lift(inputs)], dim=1) + self.position.weight + self.level(self.scale)
        for block in self.blocks:
            x = block(x, src_mask=self.mask)
        logits: Tensor = self.head(x)
        return logits


def endless(dataset: TokenDataset, batch_size: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the batches of one epoch after another; every epoch has its own order, which `seed` determines.

    Raises:
        ValueError: the data set has no rows.
    """
    if not len(dataset):
        raise ValueError("the data set has no pictures")
    loader = DataLoader(dataset, batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))
    while True:
        yield from loader


def train(
    folder: str | Path,
    weights: str | Path | None = None,
    *,
    steps: int = 100,
    batch_size: int = 8,
    width: int = 128,
    depth: int = 2,
    classes: int = 0,
    lr: float = 3e-3,
    seed: int = 0,
    device: str = "auto",
) -> list[float]:
    """Train a `NextScale` transformer on a data set of tokens, and print the loss.

    Args:
        folder: folder of the data set.
        weights: the checkpoint that the data set was made with; the shipped one if None.
        steps: number of optimizer steps.
        batch_size: pictures per step.
        width: see `NextScale`.
        depth: see `NextScale`.
        classes: number of labels to condition on; 0 ignores labels.
        lr: learning rate of AdamW.
        seed: seed of the model's weights and of the order of pictures.
        device: torch device; "auto" takes CUDA, then MPS, then the CPU.

    Returns:
        The loss of every step, in nats per token.
    """
    torch.manual_seed(seed)
    tokenizer = vartok.load(weights, device=device)
    config = tokenizer.config
    dataset = TokenDataset(folder)
    model = NextScale(
        dataset.schedule, config.z_channels, config.vocab_size, width=width, depth=depth, classes=classes
    ).to(tokenizer.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    print(f"{len(dataset)} pictures; a guess costs {math.log(config.vocab_size):.3f} nats per token")
    losses: list[float] = []
    for step, batch in enumerate(itertools.islice(endless(dataset, batch_size, seed), steps), 1):
        tokens = batch["tokens"].to(tokenizer.device)  # [B, L]
        labels = batch["label"].to(tokenizer.device) if classes else torch.full_like(tokens[:, 0], -1)
        logits = model(dataset.var_inputs(tokenizer, tokens), labels)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step}: {statistics.mean(losses[-10:]):.3f} nats per token", flush=True)
    return losses


def main() -> None:
    """Parse the command line, and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="OUT", help="a data set that `vartok dataset` made")
    parser.add_argument("--weights", help="the checkpoint that made OUT; default: the shipped one")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--classes", type=int, default=0, help="condition on labels 0 to CLASSES - 1")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
