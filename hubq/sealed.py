"""Private virtual environments: for programs whose packages cannot live beside those of hubq.

    ROOT/environments/NAME-KEY/         an environment, ready; the folder appears by one rename
    ROOT/environments/NAME-KEY.part-*/  being made; left behind by a killed run, wiped by the next
    ROOT/environments/NAME.lock         held by the one who makes, repairs or removes

ROOT is the work store's usual place. The key is the SHA-256 of the pinned packages, Python's minor version and the platform. A
program runs there as `call` says: a JSON request and a folder in, a JSON answer and a folder out, no token, no network.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hubq.disk import sync
from hubq.errors import HubqError
from hubq.store import default_root, key

Tell = Callable[[str], None]

MARKER = "complete.json"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
# settings of the user that programs inside are allowed to see
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "OMP_NUM_THREADS")
ROOM = "make room there, or set HUBQ_HOME to a folder on another disk"
NETWORK = "see that the package index can be reached and the disk has room, and run the command again"
REPORT = "run the command again; if that does not help, report it with the line above"
STEPS = ("Collecting", "Downloading", "Processing", "Installing", "Prepared", "Installed")  # lines of pip and uv worth telling
LINES = 40  # that are kept of what a program writes
PATH = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:)?[\\/](?:[^\\/\s'\":]+[\\/])+")
# what a program sees besides them; "{home}" is a folder that lives as long as the program
SETTINGS = {
    "HOME": "{home}",
    "USERPROFILE": "{home}",
    "TMPDIR": "{home}",
    "TEMP": "{home}",
    "HF_HOME": "{home}/huggingface",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
TOLD, FAILED = "hubq: ", "hubq failed: "  # how lines of progress and of failure begin
# runs main(request, tell) of a script. Its answer has the standard output for itself; connections are refused; when the
# standard input ends, hubq is gone, and so is this
LAUNCH = f"""
import json, os, runpy, sys, threading, traceback
answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
request = json.loads(sys.stdin.readline())
def watch():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise PermissionError("there is no network here")
sys.addaudithook(refuse)
def tell(line):
    print({TOLD!r} + line, file=sys.stderr, flush=True)
try:
    json.dump(runpy.run_path(sys.argv[1])["main"](request, tell), answer)
    answer.close()
    os._exit(0)
except Exception as error:
    traceback.print_exc()
    print({FAILED!r} + " ".join(f"{{type(error).__name__}}: {{error}}".split())[:500], file=sys.stderr, flush=True)
    os._exit(1)
"""
# runs a module as a program, and refuses connections
OWN = """
import runpy, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise PermissionError("there is no network here")
sys.addaudithook(refuse)
module = sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
# prints the first pinned package that is not there in full; RECORD lists a package's files with their sizes
CHECK = """
import importlib.metadata, json, os, sys
for name, version in json.loads(sys.argv[1]).items():
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"{name} is missing")
    if found.version.split("+")[0] != version:
        sys.exit(f"{name} is {found.version}, not {version}")
    for file in found.files or ():
        if file.suffix != ".pyc" and file.size is not None and "bin" not in file.parts and "Scripts" not in file.parts:
            if not os.path.isfile(path := file.locate()) or os.path.getsize(path) != file.size:
                sys.exit(f"{name} is damaged")
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A private environment: its `name`, the file of pinned packages (`name==version` a line), the modules that must import.

    A package torch is installed before the others.
    """

    name: str
    requirements: Path
    imports: tuple[str, ...] = ()

    @property
    def pins(self) -> dict[str, str]:
        """The version of each package."""
        lines = (line.strip() for line in self.requirements.read_text().splitlines())
        return dict(line.split("==", 1) for line in lines if line and not line.startswith("#"))

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        facts = {"pins": self.pins, "python": sys.version_info[:2], "platform": sysconfig.get_platform()}
        return _root() / f"{self.name}-{key(facts)[:16]}"


@dataclass(frozen=True, slots=True)
class State:
    """What is there of an environment: `status` is absent, ready or broken; its size in bytes; what is wrong with it."""

    status: str
    size: int
    fault: str = ""


def _root() -> Path:
    return default_root() / "environments"


