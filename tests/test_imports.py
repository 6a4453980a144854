"""Imports only point down, each heavy package has one home, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import hubq

ROOT = Path(hubq.__file__).parent

# what may import what: each line only the lines below it; a package stands for all that is in it
RANKS = """
hubq.__main__
hubq.cli
hubq.ui_show
hubq.ui hubq.doctor hubq.ci
hubq.engines
hubq.shared
hubq.release hubq.verify hubq.site hubq.init hubq.status
hubq.steps hubq.manifest
hubq.examine
hubq.job
hubq.catalog
hubq.cards
hubq.plan hubq.deliver hubq.pick hubq.perplexity
hubq.score hubq.speed hubq.card
hubq.record hubq.plot hubq.samples
hubq.compare
hubq.formats hubq.metrics hubq.hub hubq.text
hubq.sealed hubq.sign
hubq.store
hubq.calibrate hubq.pooling
hubq.reference hubq.tokenize
hubq.checkpoint hubq.source hubq.disk hubq.memory
hubq.nouns hubq.tasks hubq.parse hubq.affected
hubq.errors hubq.secrets hubq.options
hubq
"""

# package -> the only modules that import it
HOMES = {
    "datasets": "hubq.text",
    "filelock": "hubq.store hubq.sealed",
    "gguf": "hubq.formats.gguf",
    "huggingface_hub": "hubq.hub",
    "jinja2": "hubq.card hubq.site hubq.formats.gguf.render",
    "llvmlite": "hubq.formats.gguf.encode.vectors",
    "llama_cpp": "hubq.formats.gguf.engine",
    "matplotlib": "hubq.plot",
    "model_signing": "hubq.sign",
    "mpmath": "hubq.metrics.inference",
    "numba": "hubq.formats.gguf.encode",
    "numpy": "hubq",
    "mobius": "hubq.formats.onnx.worker",
    "optimum": "hubq.formats.onnx.worker",
    "onnx": "hubq.formats.onnx",
    "onnx_ir": "hubq.formats.onnx",
    "onnxruntime": "hubq.formats.onnx",
    "onnxruntime_genai": "hubq.formats.onnx.genai",
    "pydantic": "hubq.record hubq.manifest",
    "ray": "hubq.engines.ray",
    "rich": "hubq.ui",
    "sentencepiece": "hubq.text hubq.formats.gguf.vocab hubq.formats.gguf.gate",
    "tokenizers": "hubq.tokenize hubq.text hubq.formats.gguf",
    "torch": "hubq.reference hubq.calibrate hubq.score hubq.perplexity hubq.doctor hubq.formats.onnx.worker",
    "transformers": "hubq.reference hubq.formats.onnx.worker",
    "tomlkit": "hubq.init",
    "typer": "hubq.cli hubq.options",
    "yaml": "hubq.source hubq.card",
}

HEAVY = {"torch", "transformers", "datasets", "onnxruntime", "huggingface_hub", "numba", "matplotlib", "llama_cpp", "pandas"}
HEAVY |= {"numpy", "gguf", "tokenizers", "sentencepiece"}


def imports() -> list[tuple[str, str]]:
    """(module, what it imports) for every import statement in hubq, those inside functions included."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [(module, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module, f"{module} has a relative import"
                found += [(module, _target(node.module, alias.name)) for alias in node.names]
    return found


def _target(package: str, name: str) -> str:
    """`from package import name` imports a module of that name where there is one."""
    path = ROOT.parent.joinpath(*package.split("."), name)
    return f"{package}.{name}" if path.is_dir() or path.with_suffix(".py").is_file() else package


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def room(module: str) -> tuple[int, str]:
    """The rank of a module, counted from the top, and the name in RANKS that stands for it: the most special one."""
    rooms = [(rank, name) for rank, line in enumerate(RANKS.split("\n")) for name in line.split()]
    return max(((rank, name) for rank, name in rooms if inside(module, name)), key=lambda found: len(found[1]))


def test_every_module_has_a_rank() -> None:
    for module in {module for module, _ in imports()}:
        assert module == "hubq" or room(module)[1] != "hubq", f"{module} is in no line of RANKS"


def test_imports_point_down() -> None:
    for module, imported in imports():
        if inside(imported, "hubq"):
            rank, name = room(module)
            below, other = room(imported)
            assert name == other or rank < below, f"{module} imports {imported}"


def test_every_package_has_a_home() -> None:
    for module, imported in imports():
        package = imported.split(".")[0]
        if package != "hubq" and package not in sys.stdlib_module_names:
            assert package in HOMES, f"{module} imports {imported}"
            assert any(inside(module, home) for home in HOMES[package].split()), f"{module} imports {imported}"


@pytest.mark.parametrize("table", [HOMES, {name: name for name in RANKS.split()}], ids=["homes", "ranks"])
def test_the_tables_have_no_dead_lines(table: dict[str, str]) -> None:
    used = {imported.split(".")[0] for _, imported in imports()} | {module for module, _ in imports()} | {"hubq", "hubq.errors"}
    assert table.keys() <= used


def loaded(program: str, *arguments: object) -> set[str]:
    """The heavy packages that a fresh Python has loaded after running a program."""
    program += f"\nimport json, sys; sys.stderr.write(json.dumps(sorted(set(sys.modules) & {HEAVY!r})))"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(ended.stderr.splitlines()[-1]))


def test_the_probe_sees_what_is_loaded() -> None:
    assert "numba" in loaded("import numba")


@pytest.mark.parametrize("command", ["--help", "--version", "publish --help", "levels", "levels --json", "publish --levels"])
def test_quick_commands_load_nothing_heavy(command: str) -> None:
    program = "import sys; from hubq.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert loaded(program, *command.split()) == set()


def test_building_needs_no_framework(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", num_hidden_layers=1)
    program = """
import pathlib, sys
from hubq.checkpoint import open_checkpoint
from hubq.formats.gguf.blueprint import of_checkpoint
from hubq.formats.gguf.layout import lay_out
from hubq.formats.gguf.write import write
from hubq.source import read_config
folder = pathlib.Path(sys.argv[1])
with open_checkpoint(folder, [path.name for path in folder.iterdir()]) as checkpoint:
    drawn = of_checkpoint("org/model", folder, read_config((folder / "config.json").read_bytes()), checkpoint.tensors)
    assert list(write(drawn, lay_out(drawn, ["Q8_0"]), checkpoint, {"Q8_0": folder / "model.gguf"}))
"""
    assert loaded(program, folder) == {"numpy", "numba", "gguf", "tokenizers", "sentencepiece"}
    assert (folder / "model.gguf").stat().st_size > 100_000
