"""The converter of a llama.cpp checkout: what it makes, what it sees, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import checkout
import numpy as np
import pytest
import tiny
import vocabularies
from families import Variant, make
from formats.gguf.test_families import IDS, computed
from nightly import mostly

from hubq.errors import BadSource, HubqError, Unsupported, Usage
from hubq.formats import parse_levels
from hubq.formats.gguf import convert as module
from hubq.formats.gguf.arch import families
from hubq.formats.gguf.convert import convert, fingerprint, knows
from hubq.formats.gguf.read import read_header
from hubq.nouns import Origin
from hubq.plan import NotConverted, Request, plan
from hubq.release import Event, publish
from hubq.store import Store
from hubq.text import TextSpec

MIXED = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
MIXED |= {"num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 16, "mamba_dt_rank": 16, "rms_norm_eps": 1e-6}
QWEN3 = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "tie_word_embeddings": True}

# models of families that hubq does not know, and the vocabulary of each: "" is a small SentencePiece model
UNKNOWN = {
    "apertus": (Variant("ApertusForCausalLM", {"head_dim": 64}), ""),
    "jamba": (Variant("JambaForCausalLM", {**MIXED, "num_hidden_layers": 4}), ""),
    "seed oss": (Variant("SeedOssForCausalLM", {**QWEN3, "vocab_size": vocabularies.NPM["qwen3"][0]}), "qwen3"),
}


@pytest.fixture(scope="module")
def llama_cpp_source() -> Path:
    return checkout.fetch()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model of UNKNOWN in Hub format, written once."""

    def write(name: str) -> Path:
        variant, vocabulary = UNKNOWN[name]
        folder = make(variant, tmp_path_factory.mktemp("model") / "Tiny-1B-Chat")
        if vocabulary:
            shutil.copytree(vocabularies.fetch(vocabulary), folder, dirs_exist_ok=True)
        else:
            (folder / "tokenizer.json").unlink()
            sentencepiece(folder / "tokenizer.model")
            tiny.config(folder, bos_token_id=1, eos_token_id=2)
            names = {"bos_token": "<s>", "eos_token": "</s>"}
            (folder / "tokenizer_config.json").write_text(json.dumps({**names, "add_bos_token": True}))
            (folder / "generation_config.json").unlink(missing_ok=True)
        return folder

    return cache(write)


def sentencepiece(path: Path) -> None:
    from pydoc_data.topics import topics

    from sentencepiece import SentencePieceTrainer

    lines = "\n".join(topics[name] for name in sorted(topics)).split("\n")
    settings = {"vocab_size": tiny.VOCABULARY, "model_type": "bpe", "byte_fallback": True, "character_coverage": 0.99}
    settings |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}  # llama.cpp takes text as it is
    with path.open("wb") as file:
        SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=file, minloglevel=2, **settings)


