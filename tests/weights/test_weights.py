"""Weights: what is fetched, from where, and that nothing is used unverified.

A local server stands in for every host; files are small random bytes, their hashes computed here by hashlib.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import os
import random
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from oldphoto import doctor, weights
from oldphoto.errors import (
    ExitCode,
    FileAccessError,
    WeightsCorruptError,
    WeightsUnavailableError,
)
from oldphoto.options import Options
from oldphoto.stages import needed_nets
from oldphoto.weights import Source, WeightFile, cache, fetching, obtaining
from oldphoto.weights import lock as lock_of
from oldphoto.weights.sets import SetName
from tests.hub_server import COMMIT, HubServer

TOP = Path(__file__).resolve().parents[2]
DATA = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)
VAE = "Global/checkpoints/restoration/VAE_A_quality/latest_net_G.pth"
LANDMARKS = "Face_Detection/shape_predictor_68_face_landmarks.dat"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hub_source(repo: str = "someone/photos", revision: str = COMMIT, path: str = VAE) -> Source:
    return Source("hub", repo=repo, revision=revision, path=path)


def weight(*sources: Source, data: bytes = DATA, net: str = "old_vae", path: str = VAE) -> WeightFile:
    return WeightFile("published", net, path, len(data), sha256(data), "MIT", "B", sources or (hub_source(),))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub home of the test's own, and pauses too short to notice."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "OLDPHOTO_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetching, "PAUSE_SECONDS", 0.01)
    return tmp_path / "home"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.add("someone/photos", COMMIT, VAE, DATA)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    return url


# ---- the lock


def test_lock_states_what_the_reference_notes_state(shared: Path) -> None:
    notes = (shared / "reference" / "weights.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (\d+|absent)[^|]*\| ([0-9a-f]{64}) \| ([ABC]) \|$", notes, re.MULTILINE)
    table = {path: (None if size == "absent" else int(size), digest, label) for path, size, digest, label in rows}
    others = (weights.CNN_DETECTOR, "rebuilder", "deoldify")
    published = [file for file in weights.read_lock() if file.set == "published" and not file.net.startswith(others)]
    assert len(published) == 10
    for file in published:
        assert (file.bytes, file.sha256, file.confidence) == table[file.path]
        for source in file.sources:
            assert source.kind == "python" or source.repo in notes
            assert source.revision in notes
            assert source.url.rpartition("/")[2].replace("_68_", "_{5,68}_") in notes
    assert {file.net: file.bytes for file in published if file.bytes is None}.keys() == {
        "mapping_patch_attention",
        "face_generator_512",
    }


def test_lock_states_what_the_rebuilding_networks_notes_state(shared: Path) -> None:
    notes = (shared / "reference" / "real_esrgan" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+\.pth) \| (v[\d.]+) \| ([\d,]+)[^|]*\| ([0-9a-f]{64}) \|", notes, re.MULTILINE)
    table = {name: (release, int(size.replace(",", "")), digest) for name, release, size, digest in rows}
    found = [file for file in weights.read_lock() if file.net.startswith("rebuilder") and file.set == "published"]
    assert {file.net for file in found} == {"rebuilder", "rebuilder_wdn", "rebuilder_large"}
    for file in found:
        release, size, digest = table[Path(file.path).name]
        assert (file.bytes, file.sha256) == (size, digest)
        assert [source.kind for source in file.sources] == ["file"]
        assert file.sources[0].url.endswith(f"/download/{release}/{Path(file.path).name}")
        assert file.licence.startswith("BSD-3-Clause")


def test_lock_warns_of_the_landmarks_licence() -> None:
    licences = {file.net: file.licence for file in weights.read_lock()}
    assert "no commercial use" in licences["landmarks_68"]
    assert all("no commercial use" not in licence for net, licence in licences.items() if net != "landmarks_68")


def test_lock_entries_are_plain_values() -> None:
    assert json.loads(json.dumps([asdict(file) for file in weights.read_lock()]))[0]["net"] == "scratch_unet"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 1", "version = 2"),
        ('set = "published"', 'set = "other"'),
        ('kind = "hub"', 'kind = "ftp"'),
        (f'path = "{VAE}"\nbytes', 'path = "../old_vae.pth"\nbytes'),
        ('sha256 = "de39', 'sha256 = "DE39'),
        ('net = "clean_vae"', 'net = "old_vae"'),
        (', sha256 = "7d66', ', member = "7d66'),
    ],
)
def test_a_lock_that_makes_no_sense_is_refused(tmp_path: Path, old: str, new: str) -> None:
    text = weights.lock_path().read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "weights.lock").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=r"version|weights\.lock"):
        weights.read_lock(tmp_path / "weights.lock")


def test_lock_inside_the_package_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_of, "PACKAGE", tmp_path / "oldphoto")
    (tmp_path / "oldphoto").mkdir()
    assert weights.lock_path() == tmp_path / "weights.lock"
    (tmp_path / "oldphoto" / "weights.lock").touch()
    assert weights.lock_path() == tmp_path / "oldphoto" / "weights.lock"


def test_relock_rewrites_the_compact_entries_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "weights.lock"
    shutil.copy(weights.lock_path(), lock)
    before = [file for file in weights.read_lock(lock) if file.set == "published"]
    head = lock.read_text(encoding="utf-8").partition(lock_of.COMPACT_MARK)[0]
    folder = tmp_path / "oldphoto" / "compact"
    folder.mkdir(parents=True)
    (folder / "old_vae.safetensors").write_bytes(DATA)
    (folder / "README.md").write_text("not a weight file")
    monkeypatch.setattr(lock_of, "PACKAGE", tmp_path / "oldphoto")

    weights.relock_compact(lock)
    lock.write_text(lock.read_text(encoding="utf-8").replace('"MIT"\nconfidence = "own"', '"CC0"\nconfidence = "own"'))
    (folder / "old_vae.safetensors").write_bytes(OTHER[:5])
    (folder / "landmarks_5.safetensors").write_bytes(OTHER)
    relocked = weights.relock_compact(lock)

    compact = {file.net: file for file in weights.read_lock(lock) if file.set == "compact"}
    assert tuple(compact.values()) == relocked
    assert {net: (file.path, file.bytes, file.sha256, file.licence) for net, file in compact.items()} == {
        "old_vae": ("compact/old_vae.safetensors", 5, sha256(OTHER[:5]), "CC0"),
        "landmarks_5": ("compact/landmarks_5.safetensors", len(OTHER), sha256(OTHER), "MIT"),
    }
    assert [file for file in weights.read_lock(lock) if file.set == "published"] == before
    assert lock.read_text(encoding="utf-8").startswith(head)
    assert tomllib.loads(lock.read_text(encoding="utf-8"))["version"] == 1


def test_compact_files_of_the_package_are_those_of_the_lock() -> None:
    compact = [file for file in weights.read_lock() if file.set == "compact"]
    on_disk = {path.name for path in (TOP / "oldphoto" / "compact").glob("*.safetensors")}
    assert {Path(file.path).name for file in compact} == on_disk
    for file in compact:
        assert weights.cached(file) == TOP / "oldphoto" / file.path


# ---- which nets


@pytest.mark.parametrize(
    ("options", "large", "has_mask", "nets"),
    [
        (Options(faces=False), False, False, "old_vae clean_vae mapping"),
        (Options(faces=False), True, False, "old_vae clean_vae mapping"),
        (Options(), False, False, "old_vae clean_vae mapping face_generator_256 landmarks_68 face_finder"),
        (Options(), True, False, "old_vae clean_vae mapping face_generator_512 landmarks_68 face_finder"),
        (Options(face_size=256), True, False, "old_vae clean_vae mapping face_generator_256 landmarks_68 face_finder"),
        (Options(face_size=512), False, False, "old_vae clean_vae mapping face_generator_512 landmarks_68 face_finder"),
        (
            Options(with_scratch=True, faces=False),
            False,
            False,
            "scratch_unet old_vae clean_vae_scratch mapping_scratch",
        ),
        (
            Options(with_scratch=True, faces=False),
            True,
            False,
            "scratch_unet old_vae clean_vae_scratch mapping_patch_attention",
        ),
        (Options(with_scratch=True, faces=False), False, True, "old_vae clean_vae_scratch mapping_scratch"),
        (Options(faces=False), True, True, "old_vae clean_vae_scratch mapping_patch_attention"),
    ],
)
def test_published_nets(options: Options, large: bool, has_mask: bool, nets: str) -> None:
    faithful = replace(options, look="faithful")
    assert needed_nets("published", faithful, large, has_mask) == tuple(nets.split())
    assert set(needed_nets("published", options, large, has_mask)) == {*nets.split(), "resolution", "rebuilder"}
    assert set(nets.split()) - {"face_finder"} <= {file.net for file in weights.read_lock() if file.set == "published"}


@pytest.mark.parametrize("large", [False, True])
def test_compact_nets(large: bool) -> None:
    plain = ("old_vae", "clean_vae", "mapping", "restraint", "tone", "resolution", "rebuilder")
    assert needed_nets("compact", Options(faces=False), large) == plain
    faces = ("face_generator", "landmarks_5")
    assert needed_nets("compact", Options(), large) == (*plain, *faces, "face_restraint", "face_finder")
    assert needed_nets("compact", Options(face_strength=0.5), large) == (*plain, *faces, "face_finder")
    assert needed_nets("compact", Options(with_scratch=True, faces=False), large) == ("damage_net", *plain)
    assert needed_nets("compact", Options(with_scratch=True, faces=False), large, has_mask=True) == plain
    assert needed_nets("compact", Options(faces=False, strength=0.5, tone_strength=0.0), large) == (
        *plain[:3],
        *plain[-2:],
    )
    assert needed_nets("compact", Options(faces=False, look="faithful"), large) == plain[:-3]
    assert needed_nets("compact", Options(faces=False, native_scale=1.5), large) == (*plain[:-2], "rebuilder")
    only = Options(with_scratch=True, only_damaged=True)
    assert needed_nets("compact", only, large) == ("damage_net", *plain[:3])


def test_tone_goes_with_either_set_where_it_is_asked_for() -> None:
    for name in ("compact", "published"):
        for strength, wanted in ((None, name == "compact"), (0.0, False), (0.5, True)):
            options = Options(faces=False, tone_strength=strength)
            assert ("tone" in needed_nets(name, options, False)) == wanted
            faithful = replace(options, look="faithful")
            assert ("tone" in needed_nets(name, faithful, False)) == bool(strength)


@pytest.mark.parametrize("name", ["compact", "published"])
def test_the_network_that_detects_faces_goes_with_either_set(name: SetName) -> None:
    options = Options(face_detector="cnn")
    assert needed_nets(name, options, False)[-2:] == (weights.CNN_DETECTOR, "face_finder")
    assert weights.CNN_DETECTOR not in needed_nets(name, replace(options, faces=False), False)
    assert weights.CNN_DETECTOR not in needed_nets(name, Options(), False)


@pytest.mark.parametrize("data", [DATA, OTHER])
def test_another_edition_of_a_file_serves_as_well(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = replace(weight(net=weights.CNN_DETECTOR, path="Face_Detection/detector.dat"), also=(sha256(OTHER),))
    monkeypatch.setenv("OLDPHOTO_WEIGHTS", str(tmp_path))
    (tmp_path / "cnn_detector.dat").write_bytes(data)
    found = weights.resolve("compact", lambda name: (weights.CNN_DETECTOR,), files=[file])
    assert found.files == {weights.CNN_DETECTOR: tmp_path / "cnn_detector.dat"}
    assert found.hashes == {weights.CNN_DETECTOR: sha256(data)}
    (tmp_path / "cnn_detector.dat").write_bytes(b"neither")
    with pytest.raises(WeightsCorruptError):
        weights.obtain(file)


def test_without_the_network_that_detects_faces_there_is_another(nowhere: str) -> None:
    with pytest.raises(WeightsUnavailableError) as raised:
        weights.obtain(weight(net=weights.CNN_DETECTOR))
    assert raised.value.advice is not None
    assert "--face-detector hog" in raised.value.advice


# ---- fetching from a hub


@pytest.mark.parametrize("redirect", [False, True])
def test_fetch_then_no_more_requests(monkeypatch: pytest.MonkeyPatch, home: Path, redirect: bool) -> None:
    with HubServer(redirect=redirect) as hub:
        hub.add("someone/photos", COMMIT, VAE, DATA)
        monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
        file = weight()
        seen: list[tuple[str, int, int | None]] = []
        path = weights.obtain(file, progress=lambda file, done, total: seen.append((file.net, done, total)))
        assert path.read_bytes() == DATA
        assert path == home / "oldphoto" / VAE
        assert seen[-1] == ("old_vae", len(DATA), len(DATA))
        assert all(request.token == "" for request in hub.requests)
        asked = len(hub.requests)
        assert weights.obtain(file) == path
        assert weights.cached(file) == path
        assert len(hub.requests) == asked


def test_token_goes_out_only_where_it_is_set(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_saved")  # what the hub's client would send by itself
    weights.obtain(weight())
    assert {request.token for request in hub.requests} == {""}
    weights.remove([weight()])
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    weights.obtain(weight())
    assert "Bearer hf_secret" in {request.token for request in hub.requests}


def test_a_token_does_not_follow_a_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with HubServer(redirect=True) as hub:
        hub.add("someone/photos", COMMIT, VAE, DATA)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        weights.obtain(weight())
    tokens = {request.path.startswith("/cdn/"): request.token for request in hub.requests if request.path != "/"}
    assert tokens == {False: "Bearer hf_secret", True: ""}


def in_hub_cache(folder: Path, data: bytes = DATA) -> Path:
    """A file as the hub's own client keeps it for a branch: a link named by commit, to a blob named by content."""
    repo = folder / "models--someone--photos"
    blob, link, ref = repo / "blobs" / sha256(DATA), repo / "snapshots" / COMMIT / VAE, repo / "refs" / "main"
    for path in (blob, link, ref):
        path.parent.mkdir(parents=True)
    blob.write_bytes(data)
    ref.write_text(COMMIT)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


