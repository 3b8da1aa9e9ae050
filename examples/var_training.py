"""Train VAR's own transformer, with VAR's own trainer, on a vartok data set.

    git clone https://github.com/FoundationVision/VAR            # and what its requirements.txt names
    vartok dataset PHOTOS -o TOKENS --folder-labels
    python examples/var_training.py VAR TOKENS --steps 20

VAR's trainer encodes every picture of every batch. With a data set of tokens it encodes none: `TokenPairs`
takes the place of the pictures, and `TokenVAE` that of the VQVAE. Transformer, loss and optimizer are VAR's.
To run VAR's train.py itself, change these lines of it; its --data_path is then TOKENS, its --pn the schedule:

    from utils.data import build_dataset
    ->  import vartok; from var_training import TokenPairs, TokenVAE      # this file, beside train.py

    num_classes, dataset_train, dataset_val = build_dataset(...)
    ->  dataset_train, dataset_val = TokenPairs(args.data_path), TokenPairs(VALIDATION)
        num_classes, schedule = len(dataset_train.rows.classes), dataset_train.rows.schedule

    vae_local, var_wo_ddp = build_vae_var(...)
    ->  vae_local = TokenVAE(vartok.load(device=str(dist.get_device())), schedule)
        var_wo_ddp = VAR(vae_local, num_classes, args.depth, 64 * args.depth, args.depth,
                         patch_nums=args.patch_nums).to(dist.get_device())
        var_wo_ddp.init_weights()

    vae_local.load_state_dict(...), and the download before it
    ->  nothing, as `vartok.load` has loaded the weights
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import vartok
from vartok.dataset import TokenDataset
from vartok.schedule import Schedule


class TokenPairs(Dataset[tuple[Tensor, int]]):
    """Pairs of tokens, [L], and a label, in place of VAR's pairs of a picture and a label.

    Raises:
        SystemExit: the rows of the data set have several schedules, or not all scales.
    """

    def __init__(self, folder: str) -> None:
        self.rows = TokenDataset(folder)
        if len(self.rows.buckets) > 1:
            raise SystemExit(f"{folder} has {len(self.rows.buckets)} buckets, and this takes one schedule")
        if self.rows.grids != self.rows.schedule:
            raise SystemExit(f"{folder} has the first {len(self.rows.grids)} scales only, and this takes all")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        return row["tokens"], row.get("label", 0)


class TokenVAE(nn.Module):
    """The part of VAR's VQVAE and of its quantizer that VAR uses, computed by a vartok tokenizer.

    Methods have VAR's names. `img_to_idxBl` takes tokens instead of pictures. VAR's own sampling,
    `autoregressive_infer_cfg`, works with it, except for `more_smooth`.
    """

    def __init__(self, tokenizer: vartok.Tokenizer, schedule: Schedule) -> None:
        super().__init__()
        self.vocab_size, self.Cvae = tokenizer.config.vocab_size, tokenizer.config.z_channels
        self.prog_si = -1  # VAR's trainer sets it; progressive training is not supported
        self.fhat_to_img = tokenizer.decode_latent
        self.encoder = self.decoder = nn.Identity()  # VAR's train.py counts their parameters
        self._tokenizer = tokenizer
        self._schedule = schedule
        self._codes = tokenizer.codebook
        self._tokens = torch.empty(0)

    @property
    def quantize(self) -> TokenVAE:
        """The quantizer, which is this object too."""
        return self

    def img_to_idxBl(self, tokens: Tensor) -> list[Tensor]:  # noqa: N802
        """Split tokens by scale: [B, L] -> K times [B, h_k w_k]."""
        return list(tokens.split([h * w for h, w in self._schedule], dim=1))

    def idxBl_to_var_input(self, scales: Sequence[Tensor]) -> Tensor:  # noqa: N802
        """Return the inputs for teacher forcing: [B, L - h_0 w_0, C]."""
        tokens = vartok.TokenMaps.unflatten(torch.cat(list(scales), dim=1), self._schedule)
        return self._tokenizer.var_inputs(tokens)

    def embedding(self, tokens: Tensor) -> Tensor:
        """Look up codes: [B, h_k w_k] -> [B, h_k w_k, C]; `get_next_autoregressive_input` follows."""
        self._tokens = tokens
        return self._codes[tokens]

    def get_next_autoregressive_input(
        self, si: int, scales: int, f_hat: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the scale that was looked up last; return f_hat, and the next inputs as [B, C, h, w]."""
        if si == 0:
            self._steps = self._tokenizer.generation(self._schedule)
        inputs = self._steps.add(self._tokens.unflatten(1, self._schedule[si]))
        if inputs is None:
            return self._steps.f_hat, self._steps.f_hat
        return self._steps.f_hat, inputs.transpose(1, 2).unflatten(2, self._schedule[si + 1])


def main() -> None:
    """Parse the command line, train for some steps, and print VAR's loss."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clone", metavar="VAR", help="a clone of github.com/FoundationVision/VAR")
    parser.add_argument("folder", metavar="TOKENS", help="data set that `vartok dataset` made")
    parser.add_argument(
        "--weights", metavar="FILE", help="tokenizer that made TOKENS; default: the shipped one"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--depth", type=int, default=4)
    args = parser.parse_args()
    sys.path.insert(0, args.clone)
    var_class: Any = importlib.import_module("models").VAR
    amp: Any = importlib.import_module("utils.amp_sc")
    trainer_class: Any = importlib.import_module("trainer").VARTrainer
    device = importlib.import_module("dist").get_device()

    pairs = TokenPairs(args.folder)
    sides = tuple(h for h, _ in pairs.rows.schedule)  # VAR's grids are square
    vae = TokenVAE(vartok.load(args.weights, device=str(device)), pairs.rows.schedule)
    var = var_class(
        vae, max(1, len(pairs.rows.classes)), args.depth, 64 * args.depth, args.depth, patch_nums=sides
    )
    var.init_weights()
    names, parameters = zip(*var.to(device).named_parameters(), strict=True)
    optimizer = amp.AmpOptimizer(0, torch.optim.AdamW(parameters, 1e-3, (0.9, 0.95)), names, parameters, 2.0)
    trainer = trainer_class(
        device=device,
        patch_nums=sides,
        resos=sides,
        vae_local=vae,
        var_wo_ddp=var,
        var=var,
        var_opt=optimizer,
        label_smooth=0.0,
    )
    epochs = itertools.chain.from_iterable(
        DataLoader(pairs, args.batch_size, shuffle=True) for _ in itertools.count()
    )
    for step, (tokens, labels) in enumerate(itertools.islice(epochs, args.steps)):
        meter = Meter()
        trainer.train_step(
            it=0,
            g_it=1,
            stepping=True,
            metric_lg=meter,
            tb_lg=None,
            prog_si=-1,
            prog_wp_it=1.0,
            inp_B3HW=tokens.to(device),
            label_B=labels.to(device),
        )
        print(f"step {step + 1}: {meter.values['Lm']:.3f} nats per token", flush=True)


class Meter:
    """Figures of a training step, from VAR's trainer."""

    log_iters = frozenset({0})

    def update(self, **values: float) -> None:
        """Keep the values."""
        self.values = values


if __name__ == "__main__":
    main()
