"""Checkpoints by name and on the hub: the real huggingface_hub against a server on this machine."""

import errno
import hashlib
import io
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import TEN, same
from conftest import ROOT, Vartok
from hub_server import COMMIT, Hub, serve
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from noise import SMALL, bare, draw, save

from vartok.checkpoints import finding, hub, hub_cache, known, read_checkpoint, read_summary
from vartok.checkpoints.finding import fetch_known, find_checkpoint, locate_checkpoint
from vartok.errors import CheckpointError, VartokWarning
from vartok.files import file_sha256
from vartok.schedule import NAMED, VAR_1024


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Hub, str]]:
    with serve() as (held, address):
        yield held, address


@pytest.fixture
def there(server: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Return what the server holds: nothing yet; the caches are empty, and nobody waits."""
    held, address = server
    held.reset()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "listener", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *args, **options: None)  # 0.1 s
    for module in (_http, file_download):
        monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return held


def pth(seed: int = 0) -> bytes:
    """The bytes of a .pth file with a state dict of ten scales."""
    file = io.BytesIO()
    torch.save(draw(TEN, seed), file)
    return file.getvalue()


def refused(place: str) -> str:
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(place)
    text = str(error.value)
    assert text.startswith(f"{place}: ")
    assert "\n" not in text
    return f"{text.removeprefix(f'{place}: ')}: {error.value.hint}"


def silent(place: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VartokWarning)
        return read_checkpoint(place)


def replace(path: Path, data: bytes) -> None:
    """Put another file in a file's place, which may be mapped into memory."""
    path.unlink()
    path.write_bytes(data)


def test_a_file_is_fetched_once_and_then_found_without_a_request(there: Hub) -> None:
    there.files["me/vae/vae.pth"] = data = pth()
    with pytest.warns(VartokWarning, match=r"^fetching vae.pth, [\d.]+ MB, from http://127.*/me/vae$"):
        found = read_checkpoint("hf://me/vae/vae.pth")
    assert same(found.tensors, draw(TEN))
    assert found.name == "vae"
    path = find_checkpoint("hf://me/vae/vae.pth")
    assert path.read_bytes() == data
    asked = len(there.requests)
    for place in ("hf://me/vae/vae.pth", "hf:/me/vae/vae.pth", f"hf://me/vae/vae.pth@{COMMIT}"):
        assert find_checkpoint(place) == path
    assert find_checkpoint(Path("hf://me/vae/vae.pth")) == path
    assert len(there.requests) == asked
    hub.fetch(hub_cache.parse("hf://me/vae/vae.pth"))  # asks whether it is the newest
    assert len(there.requests) > asked
    assert sum(request.startswith("GET /cdn") for request in there.requests) == 1


def test_a_pth_is_read_from_its_converted_copy_the_second_time(there: Hub, tmp_path: Path) -> None:
    there.files["me/vae/vae.pth"] = pth()
    first = silent("hf://me/vae/vae.pth")
    copies = list((tmp_path / "cache" / "vartok" / "checkpoints").iterdir())
    assert [copy.suffix for copy in copies] == [".safetensors"]
    replace(locate_checkpoint("hf://me/vae/vae.pth").path.resolve(), b"not read any more")
    second = read_checkpoint("hf://me/vae/vae.pth")
    assert same(second.tensors, dict(first.tensors))
    assert (second.name, second.license, second.config) == (first.name, first.license, first.config)
    assert second.notes == first.notes != ()
    summary = read_summary("hf://me/vae/vae.pth")
    assert summary is not None
    assert (summary[0], summary[1].name) == (first.config, first.name)
    replace(copies[0], b"cut")
    assert "it was not kept" in refused("hf://me/vae/vae.pth")


def test_a_folder_of_caches_that_cannot_be_written_costs_only_time(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.files["me/vae/vae.pth"] = pth()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert same(silent("hf://me/vae/vae.pth").tensors, draw(TEN))


def test_a_config_beside_the_file_is_fetched_with_it(there: Hub, tmp_path: Path) -> None:
    there.files["me/vae/tokenizer/model.safetensors"] = save(tmp_path / "a.safetensors", SMALL).read_bytes()
    there.files["me/vae/tokenizer/config.json"] = b"{}"
    there.files["me/vae/README.md"] = b"text"
    assert silent("hf://me/vae/tokenizer").config == SMALL
    path = find_checkpoint("hf://me/vae/tokenizer/")
    assert {file.name for file in path.parent.iterdir()} == {"model.safetensors", "config.json"}
    assert not (path.parents[1] / "README.md").exists()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["only.pth", "notes.txt"], "only.pth"),
        (["var_d16.pth", "vae.pth"], None),
        (["README.md"], None),
    ],
)
def test_the_checkpoint_of_a_repository_is_chosen(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], chosen: str | None
) -> None:
    for name in names:
        there.files[f"me/vae/{name}"] = save(tmp_path / "a", SMALL).read_bytes()
    if chosen:
        assert silent("hf://me/vae").config == SMALL
        assert find_checkpoint("hf://me/vae").name == chosen
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert find_checkpoint("hf://me/vae").name == chosen
    else:
        assert "the folder has" in refused("hf://me/vae")


