"""The whole way from a model to a release: in a folder, over a socket with the real client, and through a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import loopback
import pytest
import tiny
from families import make, variants
from gguf import GGUFReader
from releases import check_whole

from hubq import plan as planning
from hubq import release
from hubq.errors import BadSource, HubError, HubqError, Unsupported, Usage
from hubq.formats import parse_levels
from hubq.hub.huggingface import HuggingFace
from hubq.nouns import Snapshot
from hubq.plan import Request, destination, locate, plan
from hubq.record import commands, read_record
from hubq.record import merge as record_merge
from hubq.release import Event, publish
from hubq.store import Store, sha256
from hubq.text import TextSpec
from hubq.ui import Screen

LEVELS = "q8_0,q4_k_m"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("source") / "Tiny-Llama", dtype="float32")


@pytest.fixture
def request_(model: Path, topics: Path, tmp_path: Path) -> Request:
    out = tmp_path / "out"
    out.mkdir()
    text = TextSpec(str(topics), None, windows=3)
    return Request(
        str(model),
        parse_levels(LEVELS),
        Store(tmp_path / "work"),
        to=str(out),
        text=text,
        command="hubq publish {model} {build}",
    )


class Told(list[Event]):
    """Every event of a run."""

    def did(self, step: str) -> list[str]:
        """Labels of a step's events that were not there at once."""
        return [event.label for event in self if event.step == step and event.result is None]


def run(request: Request) -> tuple[release.Result, Told]:
    told = Told()
    return publish(request, told.append), told


def test_a_folder_release_holds_files_card_record_and_plot(request_: Request) -> None:
    result, told = run(request_)
    folder = Path(str(result.target))
    names = {"README.md", "release.json", "SHA256SUMS", "Tiny-Llama-Q8_0.gguf", "Tiny-Llama-Q4_K_M.gguf"}
    names |= {"loss.svg", "levels.svg", "bytes.svg", "template", "params"}
    assert {path.name for path in folder.iterdir()} == names
    record = json.loads((folder / "release.json").read_bytes())
    for entry in record["files"]:
        assert sha256(folder / entry["path"]) == entry["sha256"]
        assert len(GGUFReader(folder / entry["path"]).tensors) == sum(entry["types"].values())
    pairs = {(row["level"], row["engine"]) for row in record["measurements"]}
    engines = {"llama.cpp", "weights"}
    assert pairs == {("reference", "transformers")} | {(f"gguf:{name}", e) for name in ("Q8_0", "Q4_K_M") for e in engines}
    kld = {(row["level"], row["engine"]): row["metrics"].get("kld") for row in record["measurements"]}
    for engine in engines:
        assert 0 < kld["gguf:Q8_0", engine]["value"] < kld["gguf:Q4_K_M", engine]["value"]
    assert "Tiny-Llama-Q4_K_M.gguf" in (folder / "README.md").read_text()
    assert told.did("build") and "reference transformers" in told.did("measure")


def test_a_second_run_does_nothing_and_changes_nothing(request_: Request) -> None:
    first, _ = run(request_)
    before = {path.name: path.stat().st_mtime_ns for path in Path(str(first.target)).iterdir()}
    second, told = run(request_)
    assert told.did("build") == told.did("measure") == told.did("push") == []
    assert second.commit == first.commit
    assert {path.name: path.stat().st_mtime_ns for path in Path(str(first.target)).iterdir()} == before


def test_the_groups_of_tensors_add_up_to_the_file_but_for_its_header(request_: Request) -> None:
    result, _ = run(replace(request_, text=None))
    for file in result.release.artifacts:
        (path,) = Path(str(result.target)).glob(f"*{file.level.partition(':')[2]}.gguf")
        tensors = GGUFReader(path).tensors
        assert sum(file.groups.values()) == sum(tensor.n_bytes for tensor in tensors)
        attention = sum(tensor.n_bytes for tensor in tensors if "attn_" in tensor.name and len(tensor.shape) > 1)
        assert attention == file.groups["attention"] > 0


