"""What goes wrong between hubq and the Hub, with the real client: what heals, what is waited for, what people are told."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import loopback
import pytest
from huggingface_hub import constants
from loopback import ALWAYS, TOKEN

from hubq.errors import HubError
from hubq.hub import connect, huggingface
from hubq.hub.huggingface import HuggingFace

WEIGHTS = "a/model.safetensors"
MODEL = {"config.json": b"{}", WEIGHTS: bytes(range(256)) * 40}


class Clock(list[float]):
    """Seconds that were slept, in order; nobody really waits."""

    def sleep(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loopback.isolate(monkeypatch, tmp_path / "home")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


@pytest.fixture
def server() -> Iterator[loopback.Hub]:
    with loopback.Hub() as server:
        server.add("org/model", MODEL)
        server.add("org/target", {"notes.txt": b"written by a person"})
        yield server


@pytest.fixture
def hub(server: loopback.Hub) -> HuggingFace:
    return HuggingFace(server.url, TOKEN)


def called(server: loopback.Hub, method: str, part: str = "") -> int:
    return len([path for verb, path in server.requests if verb == method and part in path])


# --- downloads that break off ---


def test_a_connection_that_drops_twice_is_resumed(hub: HuggingFace, server: loopback.Hub, clock: Clock, monkeypatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)
    server.dropped[WEIGHTS] = [3000, 3000]
    place, _ = hub.pull(hub.snapshot("org/model"), [WEIGHTS])
    assert (place / WEIGHTS).read_bytes() == MODEL[WEIGHTS]
    assert server.asked == ["bytes=2560-", "bytes=5120-"] and called(server, "GET", "/cdn") == 3


def test_a_server_that_ignores_range_starts_over(hub: HuggingFace, server: loopback.Hub, clock: Clock, monkeypatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)
    server.dropped[WEIGHTS], server.ranges = [3000, 6000], False
    snapshot = hub.snapshot("org/model")
    place, _ = hub.pull(snapshot, [WEIGHTS])
    assert (place / WEIGHTS).read_bytes() == MODEL[WEIGHTS] and len(server.asked) == 2
    assert hub.read(snapshot, WEIGHTS, 100, 200) == MODEL[WEIGHTS][100:200]


def test_a_connection_that_always_drops_is_given_up(hub: HuggingFace, server: loopback.Hub, clock: Clock) -> None:
    server.dropped[WEIGHTS] = [0] * 1000
    with pytest.raises(HubError) as caught:
        hub.pull(hub.snapshot("org/model"), [WEIGHTS])
    assert "run the command again" in caught.value.hint and len(clock) < 40
    assert not hub.cached(hub.snapshot("org/model"), WEIGHTS)


@pytest.mark.parametrize("left", [bytes(5000), b"garbage!" * 1280, bytes(20000)], ids=["half zeros", "exact", "longer"])
def test_what_an_older_download_left_is_not_used(hub: HuggingFace, tmp_path: Path, left: bytes) -> None:
    snapshot = hub.snapshot("org/model")
    blobs = tmp_path / "home/hub/models--org--model/blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{snapshot.file(WEIGHTS).sha256}.incomplete").write_bytes(left)
    place, _ = hub.pull(snapshot, [WEIGHTS])
    assert (place / WEIGHTS).read_bytes() == MODEL[WEIGHTS]


PULL = """
from hubq.hub import connect
hub = connect()
print(hub.pull(hub.snapshot("org/model"), ["a/model.safetensors"])[0])
"""


def test_a_full_disk_under_the_cache_is_no_passing_fault(server: loopback.Hub, tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    environment = os.environ | server.environment(tmp_path / "hf") | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PULL]
    told = subprocess.run(command, env=environment, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert told.returncode == 1 and "HubError" in told.stderr and "File too large" in told.stderr
    assert called(server, "GET", "/cdn") == 1
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (Path(again.stdout.strip()) / WEIGHTS).read_bytes() == MODEL[WEIGHTS]


def test_a_lock_that_a_dead_process_left_is_nobodys(hub: HuggingFace, tmp_path: Path, clock: Clock) -> None:
    snapshot = hub.snapshot("org/model")
    locks = tmp_path / "home/hub/.locks/models--org--model"
    locks.mkdir(parents=True)
    (locks / f"{snapshot.file(WEIGHTS).sha256}.lock").touch()
    place, _ = hub.pull(snapshot, [WEIGHTS])
    assert (place / WEIGHTS).read_bytes() == MODEL[WEIGHTS] and not clock


def test_a_cache_that_cannot_be_written_is_named(hub: HuggingFace, tmp_path: Path, monkeypatch, clock: Clock) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(HubError, match="file"):
        hub.pull(hub.snapshot("org/model"), [WEIGHTS])
    assert not clock


def test_a_listing_without_end_is_refused(hub: HuggingFace, server: loopback.Hub, monkeypatch) -> None:
    monkeypatch.setattr(huggingface, "ENTRIES", 40)
    server.page = 10
    server.add("org/model", {f"{number}.txt": b"" for number in range(500)})
    with pytest.raises(HubError, match="more than 40 files"):
        hub.snapshot("org/model")
    assert called(server, "GET", "/tree/") < 8


# --- waiting ---

ASKED = {"Retry-After": "17"}, {"RateLimit": '"api";r=0;t=17', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}


@pytest.mark.parametrize("headers", ASKED, ids=["Retry-After", "RateLimit"])
@pytest.mark.parametrize("what", ["GET /api/models/org/model", "/tree/", "HEAD", "GET /cdn"])
def test_a_pull_waits_as_long_as_it_is_asked_to(
    hub: HuggingFace, server: loopback.Hub, clock: Clock, what: str, headers: dict[str, str]
) -> None:
    server.fail(what, 429, 2 if what == "HEAD" else 1, headers)  # the client asks for a file's size again at once
    place, _ = hub.pull(hub.snapshot("org/model"), [WEIGHTS])
    assert (place / WEIGHTS).read_bytes() == MODEL[WEIGHTS]
    assert [round(seconds) for seconds in clock] in ([17], [18])  # the client adds a second


@pytest.mark.parametrize("headers", ASKED, ids=["Retry-After", "RateLimit"])
@pytest.mark.parametrize("what", ["/commit/main", "PUT /upload", "POST /org/target.git", "/preupload/"])
def test_a_push_waits_as_long_as_it_is_asked_to(
    hub: HuggingFace, server: loopback.Hub, clock: Clock, what: str, headers: dict[str, str]
) -> None:
    server.fail(what, 429, headers=headers)
    hub.push("org/target", {"M.gguf": b"GGUF"}, "m")
    assert server.files("org/target")["M.gguf"] == b"GGUF" and len(server.repos["org/target"].commits) == 2
    assert what == "PUT /upload" or [round(seconds) for seconds in clock] in ([17], [18])


@pytest.mark.parametrize("headers", [{"Retry-After": "86400"}, {"RateLimit": '"api";r=0;t=86400'}, {"Retry-After": "soon"}, {}])
@pytest.mark.parametrize("what", ["GET /api/models/org/model", "GET /cdn", "/commit/main"])
def test_no_server_makes_anybody_wait_for_ever(
    hub: HuggingFace, server: loopback.Hub, clock: Clock, what: str, headers: dict[str, str]
) -> None:
    server.fail(what, 429, headers=headers)
    hub.pull(hub.snapshot("org/model"), [WEIGHTS])
    hub.push("org/target", {"M.gguf": b"GGUF"}, "m")
    waits = [300, 301] if any("86400" in value for value in headers.values()) else [1, 1.25]
    assert len(clock) == 1 and waits[0] <= clock[0] <= waits[1]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("what", ["GET /api/models/org/model", "GET /cdn", "/commit/main"])
def test_a_server_that_stays_broken_is_given_up_soon(
    hub: HuggingFace, server: loopback.Hub, clock: Clock, what: str, status: int
) -> None:
    server.fail(what, status, ALWAYS)
    with pytest.raises(HubError, match=str(status)) as caught:
        hub.pull(hub.snapshot("org/model"), [WEIGHTS])
        hub.push("org/target", {"M.gguf": b"GGUF"}, "m")
    assert "run the command again" in caught.value.hint
    assert len(clock) == 3 and [low <= wait <= 1.25 * low for low, wait in zip((1, 4, 16), clock, strict=True)] == [True] * 3
    assert len(server.repos["org/target"].commits) == 1


# --- what people are told ---


def told(act) -> HubError:
    with pytest.raises(HubError) as caught:
        act()
    return caught.value


def test_every_closed_door_has_a_message_of_its_own(hub: HuggingFace, server: loopback.Hub, clock: Clock) -> None:
    snapshot = hub.snapshot("org/model")
    server.repos["org/model"].gated = True
    said = {"gated": told(lambda: hub.pull(snapshot, [WEIGHTS]))}
    server.repos["org/model"].gated, server.repos["org/model"].disabled = False, True
    said["disabled"] = told(lambda: hub.snapshot("org/model"))
    said["disabled while pulling"] = told(lambda: hub.pull(snapshot, [WEIGHTS]))
    server.repos["org/model"].disabled = False
    server.renamed["org/old"] = "org/model"
    said["renamed"] = told(lambda: hub.snapshot("org/old"))
    said["missing"] = told(lambda: hub.snapshot("org/nothing"))
    words = {"gated": "consent", "disabled": "closed it for everybody", "renamed": "org/old is called org/model now"}
    words |= {"missing": "does not exist, or it is private", "disabled while pulling": "closed it for everybody"}
    for what, error in said.items():
        assert words[what] in error.message and error.hint, what
    assert f"{server.url}/org/model" in said["gated"].hint and "write org/model" in said["renamed"].hint
    assert not clock


def test_a_commit_that_is_gone_is_never_replaced_by_another(hub: HuggingFace, server: loopback.Hub) -> None:
    """A forced push, or somebody who took over the name: the files of a pinned commit are its files or none."""
    snapshot = hub.snapshot("org/model")
    server.add("org/model", {WEIGHTS: b"other weights"})
    server.repos["org/model"].forget(snapshot.commit)
    acts = [
        lambda: hub.pull(snapshot, [WEIGHTS]),
        lambda: hub.read(snapshot, WEIGHTS),
        lambda: hub.read(snapshot, WEIGHTS, 1, 9),
    ]
    for act in (*acts, lambda: hub.snapshot("org/model", snapshot.commit)):
        error = told(act)
        assert f"commit {snapshot.commit} of org/model is gone" in error.message and "commits/main" in error.hint
    server.repos["org/model"] = loopback.Repo()
    server.add("org/model", {WEIGHTS: b"weights of a stranger", "config.json": b"{}"})
    for act in acts:
        assert "somebody else has the name now" in told(act).message
    assert hub.moved(snapshot, None) == server.repos["org/model"].head


REFUSALS = [
    (401, "Invalid credentials in Authorization header", "does not take the token"),
    (403, "you must use a write token to upload to a repository.", "refused access"),
    (403, "Private repository storage limit reached, please upgrade your plan to increase it", "no more room"),
    (403, "Your storage patterns tripped our internal systems!", "no more room"),
    (402, "Payment Required", "no more room"),
    (413, "Payload Too Large", "no more room"),
]


@pytest.mark.parametrize(("status", "words", "said"), REFUSALS)
@pytest.mark.parametrize("what", ["/commit/main", "POST /org/target.git", "/preupload/", "PUT /upload"])
def test_a_refusal_in_the_middle_is_final_and_says_how_to_go_on(
    hub: HuggingFace, server: loopback.Hub, clock: Clock, status: int, words: str, said: str, what: str
) -> None:
    server.fail(what, status, ALWAYS, {"X-Error-Message": words})
    error = told(lambda: hub.push("org/target", {"M.gguf": b"GGUF", "README.md": b"#"}, "m"))
    assert said in error.message and (words in error.message or what == "PUT /upload")
    assert "run the command again: what is done is kept" in error.hint
    assert not clock and called(server, "POST", "/commit/") <= 1 and len(server.repos["org/target"].commits) == 1


def test_an_upload_that_breaks_off_shows_nothing_and_is_not_sent_twice(
    hub: HuggingFace, server: loopback.Hub, clock: Clock
) -> None:
    server.fail("POST /api/models/org/target/commit", 503, ALWAYS)
    files = {"A.gguf": b"GGUF A", "B.gguf": b"GGUF B"}
    told(lambda: hub.push("org/target", files, "m"))
    assert server.files("org/target") == {"notes.txt": b"written by a person"} and called(server, "PUT") == 2
    server._failures.clear()
    hub.push("org/target", files, "m")
    assert called(server, "PUT") == 2 and len(server.repos["org/target"].commits) == 2


# --- tokens ---


def test_the_token_for_pushing_is_for_nothing_else(server: loopback.Hub, tmp_path: Path) -> None:
    code = "from hubq.hub import connect; print(connect()._api.token, connect(writing=True)._api.token)"
    environment = os.environ | server.environment(tmp_path) | {"HF_TOKEN": "hf_read"}
    for given, expected in (
        ({"HUBQ_PUSH_TOKEN": "hf_push"}, "None hf_push"),
        ({}, "None None"),
        ({"HUBQ_PUSH_TOKEN": ""}, "None None"),
    ):
        ran = subprocess.run([sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == expected
    assert connect(tmp_path, writing=True).has_token()
