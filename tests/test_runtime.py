"""Device, kept memory, compilation by torch (here for the CPU), precision."""

import copy
import dataclasses
import functools
import itertools
import pickle
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import vartok
from vartok.checkpoints import build_model, read_checkpoint, shipped_checkpoint
from vartok.errors import DeviceError, VartokWarning
from vartok.runtime import DTYPES, choose_device, network_precision, to_device


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_auto_takes_the_fastest_device(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert choose_device() == torch.device(chosen)


@pytest.mark.parametrize(
    ("device", "pinned", "background"),
    [("cuda", True, True), ("cuda", False, False), ("mps", True, False), ("cpu", True, False)],
)
def test_only_pinned_memory_is_copied_in_the_background_and_only_to_cuda(
    device: str, pinned: bool, background: bool
) -> None:
    class Copies(TorchFunctionMode):
        """torch's calls on a machine with the device: copies are noted, not made."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is Tensor.is_pinned:
                return pinned
            if func is Tensor.to:
                found.append((str(args[1]), kwargs["non_blocking"]))
                return args[0]
            return func(*args, **(kwargs or {}))

    found: list[tuple[str, bool]] = []
    tensor, place = torch.zeros(2), torch.device(device)
    with Copies():
        to_device(tensor, place)
    assert found == [(device, background)]


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles by g++ on a CPU")
def test_a_shape_that_comes_twice_is_compiled(light: vartok.Tokenizer, coffee: Tensor) -> None:
    tokenizer = vartok.load(device="cpu", compile=True)
    before = graphs()
    with warnings.catch_warnings(action="error", category=VartokWarning):
        for side, more in ((256, 0), (256, 2), (128, 0), (256, 0)):
            images = F.interpolate(coffee, (side, side), mode="area")
            tokens = tokenizer.encode(images)
            same = tokens.flatten() == light.encode(images).flatten()
            assert same.float().mean() > 0.98  # at a draw between two codes the last bit decides
            torch.testing.assert_close(tokenizer.decode(tokens), light.decode(tokens), rtol=0, atol=1e-4)
            before += more
            assert graphs() == before


def test_only_so_many_shapes_are_compiled(coffee: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def compiled(network: Callable[[Tensor], Tensor], dynamic: bool) -> Callable[[Tensor], Tensor]:
        def call(batch: Tensor) -> Tensor:
            given.append(tuple(batch.shape))
            return network(batch)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    tokenizer = vartok.load(device="cpu", compile=True)
    sides = range(16, 112, 16)
    for side in [*sides, *sides, *sides]:
        tokenizer.encode(F.interpolate(coffee, (side, side), mode="area"))
    assert given == 2 * [(1, 3, side, side) for side in [*sides][:4]]


def test_where_torch_refuses_to_compile_it_goes_on_without(
    coffee: Tensor, light: vartok.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(network: object, dynamic: bool) -> None:
        raise RuntimeError("not on this Python")

    monkeypatch.setattr(torch, "compile", refuse)
    images = F.interpolate(coffee, (64, 64), mode="area")
    tokenizer = vartok.load(device="cpu", compile=True)
    tokenizer.encode(images)
    with pytest.warns(VartokWarning, match=r"torch cannot compile here \(not on this Python\): going on"):
        tokens = tokenizer.encode(images)
    assert torch.equal(tokens.flatten(), light.encode(images).flatten())


@pytest.mark.slow
def test_a_compiled_tokenizer_copied_computes_with_its_own_weights(coffee: Tensor) -> None:
    images = F.interpolate(coffee, (64, 64), mode="area")
    tokenizer = vartok.load(device="cpu", compile=True)
    latent = tokenizer.latent(images)
    torch.testing.assert_close(pickle.loads(pickle.dumps(tokenizer)).latent(images), latent)
    other = copy.deepcopy(tokenizer)
    other._model.quant_conv.weight.zero_()
    assert not torch.allclose(other.latent(images), latent)
    torch.testing.assert_close(tokenizer.latent(images), latent)


@pytest.mark.slow
def test_where_torch_cannot_compile_it_goes_on_without(light: vartok.Tokenizer, coffee: Tensor) -> None:
    images = F.interpolate(coffee, (64, 80), mode="area")
    tokenizer = vartok.load(device="cpu", compile=True)
    tokens = tokenizer.encode(images)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
        with pytest.warns(
            VartokWarning, match=r"torch cannot compile here \(.*compiler.*\): going on without compilation"
        ):
            assert torch.equal(tokenizer.encode(images).flatten(), tokens.flatten())
        with warnings.catch_warnings(action="error"):
            assert torch.equal(tokenizer.encode(images).flatten(), tokens.flatten())
    assert (tokens.flatten() == light.encode(images).flatten()).float().mean() > 0.98


backends: Any = torch.backends
SETTINGS: dict[str, Callable[[], None]] = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "legacy products": lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
    "legacy convolutions": lambda: setattr(backends.cudnn, "allow_tf32", True),
    "no legacy convolutions": lambda: setattr(backends.cudnn, "allow_tf32", False),
    **{
        f"{name} {value}": functools.partial(setattr, part, "fp32_precision", value)
        for name, part in {
            "all": backends,
            "CUDA": backends.cudnn,
            "products": backends.cuda.matmul,
            "convolutions": backends.cudnn.conv,
            "CPU products": backends.mkldnn.matmul,
        }.items()
        for value in ("tf32", "ieee")
    },
    "CPU products bf16": lambda: setattr(backends.mkldnn.matmul, "fp32_precision", "bf16"),
}
"""Everything by which a user sets the precision of float32 products."""


def settings() -> list[object]:
    """Return every setting of the precision of float32 products; "unclear" where torch finds old and new."""

    def read(get: Callable[[], object]) -> object:
        try:
            return get()
        except RuntimeError:
            return "unclear"

    matmul, cudnn, cpu = backends.cuda.matmul, backends.cudnn, backends.mkldnn
    parts = [backends, cudnn, matmul, cudnn.conv, cudnn.rnn, cpu.matmul, cpu.conv]
    older = [torch.get_float32_matmul_precision, lambda: matmul.allow_tf32, lambda: cudnn.allow_tf32]
    return [*(part.fp32_precision for part in parts), *map(read, older)]


def settings_and_what_follows() -> list[list[object]]:
    """Return all settings, also under each general one that a user may make afterwards."""
    found = [settings()]
    general = backends.fp32_precision
    for value in ("none", "ieee", "tf32"):
        backends.fp32_precision = value
        found.append(settings())
    backends.fp32_precision = general
    return found


@pytest.fixture
def own_settings() -> Iterator[Callable[[], None]]:
    """Return a function that sets torch's own precision of float32 products, and call it at the end."""

    def reset() -> None:
        for part in (backends, backends.cudnn):
            part.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        for part in (backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv):
            part.fp32_precision = "none"
        backends.cudnn.allow_tf32 = True

    yield reset
    reset()


newer = pytest.mark.skipif(not hasattr(backends, "fp32_precision"), reason="settings since torch 2.9")


@newer
@pytest.mark.parametrize(("dtype", "products", "older"), [("float32", "ieee", False), ("tf32", "tf32", True)])
def test_the_callers_precision_of_products_is_restored(
    own_settings: Callable[[], None], dtype: str, products: str, older: bool
) -> None:
    device = torch.device("cpu")
    with warnings.catch_warnings(action="error"):
        for made in [(), *itertools.product(SETTINGS, repeat=2)]:
            for name in made:
                SETTINGS[name]()
            before = settings_and_what_follows()
            with network_precision(device, dtype):
                inside = (backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision)
                assert inside == (products, products), made
                assert backends.cuda.matmul.allow_tf32 is older, made  # torch's compiler reads it
                if dtype == "float32":
                    assert backends.mkldnn.matmul.fp32_precision == "ieee", made
            assert settings_and_what_follows() == before, made
            own_settings()


@newer
@pytest.mark.parametrize("name", ["high", "legacy products", "all tf32"])
def test_float32_is_exact_under_the_callers_tf32_in_threads_too(
    own_settings: Callable[[], None], light: vartok.Tokenizer, coffee: Tensor, name: str
) -> None:
    image = coffee[..., :32, :32]
    expected = light.encode(image).flatten()
    SETTINGS[name]()
    before = settings()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: light.encode(image).flatten(), range(4)))
    assert all(torch.equal(tokens, expected) for tokens in found)
    assert settings() == before