def state(environment: Environment) -> State:
    """What is there of an environment. Every file of every package is held against its size: about a second."""
    folder = environment.folder
    if not folder.is_dir():
        return State("absent", 0)
    size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
    fault = _fault(environment)
    return State("broken" if fault else "ready", size, fault)


def ensure(environment: Environment, tell: Tell) -> Path:
    """The interpreter of an environment that is ready: made where it is absent, made anew where it is broken.

    `tell` takes lines of progress. Where another process is making it, this one waits. Raises HubqError where it cannot be
    made; nothing half-made is left then.
    """
    if _fault(environment):
        with _locked(environment, tell):
            if fault := _fault(environment):  # nobody else made it meanwhile
                _make(environment, fault, tell)
    return _python(environment.folder)


def remove(environment: Environment) -> None:
    """Delete an environment, whichever pins it was made from, and what killed runs left of it."""
    with _locked(environment, lambda line: None):
        for folder in _root().glob(f"{environment.name}-*"):
            shutil.rmtree(folder)


def _fault(environment: Environment) -> str:
    """What keeps an environment from being used; empty where nothing does."""
    folder = environment.folder
    if not folder.is_dir():
        return "absent"
    if not (folder / MARKER).is_file():
        return "not complete"
    try:
        _run([_python(folder), "-I", "-c", CHECK, json.dumps(environment.pins)], os.environ)
    except HubqError as error:
        return error.message
    return ""


