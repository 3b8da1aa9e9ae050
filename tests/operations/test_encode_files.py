"""Functions of the library that do what `vartok encode` and `vartok decode` do."""

import io
import re
import tarfile
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import decoded_pixels, tokens_of
from conftest import Vartok, names, save
from PIL import Image

import vartok as library
from vartok.errors import ArgumentError, ImageError, OutputError, SourceError, TokenFileError, TokensError
from vartok.images import MAX_BYTES
from vartok.operations import make_fit, parse_size, resolve_fit
from vartok.schedule import adapt_schedule, square
from vartok.token_files import dump_json, dump_npz


def write_tar(path: Path, keys: dict[str, Path]) -> Path:
    with tarfile.open(path, "w") as archive:
        for key, picture in keys.items():
            archive.add(picture, key)
    return path


def test_encode_file_gives_the_tokens_of_the_command(
    vartok: Vartok, here: Path, tokenizer: library.Tokenizer
) -> None:
    save(here / "img.png", width=300, height=200)
    vartok("encode", "img.png", "--size", "128", "--fit", "pad", "--background", "#102030", "-o", "img.npz")
    [expected] = tokens_of((here / "img.npz").read_bytes())
    tokens = library.encode_file(
        "img.png", tokenizer=tokenizer, size=128, fit="pad", background=(0x10, 0x20, 0x30)
    )
    assert dump_json(tokens) == dump_json(expected)
    assert library.encode_file(here / "img.png", device="cpu").image.size == (256, 256)


def test_a_picture_has_the_size_and_the_schedule_of_its_bucket(
    vartok: Vartok, here: Path, tokenizer: library.Tokenizer
) -> None:
    (here / "table.txt").write_text("64x64\n48x96\n96x48  # tall\n")
    for name, width, height in (("wide", 300, 150), ("tall", 150, 300), ("even", 200, 200)):
        save(here / f"in/{name}.png", width=width, height=height)
    command = ["encode", "-r", "in", "-o", "out", "--fit", "bucket", "--buckets", "table.txt"]
    command += ["--schedule", "1,2,4"]
    vartok(*command)
    for name, size in (("wide", (48, 96)), ("tall", (96, 48)), ("even", (64, 64))):
        [tokens] = tokens_of((here / f"out/{name}.tokens.npz").read_bytes())
        assert (tokens.image.fit, tokens.image.size) == ("bucket", size)
        schedule = adapt_schedule(square(1, 2, 4), (size[0] // 16, size[1] // 16))
        cropped = library.encode_file(
            here / f"in/{name}.png", tokenizer=tokenizer, size=size, schedule=schedule
        )
        assert [scale.tolist() for scale in tokens.scales] == [scale.tolist() for scale in cropped.scales]
    assert "encoded 0, 3 skipped" in vartok(*command, "--skip-existing").stderr
    small = vartok("encode", "in/even.png", "-o", "small/", *command[5:], "--size", "16").stderr
    assert small.count("2 of 3 buckets are left out: in whole latent cells, they have") == 1
    told = vartok(*command, "--skip-existing", "--size", "128", code=1).stderr
    assert "(size 48x96, not 96x176)" in told
    vartok("decode", "out/wide.tokens.npz", "-o", "wide.png")
    with Image.open("wide.png") as picture:
        assert picture.size == (96, 48)
    refused = vartok("decode", "out/wide.tokens.npz", "-o", "x.png", "--restore-size", code=1)
    assert "a cropped picture cannot get its original size back" in refused.stderr


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--buckets", "sdxl"], "--buckets needs the fit bucket"),
        (["--fit", "bucket", "--buckets", "none.txt"], "none.txt: no such file"),
    ],
)
def test_buckets_need_their_fit_and_a_table(
    vartok: Vartok, here: Path, options: list[str], cause: str
) -> None:
    assert cause in vartok("encode", "x.png", *options, code=2).stderr


def test_encode_file_names_the_file_in_an_error(here: Path, tokenizer: library.Tokenizer) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: no such file") as error:
        library.encode_file("gone.png", tokenizer=tokenizer)
    assert "".join(traceback.format_exception(error.value)).count("Traceback") == 1


