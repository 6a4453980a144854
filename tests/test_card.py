from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from shelf import WIKITEXT

from hubq import card
from hubq.errors import BadSource, Unsupported
from hubq.formats.gguf.run_it import usage
from hubq.nouns import Artifact, Check, Estimate, Measurement, Release

WEIGHTS = 134_515_008
SECRET = Path("/home/someone/.cache/hubq/1f2e")
NUMBERS = {  # level -> bits per weight, KLD, top-1; as a 135M model has them
    "BF16": (16.1, 2.1e-6, 0.9991),
    "F16": (16.1, 2.4e-5, 0.9962),
    "Q8_0": (8.61, 0.00119, 0.979),
    "Q6_K": (8.24, 0.0031, 0.968),
    "Q5_K_M": (6.65, 0.0121, 0.941),
    "Q5_K_S": (6.53, 0.0139, 0.937),
    "Q5_1": (6.42, 0.0162, 0.931),
    "Q5_0": (5.99, 0.0178, 0.929),
    "Q4_K_M": (6.25, 0.0519, 0.869),
    "Q4_K_S": (6.05, 0.0601, 0.861),
    "IQ4_NL": (5.43, 0.0631, 0.858),
    "Q4_1": (5.57, 0.0722, 0.848),
    "Q4_0": (5.14, 0.0881, 0.838),
    "Q3_K_L": (5.53, 0.143, 0.801),
    "Q3_K_M": (5.31, 0.151, 0.795),
    "Q3_K_S": (4.99, 0.212, 0.761),
    "Q2_K": (5.02, 0.428, 0.657),
}
GROUPS = {"feed-forward": 60_000_000, "embeddings": 30_000_000, "attention": 20_000_000, "other": 250_000}
THREE = ("Q8_0", "Q5_K_M", "Q4_K_M")
HOSTILE = (
    "| <script>alert(1)</script> {{7*7}} {% raw %} ](javascript:alert(1)) [a](//b) \n---\n# Owned\n- a\n```\n\n"
    "![x](http://evil.example) `a` **b** ~~c~~ <http://evil.example> &lt; \\"
)


def artifact(level: str, model: str = "SmolLM2-135M-Instruct", fallbacks: int = 30) -> Artifact:
    size = int(NUMBERS[level][0] * WEIGHTS / 8)
    types = {"Q6_K": 61, "F32": 61, "Q4_K": 150}
    kept = 0 if level in ("BF16", "F16", "Q8_0") else fallbacks
    sha256 = f"{size:064x}"
    return Artifact(
        f"gguf:{level}", SECRET / f"{model}-{level}.gguf", size, sha256, WEIGHTS, types, kept, f"key-{level}", groups=GROUPS
    )


def measurement(level: str, engine: str, shift: float = 1.0) -> Measurement:
    _, kld, top1 = NUMBERS[level]
    kld, count = kld * shift, 592 * 255
    values = {
        "ppl": Estimate(21.376 * math.exp(kld), 0.3821, count),
        "ln_ppl_ratio": Estimate(kld * 0.97, kld * 0.07, count),
        "ppl_ratio": Estimate(math.exp(kld * 0.97), kld * 0.07, count),
        "kld": Estimate(kld, kld * 0.025, count),
        "kld_median": Estimate(kld * 0.4, kld * 0.011, count),
        "kld_p99": Estimate(kld * 6.1, kld * 0.2, count),
        "top1": Estimate(top1, 0.0012, count),
        "bits_per_byte": Estimate(1.0123 + kld / 4, 0.0042, count),
        "delta_p": Estimate(-kld / 5, kld / 60, count),
    }
    noise = np.random.default_rng(int(kld * 1e7)).normal(0, 1, (2, 592))
    noise -= noise.mean(1, keepdims=True)
    means = {
        "ln_ppl_ratio": tuple((kld * 0.97 + kld * 0.07 * np.sqrt(592) * noise[0]).tolist()),
        "kld": tuple((kld + kld * 0.025 * np.sqrt(592) * noise[1]).tolist()),
    }
    return Measurement(f"gguf:{level}", engine, values, means)


