"""Models of families that hubq does not know, by the converter of a llama.cpp checkout: convert_hf_to_gguf.py in a subprocess.

The converter lets transformers load a tokenizer with trust_remote_code, and so it sees a model only through a clean folder:
links to data, settings without keys that load code or name files, never a module or a pickle. It has no token and no network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import signal
import site
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hubq.checkpoint import INDEX, few, shards
from hubq.disk import sync
from hubq.errors import BadSource, HubqError, Unsupported, Usage
from hubq.formats.gguf.read import read_header
from hubq.parse import read_json
from hubq.source import matches, without_code

SCRIPT = "convert_hf_to_gguf.py"
LIBRARY = "gguf-py/gguf"
# what a result depends on besides the script: code, and the templates and vocabularies that stand in for those of some models
PARTS = (f"{LIBRARY}/**/*.py", "conversion/**/*.py", "models/templates/*.jinja", "models/ggml-vocab-*.gguf")

# the files beside the weights that the converter can use
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "hf_quant_config.json",
)
DATA = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.tiktoken",
    "rwkv_vocab_*.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "README.md",
    INDEX,
)
# the variables that a Python needs to find its libraries; no others reach the converter
KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "OMP_NUM_THREADS")
GRACE = 5.0  # seconds between asking the converter to end and killing it
LONGEST = 300  # characters of its words in an error


def fingerprint(checkout: Path) -> str:
    """The SHA-256 of all in a checkout that decides what its converter makes. Raises Usage where it holds no converter."""
    digest = hashlib.sha256()
    for path in _parts(checkout):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(checkout).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def knows(checkout: Path, config: Mapping[str, Any]) -> bool:
    """Whether the converter names the model's architecture; what it makes of the model, only a conversion can tell.

    Raises Usage where the checkout holds no converter.
    """
    text = config.get("text_config")
    places = [config, text] if isinstance(text, dict) else [config]
    listed = [place["architectures"] for place in places if isinstance(place.get("architectures"), list)]
    names = [name for names in listed for name in names if isinstance(name, str)]
    code = "\n".join(path.read_text("utf-8") for path in _parts(checkout) if path.suffix == ".py")
    return any(re.search(f"[\"']{re.escape(name)}[\"']", code) for name in names)


def _parts(checkout: Path) -> list[Path]:
    missing = [name for name in (SCRIPT, LIBRARY) if not (checkout / name).exists()]
    if missing:
        raise Usage(
            f"{checkout} is no checkout of llama.cpp: it lacks {few(missing)}",
            "git clone https://github.com/ggml-org/llama.cpp, and name that folder",
        )
    return sorted({checkout / SCRIPT, *(path for part in PARTS for path in checkout.glob(part))})


def convert(
    checkout: Path,
    folder: Path,
    files: Sequence[str],
    outtype: str,
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    name: str = "",
) -> None:
    """Write the GGUF that the converter of a checkout makes of a model to the new file `out`, in one piece.

    `folder` holds the model in Hub format, `files` are its paths there that may be used, of which SETTINGS, DATA and the
    weights are. `outtype` is "f32", "f16" or "bf16"; `name` is the model's, by default the folder's: it is written into the
    file. `progress` hears bytes of the weights, done and in all. Nothing is left of a conversion that fails.

    Raises Usage where the checkout holds no converter, Unsupported where the converter does not know the model, BadSource for
    damaged files and HubqError for all else that it ends in, with its own words.
    """
    _parts(checkout)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        work = Path(scratch).resolve()
        model, made = work / "model" / _plain(name or folder.resolve().name), work / "model.gguf"
        size = _lay_out(folder, files, model)
        command = [sys.executable, str(checkout.resolve() / SCRIPT), str(model), "--outfile", str(made), "--outtype", outtype]
        code, said = _run(command, work, lambda percent: progress(percent * size // 100, size))
        if code or not made.is_file():
            raise _failure(checkout, code, [_tidy(line, work) for line in said])
        _check(checkout, made)
        _persist(made, out)
    progress(size, size)


def _plain(name: str) -> str:
    """A name that a folder can have, from which the converter takes the model's."""
    name = name.rsplit("/", 1)[-1]
    return name if name.strip(".") and name.isprintable() else "model"


def readable(path: str) -> bool:
    """Whether a file of a repository is one of those beside the weights that the converter may see."""
    return _any_of(path, (*SETTINGS, *DATA))


def _lay_out(folder: Path, files: Sequence[str], model: Path) -> int:
    """Make the folder that the converter sees; returns the bytes of the weights."""
    weights = shards(files, lambda path: (folder / path).read_bytes())
    model.mkdir(parents=True)
    for path in files:
        if _any_of(path, SETTINGS):
            (model / path).write_bytes(_settings(path, (folder / path).read_bytes()))
        elif path in weights or _any_of(path, DATA):
            (model / path).parent.mkdir(exist_ok=True)
            (model / path).symlink_to((folder / path).resolve())
    return sum((model / path).stat().st_size for path in weights)


