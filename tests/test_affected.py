"""Versions with known faults: told by the doctor, and refused where a config.json could make use of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hubq import affected, doctor
from hubq.errors import Unsupported
from hubq.formats.onnx.export import _put_together
from hubq.formats.onnx.exporters import EXPORTERS
from hubq.reference import describe


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    real = affected.version
    monkeypatch.setattr(affected, "version", lambda name: versions[name] if name in versions else real(name))


@pytest.mark.parametrize(
    ("version", "refused"),
    [
        ("4.55.4", False),
        ("4.56.0", True),
        ("4.57.6", True),
        ("5.0.0", True),
        ("5.2.9", True),
        ("5.3.0", False),
        ("5.23.0", False),
    ],
)
def test_kernels_beside_an_affected_transformers(monkeypatch: pytest.MonkeyPatch, version: str, refused: bool) -> None:
    installed(monkeypatch, kernels="0.9.0", transformers=version)
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    if refused:
        with pytest.raises(Unsupported, match=f"transformers {version} with the package kernels") as caught:
            describe(config)
        assert "pip uninstall kernels" in caught.value.hint
    else:
        describe(config)
    installed(monkeypatch, kernels="", transformers=version)
    describe(config)


def test_the_doctor_names_old_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert affected.faults() == []
    installed(monkeypatch, torch="2.9.1+cpu", transformers="5.2.0rc1", huggingface_hub="2.1.1")
    (row,) = (row for row in doctor.checks() if row["name"] == "known faults")
    assert "torch 2.9.1+cpu" in row["found"] and "CVE-2026-4372" in row["found"] and "huggingface_hub" not in row["found"]


def test_the_exporter_with_an_affected_transformers_has_no_kernels() -> None:
    optimum = EXPORTERS["optimum"].environment
    assert affected.number("4.56.0") <= affected.number(optimum.pins["transformers"]) < affected.number("5.3.0")
    for exporter in EXPORTERS.values():
        assert not {"kernels", "kernels-data"} & exporter.environment.pins.keys()
    assert 'find_spec("kernels")' in EXPORTERS["optimum"].script.read_text()


@pytest.mark.parametrize("exporter", ["optimum", "mobius"])
def test_what_an_exporter_sees_of_a_config_names_no_code(exporter: str, tmp_path: Path) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parent / "hostile"))
    import make

    keys = ("auto_map", "_attn_implementation", "_attn_implementation_internal", "attn_implementation", "trust_remote_code")
    hostile = make.CONFIG | dict.fromkeys(keys, "evil/kernel") | {"text_config": dict.fromkeys(keys, "evil/kernel")}
    for name, content in make.model(**{"config.json": hostile}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)  # type: ignore[arg-type]
    (tmp_path / "clean").mkdir()
    _put_together(tmp_path / "m", ("config.json", make.TENSORS), "text-generation-with-past", tmp_path / "clean", exporter)
    seen = (tmp_path / "clean" / "config.json").read_text()
    assert "evil" not in seen and json.loads(seen)["hidden_size"] == make.HIDDEN