def test_pictures_and_tokens_in_memory_are_no_paths(tokenizer: library.Tokenizer) -> None:
    picture = Image.new("RGB", (64, 64))
    with pytest.raises(ArgumentError, match="a path is a str or a Path, not 'Image'") as error:
        library.encode_file(picture, tokenizer=tokenizer)  # type: ignore[arg-type]
    assert "`Tokenizer.encode`" in str(error.value.hint)
    with pytest.raises(ArgumentError, match="a path is a str or a Path, not 'Tensor'") as error:
        library.decode_file(torch.zeros(1, 680), tokenizer=tokenizer)  # type: ignore[arg-type]
    assert "`Tokenizer.decode`" in str(error.value.hint)
    for inputs in (picture, [picture]):
        with pytest.raises(ArgumentError, match="an input is a path or a binary stream, not 'Image'"):
            library.encode_files(inputs, "out/", tokenizer=tokenizer)  # type: ignore[arg-type]


def test_decode_file_gives_the_pixels_of_the_command(
    vartok: Vartok, here: Path, tokenizer: library.Tokenizer, other_weights: Path
) -> None:
    save(here / "img.png", width=300, height=200)
    tokens = library.encode_file("img.png", tokenizer=tokenizer, fit="stretch")
    (here / "img.npz").write_bytes(dump_npz(tokens))
    picture = library.decode_file("img.npz", tokenizer=tokenizer)
    assert (np.asarray(picture) == decoded_pixels(tokenizer, tokens)).all()
    assert library.decode_file("img.npz", tokenizer=tokenizer, restore_size=True).size == (300, 200)
    assert library.decode_file("img.npz", tokenizer=tokenizer, strip=True, scales=3).size == (768, 256)
    message = r"img\.npz: the tokens were made with vartok-light-v2 .*, not with other "
    with pytest.raises(TokenFileError, match=message) as refused:
        library.decode_file("img.npz", weights=other_weights, device="cpu")
    assert "`any_weights`" in str(refused.value.hint)
    [result] = library.decode_files("img.npz", "out/", weights=other_weights, device="cpu")
    assert result.input == "img.npz"
    assert re.match("the tokens were made with vartok-light-v2 .*, not with other ", str(result.error))
    assert result.error
    assert "`any_weights`" in str(result.error.hint)
    drawn = library.decode_file("img.npz", weights=other_weights, device="cpu", any_weights=True)
    assert drawn.size == (256, 256)
    with pytest.raises(TokensError, match=r"img\.npz: `scales` must be from 1 to 10"):
        library.decode_file("img.npz", tokenizer=tokenizer, scales=11)
    with pytest.raises(TokenFileError, match=r"gone\.npz"):
        library.decode_file("gone.npz", tokenizer=tokenizer)


def test_results_tell_input_output_tokens_and_errors(here: Path, tokenizer: library.Tokenizer) -> None:
    for name in ("in/a.png", "in/b/c.png"):
        save(here / name)
    (here / "in/broken.png").write_bytes(b"no picture")
    results = library.encode_files("in", "out", recursive=True, tokenizer=tokenizer)
    assert results.total == 3
    found = {Path(result.input).name: result for result in results}
    assert found["a.png"].output == Path("out/a.tokens.npz")
    assert found["c.png"].output == Path("out/b/c.tokens.npz")
    assert isinstance(found["broken.png"].error, ImageError)
    assert found["broken.png"].tokens is None
    assert found["broken.png"].output is None
    stored = tokens_of((here / "out/a.tokens.npz").read_bytes())
    assert [dump_json(item) for item in stored] == [dump_json(found["a.png"].tokens)]  # type: ignore[arg-type]

    decoded = list(library.decode_files("out", "pictures", recursive=True, tokenizer=tokenizer))
    assert names(here / "pictures") == ["a.decoded.png", "b/c.decoded.png"]
    for result in decoded:
        assert result.tokens
        assert result.picture is not None
        assert (result.picture == decoded_pixels(tokenizer, result.tokens)).all()


