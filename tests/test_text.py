"""Windows of text: which ids, which bytes, which facts; and what is said about a text that does not do."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from pydoc_data.topics import topics as manual
from typing import Any

import loopback
import numpy as np
import pytest
from test_tokenize import older
from tokenizers import Tokenizer, processors

from hubq import text
from hubq.errors import BadSource, HubError, HubqError, Usage
from hubq.nouns import Source

TOPICS = [manual[name] for name in sorted(manual)][:8]
TEXT = "\n\n".join(TOPICS) + " naïve façade – 😀 \n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep datasets out of the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def spec(tmp_path: Path) -> text.TextSpec:
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    return text.TextSpec(str(tmp_path / "a.txt"), windows=None, length=64)


def windows(folder: Path, spec: text.TextSpec) -> text.Windows:
    return text.windows(Source("org/model", "0" * 40, folder, {}, {}, ()), spec)


def change(folder: Path, act: Callable[[Tokenizer], object]) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    act(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))


def test_windows_are_the_whole_text_cut_up(folder: Path, spec: text.TextSpec) -> None:
    found, tokenizer = windows(folder, spec), Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(TEXT).ids
    count = len(ids) // 64
    assert np.array_equal(found.ids.ravel(), ids[: count * 64])
    assert found.ids.shape == (count, 64) and found.ids.dtype == np.int64
    # in a byte-level vocabulary every character of a token stands for a byte
    sizes = np.array([len(tokenizer.id_to_token(i)) for i in ids[: count * 64]]).reshape(count, 64)
    assert np.array_equal(found.bytes, sizes[:, 33:].sum(1))


def test_bytes_are_those_of_utf8(folder: Path, spec: text.TextSpec, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("naïve 😀 façade – " * 200, encoding="utf-8")
    found, tokenizer = windows(folder, spec), Tokenizer.from_file(str(folder / "tokenizer.json"))
    sizes = np.array([[len(tokenizer.id_to_token(i)) for i in row] for row in found.ids])[:, 33:].sum(1)
    assert np.abs(found.bytes - sizes).max() <= 3  # a character that the cut divides counts on one side
    assert abs(found.bytes.sum() - sizes.sum()) <= len(sizes)


def test_facts(folder: Path, spec: text.TextSpec) -> None:
    found = windows(folder, replace(spec, windows=5))
    facts = found.evalset
    assert (facts.dataset, facts.config, facts.split, facts.field) == ("a.txt", None, "all", "text")
    assert facts.revision == facts.text_sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert facts.ids_sha256 == hashlib.sha256(found.ids.astype("<i4").tobytes()).hexdigest()
    assert (facts.windows, facts.length, facts.seed, facts.bos) == (5, 64, 0, None)
    assert facts.available == facts.tokens // 64 > 20
    assert str(folder.parent) not in json.dumps(asdict(facts))


def test_windows_are_drawn_by_seed_from_the_whole_text(folder: Path, spec: text.TextSpec) -> None:
    every = [row.tobytes() for row in windows(folder, spec).ids]

    def drawn(**changes: Any) -> list[int]:
        return [every.index(row.tobytes()) for row in windows(folder, replace(spec, **changes)).ids]

    first = drawn(windows=10, seed=0)
    assert first == drawn(windows=10, seed=0) == sorted(first)
    assert first != drawn(windows=10, seed=1)
    assert set(drawn(windows=5, seed=0)) < set(first)  # more windows keep those that fewer chose
    assert max(first) > len(every) / 2
    assert first == sorted(np.random.Generator(np.random.PCG64(0)).permutation(len(every))[:10])
    assert drawn(windows=10, seed=None) == list(range(10))
    assert drawn(windows=10**6, seed=0) == list(range(len(every)))


def test_bos_begins_each_window_where_the_tokenizer_puts_one(folder: Path, spec: text.TextSpec) -> None:
    before = windows(folder, spec)
    template = processors.TemplateProcessing(single="<|user|> $A", special_tokens=[("<|user|>", 1)])
    change(folder, lambda tokenizer: setattr(tokenizer, "post_processor", template))
    after = windows(folder, spec)
    assert (before.evalset.bos, after.evalset.bos) == (None, 1)
    assert (after.ids[:, 0] == 1).all() and not (before.ids[:, 0] == 1).any()
    assert np.array_equal(after.ids[:, 1:], before.ids[:, 1:])
    assert after.evalset.ids_sha256 != before.evalset.ids_sha256


def test_an_older_tokenizer_cuts_as_its_tokenizer_json(folder: Path, spec: text.TextSpec) -> None:
    wanted = windows(folder, spec)
    older(folder, "gpt2", tokenizer_config={"add_bos_token": True, "bos_token": "[B]"})
    found = windows(folder, spec)
    assert found.evalset.bos == 1 and (found.ids[:, 0] == 1).all()
    assert np.array_equal(found.ids[:, 1:], wanted.ids[:, 1:]) and np.array_equal(found.bytes, wanted.bytes)
    assert windows(folder, spec).evalset.bos == 1  # the tokenizer is as it was


def test_an_end_token_is_no_bos(folder: Path, spec: text.TextSpec) -> None:
    template = processors.TemplateProcessing(single="$A <|user|>", special_tokens=[("<|user|>", 1)])
    change(folder, lambda tokenizer: setattr(tokenizer, "post_processor", template))
    assert windows(folder, spec).evalset.bos is None


def test_what_a_tokenizer_does_for_training_changes_nothing(folder: Path, spec: text.TextSpec) -> None:
    before = windows(folder, spec)
    change(folder, lambda tokenizer: tokenizer.enable_truncation(16))
    change(folder, lambda tokenizer: tokenizer.enable_padding(length=2**20))
    change(folder, lambda tokenizer: setattr(tokenizer, "post_processor", processors.ByteLevel(trim_offsets=True)))
    after = windows(folder, spec)
    assert before.evalset == after.evalset
    assert np.array_equal(before.bytes, after.bytes)


def test_rows_are_joined_by_an_empty_line(folder: Path, spec: text.TextSpec, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": "nothing", "body": row, "number": 1} for row in TOPICS]
    (tmp_path / "[a].jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("[a].jsonl", "a.json", "a.parquet"):
        facts = windows(folder, replace(spec, dataset=str(tmp_path / name), field="body")).evalset
        assert facts.text_sha256 == hashlib.sha256("\n\n".join(TOPICS).encode()).hexdigest()
        assert facts.revision == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert (facts.dataset, facts.field) == (name, "body")


def test_datasets_shows_no_progress(folder: Path, spec: text.TextSpec, tmp_path: Path) -> None:
    import datasets

    (tmp_path / "a.jsonl").write_bytes(rows(*TOPICS))
    datasets.enable_progress_bars()
    windows(folder, replace(spec, dataset=str(tmp_path / "a.jsonl")))
    assert datasets.are_progress_bars_disabled()


def test_sentencepiece(spec: text.TextSpec, tmp_path: Path) -> None:
    import sentencepiece

    with open(tmp_path / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT.split("\n")), model_writer=file, vocab_size=400, model_type="bpe", minloglevel=2,
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    found = windows(tmp_path, spec)
    ids = np.array(processor.encode(TEXT))[: found.ids.size].reshape(-1, 64)
    assert np.array_equal(found.ids[:, 1:], ids[:, 1:])
    assert (found.ids[:, 0] == found.evalset.bos).all() and found.evalset.bos == processor.bos_id()
    scored = ["".join(processor.id_to_piece(row[33:].tolist())).replace("▁", " ") for row in ids]
    plain = ["<0x" not in piece for piece in scored]
    assert sum(plain) > 10
    assert [size for size, sure in zip(found.bytes, plain, strict=True) if sure] == [
        len(piece.encode()) for piece, sure in zip(scored, plain, strict=True) if sure
    ]
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert windows(tmp_path, spec).evalset.bos is None


@pytest.mark.parametrize(
    ("name", "data", "message", "hint"),
    [
        ("gone.txt", None, "cannot read .*gone.txt: No such file", "--dataset"),
        ("a.pdf", b"x", "a.pdf is of no kind", ".jsonl"),
        ("latin.txt", "ä".encode("latin-1") * 999, "latin.txt is not UTF-8", "iconv"),
        ("short.txt", b"few words", "short.txt has [0-9] tokens, too few for two windows of 64", "longer"),
        ("a.jsonl", b'{"body": "x", "number": 1}\n', "a.jsonl has no field 'text'", "body, number"),
        ("n.jsonl", b'{"text": 1}\n', "field 'text' of n.jsonl does not hold text", "choose"),
        ("bad.jsonl", b'{"text": ', "bad.jsonl cannot be read: JSON", "what .jsonl files are"),
        ("empty.jsonl", b"", "empty.jsonl cannot be read", "what .jsonl files are"),
        ("bad.parquet", b"nope", "bad.parquet cannot be read: Parquet", ""),
    ],
)
def test_texts_that_do_not_do(
    folder: Path, spec: text.TextSpec, tmp_path: Path, name: str, data: bytes | None, message: str, hint: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(Usage, match=message) as caught:
        windows(folder, replace(spec, dataset=str(tmp_path / name)))
    assert hint in caught.value.hint


def test_tokenizers_that_cannot_be_read(folder: Path, spec: text.TextSpec) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BadSource, match=r"tokenizer.json cannot be read"):
        windows(folder, spec)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadSource, match="there is no tokenizer"):
        windows(folder, spec)
    (folder / "tokenizer.model").write_bytes(b"\xff\xff")
    with pytest.raises(BadSource, match="not a SentencePiece model"):
        windows(folder, spec)


def test_offline_says_what_to_do(folder: Path, spec: text.TextSpec) -> None:
    with pytest.raises(HubError, match="Salesforce/wikitext cannot be fetched") as caught:
        windows(folder, text.TextSpec())
    assert "--no-eval" in caught.value.hint


# --- datasets on a Hub: datasets and huggingface_hub read their endpoint when they are imported, so in another process ---

README = """---
configs:
- {config_name: raw, data_files: [{split: test, path: test.jsonl}, {split: train, path: train.jsonl}]}
- {config_name: other, data_files: other.jsonl}
---
"""
CHILD = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from hubq import text
from hubq.errors import HubqError
from hubq.nouns import Source
for changes in json.loads(sys.argv[2]):
    try:
        windows = text.windows(Source("org/m", "0" * 40, Path(sys.argv[1]), {}, {}, ()), text.TextSpec(length=64, **changes))
        print(json.dumps(asdict(windows.evalset)))
    except HubqError as error:
        print(json.dumps({"error": error.code, "message": error.message, "hint": error.hint}))
"""


