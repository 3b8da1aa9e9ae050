"""Speed on a GPU, compared with VAR-like plain networks and with the card's own rate of matrix products.

    python benchmarks/gpu.py [--out FOLDER] [--seconds 300] [--parts NAME ...]

Parts run in the order of their importance, each with a time limit. Every row is printed in Markdown and
appended to FOLDER/gpu.md and, as a line of JSON, to FOLDER/gpu.jsonl, so that a run that is cut off leaves
its figures. Calls to compare take turns; figures are medians. Where there is no GPU, the CPU runs everything
in small: that shows that the script works, and its figures say nothing.

"VAR-like" is the plain networks in float32 with channels first, TF32 products and cuDNN's search for the
fastest convolution, as VAR's own code runs. "of product" is the rate of additions and multiplications, as a
share of the rate in a product of two large matrices of the same dtype.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_networks import ON_CPU, ON_GPU, Bench, Calls, Network, like_var
from gpu_report import Report, time_limit
from models import plain_decode, plain_encode, plain_quantize
from timing import machine, product, take_turns, wait
from torch import Tensor
from trainer import bare_speed, trainer_speed

import vartok
from vartok.errors import DeviceError
from vartok.images import Fit
from vartok.operations.settings import default_workers
from vartok.parallel import map_ordered
from vartok.runtime import DTYPES, choose_device
from vartok.sources import find_input_shards
from vartok.tokens import TokenMaps
from vartok.train import read_settings

SECONDS = 300.0  # time of a run, on which the parts' limits are based
PLAIN = "VAR-like, TF32"


def _in_tf32(function: Callable[..., object], *args: object) -> Callable[[], object]:
    def call() -> object:
        with like_var():
            return function(*args)

    return call


def products(bench: Bench, deadline: float) -> None:
    """Measure the rate of matrix products, which all other rates are compared with."""
    side = bench.form.product_side
    calls: Calls = {}
    for name in ("bfloat16", "float16", "TF32", "float32"):
        call = product(getattr(torch, name.replace("TF32", "float32")), bench.device, side)
        calls[name] = _in_tf32(call) if name == "TF32" else call
    times = bench.measure(calls, deadline)
    bench.rates |= {name: 2 * side**3 / seconds for name, seconds in times.items()}
    bench.report.table("matrix products")
    for name, rate in bench.rates.items():
        bench.report.row(dtype=name, side=side, TFLOPs=rate / 1e12)


def speed(bench: Bench, deadline: float, name: str, batches: Iterable[int]) -> None:
    """Compare encode and decode of all dtypes with the VAR-like pass; `name` is "var" or "light"."""
    network: Network = getattr(bench, name)
    bench.report.table("encode and decode")
    for batch in batches:
        images = network.images(batch)
        tokens = network.tokenizer("float32").encode(images)
        calls = _plain_calls(network, images, tokens)
        for dtype in DTYPES:
            try:
                calls |= _own_calls(f"vartok {dtype}", network.tokenizer(dtype), images, tokens)
            except DeviceError as error:
                bench.report.note(f"vartok {dtype}: {error}")
        _compare(bench, network, batch, calls, deadline)


def _plain_calls(network: Network, images: Tensor, tokens: TokenMaps) -> Calls:
    model, schedule = network.plain, network.schedule

    def encode() -> object:
        with torch.autocast(network.device.type, torch.bfloat16):
            latent = model.encode(images)
        return plain_quantize(model, latent.float(), schedule)

    def decode() -> object:
        *_, last = model.quantize.scale_steps(schedule, maps=tokens.maps)
        with torch.autocast(network.device.type, torch.bfloat16):
            return model.decode(last.f_hat)

    return {
        f"{PLAIN} encode": _in_tf32(plain_encode, model, images, schedule),
        f"{PLAIN} decode": _in_tf32(plain_decode, model, tokens.maps, schedule),
        "VAR-like, bfloat16 autocast encode": _in_tf32(encode),
        "VAR-like, bfloat16 autocast decode": _in_tf32(decode),
    }


def _own_calls(name: str, tokenizer: vartok.Tokenizer, images: Tensor, tokens: TokenMaps) -> Calls:
    return {
        f"{name} encode": lambda: tokenizer.encode(images),
        f"{name} decode": lambda: tokenizer.decode(tokens),
    }


def _compare(bench: Bench, network: Network, batch: int, calls: Calls, deadline: float) -> None:
    """Measure calls named "... encode" and "... decode", and write a row for each pair."""
    times = bench.measure(calls, deadline)
    for name in dict.fromkeys(call.rpartition(" ")[0] for call in times):
        row: dict[str, object] = {"network": network.name, "batch": batch, "run": name}
        dtype = next((d for d in ("bfloat16", "float16") if d in name), None)
        dtype = dtype or ("TF32" if "tf32" in name.lower() else "float32")
        for what, work in network.work.items():
            if seconds := times.get(f"{name} {what}"):
                rate = work * batch / seconds
                row |= {f"{what}, pictures/s": batch / seconds, f"{what}, TFLOP/s": rate / 1e12}
                if dtype in bench.rates:
                    row[f"{what}, of product"] = f"{rate / bench.rates[dtype]:.1%}"
                if plain := times.get(f"{PLAIN} {what}"):
                    row[f"{what}, by VAR-like"] = plain / seconds
        bench.report.row(**row)


def compiled(bench: Bench, deadline: float) -> None:
    """Compare compiled networks with eager ones."""
    bench.report.table("compiled")
    dtype, batch = bench.form.dtype, bench.form.batches[0]
    for network in (bench.var, bench.light):
        if bench.device.type == "cpu" and network is bench.light:
            bench.report.note("light: not compiled on a CPU, as it takes minutes")
            continue
        images = network.images(batch)
        tokens = network.tokenizer("float32").encode(images)
        calls = {k: v for k, v in _plain_calls(network, images, tokens).items() if k.startswith(PLAIN)}
        calls |= _own_calls(f"vartok {dtype}", network.tokenizer(dtype), images, tokens)
        tokenizer = network.load(dtype=dtype, compile=True)
        begin = time.monotonic()
        for _ in range(2):
            tokenizer.encode(images)
            tokenizer.decode(tokens)
        wait()
        bench.report.note(f"{network.name}: compiled in {time.monotonic() - begin:.0f} s")
        calls |= _own_calls(f"vartok {dtype}, compiled", tokenizer, images, tokens)
        _compare(bench, network, batch, calls, deadline)


def layouts(bench: Bench, deadline: float) -> None:
    """Compare channels first and channels last in the plain networks alone."""
    bench.report.table("plain networks alone, by layout")
    batch = bench.form.batches[0]
    for network in (bench.var, bench.light):
        calls: Calls = {}
        for name, dtype in (("bfloat16", torch.bfloat16), ("TF32", torch.float32)):
            for layout in ("channels first", "channels last"):
                form = torch.channels_last if layout.endswith("last") else torch.contiguous_format
                model = network.build().to(network.device, dtype).requires_grad_(False)
                model.to(memory_format=form)  # type: ignore[call-overload]
                images = network.images(batch).to(dtype).contiguous(memory_format=form)
                latent = model.encode(images).contiguous(memory_format=form)
                calls[f"{name}, {layout} encode"] = _in_tf32(model.encode, images)
                calls[f"{name}, {layout} decode"] = _in_tf32(model.decode, latent)
        _compare(bench, network, batch, calls, deadline)


def quantizer(bench: Bench, deadline: float) -> None:
    """Measure the quantizer alone, in both directions, beside the plain one."""
    bench.report.table("the quantizer alone")
    network = bench.var
    model, tokenizer = network.plain, network.tokenizer("float32")
    for batch in sorted({1, *bench.form.batches}):
        latent = tokenizer.latent(network.images(batch))
        tokens = tokenizer.quantize(latent)
        calls: Calls = {
            "plain": functools.partial(plain_quantize, model, latent, network.schedule),
            "quantize": functools.partial(tokenizer.quantize, latent),
            "f_hat": functools.partial(tokenizer.f_hat, tokens),
        }
        times = bench.measure(calls, deadline)
        milliseconds = {f"{name}, ms": 1e3 * seconds for name, seconds in times.items()}
        bench.report.row(batch=batch, **milliseconds)


def copies(bench: Bench, deadline: float) -> None:
    """Measure copies of a batch of pictures to the device."""
    bench.report.table("copies to the device")
    calls: Calls = {}
    shape = (bench.form.batches[0], 3, bench.light.side, bench.light.side)
    sizes = {}
    for dtype in (torch.uint8, torch.float32):
        for memory in ("pageable", "pinned"):
            pixels = torch.zeros(shape, dtype=dtype)
            if memory == "pinned":
                if bench.device.type != "cuda":
                    bench.report.row(memory=memory, dtype=str(dtype)[6:], note="only on CUDA")
                    continue
                pixels = pixels.pin_memory()
            name = f"{memory} {str(dtype)[6:]}"
            sizes[name] = pixels.nbytes
            copy = functools.partial(pixels.to, bench.device, non_blocking=memory == "pinned", copy=True)
            calls[name] = copy
    for name, seconds in bench.measure(calls, deadline).items():
        memory, _, kind = name.partition(" ")
        rates = {"GB/s": sizes[name] / seconds / 1e9, "pictures/s": shape[0] / seconds}
        bench.report.row(memory=memory, dtype=kind, **rates)


def training(bench: Bench, deadline: float) -> None:
    """Compare the trainer with a bare loop."""
    form = bench.form
    run: dict[str, Any] = {"steps": form.train_steps + 10, "val_every": 1 << 30}
    changes: dict[str, dict[str, Any]] = {
        "start": {"init_pictures": 16, "kmeans_rounds": 1},
        "data": {"batch_size": form.train_batch},
    }
    if bench.device.type == "cpu":
        changes["model"] = {"patch_nums": [1, 2, 4]}
        run["precision"] = "float32"
    settings = read_settings("light", {**changes, "run": run})
    bench.report.table("training, preset light")
    bare, whole = [], []
    for number in range(form.rounds):
        if number and time.monotonic() > deadline:
            break
        bare.append(bare_speed(settings, form.train_steps))
        whole.append(trainer_speed(settings, [str(bench.tars[0])]))
        ratio = f"{whole[-1] / bare[-1]:.1%}"
        bench.report.row(batch=form.train_batch, bare=bare[-1], trainer=whole[-1], ratio=ratio)
    medians = statistics.median(bare), statistics.median(whole)
    bench.report.note(f"medians: bare loop {medians[0]:.0f} crops/s, trainer {medians[1]:.0f} crops/s")


def end_to_end(bench: Bench, deadline: float) -> None:
    """Compare `vartok.dataset.build` on tars of JPEG files with the model alone and with reading alone."""
    bench.report.table("from JPEG files in a tar to Parquet")
    batch, numbers = bench.form.batches[0], itertools.count()
    for network, count, tar in zip((bench.light, bench.var), bench.form.files, bench.tars, strict=True):
        tokenizer = network.tokenizer(bench.form.dtype)
        fit = Fit(size=(network.side, network.side))
        images = (torch.rand(batch, network.side, network.side, 3) * 255).byte().numpy()

        def read(tar: Path = tar, fit: Fit = fit, count: int = count) -> None:
            (shard,) = find_input_shards([str(tar)], count)
            samples = map_ordered(
                lambda sample: sample.read(fit), shard.samples(), workers=default_workers(), limit=64
            )
            assert sum(1 for _ in samples) == count

        def model(
            tokenizer: vartok.Tokenizer = tokenizer, images: np.ndarray[Any, Any] = images, count: int = count
        ) -> None:
            for _ in range(-(-count // len(images))):
                tokenizer.encode(images)

        def whole(tokenizer: vartok.Tokenizer = tokenizer, tar: Path = tar, side: int = network.side) -> None:
            out = bench.scratch / f"set{next(numbers)}"
            vartok.dataset.build(tar, out, tokenizer=tokenizer, size=side, batch_size=batch)

        calls: Calls = {"whole": whole, "model": model, "reading": read}
        times = take_turns(calls, rounds=min(3, bench.form.rounds), seconds=0, deadline=deadline)
        row = {f"{name}, pictures/s": count / seconds for name, seconds in times.items()}
        bench.report.row(
            network=f"{network.name}, {bench.form.dtype}",
            pictures=count,
            batch=batch,
            readers=default_workers(),
            **row,
            of_model=f"{row['whole, pictures/s'] / row['model, pictures/s']:.1%}",
            readers_share=f"{times['reading'] / times['whole']:.1%}",
        )


PARTS: dict[str, tuple[float, Callable[[Bench, float], None]]] = {
    "products": (20, products),
    "var": (60, lambda bench, end: speed(bench, end, "var", bench.form.batches[:1])),
    "light": (30, lambda bench, end: speed(bench, end, "light", bench.form.batches[:1])),
    "var-alone": (20, lambda bench, end: speed(bench, end, "var", [1])),
    "light-alone": (15, lambda bench, end: speed(bench, end, "light", [1])),
    "dataset": (60, end_to_end),
    "training": (60, training),
    "light-batches": (30, lambda bench, end: speed(bench, end, "light", bench.form.batches[1:])),
    "var-batches": (60, lambda bench, end: speed(bench, end, "var", bench.form.batches[1:])),
    "quantizer": (15, quantizer),
    "layouts": (30, layouts),
    "copies": (10, copies),
    "compiled": (120, compiled),
}
"""The parts by name, most important first: time limit in seconds, and function."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit of the whole run")
    parser.add_argument("--parts", nargs="*", choices=PARTS, help="parts to run; all if none are named")
    given = parser.parse_args()
    device = choose_device()
    form = ON_CPU if device.type == "cpu" else ON_GPU
    if device.type == "cpu":
        torch.set_num_threads(1)  # the networks are tiny, and threads that wait for each other take the time
    end = time.monotonic() + given.seconds
    with Report(given.out) as report, tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        report.note(f"{machine()}, vartok {vartok.__version__}" + " (in small)" * (device.type == "cpu"))
        bench = Bench(form, device, report, Path(scratch))
        for name in given.parts or PARTS:
            seconds, part = PARTS[name]
            limit = min(seconds * given.seconds / SECONDS, end - time.monotonic())
            with time_limit(name, limit, report) as deadline, torch.set_grad_enabled(name == "training"):
                part(bench, deadline)
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
