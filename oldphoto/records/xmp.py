"""Write into an output's XMP what was done to it: XMP that names the software and its weights, and how far the picture
was made up.

The packet that the photo came with is kept and added to, element by element: nothing in it is written anew but what is
ours. minidom, and not ElementTree, since it keeps prefixes and comments as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.dom import minidom
from xml.parsers.expat import ExpatError, ParserCreate

# IPTC NewsCodes: generative fill of holes or faces; or a photo that was merely made better.
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
ENHANCED = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced"

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMLNS = "http://www.w3.org/2000/xmlns/"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_MM = "http://ns.adobe.com/xap/1.0/mm/"
_EVENT = "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"

# A tree takes some 400 bytes for each element or attribute, and minidom goes down it by recursion.
_MOST_NODES, _DEEPEST = 50_000, 200

_HEAD = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_TAIL = '\n<?xpacket end="w"?>'
_EMPTY = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"/></x:xmpmeta>'


@dataclass(frozen=True)
class Step:
    """One entry of a photo's history. when: ISO 8601. agent: the software and its version. parameters: in words."""

    when: str
    agent: str
    parameters: str


def merged(packet: bytes | None, source_type: str, step: Step) -> bytes:
    """An XMP packet with the DigitalSourceType set and a step added to the history, and all else as it was.

    Raises ValueError if the packet cannot be read.
    """
    document = _parsed(packet)
    rdf = _only(document, _RDF, "RDF")
    ours = _description(document, rdf)
    for description in list(_elements(rdf, _RDF, "Description")):
        if description.hasAttributeNS(_IPTC, "DigitalSourceType"):
            description.removeAttributeNS(_IPTC, "DigitalSourceType")
        for old in list(_elements(description, _IPTC, "DigitalSourceType")):
            description.removeChild(old)
    _add(ours, "Iptc4xmpExt", _IPTC, "DigitalSourceType", source_type)
    entry = _add(_history(rdf, ours), "rdf", _RDF, "li")
    entry.setAttributeNS(_RDF, "rdf:parseType", "Resource")
    _declare(entry, "rdf", _RDF)  # the packet may have another prefix for it
    _declare(entry, "stEvt", _EVENT)
    changes = {"action": "edited", "when": step.when, "softwareAgent": step.agent, "parameters": step.parameters}
    for name, value in changes.items():
        _add(entry, "stEvt", _EVENT, name, value)
    root = document.documentElement
    assert root is not None
    return f"{_HEAD}{root.toxml()}{_TAIL}".encode()


def _parsed(packet: bytes | None) -> minidom.Document:
    if packet is None:
        return minidom.parseString(_EMPTY)
    text = packet.decode("utf-16" if packet[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig").strip("\0 \t\r\n")
    if "<!DOCTYPE" in text:
        raise ValueError("it has a document type, which XMP has not")
    try:
        _refuse_bomb(text)
        return minidom.parseString(text)
    except ExpatError as error:
        raise ValueError(str(error)) from error


def _refuse_bomb(text: str) -> None:
    """Raise ValueError for a packet of more or deeper elements than a tree of them is to be made of."""
    parser = ParserCreate()
    depth = nodes = 0

    def start(_: str, attributes: dict[str, str]) -> None:
        nonlocal depth, nodes
        depth += 1
        nodes += 1 + len(attributes)
        if depth > _DEEPEST or nodes > _MOST_NODES:
            raise ValueError("it has too many elements, or too deep ones")

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.Parse(text, True)


def _only(document: minidom.Document, space: str, name: str) -> minidom.Element:
    found = document.getElementsByTagNameNS(space, name)
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} elements {name}, not 1")
    return found[0]


def _elements(parent: minidom.Element, space: str, name: str) -> Iterator[minidom.Element]:
    for child in parent.childNodes:
        if isinstance(child, minidom.Element) and (child.namespaceURI, child.localName) == (space, name):
            yield child


def _description(document: minidom.Document, rdf: minidom.Element) -> minidom.Element:
    """A new description of the resource that the others describe, with our namespaces."""
    first = next(_elements(rdf, _RDF, "Description"), None)
    about = "" if first is None else first.getAttributeNS(_RDF, "about") or first.getAttribute("about")
    ours = document.createElementNS(_RDF, "rdf:Description")
    _declare(ours, "Iptc4xmpExt", _IPTC)
    _declare(ours, "xmpMM", _MM)
    _declare(ours, "rdf", _RDF)
    ours.setAttributeNS(_RDF, "rdf:about", about)
    rdf.appendChild(ours)
    return ours


def _history(rdf: minidom.Element, ours: minidom.Element) -> minidom.Element:
    """The sequence of past steps: the one that is there, or a new one."""
    for description in _elements(rdf, _RDF, "Description"):
        for history in _elements(description, _MM, "History"):
            for steps in _elements(history, _RDF, "Seq"):
                return steps
    return _add(_add(ours, "xmpMM", _MM, "History"), "rdf", _RDF, "Seq")


def _declare(element: minidom.Element, prefix: str, space: str) -> None:
    element.setAttributeNS(_XMLNS, f"xmlns:{prefix}", space)


def _add(parent: minidom.Element, prefix: str, space: str, name: str, text: str | None = None) -> minidom.Element:
    document = parent.ownerDocument
    assert document is not None
    child = document.createElementNS(space, f"{prefix}:{name}")
    if text is not None:
        child.appendChild(document.createTextNode(text))
    parent.appendChild(child)
    return child
