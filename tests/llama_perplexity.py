"""The real llama-perplexity, made once from the source of llama-cpp-python and kept beside it.

Only what it runs is compiled, in about a minute of the processor, and linked against the libraries that llama-cpp-python
installed: so it computes with the very code that hubq does. The rest of llama.cpp's `common`, downloads and chat templates,
stays undefined: the linker leaves holes that nothing calls.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import checkout
import llama_cpp

INCLUDES = ("-Icommon", "-Iinclude", "-Iggml/include", "-Ivendor")
HOT = "tools/perplexity/perplexity.cpp"
COMMON = ("arg", "json", "common", "speculative", "sampling", "fit", "log", "unicode")  # the slowest first
SOURCES = (HOT, *(f"common/{name}.cpp" for name in COMMON))
# its own main, and what that leaves out: the last lines would be lost where the process ends before the log's thread wrote them
MAIN = """#include "log.h"
int llama_perplexity(int argc, char ** argv);
int main(int argc, char ** argv) {
    const int code = llama_perplexity(argc, argv);
    common_log_pause(common_log_main());
    return code;
}
"""
LIBRARIES = Path(llama_cpp.__file__).parent / "lib"


def binary() -> Path:
    """llama-perplexity of the version that llama_cpp runs. Raises where pip or the compiler fails."""
    source = checkout.fetch()
    path = source / "llama-perplexity"
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=source) as scratch:
            _make(source, Path(scratch)).rename(path)
    return path


def _make(source: Path, out: Path) -> Path:
    facts = (source / "common" / "build-info.cpp.in").read_text()
    for name in ("LLAMA_BUILD_NUMBER", "LLAMA_BUILD_COMMIT", "BUILD_COMPILER", "BUILD_TARGET"):
        facts = facts.replace(f"@{name}@", "0")
    (out / "build-info.cpp").write_text(facts)
    (out / "main.cpp").write_text(MAIN)
    paths = [*map(Path, SOURCES), out / "build-info.cpp", out / "main.cpp"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(lambda path: _compile(source, path, out), paths))
    holes = ["-no-pie", "-Wl,-z,lazy", "-Wl,--unresolved-symbols=ignore-all"]
    libraries = [f"-L{LIBRARIES}", "-lllama", "-lggml", "-lggml-cpu", "-lggml-base", "-pthread"]
    _run(source, *holes, *objects, *libraries, "-o", out / "llama-perplexity")
    return out / "llama-perplexity"


def _compile(source: Path, path: Path, out: Path) -> Path:
    """The object file: what counts in a benchmark is optimized as llama.cpp would have it, the rest made in a hurry."""
    made = out / f"{path.stem}.o"
    _run(source, "-std=c++17", "-DNDEBUG", "-O3" if path == Path(HOT) else "-O0", *INCLUDES, "-c", path, "-o", made)
    return made


def _run(source: Path, *arguments: object) -> None:
    subprocess.run([os.environ.get("CXX", "c++"), *map(str, arguments)], cwd=source, check=True)


def run(model: Path, *options: object) -> str:
    """What it prints, its log included. `--offline` keeps it from what was left out."""
    command = [binary(), "--offline", "-m", model, *options]
    ended = subprocess.run([*map(str, command)], env=environment(), capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"llama-perplexity ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return ended.stdout + ended.stderr


def environment() -> dict[str, str]:
    """Where it finds llama.cpp's libraries."""
    return {**os.environ, "LD_LIBRARY_PATH": str(LIBRARIES)}