def make(levels=THREE, engines=("weights", "llama.cpp"), **changes) -> Release:
    reference = {"ppl": Estimate(21.376, 0.3816, 592 * 255), "bits_per_byte": Estimate(1.0123, 0.0041, 592 * 255)}
    rows = [Measurement("reference", "transformers", reference)] if engines else []
    rows += [measurement(level, engine, 1 + 0.02 * (engine == "llama.cpp")) for engine in engines for level in levels]
    release = Release(
        source="HuggingFaceTB/SmolLM2-135M-Instruct",
        commit="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        architecture="LlamaForCausalLM",
        weights=WEIGHTS,
        target="me/SmolLM2-135M-Instruct-GGUF",
        card={"license": "apache-2.0", "language": ["en"], "pipeline_tag": "text-generation", "chat_template": True},
        artifacts=tuple(artifact(level) for level in levels),
        measurements=tuple(rows),
        evalset=WIKITEXT if engines else None,
        versions={"hubq": "0.1.0", "gguf": "0.19.0", "transformers": "5.17.0"},
        machine="2 cores, x86_64",
        command="hubq publish HuggingFaceTB/SmolLM2-135M-Instruct@12fd25f --levels q8_0,q5_k_m,q4_k_m",
        checks=(
            Check("gguf:Q8_0", "chat template", "passed", "byte-equal"),
            Check("gguf:Q8_0", "logits", "not checked", "why"),
        ),
    )
    return replace(release, **changes)


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(markdown: str) -> list[list[str]]:
    """The cells of the first table."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("\xa0", " ") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def hostile() -> Release:
    """Every text that comes from outside, made to break out."""
    release = make()
    card_keys = ("license", "license_name", "license_link", "pipeline_tag")
    text_fields = ("dataset", "config", "split", "field", "revision", "text_sha256", "ids_sha256")
    name = HOSTILE.replace("/", "")
    return replace(
        release,
        source=name,
        commit=HOSTILE,
        architecture=HOSTILE,
        target=HOSTILE,
        card=dict.fromkeys(card_keys, HOSTILE) | {"language": [HOSTILE], "tags": [HOSTILE]},
        artifacts=tuple(replace(file, path=Path(name), sha256=HOSTILE) for file in release.artifacts),
        evalset=replace(release.evalset, **dict.fromkeys(text_fields, HOSTILE)),
        versions={HOSTILE: HOSTILE},
        machine=HOSTILE,
        command=HOSTILE,
        checks=tuple(replace(check, name=HOSTILE, detail=HOSTILE) for check in release.checks),
    )


# --- numbers ---


@pytest.mark.parametrize(
    ("value", "stderr", "shown"),
    [
        (1.053234, 0.003561, "1.0532 ± 0.0036"),
        (22.48312, 0.61234, "22.48 ± 0.61"),
        (0.0000021, 0.00000012, "0.00000210 ± 0.00000012"),
        (1.0, 0.0996, "1.00 ± 0.10"),
        (0.9999999999998054, 6.6e-15, "1"),
        (1.2e-12, 3e-13, "1.2e-12"),
        (12345.6, 123.4, "12350 ± 120"),
        (-0.00001, 0.0123, "0.000 ± 0.012"),
        (97.9, 0.0, "97.9"),
        (97.9, math.nan, "97.9"),
        (math.nan, 0.1, "n/a"),
    ],
)
def test_figure_has_the_digits_that_its_error_allows(value, stderr, shown):
    assert card.figure(value, stderr) == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [(144_811_968, "145 MB"), (1_071_000_000, "1.07 GB"), (999_700_000, "1.00 GB"), (35_000_000_000, "35.0 GB"), (12, "12 B")],
)
def test_sizes_are_decimal(size, shown):
    assert card.file_size(size) == shown


# --- the page ---


def test_pick_a_file_has_the_reference_then_the_files_as_given():
    table = rows(section(card.readme(make(), ""), "Pick a file"))
    assert table[0] == ["File", "Size", "Bits per weight", "PPL ratio", "Mean KLD", "Same top token, %", "Fallbacks"]
    assert table[2] == ["source", "–", "–", "1", "0", "100", "–"]
    assert [row[0].strip("*").partition("]")[0] for row in table[3:]] == ["[Q8\\_0", "[Q5\\_K\\_M", "[Q4\\_K\\_M"]
    link = "(https://huggingface.co/me/SmolLM2-135M-Instruct-GGUF/blob/main/SmolLM2-135M-Instruct-Q4_K_M.gguf)"
    assert table[5][0].endswith(link)
    assert table[5][1:] == ["105 MB", "6.25", "1.0527 ± 0.0037", "0.0529 ± 0.0013", "86.90 ± 0.12", "30 of 272"]


def test_engines_have_tables_of_their_own():
    text = section(card.readme(make(), ""), "All measurements")
    engines = re.split(r"\n### ", text)[1:]
    assert [re.split(r"[:\n]", engine)[0] for engine in engines] == ["llama.cpp", "weights", "The source itself"]
    assert rows(engines[0])[4][3] != rows(engines[1])[4][3]
    assert {len(row) for row in rows(text)} == {2, 3, 5}  # no table is wider
    assert rows(engines[2])[2] == ["source in float32 (transformers)", "21.38 ± 0.38", "1.0123 ± 0.0041"]
    pick = section(card.readme(make(engines=("weights",)), ""), "Pick a file")
    assert "measured with weights" in pick


def test_a_level_without_a_number_shows_a_dash():
    release = make()
    release = replace(release, measurements=release.measurements[:-1])
    assert rows(section(card.readme(release, ""), "Pick a file"))[5][3:6] == ["–", "–", "–"]


def test_unmeasured_says_so_and_has_no_numbers():
    made = card.files(make(engines=()), "run")
    text = made["README.md"].decode()
    assert "Not evaluated." in text
    assert set(made) == {"README.md", "release.json", "bytes.svg"}
    assert rows(section(text, "Pick a file"))[0] == ["File", "Size", "Bits per weight", "Fallbacks"]
    assert "model-index" not in front(text)
    assert "How it was measured" not in text and "loss.svg" not in text


def test_fallbacks_are_explained_only_where_there_are_any():
    clean = tuple(artifact(level, fallbacks=0) for level in THREE)
    assert "Fallback tensors" not in card.readme(make(artifacts=clean), "")
    assert "multiple of 256" in card.readme(make(), "")


def test_how_it_was_measured_pins_the_text():
    text = section(card.readme(make(), ""), "How it was measured")
    for fact in (
        "b08601e04326c79dfdd32d625aee71d232d685c3",
        "592 of 592",
        "255 tokens, 150,960 in all",
        "seed 0",
        "no BOS",
        "float32",
    ):
        assert fact in text
    with_bos = make()
    with_bos = replace(with_bos, evalset=replace(with_bos.evalset, bos=2))
    assert "BOS (id 2)" in card.readme(with_bos, "")


def test_usage_is_inserted_as_it_is():
    assert "\n## Run it\n\nrun `*this*`\n\n## All" in card.readme(make(), "run `*this*`\n")


def test_same_release_same_bytes():
    assert card.files(make(tuple(NUMBERS)), "x") == card.files(make(tuple(NUMBERS)), "x")


@pytest.mark.parametrize("target", ["me/SmolLM2-135M-Instruct-GGUF", str(SECRET / "out")])
def test_no_path_of_the_machine_is_told(target):
    release = make(target=target, source=str(SECRET / "model"))
    for content in card.files(release, usage(release)).values():
        assert b"/home" not in content and b".cache" not in content


# --- front matter ---


def test_front_matter_is_what_the_hub_client_reads():
    from huggingface_hub import ModelCard

    hub_card = ModelCard(card.readme(make(tuple(NUMBERS)), "run"))
    data = hub_card.data.to_dict()
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data["base_model_relation"] == "quantized"
    assert data["tags"] == ["gguf", "llama.cpp", "quantized", "hubq", "conversational"]
    assert (data["license"], data["language"], data["datasets"]) == ("apache-2.0", ["en"], ["Salesforce/wikitext"])
    results = hub_card.data.eval_results
    assert len(results) == 3 * len(NUMBERS)
    found = next(r for r in results if r.metric_name == "KL divergence, nats per token, of Q4_K_M in llama.cpp")
    assert (found.metric_value, found.dataset_revision) == (0.0529, make().evalset.revision)


def test_model_index_survives_the_hub_client():
    from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

    written = front(card.readme(make(), ""))["model-index"]
    name, results = model_index_to_eval_results(written)
    assert eval_results_to_model_index(name, results) == written


def test_front_matter_leaves_out_what_is_unknown_or_refused():
    release = make(
        source="local-folder", card={"license": "see <b>LICENSE</b>", "language": None, "license_link": "javascript:alert(1)"}
    )
    data = front(card.readme(release, ""))
    assert {"base_model", "base_model_relation", "license", "license_link", "language"}.isdisjoint(data)
    assert data["pipeline_tag"] == "text-generation"
    assert "conversational" not in data["tags"]


def test_a_licence_file_of_the_source_is_linked_at_its_commit():
    data = front(card.readme(make(card={"license": "other", "license_name": "my-terms", "license_link": "LICENSE"}), ""))
    assert data["license_link"].endswith("/SmolLM2-135M-Instruct/blob/12fd25f77366fa6b3b4b768ec3050bf629380bac/LICENSE")


# --- hostile text ---


def parsed(text: str) -> list:
    """The card's body as a flat list of Markdown tokens."""
    from markdown_it import MarkdownIt

    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text.split("---\n", 2)[2])
    return [token for block in blocks for token in [block, *(block.children or [])]]


