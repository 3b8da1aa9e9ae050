"""VAR's own code and vartok give the same tokens, latents, pictures and transformer inputs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noise import COFFEE, DATA, draw, save
from PIL import Image

import vartok
from vartok.config import TokenizerConfig
from vartok.images import to_tensor
from vartok.schedule import check_schedule

CASES: dict[str, dict[str, Any]] = json.loads((DATA / "cases.json").read_text())
TOLERANCE = 2e-3  # of values of order 1


SLOW = {"square_256", "extended_schedule_512", "square_512", "rectangle_384x256"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES]
)
def test_vars_own_code_gave_the_same(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    config = TokenizerConfig.from_json(json.dumps(case["config"]))
    noise = draw(config, case["weights_seed"], case["codebook_std"], case["gain"])
    tokenizer = vartok.load(save(tmp_path / "case.safetensors", config, noise), device="cpu")
    files = [COFFEE if file == COFFEE.name else DATA / file for file in case["images"]]
    images = to_tensor(np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]))

    tokens = tokenizer.encode(images, check_schedule(case["schedule"]))

    golden = np.load(DATA / "golden.npz")
    want = torch.from_numpy(golden[f"{name}/indices"].astype(np.int64))
    assert tokens.schedule == check_schedule(case["schedule"])
    assert torch.equal(tokens.flatten(), want)
    assert len(want.unique()) > 64  # many codes are used, so that equality says something

    half = len(tokens.maps) // 2
    got = {
        "latent": tokenizer.latent(images),
        "f_hat": tokenizer.f_hat(tokens),
        "f_hat_half": tokenizer.f_hat(tokens, scales=half),
        "reconstruction_stride4": tokenizer.decode(tokens)[:, :, ::4, ::4],
        "reconstruction_half_stride4": tokenizer.decode(tokens, scales=half)[:, :, ::4, ::4],
    }
    if f"{name}/var_input" in golden:
        got["var_input"] = tokenizer.var_inputs(tokens)
    assert {f"{name}/{key}" for key in (*got, "indices")} == {
        key for key in golden if key.startswith(f"{name}/")
    }
    for key, value in got.items():
        some = value.numpy().ravel()[:: value.numel() // 400 | 1]
        np.testing.assert_allclose(some, golden[f"{name}/{key}"], rtol=0, atol=TOLERANCE, err_msg=key)


def test_all_seven_cases_are_here() -> None:
    assert len(CASES) == 7
    assert {case["config"]["share_quant_resi"] for case in CASES.values()} == {0, 1, 4}
    assert {case["config"]["using_znorm"] for case in CASES.values()} == {False, True}
    assert {len(case["images"]) for case in CASES.values()} == {1, 2}