def files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def expected(folder: Path) -> np.ndarray:
    """transformers' logits."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return model(torch.from_numpy(IDS)[None]).logits[0].numpy()


@pytest.mark.parametrize("name", mostly(UNKNOWN, [*UNKNOWN][:1]))
def test_logits_are_those_of_transformers(
    name: str, llama_cpp_source: Path, made: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, out, heard = made(name), tmp_path / "out.gguf", []
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] not in families() and knows(llama_cpp_source, config)
    convert(llama_cpp_source, folder, files(folder), "f32", out, lambda *now: heard.append(now))
    wanted, found = expected(folder), computed(out, encoder=False)
    assert wanted.std() > 0.1
    assert np.abs(found - wanted).max() < 1e-3 * wanted.std()
    size = (folder / "model.safetensors").stat().st_size
    assert heard[-1] == (size, size) and sorted(heard) == heard and len(heard) > 2
    assert files(tmp_path) == ["out.gguf"]


def test_the_same_model_gives_the_same_bytes_wherever_it_lies(
    llama_cpp_source: Path, made: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, other = made("apertus"), tmp_path / "elsewhere" / "0123abcd"
    shutil.copytree(folder, other)
    convert(llama_cpp_source, folder, files(folder), "bf16", tmp_path / "first.gguf")
    convert(llama_cpp_source, other, files(other)[::-1], "bf16", tmp_path / "elsewhere" / "second.gguf", name=folder.name)
    data = (tmp_path / "first.gguf").read_bytes()
    assert data == (tmp_path / "elsewhere" / "second.gguf").read_bytes()
    header = read_header(tmp_path / "first.gguf")
    assert {tensor.type for tensor in header.tensors} == {"F32", "BF16"}
    assert header.metadata["general.name"] == "Tiny 1B Chat"
    for word in (str(tmp_path), str(folder.parent), tmp_path.name, "model/Tiny", socket.gethostname()):
        assert word.encode() not in data


def hostile(folder: Path, mark: Path) -> Path:
    """A model whose own code, if anyone ran it, would make the file `mark`."""
    tiny.llama(folder, num_hidden_layers=1)
    (folder / "hostile.py").write_text(f"open({str(mark)!r}, 'w')\n")
    names = {"AutoConfig": "hostile.C", "AutoTokenizer": ["hostile.T", "hostile.T"], "AutoModelForCausalLM": "hostile.M"}
    tiny.config(folder, auto_map=names, architectures=["DreamModel"], model_type="dream")
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"auto_map": names, "tokenizer_class": "T"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_no_code_of_a_model_runs(llama_cpp_source: Path, tmp_path: Path) -> None:
    mark, out = tmp_path / "mark", tmp_path / "out.gguf"
    folder = hostile(tmp_path / "model", mark)
    with pytest.raises(Unsupported, match="BPE pre-tokenizer was not recognized"):  # so far it comes: a tokenizer is loaded
        convert(llama_cpp_source, folder, files(folder), "f32", out)
    assert not mark.exists() and not out.exists()
    script = [sys.executable, str(llama_cpp_source / "convert_hf_to_gguf.py"), str(folder), "--outfile", str(out)]
    subprocess.run(script, capture_output=True, env=os.environ | {"HF_HOME": str(tmp_path)}, stdin=subprocess.DEVNULL)
    assert mark.exists()  # it is no empty threat


def test_an_architecture_that_the_converter_does_not_know(llama_cpp_source: Path, tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1)
    tiny.config(folder, architectures=["No\x1b[2JSuchForCausalLM"])
    with pytest.raises(Unsupported, match=r"Model No\[2JSuchForCausalLM is not supported") as caught:
        convert(llama_cpp_source, folder, files(folder), "f32", tmp_path / "out.gguf")
    assert caught.value.message.isprintable() and "git -C" in caught.value.hint
    assert files(tmp_path) == [f"model/{name}" for name in files(folder)]


def test_knows_asks_for_names_in_quotes(tmp_path: Path) -> None:
    folder = stand_in(tmp_path / "checkout", "")
    (folder / "conversion").mkdir()
    (folder / "conversion" / "__init__.py").write_text("""MODELS = {"OneForCausalLM": 1, 'a.TwoForCausalLM': 2}""")
    assert knows(folder, {"architectures": ["OneForCausalLM"]})
    assert knows(folder, {"architectures": ["Seeing"], "text_config": {"architectures": ["a.TwoForCausalLM"]}})
    for config in ({}, {"architectures": 5}, {"architectures": ["OneFor", "TwoForCausalLM", 3]}, {"text_config": "One"}):
        assert not knows(folder, config)


def stand_in(folder: Path, script: str) -> Path:
    """A checkout with another converter, that of `script`: it knows where to write `out` and what it was told in `model`."""
    (folder / "gguf-py" / "gguf").mkdir(parents=True)
    start = "import json, os, signal, sys, time, pathlib\nmodel, out = map(pathlib.Path, sys.argv[1:4:2])\n"
    (folder / "convert_hf_to_gguf.py").write_text(f"{start}here = pathlib.Path(__file__).parent\n{script}")
    return folder


def bare(folder: Path) -> Path:
    """The names of a model's files with nothing in them."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(100))
    return folder


def attempt(model: Path, script: str) -> HubqError:
    """The error that a conversion by a stand-in ends in; nothing may be left of it."""
    out = model.parent / "out" / "out.gguf"
    out.parent.mkdir()
    with pytest.raises(HubqError) as caught:
        convert(stand_in(model.parent / "checkout", script), model, files(model), "f32", out)
    assert list(out.parent.iterdir()) == []
    return caught.value


FAILURES = {
    "out.write_text('GG'); os.kill(os.getpid(), signal.SIGKILL)": "was killed by signal 9",
    "out.write_text('GG')": "made a file that is none: model.gguf is not a GGUF file: it does not begin like one",
    "print('INFO:hf:fine')": "failed: it said nothing",
    "raise ValueError(f'no {model}/x.txt, {out}')": "failed: ValueError: no model/x.txt, model.gguf",
    "def f():\n    assert 1 > len([2])\nf()": "failed: AssertionError: assert 1 > len([2])",
    "sys.exit('ERROR:hf:Model Y is not supported\\x1b[2J\\n\\nINFO:x:y')": "know this model: Model Y is not supported[2J",
    "sys.exit('e' * 5000)": "failed: " + "e" * 300,
}


