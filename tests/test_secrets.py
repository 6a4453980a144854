"""Nothing that hubq says or writes holds a secret: logs, tracebacks, messages."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import loopback
import pytest
import tiny
from loopback import SECRET, TOKEN

from hubq.secrets import scrub, scrub_record

JWT = "hf_jwt_eyJhbGciOiJFZERTQSJ9.eyJyZWFkIjp0cnVl-_.c2lnbmF0dXJl"


def test_scrub_knows_what_secrets_look_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBQ_PUSH_TOKEN", "unlike-any-other")
    text = f"token {JWT}, {TOKEN}; Authorization: Bearer abc.def/g=; /upload/1?{SECRET}&X-Amz-Date=2026 unlike-any-other"
    expected = "token hf_***, hf_***; Authorization: Bearer *** /upload/1?X-Amz-Signature=***&X-Amz-Date=*** ***"
    assert scrub(text) == expected
    plain = "hf_hub_download of hf_api.py failed, see https://huggingface.co/org/model/tree/main"
    assert scrub(plain) == plain and scrub(scrub(text)) == scrub(text)


def test_a_record_is_scrubbed_with_its_traceback() -> None:
    try:
        raise OSError(f"PUT https://cdn/x?{SECRET}")
    except OSError:
        record = logging.LogRecord("x", 10, "x", 1, "failed with %s", (f"Bearer {TOKEN}",), sys.exc_info())
    assert scrub_record(record)
    said = logging.Formatter().format(record)
    assert "OSError: PUT https://cdn/x" in said and "Signature" not in said and TOKEN not in said


PROGRAM = """
import logging, sys, threading, hubq.secrets
token = sys.stdin.read()
def run():
    logging.basicConfig(level=logging.DEBUG)
    logging.getLogger("any.library").warning("Bearer %s and %s", token, {"token": token})
    logging.getLogger("any.library").warning("%d of %s", token)
    thread = threading.Thread(target=lambda: 1 / {}[token])
    thread.start()
    thread.join()
    try:
        raise ValueError(f"https://cdn/x?X-Amz-Signature={token}")
    except ValueError:
        logging.exception("it failed with %s", token)
    raise RuntimeError(f"the token {token} is wrong")
hubq.secrets.guarded(run)
"""


def test_logs_threads_and_tracebacks_of_a_guarded_program_are_scrubbed() -> None:
    told = subprocess.run([sys.executable, "-c", PROGRAM], input=TOKEN, capture_output=True, text=True, check=False)
    assert told.returncode == 1 and told.stdout == "" and TOKEN not in told.stderr
    for words in (
        "Bearer ***",
        "KeyError",
        "ValueError: https://cdn/x\n",
        "it failed with hf_***",
        "RuntimeError: the token hf_***",
    ):
        assert words in told.stderr, words


def test_a_run_that_fails_shows_its_token_nowhere_keeps_its_work_and_goes_on(tmp_path: Path) -> None:
    """The token expires with the commit; the scan is of all that was said and of every file that was written."""
    model = tiny.llama(tmp_path / "Tiny", num_hidden_layers=1)
    command = [sys.executable, "-m", "hubq", "publish", "org/Tiny", "--levels", "q8_0", "--to", "org/Tiny-GGUF", "--no-eval"]
    command += ["--work-dir", str(tmp_path / "work")]
    with loopback.Hub() as server:
        server.add("org/Tiny", {path.name: path.read_bytes() for path in model.iterdir()})
        environment = os.environ | server.environment(tmp_path / "hf") | {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}
        environment |= {"HUBQ_DEBUG": "1", "HUBQ_PUSH_TOKEN": TOKEN}
        server.fail("PUT /upload", 500)
        server.fail("/commit/main", 401, headers={"X-Error-Message": f"the token {TOKEN} has expired"})
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert told.returncode == 1 and "does not take the token for org/Tiny-GGUF (401)" in told.stderr
        assert "Traceback" in told.stderr and "/upload/" in told.stderr and len(server.repos["org/Tiny-GGUF"].commits) == 1
        written = [path for place in ("work", "hf") for path in (tmp_path / place).rglob("*") if path.is_file()]
        kept = [path for path in written if path.suffix == ".gguf"]
        assert len(kept) == 1 and not kept[0].parent.name.endswith(".part")
        scanned = [told.stdout.encode(), told.stderr.encode(), *(path.read_bytes() for path in written)]
        del environment["HUBQ_DEBUG"]
        again = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        scanned += [again.stdout.encode(), again.stderr.encode(), *server.files("org/Tiny-GGUF").values()]
        assert len([path for verb, path in server.requests if verb == "PUT"]) == 2  # the first one failed once
    for secret in (TOKEN.encode(), SECRET.encode(), SECRET.partition("=")[2].encode()):
        assert not any(secret in data for data in scanned)