def test_the_checkpoint_of_a_repository_does_not_depend_on_the_cache(there: Hub, tmp_path: Path) -> None:
    for name in ("weights.safetensors", "model.safetensors"):
        there.files[f"me/two/{name}"] = save(tmp_path / name, SMALL).read_bytes()
    silent("hf://me/two/model.safetensors")
    silent("hf://me/two")
    there.requests.clear()
    assert find_checkpoint("hf://me/two").name == "weights.safetensors"
    assert not there.requests


def test_a_connection_that_breaks_goes_on_where_it_broke(there: Hub) -> None:
    there.files["me/vae/vae.pth"] = data = pth()
    there.cuts = [len(data) // 2, 100]
    assert same(silent("hf://me/vae/vae.pth").tensors, draw(TEN))
    assert sum(request.startswith("GET /cdn") for request in there.requests) == 3
    there.files["me/other/vae.pth"] = pth(1)
    there.cuts = [0] * 20
    with pytest.warns(VartokWarning, match="fetching"):
        assert "the connection broke: try again" in refused("hf://me/other/vae.pth")


def test_a_file_of_another_hash_is_not_kept(there: Hub, tmp_path: Path) -> None:
    there.files["me/vae/vae.pth"] = pth()
    there.damaged = True
    with pytest.warns(VartokWarning, match="fetching"):
        assert "it was not kept: try again" in refused("hf://me/vae/vae.pth")
    assert not [
        path for path in (tmp_path / "hub").rglob("*") if path.is_file() and path.stat().st_size > 999
    ]
    there.damaged = False
    assert same(silent("hf://me/vae/vae.pth").tensors, draw(TEN))


@pytest.mark.parametrize("ref", ["../../../elsewhere", "0" * 99, "\xff", None])
def test_a_ref_that_is_no_commit_is_not_followed(there: Hub, tmp_path: Path, ref: str | None) -> None:
    refs = tmp_path / "hub" / "models--me--vae" / "refs"
    refs.mkdir(parents=True)
    for folder in (tmp_path / "elsewhere", refs.parent / "snapshots" / ("0" * 99)):
        folder.mkdir(parents=True)
        save(folder / "x.safetensors", SMALL)
        (folder / "config.json").write_text("{}")
    os.mkfifo(refs / "main") if ref is None else (refs / "main").write_text(ref, "latin-1")
    assert hub_cache.cached(hub_cache.parse("hf://me/vae/x.safetensors")) is None


@pytest.mark.parametrize("overrides", [{}, {"using_znorm": True}])
def test_a_file_that_was_changed_in_the_cache_is_not_read(
    there: Hub, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    place = "hf://me/vae/vae.safetensors"
    there.files["me/vae/vae.safetensors"] = save(tmp_path / "a", TEN).read_bytes()
    silent(place)
    path = find_checkpoint(place)
    assert len(list((tmp_path / "cache" / "vartok" / "checked").iterdir())) == 1
    replace(path.resolve(), save(tmp_path / "b", TEN, draw(TEN, 1)).read_bytes())
    with pytest.raises(CheckpointError, match=f"^{place}: the file has sha256 .* it was not kept"):
        read_checkpoint(place, overrides)
    assert not path.exists()


def test_a_file_outside_the_cache_is_never_removed(there: Hub, tmp_path: Path) -> None:
    own = tmp_path / "blobs" / "own.pth"
    link = tmp_path / "hub" / "models--me--vae" / "snapshots" / COMMIT / "x.pth"
    for path in (own, link):
        path.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    link.symlink_to(own)
    with pytest.raises(CheckpointError, match="it was not kept"):
        hub_cache.check_sha256(link, "0" * 64, "x")
    assert own.read_bytes() == b"mine"
    assert not os.path.lexists(link)


def test_a_known_checkpoint_has_the_known_hash_and_configuration(
    there: Hub, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    there.files["FoundationVision/var/vae_ch160v4096z32.pth"] = data = pth()
    with pytest.warns(VartokWarning, match="fetching"):
        assert f"not {known.PUBLISHED_SHA256}; it was not kept" in refused("var")
    entry = known.KNOWN["var"]
    right = known.KnownCheckpoint(**{**vars(entry), "sha256": hashlib.sha256(data).hexdigest()})
    monkeypatch.setattr(finding, "KNOWN", {"var": right})
    for _ in range(2):
        found = silent("var")
        assert (found.name, found.license, found.notes) == ("vae_ch160v4096z32", "MIT", ())
    there.requests.clear()
    save(here / "var", SMALL)  # a file wins over a name
    assert read_checkpoint("var").config == SMALL
    assert not there.requests


def test_a_name_sets_the_schedule_and_the_key(there: Hub, tmp_path: Path) -> None:
    data = bare(tmp_path / "a.safetensors", draw(TEN)).read_bytes()
    there.files["yresearch/VQVAE-Switti/model.safetensors"] = data
    found = silent("switti-1024")
    assert (found.config.patch_nums, found.name, found.notes) == (VAR_1024, "VQVAE-Switti", ())
    assert read_checkpoint("switti-512").config.patch_nums[-1] == (32, 32)
    data = save(tmp_path / "b.safetensors", TEN).read_bytes()  # of another repository, in vartok's format
    there.files["mit-han-lab/hart-0.7b-1024px/tokenizer/model.safetensors"] = data
    loaded = silent("hart").config
    summary = read_summary("hart")
    assert summary is not None
    assert summary[0] == loaded
    assert not loaded.last_phi
    file = io.BytesIO()
    torch.save({"trainer": {"vae_local": draw(TEN), "vae_ema": draw(TEN, 1)}}, file)
    there.files["qyp2000/VARSR/VQVAE.pth"] = file.getvalue()
    assert same(silent("varsr").tensors, draw(TEN))


def test_commands_fetch_and_say_so(there: Hub, vartok: Vartok, here: Path, tmp_path: Path) -> None:
    place = "hf://me/vae/model.safetensors"
    there.files["me/vae/model.safetensors"] = bare(tmp_path / "a.safetensors", draw(TEN)).read_bytes()
    message = vartok("convert", place, "x.safetensors", code=0).stderr
    assert re.fullmatch(r"vartok: fetching model.safetensors, [\d.]+ MB, from http://\S+/me/vae\n", message)
    assert vartok("schedules", "-w", place).stderr == ""
    assert read_checkpoint("x.safetensors").name == "vae"  # not "model"
    there.files["me/two/model.safetensors"] = there.files["me/vae/model.safetensors"]
    found = vartok("models", "fetch", "hf://me/two", "-q")
    assert found.stderr == ""
    assert vartok("models", "path", "hf://me/two/model.safetensors").stdout == found.stdout
    assert Path(found.stdout.strip()).is_file()
    assert (
        "vartok: var: it is not on this disk: vartok models" in vartok("models", "path", "var", code=1).stderr
    )
    there.requests.clear()
    rows = {row["name"]: row for row in json.loads(vartok("models", "--json").stdout)}
    assert rows["light"]["path"] == str(known.shipped_checkpoint())
    assert rows["light"]["sha256"] == file_sha256(known.shipped_checkpoint())
    assert rows["light"]["size"] == known.shipped_checkpoint().stat().st_size
    assert rows["var"]["path"] is None
    assert rows["hart"]["not_verified"]
    assert all(name in vartok("models").stdout for name in rows)
    assert not there.requests


def test_tokens_are_sent(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    there.files["me/vae/vae.pth"] = pth()
    there.token = "secret"
    assert "no such repository, or it is private: check the name; set HF_TOKEN" in refused(
        "hf://me/vae/vae.pth"
    )
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "the hub answers 401 Unauthorized: set HF_TOKEN" in refused("hf://me/vae/vae.pth")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert same(silent("hf://me/vae/vae.pth").tensors, draw(TEN))
    there.gated = True
    assert "its owners ask for consent: agree at http" in refused("hf://me/vae/other.pth")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("hf://you/vae/vae.pth", "there is no such repository, or it is private"),
        ("hf://me/vae/none.pth", "the repository has no such file: see http"),
        ("hf://me/vae/vae.pth@none", "the repository has no revision none"),
        ("hf://me/vae@none", "the repository has no revision none"),
        ("hf://me", "the place of a file on the hub is hf://OWNER/REPO"),
        ("hf://me/vae/../vae.pth", "the place of a file on the hub is hf://OWNER/REPO"),
        ("hf://me/vae/vae.pth@../x", "the place of a file on the hub is hf://OWNER/REPO"),
        ("hf://me/vae//etc/vae.pth", "the place of a file on the hub is hf://OWNER/REPO"),
        ("hf://me/vae/vae.pth@/etc/x", "the place of a file on the hub is hf://OWNER/REPO"),
        ("hf://me/vae/vae.pth@", "the place of a file on the hub is hf://OWNER/REPO"),
    ],
)
def test_what_is_not_there_is_said(there: Hub, place: str, reason: str) -> None:
    there.files["me/vae/vae.pth"] = b"PK"
    assert reason in refused(place)


def test_a_hub_that_is_down_or_out_of_reach_is_said(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    there.files["me/vae/vae.pth"] = pth()
    there.statuses = [503] * 20
    assert "the hub answers 503 Service Unavailable: try again later" in refused("hf://me/vae/vae.pth")
    there.statuses = [200] * 20  # another server, as a proxy's page
    assert f"{constants.ENDPOINT} does not answer as a hub does: check" in refused("hf://me/vae/vae.pth")
    there.statuses = [503, 503]
    assert same(silent("hf://me/vae/vae.pth").tensors, draw(TEN))
    address = constants.ENDPOINT
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(address, "http://127.0.0.1:9"),
    )
    assert same(read_checkpoint("hf://me/vae/vae.pth").tensors, draw(TEN))
    text = refused("hf://me/vae/other.pth")
    assert "http://127.0.0.1:9 cannot be reached (" in text
    assert text.endswith(
        "check the network; or fetch the file elsewhere, and give its path as the checkpoint"
    )
    with pytest.warns(VartokWarning, match="^hf://me/vae: .* cannot be reached; took vae.pth in the cache$"):
        assert find_checkpoint("hf://me/vae").name == "vae.pth"
    with pytest.raises(CheckpointError, match="cannot be reached"):  # there may be a newer one
        fetch_known("hf://me/vae")
    monkeypatch.setattr(constants, "ENDPOINT", "127.0.0.1:9")
    assert "HF_ENDPOINT is '127.0.0.1:9', without http:// or https://" in refused("hf://me/vae/other.pth")


def test_offline_only_the_cache_is_read(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    there.files["me/vae/vae.pth"] = pth()
    silent("hf://me/vae/vae.pth")
    there.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(read_checkpoint("hf://me/vae/vae.pth").tensors, draw(TEN))
    assert "HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE to fetch it" in refused("hf://me/vae/other.pth")
    assert not there.requests


def test_a_full_disk_is_said(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    there.files["me/vae/vae.pth"] = pth()

    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", fail)
    assert "no space left on the disk: HF_HOME" in refused("hf://me/vae/vae.pth")


@pytest.mark.slow
def test_the_variables_of_the_hub_are_heeded_and_an_interrupted_file_is_removed(
    there: Hub, tmp_path: Path
) -> None:
    there.files["me/vae/vae.pth"] = pth()
    home = tmp_path / "home"
    variables = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": constants.ENDPOINT,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    call = [sys.executable, "-m", "vartok", "models", "fetch", "hf://me/vae/vae.pth"]
    there.stalls = True
    with subprocess.Popen(call, env=os.environ | variables, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("vartok: fetching vae.pth, ")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "vartok: interrupted; nothing was written\n"
        assert process.wait(20) == 130
    blobs = home / "hub" / "models--me--vae" / "blobs"
    assert not list(blobs.iterdir())
    there.stalls = False
    for offline in ("0", "1"):
        run = subprocess.run(
            [*call[:4], "path" if offline == "1" else "fetch", call[-1]],
            env=os.environ | variables | {"HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
        )
        assert run.stdout.startswith(str(home)), run.stderr


@pytest.mark.parametrize(
    ("name", "hint"),
    [("vra", "did you mean var?"), ("Switti-1024", "did you mean switti-1024?"), ("x", "folder: see vartok")],
)
def test_a_misspelt_name_is_said(here: Path, name: str, hint: str) -> None:
    text = refused(name)
    assert text.startswith("no such file or folder: ")
    assert hint in text
    assert text.endswith("see vartok models for known names")


@pytest.mark.parametrize(("name", "other"), [("var", known.KNOWN["var"].source), ("light", "shipped")])
def test_a_folder_that_hides_a_name_is_said(here: Path, name: str, other: str) -> None:
    (here / name).mkdir()
    assert refused(name) == (
        f"the folder has no checkpoint; a folder {name} is here, and hides the checkpoint of that name: "
        f"use another working folder, or name {other}"
    )


def test_the_shipped_checkpoint_has_a_name(here: Path) -> None:
    save(here / "model.safetensors", SMALL)
    with pytest.raises(CheckpointError, match="the name of the checkpoint is empty"):
        find_checkpoint("")
    assert finding.known_on_disk("shipped") == finding.fetch_known("light") == known.shipped_checkpoint()
    assert find_checkpoint("light") == find_checkpoint("shipped") == known.shipped_checkpoint()
    entry = known.KNOWN["light"]
    assert entry.license == read_checkpoint("light").license


def test_the_documented_checkpoints_are_the_known_ones() -> None:
    text = (
        (ROOT / "docs" / "checkpoints.md").read_text().partition("## Whose tokens")[2].partition("\n## ")[0]
    )
    assert re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE) == list(known.KNOWN)
    for entry in known.KNOWN.values():
        assert set(entry.schedules) <= NAMED.keys()
    documented: dict[str, list[str]] = {}
    name = ""
    for first, last in re.findall(r"^\| ([^ |]*) ?\|.*\| ([^|]*) \|$", text, re.MULTILINE):
        name = first.strip("`") or name
        documented.setdefault(name, []).extend(word for word in re.findall("`(.+?)`", last) if word in NAMED)
    assert {name: documented[name] for name in known.KNOWN} == {
        name: list(entry.schedules) for name, entry in known.KNOWN.items()
    }


def test_the_checkpoint_of_a_folder_is_chosen(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.pt", SMALL)
    (tmp_path / "state.pt").write_bytes(b"a training run's state")
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert find_checkpoint(tmp_path) == path
    save(tmp_path / "other.pth", SMALL)
    assert "the folder has 2 checkpoints: mine.pt, other.pth: name one of them" in refused(str(tmp_path))
    assert find_checkpoint(save(tmp_path / "model.safetensors", SMALL)) == find_checkpoint(tmp_path)
    bare(tmp_path / "model.safetensors", draw(TEN))
    assert read_checkpoint(tmp_path).name == tmp_path.name  # not "model"
