"""Tables of buckets, their scaling, and the nearest aspect ratio."""

import math
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vartok.buckets import INFINITY, SDXL, Bucket, make_buckets, nearest_bucket, read_table
from vartok.errors import ArgumentError
from vartok.schedule import VAR_256, VAR_512, VAR_1024, Schedule, parse_schedule, square, stretch_schedule

SIZES = st.lists(
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
    min_size=1,
    max_size=8,
    unique_by=lambda size: size[0] / size[1],
)


def made(table: object, **options: object) -> tuple[Bucket, ...]:
    """Return the buckets of a table for a checkpoint of 256x256 pixels and VAR's schedule."""
    own = {"image_size": (256, 256), "patch_nums": VAR_256, "step": 16}
    return make_buckets(read_table(table), **{**own, **options})  # type: ignore[arg-type]


@given(SIZES, st.integers(1, 5000), st.integers(1, 5000))
def test_the_nearest_bucket_has_the_nearest_logarithm_of_the_ratio(
    sizes: list[tuple[int, int]], height: int, width: int
) -> None:
    buckets = [Bucket(size, ((1, 1),)) for size in sizes]

    def distance(bucket: Bucket) -> float:
        return abs(math.log(height / width) - math.log(bucket.size[0] / bucket.size[1]))

    nearest = nearest_bucket(buckets, height, width)
    assert distance(nearest) <= min(map(distance, buckets)) + 1e-12
    turned = [Bucket((w, h), ((1, 1),)) for h, w in sizes]
    assert nearest_bucket(turned, width, height).size == nearest.size[::-1]
    assert nearest_bucket(buckets[: buckets.index(nearest) + 1], 7 * height, 7 * width) == nearest


def test_the_first_of_equals_is_taken() -> None:
    # log(3/2) is not -log(2/3) in floats
    two = [Bucket((2, 3), ((1, 1),)), Bucket((3, 2), ((1, 1),))]
    assert nearest_bucket(two, 64, 64) is two[0]
    assert nearest_bucket(two[::-1], 64, 64) is two[1]


@given(SIZES, st.integers(64, 1024), st.integers(64, 1024), st.sampled_from([8, 16]))
def test_buckets_have_the_aspects_of_their_table_and_the_pixels_of_the_size(
    sizes: list[tuple[int, int]], height: int, width: int, step: int
) -> None:
    def half(side: float) -> float:
        return max(step / 2, step - side) + 1e-6

    assume(height != width)  # VAR has schedules for some squares
    buckets = made(sizes, size=(height, width), step=step)
    assert len({h / w for (h, w), _ in buckets}) == len(buckets) <= len(sizes)
    ideals = [(math.sqrt(height * width * h / w), math.sqrt(height * width * w / h)) for h, w in sizes]
    for (h, w), schedule in buckets:
        assert h % step == w % step == 0
        assert schedule == stretch_schedule(VAR_256, (h // step, w // step))
        assert any(
            abs(h - rows) < half(rows) and abs(w - columns) < half(columns) for rows, columns in ideals
        )


def test_a_callers_own_sizes_are_kept_without_a_size() -> None:
    sizes = [(256, 384), (400, 400), (2048, 16)]
    assert [bucket.size for bucket in made(sizes)] == sizes
    assert made(sizes, schedule=square(1, 2, 4))[0].schedule == ((1, 1), (8, 12), (16, 24))
    with pytest.raises(ArgumentError, match="multiples of 16 for this checkpoint, not 250x384") as refused:
        made([(256, 256), (250, 384)])
    assert "`size`" in str(refused.value.hint)
    assert made([(250, 384)], size=(256, 256))[0].size == (208, 320)


def test_the_table_of_sdxl_keeps_its_proportions() -> None:
    assert [bucket.size for bucket in made("sdxl", size=(1024, 1024))] == list(SDXL)
    assert [bucket.size for bucket in made("sdxl")] == [(h // 4, w // 4) for h, w in SDXL]


@pytest.mark.parametrize(("side", "base"), [(512, VAR_512), (1024, VAR_1024), (528, VAR_256)])
def test_all_buckets_are_stretched_from_vars_schedule_for_their_pixels(side: int, base: Schedule) -> None:
    for (h, w), schedule in made("sdxl", size=(side, side)):
        assert schedule == stretch_schedule(base, (h // 16, w // 16))


@pytest.mark.parametrize(("side", "scales"), [(256, 7), (512, 10), (768, 12), (1024, 13)])
def test_infinity_has_its_own_schedules(side: int, scales: int) -> None:
    buckets = made("infinity", size=(side, side))
    assert len(buckets) == 15
    assert buckets[0] == Bucket((side, side), parse_schedule(INFINITY[0])[:scales])
    for bucket, row in zip(buckets[1::2], INFINITY[1:], strict=True):
        assert bucket.schedule == parse_schedule(row)[:scales]
        assert abs(math.prod(bucket.size) / side**2 - 1) < 0.26
    turned: list[Schedule] = [tuple((w, h) for h, w in bucket.schedule) for bucket in buckets[1::2]]
    assert [bucket.schedule for bucket in buckets[2::2]] == turned


def test_infinity_has_stretched_schedules_at_other_sizes_and_if_a_schedule_is_given() -> None:
    for options in ({"size": (384, 384)}, {"schedule": square(1, 4)}):
        for (h, w), schedule in made("infinity", **options):
            base = options.get("schedule", VAR_256)
            assert schedule == stretch_schedule(base, (h // 16, w // 16))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [
        b"# sizes\r\n256x384\n\n 384 x 256 # tall\n",
        b"[[256, 384], [384, 256]]",
        b"\xef\xbb\xbf256x384\n384x256",
    ],
)
def test_files_of_sizes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "table").write_bytes(data)
    assert read_table(tmp_path / "table").sizes == ((256, 384), (384, 256))
    assert read_table(str(tmp_path / "table")).pixels is None


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "a table has 1 to 256 sizes of buckets, not 0"),
        (b"\n".join(b"1x%d" % i for i in range(1, 300)), "not 299"),
        (b"256x384\n256*384", r"line 2: a bucket is a size as 256x384 \(h x w\), not '256\*384'"),
        (b"256x0", "line 1: a bucket is a size"),
        (b"256x384\n\n512x768", "line 3: 512x768 has the aspect ratio of 256x384"),
        (b"[[256, 384], [256.0, 1]]", r"bucket 1: a bucket is a size .* \[256.0, 1\]"),
        (b"[[256, true]]", "bucket 0: a bucket is a size"),
        (b"[256, 384", "is no valid JSON"),
        (b"[" * 50_000, "is no valid JSON"),
        (b"1" * 70_000, "has more than 65,536 bytes"),
        (b"\xff\xfe2", "is not UTF-8 text"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, data: bytes, cause: str) -> None:
    (tmp_path / "table").write_bytes(data)
    with pytest.raises(ArgumentError, match=f"table: .*{cause}"):
        read_table(tmp_path / "table")


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="sdlx: no such file or folder") as refused:
        read_table("sdlx")
    assert "infinity, or sdxl" in str(refused.value.hint)
    with pytest.raises(ArgumentError, match="it is a folder"):
        read_table(tmp_path)
    with pytest.raises(ArgumentError, match="bucket 0: a bucket is a size"):
        read_table(["256x384"])  # type: ignore[list-item]
