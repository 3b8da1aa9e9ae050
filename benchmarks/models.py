"""Speed of encode and decode, compared with a plain forward pass of the same weights, as in VAR's code.

    python benchmarks/models.py [--rounds 3] [--ch 32 160] [--batch 1 8]

The plain pass runs module by module in float32, with channels first and the whole batch at once, in another
process without `vartok.runtime.keep_freed_memory`. "of product" is the rate of a pass's additions and
multiplications, as a share of the rate in a product of two large matrices, measured in the same rounds.
Figures are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import torch
import torch.multiprocessing
from timing import SIDE, product, table, take_turns
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import vartok
from vartok.checkpoints import build_model, read_checkpoint, shipped_checkpoint
from vartok.config import TokenizerConfig, VarConfig
from vartok.models.vqvae import VQVAE
from vartok.schedule import Schedule
from vartok.tokenizer import Tokenizer
from vartok.tokens import TokenMaps

CPU = torch.device("cpu")
DTYPES = ("float32", "bfloat16")
LIGHT_BATCH = 16
Calls = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ch", type=int, nargs="*", default=[32, 160])
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    given = parser.parse_args()
    torch.manual_seed(0)
    with torch.no_grad():
        light(given.rounds)
        growth(given.rounds)
        for ch in given.ch:
            var(ch, given.batch, given.rounds)


class Plain:
    """Runs functions of a plain model in a separate process."""

    def __init__(self, model: VQVAE) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, model), daemon=True)
        self._process.start()
        self._count = 0

    def call(self, function: Callable[..., object], *args: object) -> Callable[[], object]:
        """Return a function that runs `function(model, *args)` in the process; the result stays there."""
        number, self._count = self._count, self._count + 1
        self._connection.send((function, args))
        self._connection.recv()

        def call() -> None:
            self._connection.send(number)
            self._connection.recv()

        return call

    def end(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, model: VQVAE) -> None:
    calls: list[Callable[[], object]] = []
    with torch.no_grad(), contextlib.suppress(EOFError):
        while True:
            what = connection.recv()
            if isinstance(what, int):
                calls[what]()
            else:
                function, args = what
                calls.append(functools.partial(function, model, *args))
            connection.send(None)


def plain_quantize(model: VQVAE, latent: Tensor, schedule: Schedule) -> list[Tensor]:
    return [scale.indices for scale in model.quantize.scale_steps(schedule, latent=latent)]


def plain_quantize_each(model: VQVAE, latents: Tensor, schedule: Schedule) -> list[list[Tensor]]:
    return [plain_quantize(model, latent, schedule) for latent in latents.split(1)]


def plain_encode(model: VQVAE, images: Tensor, schedule: Schedule) -> list[Tensor]:
    return plain_quantize(model, model.encode(images), schedule)


def plain_decode(model: VQVAE, maps: Sequence[Tensor], schedule: Schedule) -> Tensor:
    *_, last = model.quantize.scale_steps(schedule, maps=maps)
    return model.decode(last.f_hat)


def var(ch: int, batches: Sequence[int], rounds: int) -> None:
    """Compare vartok in float32 and bfloat16 with the plain pass, on a random model of VAR's architecture."""
    config = TokenizerConfig(autoencoder=VarConfig(ch=ch))
    plain = VQVAE(config).requires_grad_(False)
    plain.quantize.embedding.weight.normal_(0, 0.5)
    fast = {
        dtype: Tokenizer(copy.deepcopy(plain), config, name="", device=CPU, dtype=dtype) for dtype in DTYPES
    }
    apart = Plain(plain)
    rows = []
    for batch in batches:
        images = torch.rand(batch, 3, 256, 256) * 2 - 1
        maps = plain_encode(plain, images, config.patch_nums)
        tokens = TokenMaps(tuple(maps))
        same = (fast["float32"].encode(images).flatten() == tokens.flatten()).sum()
        print(f"ch = {ch}, batch {batch}: {same} of {tokens.flatten().numel()} float32 tokens the same\n")
        encode: Calls = {dtype: _call(tokenizer.encode, images) for dtype, tokenizer in fast.items()}
        decode: Calls = {dtype: _call(tokenizer.decode, tokens) for dtype, tokenizer in fast.items()}
        work = {
            "encode": _operations(plain_encode, plain, images, config.patch_nums),
            "decode": _operations(plain_decode, plain, maps, config.patch_nums),
        }
        encode["plain"] = apart.call(plain_encode, images, config.patch_nums)
        decode["plain"] = apart.call(plain_decode, maps, config.patch_nums)
        latent = plain.encode(images)
        encode["quantizer"] = _call(fast["float32"].quantize, latent)
        if batch == 1:
            for calls, run, value in ((encode, plain.encode, images), (decode, plain.decode, latent)):
                calls |= {dtype + " bare": _convolutions(plain, run, value, dtype) for dtype in DTYPES}
        for what, calls in (("encode", encode), ("decode", decode)):
            rows.append([batch, what, *_compare(calls, work[what], batch, rounds)])
    apart.end()
    heading = [f"ch = {ch}, batch", "", "plain, s a picture", "of product"]
    for dtype in DTYPES:
        heading += [f"{dtype}, s", "**faster by**", "its convolutions alone", "of product"]
    print(table([*heading, "quantizer, of float32"], rows) + "\n", flush=True)


def _operations(function: Callable[..., object], *args: object) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return int(counter.get_total_flops())


