"""Whole restorations with the compact set that ships: sizes, modes, masks, faces, the Python API."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy.special import expit, logit

import oldphoto
from oldphoto.errors import OutOfMemoryError, UsageError
from oldphoto.files.colour import bands
from oldphoto.files.image import Photo, read_photo, write_photo
from oldphoto.machine import memory
from oldphoto.models import translating
from oldphoto.models.loaded import Models, choose_device
from oldphoto.models.translating import Translated, TranslationPlan
from oldphoto.options import Options
from oldphoto.pipeline import case_of, grey_again, plan, restore
from oldphoto.restorer import Restorer
from oldphoto.runs import batch, planning
from oldphoto.stages import needed_nets, scratches
from oldphoto.stages.blending import blend
from oldphoto.stages.faces import detect_faces
from oldphoto.stages.faces.stage import Faces
from oldphoto.stages.scratches import damage_probability, dilated, found_damage, grey_size, grey_tensor
from tests.pictures import adobe_rgb, press_profile, prophoto_rgb, saved, tiff

EXAMPLES = Path(__file__).parents[1] / "examples"
PLAIN = Options(faces=False)
CHANGED = Options(faces=False, strength=0.9)  # whatever is judged right
WHOLE = TranslationPlan("whole", 0)


@pytest.fixture(scope="module")
def couple() -> Photo:
    return read_photo(EXAMPLES / "couple_1855.webp")


@pytest.fixture(scope="module")
def small(couple: Photo) -> Photo:
    """At half the size, both faces are still found."""
    return Photo.from_array(np.array(couple.pixels[::2, ::2], np.uint8))


def crop(photo: Photo, height: int, width: int) -> Photo:
    return Photo.from_array(np.array(photo.pixels[:height, :width], np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (129, 67), (256, 256)])
@pytest.mark.parametrize("options", [PLAIN, Options(with_scratch=True), Options(with_scratch=True, hr="on")], ids=str)
def test_the_size_stays_exactly(size: tuple[int, int], options: Options, models: Models, couple: Photo) -> None:
    photo = crop(couple, *size)
    done = restore(photo, models, options)
    assert (done.photo.height, done.photo.width) == (photo.height, photo.width)
    assert done.photo.depth == photo.depth
    assert (done.mask is None) == (not options.with_scratch)
    assert {"translation"} <= set(done.seconds)


def test_restoring_twice_gives_the_same(models: Models, couple: Photo) -> None:
    photo = crop(couple, 128, 128)
    one, two = (restore(photo, models, PLAIN).photo.pixels for _ in range(2))
    assert np.array_equal(one, two)


def test_the_input_is_not_changed(models: Models, couple: Photo) -> None:
    photo = crop(couple, 128, 128)
    before = photo.pixels.copy()
    restore(photo, models, Options(with_scratch=True))
    assert np.array_equal(photo.pixels, before)


def test_grey_stays_grey_and_sixteen_bits_stay_sixteen(models: Models, couple: Photo) -> None:
    grey = np.array(np.repeat(couple.pixels[:96, :96, :1], 3, axis=2), np.uint8)
    done = restore(Photo(grey, grey=True), models, PLAIN).photo
    assert done.grey
    assert np.array_equal(done.pixels[..., 0], done.pixels[..., 2])
    deep = Photo(couple.pixels[:96, :96].astype(np.uint16) * 257)
    fine = restore(deep, models, CHANGED).photo
    assert fine.depth == 16
    assert len(np.unique(fine.pixels)) > 256, "a 16-bit photo must not pass through 8 bits"
    coarse = restore(Photo(couple.pixels[:96, :96]), models, CHANGED).photo
    # Eight bits are rounded twice: what was translated, and what was kept of it.
    assert np.abs(fine.pixels / 257.0 - coarse.pixels).max() <= 1.01


def test_contrast_is_not_stretched(models: Models) -> None:
    flat = Photo(np.full((64, 64, 3), 120, np.uint8))
    assert np.abs(restore(flat, models, PLAIN).photo.pixels.astype(int) - 120).max() <= 6


def test_a_given_mask_is_used_as_it_is_and_repairs(models: Models, couple: Photo) -> None:
    clean = couple.pixels[100:228, 100:228]
    mask = np.zeros((128, 128), np.bool_)
    mask[60:64] = True
    hurt = Photo(np.where(mask[..., None], np.uint8(255), clean))
    done = restore(hurt, models, PLAIN, mask)
    assert done.mask is not None
    assert np.array_equal(done.mask, mask)

    def error(p: Photo) -> float:
        return float(np.abs(p.pixels.astype(int) - clean)[mask].mean())

    assert error(done.photo) < 0.3 * error(hurt)
    grown = restore(hurt, models, Options(faces=False, mask_dilation=2), mask)
    assert grown.mask is not None
    assert grown.mask.sum() == 8 * 128


def test_white_scratches_are_found_and_repaired(models: Models, couple: Photo) -> None:
    clean = couple.pixels[100:356, 60:316]
    hurt = clean.copy()
    hurt[:, 100:103] = 255
    hurt[180:182, :] = 255
    scratched = np.abs(hurt.astype(int) - clean).max(axis=2) > 40
    # Far below the set's own threshold: the detector has learned to doubt straight lines, which poles and wires are.
    options = Options(with_scratch=True, faces=False, scratch_threshold=0.1, look="faithful")
    done = restore(Photo(hurt), models, options)
    assert done.mask is not None
    assert done.mask[scratched].mean() > 0.8
    assert done.mask.mean() < 0.2
    off = np.abs(done.photo.pixels.astype(int) - clean)[scratched].mean()
    assert off < 0.35 * np.abs(hurt.astype(int) - clean)[scratched].mean()


def test_a_mask_of_another_size_is_refused(models: Models, couple: Photo) -> None:
    with pytest.raises(UsageError, match="4 x 4"):
        restore(couple, models, PLAIN, np.zeros((4, 4), np.bool_))


def test_faces_are_found_and_the_rest_stays_bit_identical(models: Models, small: Photo) -> None:
    whole = restore(small, models, Options())
    without = restore(small, models, PLAIN)
    assert len(whole.faces) == 2
    assert all(face.after is not None for face in whole.faces)
    changed = (whole.photo.pixels != without.photo.pixels).any(axis=2)
    assert changed.any()
    for face in whole.faces:  # a generous square about each face holds all that changed
        left, top, right, bottom = (round(v) for v in face.box)
        margin = right - left
        changed[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = False
    assert not changed.any()
    assert np.array_equal(blend(without.photo.pixels, whole.faces), whole.photo.pixels)


def test_faces_can_be_chosen_by_number_size_and_strength(
    models: Models, small: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translating, "translate_photo", lambda pixels, *_, **__: Translated(pixels, WHOLE))
    photo = small
    listed = detect_faces(photo.pixels)
    assert len(listed) == 2

    def run(**options: Any) -> tuple[list[int], Any, tuple[str, ...]]:
        done = restore(photo, models, Options(strength=1.0, **options))  # or it is sharpened
        assert [face.number for face in done.faces] == [1, 2], "every face is in the result"
        changed = done.photo.pixels.astype(int) - photo.pixels
        return [face.number for face in done.faces if face.after is not None], changed, done.warnings

    assert run()[0] == [1, 2]
    both, all_of_it, _ = run(face_strength=1.0)
    assert both == [1, 2]
    assert all_of_it.any()
    chosen, first, warnings = run(face_strength=1.0, only_faces=(1,))
    assert (chosen, warnings) == ([1], ())
    skipped, second, _ = run(face_strength=1.0, skip_faces=(1,))
    assert skipped == [2]
    assert np.abs(first + second - all_of_it).max() <= 1  # each is rounded by itself
    places = [[round(edge) for edge in face.bounds] for face in listed]
    for changed, own, other in ((first, *places), (second, *places[::-1])):
        assert changed[own[1] : own[3], own[0] : own[2]].any()
        assert not changed[other[1] : other[3], other[0] : other[2]].any()
    none, changed, warnings = run(only_faces=(7,))
    assert (none, warnings) == ([], ("there is no face 7: 2 were found",))
    assert not changed.any()
    assert run(min_face=round(listed[0].side) + 20)[0] == []
    assert np.abs(run(face_strength=0.5)[1] - all_of_it / 2).max() <= 3
    assert not run(face_strength=0.0)[1].any()


def test_faces_hidden_by_damage_are_found_in_the_restored_photo(
    models: Models, small: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = small.pixels
    hidden = clean.copy()
    left, top, right, bottom = (round(edge) for edge in detect_faces(clean)[0].bounds)
    hidden[top:bottom, left:right] = 255
    assert len(detect_faces(hidden)) == 1
    monkeypatch.setattr(translating, "translate_photo", lambda *_, **__: Translated(clean, WHOLE))
    done = restore(Photo(hidden), models, Options(strength=1.0))
    # What the damaged photo shows is number 1; the one that came to light, though larger, is number 2.
    assert [face.number for face in done.faces] == [1, 2]
    assert done.faces[1].box[:2] == pytest.approx((left, top), abs=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"face_strength": 1.1},
        {"face_strength": -0.1},
        {"min_face": -1},
        {"only_faces": (0,)},
        {"skip_faces": (-1,)},
        {"only_faces": (1,), "skip_faces": (2,)},
    ],
    ids=str,
)
def test_face_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Options(**wrong)


def test_no_faces_is_no_error(models: Models) -> None:
    assert restore(Photo(np.full((200, 200, 3), 90, np.uint8)), models, Options()).faces == ()


def test_restorer_takes_pillow_and_arrays(couple: Photo) -> None:
    restorer = Restorer.from_pretrained(model="compact", device="cpu", offline=True, options=PLAIN)
    pixels = couple.pixels[:80, :90]
    from_array = restorer.restore(pixels, PLAIN)
    from_pillow = restorer.restore(Image.fromarray(pixels), PLAIN)
    assert np.array_equal(np.asarray(from_array.image), np.asarray(from_pillow.image))
    assert from_pillow.image.size == (90, 80)
    assert oldphoto.Restorer is Restorer


def test_masks_do_not_depend_on_the_precision(models: Models, small: Photo) -> None:
    half = Models(models.weight_set, "cpu", "bf16")
    found = [found_damage(small.pixels, one, None) for one in (models, half)]
    with half.inference():
        found.append(found_damage(small.pixels, half, None))
    assert found[0].any()
    assert all(np.array_equal(found[0], mask) for mask in found[1:])


def test_half_precision_is_close(models: Models, couple: Photo) -> None:
    photo = crop(couple, 96, 96)
    half = restore(photo, Models.load(models.weight_set, "cpu", "bf16"), CHANGED).photo.pixels
    full = restore(photo, models, CHANGED).photo.pixels
    assert 0 < np.abs(half.astype(int) - full).mean() < 2.0


def test_devices_that_are_not_there_are_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="not available here"):
        choose_device("cuda:17")
    with pytest.raises(UsageError):
        choose_device("toaster")


def test_running_out_of_memory_has_its_own_error(
    models: Models, couple: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(translating, "translate_photo", full)
    with pytest.raises(OutOfMemoryError) as caught:
        restore(couple, models, PLAIN)
    assert caught.value.exit_code == 9
    assert "--model compact" in caught.value.advice


@pytest.fixture
def two_threads(set_threads: Callable[[int], None]) -> None:
    set_threads(2)


def batch_of(folder: Path, models: Models, options: Options, jobs: int) -> batch.Summary:
    work = batch.work_with(models, options, provenance=False, jobs=jobs)
    assert work.places == jobs
    return batch.run(planning.plan([str(folder / "in")], str(folder / f"out{jobs}")).photos, lambda: work)


def test_what_a_photo_becomes_does_not_depend_on_how_many_are_in_work(
    tmp_path: Path, models: Models, two_threads: None
) -> None:
    lesson = read_photo(EXAMPLES / "geography_lesson_1850.webp").pixels
    (tmp_path / "in").mkdir()
    for number, (top, left) in enumerate([(60, 120), (100, 160), (140, 40)]):
        pixels = np.array(lesson[top : top + 330, left : left + 310], np.uint8)
        pixels[number * 90 + 20, 5:-5] = 255
        write_photo(Photo.from_array(pixels), tmp_path / f"in/{number}.png")
    options = Options(with_scratch=True, scratch_threshold=0.1)
    summaries = [batch_of(tmp_path, models, options, jobs) for jobs in (1, 2)]
    assert not any(summary.failed for summary in summaries)
    for number in range(3):
        one, two = ((tmp_path / f"out{jobs}/{number}.png").read_bytes() for jobs in (1, 2))
        assert one == two
    # Else there was nothing to be different.
    records = [outcome.record for outcome in summaries[1].outcomes]
    assert any(record["faces"] for record in records)
    assert all(record["mask_share"] for record in records)
    assert torch.get_num_threads() == 2


def test_memory_running_out_beside_another_photo_is_told_of_the_photo_it_met(
    tmp_path: Path, models: Models, couple: Photo, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    def by_tiles(photo: Any, nets: Any, trusted: bool, tile: int) -> Any:
        met.append((photo.width, tile))
        if photo.width == 104 and len([width for width, _ in met if width == 104]) == 1:
            raise MemoryError
        return as_ever(photo, nets, trusted, tile)

    met: list[tuple[int, int]] = []
    as_ever = translating._by_tiles
    monkeypatch.setattr(translating, "_by_tiles", by_tiles)
    (tmp_path / "in").mkdir()
    for width in (96, 104):
        write_photo(crop(couple, 96, width), tmp_path / f"in/{width}.png")
    summary = batch_of(tmp_path, models, PLAIN, 2)
    assert not summary.failed
    warnings = {outcome.planned.source.stem: outcome.record["warnings"] for outcome in summary.outcomes}
    assert warnings == {"96": [], "104": ["memory ran out: went on with tiles of 960 pixels"]}
    assert sorted(met) == [(96, 1280), (104, 960), (104, 1280)]


def test_the_plan_counts_every_copy_of_the_photo(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.line, "held", lambda: 0)
    photo = Photo.from_array(np.zeros((3000, 4000, 3), np.uint8))
    converted = replace(photo, metadata=replace(photo.metadata, icc=adobe_rgb()))
    deep = Photo.from_array(np.zeros((3000, 4000, 3), np.uint16))
    untoned, copy = Options(tone_strength=0.0), photo.pixels.nbytes
    plain = plan(case_of(photo, models, untoned, has_mask=False), models).memory
    assert plan(case_of(photo, models, Options(), has_mask=False), models).memory == plain + copy
    assert plan(case_of(deep, models, untoned, has_mask=False), models).memory == plain + copy
    # Between its colours and sRGB a photo has 16 bits.
    assert plan(case_of(converted, models, untoned, has_mask=False), models).memory == plain + 3 * copy
    assert plan(case_of(converted, models, Options(), has_mask=False), models).memory == plain + 5 * copy


def test_faces_are_counted_and_held_to_what_the_user_allows(
    models: Models, couple: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.line, "held", lambda: 300 << 20)
    for_faces = 3 << 30
    monkeypatch.setattr(Faces, "memory", lambda *_: for_faces)
    assert plan(case_of(couple, models, PLAIN, has_mask=False), models).memory < 2 << 30
    assert plan(case_of(couple, models, Options(), has_mask=False), models).memory > for_faces + (300 << 20)
    tight = Options(max_memory=2 << 30)
    assert plan(case_of(couple, models, replace(tight, faces=False), has_mask=False), models).memory < 2 << 30
    with pytest.raises(OutOfMemoryError, match=r"enhancing faces takes .* more than the 2\.2GB allowed") as told:
        plan(case_of(couple, models, tight, has_mask=False), models)
    assert "--no-faces" in str(told.value.advice)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is not the process's own")
@pytest.mark.parametrize("size", [256, 512])
def test_what_faces_take_is_known_beforehand(size: int) -> None:
    """In a process that has done a small face, against what three of full size really add."""
    code = f"""