def _any_of(path: str, patterns: Iterable[str]) -> bool:
    return any(matches(path, pattern) for pattern in patterns)


def _settings(path: str, data: bytes) -> bytes:
    """A file of settings without keys that could load code, or a file of another place in a tokenizer's stead."""
    try:
        return json.dumps(_without_files(without_code(read_json(data)))).encode()
    except (ValueError, RecursionError) as error:
        raise BadSource(f"{path} cannot be read: {error}", "check the model's repository") from None


def _without_files(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_files(item) for key, item in value.items() if not key.endswith(("_file", "_files"))}
    return [_without_files(item) for item in value] if isinstance(value, list) else value


def _environment(home: Path) -> dict[str, str]:
    """Variables for a Python that finds what this one finds, and neither a token nor the Hub; its caches are in `home`."""
    kept = {key: os.environ[key] for key in KEPT if key in os.environ}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    places = dict.fromkeys(("HOME", "USERPROFILE", "HF_HOME", "TMPDIR", "TEMP", "TMP"), str(home))
    settled = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return kept | offline | places | settled | {"PYTHONUSERBASE": site.getuserbase()}


def _run(command: Sequence[str], work: Path, progress: Callable[[int], None]) -> tuple[int, list[str]]:
    """The exit status of a command and the last lines that it wrote. It ends with this call, whatever ends the call."""
    home = work / "home"
    home.mkdir()
    with subprocess.Popen(
        command,
        cwd=home,
        env=_environment(home),
        stdin=subprocess.DEVNULL,  # transformers asks there whether it may run a model's code
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            said = _listen(process, progress)
            return process.wait(), said
        except BaseException:
            _end(process)
            raise


def _listen(process: subprocess.Popen[bytes], progress: Callable[[int], None]) -> list[str]:
    """The last lines of a process; `progress` hears the percentage that its bar shows."""
    last: deque[str] = deque(maxlen=200)
    stream: Any = process.stdout
    rest = b""
    while data := stream.read1(1 << 16):
        *lines, rest = re.split(rb"[\r\n]", rest[-(1 << 16) :] + data)
        for line in lines:
            if bar := re.match(rb"Writing: +(\d+)%", line):
                progress(min(100, int(bar[1])))
            else:
                last.append(line.decode("utf-8", "replace"))
    return [*last, rest.decode("utf-8", "replace")]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and its children to end, then make them."""
    for number in (signal.SIGTERM, signal.SIGKILL) if sys.platform != "win32" else ():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
            return
    process.kill()


def _tidy(line: str, work: Path) -> str:
    """A line as people may read it: without control characters and this machine's passing paths."""
    line = line.replace(str(work / "model") + os.sep, "").replace(str(work) + os.sep, "")
    return "".join(char for char in line if char.isprintable()).rstrip()[:LONGEST]


def _check(checkout: Path, made: Path) -> None:
    try:
        read_header(made)
    except BadSource as error:
        raise HubqError(f"llama.cpp's converter made a file that is none: {error.message}", _update(checkout)) from None


def _failure(checkout: Path, code: int, said: Sequence[str]) -> HubqError:
    """The error for a converter's exit status and its lines."""
    if code < 0:
        hint = "close other programs, or convert on a computer with more memory"
        return HubqError(f"llama.cpp's converter was killed by signal {-code}", hint)
    words = _last_words(said)
    if re.search(r"not supported|not recognized|NotImplementedError", words):
        return Unsupported(f"llama.cpp's converter does not know this model: {words}", _update(checkout))
    return HubqError(f"llama.cpp's converter failed: {words}", f"a newer converter may do better: {_update(checkout)}")


def _update(checkout: Path) -> str:
    return f"git -C {shlex.quote(str(checkout))} pull"


def _last_words(said: Sequence[str]) -> str:
    """The line that tells most: the last that is no chatter, without its logger's name; of an error without words, its code."""
    lines = [line for line in said if not re.match(r"\s|$|INFO:|DEBUG:|WARNING:", line)]
    last = lines[-1] if lines else "it said nothing"
    code = [line.strip() for line in said if re.match(r"    \w", line)]
    return f"{last}: {code[-1]}" if code and re.fullmatch(r"\w+", last) else re.sub(r"^(ERROR|CRITICAL):[^:]*:", "", last)


def _persist(made: Path, out: Path) -> None:
    """Give a file its final name once it is on the disk."""
    with open(made, "rb+") as file:
        os.fsync(file.fileno())
    made.replace(out)
    sync(out.parent)