def _compare(calls: Calls, work: int, batch: int, rounds: int) -> list[str]:
    products = {f"product {dtype}": product(getattr(torch, dtype), CPU) for dtype in DTYPES}
    times = take_turns({**calls, **products}, rounds=rounds)

    def share(name: str, dtype: str) -> str:
        return f"{work / times[name] / (2 * SIDE**3 / times[f'product {dtype}']):.0%}"

    row = [f"{times['plain'] / batch:.3f}", share("plain", "float32")]
    for dtype in DTYPES:
        bare = f"{times['plain'] / times[dtype + ' bare']:.2f}" if dtype + " bare" in times else ""
        ratio = f"**{times['plain'] / times[dtype]:.2f}**"
        row += [f"{times[dtype] / batch:.3f}", ratio, bare, share(dtype, dtype)]
    return [*row, f"{times['quantizer'] / times['float32']:.1%}" if "quantizer" in times else ""]


def light(rounds: int) -> None:
    """Compare the shipped checkpoint with the plain pass, and with its convolutions alone."""
    checkpoint = read_checkpoint(shipped_checkpoint())
    plain, schedule = build_model(checkpoint).requires_grad_(False), checkpoint.config.patch_nums
    fast = {dtype: vartok.load(device="cpu", dtype=dtype) for dtype in DTYPES}
    images = torch.rand(LIGHT_BATCH, 3, 256, 256) * 2 - 1
    latent = plain.encode(images)
    maps = plain_quantize(plain, latent, schedule)
    tokens = TokenMaps(tuple(maps))
    rows, apart = [], Plain(plain)
    for what, run, value, given in (
        ("encode", plain.encode, images, images),
        ("decode", plain.decode, latent, tokens),
    ):
        calls: Calls = {
            f"bare {dtype}": _convolutions(plain, run, value[:1], dtype, LIGHT_BATCH) for dtype in DTYPES
        }
        calls |= {dtype: _call(getattr(tokenizer, what), given) for dtype, tokenizer in fast.items()}
        calls["plain"] = (
            apart.call(plain_encode, images, schedule)
            if what == "encode"
            else apart.call(plain_decode, maps, schedule)
        )
        calls["quantizer"] = _call(fast["float32"].quantize, latent)
        calls["plain quantizer"] = apart.call(plain_quantize_each, latent, schedule)
        times = take_turns(calls, rounds=rounds)
        row: list[object] = [what, f"{LIGHT_BATCH / times['plain']:.0f}"]
        for dtype in DTYPES:
            row += [f"**{LIGHT_BATCH / times[dtype]:.0f}**", f"{times[f'bare {dtype}'] / times[dtype]:.0%}"]
        rows.append(row)
        if what == "encode":
            print(
                f"light: the quantizer takes {1e3 * times['quantizer'] / LIGHT_BATCH:.1f} ms a picture, "
                f"{times['quantizer'] / times['float32']:.0%} of encode; the plain one, picture by picture, "
                f"{1e3 * times['plain quantizer'] / LIGHT_BATCH:.1f} ms\n"
            )
    apart.end()
    heading = [f"light, batch {LIGHT_BATCH}", "plain, pictures/s"]
    heading += [text for dtype in DTYPES for text in (f"{dtype}, pictures/s", "of its convolutions' rate")]
    print(table(heading, rows) + "\n", flush=True)


def growth(rounds: int) -> None:
    """Measure how the shipped checkpoint's time grows with the picture's size and the batch size."""
    tokenizer = vartok.load(device="cpu")
    rows = []
    for side, batch in ((64, 1), (128, 1), (256, 1), (512, 1), (1024, 1), (256, 4), (256, 16), (256, 64)):
        images = torch.rand(batch, 3, side, side) * 2 - 1
        tokens = tokenizer.encode(images)
        times = take_turns(
            {"encode": _call(tokenizer.encode, images), "decode": _call(tokenizer.decode, tokens)},
            rounds=rounds,
        )
        megapixels = batch * side * side / 1e6
        rows.append(
            [f"{side}x{side}", batch]
            + [f"{1e3 * times[what] / batch:.1f}" for what in ("encode", "decode")]
            + [f"{1e3 * times[what] / megapixels:.0f}" for what in ("encode", "decode")]
        )
    heading = ["light", "batch", "encode, ms a picture", "decode", "encode, ms a megapixel", "decode"]
    print(table(heading, rows) + "\n", flush=True)


def _call(function: Callable[..., object], *args: object) -> Callable[[], object]:
    return lambda: function(*args)


def _convolutions(
    model: VQVAE, run: Callable[[Tensor], Tensor], value: Tensor, name: str, repeats: int = 1
) -> Callable[[], None]:
    """Return a function that runs only the convolutions of `run(value)`, on random inputs made beforehand.

    Args:
        model: the model that has the convolutions.
        run: function of the model whose convolutions are recorded.
        value: input of `run`.
        name: dtype of the convolutions, such as "float32".
        repeats: number of times that all convolutions run in one call.
    """
    seen: list[tuple[nn.Conv2d, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args: seen.append((module, args[0])))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    run(value)
    for hook in hooks:
        hook.remove()
    dtype, last = getattr(torch, name), torch.channels_last
    convolutions = [
        (
            copy.deepcopy(module).to(dtype).to(memory_format=last),  # type: ignore[call-overload]
            torch.randn_like(x).to(dtype).contiguous(memory_format=last),
        )
        for module, x in seen
    ]

    def call() -> None:
        for _ in range(repeats):
            for convolution, x in convolutions:
                nn.Conv2d.forward(convolution, x)

    return call


if __name__ == "__main__":
    main()
