"""Weight files from the network: hubs, members of remote zips, and single files, into our cache."""

from __future__ import annotations

import bz2
import errno
import hashlib
import io
import os
import ssl
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from oldphoto.errors import FileAccessError, OldphotoError, WeightsUnavailableError
from oldphoto.machine.disk import sync
from oldphoto.weights.cache import DISK_ADVICE, DISK_ERRORS, cache_folder
from oldphoto.weights.lock import CNN_DETECTOR, Progress, Source, WeightFile, corrupt, hash_of, one_line

# No stream is read beyond this; the largest published file has 452 MB.
LARGEST_BYTES = 2 << 30
TRIES = 4
PAUSE_SECONDS = 0.5  # doubles with each further try
READ_TIMEOUT_SECONDS = 30.0
# A body that comes more slowly, after that time, will not be waited for: a byte now and then resets every timeout.
SLOWEST_BYTES_PER_SECOND = 1000
CONNECT_TIMEOUT_SECONDS = 15.0
CHUNK_BYTES = 1 << 20
RANGE_BYTES = 4 << 20


T = TypeVar("T")


def fetch(file: WeightFile, progress: Progress | None, connect_timeout: float) -> Path:
    """Fetch a file from the first of its sources that has it. Raises as `obtain` does."""
    report = progress or (lambda file, done, total: None)
    answers: dict[str, str | None] = {}
    reasons: dict[str, None] = {}  # an ordered set
    for source in file.sources:
        if source.kind == "python":
            continue  # installed by the user or not at all
        try:
            host = _host(source)
            if host not in answers:
                answers[host] = _unreachable(host, connect_timeout)
            if (silent := answers[host]) is not None:
                reasons[f"{host}: {silent}"] = None
                continue
            return _FETCH[source.kind](file, source, report)
        except OldphotoError:
            raise
        except Exception as error:  # an address that is none, and whatever the transport raises
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise FileAccessError(f"cannot store {file.path}: {error}", DISK_ADVICE) from error
            reasons[f"{source.name}: {one_line(error)}"] = None
    raise WeightsUnavailableError(
        f"cannot fetch {file.path} ({'; '.join(reasons) or 'no source'})",
        f"set HF_ENDPOINT to a mirror, bring the files with `oldphoto weights import`, or use {instead_of(file)}",
    )


def instead_of(file: WeightFile) -> str:
    """Return what does without a published file."""
    return "`--face-detector hog`" if file.net == CNN_DETECTOR else "`--model compact`"


def _endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _host(source: Source) -> str:
    parts = urlsplit(_endpoint() if source.kind == "hub" else source.url)
    return f"{parts.scheme}://{parts.netloc}"


def _unreachable(host: str, timeout: float) -> str | None:
    """Why a host can't be reached, or None where it answers anything at all.

    Asked first, so that a host that is silent is not asked again for each file and each try.
    """
    try:
        request = urllib.request.Request(host + "/", method="HEAD", headers={"User-Agent": "oldphoto"})
        with _urlopen(request, timeout):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return None
    except urllib.error.URLError as error:
        return f"unreachable ({error.reason})"
    except (OSError, HTTPException, ValueError) as error:
        return f"unreachable ({one_line(error)})"


def _urlopen(request: urllib.request.Request, timeout: float) -> HTTPResponse:
    response: HTTPResponse = urllib.request.urlopen(request, timeout=timeout, context=_tls())
    return response


@cache
def _tls() -> ssl.SSLContext:
    """Return the context that trusts the certificates that this system trusts: Python's own default finds none on
    some."""
    import truststore

    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _patiently(step: Callable[[], T]) -> T:
    """Try a step again after a failure that may pass."""
    for attempt in range(1, TRIES):
        try:
            return step()
        except Exception as error:  # whatever the transport raises
            if _final(error):
                raise
            time.sleep(PAUSE_SECONDS * 2**attempt)
    return step()


def _final(error: Exception) -> bool:
    """Whether the same question would get the same answer: a 4xx, a disk that is full, bytes that cannot be right."""
    if isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500:
        return error.code not in (408, 429)
    return isinstance(error, FileNotFoundError | OldphotoError) or (
        isinstance(error, OSError) and error.errno in DISK_ERRORS
    )


def _fetch_hub(file: WeightFile, source: Source, report: Progress) -> Path:
    # Not hf_hub_download, which names what it stores by the server's ETag, a path maybe, before anybody has hashed it.
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(source.repo, source.path, revision=source.revision, endpoint=_endpoint())
    target = cache_folder() / file.path
    # Every file is public: a token goes out only where the user set one in so many words.
    token = os.environ.get("HF_TOKEN") or ""
    _download(url, target, file, file.hashes, file.bytes, lambda done: report(file, done, file.bytes), token)
    return target


def _fetch_zip(file: WeightFile, source: Source, report: Progress) -> Path:
    """One member of a remote zip, of which only that member's bytes and the directory are read."""
    with (
        io.BufferedReader(_RemoteFile(source.url), RANGE_BYTES) as remote,
        zipfile.ZipFile(remote) as archive,
        archive.open(source.member) as member,
    ):
        return store(file, member, report)


