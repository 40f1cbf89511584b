"""Content Credentials: a C2PA manifest in each output, signed, with the input as its ingredient.

Needs the package c2pa-python (`oldphoto[c2pa]`). Nothing goes over the network: no time stamp is asked for, and no
remote manifest of an ingredient is fetched.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from oldphoto import __version__
from oldphoto.errors import FileAccessError, UsageError
from oldphoto.machine.disk import open_file, read_file, sync
from oldphoto.records.manifest import Record, hash_file

_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "TIFF": "image/tiff", "WEBP": "image/webp"}
_ADVICE = "write JPEG, PNG, TIFF or WebP, or leave --c2pa out"
# Thumbnails would be hidden copies of a photo whose owner may not expect them, and need it decoded once more.
_SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}


@dataclass(frozen=True)
class Signer:
    """A certificate chain and its private key, both PEM, and the algorithm that goes with the key."""

    certificate: bytes
    key: bytes
    algorithm: str

    @staticmethod
    def exposed(key: Path) -> str | None:
        """A warning if others than its owner may read the key's file; None on systems that cannot tell."""
        try:
            mode = key.stat().st_mode
        except OSError:
            return None  # what is wrong with it is told when it is read
        if os.name != "posix" or not mode & (stat.S_IRGRP | stat.S_IROTH):
            return None
        return f"the key {key} can be read by others, who could sign as you: chmod 600"

    @staticmethod
    def load(certificate: Path, key: Path) -> Signer:
        """Read both files. Raises UsageError for a key that cannot sign or where c2pa-python is missing,
        FileAccessError for a file that cannot be read.
        """
        try:
            import c2pa  # noqa: F401 - so that it is missed before any work
            from cryptography.hazmat.primitives.serialization import load_pem_private_key
        except ImportError as error:
            raise UsageError("--c2pa needs the package c2pa-python", "pip install 'oldphoto[c2pa]'") from error
        try:
            chain, secret = read_file(certificate), read_file(key)
        except OSError as error:
            raise FileAccessError(f"cannot read {error.filename}: {error.strerror}", "check the name") from error
        try:
            loaded = load_pem_private_key(secret, password=None)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{key} is not a private key that can be used", "give an unencrypted PEM file") from error
        return Signer(chain, secret, _algorithm(loaded))

    def sign(self, part: Path, record: Record) -> None:
        """Replace a finished output by its signed copy. record: the photo's, but for what is only known afterwards.

        Raises UsageError for formats without C2PA and for a certificate that does not go with the key.
        """
        import c2pa

        source = Path(record["input"]["path"])
        types = [_TYPES.get(str(record[role].get("format"))) for role in ("input", "output")]
        if None in types:
            raise UsageError(
                f"C2PA knows no {record['input'].get('format')} to {record['output'].get('format')}", _ADVICE
            )
        if hash_file(source) != record["input"]["sha256"]:
            raise FileAccessError(f"{source} changed while it was restored", "restore it again when it is whole")
        signed = part.with_name(f"{part.stem}-signed{part.suffix}")
        algorithm = c2pa.C2paSigningAlg[self.algorithm]
        try:
            with (
                c2pa.Context(c2pa.Settings.from_dict(_SETTINGS)) as context,
                c2pa.Builder(_definition(record, types[1]), context) as builder,
                c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, self.certificate, self.key, None)) as signer,
                open_file(source) as original,
                part.open("rb") as plain,
                signed.open("x+b") as result,
            ):
                ingredient = {"title": source.name, "relationship": "parentOf", "label": "input"}
                builder.add_ingredient(json.dumps(ingredient), types[0], original)
                builder.sign(signer, types[1], plain, result)
                sync(result)
            signed.replace(part)
        except c2pa.C2paError as error:
            raise UsageError(f"{source.name} cannot be signed: {error}", "check the certificate and its key") from error
        finally:
            signed.unlink(missing_ok=True)


def _algorithm(key: object) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ED25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "PS256"
    curves = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    raise UsageError("C2PA signs with no key of this kind", "use P-256, P-384, P-521, RSA or Ed25519")


def _definition(record: Record, media_type: str | None) -> str:
    """Return the definition of the C2PA manifest: the input was opened and edited, by what."""
    model = record["model"]
    edited = {
        "action": "c2pa.edited",
        "when": record["time"],
        "softwareAgent": {"name": "oldphoto", "version": __version__},
        "digitalSourceType": record["source_type"],
        "parameters": {
            "description": "photo restoration",
            "org.oldphoto.options": json.dumps(record["options"]),
            "org.oldphoto.weights": json.dumps({} if model is None else model["weights"]),
        },
    }
    opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["input"]}}
    return json.dumps(
        {
            "claim_generator_info": [{"name": "oldphoto", "version": __version__}],
            "title": Path(record["input"]["path"]).name,
            "format": media_type,
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [opened, edited]}}],
        }
    )
