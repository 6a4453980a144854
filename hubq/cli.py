"""The command line. Each command gathers what it was given and calls the module that does the work."""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hubq import __version__
from hubq.errors import HubqError, Usage
from hubq.secrets import guarded

if TYPE_CHECKING:
    from hubq.formats.gguf.recipe import Custom
    from hubq.nouns import Level
    from hubq.plan import Request
    from hubq.sealed import Environment
    from hubq.text import TextSpec

app = typer.Typer(
    name="hubq",
    help="Turn a model on the Hugging Face Hub into a release of measured, quantized variants.",
    epilog="Exit codes: 0 done, 1 the work failed, 2 wrong usage, 3 a file failed the checks, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

WITHIN = "2%"
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


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
    model: Annotated[
        str,
        typer.Argument(
            help="A Hub id (org/model, or org/model@revision), a folder in Hub format, or a GGUF in F32, BF16 or F16; "
            "REPO:FILE names a GGUF of several."
        ),
    ],
    levels: Annotated[str, typer.Option(help="Levels, separated by commas, or all; see `hubq levels`.")],
    to: Annotated[str | None, typer.Option(help="Where to: owner/name on the Hub, or a folder that acts as a hub.")] = None,
    hub: Annotated[Path | None, typer.Option(help="A folder to take the model from by its id, instead of the Hub.")] = None,
    dataset: Annotated[
        str, typer.Option(help="Text to measure on: a Hub id (ID or ID:config) or a .txt, .jsonl or .parquet file.")
    ] = "Salesforce/wikitext:wikitext-2-raw-v1",
    split: Annotated[str, typer.Option(help="The split of the dataset.")] = "test",
    text_field: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    windows: Annotated[
        str | None,
        typer.Option(
            help="How many windows of 512 tokens to score, or texts for models that embed or classify them; or all.",
            show_default="32, or 256 texts",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Stop as soon as each file's PPL ratio is known to so much, as 0.5% (95 %); --windows is the most."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the windows or texts.")] = 0,
    logits_budget: Annotated[
        str | None,
        typer.Option(help="How much to keep of what the reference computes: 2G of memory, or disk:20G.", show_default="2G"),
    ] = None,
    floor: Annotated[
        bool, typer.Option("--floor/--no-floor", help="Measure the source in 16 bits, too: what is less is noise.")
    ] = True,
    within: Annotated[
        str, typer.Option(help="Recommend the smallest file of which it is shown that it loses no more, of the PPL ratio.")
    ] = WITHIN,
    no_eval: Annotated[bool, typer.Option("--no-eval", help="Publish without measuring.")] = False,
    imatrix: Annotated[
        str, typer.Option(help="Importance matrix: none, a file (GGUF or .dat), or auto to compute one from --calibration.")
    ] = "none",
    calibration: Annotated[
        str, typer.Option(help="Text for --imatrix auto: ID:config:split on the Hub, or a .txt, .jsonl or .parquet file.")
    ] = "Salesforce/wikitext:wikitext-2-raw-v1:train",
    calibration_windows: Annotated[str, typer.Option(help="How many windows of 512 tokens of it to use, or all.")] = "128",
    tensor_type: Annotated[
        list[str] | None, typer.Option(help="REGEX=TYPE: store the tensors whose names match so; may be repeated.")
    ] = None,
    tensor_type_file: Annotated[Path | None, typer.Option(help="A file of REGEX=TYPE, as llama-quantize takes it.")] = None,
    output_tensor_type: Annotated[str | None, typer.Option(help="Storage type of the output matrix.")] = None,
    token_embedding_type: Annotated[str | None, typer.Option(help="Storage type of the token embeddings.")] = None,
    pure: Annotated[bool, typer.Option("--pure", help="Store all matrices in the level's base type.")] = False,
    split_max_size: Annotated[
        str | None, typer.Option(help="Most bytes of one file, as 300M or 2G; larger ones are split.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Hardware that ONNX levels are for: cpu, arm64, avx2, avx512, avx512_vnni, cuda, webgpu.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Build, measure, push and delete one level after another, for small disks.")
    ] = False,
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", help="llama.cpp's source: its converter takes the architectures that hubq does not know."),
    ] = None,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Measure how fast the files run on this machine.")] = True,
    exporter: Annotated[
        str,
        typer.Option(help="What turns the model into ONNX graphs: optimum, mobius, or auto: optimum where it knows the kind."),
    ] = "auto",
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and touch nothing.")] = False,
    work_dir: Annotated[Path | None, typer.Option(help="Where finished work is kept (HUBQ_HOME).")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Pull a model, build every level, measure them, write the card and push it all in one commit."""
    with _answering(as_json):
        from hubq import ui
        from hubq.formats import parse_levels
        from hubq.plan import Request, is_repository, plan
        from hubq.release import publish as run
        from hubq.store import Store, default_root

        weigh = _imatrix(imatrix, calibration, text_field, calibration_windows, seed)
        chosen = parse_levels(levels, matrix=weigh is not None)
        text = None if no_eval else _text(dataset, split, text_field, windows, seed)
        if precision and text:
            text = replace(text, precision=_share("--precision", precision), windows=text.windows if windows else None)
        budget = _budget(logits_budget)
        custom, split_size = _custom(
            tensor_type, tensor_type_file, output_tensor_type, token_embedding_type, pure, split_max_size
        )
        request = Request(
            model=model,
            levels=chosen,
            store=Store(work_dir or default_root()),
            to=to,
            hub=hub,
            text=text,
            imatrix=weigh,
            custom=custom,
            split=split_size,
            stream=stream,
            private=private,
            command=_command(dataset, split, text_field, windows, seed, no_eval, precision, within),
            options=_options(custom, split_max_size),
            imatrix_options=_imatrix_options(imatrix, calibration, text_field, calibration_windows, seed),
            llama_cpp=llama_cpp,
            speed=speed,
            sign=sign,
            exporter=exporter,
            pull_request=pr,
            create=create_repo,
            require_latest=require_latest,
            floor=floor,
            logits=budget[0],
            logits_on_disk=budget[1],
            within=_share("--within", within),
        )
        leaving = _leaving(delete, chosen)
        if llama_cpp and not llama_cpp.is_dir():
            raise Usage(f"--llama-cpp {llama_cpp}: there is no such folder", "name a folder with llama.cpp's source")
        if target and not any(level.format == "onnx" for level in chosen):
            raise Usage(f"--target {target}: GGUF files are the same for all hardware", "leave it out, or add an ONNX level")
        requests = [
            replace(
                _of_format(request, name, tuple(group), target),
                delete=tuple(level for level in leaving if level.format == name),
            )
            for name, group in groupby(chosen, lambda level: level.format)
        ]
        if to and len(requests) > 1 and is_repository(to):
            raise Usage(f"--to {to}: one repository, for levels of two formats", "name a folder, or leave --to out")
        if dry_run:
            ui.show_plans([plan(request) for request in requests], as_json)
            return
        if leaving:
            _confirm(leaving, yes)
        known: list[Any] = []  # what the reference says is the same for all formats
        with ui.Screen(quiet) as screen:
            results = [run(request, screen.tell, known) for request in requests]
        ui.show_results(results, as_json)


def _of_format(request: Request, name: str, levels: tuple[Level, ...], target: str | None) -> Request:
    """The request for the levels of one format; hardware matters to ONNX files alone."""
    if name != "onnx" or target is None:
        return replace(request, levels=levels)
    options = f"{request.options} {shlex.join(['--target', target])}".strip()
    return replace(request, levels=levels, target=target, options=options)


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


def _text(dataset: str, split: str, field: str, windows: str | None, seed: int, option: str = "--windows") -> TextSpec:
    from hubq.text import TextSpec

    if windows not in (None, "all") and not (windows.isdecimal() and int(windows) >= 2):
        raise Usage(f"{option} {windows}: not a number of at least 2, nor all", "32 are plenty for a first look")
    name, config = (dataset, None) if Path(dataset).exists() else (dataset.partition(":")[0], dataset.partition(":")[2] or None)
    spec = TextSpec(name, config, split, field, seed=seed)
    count = None if windows == "all" else int(windows or 0)
    return spec if windows is None else replace(spec, windows=count, texts=count)


def _share(option: str, text: str) -> float:
    """A share that is given in percent, as 0.5%."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / 100 if text.strip().endswith("%") else math.nan
    except ValueError:
        share = math.nan
    if not 1e-5 <= share <= 1:
        raise Usage(f"{option} {text}: not a share in percent from 0.001% to 100%", f"write it as {option} 0.5%")
    return share


def _budget(text: str | None) -> tuple[int | None, bool]:
    """(bytes, whether they are of the disk) of --logits-budget."""
    from hubq.formats.gguf.split import parse_size

    if text is None:
        return None, False
    kind, _, size = text.rpartition(":")
    if kind not in ("", "disk", "memory"):
        raise Usage(f"--logits-budget {text}: neither of memory nor of disk", "write 4G, or disk:20G")
    return parse_size(size, "--logits-budget"), kind == "disk"


def _imatrix(imatrix: str, calibration: str, field: str, windows: str, seed: int) -> Path | TextSpec | None:
    if imatrix == "none":
        return None
    if imatrix != "auto":
        if not Path(imatrix).is_file():
            raise Usage(f"--imatrix {imatrix}: there is no such file", "give a file, auto or none")
        return Path(imatrix)
    dataset, _, split = (calibration, "", "") if Path(calibration).exists() else calibration.rpartition(":")
    return _text(dataset or calibration, split or "train", field, windows, seed, "--calibration-windows")


def _custom(
    tensor_types: list[str] | None, file: Path | None, output: str | None, embedding: str | None, pure: bool, split: str | None
) -> tuple[Custom | None, int | None]:
    """The recipe that the options change, if they do, and the most bytes of a file."""
    from hubq.formats.gguf.recipe import Custom, parse_tensor_type, parse_type, read_tensor_types
    from hubq.formats.gguf.split import parse_size

    chosen = Custom(
        (*map(parse_tensor_type, tensor_types or ()), *(read_tensor_types(file) if file else ())),
        parse_type(output) if output else None,
        parse_type(embedding) if embedding else None,
        pure,
    )
    return (None if chosen == Custom() else chosen), (parse_size(split) if split else None)


def _options(custom: Custom | None, split: str | None) -> str:
    """How the command line says what shapes files besides levels and importance matrix; a file's recipe is written out."""
    words = [] if split is None else ["--split-max-size", split]
    if custom:
        for pattern, kind in custom.tensor_types:
            words += ["--tensor-type", f"{pattern}={kind}"]
        words += ["--output-tensor-type", custom.output] if custom.output else []
        words += ["--token-embedding-type", custom.embedding] if custom.embedding else []
        words += ["--pure"] if custom.pure else []
    return shlex.join(words)


def _imatrix_options(imatrix: str, calibration: str, field: str, windows: str, seed: int) -> str:
    """How the command line says which importance matrix; local files go by their names."""
    if imatrix == "none":
        return ""
    if imatrix != "auto":
        return shlex.join(["--imatrix", Path(imatrix).name])
    text = Path(calibration).name if Path(calibration).exists() else calibration
    return shlex.join(["--imatrix", "auto", "--calibration", text, "--calibration-windows", windows])


def _command(
    dataset: str, split: str, field: str, windows: str | None, seed: int, no_eval: bool, precision: str | None, within: str
) -> str:
    """The command that makes the release again; {model} stands for the pinned source, {build} for levels and their options,
    {windows} for the number of windows or texts where none is given.

    A local text goes by its name.
    """
    words = ["--dataset", Path(dataset).name] if Path(dataset).exists() else ["--dataset", dataset, "--split", split]
    words += ["--text-field", field]
    words += ["--precision", precision] if precision else []
    words += ["--within", within] if within != WITHIN else []
    scored = f"{shlex.join(words)} --windows {windows or '{windows}'} --seed {seed}"
    return f"hubq publish {{model}} {{build}} {'--no-eval' if no_eval else scored}"


@app.command()
def levels(as_json: Json = False) -> None:
    """List the levels by precision, best first."""
    with _answering(as_json):
        from hubq.formats import levels
        from hubq.ui_show import show_levels

        show_levels(levels().values(), as_json)


@app.command()
def families(as_json: Json = False) -> None:
    """List the families of models that hubq converts to GGUF, with their classes in transformers."""
    with _answering(as_json):
        from hubq.formats.gguf.arch import families
        from hubq.ui_show import show_families

        show_families(families(), as_json)


@app.command()
def show(
    files: Annotated[list[Path], typer.Argument(help="GGUF files, or folders that hold some; of a split model any part.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor of the file, too.")] = False,
    as_json: Json = False,
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
    quiet: Quiet = False,
    as_json: Json = False,
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
    as_json: Json = False,
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
    quiet: Quiet = False,
    as_json: Json = False,
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
    as_json: Json = False,
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
WorkDir = Annotated[Path | None, typer.Option("--work-dir", help="Where finished work is kept (HUBQ_HOME).")]


@store.command("list")
def store_list(work_dir: WorkDir = None, as_json: Json = False) -> None:
    """List what is kept, with sizes."""
    with _answering(as_json):
        from hubq.store import Store, default_root
        from hubq.ui_show import show_store

        opened = Store(work_dir or default_root())
        show_store(opened.root, opened.entries(), as_json)


@store.command("verify")
def store_verify(work_dir: WorkDir = None, as_json: Json = False) -> None:
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
    work_dir: WorkDir = None,
    as_json: Json = False,
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
Cards = Annotated[Path, typer.Option("--cards", help="The folder of cards, one folder with a release.json per model.")]


@cards.command("build")
def cards_build(
    folder: Cards = Path("cards"),
    out: Annotated[Path, typer.Option(help="Where to: a new folder, or one that holds an older site.")] = Path("site"),
    as_json: Json = False,
) -> None:
    """Make a static site of them: a table of all files, a page per model, and cards.json with the same data."""
    with _answering(as_json):
        from hubq.site import build
        from hubq.ui_show import show_site

        show_site(out, build(folder, out), as_json)


@cards.command("serve")
def cards_serve(
    folder: Cards = Path("cards"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any that is free.")] = 8000,
    as_json: Json = False,
) -> None:
    """Show the site on this machine alone, until Ctrl-C, which ends it with exit code 0."""
    with _answering(as_json):
        from hubq.site import serving
        from hubq.ui_show import show_address

        with serving(folder, port) as server, suppress(KeyboardInterrupt):
            show_address(server.server_port, as_json)
            server.serve_forever()


@cards.command("check")
def cards_check(folder: Cards = Path("cards"), as_json: Json = False) -> None:
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
    as_json: Json = False,
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
def env_create(name: Name = "optimum", quiet: Quiet = False, as_json: Json = False) -> None:
    """Make one now, or make it anew where it is broken; publishing does so by itself when it is needed."""
    with _answering(as_json):
        from hubq import sealed, ui

        environment = _environment(name)
        with ui.Screen(quiet) as screen:
            sealed.ensure(environment, screen.say)
        ui.show_environments([(environment, sealed.state(environment))], as_json)


@env.command("show")
def env_show(as_json: Json = False) -> None:
    """Say which are there, and where."""
    with _answering(as_json):
        from hubq import sealed, ui
        from hubq.formats.onnx.exporters import EXPORTERS

        found = [exporter.environment for exporter in EXPORTERS.values()]
        ui.show_environments([(environment, sealed.state(environment)) for environment in found], as_json)


@env.command("remove")
def env_remove(name: Name = "optimum", as_json: Json = False) -> None:
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
def doctor(as_json: Json = False) -> None:
    """Say what is installed and what it unlocks."""
    with _answering(as_json):
        from hubq import ui
        from hubq.doctor import checks

        ui.show_checks(checks(), as_json)


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
