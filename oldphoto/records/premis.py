"""A manifest as PREMIS 3: each file an object, each restoration an event, the software and its weights agents."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from uuid import NAMESPACE_URL, UUID, uuid5

from oldphoto.errors import NoInputError
from oldphoto.records.manifest import FileFacts, ModelFacts, Record, absolute

NAMESPACE = "http://www.loc.gov/premis/v3"
_XSI = "http://www.w3.org/2001/XMLSchema-instance"
_SCHEMA = f"{NAMESPACE} http://www.loc.gov/standards/premis/v3/premis.xsd"


def premis(records: Iterable[Record]) -> bytes:
    """An XML document with every run of every photo, the failed ones too. Raises NoInputError where there is none.

    The identifiers are UUIDs made from paths, hashes and times: exporting twice gives the same document.
    """
    objects: dict[UUID, ET.Element] = {}
    events: dict[UUID, ET.Element] = {}
    agents: dict[UUID, ET.Element] = {}
    for record in records:
        event = _named(f"{_uri(record['output'])}#{record['time']}")
        sources = [_object(objects, facts) for facts in (record["input"], record["mask"]) if facts is not None]
        results = [
            _object(objects, facts, sources, event)
            for facts in (record["output"], record["saved_mask"])
            if facts is not None and facts["sha256"] is not None
        ]
        makers = [_software(agents, record["versions"])]
        if record["model"] is not None:
            makers.append(_weights(agents, record["model"]))
        events[event] = _event(record, event, makers, sources, results)
    if not objects:
        raise NoInputError("there is nothing in this manifest", "give one that a run has written to")
    ET.register_namespace("premis", NAMESPACE)
    ET.register_namespace("xsi", _XSI)
    root = ET.Element(_tag("premis"), {"version": "3.0", f"{{{_XSI}}}schemaLocation": _SCHEMA})
    root.extend([*objects.values(), *events.values(), *agents.values()])
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="UTF-8", xml_declaration=True)
    return document + b"\n"


def _named(name: str) -> UUID:
    """The identifier of what has this name, the same each time."""
    return uuid5(NAMESPACE_URL, name.encode(errors="backslashreplace").decode())


def _tag(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


def _add(parent: ET.Element, path: str, text: str | None = None) -> ET.Element:
    """Put elements of these names, one in the other, into a parent; gives the innermost."""
    for name in path.split("/"):
        parent = ET.SubElement(parent, _tag(name))
    parent.text = None if text is None else _printable(text)
    return parent


def _identifier(parent: ET.Element, name: str, identifier: UUID, *roles: str, role_name: str = "") -> None:
    outer = _add(parent, name)
    _add(outer, f"{name}Type", "UUID")
    _add(outer, f"{name}Value", str(identifier))
    for role in roles:
        _add(outer, role_name, role)


def _uri(facts: FileFacts) -> str:
    return absolute(facts["path"]).as_uri()  # bytes that are no UTF-8 become percent signs


def _object(
    objects: dict[UUID, ET.Element], facts: FileFacts, sources: Iterable[UUID] = (), event: UUID | None = None
) -> UUID:
    """A file as it was; a file whose content changes is another object."""
    identifier = _named(f"{_uri(facts)}#{facts['sha256']}")
    item = ET.Element(_tag("object"), {f"{{{_XSI}}}type": "premis:file"})
    _identifier(item, "objectIdentifier", identifier)
    characteristics = _add(item, "objectCharacteristics")
    if facts["sha256"] is not None:
        fixity = _add(characteristics, "fixity")
        _add(fixity, "messageDigestAlgorithm", "SHA-256")
        _add(fixity, "messageDigest", facts["sha256"])
        _add(characteristics, "size", str(facts["bytes"]))
    _add(characteristics, "format/formatDesignation/formatName", facts.get("format") or "unknown")
    _add(item, "originalName", Path(facts["path"]).name)
    location = _add(item, "storage/contentLocation")
    _add(location, "contentLocationType", "URI")
    _add(location, "contentLocationValue", _uri(facts))
    for source in sources:
        relationship = _add(item, "relationship")
        _add(relationship, "relationshipType", "derivation")
        _add(relationship, "relationshipSubType", "has source")
        _identifier(relationship, "relatedObjectIdentifier", source)
        if event is not None:
            _identifier(relationship, "relatedEventIdentifier", event)
    # What was made is described more fully than the same file as the source of something else.
    if identifier not in objects or event is not None:
        objects[identifier] = item
    return identifier


def _event(
    record: Record, identifier: UUID, makers: Iterable[UUID], sources: Iterable[UUID], results: Iterable[UUID]
) -> ET.Element:
    item = ET.Element(_tag("event"))
    _identifier(item, "eventIdentifier", identifier)
    _add(item, "eventType", "modification")
    _add(item, "eventDateTime", record["time"])
    details = {name: record[name] for name in ("options", "mask_share", "faces", "source_type")}
    _add(item, "eventDetailInformation/eventDetail", f"photo restoration: {json.dumps(details)}")
    outcome = _add(item, "eventOutcomeInformation")
    _add(outcome, "eventOutcome", "success" if record["error"] is None else "failure")
    error = [] if record["error"] is None else [f"{record['error']['kind']}: {record['error']['message']}"]
    for note in (*error, *record["warnings"]):
        _add(outcome, "eventOutcomeDetail/eventOutcomeDetailNote", note)
    for maker in makers:
        _identifier(item, "linkingAgentIdentifier", maker)
    for role, linked in (("source", sources), ("outcome", results)):
        for one in linked:
            _identifier(item, "linkingObjectIdentifier", one, role, role_name="linkingObjectRole")
    return item


def _software(agents: dict[UUID, ET.Element], versions: dict[str, str]) -> UUID:
    others = ", ".join(f"{name} {number}" for name, number in versions.items() if name != "oldphoto")
    return _agent(agents, "oldphoto", versions["oldphoto"], [others])


def _weights(agents: dict[UUID, ET.Element], model: ModelFacts) -> UUID:
    notes = [f"{net} sha256 {sha256}" for net, sha256 in model["weights"].items()]
    return _agent(agents, f"oldphoto {model['set']} weights", None, [*notes, f"computed in {model['precision']}"])


def _agent(agents: dict[UUID, ET.Element], name: str, version: str | None, notes: list[str]) -> UUID:
    identifier = _named("\n".join((name, version or "", *notes)))
    item = ET.Element(_tag("agent"))
    _identifier(item, "agentIdentifier", identifier)
    _add(item, "agentName", name)
    _add(item, "agentType", "software")
    if version is not None:
        _add(item, "agentVersion", version)
    for note in notes:
        _add(item, "agentNote", note)
    agents[identifier] = item
    return identifier


def _printable(text: str) -> str:
    """Text that XML can hold: no control characters, no bytes that were no UTF-8."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )
