from __future__ import annotations

from dataclasses import replace

import pytest
from shelf import CARDS, WIKITEXT

from hubq.cards import Card
from hubq.catalog import catalog


def test_cards_json_tells_all_files_with_their_losses() -> None:
    told = catalog([Card(name, release) for name, release in CARDS.items()])
    assert told["schema"] == 1
    models = {model["card"]: model for model in told["models"]}
    assert models.keys() == CARDS.keys()
    file = models["Qwen3-0.6B"]["files"][3]
    assert file["level"] == "gguf:Q4_K_M" and file["path"] == "Qwen3-0.6B-Q4_K_M.gguf"
    assert file["size"] == int(5.1 * 596_049_920 / 8) and file["bits_per_weight"] == pytest.approx(5.1)
    assert file["loss"] == {"value": 0.0489, "stderr": 0.0489 / 20, "count": 3060}
    assert file["metrics"]["weights"]["kld"]["value"] == pytest.approx(0.9 * 0.0489)
    assert file["url"] == "https://huggingface.co/me/Qwen3-0.6B-GGUF/blob/main/Qwen3-0.6B-Q4_K_M.gguf"
    measure = told["measures"][file["measure"]]
    assert (measure["metric"], measure["engine"], measure["better"]) == ("kld", "llama.cpp", "lower")
    assert measure["text"] == "Salesforce/wikitext wikitext-2-raw-v1 test"
    assert models["Qwen3-0.6B"]["references"][0]["metrics"]["ppl"]["value"] == 11.8
    small = models["SmolLM2-135M-Instruct"]
    assert small["files"][0]["url"] is None and small["target"] == {"repo": "SmolLM2-135M-Instruct-GGUF", "url": None}
    assert small["files"][0]["measure"] != file["measure"]
    (unmeasured,) = models["unmeasured"]["files"]
    assert unmeasured["loss"] is None and unmeasured["measure"] is None and models["unmeasured"]["text"] is None


def test_texts_of_one_name_are_two_measures() -> None:
    one = CARDS["Qwen3-0.6B"]
    other = replace(one, evalset=replace(WIKITEXT, text_sha256="99" * 32))
    labels = {measure["label"] for measure in catalog([Card("a", one), Card("b", other)])["measures"]}
    named = "Mean KLD · llama.cpp · Salesforce/wikitext wikitext-2-raw-v1 test"
    assert labels == {f"{named} 17171717", f"{named} 99999999"}
    again = catalog([Card("a", one), Card("b", replace(one, architecture="Other"))])
    assert [measure["label"] for measure in again["measures"]] == ["Mean KLD · llama.cpp · wikitext"]


def test_the_recommended_file_is_the_one_of_the_card() -> None:
    told = catalog([Card("one", CARDS["Qwen3-0.6B"])])
    assert [file["level"] for file in told["models"][0]["files"] if file["recommended"]] == ["gguf:Q5_K_M"]
