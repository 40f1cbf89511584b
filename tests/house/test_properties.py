"""Properties that hold for any input: headers of files, names of outputs, parts of a batch, lines of a manifest."""

from __future__ import annotations

import string
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from oldphoto.errors import BadImageError, UsageError
from oldphoto.files.image import read_photo
from oldphoto.options import Options, read_size
from oldphoto.records.manifest import Manifest, Record, read
from oldphoto.runs.batch import failed
from oldphoto.runs.planning import Naming, Planned, Shard

QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "JPEG2000", "BMP", "PPM")
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"), min_size=1, max_size=30)


def saved(format: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.arange(40 * 36 * 3, dtype=np.uint8).reshape(36, 40, 3)).save(buffer, format)
    return buffer.getvalue()


SAVED = {format: saved(format) for format in FORMATS}


@pytest.mark.parametrize("format", FORMATS)
@QUICK
@given(at=st.integers(0, 99), put=st.binary(min_size=1, max_size=8))
def test_a_header_with_anything_in_it_is_a_photo_or_a_bad_image(format: str, at: int, put: bytes) -> None:
    data = bytearray(SAVED[format])
    data[at : at + len(put)] = put
    try:
        photo = read_photo(bytes(data), max_pixels=1_000_000)
    except BadImageError:
        pass  # and nothing else
    else:
        assert photo.width * photo.height <= 1_000_000
        assert photo.pixels.shape == (photo.height, photo.width, 3)


@QUICK
@given(st.binary(max_size=64))
def test_bytes_that_are_no_photo_are_a_bad_image(data: bytes) -> None:
    with pytest.raises(BadImageError):
        read_photo(data)


@QUICK
@given(stem=NAMES, number=st.integers(1, 10**9), template=st.text(string.printable, max_size=30))
@example(stem="a", number=3, template="{parent}_{stem}_{number:04}")
@example(stem="a", number=3, template="{stem.__class__}")
@example(stem="a", number=3, template="../{stem}")
def test_a_template_names_one_file_in_the_folder_or_is_refused(stem: str, number: int, template: str) -> None:
    try:
        name = Naming(template=template).name(Path(f"in/x{stem}.jpg"), number)
    except UsageError:
        pass  # and nothing else
    else:
        assert Path(name).name == name
        assert name.endswith(".jpg")
        assert not name.startswith(".")


@QUICK
@given(place=NAMES, count=st.integers(1, 50))
def test_a_photo_is_in_one_part_of_a_batch(place: str, count: int) -> None:
    holding = [number for number in range(1, count + 1) if Shard(number, count).holds(Path("a") / place)]
    assert len(holding) == 1
    assert Shard.parse(f"{holding[0]}/{count}").holds(Path("a") / place)


@QUICK
@given(st.text(string.printable, max_size=12))
def test_a_size_is_a_number_of_bytes_or_refused(text: str) -> None:
    try:
        size = read_size(text)
    except UsageError:
        return
    assert size >= 0
    assert text.strip()[0].isdigit()


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


# As the schema has it.
OPTION = VALUES.filter(lambda value: not isinstance(value, dict))


@settings(QUICK, max_examples=15)
@given(st.lists(st.dictionaries(st.text(string.ascii_letters, max_size=8), OPTION, max_size=4), max_size=5))
def test_lines_of_a_manifest_come_back_as_they_went_in(tmp_path_factory: Any, options: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("lines")
    path = folder / "run.jsonl"
    records = []
    for number, chosen in enumerate(options):
        planned = Planned(folder / f"in/{number}.jpg", folder / f"out/{number}.jpg")
        record: Record = {**failed(planned, UsageError("no")).record, "options": chosen}
        records.append(record)
    with Manifest(path) as lines:
        for record in records:
            lines.append(record)
    assert [record["options"] for record in read(path)] == options
    # A line that was cut off, wherever, costs itself alone.
    data = path.read_bytes()
    if len(records) > 1:
        path.write_bytes(data[: len(data) - 10])
        assert [record["options"] for record in read(path)] == options[:-1]


@QUICK
@given(st.floats(allow_nan=True), st.integers(-5, 300))
def test_options_out_of_range_are_refused(share: float, dilation: int) -> None:
    if 0.0 <= share <= 1.0:
        assert Options(strength=share).strength == share
    else:
        with pytest.raises(UsageError):
            Options(strength=share)
    if 0 <= dilation <= 64:
        assert Options(mask_dilation=dilation).mask_dilation == dilation
    else:
        with pytest.raises(UsageError):
            Options(mask_dilation=dilation)
