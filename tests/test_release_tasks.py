"""Releases of models that predict no next tokens: the whole way, and the numbers held against ones computed from scratch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import tiny
import torch
from families import Variant, make
from test_samples import enclosed
from transformers import AutoModel

from hubq import reference, score
from hubq.errors import BadSource, GateFailed, Unsupported, Usage
from hubq.formats import parse_levels
from hubq.metrics import Labels, estimates
from hubq.nouns import RepoFile, Source
from hubq.plan import Request, plan
from hubq.record import read_record
from hubq.release import publish
from hubq.samples import Samples, samples
from hubq.source import read_config
from hubq.store import Store
from hubq.tasks import task_of
from hubq.text import TextSpec

SIZES = {"num_key_value_heads": ..., "vocab_size": tiny.VOCABULARY + 8}


def encoder(folder: Path, kind: str = "BertModel", pooling: str = "", **settings: object) -> Path:
    """A random BERT; with `pooling` one of sentence-transformers, else with special tokens around texts."""
    made = make(Variant(kind, {**SIZES, **settings}), folder)
    made = made if pooling else enclosed(made)
    if pooling:
        steps = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
        modules = [{"type": f"sentence_transformers.models.{step}", "path": path} for step, path in steps]
        (made / "modules.json").write_text(json.dumps(modules))
        (made / "sentence_bert_config.json").write_text('{"max_seq_length": 48}')
        (made / "config_sentence_transformers.json").write_text("{}")
        (made / "1_Pooling").mkdir()
        (made / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    return made


def source(folder: Path) -> Source:
    files = tuple(RepoFile(path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file())
    return Source("org/m", "0" * 40, folder, read_config((folder / "config.json").read_bytes()), {}, files)


@pytest.fixture
def spec(topics: Path) -> TextSpec:
    return TextSpec(str(topics), None, texts=24, length=64)


@pytest.fixture
def request_(spec: TextSpec, tmp_path: Path) -> Request:
    (tmp_path / "out").mkdir()
    store, command = Store(tmp_path / "store"), "hubq publish {model} {build} --windows {windows}"
    folder = encoder(tmp_path / "source" / "Tiny-Bert", pooling="mean")
    levels = parse_levels("f16,q8_0,q4_k_m")
    return Request(str(folder), levels, store, to=str(tmp_path / "out"), text=spec, command=command)


def pooled_by_llama_cpp(path: Path, given: Samples) -> np.ndarray:
    model = llama_cpp.Llama(str(path), embedding=True, n_ctx=64, n_batch=64, n_ubatch=64, verbose=False)
    found = []
    for ids in given.ids:
        batch = (llama_cpp.llama_token * len(ids))(*ids.tolist())
        assert llama_cpp.llama_encode(model.ctx, llama_cpp.llama_batch_get_one(batch, len(ids))) == 0
        found.append(np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(model.ctx, 0), (model.n_embd(),)).copy())
    return np.stack(found)


def test_embeddings_of_gguf_files_are_measured(request_: Request, spec: TextSpec) -> None:
    result = publish(request_)
    made, folder = result.release, Path(request_.model)
    rows = {(row.level, row.engine): row.values for row in made.measurements}
    assert list(rows["gguf:F16", "weights"]) == ["cosine", "cosine_min", "similarity", "neighbours"]
    for engine in ("llama.cpp", "weights"):
        found = [rows[level.id, engine]["cosine"].value for level in request_.levels]
        assert 1 - 1e-3 < found[0] < 1 + 1e-12 and found[0] > found[1] > found[2] > 0.9
    given = samples(source(folder), spec, "feature-extraction")
    assert made.evalset == given.evalset and given.evalset.length == 48
    theirs = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        ref = np.stack([theirs(torch.tensor(ids[None])).last_hidden_state[0].mean(0).numpy() for ids in given.ids])
    ours = pooled_by_llama_cpp(Path(result.target) / made.artifacts[2].path.name, given)
    cosines = (ref * ours).sum(1) / np.linalg.norm(ref, axis=1) / np.linalg.norm(ours, axis=1)
    assert rows["gguf:Q4_K_M", "llama.cpp"]["cosine"].value == pytest.approx(cosines.mean(), abs=2e-4)
    assert rows["gguf:Q4_K_M", "llama.cpp"]["cosine_min"].value == pytest.approx(cosines.min(), abs=1e-3)
    assert {check.outcome for check in made.checks if check.name == "embeddings"} == {"passed"}
    assert read_record(result.card["release.json"]).measurements == made.measurements
    card = result.card["README.md"].decode()
    for words in (
        "Same top-10 neighbours, %",
        "- Texts: 24 of 7",
        "llama-embedding -m",
        "--windows 24",
        "neighbours: higher is",
    ):
        assert words.lower() in card.lower()
    for words in ("loss.svg", "Windows:", "PPL", "none: the reference", "model-index"):
        assert words not in card


def test_without_measurements_embeddings_are_still_checked(
    request_: Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = publish(replace(request_, text=None, levels=parse_levels("q8_0"))).release
    assert {check.name: check.outcome for check in made.checks}["embeddings"] == "passed" and not made.measurements
    from hubq.formats.gguf import gate

    monkeypatch.setattr(gate, "BOUNDS", {"vectors": {0: (1.1,)}})
    with pytest.raises(GateFailed, match=r"gguf:Q8_0: embeddings: mean cosine .*; wanted is mean cosine at least 1\.1"):
        publish(replace(request_, text=None, levels=parse_levels("q8_0"), store=Store(tmp_path / "another")))


def test_a_head_that_a_gguf_leaves_out_is_no_part_of_the_reference(request_: Request, tmp_path: Path) -> None:
    folder = encoder(tmp_path / "source" / "Tiny-Masked", "BertForMaskedLM", "cls", tie_word_embeddings=True)
    made = publish(replace(request_, model=str(folder), levels=parse_levels("f16"))).release
    rows = [row for row in made.measurements if row.level == "gguf:F16"]
    assert [row.engine for row in rows] == ["llama.cpp", "weights"]
    assert all(row.values["cosine"].value > 0.999 for row in rows)


def test_a_matrix_cannot_be_computed_of_an_encoder(request_: Request) -> None:
    with pytest.raises(Unsupported, match="BertModel is an encoder"):
        plan(replace(request_, imatrix=request_.text))


def test_too_few_texts_are_refused_before_anything_is_built(request_: Request, tmp_path: Path) -> None:
    (path := tmp_path / "one.txt").write_text("One line alone.\n")
    with pytest.raises(Usage, match="too few"):
        publish(replace(request_, text=TextSpec(str(path), None)))
    assert not list(tmp_path.rglob("*.gguf"))


# --- classifiers: scored against themselves with noise, and from scratch ---

KINDS = {
    "fill-mask": ("BertForMaskedLM", {"tie_word_embeddings": True}),
    "token-classification": ("BertForTokenClassification", {"num_labels": 5}),
    "text-classification": ("BertForSequenceClassification", {"num_labels": 3}),
    "text-ranking": ("BertForSequenceClassification", {"num_labels": 1}),
}


@pytest.mark.parametrize("task", KINDS)
def test_labels_and_scores_are_those_of_transformers(task: str, spec: TextSpec, tmp_path: Path) -> None:
    import transformers

    kind, settings = KINDS[task]
    given = source(encoder(tmp_path / "model", kind, **settings))
    assert task_of(given.config) == task
    tensors = dict(reference.source_weights(given))
    coarse = {name: np.round(array * 16) / 16 for name, array in tensors.items()}
    texts = samples(given, spec, task)
    found = list(
        score.measure(
            texts,
            lambda: reference.load_rows(given.config, tensors.items(), task),
            {("coarse", "weights"): lambda: reference.load_rows(given.config, coarse.items(), task)},
            score.Budget(0),
        )
    )
    assert found[0].values == {} and found[1].level == "coarse"
    outputs = []
    for weights in (tensors, coarse):
        model = getattr(transformers, kind).from_pretrained(
            None, config=transformers.BertConfig.from_pretrained(given.folder),
            state_dict={name: torch.tensor(array) for name, array in weights.items()},
        ).eval()  # fmt: skip
        with torch.inference_mode():
            outputs.append([
                model(torch.tensor(ids[None]), token_type_ids=torch.tensor(segments[None])).logits.double().numpy()
                for ids, segments in zip(texts.ids, texts.segments, strict=True)
            ])  # fmt: skip
    if task == "text-ranking":
        one, other = (np.array([logits.item() for logits in side]) for side in outputs)
        assert found[1].values["score_rms"].value == pytest.approx(np.sqrt(((one - other) ** 2).mean()) / one.std(), rel=1e-3)
        ranks = [np.argsort(np.argsort(side)) for side in (one, other)]
        assert found[1].values["ranking"].value == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)
        return
    kld, same = [], []
    for ids, first, second in zip(texts.ids, *outputs, strict=True):
        rows = {"fill-mask": np.flatnonzero(ids == tiny.VOCABULARY + 2), "token-classification": np.arange(1, len(ids) - 1)}
        log_p, log_q = (
            torch.tensor(side.reshape(-1, side.shape[-1])).log_softmax(-1).numpy()[rows.get(task, np.array([0]))]
            for side in (first, second)
        )
        kld.append((np.exp(log_p) * (log_p - log_q)).sum(1))
        same.append(log_p.argmax(1) == log_q.argmax(1))
    wanted = estimates(Labels(kld, same))
    assert found[1].values["label_kld"].value == pytest.approx(np.concatenate(kld).mean(), rel=1e-3) and wanted
    assert found[1].values["same_label"].value == pytest.approx(np.concatenate(same).mean())
    assert found[1].values["label_kld"].value > 1e-6


def test_a_classifier_whose_head_is_missing_is_refused(tmp_path: Path) -> None:
    given = source(encoder(tmp_path / "model", "BertForTokenClassification", num_labels=5))
    tensors = {name: array for name, array in reference.source_weights(given) if not name.startswith("classifier")}
    with (
        pytest.raises(BadSource, match="the weights lack parameters"),
        reference.load_rows(given.config, tensors.items(), "token-classification"),
    ):
        pass
