"""Texts for encoders and classifiers: which are taken, how they are cut, what is masked, what pins them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from tokenizers import AddedToken, Tokenizer, processors

from hubq.errors import BadSource, Unsupported, Usage
from hubq.nouns import Source
from hubq.samples import samples
from hubq.text import TextSpec

ENDS = {"[CLS]": tiny.VOCABULARY, "[SEP]": tiny.VOCABULARY + 1, "[MASK]": tiny.VOCABULARY + 2}


def enclosed(folder: Path) -> Path:
    """Give a folder's tokenizer the special tokens of BERT around a text, and a mask."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ENDS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=list(ENDS.items())[:2]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": "[MASK]"}))
    return folder


@pytest.fixture
def source(folder: Path) -> Source:
    return Source("org/m", "0" * 40, enclosed(folder), {}, {}, ())


@pytest.fixture
def spec(tmp_path: Path) -> TextSpec:
    rows = [f"Text number {i} says a few words about {i * i}." for i in range(30)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in [*rows, "", "  \n", rows[3], rows[4]]))
    return TextSpec(str(path), None)


def test_rows_are_texts_and_blank_ones_and_repetitions_are_none(source: Source, spec: TextSpec) -> None:
    found = samples(source, spec, "feature-extraction")
    facts = found.evalset
    assert (facts.unit, facts.available, facts.windows) == ("texts", 30, 30)
    assert facts.tokens == sum(len(ids) for ids in found.ids) and facts.length == max(len(ids) for ids in found.ids)
    tokenizer = Tokenizer.from_file(str(source.folder / "tokenizer.json"))
    wanted = tokenizer.encode("Text number 7 says a few words about 49.").ids
    assert found.ids[7].tolist() == wanted and wanted[0] == ENDS["[CLS]"] and wanted[-1] == ENDS["[SEP]"]


def test_lines_of_a_text_file_are_texts(source: Source, tmp_path: Path) -> None:
    (path := tmp_path / "lines.txt").write_text("One line.\n\nAnother line.\nOne line.\n")
    assert samples(source, TextSpec(str(path), None), "feature-extraction").evalset.available == 2


def test_the_draw_is_seeded(source: Source, spec: TextSpec) -> None:
    def drawn(seed: int | None) -> str:
        return samples(source, replace(spec, texts=8, seed=seed), "feature-extraction").evalset.ids_sha256

    assert drawn(0) == drawn(0) != drawn(1)
    first = samples(source, replace(spec, texts=8, seed=None), "feature-extraction")
    every = samples(source, spec, "feature-extraction")
    assert len(first.ids) == 8 and all(np.array_equal(a, b) for a, b in zip(first.ids, every.ids, strict=False))


@pytest.mark.parametrize(
    ("name", "document", "config", "most"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 9}, {}, 9),
        ("tokenizer_config.json", {"model_max_length": 7}, {}, 7),
        ("tokenizer_config.json", {"model_max_length": 1e30}, {"max_position_embeddings": 8}, 8),
        ("other.json", {}, {"max_position_embeddings": 12, "model_type": "xlm-roberta", "pad_token_id": 1}, 10),
        ("other.json", {}, {}, 6),
    ],
)
def test_a_text_is_cut_where_the_model_ends_and_keeps_its_last_token(
    source: Source, spec: TextSpec, name: str, document: dict[str, int], config: dict[str, int], most: int
) -> None:
    (source.folder / name).write_text(json.dumps(document))
    length = 6 if most == 6 else 512
    found = samples(replace(source, config=config), replace(spec, length=length), "feature-extraction")
    assert max(map(len, found.ids)) == found.evalset.length == most
    assert {ids[-1] for ids in found.ids} == {ENDS["[SEP]"]}
    again = samples(source, replace(spec, length=64), "feature-extraction") if most == 6 else None
    assert again is None or max(map(len, again.ids)) > 6  # the tokenizer that all share is as it was


def test_masks_hide_a_share_of_the_texts_own_tokens(source: Source, spec: TextSpec) -> None:
    plain, found = samples(source, spec, "feature-extraction"), samples(source, spec, "fill-mask")
    for before, after, places in zip(plain.ids, found.ids, found.places, strict=True):
        assert np.array_equal(np.flatnonzero(after != before), places) and (after[places] == ENDS["[MASK]"]).all()
        assert len(places) == max(1, round(0.15 * (len(before) - 2))) and 0 < places.min() <= places.max() < len(before) - 1
    assert found.evalset.ids_sha256 != plain.evalset.ids_sha256
    assert samples(source, replace(spec, seed=1), "fill-mask").evalset.ids_sha256 != found.evalset.ids_sha256


def test_labels_of_tokens_are_scored_at_all_but_special_ones(source: Source, spec: TextSpec) -> None:
    found = samples(source, spec, "token-classification")
    assert [places.tolist() for places in found.places] == [list(range(1, len(ids) - 1)) for ids in found.ids]
    assert samples(source, spec, "text-classification").places[0].tolist() == [0]


def test_pairs_are_a_query_and_its_text_or_another(source: Source, tmp_path: Path) -> None:
    rows = [" ".join(f"{name}{i}" for i in range(20)) for name in "abcd"]
    (path := tmp_path / "texts.txt").write_text("\n".join(rows))
    found = samples(source, TextSpec(str(path), None), "text-ranking")
    tokenizer = Tokenizer.from_file(str(source.folder / "tokenizer.json"))
    shown = [tokenizer.decode(ids.tolist(), skip_special_tokens=True) for ids in found.ids]
    assert found.evalset.unit == "pairs" and found.evalset.windows == 4
    assert [(text[0], "a19" in text, "c19" in text) for text in shown] == [
        ("a", True, False),
        ("b", False, True),
        ("c", False, True),
        ("d", True, False),
    ]
    assert set(found.segments[0]) == {0, 1}


def test_what_cannot_be_scored_is_refused(source: Source, spec: TextSpec, tmp_path: Path) -> None:
    (path := tmp_path / "one.txt").write_text("One line.\n")
    with pytest.raises(Usage, match=r"one\.txt has 1 texts in rows of its own, too few"):
        samples(source, TextSpec(str(path), None), "feature-extraction")
    (source.folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(BadSource, match="names no mask_token"):
        samples(source, spec, "fill-mask")
    (source.folder / "tokenizer.json").unlink()
    with pytest.raises(Unsupported, match=r"no tokenizer\.json"):
        samples(source, spec, "feature-extraction")


def test_the_pooling_is_that_of_the_repository(source: Source, spec: TextSpec) -> None:
    assert samples(source, spec, "feature-extraction").pooling == "mean"
    (source.folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]')
    (source.folder / "1_Pooling").mkdir()
    (source.folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert samples(source, spec, "feature-extraction").pooling == "cls"
