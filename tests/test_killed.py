"""A run that is killed, or that the system lets down, at any of its writes: nothing is lost, and the next run goes on.

Rows 22, 24, 26, 27, 44 and 48 of the fault matrix: what a reader sees is the release of before or the new one, whole.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

import hubq
from hubq.errors import HubqError
from hubq.formats import parse_levels
from hubq.plan import Request
from hubq.release import publish
from hubq.store import Store, sha256

HERE = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": f"{Path(hubq.__file__).parents[1]}{os.pathsep}{HERE}",
    "TOKENIZERS_PARALLELISM": "false",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model small enough to be published a hundred times."""
    folder = tmp_path_factory.mktemp("source") / "Tiny-Llama"
    return tiny.llama(folder, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=1)


def python(*arguments: str | Path, **settings: str) -> str:
    ended = subprocess.run([sys.executable, *arguments], env=ENVIRONMENT | settings, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("fault", ["kill", pytest.param("ENOSPC EIO EXDEV EACCES", marks=pytest.mark.thorough)])
def test_a_fault_at_any_write_loses_nothing(fault: str, model: Path, tmp_path: Path) -> None:
    told = json.loads(python(HERE / "boundaries.py", fault, model, tmp_path).splitlines()[-1])
    assert told["faults"] == []
    assert told["writes"] > 50 and {"fsync", "os.rename", "open", "write"} <= told["kinds"].keys()


def request(model: Path, root: Path) -> Request:
    (root / "out").mkdir(parents=True, exist_ok=True)
    return Request(str(model), parse_levels("q8_0"), Store(root / "work"), to=str(root / "out"))


def test_a_file_may_not_grow_further(model: Path, tmp_path: Path) -> None:
    """The limit of the system, not of a test: RLIMIT_FSIZE, behind which a write fails with EFBIG."""
    command = ["-m", "hubq", "publish", str(model), "--levels", "q8_0", "--no-eval", "--json"]
    command += ["--to", str(tmp_path), "--work-dir", str(tmp_path / "work")]
    ended = subprocess.run(
        [sys.executable, *command],
        env=ENVIRONMENT | {"NUMBA_DISABLE_JIT": "0"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
    )
    error = json.loads(ended.stdout)["error"]
    assert ended.returncode == 1 and error["message"] and error["hint"] and "Traceback" not in ended.stderr
    assert list(tmp_path.rglob("*.gguf")) == [] and list(tmp_path.rglob("*.part")) == []


def test_hashes_decide_and_not_clocks_or_places(model: Path, tmp_path: Path) -> None:
    """A work folder that was moved, with files from the future, is used; one whose bytes changed is not."""
    made = publish(request(model, tmp_path / "a"))
    shutil.move(tmp_path / "a" / "work", tmp_path / "b" / "work")
    for path in (tmp_path / "b" / "work").rglob("*"):
        os.utime(path, (4e9, 4e9))
    told: list[Any] = []
    again = publish(request(model, tmp_path / "b"), told.append)
    assert [file.sha256 for file in again.release.artifacts] == [file.sha256 for file in made.release.artifacts]
    assert all(event.result is not None for event in told if event.step == "build")  # nothing was built
    (file,) = (tmp_path / "b" / "work").rglob("*.gguf")
    before, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    publish(request(model, tmp_path / "b"))
    assert sha256(next((tmp_path / "b" / "out").rglob("*.gguf"))) == made.release.artifacts[0].sha256


@pytest.mark.skipif(sys.platform == "win32", reason="folders of Windows have no such permissions")
def test_a_target_that_becomes_read_only(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not bind root, and so the system's answer is what is told here, too."""
    asked = request(model, tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(HubqError, match="may not write to") as caught:
        publish(asked)
    assert caught.value.hint and not list((tmp_path / "work").rglob("*.gguf"))


WIDE = """
import sys
from pathlib import Path
from hubq import release
from hubq.formats import parse_levels
from hubq.plan import Request
from hubq.store import Store

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

first, most = 0, 0
def tell(event):
    global first, most
    if event.step == "build" and event.done:
        first, most = first or held(), max(most, held())

release.checked = lambda job, planned, made: made
root = Path(sys.argv[2])
(root / "out").mkdir()
release.publish(Request(sys.argv[1], parse_levels("q8_0"), Store(root / "work"), to=str(root / "out")), tell)
print(most - first)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells how much memory is held")
def test_memory_depends_on_slabs_and_not_on_tensors(tmp_path: Path) -> None:
    """A tensor of 128 MiB, 256 MiB in float32, is encoded in a few slabs of 4 MiB."""
    sys.path.insert(0, str(HERE / "hostile"))
    import make

    inner = 1 << 20
    shapes = {name: [inner if length == make.INNER else length for length in shape] for name, shape in make.SHAPES.items()}
    header, size = make.table(shapes)
    packed = make.packed(json.dumps(header).encode())
    for name, content in make.model(
        **{"config.json": make.CONFIG | {"intermediate_size": inner}, make.TENSORS: packed}
    ).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)  # type: ignore[arg-type]
    os.truncate(tmp_path / "m" / make.TENSORS, len(packed) + size)  # zeros
    grown = 1024 * int(python("-c", WIDE, tmp_path / "m", tmp_path))
    cores = os.cpu_count() or 1
    assert grown < (3 * cores + 4) * (12 << 20)


def test_other_processors_and_threads_make_the_same_bytes(model: Path, tmp_path: Path) -> None:
    """numpy and numba without the vector units of this machine, and one core instead of all."""
    plain = {
        "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX",
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
    }
    plain |= {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    program = "import os, sys; from pathlib import Path; import boundaries as b; b.release.checked = lambda j, p, m: m\n"
    program += "os.cpu_count = lambda: int(sys.argv[3])\n"
    program += "b.publish(Path(sys.argv[1]), Path(sys.argv[2]), 'q8_0,q4_0')"
    seen = []
    for name, cores, settings in (("here", "8", {}), ("plain", "1", plain)):
        python("-W", "ignore", "-c", program, model, tmp_path / name, cores, **settings)
        seen.append({path.name: sha256(path) for path in (tmp_path / name / "out").rglob("*.gguf")})
    assert seen[0] == seen[1] and len(seen[0]) == 2
