"""A llama.cpp checkout with its converter and llama-perplexity, from llama-cpp-python's source; fetched once into build."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

PACKAGE = "llama-cpp-python"
CACHE = Path(__file__).parents[1] / "build" / PACKAGE
PARTS = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/", "models/templates/", "models/ggml-vocab-")
PARTS += ("common/", "include/", "ggml/include/", "src/llama-ext.h", "tools/perplexity/", "vendor/nlohmann/")
PARTS += ("vendor/sheredom/", "vendor/cpp-httplib/")


def fetch() -> Path:
    """The part of llama.cpp's source that tests need, of the version that llama_cpp runs. Raises where pip fails."""
    folder = CACHE / version(PACKAGE)
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            aside = Path(scratch) / "vendor" / "llama.cpp"
            _unpack(_download(Path(scratch)), Path(scratch))
            with contextlib.suppress(OSError):  # another process may have been faster
                aside.rename(folder)
    assert (folder / PARTS[0]).is_file()
    return folder


def _download(folder: Path) -> Path:
    wanted = ["--no-deps", "--no-binary", PACKAGE, f"{PACKAGE}=={version(PACKAGE)}"]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "-d", str(folder), *wanted], check=True)
    return next(folder.glob("*.tar.gz"))


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            member.name = member.name.partition("/")[2]
            if member.name.removeprefix("vendor/llama.cpp/").startswith(PARTS):
                tar.extract(member, folder, filter="data")