@pytest.mark.parametrize("revision", [COMMIT, "main"])
def test_what_the_hubs_client_keeps_is_used(
    nowhere: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, revision: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    link = in_hub_cache(tmp_path / "elsewhere")
    assert weights.obtain(weight(hub_source(revision=revision)), offline=True) == link


# ---- a hub that means harm


@pytest.mark.parametrize("name", ["{victim}", "../../../../../{victim}", "..", "a/b", "x" * 300, "\\..\\x", ""])
@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag", "X-Repo-Commit", "Content-Disposition"])
def test_no_header_of_a_hub_says_where_its_bytes_go(
    hub: HubServer, tmp_path: Path, home: Path, name: str, header: str
) -> None:
    victim = tmp_path / "profile"
    victim.write_text("mine")
    hub.add("someone/photos", COMMIT, VAE, OTHER)
    hub.faults["latest_net_G.pth"].headers = {header: f'"{name}"'.format(victim=victim)}
    with pytest.raises(WeightsCorruptError):
        weights.obtain(weight())
    assert victim.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "profile"]
    files = [path for path in home.rglob("*") if path.is_file()]
    assert [path.suffix for path in files] == [".lock"], files


def test_no_more_is_taken_than_the_lock_allows(hub: HubServer, home: Path) -> None:
    hub.add("someone/photos", COMMIT, VAE, DATA * 50)
    largest = 0

    def look(file: WeightFile, done: int, total: int | None) -> None:
        nonlocal largest
        largest = max(largest, done, *(path.stat().st_size for path in home.rglob("*.part")))

    with pytest.raises(WeightsCorruptError):
        weights.obtain(weight(), progress=look)
    assert largest <= len(DATA) + 1
    packed = bz2.compress(DATA)
    url = hub.add_file("landmarks.dat.bz2", bz2.compress(DATA * 50))
    with pytest.raises(WeightsCorruptError):
        weights.obtain(landmarks(url, packed), progress=look)
    assert largest <= max(len(DATA), len(packed)) + 1


