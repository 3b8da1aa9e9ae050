"""Train a class-conditional next-scale transformer on a data set of tokens.

    vartok dataset PHOTOS -o TOKENS --folder-labels
    python examples/next_scale/train.py TOKENS -o RUN
    python examples/next_scale/sample.py RUN -o samples.png

The same command with --resume goes on where a run was stopped, or trains longer with more --steps. On a GPU
add --bf16 and --compile; on several, start it by `accelerate launch` or `torchrun`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from model import ModelConfig, NextScale
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

import vartok
from vartok.dataset import TokenDataset
from vartok.files import atomic_write

CHECKPOINT = "checkpoint.pt"


@dataclass
class Run:
    """The state of a training run, as a checkpoint holds it.

    Attributes:
        model: the transformer.
        ema: exponential moving average of its parameters, by name, float32.
        optimizer: AdamW.
        step: number of steps done.
    """

    model: NextScale
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0

    def save(self, path: Path, dataset: TokenDataset) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "config": asdict(self.model.config),
            "classes": dataset.classes,
            "fingerprint": dataset.model.fingerprint,
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        with atomic_write(path, overwrite=True) as file:
            torch.save(state, file)

    def load(self, path: Path, dataset: TokenDataset) -> None:
        """Continue from a checkpoint.

        Raises:
            SystemExit: it is of a model of another shape, or of tokens of another tokenizer or other classes.
        """
        state = torch.load(path, map_location=self.model.bias.device, weights_only=True)
        differing = [key for key, value in asdict(self.model.config).items() if state["config"][key] != value]
        if differing:
            raise SystemExit(f"{path} is of a model with another {', '.join(differing)}")
        if state["fingerprint"] != dataset.model.fingerprint:
            raise SystemExit(f"{path} was trained on tokens of another tokenizer than {dataset.model.name}")
        if state["classes"] != dataset.classes:
            raise SystemExit(f"{path} was trained on other classes, or on the same in another order")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema, self.step = state["ema"], state["step"]

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Move the average towards the parameters; early steps move it more."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for name, parameter in self.model.named_parameters():
            self.ema[name].lerp_(parameter, 1 - decay)


def open_tokens(folder: str, seed: int) -> TokenDataset:
    """Open the data set.

    Raises:
        SystemExit: its rows have several schedules, or not all scales.
    """
    dataset = TokenDataset(folder, seed=seed)
    if len(dataset.buckets) > 1:
        raise SystemExit(f"{folder} has {len(dataset.buckets)} buckets, and this takes one schedule")
    if dataset.grids != dataset.schedule:
        raise SystemExit(f"{folder} has the first {len(dataset.grids)} scales only, and this takes all")
    return dataset


def start(tokenizer: vartok.Tokenizer, dataset: TokenDataset, args: argparse.Namespace) -> Run:
    """Return a new run, or the one of the checkpoint in the output folder.

    Raises:
        SystemExit: there is a checkpoint that is not to be continued, or that cannot be.
    """
    config = ModelConfig(
        schedule=dataset.schedule,
        channels=tokenizer.config.z_channels,
        vocab_size=tokenizer.config.vocab_size,
        classes=len(dataset.classes) if args.classes is None else args.classes,
        width=args.width,
        depth=args.depth,
        heads=args.heads,
    )
    model = NextScale(config, tokenizer.codebook).to(tokenizer.device)
    groups = [  # only matrices get weight decay
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    ema = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run = Run(model, ema, torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95)))
    checkpoint = args.output / CHECKPOINT
    if checkpoint.exists():
        if not args.resume:
            raise SystemExit(f"{checkpoint} exists: --resume goes on with it")
        run.load(checkpoint, dataset)
    args.output.mkdir(parents=True, exist_ok=True)
    return run


def batches(
    dataset: TokenDataset, sampler: DistributedSampler[Any], batch_size: int, start: int
) -> Iterator[dict[str, Any]]:
    """Yield the batches from number `start` on, epoch after epoch; each epoch has an order of its own."""
    per_epoch = len(sampler) // batch_size
    for epoch in itertools.count(start // per_epoch):
        dataset.set_epoch(epoch)  # draws a view of each picture, if there are several
        sampler.set_epoch(epoch)
        rows = list(sampler)[start % per_epoch * batch_size :]
        yield from DataLoader(dataset, batch_size, sampler=rows, drop_last=True)
        start = 0


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Return the learning rate of a step: a linear warmup, a plateau, a linear decay over the last steps."""
    warmup = (step + 1) / args.warmup_steps
    decay = (args.steps - step) / max(1.0, args.steps * args.decay_fraction)
    return float(args.lr * min(1.0, warmup, decay))


def drop_labels(labels: Tensor, share: float, seed: int) -> Tensor:
    """Replace a share of the labels by -1, so that the model learns pictures without a class too."""
    drawn = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed))
    return labels.masked_fill(drawn < share, -1)


