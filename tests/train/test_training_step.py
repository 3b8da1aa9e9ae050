"""One training step: what it reads back from the device, and what dead codes leave behind."""

import contextlib
import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_run import tiny
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vartok.features import load_features
from vartok.models.vqvae import VQVAE
from vartok.train import TrainSettings
from vartok.train.distributed import adam_kernels, load_adam_state
from vartok.train.frozen import FrozenTokens
from vartok.train.perceptual import PerceptualNetworks
from vartok.train.progress import Meter
from vartok.train.start import LinearTransform
from vartok.train.state import TrainingState, create_state
from vartok.train.step import replace_dead_codes, training_step, update_ema


def same(value: Tensor) -> Tensor:
    return value


def one_process(device: str) -> Any:
    """Return a stand-in for `Processes` that prepares nothing, so that any device will do."""
    accelerator = SimpleNamespace(
        device=torch.device(device),
        prepare=lambda *parts: parts,
        backward=lambda loss: loss.backward(),
        clip_grad_norm_=nn.utils.clip_grad_norm_,
        autocast=contextlib.nullcontext,
    )
    return SimpleNamespace(accelerator=accelerator, device=torch.device(device), mean=same, gather=same)


def begin(settings: TrainSettings, processes: Any) -> TrainingState:
    model = VQVAE(settings.model).to(processes.device)
    anchor = LinearTransform.empty(settings.model).to(processes.device)
    features = load_features("efficientnet-lite0").channels if settings.loss.uses_features else []
    state = create_state(model, anchor, settings, processes, features)
    if settings.start.keep_tokens:
        state.model.frozen = FrozenTokens(model, settings.model.patch_nums)
    return state


def settings_of(codebook: str, **tables: dict[str, Any]) -> TrainSettings:
    quantizer = {"codebook": codebook, "dead_code_threshold": 0.9, "codebook_ema_decay": 0.8}
    return tiny(quantizer=quantizer, **tables)


class NoValues(TorchFunctionMode):
    """Fails where Python asks for a tensor's values, or moves them to the CPU."""

    asking = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        assert name not in self.asking, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


class NoUnknownShapes(TorchDispatchMode):
    """Fails where torch reads a value, or a result's shape depends on values."""

    waiting = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function).split(".")[1]
        assert name not in self.waiting, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings",
    [
        settings_of("ema"),
        settings_of("gradient"),
        settings_of(
            "ema",
            loss={
                "log_mse": 1.0,
                "blockiness": 1.0,
                "periodicity": 1.0,
                "local_contrast": 1.0,
                "perceptual": 1.0,
                "adversarial": 0.1,
                "adversarial_net": "projected",
                "target_psnr_drop": 1.0,
            },
            start={"weights": "w", "keep_tokens": True},
            model={"patch_nums": [1, 2, 8]},
        ),
    ],
    ids=["ema", "gradient", "looks"],
)
def test_a_step_between_reports_reads_nothing_back_from_the_device(
    monkeypatch: pytest.MonkeyPatch, settings: TrainSettings
) -> None:
    for module in ("state", "adversary"):
        monkeypatch.setattr(
            f"vartok.train.{module}.adam_kernels", lambda _: adam_kernels(torch.device("cuda"))
        )
    processes = one_process("cpu")
    torch.manual_seed(0)
    state, networks = begin(settings, processes), PerceptualNetworks.load(settings.loss)
    images, meter = torch.rand(2, 3, *settings.model.image_size), Meter()
    assert state.codebook.replace_every == 1
    with NoValues(), NoUnknownShapes():  # type: ignore[no-untyped-call]
        for _ in range(2):  # the second one has AdamW's moments
            values = training_step(state, settings, processes, images, networks, 0.5)
            state.step += 1
            update_ema(state, settings.optimizer.ema_decay)
            replace_dead_codes(state, settings, processes, 0.5)
            meter.add(values, len(images))
        with pytest.raises(AssertionError, match="waits for the device"):  # a report does
            meter.means(same)


def test_means_are_over_the_steps_that_have_a_scalar() -> None:
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0)}, 2)
    meter.add({"loss": torch.tensor(3.0), "generator": torch.tensor(5.0)}, 2)  # its first step
    assert meter.means(same) == {"loss": 2.0, "generator": 5.0}


def test_a_replaced_code_begins_without_moments() -> None:
    settings, processes = settings_of("gradient"), one_process("cpu")
    torch.manual_seed(0)
    state = begin(settings, processes)
    codes = state.model.model.quantize.embedding.weight
    codes.data.normal_()
    for moment in ("exp_avg", "exp_avg_sq"):
        state.optimizer.state[codes][moment] = torch.ones_like(codes)
    state.optimizer.state[codes]["step"] = torch.tensor(5.0)
    training_step(state, settings, processes, torch.rand(4, 3, 64, 64), PerceptualNetworks(), 0.0)
    state.step = state.codebook.replace_every
    before = copy.deepcopy(codes.detach())
    replace_dead_codes(state, settings, processes, 0.0)
    replaced = (codes != before).any(1)
    assert 0 < int(state.replaced_codes) == int(replaced.sum()) < len(codes)
    assert torch.equal(state.ema_model.quantize.embedding.weight[replaced], codes[replaced])
    for moment in ("exp_avg", "exp_avg_sq"):
        values = state.optimizer.state[codes][moment]
        assert not values[replaced].any()
        assert values[~replaced].all()


def test_adam_has_a_fused_kernel_on_cuda_and_its_loops_results_elsewhere() -> None:
    assert adam_kernels(torch.device("cuda")) == {"fused": True}
    ends = []
    for kernels in ({}, adam_kernels(torch.device("cpu"))):
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(3, 5)) for _ in range(3)]
        optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.99), weight_decay=0.1, **kernels)
        for _ in range(3):
            for weight in weights:
                weight.grad = weight.detach().sin()
            optimizer.step()
        ends.append(torch.stack([weight.detach() for weight in weights]))
    assert torch.equal(*ends)


def test_a_saved_optimizer_takes_the_kernels_of_the_device_that_resumes_it() -> None:
    weights = [nn.Parameter(torch.ones(3))]
    saved = torch.optim.AdamW(weights)
    weights[0].grad = torch.ones(3)
    saved.step()
    optimizer = torch.optim.AdamW(weights, fused=True)
    load_adam_state(optimizer, saved.state_dict())
    assert optimizer.param_groups[0]["fused"] is True
    optimizer.step()
    assert int(optimizer.state[weights[0]]["step"]) == 2