def test_hostile_text_cannot_leave_its_place():
    tokens, honest = parsed(card.readme(hostile(), "run")), parsed(card.readme(make(), "run"))
    kinds = {token.type for token in tokens}
    assert kinds <= {token.type for token in honest} and not kinds & {"html_block", "html_inline"}
    for kind in ("heading_open", "tr_open", "th_open", "td_open", "list_item_open", "fence", "image"):
        assert sum(t.type == kind for t in tokens) == sum(t.type == kind for t in honest), kind
    links = [token.attrs["href"] for token in tokens if token.type == "link_open"]
    assert links and all(re.fullmatch(r"\./[\w.%~-]+", link) for link in links)
    assert [token.attrs["src"] for token in tokens if token.type == "image"] == ["loss.svg", "levels.svg", "bytes.svg"]
    texts = "".join(token.content for token in tokens if token.type == "text")
    assert "http://" not in texts and "{{7*7}} {% raw %}" in texts and "<script>" in texts and "&lt;" in texts


def test_hostile_text_is_data_in_the_front_matter():
    from huggingface_hub import ModelCard

    text = card.readme(hostile(), "run")
    data = ModelCard(text).data.to_dict()
    assert "Owned" not in str(data.get("license")) and data["pipeline_tag"] == "text-generation"
    assert {"base_model", "datasets", "language", "license_link"}.isdisjoint(data)
    assert front(text)["model-index"][0]["results"][0]["dataset"]["split"] == " ".join(HOSTILE.split())