@contextmanager
def _locked(environment: Environment, tell: Tell) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        _root().mkdir(parents=True, exist_ok=True)
        lock = FileLock(_root() / f"{environment.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(f"waiting for another hubq that is making the environment {environment.name}")
            lock.acquire()
    except OSError as error:
        raise HubqError(
            f"cannot write to {_root()}: {error.strerror}", "set HUBQ_HOME to a folder that can be written"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _make(environment: Environment, fault: str, tell: Tell) -> None:
    """Make an environment aside, check it, and give it its name."""
    folder = environment.folder
    tell(f"making the environment {environment.name}" + ("" if fault == "absent" else f" again: {fault}"))
    for old in _root().glob(f"{folder.name}.part-*"):
        shutil.rmtree(old, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=_root()))
    try:
        _install(environment, aside, tell)
        _try_imports(environment, aside, tell)
        (aside / MARKER).write_text(json.dumps(environment.pins, indent=1, sort_keys=True))
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(aside, folder)
        sync(folder.parent)
    except OSError as error:
        raise HubqError(f"the environment {environment.name} cannot be made in {_root()}: {error.strerror}", ROOM) from None
    except HubqError as error:
        raise HubqError(f"the environment {environment.name} cannot be made: {error.message}", error.hint) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    tell(f"the environment {environment.name} is ready")


def _install(environment: Environment, folder: Path, tell: Tell) -> None:
    """A virtual environment with the pinned packages, by uv where there is one, else by pip. Nothing but torch is resolved."""
    settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    settings |= {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_REQUIRE_VIRTUALENV": "0"}
    install: list[Any]
    if uv := shutil.which("uv"):
        _run([uv, "venv", "--clear", "--no-project", "--python", sys.executable, folder], settings)
        install = [uv, "pip", "install", "--no-progress", "--python", _python(folder)]
        said = " ".join(name for name in settings if name.startswith("UV_"))
    else:
        _run([sys.executable, "-I", "-m", "venv", folder], settings)
        install = [_python(folder), "-m", "pip", "install", "--progress-bar", "off"]
        said = _run([_python(folder), "-m", "pip", "config", "list"], settings)

    def steps(line: str) -> None:
        if line.startswith(STEPS):
            tell(line)

    if torch := environment.pins.get("torch"):
        own = re.search("index|find.links", said, re.IGNORECASE) or sys.platform != "linux"
        wheels = [] if own else ["--extra-index-url", CPU_WHEELS]
        _run([*install, *wheels, "--constraint", environment.requirements, f"torch=={torch}"], settings, steps, NETWORK)
    _run([*install, "--no-deps", "--requirement", environment.requirements], settings, steps, NETWORK)


def _try_imports(environment: Environment, folder: Path, tell: Tell) -> None:
    tell(f"checking the environment {environment.name}")
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    with _clean() as settings:
        _run([_python(folder), "-I", "-c", program, *environment.imports], settings)


def call(
    environment: Environment, script: Path, request: Mapping[str, Any], folder_in: Path, folder_out: Path, tell: Tell
) -> dict[str, Any]:
    """Run `main(request, tell)` of a script in an environment, and return its answer.

    The script finds the paths of the two folders in its request as folder_in and folder_out. It sees no settings of the user,
    no token and no network, what it tells goes to `tell`, and it ends when this process does. Raises HubqError where the
    environment cannot be made or the script fails.
    """
    python = ensure(environment, tell)
    asked = {**request, "folder_in": str(folder_in.absolute()), "folder_out": str(folder_out.absolute())}
    with _clean() as settings, tempfile.TemporaryFile("w+", encoding="utf-8") as answer:
        command = [python, "-sP", "-c", LAUNCH, script.absolute()]
        _run(command, settings, lambda line: _pass_on(line, tell), request=json.dumps(asked), answer=answer)
        answer.seek(0)
        try:
            return json.loads(answer.read())
        except ValueError:
            raise HubqError(f"{script.stem} ended without an answer", REPORT) from None


def run_module(module: str, arguments: Sequence[str], tell: Tell = lambda line: None) -> None:
    """Run a module of this very environment as a program that sees no settings of the user, no token and no network.

    `tell` takes the lines that it writes. Raises HubqError with the last one where it fails.
    """
    with _clean() as settings:
        command = [sys.executable, "-sP", "-c", OWN, module, *arguments]
        _run(command, settings | {"PYTHONPATH": str(Path(__file__).parents[1])}, tell)


def _pass_on(line: str, tell: Tell) -> None:
    if line.startswith(TOLD):
        tell(line.removeprefix(TOLD))


@contextmanager
def _clean() -> Iterator[dict[str, str]]:
    """The settings that a program inside sees, with a home that is empty at first."""
    with tempfile.TemporaryDirectory(prefix="hubq-") as home:
        kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        yield kept | {name: value.format(home=home) for name, value in SETTINGS.items()}


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _run(
    command: Sequence[Any],
    settings: Mapping[str, str],
    tell: Tell = lambda line: None,
    hint: str = REPORT,
    request: str = "",
    answer: IO[str] | None = None,
) -> str:
    """Run a command in a process group of its own that ends with this function, and return the last lines it wrote.

    `request` is a line on its standard input, which stays open; `answer` takes its standard output. Raises HubqError.
    """
    last: deque[str] = deque(maxlen=LINES)
    try:
        process = subprocess.Popen(
            [str(part) for part in command],
            env=settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if answer is None else answer,
            stderr=subprocess.STDOUT if answer is None else subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise HubqError(f"{Path(command[0]).name} cannot be started: {error.strerror}", hint) from None
    try:
        with suppress(BrokenPipeError):  # it has ended: its status tells why
            process.stdin.write(request + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        for line in process.stdout or process.stderr or ():
            if line.strip():
                last.append(without_paths(line.strip()))
                tell(last[-1])
        process.wait()
    finally:
        _end(process)
    if process.returncode:
        raise HubqError(reason(last, process.returncode), hint)
    return "\n".join(last)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError, PermissionError):  # all have ended
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()


def reason(lines: Sequence[str], status: int) -> str:
    """Why a program failed, from the last lines that it wrote and its exit status."""
    if status == -signal.SIGKILL:
        return "it was killed; often that means too little memory"
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    errors = [place for place, line in enumerate(lines) if line.lower().startswith(("error", FAILED))]
    told = " ".join(
        [line.lstrip("╰─▶├│× ") for line in list(lines)[errors[-1] if errors else -1 :]] or [f"exit status {status}"]
    )
    unreached = any("Retrying" in line or "error sending request" in line for line in lines)
    return textwrap.shorten(told.removeprefix(FAILED), 300) + (" (the package index cannot be reached)" if unreached else "")


def without_paths(text: str) -> str:
    """A line without the folders in it: paths end up as their last part."""
    return PATH.sub("", text)