def test_a_member_that_unfolds_beyond_its_size_is_left(hub: HubServer, home: Path) -> None:
    url = hub.add_file("bomb.zip", zip_of({"checkpoints/x": bytes(30_000_000)}))
    seen: list[int] = []
    with pytest.raises(WeightsCorruptError):
        weights.obtain(
            weight(Source("zip", url=url, member="checkpoints/x")), progress=lambda file, done, total: seen.append(done)
        )
    assert max(seen) <= len(DATA) + fetching.CHUNK_BYTES


def test_a_byte_now_and_then_is_not_waited_for(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "READ_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(fetching, "TRIES", 2)
    hub.faults["latest_net_G.pth"].chunk_bytes = 1
    hub.faults["latest_net_G.pth"].chunk_seconds = 0.05
    started = time.monotonic()
    with pytest.raises(WeightsUnavailableError, match="too slow"):
        weights.obtain(weight())
    assert time.monotonic() - started < 5


def test_an_endpoint_that_cannot_be_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://[::1")
    with pytest.raises(WeightsUnavailableError, match="Invalid IPv6"):
        weights.obtain(weight())


def test_cut_connection_is_resumed(hub: HubServer) -> None:
    hub.faults["latest_net_G.pth"].cut = [200_000]
    assert weights.obtain(weight()).read_bytes() == DATA
    assert [request.range for request in hub.gets(VAE)] == ["", "bytes=200000-"]


def test_server_that_ignores_range(hub: HubServer) -> None:
    hub.faults["latest_net_G.pth"].cut = [200_000]
    hub.faults["latest_net_G.pth"].ignore_range = True
    assert weights.obtain(weight()).read_bytes() == DATA


def test_connection_reset(hub: HubServer) -> None:
    hub.faults["latest_net_G.pth"].reset = [1000, 200_000]
    assert weights.obtain(weight()).read_bytes() == DATA
    assert len(hub.gets(VAE)) == 3


@pytest.mark.parametrize("where", ["status", "get_status"])
def test_server_error_then_success(hub: HubServer, where: str) -> None:
    setattr(hub.faults["latest_net_G.pth"], where, [503])
    assert weights.obtain(weight()).read_bytes() == DATA


def test_slow_transfer_reports_bytes(hub: HubServer) -> None:
    data = random.Random(4).randbytes(21 << 20)
    hub.add("someone/photos", COMMIT, "slow.pth", data)
    hub.faults["slow.pth"].chunk_seconds = 0.02
    seen: list[int] = []
    weights.obtain(weight(hub_source(path="slow.pth"), data=data), progress=lambda file, done, total: seen.append(done))
    assert seen == sorted(seen)
    assert 0 < next(done for done in seen if done) < len(data)
    assert seen[-1] == len(data)


def test_what_another_process_fetched_meanwhile_is_not_deleted(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights.obtain(weight())
    requests = len(hub.gets(VAE))
    really, asked = cache.verified, iter([True])
    # The first look comes before the other's file.
    monkeypatch.setattr(obtaining, "verified", lambda copies: None if next(asked, False) else really(copies))
    assert weights.obtain(weight()) == path
    assert path.read_bytes() == DATA
    assert len(hub.gets(VAE)) == requests


def test_wrong_bytes_once_are_fetched_again(hub: HubServer) -> None:
    hub.faults["latest_net_G.pth"].bodies = [OTHER]
    assert weights.obtain(weight()).read_bytes() == DATA
    assert len(hub.gets(VAE)) == 2


def test_wrong_bytes_are_deleted_and_named(hub: HubServer, home: Path) -> None:
    hub.add("someone/photos", COMMIT, VAE, OTHER)
    fallback = hub_source("else/where")
    hub.add("else/where", COMMIT, VAE, DATA)
    with pytest.raises(WeightsCorruptError) as caught:
        weights.obtain(weight(hub_source(), fallback))
    assert caught.value.exit_code == 8
    assert sha256(DATA) in str(caught.value)
    assert sha256(OTHER) in str(caught.value)
    assert "VAE_A_quality" in str(caught.value)
    assert "report" in caught.value.advice
    assert len(hub.gets(VAE)) == 2
    assert not [path for path in home.rglob("*") if path.is_file() and path.stat().st_size == len(OTHER)]
    assert weights.cached(weight()) is None


def test_cached_file_that_went_bad_is_fetched_again(hub: HubServer) -> None:
    file = weight()
    path = weights.obtain(file)
    path.resolve().write_bytes(OTHER)
    assert weights.cached(file) is None
    assert weights.obtain(file).read_bytes() == DATA
    path.resolve().write_bytes(OTHER)
    with pytest.raises(WeightsCorruptError, match=sha256(OTHER)):
        weights.obtain(file, offline=True)
    assert not path.exists()


@pytest.mark.parametrize("what", ["repository", "revision", "file"])
def test_absent_from_the_hub(hub: HubServer, what: str) -> None:
    source = {
        "repository": hub_source("no/body"),
        "revision": hub_source(revision="b" * 40),
        "file": hub_source(path="no.pth"),
    }[what]
    started = time.monotonic()
    with pytest.raises(WeightsUnavailableError) as caught:
        weights.obtain(weight(source))
    assert caught.value.exit_code == 7
    assert "404" in str(caught.value)
    assert len([request for request in hub.requests if request.path != "/"]) == 1  # an answer, not a fault: asked once
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 3
    for way_out in ("HF_ENDPOINT", "oldphoto weights import", "--model compact"):
        assert way_out in caught.value.advice


def test_unreachable_hub_is_said_at_once(nowhere: str) -> None:
    started = time.monotonic()
    with pytest.raises(WeightsUnavailableError, match=f"{nowhere}: unreachable"):
        weights.obtain(weight(hub_source(), hub_source("else/where")))
    assert time.monotonic() - started < 3


def test_silent_hub_is_left_after_the_connect_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(WeightsUnavailableError, match="timed out"):
            weights.obtain(weight(), connect_timeout=0.3)
        assert time.monotonic() - started < 3


def test_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "mirror")
    with pytest.raises(WeightsUnavailableError, match="unreachable"):
        weights.obtain(weight())


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    file = weight()
    offline = by == "argument"
    if by == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsUnavailableError, match="not cached"):
        weights.obtain(file, offline=offline)
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    path = weights.obtain(file)
    if by == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    assert weights.obtain(file, offline=offline) == path
    assert len(hub.requests) == asked