def test_max_bytes_is_the_limit_of_pictures_in_tars_and_streams(
    here: Path, tokenizer: library.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = save(here / "a.png").read_bytes() + bytes(MAX_BYTES)  # what follows a PNG's end is not read
    (here / "a.png").write_bytes(picture)
    write_tar(here / "a.tar", {"a.png": here / "a.png"})
    for source in (here / "a.tar", io.BytesIO(picture)):
        out = here / "out" / type(source).__name__ / ""
        [large] = library.encode_files(source, f"{out}/", tokenizer=tokenizer, max_bytes=2 * MAX_BYTES)
        assert large.error is None
        source = source if isinstance(source, Path) else io.BytesIO(picture)
        [refused] = library.encode_files(source, f"{out}/", tokenizer=tokenizer, overwrite=True)
        assert "has more than" in str(refused.error)


def test_nothing_is_loaded_where_all_outputs_exist(here: Path) -> None:
    save(here / "a.png")
    (here / "a.tokens.npz").write_bytes(b"precious")

    def load() -> library.Tokenizer:
        pytest.fail("loaded for nothing")

    [kept] = library.encode_files("a.png", skip_existing=True, tokenizer=load)
    assert "is no whole token file" in str(kept.error)
    [refused] = library.encode_files("a.png", tokenizer=load)
    assert isinstance(refused.error, OutputError)
    assert "`overwrite`" in str(refused.error.hint)
    assert (here / "a.tokens.npz").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (["a.png", "a.jpg"], {}, "would both be written to a.tokens.npz"),
        (["a.png", "a.png"], {}, "is named twice"),
        (["a.png"], {"output": "a.png/../a.png", "format": "jsonl"}, "is an input"),
        (["a.png"], {"format": "jsonl"}, "one jsonl file"),
        (["a.png"], {"format": "xml"}, "is one of npz, json, jsonl"),
        (["a.png"], {"output": "x.json", "format": "npz"}, "by its suffix"),
        (["a.png"], {"overwrite": True, "skip_existing": True}, "contradict each other"),
        (["a.png"], {"size": "64x"}, "HEIGHTxWIDTH"),
        (["a.png"], {"size": 20_000}, "more than 100,000,000 pixels"),
        (["a.png"], {"fit": "native", "size": 64}, "leave `size` out"),
        (["a.png"], {"schedule": "2,1"}, "higher or wider than the last scale"),
        (["."], {}, "is a folder"),
        ([""], {}, "empty"),
    ],
)
def test_arguments_are_checked_before_anything_runs(
    here: Path, inputs: list[str], options: dict[str, object], message: str
) -> None:
    (here / "a.png").write_bytes(b"not read")

    def load() -> library.Tokenizer:
        pytest.fail("loaded for nothing")

    with pytest.raises(ArgumentError, match=message):
        library.encode_files(inputs, tokenizer=load, **options)  # type: ignore[arg-type]
    assert names(here) == ["a.png"]


def test_pictures_of_a_tar_are_named_by_their_keys(
    vartok: Vartok, here: Path, tokenizer: library.Tokenizer
) -> None:
    picture = save(here / "img.png")
    write_tar(here / "shard.tar", {"k/001.png": picture, "002.png": picture})
    results = library.encode_files("shard.tar", "out", tokenizer=tokenizer, size=64)
    assert results.total is None
    assert [(result.input, result.output) for result in results] == [
        ("shard.tar: k/001", Path("out/k/001.tokens.npz")),
        ("shard.tar: 002", Path("out/002.tokens.npz")),
    ]
    vartok("encode", "shard.tar", "--size", "64", "-o", "all.jsonl")
    items = tokens_of((here / "all.jsonl").read_bytes())
    assert [item.image.source for item in items] == ["k/001", "002"]
    vartok("encode", "shard.tar", "img.png", "--size", "64")
    assert {"002.tokens.npz", "img.tokens.npz", "k/001.tokens.npz"} <= {*names(here)}
    assert "is a file" in vartok("encode", "shard.tar", "-o", "one.npz", code=2).stderr


def test_keys_of_a_tar_stay_below_the_folder(here: Path, tokenizer: library.Tokenizer) -> None:
    picture = save(here / "img.png")
    write_tar(here / "shard.tar", {"../../evil.png": picture, "../evil.png": picture})
    with pytest.warns(library.VartokWarning, match="1 output got another name"):
        first, second = library.encode_files("shard.tar", "deep/out", tokenizer=tokenizer, size=64)
    assert first.output == Path("deep/out/evil.tokens.npz")
    assert second.output == Path("deep/out/evil-2.tokens.npz")
    assert len(names(here)) == 4