import torch
from oldphoto.machine import memory
from oldphoto.records.manifest import peak_memory
from oldphoto.models.spade import FaceGenerator, FaceGeneratorConfig
memory.reuse_pages()
generator = FaceGenerator(FaceGeneratorConfig(width=16)).eval()
with torch.inference_mode():
    generator(torch.rand(1, 3, 32, 32))
    faces, before = torch.rand(3, 3, {size}, {size}), memory.resident()
    generator(faces)
print(peak_memory() - before, generator.memory({size}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken, said = map(int, run.stdout.split())
    assert 0.6 * said < taken < 1.1 * said + (32 << 20)  # what libraries set up at first use


def test_copies_of_a_deep_photo_are_few(models: Models, couple: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The photo restored, freed of fading, and kept in part; and what finding faces takes."""
    pixels = np.tile(couple.pixels, (2, 2, 1))[:1500, :2000].astype(np.uint16) * np.uint16(257)
    photo = Photo.from_array(pixels)
    monkeypatch.setattr(translating, "translate_photo", lambda x, *_, **__: Translated(x // 2, WHOLE))
    tracemalloc.start()
    restore(photo, models, Options(tone_strength=0.5))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * photo.pixels.nbytes + (50 << 20)


def test_photos_wait_for_each_other_where_memory_is_short(
    tmp_path: Path, models: Models, couple: Photo, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    """Which the compact set's tiles do not say by themselves: they shrink rather than wait."""

    def watched(*args: Any, **kwargs: Any) -> Translated:
        in_work.append(1)
        most.append((len(in_work), torch.get_num_threads()))
        time.sleep(0.2)
        in_work.pop()
        return Translated(args[0], WHOLE)

    in_work: list[int] = []
    most: list[tuple[int, int]] = []
    need = 1 << 30
    monkeypatch.setattr(translating, "translate_photo", watched)
    monkeypatch.setattr(
        "oldphoto.models.translating.plan_translation",
        lambda *_, **__: TranslationPlan("whole", memory.line.held() + need),
    )
    (tmp_path / "in").mkdir()
    for number in range(4):
        write_photo(crop(couple, 32, 32), tmp_path / f"in/{number}.png")
    for room, expected in ((3 * need, (2, 1)), (need, (1, 2))):
        options = Options(faces=False, max_memory=memory.resident() + room)
        work = batch.work_with(models, options, jobs=2)
        plan = planning.plan([str(tmp_path / "in")], str(tmp_path / f"out{room}"))
        assert not batch.run(plan.photos, lambda work=work: work).failed  # type: ignore[misc]
        # Those that have the memory to themselves have the cores, too.
        assert max(most) == expected
        most.clear()


def test_restoring_several_gives_them_in_order(models: Models, couple: Photo, two_threads: None) -> None:
    sizes = [(128, 160), (16, 16), (64, 32), (8, 40), (16, 24)]
    taken: list[int] = []

    def images() -> Iterator[Photo]:
        for number, size in enumerate(sizes):
            taken.append(number)
            yield crop(couple, *size)

    restorer = Restorer(models)
    done = restorer.restore_all(images(), PLAIN, jobs=2)
    assert next(done).photo.pixels.shape == (128, 160, 3)
    assert len(taken) <= 3
    assert [one.photo.pixels.shape[:2] for one in done] == sizes[1:]
    assert torch.get_num_threads() == 2
    again = list(restorer.restore_all([crop(couple, 64, 32)] * 3, PLAIN, jobs=3))
    assert all(np.array_equal(one.photo.pixels, again[0].photo.pixels) for one in again)
    with pytest.raises(UsageError, match="only damage"):
        list(restorer.restore_all([couple, couple], Options(only_damaged=True)))


def test_compact_needs_no_network(tmp_path: Path, small: Photo) -> None:
    """The command with every socket refused and no cache: scratches and faces included."""
    write_photo(small, tmp_path / "photo.webp")
    guard = tmp_path / "sitecustomize.py"
    guard.write_text(
        "import socket\n"
        "def refuse(*a, **k):\n    raise OSError('the network was used')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        "HF_HOME": str(tmp_path / "hf"),
    }
    command = [
        sys.executable,
        "-m",
        "oldphoto",
        "restore",
        str(tmp_path / "photo.webp"),
        "-o",
        str(tmp_path / "o.webp"),
    ]
    run = subprocess.run(
        [*command, "--with-scratch", "--model", "compact"], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    with Image.open(tmp_path / "o.webp") as after:
        assert after.size == (small.width, small.height)
    assert socket.socket.connect is not None


def test_detection_sizes_are_bounded() -> None:
    for size in ((10, 1000), (1, 1), (9000, 9000), (300, 300)):
        h, w = grey_size(*size, 256)
        assert h % 16 == w % 16 == 0
        assert min(h, w) >= 32
        assert h * w <= 5_000_000
    assert grey_size(304, 304, 256) == (256, 256)


def test_damage_is_looked_for_tile_by_tile_and_in_sizes(
    models: Models, couple: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles make no difference; neighbouring sizes are asked together; of a copy that is larger than may be looked at,
    its half is looked at; a small photo is looked at in twice its size, too."""
    pixels = couple.pixels[:420, :410]
    monkeypatch.setattr(scratches, "LEAST_SHORT_SIDE", 1000)
    monkeypatch.setattr(scratches, "ENLARGED", 0)
    whole = damage_probability(pixels, models)
    monkeypatch.setattr(scratches, "TILE", 192)
    # Of 192 pixels, with 128 around: the network sees a little farther than that.
    tiled = np.abs(damage_probability(pixels, models) - whole)
    assert tiled.max() < 0.1
    assert tiled.mean() < 0.001
    monkeypatch.setattr(scratches, "TILE", 768)
    deep = damage_probability(pixels.astype(np.uint16) * 257, models)
    assert np.abs(deep - whole).max() < 0.02
    with monkeypatch.context() as only_half:
        only_half.setattr(scratches, "MOST_LOOKED_AT", 410 * 420 // 2)
        half = damage_probability(pixels, models)
    assert half.shape == whole.shape
    monkeypatch.setattr(scratches, "LEAST_SHORT_SIDE", 200)
    both = damage_probability(pixels, models)
    mean = (logit(whole.astype(np.float64)) + logit(half.astype(np.float64))) / 2
    assert np.abs(both - expit(mean)).max() < 0.02
    monkeypatch.setattr(scratches, "LEAST_SHORT_SIDE", 1000)
    monkeypatch.setattr(scratches, "ENLARGED", 410 * 420)
    twice = damage_probability(pixels, models)
    assert (twice >= whole - 0.02).all()
    assert (twice > whole + 0.1).any()


def test_grey_is_pillows(couple: Photo) -> None:
    ours = np.rint((grey_tensor(couple.pixels)[0, 0].numpy() + 1) * 127.5)
    assert np.array_equal(ours, np.asarray(couple.to_pillow().convert("RGB").convert("L"), np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_of_large_photos_is_made_in_bands(
    dtype: type[np.unsignedinteger[Any]], couple: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = couple.pixels[:90, :70].astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    whole = grey_tensor(pixels), grey_again(pixels)
    monkeypatch.setattr("oldphoto.files.colour._AT_ONCE", 1000)
    assert len(bands(pixels)) > 5
    assert torch.equal(grey_tensor(pixels), whole[0])
    assert np.array_equal(grey_again(pixels), whole[1])
    assert whole[1].dtype == dtype
    assert np.abs(whole[0][0, 0].numpy() + 1.0 - whole[1][..., 1] / (np.iinfo(dtype).max / 2)).max() < 0.01


def test_dilation_equals_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = np.random.default_rng(0).random((40, 30)) > 0.97
    square = np.ones((3, 3), np.bool_)
    assert np.array_equal(dilated(mask, 3), ndimage.binary_dilation(mask, square, iterations=3))
    assert dilated(mask, 0) is mask


def test_large_photos_are_recognised_by_size() -> None:
    assert Options().large(3000, 2000)
    assert not Options().large(800, 600)
    assert not Options(hr="off").large(9000, 9000)
    assert Options(hr="on").large(10, 10)


def test_inference_leaves_no_gradients(models: Models) -> None:
    assert not any(p.requires_grad for p in models.net("mapping").parameters())
    assert torch.is_grad_enabled()


# ---- damage alone ----


@pytest.mark.parametrize("kind", ["RGB 8", "RGB 16", "grey 16", "Adobe RGB 8", "ProPhoto RGB 16", "CMYK"])
def test_only_the_damage_is_changed(kind: str, models: Models, couple: Photo, tmp_path: Path) -> None:
    pixels = np.array(couple.pixels[100:164, 100:196])
    icc = {"A": adobe_rgb(), "P": prophoto_rgb(), "C": press_profile()}.get(kind[0])
    if kind == "CMYK":
        data = saved(Image.fromarray(pixels).convert("CMYK"), "TIFF", icc_profile=icc)
    else:
        array = pixels.astype(np.uint16) * 257 + 5 if "16" in kind else pixels
        grey = kind.startswith("grey")
        data = tiff(array[..., 1] if grey else array, photometric="minisblack" if grey else "rgb", iccprofile=icc)
    (tmp_path / "in.tif").write_bytes(data)
    mask = np.zeros((64, 96), np.bool_)
    mask[30:33, 5:90] = True
    options = Options(only_damaged=True, mask_dilation=2)
    done = restore(read_photo(tmp_path / "in.tif"), models, options, mask)
    assert done.faces == ()
    assert done.mask is not None
    assert done.mask.sum() == 7 * 89
    write_photo(done.photo, tmp_path / "out.tif")
    before, after = tifffile.imread(tmp_path / "in.tif"), tifffile.imread(tmp_path / "out.tif")
    assert before.dtype == after.dtype
    np.testing.assert_array_equal(before[~done.mask], after[~done.mask])
    assert (before[done.mask] != after[done.mask]).mean() > 0.2


def test_damage_alone_wants_damage(models: Models, couple: Photo) -> None:
    with pytest.raises(UsageError, match="none is looked for"):
        restore(couple, models, Options(only_damaged=True))
    done = restore(crop(couple, 200, 200), models, Options(only_damaged=True, with_scratch=True))
    assert done.mask is not None
    same = (done.photo.pixels == couple.pixels[:200, :200]).all(axis=2)
    assert same[~done.mask].all()
    assert "face_generator" not in needed_nets("compact", Options(only_damaged=True, with_scratch=True), False)