def _fetch_bz2(file: WeightFile, source: Source, report: Progress) -> Path:
    archive = cache_folder() / f"{file.path}.bz2"
    _download(source.url, archive, file, (source.sha256,), source.bytes, lambda done: report(file, done, source.bytes))
    with bz2.open(archive) as stream:
        path = store(file, stream, lambda file, done, total: None)
    archive.unlink()
    return path


def _fetch_file(file: WeightFile, source: Source, report: Progress) -> Path:
    target = cache_folder() / file.path
    _download(source.url, target, file, file.hashes, file.bytes, lambda done: report(file, done, file.bytes))
    return target


_FETCH: dict[str, Callable[[WeightFile, Source, Progress], Path]] = {
    "hub": _fetch_hub,
    "zip": _fetch_zip,
    "bz2": _fetch_bz2,
    "file": _fetch_file,
}


def store(file: WeightFile, stream: IO[bytes], report: Progress) -> Path:
    """Copy a stream into our cache, hash it on the way, and move it into place if it is the file it should be."""
    target = cache_folder() / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    digest, done = hashlib.sha256(), 0
    most = _most(file.bytes)
    try:
        with part.open("wb") as output:
            while done <= most and (chunk := stream.read(CHUNK_BYTES)):
                output.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                report(file, done, file.bytes)
            sync(output)
        if digest.hexdigest() not in file.hashes:
            raise corrupt(file, target, digest.hexdigest(), "it was deleted; bring it from another source")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _most(size: int | None) -> int:
    """The most bytes that are taken for a file: its size, or where nobody publishes it, more than any has."""
    return LARGEST_BYTES if size is None else size


def _open(url: str, start: int, end: int | None, token: str = "") -> HTTPResponse:
    """GET from byte `start` up to, not including, `end`. The server may answer 200 and send everything."""
    headers = {"User-Agent": "oldphoto", "Accept-Encoding": "identity"}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    request = urllib.request.Request(url, headers=headers)
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        return _urlopen(request, READ_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        raise


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """The body of an answer, in the pieces in which it comes. Raises ConnectionError where it comes too slowly."""
    started, have = time.monotonic(), 0
    while chunk := response.read1(CHUNK_BYTES):
        yield chunk
        have += len(chunk)
        waited = time.monotonic() - started
        if waited > READ_TIMEOUT_SECONDS and have < waited * SLOWEST_BYTES_PER_SECOND:
            raise ConnectionError(f"too slow: {have} bytes in {waited:.0f} seconds")


def _download(
    url: str,
    target: Path,
    file: WeightFile,
    hashes: Sequence[str],
    size: int | None,
    report: Callable[[int], None],
    token: str = "",
) -> None:
    """Fetch a URL to `target`, a file of ours, which takes its name once its sha256 is one of `hashes`.

    What a cut or a killed run left in the .part file is kept and gone on from. size: no more bytes are taken.
    Raises WeightsCorruptError for wrong bytes, which are fetched twice, and what the transport raises.
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    most = _most(size)

    def go_on() -> None:
        have = part.stat().st_size if part.exists() else 0
        try:
            response = _open(url, have, None, token)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                return  # nothing is left to send: the hash decides
            raise
        with response, part.open("ab") as output:
            if response.status != 206:
                output.truncate(have := 0)
            for chunk in _chunks(response):
                output.write(chunk[: most + 1 - have])
                have += len(chunk)
                report(min(have, most))
                if have > most:
                    return  # it is not the file: the hash says so
            if response.length:  # bytes that were promised and did not come
                raise ConnectionError(f"cut after {have} bytes")

    for _ in range(2):
        _patiently(go_on)
        found = hash_of(part)
        if found in hashes:
            part.replace(target)
            return
        part.unlink()
    advice = "it was deleted; try another HF_ENDPOINT, or `oldphoto weights import`"
    raise corrupt(file, url, found, advice, expected=hashes[0])


class _RemoteFile(io.RawIOBase):
    """A file on a server, read by HTTP ranges."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.place = url  # where the redirects of `url` led last: saves asking for each range
        self.position = 0
        self.size = 0
        self.size = _patiently(self._ask_size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "seek before the start")  # what zipfile expects of a short file
        self.position = start + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        end = min(self.position + len(buffer), self.size)
        if end <= self.position:
            return 0
        data, _ = _patiently(lambda: self._read(self.position, end))
        buffer[: len(data)] = data
        self.position = end
        return len(data)

    def _ask_size(self) -> int:
        _, content_range = self._read(0, 1)
        return int(content_range.rpartition("/")[2])

    def _read(self, start: int, end: int) -> tuple[bytes, str]:
        place, self.place = self.place, self.url
        try:
            response = _open(place, start, end)
        except urllib.error.HTTPError as error:
            if place == self.url:
                raise
            raise ConnectionError("the signed address ran out") from error  # the next try asks for a new one
        with response:
            if response.status != 206:
                raise FileNotFoundError(f"{self.url} can't be read in part")
            data = b""
            for chunk in _chunks(response):
                data += chunk
                if len(data) >= end - start:
                    break
            if len(data) != end - start:
                raise ConnectionError(f"cut after {len(data)} bytes")
            self.place = response.geturl()
            return data, response.headers["Content-Range"]
