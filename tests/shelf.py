"""A folder of cards made by hand: models of several sizes, families, formats and tasks, and one whose every word is hostile."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from hubq import __version__, cards
from hubq.cli import app
from hubq.nouns import Artifact, Estimate, EvalSet, Measurement, Release, Speed, Spread
from hubq.record import release_json

WIKITEXT = EvalSet(
    dataset="Salesforce/wikitext",
    config="wikitext-2-raw-v1",
    split="test",
    field="text",
    revision="b08601e04326c79dfdd32d625aee71d232d685c3",
    tokens=303_501,
    available=592,
    windows=592,
    length=512,
    seed=0,
    bos=None,
    text_sha256="17" * 32,
    ids_sha256="2a" * 32,
)
MANUAL = replace(WIKITEXT, dataset="topics.jsonl", config=None, split="all", windows=12, available=220, text_sha256="18" * 32)
TEXTS = replace(MANUAL, unit="texts", windows=256, available=4096, length=256)
SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(1)>'
BIDI = "ab\N{RIGHT-TO-LEFT OVERRIDE}cd"


def files(model: str, weights: int, bits: dict[str, float]) -> tuple[Artifact, ...]:
    """Files of so many bits per weight, by level."""
    made = []
    for level, count in bits.items():
        size, name = int(count * weights / 8), re.sub(r"[^\w.-]", "_", f"{model}-{level.partition(':')[2]}")
        made.append(Artifact(level, Path(f"{name}.gguf"), size, f"{size:064x}", weights, {"Q4_K": 3}, 0, f"key-{level}"))
    return tuple(made)


def measured(level: str, engine: str, per_window: dict[str, tuple[float, ...]] | None = None, **values: Any) -> Measurement:
    """What was measured: metric -> value and standard error."""
    return Measurement(level, engine, {name: Estimate(*found, 3060) for name, found in values.items()}, per_window or {})


def model(repo: str, architecture: str, weights: int, klds: dict[str, tuple[float, float]], **changes: Any) -> Release:
    """A text generator: level -> bits per weight and mean KL divergence."""
    levels = {f"gguf:{level}": bits for level, (bits, _) in klds.items()}
    rows = [measured("reference", "transformers", ppl=(11.8, 0.4), bits_per_byte=(0.915, 0.03))]
    for engine, factor in (("llama.cpp", 1.0), ("weights", 0.9)):
        rows += [
            measured(
                f"gguf:{level}",
                engine,
                kld=(factor * kld, kld / 20),
                ppl_ratio=(1 + factor * kld, kld / 10),
                top1=(1 - kld**0.5 / 2, 0.004),
                per_window={
                    name: tuple(factor * kld * (0.9 + 0.02 * n) for n in range(12)) for name in ("kld", "ln_ppl_ratio")
                },
            )
            for level, (_, kld) in klds.items()
        ]
    release = Release(
        source=repo,
        commit="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        architecture=architecture,
        weights=weights,
        target=f"me/{repo.rpartition('/')[2]}-GGUF",
        card={"license": "apache-2.0", "pipeline_tag": "text-generation"},
        artifacts=files(repo.rpartition("/")[2], weights, levels),
        measurements=tuple(rows),
        evalset=WIKITEXT,
        versions={"hubq": __version__, "gguf": "0.19.0"},
        machine="Linux x86_64, 2 cores",
        command="hubq publish {model} {build}",
        speeds=tuple(
            Speed(
                level, "llama.cpp", 2, 512, 128, Spread(400.0, 390.0, 410.0, 5), 0.5, 10**9, Spread(40.0, 39.0, 41.0, 5), 0.05
            )
            for level in levels
        ),
    )
    return replace(release, **changes)


def embedder() -> Release:
    """A model of vectors in ONNX, measured by cosines."""
    release = model("sentence-transformers/all-MiniLM-L6-v2", "BertModel", 22_713_216, {})
    rows = [
        measured(f"onnx:{level}", "onnxruntime", cosine=(value, 0.0004), similarity=(value - 0.001, 0.001))
        for level, value in (("fp16", 0.99999), ("q8", 0.9981), ("uint8", 0.9712))
    ]
    made = files("model", release.weights, {"onnx:fp16": 16.2, "onnx:q8": 8.4, "onnx:uint8": 8.3})
    return replace(
        release,
        target="me/all-MiniLM-L6-v2-ONNX",
        artifacts=tuple(replace(file, path=Path(f"{file.path.stem}.onnx"), folder="onnx") for file in made),
        measurements=tuple(rows),
        evalset=TEXTS,
        card={"pipeline_tag": "sentence-similarity", "license": "apache-2.0"},
        speeds=(),
    )


def hostile() -> Release:
    """Markup in every place that upstream or a stranger could write."""
    levels = {f"gguf:{SCRIPT}": 4.5, f"gguf:**b** [a](javascript:alert(1)) {BIDI}": 8.5}
    return model(
        f"evil/{IMAGE}",
        f"{SCRIPT} {{{{ 7*7 }}}} {BIDI}",
        1_000_000,
        {},
        target="javascript:alert(1)",
        commit=IMAGE,
        card={"license": SCRIPT, "pipeline_tag": IMAGE},
        artifacts=files("hostile", 1_000_000, levels),
        measurements=tuple(measured(level, IMAGE, kld=(0.1, 0.01), top1=(0.9, 0.01)) for level in levels),
        evalset=replace(WIKITEXT, dataset=IMAGE, config=SCRIPT, split=BIDI),
        machine=SCRIPT,
        speeds=(),
    )


CARDS = {
    "SmolLM2-135M-Instruct": model(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "LlamaForCausalLM",
        134_515_008,
        {"Q8_0": (8.61, 0.00419), "Q5_K_S": (6.54, 0.0883), "Q4_K_M": (6.27, 0.0537)},
        evalset=MANUAL,
        target="SmolLM2-135M-Instruct-GGUF",
    ),
    "Qwen3-0.6B": model(
        "Qwen/Qwen3-0.6B",
        "Qwen3ForCausalLM",
        596_049_920,
        {"Q8_0": (8.6, 0.0023), "Q6_K": (6.7, 0.0061), "Q5_K_M": (5.9, 0.0153), "Q4_K_M": (5.1, 0.0489), "Q10_X": (3.1, 0.402)},
    ),
    "Llama-3.2-3B-Instruct": model(
        "meta-llama/Llama-3.2-3B-Instruct",
        "LlamaForCausalLM",
        3_212_749_888,
        {"Q8_0": (8.5, 0.0011), "Q4_K_M": (5.0, 0.0312), "IQ2_XXS": (2.6, 0.611)},
    ),
    "all-MiniLM-L6-v2": embedder(),
    "unmeasured": model(
        "org/Unmeasured-1B",
        "Gemma3ForCausalLM",
        999_885_952,
        {},
        artifacts=files("Unmeasured-1B", 999_885_952, {"gguf:Q4_K_M": 4.9}),
        measurements=(),
        evalset=None,
        speeds=(),
    ),
    "odd #1 & 50%": hostile(),
}
COUNT = sum(len(release.artifacts) for release in CARDS.values())


def put(folder: Path, release: Release) -> None:
    """A card as hubq writes it."""
    folder.mkdir(parents=True)
    (folder / "release.json").write_bytes(release_json(release))
    cards.render(folder, release)


def hubq(*arguments: object) -> Result:
    """Runs a command in this process."""
    return CliRunner().invoke(app, list(map(str, arguments)))
