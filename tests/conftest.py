"""Fixtures that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import demo
import pytest
import tiny

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.pop("HF_TOKEN", None)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in Hub format; its rows of 576 are no multiple of 256."""
    folder = tmp_path_factory.mktemp("hub") / demo.MODEL
    demo.smollm2(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 9 layers whose rows 256 divides, with untied embeddings and 4 query heads to a key head."""
    return tiny.llama(tmp_path_factory.mktemp("tiny") / "Tiny-Llama", num_hidden_layers=9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with nothing but a byte-level BPE tokenizer of 512 tokens."""
    (tmp_path / "model").mkdir()
    tiny.tokenizer(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="session")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python's manual as a .jsonl file."""
    path = tmp_path_factory.mktemp("text") / "topics.jsonl"
    demo.topics(path)
    return path


LONGEST = (
    *("test_smollm2.py", "test_exporters.py", "test_publish.py", "test_export.py", "test_runtimes.py", "test_convert.py"),
    *("test_genai.py", "test_release.py", "test_release_tasks.py", "test_verify.py", "test_soak.py", "test_hostile.py"),
    *("test_killed.py", "test_perplexity.py", "test_workflows.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest go first, so that at the end no worker waits for another."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_configure(config: pytest.Config) -> None:
    """Each worker, with all that it starts, on a core of its own: threads that wait for each other's core take far longer."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
