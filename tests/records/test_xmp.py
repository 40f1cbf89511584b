"""What an output says of itself, as exiftool and another XML reader see it, beside what the photo said before."""

from __future__ import annotations

import json
import shutil
import subprocess
import tracemalloc
import xml.etree.ElementTree as ET
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from oldphoto import __version__
from oldphoto.files.image import read_photo, write_photo
from oldphoto.files.photo import Photo
from oldphoto.options import Options
from oldphoto.pipeline import Restoration
from oldphoto.records.manifest import Setting
from oldphoto.records.xmp import ENHANCED, GENERATED, Step, merged
from oldphoto.runs import batch, planning
from oldphoto.stages.changes import ChangeUse

EXIFTOOL = shutil.which("exiftool")
STEP = Step("2026-01-31T12:00:00Z", "oldphoto 1", "weights <&> \u00fc")
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"

# As a cataloguing program may have left it: other prefixes, attributes, a comment, a history, a type of its own.
BEFORE = b"""<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Some Tool 7">
 <r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><!-- kept -->
  <r:Description r:about="uuid:1" xmlns:ext="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:mm="http://ns.adobe.com/xap/1.0/mm/"
    xmlns:e="http://ns.adobe.com/xap/1.0/sType/ResourceEvent#" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    ext:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/negativeFilm" xmp:Rating="4">
   <dc:title><r:Alt><r:li xml:lang="x-default">Gro\xc3\x9fmutter &amp; Gro\xc3\x9fvater</r:li></r:Alt></dc:title>
   <mm:History><r:Seq><r:li e:action="created" e:softwareAgent="Scanner 3"/></r:Seq></mm:History>
  </r:Description>
 </r:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def exiftool(path: Path) -> dict[str, Any]:
    assert EXIFTOOL is not None
    done = subprocess.run(
        [EXIFTOOL, "-j", "-n", "-struct", "-G1", "-XMP:all", "-validate", "-warning", "-a", str(path)],
        capture_output=True,
        check=True,
    )
    [facts] = json.loads(done.stdout)
    assert not [value for name, value in facts.items() if name.endswith(":Warning") and "XMP" in value]
    return dict(facts)


def types(packet: bytes) -> list[str | None]:
    """Every DigitalSourceType in a packet, by another reader than the one that wrote it."""
    root = ET.fromstring(packet.decode())
    elements = [element.text for element in root.iter(f"{IPTC}DigitalSourceType")]
    return elements + [
        e.attrib[f"{IPTC}DigitalSourceType"] for e in root.iter() if f"{IPTC}DigitalSourceType" in e.attrib
    ]


def photo(xmp: bytes | None = None) -> Photo:
    pixels = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
    return Photo(pixels).with_xmp(xmp)


def restored(tmp_path: Path, name: str, xmp: bytes | None, **facts: Any) -> tuple[Path, batch.Outcome]:
    """A file as the whole run writes it, with networks stood in for."""
    write_photo(photo(xmp), tmp_path / name)
    setting = Setting(Options(), "compact", {"mapping": "a" * 64}, provenance=facts.pop("provenance", True))
    plan = planning.plan([str(tmp_path / name)], str(tmp_path / "out/"))
    work = batch.Work(lambda photo, mask: Restoration(photo, **facts), setting)
    [outcome] = batch.run(plan.photos, lambda: work).outcomes
    assert outcome.error is None
    return tmp_path / "out" / name, outcome


# ---- the packet ----


def test_a_packet_is_made_where_there_is_none() -> None:
    packet = merged(None, ENHANCED, STEP)
    assert types(packet) == [ENHANCED]
    assert packet.startswith('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'.encode())
    assert packet.endswith(b'<?xpacket end="w"?>')


def test_what_was_there_stays() -> None:
    packet = merged(BEFORE, GENERATED, STEP)
    for kept in (b"<!-- kept -->", b'x:xmptk="Some Tool 7"', b'xmp:Rating="4"', "Großmutter &amp; Großvater".encode()):
        assert kept in packet
    assert types(packet) == [GENERATED]
    root = ET.fromstring(packet.decode())
    steps = root.findall(f".//{{http://ns.adobe.com/xap/1.0/mm/}}History/{RDF}Seq/{RDF}li")
    event = "{http://ns.adobe.com/xap/1.0/sType/ResourceEvent#}"
    assert steps[0].attrib == {f"{event}action": "created", f"{event}softwareAgent": "Scanner 3"}
    assert {child.tag.removeprefix(event): child.text for child in steps[1]} == {
        "action": "edited",
        "when": STEP.when,
        "softwareAgent": "oldphoto 1",
        "parameters": "weights <&> ü",
    }
    assert {e.attrib[f"{RDF}about"] for e in root.iter(f"{RDF}Description")} == {"uuid:1"}  # one resource, as before


def test_a_second_restoration_adds_one_step() -> None:
    once = merged(BEFORE, GENERATED, STEP)
    twice = merged(once, ENHANCED, STEP)
    assert types(twice) == [ENHANCED]
    assert twice.count(b"<stEvt:action>edited") == 2
    assert merged(None, ENHANCED, STEP).count(b"History>") == merged(
        merged(None, ENHANCED, STEP), ENHANCED, STEP
    ).count(b"History>")


@pytest.mark.parametrize(
    "packet", [b"no xml", b"<a>", b"<a/>", b"", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', b"\xff\xfe"]
)
def test_a_packet_that_cannot_be_read_is_refused(packet: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        merged(packet, ENHANCED, STEP)


@pytest.mark.parametrize("kind", ["deep", "wide", "attributes"])
def test_a_packet_of_too_many_elements_is_refused_soon(kind: str) -> None:
    more = {
        "deep": b"<a>" * 3000 + b"</a>" * 3000,
        "wide": b"<a/>" * 1_000_000,
        "attributes": b"<a " + b" ".join(b'b%d="c"' % k for k in range(60_000)) + b"/>",
    }[kind]
    packet = BEFORE.replace(b"</r:RDF>", more + b"</r:RDF>")
    assert packet != BEFORE
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="too many elements"):
            merged(packet, ENHANCED, STEP)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    spaced = BEFORE.replace(b"</r:RDF>", b" " * 2_000_000 + b"</r:RDF>")
    assert types(merged(spaced, ENHANCED, STEP)) == [ENHANCED]


def test_padding_and_utf16_are_read() -> None:
    text = BEFORE.decode().replace("\ufeff", "")
    assert types(merged(BEFORE + b"\n" * 2000 + b"\0", ENHANCED, STEP)) == [ENHANCED]
    body = text[text.index("<x:") : text.index("<?xpacket end")]
    assert types(merged(body.encode("utf-16"), ENHANCED, STEP)) == [ENHANCED]


# ---- the files ----


@pytest.mark.skipif(EXIFTOOL is None, reason="exiftool is not installed")
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("before", [None, BEFORE], ids=["new", "merged"])
def test_every_format_says_what_was_done(tmp_path: Path, name: str, before: bytes | None) -> None:
    path, outcome = restored(tmp_path, name, before)
    facts = exiftool(path)
    assert facts["XMP-iptcExt:DigitalSourceType"] == ENHANCED == outcome.record["source_type"]
    history = facts["XMP-xmpMM:History"]
    assert len(history) == (1 if before is None else 2)
    assert history[-1]["Action"] == "edited"
    assert history[-1]["SoftwareAgent"] == f"oldphoto {__version__}"
    assert "compact weights in fp32: mapping sha256 " + "a" * 64 in history[-1]["Parameters"]
    assert '"with_scratch": false' in history[-1]["Parameters"]
    if before is not None:
        assert facts["XMP-dc:Title"] == "Großmutter & Großvater"
        assert facts["XMP-xmp:Rating"] == 4
        assert history[0] == {"Action": "created", "SoftwareAgent": "Scanner 3"}
    assert outcome.record["warnings"] == []


HOLES = np.zeros((16, 24), bool)
FACE = SimpleNamespace(
    box=(0.0, 0.0, 8.0, 8.0),
    score=1.0,
    after=np.zeros((1, 1, 3), np.float32),
    number=1,
    kept=ChangeUse((1.0, 1.0, 1.0, 1.0)),
)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, ENHANCED),
        ({"generated": True}, GENERATED),
    ],
)
def test_generated_is_said_where_something_was(tmp_path: Path, facts: dict[str, Any], expected: str) -> None:
    path, outcome = restored(tmp_path, "a.png", None, **facts)
    assert outcome.record["source_type"] == expected
    assert types(read_photo(path).metadata.xmp or b"") == [expected]


def test_it_can_be_left_out(tmp_path: Path) -> None:
    assert read_photo(restored(tmp_path, "a.png", BEFORE, provenance=False)[0]).metadata.xmp == BEFORE
    path, _ = restored(tmp_path, "b.png", None, provenance=False)
    assert read_photo(path).metadata.xmp is None


@pytest.mark.parametrize(
    ("name", "packet"),
    [("a.png", b"<broken"), ("a.jpg", BEFORE.replace(b"kept", b"k" * 64000))],
    ids=["broken", "full"],
)
def test_a_packet_that_cannot_be_added_to_stays_as_it_is(tmp_path: Path, name: str, packet: bytes) -> None:
    path, outcome = restored(tmp_path, name, packet)
    assert read_photo(path).metadata.xmp == packet
    assert "XMP stays as it was" in outcome.record["warnings"][0]


def test_formats_without_xmp_are_written_without(tmp_path: Path) -> None:
    path, outcome = restored(tmp_path, "a.bmp", None)
    assert (read_photo(BytesIO(path.read_bytes()).getvalue()).metadata.xmp, outcome.record["warnings"]) == (None, [])