def train(args: argparse.Namespace) -> None:
    """Train, print the loss, and write checkpoints."""
    accelerator = Accelerator(cpu=args.device == "cpu", mixed_precision="bf16" if args.bf16 else "no")
    device, processes = accelerator.device, accelerator.num_processes
    torch.manual_seed(args.seed)

    # ---- Data and model ----
    tokenizer = vartok.load(args.weights, device=str(device))
    dataset = open_tokens(args.folder, args.seed)
    sampler: DistributedSampler[Any] = DistributedSampler(
        dataset, processes, accelerator.process_index, seed=args.seed, drop_last=True
    )
    if len(sampler) < args.batch_size:
        raise SystemExit(f"a batch is {args.batch_size} pictures, but each process has {len(sampler)}")
    run = start(tokenizer, dataset, args)
    model: nn.Module = accelerator.prepare(torch.compile(run.model) if args.compile else run.model)
    parameters, guess = sum(p.numel() for p in model.parameters()), math.log(dataset.model.vocab_size)
    accelerator.print(
        f"{len(dataset):,} pictures; {parameters:,} parameters; {processes} x {device.type}; "
        f"a uniform guess costs {guess:.3f} nats per token"
    )

    # ---- Steps ----
    log = Log(run.model.sizes, args.batch_size * processes)
    remaining = max(0, args.steps - run.step)
    for batch in itertools.islice(batches(dataset, sampler, args.batch_size, run.step), remaining):
        tokens = batch["tokens"].to(device)  # [B, L]
        labels = batch["label"] if run.model.config.classes else torch.full([len(tokens)], -1)
        seed = (args.seed + run.step) * processes + accelerator.process_index
        labels = drop_labels(labels, args.label_dropout, seed).to(device)
        logits = model(dataset.var_inputs(tokenizer, tokens), labels)  # [B, L, V]
        losses = F.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")  # [B, L]
        accelerator.backward(losses.mean())
        nn.utils.clip_grad_norm_(run.model.parameters(), args.max_norm)
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(run.step, args)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.update_ema(args.ema_decay)
        run.step += 1
        log.add(losses.detach())
        last = run.step == args.steps
        if last or run.step % args.log_every == 0:
            accelerator.print(f"step {run.step}: {log.line(accelerator)}", flush=True)
        if accelerator.is_main_process and (last or run.step % args.save_every == 0):
            run.save(args.output / CHECKPOINT, dataset)
    accelerator.end_training()


def main() -> None:
    """Parse the command line, and train."""
    try:
        train(parse_arguments())
    except (vartok.VartokError, OSError) as error:
        raise SystemExit(str(error)) from None


class Log:
    """The loss by scale, and the speed, since the last line."""

    def __init__(self, sizes: list[int], pictures: int) -> None:
        self._sizes = sizes
        self._pictures = pictures  # of a step
        self._start()

    def _start(self) -> None:
        self._losses: list[Tensor] = []  # [L] each
        self._began = time.monotonic()

    def add(self, losses: Tensor) -> None:
        """Add the losses of a step: [B, L]."""
        self._losses.append(losses.mean(0))

    def line(self, accelerator: Accelerator) -> str:
        """Return a line on the steps since the last line, averaged over processes."""
        mean = accelerator.reduce(torch.stack(self._losses).mean(0), "mean")
        scales = " ".join(f"{part.mean():.3f}" for part in mean.split(self._sizes))
        speed = len(self._losses) * self._pictures / (time.monotonic() - self._began)
        self._start()
        return f"{mean.mean():.3f} nats per token; by scale {scales}; {speed:.1f} pictures/s"


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", metavar="TOKENS", help="data set that `vartok dataset` made")
    add("-o", "--output", type=Path, required=True, metavar="RUN", help="folder for the checkpoint")
    add("--resume", action="store_true", help="go on with the checkpoint in RUN, if there is one")
    add("--weights", metavar="FILE", help="tokenizer that made TOKENS; default: the shipped one")
    add("--classes", type=int, metavar="N", help="labels are 0 to N - 1; default: the named ones")
    model = parser.add_argument_group("model").add_argument
    model("--width", type=int, default=256, help="channels; default: %(default)s")
    model("--depth", type=int, default=8, help="blocks; default: %(default)s")
    model("--heads", type=int, default=4, help="attention heads; default: %(default)s")
    training = parser.add_argument_group("training").add_argument
    training("--steps", type=int, default=2000, help="default: %(default)s")
    training("--batch-size", type=int, default=32, help="pictures, per process; default: %(default)s")
    training("--lr", type=float, default=1e-3, help="default: %(default)s")
    training("--warmup-steps", type=int, default=100, help="default: %(default)s")
    training("--decay-fraction", type=float, default=0.4, help="share of the steps; default: %(default)s")
    training("--weight-decay", type=float, default=0.05, help="default: %(default)s")
    training("--max-norm", type=float, default=1.0, help="clip gradients to it; default: %(default)s")
    training("--label-dropout", type=float, default=0.1, help="for guidance; default: %(default)s")
    training("--ema-decay", type=float, default=0.999, help="default: %(default)s")
    training("--log-every", type=int, default=50, metavar="STEPS", help="default: %(default)s")
    training("--save-every", type=int, default=200, metavar="STEPS", help="default: %(default)s")
    training("--seed", type=int, default=0)
    machine = parser.add_argument_group("machine").add_argument
    machine("--device", default="auto", choices=["auto", "cpu"], help="auto: a GPU if there is one")
    machine("--bf16", action="store_true", help="compute in bfloat16; weights stay float32")
    machine("--compile", action="store_true", help="let torch compile the model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
