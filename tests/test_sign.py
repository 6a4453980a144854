"""A release is signed in the format of OpenSSF Model Signing: its own verifier takes it, and every change is found."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import verifying

from hubq.errors import BadSource, Usage
from hubq.formats import parse_levels
from hubq.hub import Folder
from hubq.plan import Request
from hubq.release import publish
from hubq.sign import Signer, check, sign, signed
from hubq.store import Store
from hubq.verify import verify

SUMS = {"a.gguf": "a" * 64, "onnx/model.onnx": "b" * 64}


def keys(folder: Path, name: str, password: str = "") -> tuple[Path, Path]:
    """The private and the public key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    how = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, kind))
    return private, public


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return keys(tmp_path_factory.mktemp("keys"), "mine")


@pytest.fixture(scope="module")
def request_(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Request:
    root = tmp_path_factory.mktemp("hub")
    tiny.llama(root / "org" / "Tiny-Llama")
    levels, store = parse_levels("q8_0"), Store(root / "work")
    return Request("org/Tiny-Llama", levels, store, to=str(root / "org"), hub=root, sign=str(pair[0]))


@pytest.fixture
def folder(request_: Request, tmp_path: Path) -> Path:
    """A signed release."""
    made = Path(publish(request_).target)
    return Path(shutil.copytree(made, tmp_path / "org" / "Tiny-Llama-GGUF"))


def found(folder: Path, signer: Signer) -> tuple[str, str]:
    report = verify(Folder(folder.parents[1]), "org/Tiny-Llama-GGUF", remote=True, signer=signer)
    (fact,) = [fact for fact in report.facts if fact.name == "model.sig"]
    return fact.outcome, fact.detail


def test_a_signature_is_of_names_and_hashes(pair: tuple[Path, Path]) -> None:
    data = sign(str(pair[0]), "Model", SUMS)
    assert signed(data) == SUMS
    check(data, lambda path: SUMS[path], Signer(pair[1]))
    with pytest.raises(BadSource, match="Hash mismatch"):
        check(data, lambda path: "c" * 64, Signer(pair[1]))


def test_the_verifier_of_others_takes_it(folder: Path, pair: tuple[Path, Path]) -> None:
    theirs = verifying.Config().use_elliptic_key_verifier(public_key=pair[1])
    theirs.verify(folder, folder / "model.sig")
    (folder / "README.md").write_text("hello")
    with pytest.raises(ValueError, match=r"Hash mismatch for \\*'README\.md"):
        theirs.verify(folder, folder / "model.sig")


def test_ours_takes_it_and_finds_changes(folder: Path, pair: tuple[Path, Path]) -> None:
    assert found(folder, Signer(pair[1])) == ("true", "")
    with (folder / "Tiny-Llama-Q8_0.gguf").open("ab") as file:
        file.write(b"\0")
    outcome, detail = found(folder, Signer(pair[1]))
    assert (outcome, "Tiny-Llama-Q8_0.gguf" in detail) == ("false", True)


def test_a_stranger_is_found(folder: Path, tmp_path: Path) -> None:
    assert found(folder, Signer(keys(tmp_path, "other")[1]))[0] == "false"
    (folder / "model.sig").write_text("{}")
    assert found(folder, Signer(keys(tmp_path, "other")[1]))[0] == "false"
    (folder / "model.sig").unlink()
    assert found(folder, Signer(keys(tmp_path, "other")[1])) == ("false", "the release is not signed")


def test_it_is_signed_once_and_an_outdated_signature_goes(request_: Request) -> None:
    target = Path(publish(request_).target)
    before = (target / "model.sig").read_bytes()
    publish(request_)
    publish(replace(request_, sign=None))
    assert (target / "model.sig").read_bytes() == before
    publish(replace(request_, sign=None, levels=parse_levels("q4_0")))
    assert not (target / "model.sig").exists()
    publish(replace(request_, levels=parse_levels("q4_0")))
    assert {"Tiny-Llama-Q8_0.gguf", "Tiny-Llama-Q4_0.gguf", "SHA256SUMS"} <= signed((target / "model.sig").read_bytes()).keys()


@pytest.mark.parametrize("content", ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", None])
def test_a_key_that_cannot_sign_is_told_before_any_work(request_: Request, tmp_path: Path, content: str | None) -> None:
    key = tmp_path / "key.pem"
    if content is not None:
        key.write_text(content)
    with pytest.raises(Usage, match=r"--sign key\.pem: it cannot sign"):
        publish(replace(request_, sign=str(key), store=Store(tmp_path / "work")))
    assert not (tmp_path / "work" / "artifacts").exists()


def test_a_password_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = keys(tmp_path, "locked", "secret")
    with pytest.raises(Usage, match="it cannot sign"):
        sign(str(private), "Model", SUMS)
    monkeypatch.setenv("HUBQ_SIGNING_PASSWORD", "secret")
    check(sign(str(private), "Model", SUMS), lambda path: SUMS[path], Signer(public))


def test_a_signer_is_needed(pair: tuple[Path, Path]) -> None:
    with pytest.raises(Usage, match="who should have signed"):
        check(sign(str(pair[0]), "Model", SUMS), lambda path: SUMS[path], Signer())