def test_hostile_text_in_the_picture_is_text():
    picture = ElementTree.fromstring(card.files(make(source="a/<b>$x^2$\x00{{1}}"), "")["loss.svg"])
    texts = [text.text or "" for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert any(text.startswith("<b>$x^2${{1}}: ") for text in texts)


@pytest.mark.parametrize("text", ["a|b", "`a`", "<i>", "[a](b)", "*a*", "_a_", "# a", "~~a~~", "$a$", "![a](b)", "a\\"])
def test_md_escapes_markup(text):
    escaped = card.md(text)
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`\[\]*_#~$!]", escaped) and "<" not in escaped
    assert card.md("https://evil.example a@b.example www.evil.example") == (
        "https:\u2060//evil.example a@\u2060b.example www\u2060.evil.example"
    )
    assert card.md("a\r\n\u2028b\u202e\x00c") == "a b c"


# --- usage ---


def test_usage_prefers_q4_k_m_else_the_smallest():
    text = usage(make())
    assert "llama-cli -hf me/SmolLM2-135M-Instruct-GGUF:Q4_K_M\n" in text
    assert "ollama run hf.co/me/SmolLM2-135M-Instruct-GGUF:Q4_K_M\n" in text
    assert "hf download me/SmolLM2-135M-Instruct-GGUF SmolLM2-135M-Instruct-Q4_K_M.gguf --local-dir ." in text
    assert "lmstudio://open_from_hf?model=me/SmolLM2-135M-Instruct-GGUF&file=SmolLM2-135M-Instruct-Q4_K_M.gguf" in text
    assert "`Q8_0`, `Q5_K_M`, `Q4_K_M`." in text
    assert "-GGUF:Q5_K_M" in usage(make(("Q8_0", "Q5_K_M")))


def test_usage_names_the_file_where_a_tag_would_find_another():
    """As in records from before such releases were refused."""
    text = usage(make(("F16", "BF16")))
    assert "picks the file: `BF16`.\n" in text
    assert "-hf me/SmolLM2-135M-Instruct-GGUF --hf-file SmolLM2-135M-Instruct-F16.gguf" in text
    assert ":F16" not in text


def test_usage_without_a_hub_is_local():
    text = usage(make(target=str(SECRET / "out")))
    assert "llama-cli -m SmolLM2-135M-Instruct-Q4_K_M.gguf" in text
    assert "echo 'FROM ./SmolLM2-135M-Instruct-Q4_K_M.gguf' > Modelfile" in text
    assert "huggingface" not in text and "/home" not in text


def test_usage_of_a_base_model_does_not_chat():
    assert "llama-completion" in usage(make(card={})) and "llama-cli" not in usage(make(card={}))


def test_usage_cannot_be_left_by_a_file_name():
    release = replace(make(), artifacts=tuple(replace(f, path=Path("a\n```\n$(rm -rf)")) for f in make().artifacts))
    for target in (release.target, "local"):
        text = usage(replace(release, target=target))
        assert not re.search(r"(?m)^\$\(rm", text) and "'a" in text
        assert len(re.findall(r"(?m)^```", text)) % 2 == 0


# --- release.json ---


@pytest.mark.parametrize("levels", [THREE, tuple(NUMBERS)])
@pytest.mark.parametrize("engines", [("weights", "llama.cpp"), ()])
def test_release_json_reads_back(levels, engines):
    release = make(levels, engines)
    again = card.read_record(card.release_json(release))
    bare = tuple(replace(file, path=Path(file.path.name)) for file in release.artifacts)
    assert replace(again, card=release.card) == replace(release, artifacts=bare)
    assert card.files(again, "run") == card.files(release, "run")


def test_numbers_that_are_not_finite_read_back():
    release = make(measurements=(Measurement("gguf:Q8_0", "weights", {"kld": Estimate(0.1, math.nan, 255)}),))
    again = card.read_record(card.release_json(release))
    assert math.isnan(again.measurements[0].values["kld"].stderr)
    assert b"NaN" not in card.release_json(release)


def test_release_json_has_a_fixed_order():
    data = json.loads(card.release_json(make()))
    order = (
        "schema source architecture weights target card files evalset measurements versions machine command imatrices checks"
        " left_out origin speeds inputs environment within cache"
    )
    assert list(data) == order.split()
    shuffled = replace(make(), versions={"transformers": "5.17.0", "hubq": "0.1.0", "gguf": "0.19.0"})
    assert card.release_json(shuffled) == card.release_json(make())


def damaged(path: str, value: object) -> bytes:
    data = json.loads(card.release_json(make()))
    *where, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = data
    for part in where:
        place = place[part]
    place[last] = value
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"{", "damaged"),
        (b"[]", "not a JSON object"),
        (b"\xff", "damaged"),
        (b'{"schema": 2}', "measurements"),
        (damaged("files.0.path", "../../etc/passwd"), "not the name of a file"),
        (damaged("files.0.size", "12"), "size"),
        (damaged("files.0.weights", 0), "impossible"),
        (damaged("files.0.sha256", "no"), "SHA-256"),
        (damaged("weights", None), "weights"),
        (damaged("measurements", {"a": 1}), "damaged"),
        (damaged("evalset", {}), "evalset"),
        (damaged("measurements.1.per_window.kld", [0.5]), "fewer than two"),
        (damaged("files.0.groups", {"a/../b": 1}), "groups"),
    ],
)
def test_a_damaged_release_json_is_named(data, problem):
    with pytest.raises(BadSource, match=problem) as caught:
        card.read_record(data)
    assert caught.value.hint