def test_cache_that_cannot_be_written(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    with pytest.raises(FileAccessError) as caught:
        weights.obtain(weight())
    assert caught.value.exit_code == ExitCode.FILE_ACCESS
    assert "HF_HOME" in caught.value.advice


TWO_AT_ONCE = """
import sys
from oldphoto import doctor, weights
source = weights.Source("hub", repo="someone/photos", revision=sys.argv[1], path=sys.argv[2])
file = weights.WeightFile("published", "old_vae", sys.argv[2], None, sys.argv[3], "MIT", "B", (source,))
print(weights.obtain(file))
"""


def test_two_processes_at_once_fetch_once(hub: HubServer) -> None:
    hub.faults["latest_net_G.pth"].chunk_bytes = 100_000
    hub.faults["latest_net_G.pth"].chunk_seconds = 0.3
    command = [sys.executable, "-W", "error", "-c", TWO_AT_ONCE, COMMIT, VAE, sha256(DATA)]
    both = [subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = [process.communicate(timeout=60)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert paths[0] == paths[1]
    assert Path(paths[0]).read_bytes() == DATA
    assert len(hub.gets(VAE)) == 1


def test_a_killed_run_leaves_nothing_that_is_used(hub: HubServer) -> None:
    hub.faults["latest_net_G.pth"].chunk_bytes = 50_000
    hub.faults["latest_net_G.pth"].chunk_seconds = 0.5
    command = [sys.executable, "-c", TWO_AT_ONCE, COMMIT, VAE, sha256(DATA)]
    process = subprocess.Popen(command, cwd=TOP)
    while not hub.gets(VAE):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert weights.cached(weight()) is None
    hub.faults.clear()
    assert weights.obtain(weight()).read_bytes() == DATA


# ---- other sources


def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            # Without the time of day, by which two archives of the same members would differ.
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def test_second_hub_where_the_first_fails(hub: HubServer) -> None:
    hub.add("else/where", COMMIT, "old_photo/vae.pth", DATA)
    file = weight(hub_source("no/body"), hub_source("else/where", path="old_photo/vae.pth"))
    path = weights.obtain(file)
    assert path.read_bytes() == DATA
    assert weights.cached(file) == path


@pytest.mark.parametrize("redirect", [False, True])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_one_member_of_a_remote_zip(
    monkeypatch: pytest.MonkeyPatch, home: Path, redirect: bool, compression: int
) -> None:
    monkeypatch.setattr(fetching, "RANGE_BYTES", 64 << 10)
    member = "checkpoints/restoration/VAE_A_quality/latest_net_G.pth"
    padding = random.Random(5).randbytes(4 << 20)
    with HubServer(redirect=redirect) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        url = hub.add_file("global.zip", zip_of({"a": padding, member: DATA, "b": padding}, compression))
        hub.faults["global.zip"].cut = [0]
        hub.faults["global.zip"].reset = [500]
        file = weight(hub_source(), Source("zip", url=url, member=member))
        seen: list[int] = []
        path = weights.obtain(file, progress=lambda file, done, total: seen.append(done))
        assert path == home / "oldphoto" / VAE
        assert path.read_bytes() == DATA
        assert seen[-1] == len(DATA)
        ranges = [re.fullmatch(r"bytes=(\d+)-(\d+)", request.range) for request in hub.gets("global.zip")]
        wanted = sum(int(found[2]) - int(found[1]) + 1 for found in ranges if found)
        assert wanted < 1 << 20  # of more than 8 MiB
        assert weights.obtain(file, offline=True) == path


def test_signed_address_that_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "RANGE_BYTES", 64 << 10)
    with HubServer(redirect=True) as hub:
        url = hub.add_file("global.zip", zip_of({"x": DATA}))
        remote = fetching._RemoteFile(url)
        hub.faults["global.zip"].get_status = [403]
        buffer = bytearray(100)
        assert remote.readinto(buffer) == 100
        assert bytes(buffer) == zip_of({"x": DATA})[:100]
        assert hub.faults["global.zip"].get_status == []


def test_remote_zip_that_is_of_no_use(hub: HubServer, home: Path) -> None:
    wrong = hub.add_file("wrong.zip", zip_of({"checkpoints/x": OTHER}))
    whole = hub.add_file("whole.zip", zip_of({"checkpoints/x": DATA}))
    broken = hub.add_file("broken.zip", DATA)
    hub.faults["whole.zip"].ignore_range = True
    for url, member in ((whole, "checkpoints/x"), (broken, "checkpoints/x"), (wrong, "checkpoints/y")):
        with pytest.raises(WeightsUnavailableError, match=url):
            weights.obtain(weight(Source("zip", url=url, member=member)))
    with pytest.raises(WeightsCorruptError, match=sha256(OTHER)):
        weights.obtain(weight(Source("zip", url=wrong, member="checkpoints/x")))
    assert not [path for path in (home / "oldphoto" / "Global").rglob("*") if path.is_file()]


def landmarks(url: str, packed: bytes) -> WeightFile:
    source = Source("bz2", url=url, bytes=len(packed), sha256=sha256(packed))
    return weight(source, net="landmarks_68", path=LANDMARKS)


def test_compressed_landmarks(hub: HubServer, home: Path) -> None:
    packed = bz2.compress(DATA)
    url = hub.add_file("landmarks.dat.bz2", packed)
    hub.faults["landmarks.dat.bz2"].cut = [100_000]
    hub.faults["landmarks.dat.bz2"].status = [503]
    seen: list[int] = []
    path = weights.obtain(landmarks(url, packed), progress=lambda file, done, total: seen.append(done))
    assert path == home / "oldphoto" / LANDMARKS
    assert path.read_bytes() == DATA
    assert [request.range for request in hub.gets("bz2")] == ["", "", "bytes=100000-"]
    assert seen[-1] == len(packed)
    assert [inner.name for inner in path.parent.iterdir()] == [path.name]


def test_a_plain_file_of_a_release(hub: HubServer, home: Path) -> None:
    url = hub.add_file("net.pth", DATA)
    hub.faults["net.pth"].cut = [100_000]
    file = weight(Source("file", url=url), net="rebuilder", path="Real-ESRGAN/net.pth")
    path = weights.obtain(file)
    assert path == home / "oldphoto" / "Real-ESRGAN" / "net.pth"
    assert path.read_bytes() == DATA
    assert [request.range for request in hub.gets("net.pth")] == ["", "bytes=100000-"]
    wrong = weight(Source("file", url=hub.add_file("other.pth", OTHER)), path="Real-ESRGAN/other.pth")
    with pytest.raises(WeightsCorruptError, match=sha256(OTHER)):
        weights.obtain(wrong)
    assert not (home / "oldphoto" / "Real-ESRGAN" / "other.pth").exists()


@pytest.mark.parametrize("left_over", [DATA[:1000], OTHER * 2])
def test_compressed_landmarks_after_a_killed_run(hub: HubServer, home: Path, left_over: bytes) -> None:
    packed = bz2.compress(DATA)
    part = home / "oldphoto" / (LANDMARKS + ".bz2.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(left_over)  # of some other version: what is put together from both is thrown away
    url = hub.add_file("landmarks.dat.bz2", packed)
    assert weights.obtain(landmarks(url, packed)).read_bytes() == DATA
    assert not part.exists()


def test_compressed_landmarks_from_a_server_that_ignores_range(hub: HubServer) -> None:
    packed = bz2.compress(DATA)
    url = hub.add_file("landmarks.dat.bz2", packed)
    hub.faults["landmarks.dat.bz2"].cut = [100_000]
    hub.faults["landmarks.dat.bz2"].ignore_range = True
    assert weights.obtain(landmarks(url, packed)).read_bytes() == DATA
    assert len(hub.gets("bz2")) == 2


def test_compressed_landmarks_that_are_wrong(hub: HubServer, home: Path) -> None:
    packed = bz2.compress(DATA)
    url = hub.add_file("landmarks.dat.bz2", bz2.compress(OTHER))
    with pytest.raises(WeightsCorruptError, match=sha256(packed)):
        weights.obtain(landmarks(url, packed))
    assert not [path for path in (home / "oldphoto").rglob("*bz2*") if path.is_file()]


def test_landmarks_from_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nowhere: str) -> None:
    package = tmp_path / "site" / "some_landmark_models"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('importing it is no use')")
    (package / "models" / "points.dat").write_bytes(DATA)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    source = Source("python", repo="some_landmark_models", path="models/points.dat")
    file = weight(source, net="landmarks_68", path=LANDMARKS)
    assert weights.obtain(file) == package / "models" / "points.dat"
    assert weights.remove([file]) == ()
    (package / "models" / "points.dat").write_bytes(OTHER)
    with pytest.raises(WeightsUnavailableError):
        weights.obtain(file)
    assert (package / "models" / "points.dat").exists()
    with pytest.raises(WeightsUnavailableError):
        weights.obtain(weight(replace(source, repo="no_such_package")))


# ---- a folder of the user's own


@pytest.mark.parametrize("name", [VAE, "old_vae.pth"])
def test_own_folder_goes_first(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / "own" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    monkeypatch.setenv("OLDPHOTO_WEIGHTS", str(tmp_path / "own"))
    assert weights.obtain(weight()) == path
    assert hub.requests == []
    path.write_bytes(OTHER)
    with pytest.raises(WeightsCorruptError, match=sha256(OTHER)):
        weights.obtain(weight())
    assert path.read_bytes() == OTHER
    path.unlink()
    assert weights.obtain(weight()).read_bytes() == DATA
    assert weights.remove([weight()])
    assert (tmp_path / "own").is_dir()


def test_without_a_home_all_is_had_that_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compact: WeightFile
) -> None:
    """As in a container that runs under a bare user number."""

    def nobody(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "old_vae.pth").write_bytes(DATA)
    assert weights.resolve("auto", nets_for, files=[weight(), compact]).name == "compact"
    assert weights.verify([weight()]) == {weight(): ()}
    assert weights.remove([weight()]) == ()
    with pytest.raises(WeightsUnavailableError, match="no home folder"):
        weights.obtain(weight())
    assert "no home folder" in doctor.folders()["cache"]
    monkeypatch.setenv("OLDPHOTO_WEIGHTS", str(tmp_path / "own"))
    assert weights.resolve("published", nets_for, files=[weight()]).files["old_vae"].read_bytes() == DATA


def test_own_folder_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLDPHOTO_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(WeightsUnavailableError, match="OLDPHOTO_WEIGHTS"):
        weights.cached(weight())


# ---- hashing, verifying, removing


def test_every_use_hashes_anew(hub: HubServer, home: Path) -> None:
    """Size and time can be forged, and so can any note of what was found before."""
    data = random.Random(6).randbytes(17 << 20)
    file = weight(hub_source(path="large.pth"), data=data, path="large.pth")
    hub.add("someone/photos", COMMIT, "large.pth", data)
    path = weights.obtain(file)
    before = path.stat()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.cached(file) is None
    (copy,) = weights.verify([file])[file]
    assert (copy.right, copy.place) == (False, "cache")
    assert [inner.name for inner in (home / "oldphoto").iterdir() if inner.name != "locks"] == ["large.pth"]


def test_verify_names_what_is_absent(hub: HubServer) -> None:
    assert weights.verify([weight()]) == {weight(): ()}


def test_remove(hub: HubServer, home: Path) -> None:
    file = weight()
    path = weights.obtain(file)
    link = in_hub_cache(home / "hub")
    removed = weights.remove([file])
    assert {(row.path, row.bytes) for row in removed} == {(path, len(DATA)), (link, len(DATA))}
    assert not [inner for inner in (home / "hub").rglob("blobs/*") if inner.is_file()]
    assert weights.cached(file) is None
    assert weights.remove([file]) == ()


def test_remove_follows_no_link_out_of_the_cache(home: Path, tmp_path: Path) -> None:
    original = tmp_path / "original.pth"
    original.write_bytes(DATA)
    link = home / "oldphoto" / VAE
    link.parent.mkdir(parents=True)
    link.symlink_to(original)
    assert weights.cached(weight()) == link
    weights.remove([weight()])
    assert not link.exists()
    assert original.read_bytes() == DATA


# ---- choosing a set


@pytest.fixture
def compact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightFile:
    monkeypatch.setattr(lock_of, "PACKAGE", tmp_path / "package")
    (tmp_path / "package" / "compact").mkdir(parents=True)
    (tmp_path / "package" / "compact" / "old_vae.safetensors").write_bytes(OTHER)
    return WeightFile("compact", "old_vae", "compact/old_vae.safetensors", len(OTHER), sha256(OTHER), "MIT", "own")


def nets_for(name: SetName) -> tuple[str, ...]:
    return ("old_vae",)


def test_auto_takes_published_where_it_can_be_had(hub: HubServer, compact: WeightFile) -> None:
    chosen = weights.resolve("auto", nets_for, files=[weight(), compact])
    assert (chosen.name, chosen.note) == ("published", None)
    assert chosen.files["old_vae"].read_bytes() == DATA
    hub.files.clear()
    assert weights.resolve("auto", nets_for, files=[weight(), compact], offline=True).name == "published"


def test_auto_falls_back_to_compact_and_says_so(nowhere: str, compact: WeightFile, tmp_path: Path) -> None:
    started = time.monotonic()
    chosen = weights.resolve("auto", nets_for, files=[weight(), compact])
    assert time.monotonic() - started < 3
    assert chosen.name == "compact"
    assert chosen.files == {"old_vae": tmp_path / "package" / compact.path}
    assert chosen.note is not None
    assert "compact" in chosen.note
    assert nowhere in chosen.note
    assert "\n" not in chosen.note


def test_auto_offline_falls_back_too(hub: HubServer, compact: WeightFile) -> None:
    assert weights.resolve("auto", nets_for, files=[weight(), compact], offline=True).name == "compact"
    assert hub.requests == []


def test_auto_does_not_hide_a_wrong_hash(hub: HubServer, compact: WeightFile) -> None:
    hub.add("someone/photos", COMMIT, VAE, OTHER)
    with pytest.raises(WeightsCorruptError):
        weights.resolve("auto", nets_for, files=[weight(), compact])


def test_named_sets_are_strict(nowhere: str, compact: WeightFile) -> None:
    with pytest.raises(WeightsUnavailableError):
        weights.resolve("published", nets_for, files=[weight(), compact])
    chosen = weights.resolve("compact", nets_for, files=[weight(), compact])
    assert (chosen.name, chosen.note) == ("compact", None)
    with pytest.raises(WeightsUnavailableError, match="landmarks_5"):
        weights.resolve("compact", lambda name: ("old_vae", "landmarks_5"), files=[weight(), compact])


def test_compact_file_that_is_wrong_or_absent(compact: WeightFile, tmp_path: Path) -> None:
    path = tmp_path / "package" / compact.path
    path.write_bytes(DATA)
    with pytest.raises(WeightsCorruptError, match=sha256(DATA)):
        weights.obtain(compact)
    assert weights.remove([compact]) == ()
    path.unlink()
    with pytest.raises(WeightsUnavailableError, match="missing"):
        weights.obtain(compact)


# ---- importing


PUBLISHED = (
    weight(),
    weight(
        data=OTHER, net="face_generator_256", path="Face_Enhancement/checkpoints/Setting_9_epoch_100/latest_net_G.pth"
    ),
    weight(data=DATA[:1000], net="landmarks_68", path=LANDMARKS),
)
GLOBAL_MEMBER = "checkpoints/restoration/VAE_A_quality/latest_net_G.pth"
FACE_MEMBER = "checkpoints/Setting_9_epoch_100/latest_net_G.pth"


def outcomes(rows: tuple[weights.Imported, ...]) -> dict[str, str]:
    return {row.member: row.outcome for row in rows}


@pytest.mark.parametrize("top", ["", "Global/", "Bringing-Old-Photos-Back-to-Life-master/Global/"])
def test_import_a_release_zip(tmp_path: Path, home: Path, top: str) -> None:
    archive = tmp_path / "global_checkpoints.zip"
    archive.write_bytes(zip_of({top + GLOBAL_MEMBER: DATA, top + "checkpoints/notes.txt": b"?", "other.pth": OTHER}))
    expected = {top + GLOBAL_MEMBER: "imported", top + "checkpoints/notes.txt": "unknown", "other.pth": "unknown"}
    assert outcomes(weights.import_archive(archive, PUBLISHED)) == expected
    path = weights.obtain(PUBLISHED[0], offline=True)
    assert path == home / "oldphoto" / VAE
    assert path.read_bytes() == DATA
    again = outcomes(weights.import_archive(archive, PUBLISHED))
    assert again == expected | {top + GLOBAL_MEMBER: "present"}


def test_import_a_folder_in_the_layout_of_the_reference(tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    for name, data in (
        (VAE, DATA),
        (PUBLISHED[1].path, OTHER),
        (LANDMARKS + ".bz2", bz2.compress(DATA[:1000])),
        ("run.py", b"#"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    rows = weights.import_archive(folder, PUBLISHED)
    assert outcomes(rows) == {
        VAE: "imported",
        PUBLISHED[1].path: "imported",
        LANDMARKS + ".bz2": "imported",
        "run.py": "unknown",
    }
    assert [weights.obtain(file, offline=True).read_bytes() for file in PUBLISHED] == [DATA, OTHER, DATA[:1000]]
    assert json.loads(json.dumps([asdict(row) for row in rows]))


def test_import_a_folder_of_zips(tmp_path: Path) -> None:
    (tmp_path / "down").mkdir()
    (tmp_path / "down" / "global_checkpoints.zip").write_bytes(zip_of({GLOBAL_MEMBER: DATA}))
    (tmp_path / "down" / "face_checkpoints.zip").write_bytes(zip_of({FACE_MEMBER: OTHER}))
    assert outcomes(weights.import_archive(tmp_path / "down", PUBLISHED)) == {
        f"face_checkpoints.zip/{FACE_MEMBER}": "imported",
        f"global_checkpoints.zip/{GLOBAL_MEMBER}": "imported",
    }


def test_import_verifies_each_member(tmp_path: Path, home: Path) -> None:
    damaged = bytearray(zip_of({GLOBAL_MEMBER: DATA}, zipfile.ZIP_STORED))
    damaged[1000] ^= 1
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.zip").write_bytes(zip_of({FACE_MEMBER: DATA}))
    (tmp_path / "in" / "b.zip").write_bytes(damaged)
    (tmp_path / "in" / (Path(LANDMARKS).name + ".bz2")).write_bytes(b"no bz2 at all")
    rows = weights.import_archive(tmp_path / "in", PUBLISHED)
    assert [row.outcome for row in rows] == ["wrong", "wrong", "wrong"]
    assert sha256(DATA) in rows[0].detail
    assert sha256(OTHER) in rows[0].detail
    assert "damaged" in rows[1].detail
    assert not [path for path in (home / "oldphoto").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_import_refuses_names_that_lead_out(tmp_path: Path, home: Path) -> None:
    names = [f"../../{GLOBAL_MEMBER}", f"/tmp/{GLOBAL_MEMBER}", f"C:/{GLOBAL_MEMBER}", f"x\\..\\{GLOBAL_MEMBER}"]
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as members:
        for name in names:
            members.writestr(name, DATA)
        link = zipfile.ZipInfo(f"link/{GLOBAL_MEMBER}")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        members.writestr(link, "/etc/passwd")
    rows = weights.import_archive(archive, PUBLISHED)
    assert [row.outcome for row in rows] == ["refused"] * 5
    assert all(row.detail for row in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.zip"]

    folder = tmp_path / "folder" / "checkpoints" / "restoration" / "VAE_A_quality"
    folder.mkdir(parents=True)
    (tmp_path / "outside.pth").write_bytes(DATA)
    (folder / "latest_net_G.pth").symlink_to(tmp_path / "outside.pth")
    assert [row.outcome for row in weights.import_archive(tmp_path / "folder", PUBLISHED)] == ["refused"]
    assert not home.exists()


def test_import_of_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(DATA)
    (tmp_path / "single.pth").write_bytes(DATA)
    for name in ("broken.zip", "single.pth", "absent.zip", "absent"):
        with pytest.raises(FileAccessError, match=name):
            weights.import_archive(tmp_path / name, PUBLISHED)


def test_importing_weights_loads_neither_torch_nor_the_hub() -> None:
    code = "import sys, oldphoto.weights; assert not {'torch', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=TOP, check=True)
