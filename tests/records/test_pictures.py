"""Pictures for people: both states at one size, in colours that a screen shows right, within the bytes there are."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from oldphoto.errors import BadImageError
from oldphoto.files.masks import write_mask
from oldphoto.files.photo import Photo
from oldphoto.records.pictures import COMPARISON_SIDE, look_at, look_at_files, side_by_side, write_comparison


def grain(width: int, height: int, level: float, seed: int = 0) -> Photo:
    """Noise around a grey level: what compresses worst."""
    noise = np.random.default_rng(seed).normal(level, 40, (height, width, 3))
    return Photo.from_array(noise.clip(0, 255).astype(np.uint8))


def plain(width: int, height: int, colour: tuple[int, int, int]) -> Photo:
    return Photo.from_array(np.full((height, width, 3), colour, np.uint8))


def opened(data: bytes) -> NDArray[np.uint8]:
    with Image.open(BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGBA"))


def test_a_comparison_holds_both_whole_and_in_order() -> None:
    sheet = np.asarray(side_by_side(plain(300, 200, (200, 30, 30)), plain(300, 200, (30, 30, 200)))).astype(int)
    assert (sheet == (200, 30, 30)).all(2).sum() == (sheet == (30, 30, 200)).all(2).sum() == 300 * 200
    red, blue = ((sheet == colour).all(2).nonzero() for colour in ((200, 30, 30), (30, 30, 200)))
    assert red[1].max() < blue[1].min()
    assert red[0].min() == blue[0].min()
    below = sheet[red[0].max() + 1 :]
    for columns in (red[1], blue[1]):  # a label under each
        assert (below[:, columns.min() : columns.max()].sum(2) < 400).any()


def test_a_panorama_is_compared_above_and_below() -> None:
    sheet = np.asarray(side_by_side(plain(900, 200, (200, 30, 30)), plain(900, 200, (30, 30, 200))))
    red, blue = ((sheet == colour).all(2).nonzero() for colour in ((200, 30, 30), (30, 30, 200)))
    assert red[0].max() < blue[0].min()
    assert red[1].min() == blue[1].min()


def test_a_large_photo_makes_a_comparison_that_can_be_sent(tmp_path: Path) -> None:
    write_comparison(plain(2400, 1800, (9, 9, 9)), plain(2400, 1800, (99, 99, 99)), tmp_path / "x.jpg")
    with Image.open(tmp_path / "x.jpg") as sheet:
        assert sheet.format == "JPEG"
        assert 2 * COMPARISON_SIDE < sheet.width < 2.2 * COMPARISON_SIDE
    assert [path.name for path in tmp_path.iterdir()] == ["x.jpg"]


def test_two_sizes_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="300 x 200, after 200 x 300"):
        side_by_side(plain(300, 200, (0, 0, 0)), plain(200, 300, (0, 0, 0)))


def test_colours_are_those_of_the_profile() -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = icc.replace(b"rXYZ", b"?", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"?", b"bXYZ", 1)
    photo = plain(64, 48, (200, 90, 60))
    tagged = replace(photo, metadata=replace(photo.metadata, icc=swapped))
    for data in (look_at(tagged, tagged).before, look_at(tagged, tagged).after):
        assert np.abs(opened(data)[24, 32, :3].astype(int) - (60, 90, 200)).max() <= 6
    sheet = np.asarray(side_by_side(tagged, tagged)).astype(int)
    assert (np.abs(sheet - (60, 90, 200)).max(2) <= 3).sum() == 2 * 64 * 48


def test_a_profile_that_cannot_be_read_hides_no_photo() -> None:
    photo = plain(64, 48, (80, 90, 60))
    broken = replace(photo, metadata=replace(photo.metadata, icc=b"no profile"))
    assert np.abs(opened(look_at(broken, broken).before)[24, 32, :3].astype(int) - (80, 90, 60)).max() <= 4


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_kind_of_photo_has_a_look(depth: type[np.unsignedinteger], channels: int) -> None:
    top = np.iinfo(depth).max
    array = np.full((40, 60, channels), top // 2, depth)
    if channels == 4:
        array[..., 3] = 0
    photo = Photo.from_array(array[..., 0] if channels == 1 else array)
    look = look_at(photo, photo)
    assert (look.width, look.height, look.mask) == (60, 40, None)
    expected = 255 if channels == 4 else 127  # clear is white
    assert np.abs(opened(look.after)[..., :3].astype(int) - expected).max() <= 2


def test_before_and_after_are_not_swapped() -> None:
    look = look_at(plain(64, 48, (10, 10, 10)), plain(64, 48, (240, 240, 240)))
    assert opened(look.before).mean(axis=(0, 1))[0] < 20
    assert opened(look.after).mean(axis=(0, 1))[0] > 230


@pytest.mark.parametrize("room", [200_000, 40_000])
def test_a_look_stays_within_its_room_and_uses_it(room: int) -> None:
    before, after = grain(900, 600, 100), grain(900, 600, 130, seed=1)
    mask = np.random.default_rng(2).random((600, 900)) < 0.002
    look = look_at(before, after, mask, room=room)
    assert look.mask is not None
    used = len(look.before) + len(look.after) + len(look.mask)
    assert used <= room or max(look.width, look.height) == 320
    assert used > room / 4
    for data in (look.before, look.after, look.mask):
        assert opened(data).shape[:2] == (look.height, look.width)


def test_a_scratch_one_pixel_wide_stays_a_line_when_the_mask_shrinks() -> None:
    photo = plain(2560, 1280, (90, 90, 90))
    mask = np.zeros((1280, 2560), bool)
    mask[:, 1001] = True
    look = look_at(photo, photo, mask)
    assert look.mask is not None
    assert (look.width, look.height) == (1280, 640)
    alpha = opened(look.mask)[..., 3]
    assert (alpha.max(axis=1) == 255).all()
    assert set(alpha.nonzero()[1]) <= {500, 501}


def test_files_have_looks(tmp_path: Path) -> None:
    photo = plain(30, 20, (9, 99, 9))
    photo.to_pillow().save(tmp_path / "a.png")
    write_mask(np.eye(20, 30, dtype=bool), tmp_path / "m.png")
    look = look_at_files(tmp_path / "a.png", tmp_path / "a.png", tmp_path / "m.png")
    assert look.mask is not None
    assert (opened(look.mask)[..., 3] > 0).sum() == 20
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    with pytest.raises(BadImageError):
        look_at_files(tmp_path / "a.png", tmp_path / "b.png")


def test_an_enlarged_photo_is_shown_beside_its_input_at_one_size() -> None:
    small, large = plain(64, 48, (10, 20, 30)), plain(256, 192, (200, 100, 50))
    look = look_at(small, large, np.ones((48, 64), np.bool_))
    assert (look.width, look.height) == (256, 192)
    assert look.mask is not None
    for picture in (look.before, look.after, look.mask):
        assert opened(picture).shape[:2] == (192, 256)
    assert side_by_side(small, large).size == side_by_side(large, large).size
    with pytest.raises(ValueError, match="64 x 48, after 255 x 192"):
        look_at(small, plain(255, 192, (0, 0, 0)))