def test_another_schema_is_unsupported():
    with pytest.raises(Unsupported, match="schema 3"):
        card.read_record(damaged("schema", 3))


def test_what_was_checked_is_listed_with_its_levels():
    ids, template = ("token ids", "passed", "equal"), ("chat template", "not checked", "no_llama")
    checks = tuple(Check(f"gguf:{level}", *found) for level in ("Q8_0", "Q4_K_M") for found in (ids, template))
    checks += (Check("gguf:Q5_K_M", "token ids", "passed", "other"),)
    text = section(card.readme(make(checks=checks), ""), "Checked")
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- token ids (Q8\\_0, Q4\\_K\\_M): passed; equal.",
        "- token ids (Q5\\_K\\_M): passed; other.",
        "- chat template (Q8\\_0, Q4\\_K\\_M): not checked; no\\_llama.",
    ]
    assert "## Checked" not in card.readme(make(checks=()), "")


def test_a_record_from_before_there_were_checks_is_read():
    data = json.loads(card.release_json(make()))
    del data["checks"]
    assert card.read_record(json.dumps(data).encode()).checks == ()
    with pytest.raises(BadSource, match="checks"):
        card.read_record(damaged("checks.0.outcome", "perhaps"))


def test_checks_stay_with_files_that_stay():
    from hubq.nouns import Snapshot
    from hubq.record import merge

    def found(level, detail):
        return Check(f"gguf:{level}", "logits", "passed", detail)

    before = make(checks=(found("Q8_0", "old"), found("Q5_K_M", "old"), found("Q4_K_M", "old")))
    after = make(("Q8_0",), checks=(found("Q8_0", "new"),))
    listed = Snapshot("me/x", "0" * 40, tuple(before.artifacts[1].files))
    assert merge(after, before, listed).checks == (found("Q8_0", "new"), found("Q5_K_M", "old"))


