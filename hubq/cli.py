"""The command line. Each command gathers what it was given and calls the module that does the work."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hubq import __version__, options
from hubq.errors import HubqError, Usage
from hubq.secrets import guarded

if TYPE_CHECKING:
    from hubq.nouns import Level
    from hubq.plan import Request
    from hubq.release import Result
    from hubq.sealed import Environment
    from hubq.steps import Step
    from hubq.store import Store

app = typer.Typer(
    name="hubq",
    help="Turn a model on the Hugging Face Hub into a release of measured, quantized variants.",
    epilog="Exit codes: 0 done, 1 the work failed, 2 wrong usage, 3 a file failed the checks, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"hubq {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Turn a model on the Hugging Face Hub into a release of measured, quantized variants."""


@app.command()
def publish(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A Hub id (org/model, or org/model@revision), a folder in Hub format, or a GGUF in F32, BF16 or F16; "
            "REPO:FILE names a GGUF of several. Or a folder with a hubq.toml, which says all that changes files and numbers."
        ),
    ],
    levels: options.Levels = None,
    to: options.To = None,
    hub: options.Hub = None,
    dataset: options.Dataset = options.WIKITEXT,
    split: options.Split = "test",
    text_field: options.TextField = "text",
    windows: options.Windows = None,
    precision: options.Precision = None,
    seed: options.Seed = 0,
    logits_budget: Annotated[
        str | None,
        typer.Option(help="How much to keep of what the reference computes: 2G of memory, or disk:20G.", show_default="2G"),
    ] = None,
    floor: options.Floor = True,
    within: options.Within = options.WITHIN,
    no_eval: options.NoEval = False,
    imatrix: options.Imatrix = "none",
    calibration: options.Calibration = f"{options.WIKITEXT}:train",
    calibration_windows: options.CalibrationWindows = "128",
    tensor_type: options.TensorType = None,
    tensor_type_file: options.TensorTypeFile = None,
    output_tensor_type: options.OutputTensorType = None,
    token_embedding_type: options.TokenEmbeddingType = None,
    pure: options.Pure = False,
    split_max_size: options.SplitMaxSize = None,
    target: options.Target = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Build, measure, push and delete one level after another, for small disks.")
    ] = False,
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", help="llama.cpp's source: its converter takes the architectures that hubq does not know."),
    ] = None,
    speed: options.Speed = True,
    exporter: options.Exporter = "auto",
    sign: Annotated[
        str | None,
        typer.Option(help="Sign the release: a private key (PEM, elliptic curve), or sigstore in a job with an identity."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is new.")] = False,
    pr: Annotated[bool, typer.Option("--pr", help="Push into a pull request, opened if hubq has none open there.")] = False,
    create_repo: Annotated[
        bool, typer.Option("--create-repo/--no-create-repo", help="Create the repository if there is none.")
    ] = True,
    delete: Annotated[str, typer.Option(help="Levels to take out of the release, their files included; see --yes.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    require_latest: Annotated[
        bool, typer.Option("--require-latest", help="Push nothing if the source moved on in the meantime.")
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(help="Let other processes do the steps: local, ray or ray://HOST:PORT, or jobs on Hugging Face."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="How many steps at a time, with --engine.")] = None,
    shared: options.Shared = None,
    image: Annotated[str | None, typer.Option(help="The container that jobs on Hugging Face run in; hubq is in it.")] = None,
    flavor: Annotated[str | None, typer.Option(help="The machine of each job, as cpu-upgrade; see `hf jobs hardware`.")] = None,
    timeout: Annotated[str | None, typer.Option(help="The longest that a job may take, as 30m or 2h.")] = None,
    confirm: Annotated[bool, typer.Option("--confirm", help="Start the jobs at the price that was shown.")] = False,
    summary: options.Summary = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and touch nothing.")] = False,
    work_dir: options.WorkDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Pull a model, build every level, measure them, write the card and push it all in one commit."""
    with _answering(as_json):
        from hubq import cards, init, manifest, ui
        from hubq.plan import plan
        from hubq.release import publish as run

        place = manifest.find(model)
        if place:
            _refuse_contents(ctx, place)
            cards.check_record(place.parent)
            wanted = manifest.resolved(manifest.read(place), place.parent)
        else:
            wanted = init.from_options(ctx.params)
            wanted = init.pinned(wanted, hub) if engine else wanted  # for all that do its steps
        budget = _budget(logits_budget)
        if llama_cpp and not llama_cpp.is_dir():
            raise Usage(f"--llama-cpp {llama_cpp}: there is no such folder", "name a folder with llama.cpp's source")
        requests = manifest.requests(
            wanted,
            _store(work_dir),
            to,
            hub=hub,
            stream=stream,
            private=private,
            llama_cpp=llama_cpp,
            sign=sign,
            pull_request=pr,
            create=create_repo,
            require_latest=require_latest,
            logits=budget[0],
            logits_on_disk=budget[1],
        )
        leaving = _leaving(delete, [level for request in requests for level in request.levels])
        requests = [
            replace(request, delete=tuple(level for level in leaving if level.format == request.levels[0].format))
            for request in requests
        ]
        if dry_run:
            ui.show_plans([plan(request) for request in requests], as_json)
            return
        if leaving:
            _confirm(leaving, yes)
        known: list[Any] = []  # what the reference says is the same for all formats
        with ui.Screen(quiet) as screen:
            if engine:
                from hubq.engines import Work, carry

                settings = {"store": shared, "image": image, "flavor": flavor, "timeout": timeout, "confirm": confirm}
                carry(Work(engine, wanted, requests, jobs, settings), screen.tell)
            results = [run(request, screen.tell, known) for request in requests]
        _report(results, place, requests, summary, as_json)


def _refuse_contents(ctx: typer.Context, place: Path) -> None:
    """Raises Usage for options that say what the manifest says."""
    contents = inspect.signature(init).parameters.keys() - {"model", "to", "hub", "as_json"}
    given = [name for name in ctx.params if name in contents and str(ctx.get_parameter_source(name)).endswith("COMMANDLINE")]
    if given:
        raise Usage(
            f"--{given[0].replace('_', '-')}: {place} says what is published", f"change it in {place}, or name the model"
        )


def _store(work_dir: Path | None) -> Store:
    from hubq.store import Store, default_root

    return Store(work_dir or default_root())


def _report(results: list[Result], place: Path | None, requests: list[Request], summary: Path | None, as_json: bool) -> None:
    """Show what was published, and keep it beside its manifest if there is one."""
    from hubq import cards, ui

    if place:
        cards.keep(place.parent, [result.release for result in results], requests[0].levels[0].format)
    if summary:
        with open(summary, "a", encoding="utf-8") as file:
            file.write(ui.summary(results))
    ui.show_results(results, as_json)


@app.command()
def init(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A model, as for `hubq publish`.")],
    levels: options.Levels = "q8_0,q6_k,q5_k_m,q4_k_m",
    to: options.To = None,
    hub: options.Hub = None,
    dataset: options.Dataset = options.WIKITEXT,
    split: options.Split = "test",
    text_field: options.TextField = "text",
    windows: options.Windows = None,
    precision: options.Precision = None,
    seed: options.Seed = 0,
    floor: options.Floor = True,
    within: options.Within = options.WITHIN,
    no_eval: options.NoEval = False,
    imatrix: options.Imatrix = "none",
    calibration: options.Calibration = f"{options.WIKITEXT}:train",
    calibration_windows: options.CalibrationWindows = "128",
    tensor_type: options.TensorType = None,
    tensor_type_file: options.TensorTypeFile = None,
    output_tensor_type: options.OutputTensorType = None,
    token_embedding_type: options.TokenEmbeddingType = None,
    pure: options.Pure = False,
    split_max_size: options.SplitMaxSize = None,
    target: options.Target = None,
    speed: options.Speed = True,
    exporter: options.Exporter = "auto",
    cards: options.Cards = Path("cards"),
    force: Annotated[bool, typer.Option("--force", help="Write over a manifest that is there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write a manifest: what is published of a model, and where to, with everything pinned to commits."""
    with _answering(as_json):
        from hubq.init import from_options, pinned, targeted, write
        from hubq.ui_show import show_manifest

        show_manifest(write(targeted(pinned(from_options(ctx.params), hub), to), cards, force), as_json)


@app.command()
def plan(
    card: options.Card,
    github: Annotated[
        bool, typer.Option("--github", help="Print the outputs of a step in GitHub Actions: a matrix of jobs.")
    ] = False,
    to: options.To = None,
    hub: options.Hub = None,
    work_dir: options.WorkDir = None,
    as_json: options.Json = False,
) -> None:
    """Show the steps of a release, with keys, sizes and needs, for anything that runs processes; touches nothing."""
    with _answering(as_json):
        from hubq.engines.github import outputs
        from hubq.steps import planned_steps
        from hubq.ui_show import show_steps

        place, requests = _requests(card, to, hub, work_dir)
        found = [planned_steps(request) for request in requests]
        if github:
            print("\n".join(f"{name}={value}" for name, value in outputs(place.parent.name, requests, found).items()))
        else:
            show_steps(found, as_json)


@app.command("run-step")
def run_step(
    card: options.Card,
    keys: Annotated[list[str], typer.Argument(help="The keys of the steps, as `hubq plan` prints them.")],
    to: options.To = None,
    hub: options.Hub = None,
    shared: options.Shared = None,
    sign: Annotated[str | None, typer.Option(help="Sign the release; see `hubq publish`.")] = None,
    pr: Annotated[bool, typer.Option("--pr", help="Push into a pull request.")] = False,
    summary: options.Summary = None,
    work_dir: options.WorkDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Do steps of a release, each once and for all: what the store holds is not done again. What one needs has to be there."""
    with _answering(as_json):
        from hubq import cards, ui
        from hubq.shared import at, run_shared
        from hubq.ui_show import show_done

        common = at(shared, _store(work_dir).root) if shared else None
        if common and not card.exists():
            card = common.fetch_manifest(card.as_posix())
        place, requests = _requests(card, to, hub, work_dir, sign=sign, pull_request=pr)
        cards.check_record(place.parent)
        done: dict[str, Step] = {}
        results: list[Result] = []
        with ui.Screen(quiet) as screen:
            for request in requests:
                found, made = run_shared(request, set(keys), screen.tell, common)
                done |= found
                results += made.values()
        if unknown := [key for key in keys if key not in done]:
            raise Usage(
                f"{place} has no step {unknown[0]}",
                f"see `hubq plan {card}`: keys change with the manifest, the text and the versions of hubq and its packages",
            )
        if results:
            _report(results, place, requests, summary, as_json)
        else:
            show_done(list(done.values()), as_json)


def _requests(card: Path, to: str | None, hub: Path | None, work_dir: Path | None, **run: Any) -> tuple[Path, list[Request]]:
    """The manifest that a card's folder holds, and what it asks for."""
    from hubq import manifest

    if (place := manifest.find(card)) is None:
        raise Usage(f"{card} holds no {manifest.NAME}", "write one with `hubq init MODEL --levels LEVELS`")
    wanted = manifest.resolved(manifest.read(place), place.parent)
    return place, manifest.requests(wanted, _store(work_dir), to, hub=hub, **run)


@app.command()
def status(
    folder: options.Cards = Path("cards"),
    hub: options.Hub = None,
    as_json: options.Json = False,
) -> None:
    """Compare manifests, their records and what is published: has a source moved, is a level missing, is a card stale?"""
    with _answering(as_json):
        from hubq.status import status as look
        from hubq.ui_show import show_status

        show_status(look(folder, hub), as_json)


def _leaving(delete: str, chosen: Sequence[Level]) -> tuple[Level, ...]:
    """The levels to delete, which are of the formats that are published, and none of those themselves."""
    from hubq.formats import parse_levels

    found = parse_levels(delete, matrix=True) if delete else ()
    if both := [level.name for level in found if level in chosen]:
        raise Usage(f"{' and '.join(both)} cannot be published and deleted at once", "leave them out of --levels or --delete")
    if other := [level.id for level in found if level.format not in {level.format for level in chosen}]:
        raise Usage(
            f"--delete {' and '.join(other)}: no level of that format is published", "name one that stays with --levels"
        )
    return found


def _confirm(leaving: Sequence[Level], yes: bool) -> None:
    """Asks on a terminal; elsewhere nobody could answer."""
    names = ", ".join(level.name for level in leaving)
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Usage(f"--delete {names}: nobody is there to confirm it", "add --yes")
    if not typer.confirm(f"Delete the files of {names} from the release?", err=True):
        raise HubqError("nothing was deleted and nothing published", "leave --delete out")


def _budget(text: str | None) -> tuple[int | None, bool]:
    """(bytes, whether they are of the disk) of --logits-budget."""
    from hubq.formats.gguf.split import parse_size

    if text is None:
        return None, False
    kind, _, size = text.rpartition(":")
    if kind not in ("", "disk", "memory"):
        raise Usage(f"--logits-budget {text}: neither of memory nor of disk", "write 4G, or disk:20G")
    return parse_size(size, "--logits-budget"), kind == "disk"


@app.command()
def levels(as_json: options.Json = False) -> None:
    """List the levels by precision, best first."""
    with _answering(as_json):
        from hubq.formats import levels
        from hubq.ui_show import show_levels

        show_levels(levels().values(), as_json)


@app.command()
def families(as_json: options.Json = False) -> None:
    """List the families of models that hubq converts to GGUF, with their classes in transformers."""
    with _answering(as_json):
        from hubq.formats.gguf.arch import families
        from hubq.ui_show import show_families

        show_families(families(), as_json)


@app.command()
def show(
    files: Annotated[list[Path], typer.Argument(help="GGUF files, or folders that hold some; of a split model any part.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor of the file, too.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show what GGUF files hold: level, size, storage types, metadata. Several files get a line each."""
    with _answering(as_json):
        from hubq.formats.gguf.facts import facts, models
        from hubq.formats.gguf.read import read_set
        from hubq.ui_show import show_models

        found = models(files)
        if tensors and not as_json and len(found) > 1:
            raise Usage(f"--tensors is for one model, and these are {len(found)}", "name one file, or use --json")
        show_models([facts(read_set(path)) for path in found], tensors, as_json)


@app.command()
def perplexity(
    file: Annotated[Path, typer.Argument(help="A GGUF file; of a split model the first part.")],
    text: Annotated[Path, typer.Option(help="The text to score, a file.")],
    base: Annotated[Path | None, typer.Option(help="A GGUF to measure the divergence from: the unquantized model.")] = None,
    ctx_size: Annotated[int, typer.Option("--ctx-size", "-c", min=16, help="Tokens of a chunk.")] = 512,
    chunks: Annotated[int | None, typer.Option(min=1, help="Score the first chunks only.", show_default="all")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Tokens that llama.cpp gets at once.")] = 2048,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Compute what llama-perplexity prints of a GGUF, digit by digit: PPL, and with --base the numbers of --kl-divergence."""
    with _answering(as_json):
        from hubq import ui
        from hubq.perplexity import perplexity as score
        from hubq.ui_show import show_perplexity

        with ui.Screen(quiet) as screen:
            result = score(file, text, base, ctx_size, chunks, batch_size, screen.scored)
        show_perplexity(result, as_json)


@app.command()
def audit(
    repo: Annotated[str, typer.Argument(help="A repository of GGUF files: a Hub id with an optional @revision, or a folder.")],
    hub: Annotated[Path | None, typer.Option(help="A folder to look for ids in, instead of the Hub.")] = None,
    as_json: options.Json = False,
) -> None:
    """Look over a published repository: names, templates, tokenizers, leaks. Reads headers only; exit code 3 for errors."""
    with _answering(as_json):
        from hubq.formats.gguf.audit import audit as look
        from hubq.hub import connect
        from hubq.plan import locate
        from hubq.ui_show import show_audit

        found, name, revision, _ = locate(repo, None if Path(repo).is_dir() else hub)
        report = look(found, name, revision, connect(hub) if hub else found)
        show_audit(report, as_json)
        if any(finding.severity == "error" for finding in report.findings):
            raise typer.Exit(3)


@app.command()
def verify(
    repo: Annotated[str, typer.Argument(help="What hubq published: a Hub id with an optional @revision, or a folder.")],
    remote: Annotated[
        bool, typer.Option("--remote", help="Compare the hashes that the Hub lists, and download no file.")
    ] = False,
    rebuild: Annotated[
        str | None, typer.Option(help="Build these levels again from the pinned source and compare their bytes; or all.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure what is built again, too, and compare the numbers.")
    ] = False,
    public_key: Annotated[Path | None, typer.Option(help="Check the signature by this public key (PEM).")] = None,
    identity: Annotated[str | None, typer.Option(help="Check that this identity signed it, keyless.")] = None,
    issuer: Annotated[str | None, typer.Option(help="Who knows the identity.")] = None,
    source: Annotated[str | None, typer.Option(help="Where the source is, if it was a folder or a file.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Where the text is that was measured on, if it was a file.")] = None,
    hub: Annotated[Path | None, typer.Option(help="A folder to look for ids in, instead of the Hub.")] = None,
    llama_cpp: Annotated[Path | None, typer.Option("--llama-cpp", help="llama.cpp's source, as for publish.")] = None,
    work_dir: Annotated[Path | None, typer.Option(help="Where work is kept that is done again (default: nowhere).")] = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Check that a release holds what it says: hashes, record and card; bytes and numbers on request. Exit code 3 if not."""
    with _answering(as_json):
        from hubq import ui
        from hubq.hub import connect
        from hubq.plan import locate
        from hubq.sign import Signer
        from hubq.ui_show import show_verified
        from hubq.verify import Again
        from hubq.verify import verify as check

        if measure and not rebuild:
            raise Usage("--measure needs to know the levels", "name them: --rebuild LEVELS")
        found, name, revision, _ = locate(repo, None if Path(repo).is_dir() else hub)
        signer = Signer(public_key, identity, issuer) if public_key or identity or issuer else None
        again = Again(tuple(rebuild.split(",")), measure, hub, source, dataset, work_dir, llama_cpp) if rebuild else None
        with ui.Screen(quiet) as screen:
            report = check(found, name, revision, remote, again, screen.moved, signer, connect(hub) if hub else found)
        show_verified(report, as_json)
        if report.failed:
            raise typer.Exit(3)


@app.command()
def pick(
    repo: Annotated[str, typer.Argument(help="What hubq published: a Hub id with an optional @revision, or a folder.")],
    ram: Annotated[str, typer.Option(help="The memory to fit into, as 500M or 8G, in decimal units.")],
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of context.", show_default="4096, or the model's if that is less")
    ] = None,
    hub: Annotated[Path | None, typer.Option(help="A folder to look for ids in, instead of the Hub.")] = None,
    as_json: options.Json = False,
) -> None:
    """Say which file of a release to take: the one that loses least of those that fit. Exit code 1 if none fits."""
    with _answering(as_json):
        from hubq.formats.gguf.split import parse_size
        from hubq.pick import pick as choose
        from hubq.pick import published
        from hubq.plan import locate
        from hubq.ui_show import show_choice

        limit = parse_size(ram, "--ram")
        found, name, revision, _ = locate(repo, None if Path(repo).is_dir() else hub)
        show_choice(choose(published(found, name, revision), limit, context), as_json)


store = typer.Typer(help="The work store: what earlier runs finished.", no_args_is_help=True)
app.add_typer(store, name="store")


@store.command("list")
def store_list(work_dir: options.WorkDir = None, as_json: options.Json = False) -> None:
    """List what is kept, with sizes."""
    with _answering(as_json):
        from hubq.store import Store, default_root
        from hubq.ui_show import show_store

        opened = Store(work_dir or default_root())
        show_store(opened.root, opened.entries(), as_json)


@store.command("verify")
def store_verify(work_dir: options.WorkDir = None, as_json: options.Json = False) -> None:
    """Read every finished file and compare its SHA-256; exit code 3 where one is damaged. Nothing is deleted."""
    with _answering(as_json):
        from hubq.store import Store, default_root
        from hubq.ui_show import show_store

        opened = Store(work_dir or default_root())
        damaged = opened.damaged()
        show_store(opened.root, damaged, as_json, "damaged")
        if damaged:
            raise typer.Exit(3)


@store.command("prune")
def store_prune(
    days: Annotated[int | None, typer.Option(min=0, help="Delete what was finished so many days ago, too.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete all that is kept.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and delete nothing.")] = False,
    work_dir: options.WorkDir = None,
    as_json: options.Json = False,
) -> None:
    """Delete what killed runs left behind and what is damaged; with --days or --all more. It can all be made again."""
    with _answering(as_json):
        import time

        from hubq.store import Store, default_root
        from hubq.ui_show import show_store

        opened = Store(work_dir or default_root())
        with opened.locked():
            damaged = {entry.path for entry in opened.damaged()}
            old = time.time() - 86400 * days if days is not None else 0.0
            gone = [e for e in opened.entries() if everything or e.unfinished or e.path in damaged or e.made < old]
            for entry in gone if not dry_run else []:
                opened.remove(entry)
        show_store(opened.root, gone, as_json, "would be deleted" if dry_run else "deleted")


cards = typer.Typer(help="A folder of cards: check them, and browse them as a site.", no_args_is_help=True)
app.add_typer(cards, name="cards")


@cards.command("build")
def cards_build(
    folder: options.Cards = Path("cards"),
    out: Annotated[Path, typer.Option(help="Where to: a new folder, or one that holds an older site.")] = Path("site"),
    as_json: options.Json = False,
) -> None:
    """Make a static site of them: a table of all files, a page per model, and cards.json with the same data."""
    with _answering(as_json):
        from hubq.site import build
        from hubq.ui_show import show_site

        show_site(out, build(folder, out), as_json)


@cards.command("serve")
def cards_serve(
    folder: options.Cards = Path("cards"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any that is free.")] = 8000,
    as_json: options.Json = False,
) -> None:
    """Show the site on this machine alone, until Ctrl-C, which ends it with exit code 0."""
    with _answering(as_json):
        from hubq.site import serving
        from hubq.ui_show import show_address

        with serving(folder, port) as server, suppress(KeyboardInterrupt):
            show_address(server.server_port, as_json)
            server.serve_forever()


@cards.command("check")
def cards_check(folder: options.Cards = Path("cards"), as_json: options.Json = False) -> None:
    """Check that every README.md and plot follows from its release.json; exit code 3 where one does not."""
    with _answering(as_json):
        from hubq.cards import check, read_cards
        from hubq.ui_show import show_followed

        found = [fact for known in read_cards(folder) for fact in check(folder / known.folder, known)]
        show_followed(folder, found, as_json)
        if any(fact.state != "current" for fact in found):
            raise typer.Exit(3)


@app.command()
def card(
    path: Annotated[Path, typer.Argument(help="A folder that holds a release.json, or that file.")],
    as_json: options.Json = False,
) -> None:
    """Write README.md and plots again from a release.json; only what changed."""
    with _answering(as_json):
        from hubq.cards import read_release, render
        from hubq.ui_show import show_rendered

        folder = path if path.is_dir() else path.parent
        show_rendered(folder, render(folder, read_release(path)), as_json)


env = typer.Typer(help="The private environments that ONNX files are exported in.", no_args_is_help=True)
app.add_typer(env, name="env")

Name = Annotated[str, typer.Argument(help="The exporter whose environment it is: optimum or mobius.")]


@env.command("create")
def env_create(name: Name = "optimum", quiet: options.Quiet = False, as_json: options.Json = False) -> None:
    """Make one now, or make it anew where it is broken; publishing does so by itself when it is needed."""
    with _answering(as_json):
        from hubq import sealed, ui

        environment = _environment(name)
        with ui.Screen(quiet) as screen:
            sealed.ensure(environment, screen.say)
        ui.show_environments([(environment, sealed.state(environment))], as_json)


@env.command("show")
def env_show(as_json: options.Json = False) -> None:
    """Say which are there, and where."""
    with _answering(as_json):
        from hubq import sealed, ui
        from hubq.formats.onnx.exporters import EXPORTERS

        found = [exporter.environment for exporter in EXPORTERS.values()]
        ui.show_environments([(environment, sealed.state(environment)) for environment in found], as_json)


@env.command("remove")
def env_remove(name: Name = "optimum", as_json: options.Json = False) -> None:
    """Delete one; the next export that needs it makes it again."""
    with _answering(as_json):
        from hubq import sealed, ui

        environment = _environment(name)
        sealed.remove(environment)
        ui.show_environments([(environment, sealed.state(environment))], as_json)


def _environment(name: str) -> Environment:
    from hubq.formats.onnx.exporters import EXPORTERS

    if name not in EXPORTERS:
        raise Usage(f"there is no environment {name!r}", f"choose one of: {', '.join(EXPORTERS)}")
    return EXPORTERS[name].environment


@app.command()
def doctor(
    ci: Annotated[
        bool, typer.Option("--ci", help="Say what to set on the Hub, so that GitHub Actions may publish there.")
    ] = False,
    folder: options.Cards = Path("cards"),
    as_json: options.Json = False,
) -> None:
    """Say what is installed and what it unlocks."""
    with _answering(as_json):
        from hubq import ui, ui_show
        from hubq.ci import publishers
        from hubq.doctor import checks

        if ci:
            ui_show.show_publishers(publishers(folder), as_json)
        else:
            ui.show_checks(checks(), as_json)


@app.command("init-ci")
def init_ci(
    folder: Annotated[Path, typer.Argument(help="The repository.")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Write over files that were changed.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write workflows for GitHub Actions into a repository: releases, and a look at base models every night."""
    with _answering(as_json):
        from hubq.ci import write
        from hubq.ui_show import show_workflows

        show_workflows(folder, write(folder, force), as_json)


@contextmanager
def _answering(as_json: bool) -> Iterator[None]:
    """Turns what goes wrong into a sentence and an exit code. HUBQ_DEBUG=1 lets tracebacks through."""
    from hubq import ui

    try:
        yield
    except HubqError as error:
        _fail(error, as_json)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _fail(
            HubqError(f"{error.strerror or error}{where}", "free some space or fix the permission, then run the command again"),
            as_json,
        )
    except KeyboardInterrupt:
        ui.show_error(HubqError("interrupted", "run the command again: what is finished is kept"), as_json)
        raise typer.Exit(130) from None


def _fail(error: HubqError, as_json: bool) -> NoReturn:
    from hubq import ui

    if os.environ.get("HUBQ_DEBUG"):
        raise error
    ui.show_error(error, as_json)
    raise typer.Exit(error.exit_code) from None


def _terminate(*_: object) -> NoReturn:
    sys.exit(143)


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _terminate)
    guarded(app)