def test_files_are_measured_until_it_is_precise_and_later_levels_join(request_: Request) -> None:
    assert request_.text
    request_ = replace(request_, text=replace(request_.text, windows=60, length=64, precision=0.02))
    coarse, told = run(replace(request_, levels=parse_levels("q2_k")))
    fine, _ = run(replace(request_, levels=parse_levels("q8_0")))
    rows = {(row.level, row.engine): row for row in fine.release.measurements}
    scored = {pair: row.tokens // 31 for pair, row in rows.items()}
    assert scored["gguf:Q8_0", "llama.cpp"] == 16 <= scored["gguf:Q2_K", "llama.cpp"] <= 60
    assert scored["reference", "transformers"] == max(scored.values())  # that of the run that went farther
    assert rows["gguf:Q2_K", "weights"] == next(row for row in coarse.release.measurements if row.engine == "weights")
    again, told = run(replace(request_, levels=parse_levels("q8_0,q2_k")))
    assert told.did("measure") == [] and again.commit == fine.commit


def test_the_floor_is_the_source_in_sixteen_bits(request_: Request) -> None:
    result, _ = run(replace(request_, floor=True, levels=parse_levels("q8_0")))
    floor = next(row for row in result.release.measurements if row.level == "floor")
    assert floor.engine == "transformers, bfloat16" and 0 < floor.values["kld"].value < 0.01
    again, told = run(replace(request_, floor=True, levels=parse_levels("q8_0,q4_k_m")))
    assert not any(label.startswith("floor") for label in told.did("measure"))
    assert sum(row.level == "floor" for row in again.release.measurements) == 1


def test_what_is_kept_of_the_reference_may_lie_on_disk(request_: Request) -> None:
    memory, _ = run(request_)
    disk, _ = run(replace(request_, store=Store(request_.store.root.parent / "other"), logits=1 << 30, logits_on_disk=True))
    assert disk.release.measurements == memory.release.measurements
    with pytest.raises(HubqError, match="--logits-budget asks for"):
        run(replace(request_, store=Store(request_.store.root.parent / "third"), logits=1 << 60, logits_on_disk=True))


def test_speeds_are_measured_once_and_stay_when_levels_come_later(request_: Request) -> None:
    request_ = replace(request_, speed=True)
    first, told = run(replace(request_, levels=parse_levels("q8_0")))
    assert told.did("time") == ["gguf:Q8_0 llama.cpp"]
    second, told = run(request_)
    assert told.did("time") == ["gguf:Q4_K_M llama.cpp"]
    again, told = run(request_)
    assert (told.did("time"), again.commit) == ([], second.commit)
    later, _ = run(replace(request_, levels=parse_levels("q4_k_m"), speed=False))
    record = json.loads((Path(str(first.target)) / "release.json").read_bytes())
    assert [row["level"] for row in record["speeds"]] == ["gguf:Q8_0", "gguf:Q4_K_M"]
    assert later.release.speeds[0] == first.release.speeds[0]
    page = (Path(str(first.target)) / "README.md").read_text()
    assert "| Q8\\_0 |" in page.partition("## Speed")[2].partition("\n## ")[0]
    elsewhere = replace(first.release.speeds[0], machine="another machine")
    merged = record_merge(replace(later.release, speeds=(elsewhere,)), later.release, Snapshot("", "", ()))
    assert merged.speeds == (elsewhere,)


def test_the_same_input_gives_the_same_bytes_in_another_place(request_: Request, tmp_path: Path) -> None:
    first, _ = run(request_)
    (tmp_path / "elsewhere").mkdir()
    second, _ = run(replace(request_, store=Store(tmp_path / "work2"), to=str(tmp_path / "elsewhere")))
    for path in Path(str(first.target)).iterdir():
        assert path.read_bytes() == (Path(str(second.target)) / path.name).read_bytes(), path.name
        assert str(tmp_path).encode() not in path.read_bytes()


def test_a_damaged_file_in_the_store_is_built_again(request_: Request) -> None:
    request_ = replace(request_, text=None)
    first, _ = run(request_)
    kept = next((request_.store.root / "artifacts").glob("*/*Q8_0.gguf"))
    good = sha256(kept)
    with kept.open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff\x00\xff")
    second, told = run(request_)
    assert set(told.did("build")) == {"gguf:Q8_0"}
    assert sha256(next((request_.store.root / "artifacts").glob("*/*Q8_0.gguf"))) == good
    assert second.commit == first.commit


def test_more_levels_later_leave_the_others_alone(request_: Request) -> None:
    first, _ = run(replace(request_, levels=parse_levels("q8_0"), text=None))
    foreign = Path(str(first.target)) / "notes.txt"
    foreign.write_text("mine")
    second, told = run(replace(request_, levels=parse_levels("q8_0,q6_k"), text=None))
    assert set(told.did("build")) == {"gguf:Q6_K"}
    assert "Tiny-Llama-Q8_0.gguf" not in told.did("push")
    assert foreign.read_text() == "mine" and second.commit != first.commit


def test_the_card_tells_of_earlier_levels_too(request_: Request, model: Path, tmp_path: Path) -> None:
    run(replace(request_, levels=parse_levels("q4_0")))
    result, _ = run(replace(request_, levels=parse_levels("q8_0")))
    levels = ["gguf:Q8_0", "gguf:Q4_0"]
    assert [file.level for file in result.release.artifacts] == levels
    assert {row.level for row in result.release.measurements} == {"reference", *levels}
    assert commands(result.release) == ["hubq publish ./Tiny-Llama --levels q8_0,q4_0"]
    other = request_.text and replace(request_.text, seed=7)
    result, _ = run(replace(request_, levels=parse_levels("q8_0"), text=other))
    assert [file.level for file in result.release.artifacts] == levels
    assert {row.level for row in result.release.measurements} == {"reference", "gguf:Q8_0"}
    result, _ = run(replace(request_, levels=parse_levels("q6_k"), text=None))
    assert [file.level for file in result.release.artifacts] == ["gguf:Q8_0", "gguf:Q6_K", "gguf:Q4_0"]
    assert {row.level for row in result.release.measurements} == {"reference", "gguf:Q8_0"}
    (Path(str(result.target)) / "Tiny-Llama-Q4_0.gguf").unlink()
    (Path(str(result.target)) / "Tiny-Llama-Q6_K.gguf").unlink()
    result, _ = run(replace(request_, levels=parse_levels("q8_0")))
    assert [file.level for file in result.release.artifacts] == ["gguf:Q8_0"]


def test_a_record_that_is_not_ours_is_not_overwritten(request_: Request) -> None:
    target = Path(str(request_.to)) / "Tiny-Llama-GGUF"
    target.mkdir()
    (target / "release.json").write_text("{}")
    with pytest.raises(Unsupported, match=r"release\.json has schema None"):
        run(replace(request_, text=None))
    assert (target / "release.json").read_text() == "{}"


def test_without_measuring_the_card_says_so(request_: Request) -> None:
    result, told = run(replace(request_, text=None))
    assert told.did("measure") == [] and "loss.svg" not in result.card
    assert b"Not evaluated" in result.card["README.md"]


def test_a_plan_touches_nothing_and_is_exact(request_: Request) -> None:
    planned = plan(request_)
    assert not request_.store.root.exists()
    assert planned.download == 0 and planned.write == sum(item.size for item in planned.items)
    result, _ = run(replace(request_, text=None))
    assert [item.size for item in planned.items] == [artifact.size for artifact in result.release.artifacts]
    assert [item.key for item in planned.items] == [artifact.key for artifact in result.release.artifacts]
    assert plan(request_).write == 0


def test_too_small_a_disk_is_told_before_anything_is_written(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "SPARE", 1 << 60)
    with pytest.raises(HubqError, match=r"this takes [\d.]+ GB of disk, and .* has .* GB free") as caught:
        run(request_)
    assert "--work-dir" in caught.value.hint
    assert list((request_.store.root).glob("artifacts/*")) == [] and list(Path(str(request_.to)).iterdir()) == []


def test_a_failure_leaves_no_unfinished_file(request_: Request, tmp_path: Path) -> None:
    import numpy as np

    folder = tiny.llama(tmp_path / "Broken", dtype="float32")
    tiny.rewrite(folder, model__norm__weight=np.full(256, np.nan, np.float32))
    with pytest.raises(BadSource, match=r"model\.norm\.weight.*not finite"):
        run(replace(request_, model=str(folder)))
    assert list(request_.store.root.rglob("*.gguf")) == [] and list(Path(str(request_.to)).iterdir()) == []


def test_one_run_at_a_time_in_a_store(request_: Request) -> None:
    with request_.store.locked(), pytest.raises(HubqError, match="another hubq is working"):
        run(request_)


def test_a_source_without_config_is_refused(request_: Request, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadSource, match=r"empty has neither config\.json nor a GGUF file"):
        plan(replace(request_, model=str(tmp_path / "empty")))


def test_models_and_targets_are_read_as_people_write_them(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert locate("org/model@abc", None)[1:] == ("org/model", "abc", "")
    assert locate(str(tmp_path / "folder"), None)[1:] == ("folder", None, "")
    assert locate("org/model", tmp_path)[1:] == ("org/model", None, "")
    assert locate("org/model@abc:F16", None)[1:] == ("org/model", "abc", "F16")
    assert locate(f"{tmp_path / 'folder'}:a.gguf", None)[1:] == ("folder", None, "a.gguf")
    assert destination("me/My-GGUF", "Model-GGUF")[1] == "me/My-GGUF"
    assert destination(str(tmp_path), "Model-GGUF")[1] == "Model-GGUF"
    with pytest.raises(Usage, match="neither a Hub id nor a folder"):
        locate("what is this", None)
    with pytest.raises(Usage, match="there is no folder"):
        locate("./nothing-here", None)
    with pytest.raises(Usage, match="neither a Hub id nor a folder"):
        destination("nothing", "Model")


# --- over a socket ---


@pytest.fixture
def hub(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    loopback.isolate(monkeypatch, tmp_path / "home")
    with loopback.Hub() as server:
        real = planning.connect
        monkeypatch.setattr(
            planning, "connect", lambda place=None, **_: real(place) if place else HuggingFace(server.url, loopback.TOKEN)
        )
        server.add("org/Tiny-Llama", {path.name: path.read_bytes() for path in model.iterdir()})
        server.add("me/Tiny-Llama-GGUF", {"old.txt": b"before"})
        yield server


def test_from_the_hub_to_the_hub_and_read_back(hub: loopback.Hub, topics: Path, tmp_path: Path) -> None:
    from huggingface_hub import HfApi, ModelCard

    hub.add("org/Tiny-Llama", {**hub.files("org/Tiny-Llama"), "evil.py": b"boom", "pytorch_model.bin": b"pickle"})
    command = [sys.executable, "-m", "hubq", "publish", "org/Tiny-Llama", "--levels", LEVELS, "--to", "me/Tiny-Llama-GGUF"]
    command += ["--dataset", str(topics), "--windows", "2", "--work-dir", str(tmp_path / "work"), "--json"]
    environment = os.environ | hub.environment(tmp_path / "hf")

    def publish() -> dict[str, Any]:
        told = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert told.returncode == 0, told.stderr
        assert loopback.TOKEN not in told.stdout + told.stderr
        return json.loads(told.stdout)

    document = publish()
    assert len(hub.repos["me/Tiny-Llama-GGUF"].commits) == 2 and document["commit"] == hub.repos["me/Tiny-Llama-GGUF"].head
    api = HfApi(hub.url, loopback.TOKEN)
    assert len(document["release"]["files"]) == 2
    for entry in document["release"]["files"]:
        local = api.hf_hub_download("me/Tiny-Llama-GGUF", entry["path"], local_dir=tmp_path / "read")
        assert sha256(Path(local)) == entry["sha256"]
    card = ModelCard(Path(api.hf_hub_download("me/Tiny-Llama-GGUF", "README.md", local_dir=tmp_path / "read")).read_text())
    assert card.data.base_model == "org/Tiny-Llama" and card.data.base_model_relation == "quantized"
    assert card.data.eval_results and hub.files("me/Tiny-Llama-GGUF")["old.txt"] == b"before"
    assert not any("evil.py" in path or "pytorch_model.bin" in path for _, path in hub.requests)
    uploads = len(hub.uploads)
    assert publish()["commit"] == document["commit"] and len(hub.uploads) == uploads


def test_a_dry_run_on_the_hub_fetches_no_weights(hub: loopback.Hub, request_: Request, tmp_path: Path) -> None:
    planned = plan(replace(request_, model="org/Tiny-Llama", to=None))
    assert planned.download > 1_000_000 and planned.target.endswith("/Tiny-Llama-GGUF")
    assert not hub.uploads and not (tmp_path / "home").exists()
    assert all(method in ("GET", "HEAD") for method, _ in hub.requests)


def test_a_release_stays_with_the_commit_that_it_began_with(hub: loopback.Hub, request_: Request) -> None:
    began = hub.repos["org/Tiny-Llama"].head

    def move(event: Event) -> None:
        if event.step == "plan":
            hub.add("org/Tiny-Llama", {**hub.files("org/Tiny-Llama"), "config.json": b"{}"})

    result = publish(replace(request_, model="org/Tiny-Llama", to="me/Tiny-Llama-GGUF", text=None), move)
    assert result.release.commit == began != hub.repos["org/Tiny-Llama"].head


def test_a_source_that_moved_on_is_told_and_may_be_refused(hub: loopback.Hub, request_: Request) -> None:
    """Its history is even rewritten while the work goes on: the files are of the commit that was pulled, or none are pushed."""
    wanted = replace(request_, model="org/Tiny-Llama", to="me/Tiny-Llama-GGUF", text=None, levels=parse_levels("q8_0"))
    told = Told()

    def move(event: Event) -> None:
        told.append(event)
        if event.step == "check":
            began = hub.repos["org/Tiny-Llama"].head
            hub.add("org/Tiny-Llama", {"README.md": b"# moved %d" % len(told)})
            hub.repos["org/Tiny-Llama"].forget(began)

    with pytest.raises(HubError, match=r"org/Tiny-Llama moved from \w{12} to \w{12}.*nothing was pushed") as caught:
        publish(replace(wanted, require_latest=True), move)
    assert caught.value.exit_code == 1 and "newest" in caught.value.hint
    assert hub.files("me/Tiny-Llama-GGUF") == {"old.txt": b"before"}
    began = hub.repos["org/Tiny-Llama"].head
    result = publish(wanted, move)
    newest = hub.repos["org/Tiny-Llama"].head
    assert result.release.commit == began and result.release.newer == newest != began
    assert read_record(result.card["release.json"]).newer == newest and newest[:12] in result.card["README.md"].decode()
    assert [event.label for event in told if event.step == "moved"] == [
        f"org/Tiny-Llama has moved on to {newest[:12]}; these files are of {began[:12]}, as card and record say"
    ]
    with pytest.raises(HubError, match=f"commit {began} of org/Tiny-Llama is gone"):
        publish(replace(wanted, model=f"org/Tiny-Llama@{began}"))
    latest, told = run(replace(wanted, require_latest=True))
    assert latest.release.newer == "" and not [event for event in told if event.step == "moved"]
    assert b"newest" not in latest.card["README.md"]


def test_a_release_may_go_into_a_pull_request_and_levels_may_leave_it(hub: loopback.Hub, request_: Request) -> None:
    wanted = replace(request_, model="org/Tiny-Llama", to="me/Tiny-Llama-GGUF", text=None, pull_request=True)
    first = publish(replace(wanted, levels=parse_levels("q8_0")))
    assert first.target == f"{hub.url}/me/Tiny-Llama-GGUF/discussions/1"
    publish(replace(wanted, levels=parse_levels("q4_0"), delete=parse_levels("q8_0")))
    check_whole(hub.files("me/Tiny-Llama-GGUF", "refs/pr/1"), {"Q4_0"}, {"old.txt"})
    assert hub.files("me/Tiny-Llama-GGUF") == {"old.txt": b"before"}
    assert [one["title"] for one in hub.repos["me/Tiny-Llama-GGUF"].requests] == ["Add GGUF levels of org/Tiny-Llama with hubq"]
    with pytest.raises(HubError, match="no-create-repo forbids"):
        publish(replace(wanted, to="org/fresh", pull_request=False, create=False))
    assert "org/fresh" not in hub.repos


def test_a_source_that_vanished_does_not_cost_the_work(hub: loopback.Hub, request_: Request) -> None:
    wanted = replace(request_, model="org/Tiny-Llama", to="me/Tiny-Llama-GGUF", text=None, levels=parse_levels("q8_0"))
    told = Told()

    def vanish(event: Event) -> None:
        told.append(event)
        hub.repos["org/Tiny-Llama"].private = hub.repos["org/Tiny-Llama"].disabled = event.step == "check"

    publish(wanted, vanish)
    assert "Tiny-Llama-Q8_0.gguf" in hub.files("me/Tiny-Llama-GGUF")
    assert next(event.label for event in told if event.step == "moved").startswith("it cannot be told whether")


def test_a_vision_tower_that_stays_behind_is_named(
    request_: Request, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(variants()["gemma-3 that sees"], tmp_path / "source" / "Tiny-Gemma")
    with Screen(quiet=False) as screen:
        result = publish(replace(request_, model=str(folder), levels=parse_levels("q8_0")), screen.tell)
    assert "not converted: vision_tower, multi_modal_projector" in capsys.readouterr().err
    assert (
        result.release.left_out
        == read_record(result.card["release.json"]).left_out
        == ("vision_tower", "multi_modal_projector")
    )
    assert b"Not converted: vision\\_tower, multi\\_modal\\_projector." in result.card["README.md"]


def test_code_in_a_repository_is_refused_before_weights_are_fetched(hub: loopback.Hub, request_: Request) -> None:
    files = hub.files("org/Tiny-Llama")
    config = json.loads(files["config.json"]) | {"auto_map": {"AutoModel": "evil.Model"}}
    config |= {"architectures": ["EvilForCausalLM"], "model_type": "evil"}
    hub.add("org/Evil", {**files, "config.json": json.dumps(config).encode()})
    with pytest.raises(Unsupported, match="does not convert EvilForCausalLM"):
        run(replace(request_, model="org/Evil"))
    assert not any("safetensors" in path for _, path in hub.requests)


# --- killed ---


@pytest.mark.thorough
def test_killed_while_building_it_finishes_later_with_the_same_bytes(smollm2: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "hubq", "publish", str(smollm2), "--levels", "q8_0,q4_k_m,bf16", "--no-eval"]
    command += ["--to", str(out), "--work-dir", str(tmp_path / "work"), "--json"]
    victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and victim.poll() is None:
        if any(path.stat().st_size > 40_000_000 for path in (tmp_path / "work").rglob("*.part/*-BF16.gguf")):
            break
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert list(out.iterdir()) == []
    unfinished = list((tmp_path / "work").rglob("*.gguf"))
    assert unfinished and all(path.parent.name.endswith(".part") for path in unfinished)
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    files = {entry["level"]: entry for entry in json.loads(again.stdout)["release"]["files"]}
    command[command.index("--work-dir") + 1] = str(tmp_path / "undisturbed")
    undisturbed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(undisturbed.stdout)["release"]["files"] == list(files.values())
    assert sha256(out / "SmolLM2-135M-Instruct-GGUF" / files["gguf:Q4_K_M"]["path"]) == files["gguf:Q4_K_M"]["sha256"]
    assert not list((tmp_path / "work").rglob("*.part"))


def _interruptible() -> None:
    """Undo what a shell does to processes in its background: they ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_interrupted_it_leaves_with_130_and_cleans_up(smollm2: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hubq", "publish", str(smollm2), "--levels", "all", "--no-eval"]
    command += ["--to", str(tmp_path), "--work-dir", str(tmp_path / "work")]
    victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=_interruptible)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and victim.poll() is None and not list((tmp_path / "work").rglob("*.part/*-BF16.gguf")):
        time.sleep(0.01)
    victim.send_signal(signal.SIGINT)
    _, told = victim.communicate(timeout=120)
    assert victim.returncode == 130
    assert "error: interrupted" in told and "hint: run the command again" in told and "Traceback" not in told
    assert list((tmp_path / "work").rglob("*.gguf")) == []