def rows(*texts: str) -> bytes:
    return "".join(json.dumps({"text": row}) + "\n" for row in texts).encode()


def test_datasets_on_a_hub_are_pinned_to_their_commit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = loopback._Handler.handle_any

    def as_dataset(handler: Any) -> None:  # the loopback hub serves models; to it this dataset is one
        handler.path = handler.path.replace("/api/datasets/", "/api/models/").replace("/datasets/", "/")
        handle(handler)

    for method in ("do_GET", "do_HEAD", "do_POST"):
        monkeypatch.setattr(loopback._Handler, method, as_dataset)

    def ask(hub: loopback.Hub, specs: list[dict[str, Any]], **settings: str) -> list[dict[str, Any]]:
        environment = os.environ | hub.environment(tmp_path / "home") | {"HF_HUB_OFFLINE": "0"} | settings
        command = [sys.executable, "-c", CHILD, str(folder), json.dumps(specs)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with loopback.Hub() as hub:
        files = {"README.md": README.encode(), "train.jsonl": rows("t"), "other.jsonl": rows("o")}
        old = hub.add("org/text", files | {"test.jsonl": rows(*TOPICS[:4])})
        new = hub.add("org/text", {"test.jsonl": rows(*TOPICS[4:], "")})
        raw = {"dataset": "org/text", "config": "raw"}
        latest, pinned, split, field, config, missing = ask(
            hub,
            [
                raw,
                raw | {"dataset": f"org/text@{old}"},
                raw | {"split": "dev"},
                raw | {"field": "body"},
                raw | {"config": "nope"},
                {"dataset": "org/none"},
            ],
        )
        commits = [raw | {"dataset": f"org/text@{commit}"} for commit in (old, new)]
        again, stale = ask(hub, commits, HF_HUB_OFFLINE="1")
    assert (latest["dataset"], latest["config"], latest["split"], latest["revision"]) == ("org/text", "raw", "test", new)
    assert latest["text_sha256"] == hashlib.sha256("\n\n".join([*TOPICS[4:], ""]).encode()).hexdigest()
    assert (pinned["dataset"], pinned["revision"]) == ("org/text", old)
    assert pinned["text_sha256"] == hashlib.sha256("\n\n".join(TOPICS[:4]).encode()).hexdigest()
    assert (split["message"], split["hint"]) == ("org/text has no split 'dev'", "choose one with --split: test, train")
    assert (field["error"], field["hint"]) == ("Usage", "choose one with --text-field: text")
    assert config["error"] == "Usage" and "'raw', 'other'" in config["message"]
    assert missing["error"] == "HubError" and "there is no dataset org/none" in missing["message"]
    # offline, datasets takes whatever commit it used last
    assert again == pinned
    assert stale["error"] == "HubError" and "an older copy" in stale["message"]


def test_a_folder_is_not_taken_for_a_dataset_on_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "text").mkdir(parents=True)
    (tmp_path / "org" / "text" / "test.jsonl").write_bytes(rows(*TOPICS))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubqError, match="took a local folder"):
        windows(folder, text.TextSpec("org/text", config=None))
