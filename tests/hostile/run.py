"""Gives hostile inputs to hubq, each in a process of its own, forked from one that has everything imported.

`python run.py FOLDER [WORD]` runs the cases of make.py (those with WORD in their names) and prints a line of JSON for each:
its name, what it ended in, the message, the seconds of processor time, the bytes that memory grew, and what it did that no
input may make hubq do: opened files for writing, started programs, or connected, outside its own folder.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import make

ROOM = 8 << 30  # bytes of address space that a case gets, so that a bomb ends it and not the machine
PATIENCE = 30  # seconds before a case is killed


def plan(folder: Path, level: str = "gguf:q8_0", place: str = "m") -> None:
    from hubq.formats import parse_levels
    from hubq.plan import Request
    from hubq.plan import plan as planned
    from hubq.store import Store

    (folder / "out").mkdir(exist_ok=True)
    planned(Request(str(folder / place), parse_levels(level), Store(folder / "work"), to=str(folder / "out")))


def checkpoint(folder: Path) -> None:
    from hubq.checkpoint import open_checkpoint

    open_checkpoint(folder / "m", sorted(path.name for path in (folder / "m").iterdir()))


def describe(folder: Path) -> None:
    """What transformers sees of a config.json."""
    from hubq.reference import describe
    from hubq.source import read_config

    _, settings = describe(read_config((folder / "m" / "config.json").read_bytes()))
    assert "evil" not in json.dumps(settings.to_dict(), default=str)


def gguf(folder: Path) -> None:
    from hubq.formats.gguf.read import read_header

    read_header(folder / "m" / "x.gguf")


def imatrix(folder: Path) -> None:
    from hubq.formats.gguf.imatrix import read

    read(folder / "m" / "i.dat")


def render(folder: Path, template: str) -> None:
    """A text that a template gives is accepted, where it is nothing of this machine."""
    from hubq.errors import HubqError
    from hubq.formats.gguf.render import render

    (answer,) = render([{"template": template, "variables": {"messages": []}}])
    if "error" in answer or not answer["text"] or "Undefined" in answer["text"]:
        raise HubqError(answer.get("error", "nothing"), "-")


def verify(folder: Path, again: bool = False) -> None:
    from hubq.hub import Folder
    from hubq.verify import Again, verify

    verify(Folder(folder / "hub"), "m", again=Again(("all",), model=str(folder / "hub" / "none")) if again else None)


def audit(folder: Path) -> None:
    from hubq.formats.gguf.audit import audit
    from hubq.hub import Folder

    audit(Folder(folder / "hub"), "m")


def text(folder: Path) -> None:
    from hubq.nouns import Source
    from hubq.text import TextSpec, windows

    (path,) = folder.glob("t.*")
    windows(Source("m", "0", folder / "m", {}, {}, (), None), TextSpec(str(path), None, windows=2, length=64))


def graph(folder: Path, location: str = "", where: str = "", offset: str = "", length: str = "") -> None:
    from hubq.formats.onnx import graph

    path = folder / "m" / "model.onnx"
    if where:
        path.write_bytes(_graph(location, where, offset, length))
    graph.data_files(path)
    model = graph.read(path)
    for value in model.graph.initializers.values():
        graph.array_of(value)


def _graph(location: str, where: str, offset: str, length: str) -> bytes:
    """A graph whose one tensor says that its data lies elsewhere."""
    import onnx
    from onnx import TensorProto, helper

    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value or key == "location":
            tensor.external_data.add(key=key, value=value)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    add = helper.make_node("Add", ["x", "c"], ["y"])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    functions = []
    if where == "constant":
        made = helper.make_graph([constant, add], "g", ports[:1], ports[1:])
    elif where == "branch":
        inner = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2])])
        test = helper.make_node("Constant", [], ["t"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
        chosen = helper.make_node("If", ["t"], ["y"], then_branch=inner, else_branch=inner)
        made = helper.make_graph([test, chosen], "g", ports[:1], ports[1:])
    elif where == "function":
        functions = [helper.make_function("own", "F", ["x"], ["y"], [constant, add], imports[:1])]
        made = helper.make_graph([helper.make_node("F", ["x"], ["y"], domain="own")], "g", ports[:1], ports[1:])
    else:
        tensor.name = "c"
        made = helper.make_graph([add], "g", ports[:1], ports[1:], [tensor])
    return onnx.helper.make_model(made, opset_imports=imports, functions=functions).SerializeToString()


ACTIONS: dict[str, Callable[..., None]] = {
    "plan": plan,
    "onnx": lambda folder: plan(folder, "onnx:q8"),
    "source": lambda folder: plan(folder, place="m/x.gguf"),
    "checkpoint": checkpoint,
    "describe": describe,
    "gguf": gguf,
    "imatrix": imatrix,
    "render": render,
    "verify": verify,
    "audit": audit,
    "text": text,
    "graph": graph,
}
MODULES = ("plan", "verify", "record", "card", "plot", "formats.gguf.audit", "formats.gguf.gate", "formats.gguf.origin")
MODULES += ("formats.onnx", "formats.onnx.graph", "formats.onnx.export", "formats.onnx.exporters")
# the largest, which are loaded only for the actions that need them: to fork a large process takes long
LARGE = {"text": ("datasets",), "describe": ("transformers.models.llama.modeling_llama", "hubq.reference")}


def warm(names: Iterable[str]) -> None:
    """Import what cases need, so that none of them has to."""
    for name in names:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def lay_out(case: make.Case, folder: Path) -> None:
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data, size = content if isinstance(content, tuple) else (content, 0)
        path.write_bytes(data)
        if size:
            os.truncate(path, size)


def watch(folder: Path, found: list[str]) -> None:
    """Note what a case does outside of its folder; hooks stay for the life of the process, which is short."""
    inside = (str(folder), os.devnull)
    renderer = str(Path(sys.modules["hubq.formats.gguf.render"].__file__ or ""))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                path = os.path.abspath(os.fsdecode(path))
                if not path.startswith(inside):
                    found.append(f"writes {path}")
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.rmdir"):
            if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:
                return  # within a folder that is open: how shutil.rmtree goes on
            paths = [
                os.path.abspath(os.fsdecode(path)) for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)
            ]
            if not all(path.startswith(inside) for path in paths):
                found.append(f"{event} {paths}")
        elif event in ("socket.connect", "os.system", "os.exec", "os.posix_spawn", "ctypes.dlopen"):
            found.append(f"{event} {arguments!r:.100}")
        elif event == "subprocess.Popen" and renderer not in map(str, arguments[1]) and "hubq" not in map(str, arguments[1]):
            found.append(f"{event} {arguments[1]!r:.100}")

    sys.addaudithook(hook)


def perform(case: make.Case, folder: Path) -> dict[str, Any]:
    """Run a case in this process."""
    from hubq.errors import HubqError

    found: list[str] = []
    watch(folder, found)
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    room = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    ended, message, hint = make.ACCEPTED, "", ""
    try:
        ACTIONS[case.action](folder, **case.facts)
    except HubqError as error:
        ended, message, hint = type(error).__name__, error.message, error.hint
    except BaseException as error:
        ended, message = f"!{type(error).__name__}", str(error)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return {
        "ended": ended,
        "message": message[:2000],
        "long": len(message),
        "hint": hint,
        "seconds": time.process_time() - began,
        "grown": grown,
        "outside": found,
    }


def run(case: make.Case, root: Path) -> dict[str, Any]:
    """Run a case in a child; a child that dies or takes too long says so."""
    folder = root / "case"
    lay_out(case, folder)
    (root / "told").unlink(missing_ok=True)
    began, child = time.monotonic(), os.fork()
    if child == 0:
        try:
            errors = os.open(root / "errors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(errors, 2)
            os.dup2(errors, 1)
            told = json.dumps(perform(case, folder))
            (root / "told").write_text(told)
        finally:
            os._exit(0)
    status = None
    while status is None and time.monotonic() - began < PATIENCE:
        done, found = os.waitpid(child, os.WNOHANG)
        status = found if done else None
        time.sleep(0.001)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        told = {"ended": "!endless"}
    elif (root / "told").is_file():
        told = json.loads((root / "told").read_text())
    else:
        told = {"ended": f"!killed by {os.waitstatus_to_exitcode(status)}"}
    shutil.rmtree(folder)
    if sorted(path.name for path in root.iterdir() if path.name not in ("told", "errors")):
        told["ended"] = "!wrote beside its folder"
    return {"name": case.name, "wanted": case.wanted, "wall": time.monotonic() - began, **told}


def main() -> None:
    root, word = Path(sys.argv[1]).resolve(), "".join(sys.argv[2:])
    os.environ |= {name: str(root / "case" / "home") for name in ("HF_HOME", "HOME", "HUBQ_HOME")}
    os.environ["TMPDIR"] = str(root / "case" / "tmp")
    (root / "case" / "tmp").mkdir(parents=True)
    warm(("tokenizers", "sentencepiece", *(f"hubq.{name}" for name in MODULES)))
    importlib.import_module("hubq.formats.gguf.arch").families()
    for case in make.cases():
        if word in case.name:
            warm(LARGE.get(case.action, ()))
            print(json.dumps(run(case, root)), flush=True)


if __name__ == "__main__":
    main()