def test_float32_and_tf32_wait_for_each_other() -> None:
    """torch's settings are per process, so that two threads cannot compute in both at once."""
    device, order = torch.device("cpu"), []
    inside = threading.Event()

    def compute(dtype: str) -> None:
        with network_precision(device, dtype):
            order.append(dtype)
            inside.set()

    with network_precision(device, "float32"):
        compute("float32")
        thread = threading.Thread(target=compute, args=("tf32",))
        inside.clear()
        thread.start()
        assert not inside.wait(0.05)
        order.append("left")
    thread.join()
    assert order == ["float32", "left", "tf32"]


def test_tf32_inside_float32_is_an_error_instead_of_a_wait_without_end() -> None:
    device = torch.device("cpu")
    with network_precision(device, "float32"):
        with network_precision(device, "float32"), pytest.raises(RuntimeError, match=r"tf32 .* inside"):
            network_precision(device, "tf32").__enter__()
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    with network_precision(device, "tf32"):
        pass


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cpu_without_a_dtype_computes_in_float32_with_weights_rounded_to_it(
    coffee: Tensor, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """float16 is imitated on every CPU, bfloat16 on those without AVX-512: 30 times as slow."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool, raising=False)
    with pytest.warns(VartokWarning, match=f"does not compute in {dtype}: .* float32, with weights rounded"):
        tokenizer = vartok.load(device="cpu", dtype=dtype)
    checkpoint = read_checkpoint(shipped_checkpoint())
    rounded = {
        name: tensor if name.startswith("quantize.") else tensor.to(DTYPES[dtype]).float()
        for name, tensor in checkpoint.tensors.items()
    }
    model = build_model(dataclasses.replace(checkpoint, tensors=rounded))
    same = vartok.Tokenizer(model, checkpoint.config, name="", device=torch.device("cpu"), dtype="float32")
    images = coffee[..., :64, :64]
    tokens = tokenizer.encode(images)
    assert tokenizer.dtype == dtype  # which token files state
    assert torch.equal(tokens.flatten(), same.encode(images).flatten())
    assert torch.equal(tokenizer.decode(tokens), same.decode(tokens))


def test_tf32_is_for_cuda() -> None:
    with pytest.raises(DeviceError, match="cpu does not compute in tf32"):
        vartok.load(device="cpu", dtype="tf32")


def test_networks_in_tf32_compute_in_it_and_the_quantizer_does_not(
    light: vartok.Tokenizer, coffee: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here on a CPU, which has no TF32: the setting is read while the parts run."""
    runner = copy.deepcopy(light._runner)
    seen = []

    def noted(compute: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            seen.append(backends.cuda.matmul.allow_tf32)
            return compute(*args)

        return call

    monkeypatch.setattr(runner, "_dtype", "tf32")
    monkeypatch.setattr(runner, "_encode", noted(runner._encode))
    monkeypatch.setattr(runner, "_quantize", noted(runner._quantize))
    runner.quantize(runner.encode(coffee[..., :16, :16]), ((1, 1),), None)
    assert seen == [True, False]