def test_an_input_that_cannot_be_found_fails_alone(here: Path, tokenizer: library.Tokenizer) -> None:
    save(here / "a.png")
    (here / "empty").mkdir()
    inputs = ["gone.png", "gone.txt", "gone.tar", "empty", "a.png"]
    results = list(library.encode_files(inputs, "out", recursive=True, tokenizer=tokenizer, size=64))
    assert [type(result.error) for result in results] == [
        ImageError,
        SourceError,
        SourceError,
        SourceError,
        type(None),
    ]
    assert names(here / "out") == ["a.tokens.npz"]


def test_streams(here: Path, tokenizer: library.Tokenizer) -> None:
    data, stream = save(here / "img.png").read_bytes(), io.BytesIO()
    [result] = library.encode_files(io.BytesIO(data), stream, tokenizer=tokenizer)
    assert result.input == "standard input"
    assert result.output is None
    [item] = tokens_of(stream.getvalue())
    assert item.image.source == "stdin"
    picture = io.BytesIO()
    [decoded] = library.decode_files(io.BytesIO(stream.getvalue()), picture, tokenizer=tokenizer)
    assert decoded.error is None
    assert picture.getvalue().startswith(b"\x89PNG")


def test_closing_the_results_leaves_no_unfinished_file(here: Path, tokenizer: library.Tokenizer) -> None:
    for name in ("a.png", "b.png"):
        save(here / name)
    results = library.encode_files(["a.png", "b.png"], "all.jsonl", tokenizer=tokenizer, size=64)
    next(results)
    results.close()
    assert names(here) == ["a.png", "b.png"]


def test_sizes() -> None:
    assert parse_size(None) is None
    assert parse_size(64) == parse_size("64") == parse_size((64, 64)) == (64, 64)
    assert parse_size("256x384") == (256, 384)
    for wrong in ("", "x", "1x", "-1", "0", "64x0", "6.5"):
        with pytest.raises(ArgumentError):
            parse_size(wrong)


def test_height_and_width_of_a_size(vartok: Vartok, here: Path, tokenizer: library.Tokenizer) -> None:
    save(here / "img.png")
    vartok("encode", "img.png", "--size", "64x96")
    [item] = tokens_of((here / "img.tokens.npz").read_bytes())
    assert item.image.size == (64, 96)
    assert item.schedule[-1] == (4, 6)
    with pytest.raises(ArgumentError, match="multiple of 16"):
        resolve_fit([tokenizer], make_fit(size="64x100"), size="64x100")


def test_native_pictures_of_too_many_tokens_are_refused_before_they_are_encoded(
    vartok: Vartok, here: Path
) -> None:
    save(here / "in/large.png", 0, 96, 64)
    save(here / "in/small.png", 0, 32, 32)
    args = ["-r", "in", "--fit", "native", "--max-tokens", "50"]
    cure = "set --max-tokens higher if there is memory for it, or set another --fit"
    told = f"in/large.png: its 96 x 64 pixels would take 64 tokens, more than the limit of 50: {cure}"
    for command in (["encode", "-o", "out"], ["eval", "--no-scales"]):
        assert told in vartok(*command, *args, code=3).stderr
    assert names(here / "out") == ["small.tokens.npz"]
    vartok("encode", "in/large.png", "-o", "x.npz", "--fit", "native", "--max-tokens", "64")
    assert "is not one of" in vartok("dataset", "in", "-o", "data", "--fit", "native", code=2).stderr


def test_warnings_name_the_callers_line(here: Path, tokenizer: library.Tokenizer) -> None:
    save(here / "in" / "1:2.png", width=16, height=16)
    (here / "in" / "notes.md").touch()
    with pytest.warns(library.VartokWarning) as encoding:
        list(library.encode_files("in", "out", recursive=True, tokenizer=tokenizer, size=16))
    with pytest.warns(library.VartokWarning) as decoding:
        list(library.decode_files("out/1_2.tokens.npz", "a.png", tokenizer=tokenizer, schedule="1"))
    said = [*encoding, *decoding]
    assert [str(warning.message).split()[0] for warning in said] == ["passed", "1", "the"]
    assert {warning.filename for warning in said} == {__file__}
