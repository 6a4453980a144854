"""Private environments: made once, complete or not at all, mended when broken; what runs there sees nothing of the user's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hubq import sealed
from hubq.errors import HubqError
from hubq.sealed import Environment, State

USERS = dict(os.environ)
UV = Path(__file__).parents[1] / "build" / "uv"
PINS = "# comment\n\nsmall-thing==1.0\n"
ENSURE = """
import pathlib, sys
from hubq.sealed import Environment, ensure
print(ensure(Environment("tiny", pathlib.Path(sys.argv[1]), ("small_thing",)), lambda line: print(line, flush=True)))
"""
CALL = """
import pathlib, sys
from hubq.sealed import Environment, call
folder = pathlib.Path(sys.argv[2])
call(Environment("tiny", pathlib.Path(sys.argv[1]), ("small_thing",)), folder / "script.py", {}, folder, folder, print)
"""


def wheel(folder: Path, name: str, source: str) -> None:
    """A package of one module, version 1.0."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,{len(text)}\n" for path, text in files.items()) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    wheel(folder, "small_thing", "VALUE = 7\n")
    wheel(folder, "bad_thing", "raise ImportError('libbad.so.1 is nowhere')\n")
    return folder


@pytest.fixture(scope="module")
def settings(wheels: Path) -> Iterator[None]:
    """pip and uv find the tiny packages and no others; no uv on the path."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
            patch.delenv(name)
        for name in ("PIP", "UV"):
            patch.setenv(f"{name}_NO_INDEX", "1")
            patch.setenv(f"{name}_FIND_LINKS", str(wheels))
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PATH", os.defpath)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, settings: None) -> Path:
    """A HUBQ_HOME with the environment that `tiny_environment` describes."""
    home = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUBQ_HOME", str(home / "home"))
        environment = describe(home)
        told: list[str] = []
        python = sealed.ensure(environment, told.append)
        assert python.is_relative_to(environment.folder)
        assert told[0] == "making the environment tiny"
        assert told[-1] == "the environment tiny is ready"
        assert any("small_thing" in line for line in told)
    return home / "home"


@pytest.fixture
def home(tmp_path: Path, settings: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HUBQ_HOME where nothing is."""
    monkeypatch.setenv("HUBQ_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def environment(made: Path, home: Path, tmp_path: Path) -> Environment:
    """A copy of the environment made: a folder can be moved."""
    shutil.copytree(made, home, symlinks=True)
    return describe(tmp_path)


def describe(folder: Path, pins: str = PINS, *imports: str) -> Environment:
    (folder / "requirements.txt").write_text(pins)
    return Environment("tiny", folder / "requirements.txt", imports or ("small_thing",))


def left(home: Path) -> list[str]:
    """What is there beside the lock."""
    return sorted(path.name for path in (home / "environments").iterdir() if path.suffix != ".lock")


def start(program: str, *arguments: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for somebody to ask how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- making ---


def test_it_is_made_once(environment: Environment, home: Path) -> None:
    found = sealed.state(environment)
    assert (found.status, found.fault) == ("ready", "") and found.size > 1000
    told: list[str] = []
    python = sealed.ensure(environment, told.append)
    assert told == [] and left(home) == [environment.folder.name]
    assert subprocess.check_output([python, "-c", "import small_thing; print(small_thing.VALUE)"], text=True) == "7\n"


def test_other_pins_are_another_environment(tmp_path: Path) -> None:
    folder = describe(tmp_path).folder
    assert describe(tmp_path, "# another comment\n" + PINS).folder == folder
    assert describe(tmp_path, "small-thing==1.1\n").folder != folder


def test_uv_makes_it_where_there_is_one(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{uv()}{os.pathsep}{os.environ['PATH']}")
    environment = describe(tmp_path)
    sealed.ensure(environment, lambda line: None)
    assert sealed.state(environment).status == "ready"
    assert "uv = " in (environment.folder / "pyvenv.cfg").read_text()
    wrong = describe(tmp_path, "no-such-thing==1.0\n")
    with pytest.raises(HubqError, match="no-such-thing"):
        sealed.ensure(wrong, lambda line: None)


def uv() -> Path:
    """The folder of uv's program; fetched once with pip into build/uv."""
    if not UV.is_dir():
        aside = UV.with_name("uv.aside")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(aside), "uv"]
        subprocess.run(command, check=True, env=USERS)
        aside.rename(UV)
    return UV / "bin"


def test_a_failing_install_leaves_nothing(home: Path, tmp_path: Path) -> None:
    environment = describe(tmp_path, PINS + "no-such-thing==1.0\n")
    with pytest.raises(HubqError, match=r"environment tiny cannot be made: .*no-such-thing==1\.0") as raised:
        sealed.ensure(environment, lambda line: None)
    assert str(home) not in raised.value.message and raised.value.hint == sealed.NETWORK
    assert left(home) == [] and sealed.state(environment) == State("absent", 0)


def test_what_cannot_be_imported_is_not_ready(home: Path, tmp_path: Path) -> None:
    with pytest.raises(HubqError, match=r"cannot be made: ImportError: libbad\.so\.1 is nowhere"):
        sealed.ensure(describe(tmp_path, "bad-thing==1.0\n", "bad_thing"), lambda line: None)
    assert left(home) == []


def test_a_folder_that_cannot_be_written(home: Path, tmp_path: Path) -> None:
    home.write_text("a file")
    with pytest.raises(HubqError, match="cannot write to") as raised:
        sealed.ensure(describe(tmp_path), lambda line: None)
    assert "HUBQ_HOME" in raised.value.hint


def test_a_killed_install_is_wiped(home: Path, tmp_path: Path) -> None:
    environment = describe(tmp_path)
    started = start(ENSURE, environment.requirements)
    until(lambda: list(home.glob("environments/*.part-*/pyvenv.cfg")))
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert sealed.state(environment) == State("absent", 0) and len(left(home)) == 1
    sealed.ensure(environment, lambda line: None)
    assert left(home) == [environment.folder.name] and sealed.state(environment).status == "ready"


def test_two_at_once_make_one(home: Path, tmp_path: Path) -> None:
    environment = describe(tmp_path)
    both = [start(ENSURE, environment.requirements) for _ in range(2)]
    told = [process.communicate()[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert {lines[-1] for lines in told} == {str(environment.folder / "bin" / "python")}
    assert sum("making the environment tiny" in lines for lines in told) == 1
    assert left(home) == [environment.folder.name]


# --- broken ---


def dangling(folder: Path) -> None:
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to("/nowhere/python3")


def package(folder: Path) -> Path:
    return next(folder.glob("lib/python*/site-packages"))


BREAKS: dict[str, Callable[[Path], None]] = {
    "python cannot be started": dangling,
    "small-thing is missing": lambda folder: shutil.rmtree(package(folder) / "small_thing-1.0.dist-info"),
    "small-thing is damaged": lambda folder: (package(folder) / "small_thing.py").write_text(""),
    "small-thing is 2.0, not 1.0": lambda folder: (package(folder) / "small_thing-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: small_thing\nVersion: 2.0\n"
    ),
    "not complete": lambda folder: (folder / sealed.MARKER).unlink(),
}


@pytest.mark.parametrize("fault", BREAKS)
def test_what_is_broken_is_seen(environment: Environment, fault: str) -> None:
    BREAKS[fault](environment.folder)
    found = sealed.state(environment)
    assert found.status == "broken" and found.fault.startswith(fault)


def test_what_is_broken_is_made_again(environment: Environment, home: Path) -> None:
    dangling(environment.folder)
    told: list[str] = []
    sealed.ensure(environment, told.append)
    assert told[0].startswith("making the environment tiny again: python cannot be started")
    assert sealed.state(environment).status == "ready" and left(home) == [environment.folder.name]


def test_removing(environment: Environment, home: Path) -> None:
    (home / "environments" / "tiny-0123456789abcdef").mkdir()
    (home / "environments" / "other-0123456789abcdef").mkdir()
    sealed.remove(environment)
    assert left(home) == ["other-0123456789abcdef"]
    assert sealed.state(environment) == State("absent", 0)


# --- calling ---


def call(environment: Environment, folder: Path, script: str, tell: Callable[[str], None] = print) -> dict[str, Any]:
    (folder / "script.py").write_text(script)
    return sealed.call(environment, folder / "script.py", {"n": 3}, folder, folder / "out", tell)


def test_a_program_is_asked_and_answers(environment: Environment, tmp_path: Path) -> None:
    script = """
import os, small_thing
def main(request, tell):
    print("noise"); os.system("echo more noise")
    tell("half way")
    return {"n": request["n"] * small_thing.VALUE, "in": request["folder_in"], "out": request["folder_out"], "ü": "ü"}
"""
    told: list[str] = []
    answer = call(environment, tmp_path, script, told.append)
    assert answer == {"n": 21, "in": str(tmp_path), "out": str(tmp_path / "out"), "ü": "ü"}
    assert told == ["half way"]


def test_a_program_sees_nothing_of_the_user(environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hubq.py").write_text("")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HTTPS_PROXY", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    script = """
import os, sys, socket, importlib.util
def main(request, tell):
    try:
        socket.create_connection(("127.0.0.1", 9), timeout=1)
    except OSError as error:
        refused = str(error)
    home = os.path.expanduser("~")
    hubq = bool(importlib.util.find_spec("hubq"))
    return {"seen": dict(os.environ), "home": os.listdir(home), "hubq": hubq, "refused": refused}
"""
    answer = call(environment, tmp_path, script)
    assert "secret" not in answer["seen"].values() and "PYTHONPATH" not in answer["seen"]
    assert answer["seen"]["HF_HUB_OFFLINE"] == "1" and answer["seen"]["HF_HOME"].startswith(answer["seen"]["HOME"])
    assert answer["home"] == [] and not Path(answer["seen"]["HOME"]).exists()
    assert not answer["hubq"]
    assert answer["refused"] == "there is no network here"


FAILURES = {
    "raise ValueError(f'cannot read {request[\"folder_in\"]}/model.safetensors:\\n  bad')": (
        "ValueError: cannot read model.safetensors: bad"
    ),
    "import os, sys; print('last words', file=sys.stderr, flush=True); os._exit(3)": "last words",
    "import os; os._exit(4)": "exit status 4",
    "import os; os._exit(0)": "script ended without an answer",
    "import os; os.kill(os.getpid(), 9)": "it was killed; often that means too little memory",
    "import os; os.kill(os.getpid(), 11)": "it was ended by SIGSEGV",
    "return object()": "TypeError: Object of type object is not JSON serializable",
}


@pytest.mark.parametrize("body", FAILURES)
def test_a_program_that_fails(environment: Environment, tmp_path: Path, body: str) -> None:
    with pytest.raises(HubqError) as raised:
        call(environment, tmp_path, f"def main(request, tell):\n    {body}\n")
    assert raised.value.message == FAILURES[body]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_program_ends_with_hubq(environment: Environment, tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "script.py").write_text("""
import os, pathlib, time
def main(request, tell):
    path = pathlib.Path(request["folder_out"])
    (path / "pid.part").write_text(str(os.getpid()))
    (path / "pid.part").rename(path / "pid")
    time.sleep(1000)
""")
    started = start(CALL, environment.requirements, tmp_path)
    until((tmp_path / "pid").exists)
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    started.send_signal(how)
    started.wait()
    until(lambda: not alive(pid))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cannot open /home/me/x y.bin", "cannot open x y.bin"),
        ("at https://example.org/simple/torch: no", "at https://example.org/simple/torch: no"),
        ("'/a/b.txt' and /c/d/e.txt", "'b.txt' and e.txt"),
        ("C:\\Users\\me\\b.txt is gone", "b.txt is gone"),
        ("1/2 of a/b", "1/2 of a/b"),
    ],
)
def test_lines_lose_their_folders(line: str, expected: str) -> None:
    assert sealed.without_paths(line) == expected