# --- what the numbers allow to say ---


def test_the_recommended_file_is_bold_and_comes_with_its_error_rate():
    text = section(card.readme(make(), ""), "Pick a file")
    assert [row[0].startswith("**[") for row in rows(text)[2:]] == [False, False, True, False]
    assert "**Recommended: Q5\\_K\\_M**, the smallest of which it is shown that its perplexity is at most 2 % above" in text
    assert "any of the 3 files is called so wrongly is at most 5 % (Holm)" in text
    strict = section(card.readme(make(within=0.0001), ""), "Pick a file")
    assert "Of no file it is shown that its perplexity is at most 0.01 % above" in strict and "**" not in strict


def test_files_that_are_not_told_apart_are_named():
    text = section(card.readme(make(("Q8_0", "Q3_K_L", "Q3_K_M")), ""), "Pick a file")
    assert "No order among Q3\\_K\\_L and Q3\\_K\\_M: this text does not tell which" in text
    assert "No order" not in section(card.readme(make(), ""), "Pick a file")


def test_the_floor_stands_below_the_source():
    floor = Measurement(
        "floor", "transformers, bfloat16", {"kld": Estimate(0.0004, 0.00001, 255), "top1": Estimate(0.99, 0.001, 255)}
    )
    text = card.readme(make(measurements=(*make().measurements, floor)), "")
    table = rows(section(text, "Pick a file"))
    assert table[3] == ["source in bfloat16", "–", "–", "–", "0.000400 ± 0.000010", "99.00 ± 0.10", "–"]
    assert "the second is the source computed in 16 bits" in text
    assert rows(section(text, "All measurements").split("### The source itself")[1])[3][0] == "source in bfloat16"
    assert "the second is" not in card.readme(make(), "")
    assert card.readme(make(), "").count("llama.cpp") == text.count("llama.cpp")  # it is no engine that ran files