@pytest.mark.parametrize("script", FAILURES)
def test_how_a_converter_may_fail(script: str, tmp_path: Path) -> None:
    error = attempt(bare(tmp_path / "model"), script)
    assert error.message.endswith(FAILURES[script])
    assert str(tmp_path) not in error.message and error.hint
    assert isinstance(error, Unsupported) == ("know this model" in FAILURES[script])


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interrupted_conversion_ends_the_converter(stubborn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    script += "(here / 'pid').write_text(str(os.getpid())); out.write_text('GG')\n"
    script += "print('\\rWriting:  50%|#####', end='\\r', flush=True); time.sleep(600)\n"
    model, out = bare(tmp_path / "model"), tmp_path / "out" / "out.gguf"
    out.parent.mkdir()
    monkeypatch.setattr(module, "GRACE", 1.0)

    def interrupt(done: int, total: int) -> None:
        assert done == total // 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(stand_in(tmp_path / "checkout", script), model, files(model), "f32", out, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "checkout" / "pid").read_text()), 0)
    assert list(out.parent.iterdir()) == []


@pytest.fixture
def consent() -> Iterator[None]:
    """A standard input that says yes."""
    reading, writing = os.pipe()
    kept = os.dup(0)
    os.write(writing, b"y\n")
    os.dup2(reading, 0)
    os.close(writing)
    yield
    os.dup2(kept, 0)
    os.close(kept)
    os.close(reading)


@pytest.mark.usefixtures("consent")
def test_what_a_converter_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, settings that load nothing, and neither a token nor the Hub."""
    model = hostile(tmp_path / "model", tmp_path / "mark")
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "model.pt",
        "sub/hostile.py",
        "tokenizer.9.json",
        "mask_embedding.pt",
    ):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"")
    (model / "vocab.json").write_text('{"_a": 0, "auto_map": 1}')
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (model / "generation_config.json").write_text('{"top_k": 3, "trust_remote_code": true}')
    settings = {"vocab_file": "/etc/passwd", "sp_model_kwargs": {"model_file": "/etc/passwd"}, "added": [{"x_file": 1, "y": 2}]}
    (model / "processor_config.json").write_text(json.dumps(settings))
    for key in ("HF_TOKEN", "HF_ENDPOINT", "HUGGING_FACE_HUB_TOKEN", "SECRET", "HF_MODULES_CACHE", "NO_LOCAL_GGUF"):
        monkeypatch.setenv(key, "secret")
    seen = "json.dump([dict(os.environ), sys.argv[1:], os.getcwd(), sys.stdin.read(), {str(p.relative_to(model)):"
    seen += " p.read_text('latin-1') for p in model.rglob('*') if p.is_file()}], open(here / 'seen', 'w'))"
    attempt(model, seen)
    environment, arguments, where, asked, shown = json.loads((tmp_path / "checkout" / "seen").read_text())
    assert "secret" not in environment.values()
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    scratch = Path(arguments[0]).parents[1]
    assert scratch.parent == tmp_path / "out" and not scratch.exists()
    assert {environment[key] for key in ("HOME", "HF_HOME", "TMPDIR")} == {where} == {str(scratch / "home")}
    assert arguments[1:] == ["--outfile", str(scratch / "model.gguf"), "--outtype", "f32"] and asked == ""
    weights = {"model.safetensors", "tokenizer.json", "vocab.json", "additional_chat_templates/tool.jinja", "README.md"}
    cleaned = {"config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json"}
    assert shown.keys() == weights | cleaned
    assert all(shown[name] == (model / name).read_text("latin-1") for name in weights)
    assert not any(word in shown[name] for name in cleaned for word in ("auto_map", "trust_remote_code", "/etc/passwd"))
    assert json.loads(shown["generation_config.json"]) == {"top_k": 3}
    assert json.loads(shown["processor_config.json"]) == {"sp_model_kwargs": {}, "added": [{"y": 2}]}


@pytest.mark.parametrize("name", ["..", ".", "", "a/..", "a\nb"])
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    model, out = bare(tmp_path / "Tiny"), tmp_path / "out.gguf"
    script = "(here / 'seen').write_text('/'.join(model.parts[-2:])); sys.exit(1)"
    with pytest.raises(HubqError):
        convert(stand_in(tmp_path / "checkout", script), model, files(model), "f32", out, name=name)
    assert (tmp_path / "checkout" / "seen").read_text() == ("model/model" if name else "model/Tiny")


def test_weights_must_be_safetensors_of_the_repository(tmp_path: Path) -> None:
    model, folder = bare(tmp_path / "model"), stand_in(tmp_path / "checkout", "")
    index = {"weight_map": {"model.norm.weight": "../other/model.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadSource, match="is not an index of safetensors files"):
        convert(folder, model, files(model), "f32", tmp_path / "out.gguf")
    with pytest.raises(Unsupported, match="the weights are pickles"):
        convert(folder, model, ["config.json", "pytorch_model.bin"], "f32", tmp_path / "out.gguf")
    (model / "config.json").write_text("{" * 5)
    with pytest.raises(BadSource, match=r"config\.json cannot be read"):
        convert(folder, model, ["config.json", "model.safetensors"], "f32", tmp_path / "out.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "checkout"}


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(Usage, match=r"lacks convert_hf_to_gguf\.py, gguf-py/gguf") as caught:
        fingerprint(tmp_path)
    assert "git clone" in caught.value.hint
    (tmp_path / "convert_hf_to_gguf.py").touch()
    for call in (
        fingerprint,
        lambda folder: knows(folder, {}),
        lambda folder: convert(folder, folder, [], "f32", tmp_path / "o"),
    ):
        with pytest.raises(Usage, match=r"it lacks gguf-py/gguf$"):
            call(tmp_path)


def test_a_fingerprint_is_that_of_all_that_decides(tmp_path: Path) -> None:
    folder, seen = stand_in(tmp_path / "checkout", ""), set()
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(folder) == fingerprint(tmp_path / "copy")
    (folder / "README.md").write_text("other")
    assert fingerprint(folder) == fingerprint(tmp_path / "copy")
    for path in (
        "conversion/a.py",
        "conversion/b/c.py",
        "gguf-py/gguf/d.py",
        "models/templates/e.jinja",
        "convert_hf_to_gguf.py",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("pass")
        seen.add(fingerprint(folder))
    (folder / "conversion/a.py").rename(folder / "conversion/z.py")
    seen.add(fingerprint(folder))
    assert len(seen) == 6 and fingerprint(tmp_path / "copy") not in seen


# --- the whole way ---


def test_a_release_goes_on_from_what_was_converted(
    llama_cpp_source: Path, made: Callable[[str], Path], topics: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    request = Request(
        str(made("apertus")),
        parse_levels("bf16,q4_k_m"),
        Store(tmp_path / "work"),
        to=str(tmp_path / "out"),
        text=TextSpec(str(topics), None, windows=2),
        command="hubq publish {model} {build}",
    )
    with pytest.raises(Unsupported, match="does not convert ApertusForCausalLM") as caught:
        plan(request)
    assert "--llama-cpp DIR" in caught.value.hint
    request = replace(request, llama_cpp=llama_cpp_source)
    with pytest.raises(NotConverted, match="is not converted yet"):
        plan(request)
    told: list[Event] = []
    release = publish(request, told.append).release
    rows = {(row.level, row.engine): row.values for row in release.measurements}
    assert rows.keys() == {("reference", "transformers"), ("gguf:BF16", "llama.cpp"), ("gguf:Q4_K_M", "llama.cpp")}
    assert rows["gguf:BF16", "llama.cpp"]["kld"].value < 1e-3 < rows["gguf:Q4_K_M", "llama.cpp"]["kld"].value
    assert {check.outcome for check in release.checks if check.name in ("token ids", "logits")} == {"passed"}
    assert release.origin == Origin("Tiny-1B-Chat-F32.gguf", "F32", fingerprint(llama_cpp_source))
    card = (tmp_path / "out" / "Tiny-1B-Chat-GGUF" / "README.md").read_text()
    assert "llama.cpp's converter made a GGUF of the source" in card and "which transformers ran in float32" in card
    assert "hubq publish ./Tiny-1B-Chat --llama-cpp DIR --levels bf16,q4_k_m" in card
    assert [event.label for event in told if event.step == "convert" and event.result] == ["Tiny-1B-Chat-F32.gguf"]
    told.clear()
    publish(request, told.append)
    assert plan(request).write == 0 and not [event for event in told if event.step == "convert"]
