"""A manifest as PREMIS 3, and as the content of a bag."""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import bagit
import pytest
from typer.testing import CliRunner

from oldphoto import cli
from oldphoto.errors import NoInputError
from oldphoto.records import manifest
from oldphoto.records.manifest import Manifest
from oldphoto.records.premis import premis
from oldphoto.runs import batch
from oldphoto.runs.planning import Beside
from tests.runs.test_resume import draw, make_plan, negative, setting

NS = {"p": "http://www.loc.gov/premis/v3"}

# The parts of each element that occur here, in the order of the Library of Congress' schema, * where optional. The
# schema itself is no part of any package; the export was validated against premis-v3-0.xsd when it was written.
ORDER = {
    "premis": "object event* agent*",
    "object": "objectIdentifier objectCharacteristics originalName* storage* relationship*",
    "objectIdentifier": "objectIdentifierType objectIdentifierValue",
    "objectCharacteristics": "fixity* size* format",
    "fixity": "messageDigestAlgorithm messageDigest",
    "format": "formatDesignation",
    "formatDesignation": "formatName",
    "storage": "contentLocation",
    "contentLocation": "contentLocationType contentLocationValue",
    "relationship": "relationshipType relationshipSubType relatedObjectIdentifier relatedEventIdentifier*",
    "relatedObjectIdentifier": "relatedObjectIdentifierType relatedObjectIdentifierValue",
    "relatedEventIdentifier": "relatedEventIdentifierType relatedEventIdentifierValue",
    "event": "eventIdentifier eventType eventDateTime eventDetailInformation* eventOutcomeInformation* "
    "linkingAgentIdentifier* linkingObjectIdentifier*",
    "eventIdentifier": "eventIdentifierType eventIdentifierValue",
    "eventDetailInformation": "eventDetail",
    "eventOutcomeInformation": "eventOutcome eventOutcomeDetail*",
    "eventOutcomeDetail": "eventOutcomeDetailNote",
    "linkingAgentIdentifier": "linkingAgentIdentifierType linkingAgentIdentifierValue",
    "linkingObjectIdentifier": "linkingObjectIdentifierType linkingObjectIdentifierValue linkingObjectRole*",
    "agent": "agentIdentifier agentName* agentType* agentVersion* agentNote*",
    "agentIdentifier": "agentIdentifierType agentIdentifierValue",
}


def check(element: ET.Element) -> None:
    """Raise AssertionError where an element has other parts than PREMIS says, or in another order."""
    name = element.tag.removeprefix(f"{{{NS['p']}}}")
    parts = [child.tag.removeprefix(f"{{{NS['p']}}}") for child in element]
    if name not in ORDER:
        assert (parts, bool(element.text)) == ([], True), name
        return
    known = [part.rstrip("*") for part in ORDER[name].split()]
    assert parts == sorted(parts, key=known.index), name
    assert {part for part in ORDER[name].split() if not part.endswith("*")} <= set(parts), name
    for child in element:
        check(child)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The manifest of a run of four photos, of which one failed."""
    for name in ("a.png", "b & <c>.png", "d.png"):
        draw(tmp_path / "in" / name)
        draw(tmp_path / "masks" / name)
    (tmp_path / "in/bad\x1b.png").write_bytes(b"no photo")
    (tmp_path / "masks/bad\x1b.png").write_bytes(b"no mask")
    plan = make_plan(tmp_path, masks=tmp_path / "masks", beside=Beside(save_masks=tmp_path / "out/masks"))
    with Manifest(tmp_path / "out/run.jsonl") as kept:
        batch.run(plan.photos, lambda: batch.Work(negative, setting()), keep=kept.append)
    return tmp_path / "out/run.jsonl"


def texts(root: ET.Element, path: str) -> list[str | None]:
    return [element.text for element in root.findall(path, NS)]


def test_the_export_is_premis(log: Path) -> None:
    done = CliRunner().invoke(cli.app, ["premis", str(log)])
    assert done.exit_code == 0, done.stderr
    root = ET.fromstring(done.stdout_bytes)
    check(root)
    assert root.get("version") == "3.0"
    assert len(root.findall("p:object", NS)) == 3 * 4 + 1  # photo, mask, output and saved mask; and the bad one
    assert texts(root, "p:event/p:eventOutcomeInformation/p:eventOutcome") == [
        "success",
        "success",
        "failure",
        "success",
    ]
    assert "BadImageError" in str(texts(root, "p:event//p:eventOutcomeDetailNote"))
    assert texts(root, "p:agent/p:agentName") == ["oldphoto", "oldphoto compact weights"]
    assert f"mapping sha256 {'a' * 64}" in texts(root, "p:agent/p:agentNote")


def test_outputs_lead_to_their_inputs(log: Path) -> None:
    root = ET.fromstring(premis(manifest.read(log)))
    objects = {
        item.findtext("p:objectIdentifier/p:objectIdentifierValue", "", NS): item
        for item in root.findall("p:object", NS)
    }
    by_place = {
        item.findtext("p:storage/p:contentLocation/p:contentLocationValue", "", NS): item for item in objects.values()
    }
    output = by_place[(log.parent / "a.png").as_uri()]
    digest = hashlib.sha256((log.parent / "a.png").read_bytes()).hexdigest()
    assert output.findtext(".//p:messageDigest", "", NS) == digest
    sources = [
        objects[str(text)]
        for text in texts(output, "p:relationship/p:relatedObjectIdentifier/p:relatedObjectIdentifierValue")
    ]
    places = [source.findtext("p:storage/p:contentLocation/p:contentLocationValue", "", NS) for source in sources]
    folder = log.parent.parent
    assert places == [(folder / "in/a.png").as_uri(), (folder / "masks/a.png").as_uri()]
    events = set(texts(root, "p:event/p:eventIdentifier/p:eventIdentifierValue"))
    assert set(texts(root, "p:object/p:relationship/p:relatedEventIdentifier/p:relatedEventIdentifierValue")) <= events
    agents = set(texts(root, "p:agent/p:agentIdentifier/p:agentIdentifierValue"))
    assert set(texts(root, "p:event/p:linkingAgentIdentifier/p:linkingAgentIdentifierValue")) == agents
    linked = texts(root, "p:event/p:linkingObjectIdentifier/p:linkingObjectIdentifierValue")
    assert set(linked) == set(objects)


def test_exporting_twice_gives_the_same(log: Path) -> None:
    records = manifest.read(log)
    assert premis(records) == premis(records)
    assert len(ET.fromstring(premis([*records, *records])).findall("p:object", NS)) == 13


def test_nothing_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(NoInputError):
        premis([])


def test_outputs_and_manifest_make_a_bag(log: Path) -> None:
    bag: Any = bagit.make_bag(str(log.parent), {"Source-Organization": "an archive"}, checksums=["sha256"])
    assert bag.is_valid()
    inside = log.parent / "data/run.jsonl"
    said = CliRunner().invoke(cli.app, ["verify", str(inside)])
    assert (said.exit_code, said.stdout) == (0, "3 photos verified, 0 changed\n")
    digests = {path: hashes["sha256"] for path, hashes in bag.payload_entries().items()}
    for record in manifest.read(inside):
        if record["status"] == "restored":
            place = Path(record["output"]["path"]).relative_to(log.parent)
            assert digests[place.as_posix()] == record["output"]["sha256"]