def test_where_measuring_stopped_by_itself_the_card_says_when_and_why():
    release = make()
    release = replace(release, evalset=replace(release.evalset, precision=0.005))
    text = card.readme(release, "")
    how = section(text, "How it was measured")
    assert "reached no farther than 0.5 % (at most 592): Q8\\_0 592, Q5\\_K\\_M 592, Q4\\_K\\_M 592" in how


def test_lists_of_numbers_take_a_line_each():
    text = card.release_json(make()).decode()
    lines = [line for line in text.splitlines() if '"kld": [' in line]
    assert len(lines) == 6 and all(line.rstrip(",").endswith("]") for line in lines)


# --- the pictures ---


def words(svg: bytes) -> list[str]:
    return [text.strip() for text in ElementTree.fromstring(svg).itertext() if text.strip()]


def test_the_picture_of_losses_names_the_levels_in_order_and_the_band():
    svg = card.files(make(tuple(NUMBERS)), "")["levels.svg"]
    found = [word for word in words(svg) if word in NUMBERS]
    assert found == list(NUMBERS)
    assert any("within 2 %" in word for word in words(svg)) and "nan" not in svg.decode()


def test_the_picture_of_bytes_names_levels_and_groups():
    found = words(card.files(make(), "")["bytes.svg"])
    assert [word for word in found if word in NUMBERS] == list(THREE)
    assert [word for word in found if word in GROUPS] == list(GROUPS)


def test_a_release_without_what_they_show_has_no_pictures():
    bare = tuple(replace(file, groups={}) for file in make().artifacts)
    assert set(card.files(make(engines=(), artifacts=bare), "")) == {"README.md", "release.json"}


@pytest.mark.parametrize("levels", [THREE, tuple(NUMBERS)])
def test_the_picture_names_every_level_once(levels):
    svg = card.files(make(levels), "")["loss.svg"]
    found = words(svg)
    assert [found.count(level) for level in levels] == [1] * len(levels)
    assert {"llama.cpp", "weights", "File size, MB (log scale)"} <= set(found)
    for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        inside = 57 < float(text.get("x", 100)) < 560 and 30 < float(text.get("y", 100)) < 340
        assert inside or text.text not in levels


def test_the_picture_draws_zero_and_a_single_file():
    release = make(("Q8_0",), ("weights",))
    exact = replace(release.measurements[-1], values={"kld": Estimate(0.0, 0.0, 255)})
    svg = card.files(replace(release, measurements=(exact,)), "")["loss.svg"].decode()
    assert "Q8_0" in svg and "≤ 1e-5" in svg and "nan" not in svg


def test_the_picture_does_not_follow_the_users_matplotlib_settings():
    import matplotlib

    before = card.files(make(), "")["loss.svg"]
    with matplotlib.rc_context({"font.size": 30, "xtick.major.size": 20, "svg.hashsalt": "other"}):
        assert card.files(make(), "")["loss.svg"] == before


def test_names_on_the_picture_do_not_cover_each_other():
    from hubq.plot import Box, _place

    frame, taken = Box(0, 0, 500, 300), []
    for number in range(12):
        x, y = 200 + 4 * number, 150 + 3 * number
        taken.append(Box(x - 5, y - 5, x + 5, y + 5))
    for number in range(12):
        *_, box = _place("Q4_K_M", 200 + 4 * number, 150 + 3 * number, taken, frame)
        assert sum(box.overlap(other) for other in taken) == 0
        taken.append(box)
