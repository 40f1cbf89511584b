"""C2PA manifests, made with a certificate of our own and read back by the reference library."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oldphoto.errors import FileAccessError, UsageError
from oldphoto.files.image import read_photo, write_photo
from oldphoto.files.photo import Photo
from oldphoto.records import manifest
from oldphoto.records.c2pa import Signer
from oldphoto.records.xmp import ENHANCED
from oldphoto.runs import batch, planning
from tests.runs.test_resume import negative, setting

c2pa = pytest.importorskip("c2pa", reason="c2pa-python (oldphoto[c2pa]) is not installed")

from cryptography import x509  # noqa: E402 - comes with c2pa-python
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402

DAY = timedelta(days=1)


def certificate(name: str, key: Any, issuer: str, issuer_key: Any, *, ca: bool) -> Any:
    now = datetime.now(UTC)
    subject, by = (
        x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Archive"), x509.NameAttribute(NameOID.COMMON_NAME, who)]
        )
        for who in (name, issuer)
    )
    usage = x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)
    made = (
        x509.CertificateBuilder(by, subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + 30 * DAY)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not ca:
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return made.sign(issuer_key, hashes.SHA256())


KEYS: dict[str, Callable[[], Any]] = {
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ED25519": ed25519.Ed25519PrivateKey.generate,
    "PS256": lambda: rsa.generate_private_key(65537, 2048),
}


def credentials(folder: Path, kind: str = "ES256") -> tuple[Path, Path]:
    """A certificate chain and its key, as PEM files."""
    root, key = ec.generate_private_key(ec.SECP256R1()), KEYS[kind]()
    chain = [
        certificate("Scanner 3", key, "Archive CA", root, ca=False),
        certificate("Archive CA", root, "Archive CA", root, ca=True),
    ]
    pem = serialization.Encoding.PEM
    (folder / "chain.pem").write_bytes(b"".join(one.public_bytes(pem) for one in chain))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    return folder / "chain.pem", folder / "key.pem"


def restored(folder: Path, name: str, signer: Signer) -> batch.Outcome:
    pixels = np.arange(32 * 48 * 3, dtype=np.uint16).reshape(32, 48, 3)
    write_photo(Photo(pixels if name.endswith("tif") else pixels.astype(np.uint8)), folder / name)
    plan = planning.plan([str(folder / name)], str(folder / "out/"))
    now = setting(signed=True)
    [outcome] = batch.run(plan.photos, lambda: batch.Work(negative, now), sign=signer.sign).outcomes
    return outcome


def read(path: Path) -> tuple[Any, dict[str, Any]]:
    with c2pa.Reader(path) as reader:
        facts = json.loads(reader.json())
    return facts, facts["manifests"][facts["active_manifest"]]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_outputs_are_signed_with_their_input_as_ingredient(tmp_path: Path, name: str) -> None:
    outcome = restored(tmp_path, name, Signer.load(*credentials(tmp_path)))
    assert outcome.error is None
    facts, active = read(tmp_path / "out" / name)
    # Nobody trusts this test's own authority; nothing else is amiss.
    assert [status["code"] for status in facts["validation_status"]] == ["signingCredential.untrusted"]
    assert active["signature_info"]["common_name"] == "Scanner 3"
    [ingredient] = active["ingredients"]
    assert (ingredient["title"], ingredient["relationship"]) == (name, "parentOf")
    [actions] = [a["data"]["actions"] for a in active["assertions"] if a["label"].startswith("c2pa.actions")]
    assert [action["action"] for action in actions] == ["c2pa.opened", "c2pa.edited"]
    assert actions[1]["digitalSourceType"] == ENHANCED
    assert json.loads(actions[1]["parameters"]["org.oldphoto.weights"]) == outcome.record["model"]["weights"]  # type: ignore[index]
    assert "thumbnail" not in active
    # The manifest's hash is the signed file's, and its pixels are what was restored.
    assert manifest.changes(outcome.record) == []
    before, after = read_photo(tmp_path / name), read_photo(tmp_path / "out" / name)
    if name.endswith(("png", "tif")):
        np.testing.assert_array_equal(after.pixels, 255 - before.pixels)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [name]


def test_a_change_after_signing_shows(tmp_path: Path) -> None:
    restored(tmp_path, "a.png", Signer.load(*credentials(tmp_path)))
    data = bytearray((tmp_path / "out/a.png").read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    (tmp_path / "out/a.png").write_bytes(data)
    assert "assertion.dataHash.mismatch" in [
        status["code"] for status in read(tmp_path / "out/a.png")[0]["validation_status"]
    ]


@pytest.mark.parametrize("kind", list(KEYS))
def test_keys_of_every_kind(tmp_path: Path, kind: str) -> None:
    signer = Signer.load(*credentials(tmp_path, kind))
    assert signer.algorithm == kind
    assert restored(tmp_path, "a.png", signer).error is None


def test_what_cannot_be_signed_is_that_photos_error(tmp_path: Path) -> None:
    signer = Signer.load(*credentials(tmp_path))
    outcome = restored(tmp_path, "a.bmp", signer)
    assert isinstance(outcome.error, UsageError)
    assert list((tmp_path / "out").iterdir()) == []
    other = Signer.load(tmp_path / "chain.pem", credentials(tmp_path, "ES256")[1])
    mixed = Signer(other.certificate, KEYS["ED25519"]().private_bytes_raw(), "ED25519")
    outcome = restored(tmp_path, "a.png", mixed)
    assert isinstance(outcome.error, UsageError)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_input_that_changed_meanwhile_is_no_ingredient(tmp_path: Path) -> None:
    signer = Signer.load(*credentials(tmp_path))

    def meddle(photo: Photo, mask: Any) -> SimpleNamespace:
        Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
        return negative(photo, mask)  # type: ignore[no-any-return]

    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    plan = planning.plan([str(tmp_path / "a.png")], str(tmp_path / "out/"))
    work = batch.Work(meddle, setting())  # type: ignore[arg-type]
    [outcome] = batch.run(plan.photos, lambda: work, sign=signer.sign).outcomes
    assert isinstance(outcome.error, FileAccessError)


def test_bad_credentials_are_refused_before_any_work(tmp_path: Path) -> None:
    chain, key = credentials(tmp_path)
    with pytest.raises(FileAccessError, match=r"gone\.pem"):
        Signer.load(chain, tmp_path / "gone.pem")
    with pytest.raises(UsageError, match="not a private key"):
        Signer.load(key, chain)
