"""A signature of a release, in the format of OpenSSF Model Signing 1.0: of the names and SHA-256 of all its files.

    model_signing verify key --signature model.sig --public_key key.pub --ignore_unsigned_files FOLDER

checks it without hubq. The only import of model_signing. Nothing is hashed here: the hashes are those of SHA256SUMS.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hubq.errors import BadSource, MissingExtra, Usage

SIGNATURE = "model.sig"
KEYLESS = "sigstore"
PASSWORD = "HUBQ_SIGNING_PASSWORD"
# what is there besides: the Hub writes some of it, and a signature cannot sign itself
IGNORED = [SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore"]
Hash = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Signer:
    """Who should have signed: the owner of a `public_key`, or an `identity` that `issuer` knows (keyless)."""

    public_key: Path | None = None
    identity: str | None = None
    issuer: str | None = None


class _Known:
    """The files of a model with their SHA-256, in the place of model_signing's way of hashing a folder."""

    def __init__(self, name: str, digest: Hash, paths: Iterable[str] = ()) -> None:
        self._name, self._digest, self._paths = name, digest, list(paths)

    def hash(self, model_path: Path, *, files_to_hash: Iterable[Path] | None = None) -> Any:
        """The manifest of all files, or of some below `model_path`."""
        from model_signing import manifest
        from model_signing._hashing.hashing import Digest

        wanted = self._paths if files_to_hash is None else [path.relative_to(model_path).as_posix() for path in files_to_hash]
        how = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": IGNORED}
        items = [
            manifest.FileManifestItem(path=PurePosixPath(path), digest=Digest("sha256", bytes.fromhex(self._digest(path))))
            for path in sorted(wanted)
        ]
        return manifest.Manifest(self._name, items, manifest.SerializationType.from_args(how))

    def add_ignored_paths(self, *, model_path: Path, paths: Iterable[str]) -> None:
        """Nothing to do: only files that are named are looked at."""


def sign(key: str, name: str, sums: Mapping[str, str]) -> bytes:
    """The signature of a model's files (path -> SHA-256) by a private key in PEM (elliptic curve), or by the identity that the
    machine runs under (`sigstore`), as a Sigstore bundle.

    An encrypted key is opened with HUBQ_SIGNING_PASSWORD. Raises Usage for a key that cannot sign, MissingExtra.
    """
    config = _signing().Config().set_hashing_config(_Known(name, lambda path: sums[path], sums))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SIGNATURE
        try:
            if key == KEYLESS:
                config.use_sigstore_signer(use_ambient_credentials=True)
            else:
                password: Any = os.environ.get(PASSWORD, "").encode() or None  # said to be text, used as bytes
                config.use_elliptic_key_signer(private_key=Path(key), password=password)
            config.sign(folder, path)
        except Exception as error:  # of the key, its password, the network, the identity: they have no common base
            raise Usage(f"--sign {Path(key).name}: it cannot sign: {error}", _hint(key)) from None
        return path.read_bytes()


def _hint(key: str) -> str:
    if key == KEYLESS:
        return "keyless signing needs a job with `id-token: write` and the network; or give a private key"
    return f"give an elliptic curve's private key in PEM; {PASSWORD} holds its password"


def signed(data: bytes) -> dict[str, str]:
    """What a signature says of the files, unchecked: path -> SHA-256. Raises BadSource for what is no signature."""
    try:
        statement = json.loads(base64.b64decode(json.loads(data)["dsseEnvelope"]["payload"]))
        return {file["name"]: file["digest"] for file in statement["predicate"]["resources"]}
    except (ValueError, KeyError, TypeError):
        raise BadSource(f"{SIGNATURE} is no signature of a model", "sign the release again: publish with --sign") from None


def check(data: bytes, digest: Hash, signer: Signer) -> None:
    """Hold a signature against the signer and the files, whose SHA-256 `digest` tells by their paths.

    Raises BadSource where it is another's or a file is not what was signed, Usage without a signer, MissingExtra.
    """
    _signing()
    from model_signing import verifying

    known: Any = _Known("", digest)
    config = verifying.Config().set_hashing_config(known).set_ignore_unsigned_files(True)
    if signer.public_key:
        config.use_elliptic_key_verifier(public_key=signer.public_key)
    elif signer.identity and signer.issuer:
        config.use_sigstore_verifier(identity=signer.identity, oidc_issuer=signer.issuer)
    else:
        raise Usage("who should have signed is not told", "give --public-key FILE, or --identity and --issuer")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SIGNATURE
        path.write_bytes(data)
        try:
            config.verify(Path(folder), path)
        except Exception as error:
            raise BadSource(f"{SIGNATURE}: {error or 'it is not a signature by this key'}", "do not use the files") from None


def _signing() -> Any:
    try:
        from model_signing import signing
    except ImportError as error:
        raise MissingExtra("signatures need model-signing", 'pip install "hubq[sign]"') from error
    return signing
