"""An audit finds what is wrong with a repository, and nothing where nothing is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import tiny

from hubq.errors import BadSource
from hubq.formats import parse_levels
from hubq.formats.gguf.audit import Finding, Report, audit
from hubq.hub import Folder
from hubq.plan import Request
from hubq.release import publish
from hubq.store import Store

FILE = "Tiny-Llama-Q8_0.gguf"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder hub with org/Tiny-Llama and what hubq made of it."""
    root = tmp_path_factory.mktemp("hub")
    tiny.llama(root / "org" / "Tiny-Llama")
    levels = parse_levels("q8_0,q4_k_m")
    made = publish(Request("org/Tiny-Llama", levels, Store(root / "work"), to=str(root / "org"), hub=root))
    assert Path(made.target).name == "Tiny-Llama-GGUF"
    return root


@pytest.fixture
def root(published: Path, tmp_path: Path) -> Path:
    shutil.copytree(published / "org", tmp_path / "org")
    return tmp_path


def look(root: Path) -> Report:
    return audit(Folder(root), "org/Tiny-Llama-GGUF")


def rewritten(root: Path, name: str = FILE, new: str = "", **changes: object) -> None:
    """The metadata of a file with other values, by the gguf package; None drops a key. Weights stay."""
    folder = root / "org" / "Tiny-Llama-GGUF"
    reader = gguf.GGUFReader(folder / name)
    writer = gguf.GGUFWriter(folder / "new.gguf", "llama")
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture" or field.name in changes:
            continue
        kind, sub = field.types[0], field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub)
    for key, value in changes.items():
        if value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    (folder / name).unlink()
    (folder / "new.gguf").rename(folder / (new or name))


def test_what_hubq_publishes_has_no_faults(root: Path) -> None:
    found = look(root)
    assert (found.base, found.headers, found.findings) == ("org/Tiny-Llama", 2, ())


def test_a_file_that_was_rewritten_unchanged_has_no_faults(root: Path) -> None:
    rewritten(root)
    assert look(root).findings == ()


def card(old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "org" / "Tiny-Llama-GGUF" / "README.md"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def metadata(**changes: object) -> Callable[[Path], None]:
    return lambda root: rewritten(root, **changes)


def renamed(name: str) -> Callable[[Path], None]:
    return lambda root: rewritten(root, new=name)


def with_file(path: str, data: bytes) -> Callable[[Path], None]:
    return lambda root: (root / "org" / "Tiny-Llama-GGUF" / path).write_bytes(data) and None


def sees(root: Path) -> None:
    tiny.config(root / "org" / "Tiny-Llama", vision_config={"hidden_size": 8})


FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no base model": (card("base_model: org/Tiny-Llama\n", ""), "error", "names no base_model"),
    "a base model that is not there": (
        card("base_model: org/Tiny-Llama\n", "base_model: org/gone\n"),
        "warning",
        "not compared",
    ),
    "no licence": (card("license: mit\n", ""), "warning", "names no license"),
    "a preset": (with_file("preset.ini", b"[x]\n"), "error", "takes no model"),
    "a file cut short": (with_file("Tiny-Llama-Q6_K.gguf", b"GGUF\3\0\0\0" + b"\1" * 40), "error", "is damaged in the counts"),
    "a missing part": (renamed("Tiny-Llama-Q8_0-00001-of-00003.gguf"), "error", "2 of its 3 parts are missing"),
    "a name without a level": (renamed("Tiny-Llama.gguf"), "warning", "finds no level in its name"),
    "a tag that loads another file": (renamed("Tiny-A-Q4_K_M-Q8_0.gguf"), "error", "Q4_K_M would load Tiny-A-Q4_K_M-Q8_0.gguf"),
    "two files of a level": (
        renamed("Big-Llama-Q4_K_M.gguf"),
        "error",
        "means Big-Llama-Q4_K_M.gguf and Tiny-Llama-Q4_K_M.gguf",
    ),
    "a wrong level": (renamed("Tiny-Llama-Q5_K_M.gguf"), "error", "says in its metadata that it is Q8_0"),
    "no template": (metadata(tokenizer__chat_template=None), "error", "no chat template, and the original has one"),
    "a stale template": (metadata(tokenizer__chat_template="{{ old }}"), "warning", "not the original's as it is now"),
    "no pre-tokenizer": (metadata(tokenizer__ggml__pre=None), "error", "names no pre-tokenizer"),
    "a wrong pre-tokenizer": (metadata(tokenizer__ggml__pre="llama-bpe"), "error", "is 'llama-bpe', and the original's"),
    "a wrong end": (metadata(tokenizer__ggml__eos_token_id=7), "error", "eos is 7 instead of 0"),
    "a folder": (metadata(quantize__imatrix__file="/home/me/secret/imatrix.dat"), "warning", "tells a folder: /home/me/secret"),
    "no tower": (sees, "warning", "there is no mmproj file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(root: Path, fault: str) -> None:
    plant, severity, told = FAULTS[fault]
    plant(root)
    found = look(root).findings
    assert any(finding.severity == severity and told in finding.what for finding in found), found


def test_templates_that_differ_are_found_without_an_original(root: Path) -> None:
    card("base_model: org/Tiny-Llama\n", "")(root)
    rewritten(root, tokenizer__chat_template="{{ old }}")
    assert "the files have different chat templates" in [finding.what for finding in look(root).findings]


def test_a_repository_without_gguf_files(root: Path) -> None:
    with pytest.raises(BadSource, match="org/Tiny-Llama has no GGUF files"):
        audit(Folder(root), "org/Tiny-Llama")


def hubq(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hubq", "audit", *arguments], capture_output=True, text=True, check=False)


def test_the_command_prints_and_leaves_with_3_for_errors(root: Path) -> None:
    given = ("org/Tiny-Llama-GGUF", "--hub", str(root))
    clean = hubq(*given)
    assert (clean.returncode, clean.stderr) == (0, "")
    assert "2 GGUF headers read, compared with org/Tiny-Llama\n0 errors, 0 warnings\n" in clean.stdout
    rewritten(root, tokenizer__ggml__pre="\x1b[31mred")
    bad = hubq(*given)
    assert bad.returncode == 3
    assert "\x1b" not in bad.stdout
    assert "1 error, 0 warnings" in bad.stdout
    document = json.loads(hubq(*given, "--json").stdout)
    assert [Finding(**finding).severity for finding in document["findings"]] == ["error"]
