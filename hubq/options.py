"""What more than one command takes: the options that say what a release is made of, and how a command talks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WITHIN = "2%"
WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1"
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
WorkDir = Annotated[Path | None, typer.Option("--work-dir", help="Where finished work is kept (HUBQ_HOME).")]
Shared = Annotated[
    str | None, typer.Option("--store", help="A repository that machines share a store by: owner/name, or a folder.")
]
Cards = Annotated[Path, typer.Option("--cards", help="The folder of cards, one folder per model.")]
Card = Annotated[Path, typer.Argument(help="A folder of cards' folder with a hubq.toml, or that file.")]
Summary = Annotated[Path | None, typer.Option(help="Append the table of files to this file, in Markdown.")]
Levels = Annotated[str | None, typer.Option(help="Levels, separated by commas, or all; see `hubq levels`.")]
To = Annotated[str | None, typer.Option(help="Where to: owner/name on the Hub, or a folder that acts as a hub.")]
Hub = Annotated[Path | None, typer.Option(help="A folder to take the model from by its id, instead of the Hub.")]
Dataset = Annotated[
    str, typer.Option(help="Text to measure on: a Hub id (ID or ID:config) or a .txt, .jsonl or .parquet file.")
]
Split = Annotated[str, typer.Option(help="The split of the dataset.")]
TextField = Annotated[str, typer.Option(help="The column that holds the text.")]
Windows = Annotated[
    str | None,
    typer.Option(
        help="How many windows of 512 tokens to score, or texts for models that embed or classify them; or all.",
        show_default="32, or 256 texts",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(help="Stop as soon as each file's PPL ratio is known to so much, as 0.5% (95 %); --windows is the most."),
]
Seed = Annotated[int, typer.Option(min=0, help="Chooses the windows or texts.")]
Floor = Annotated[bool, typer.Option("--floor/--no-floor", help="Measure the source in 16 bits, too: what is less is noise.")]
Within = Annotated[
    str, typer.Option(help="Recommend the smallest file of which it is shown that it loses no more, of the PPL ratio.")
]
NoEval = Annotated[bool, typer.Option("--no-eval", help="Publish without measuring.")]
Imatrix = Annotated[
    str, typer.Option(help="Importance matrix: none, a file (GGUF or .dat), or auto to compute one from --calibration.")
]
Calibration = Annotated[
    str, typer.Option(help="Text for --imatrix auto: ID:config:split on the Hub, or a .txt, .jsonl or .parquet file.")
]
CalibrationWindows = Annotated[str, typer.Option(help="How many windows of 512 tokens of it to use, or all.")]
TensorType = Annotated[
    list[str] | None, typer.Option(help="REGEX=TYPE: store the tensors whose names match so; may be repeated.")
]
TensorTypeFile = Annotated[Path | None, typer.Option(help="A file of REGEX=TYPE, as llama-quantize takes it.")]
OutputTensorType = Annotated[str | None, typer.Option(help="Storage type of the output matrix.")]
TokenEmbeddingType = Annotated[str | None, typer.Option(help="Storage type of the token embeddings.")]
Pure = Annotated[bool, typer.Option("--pure", help="Store all matrices in the level's base type.")]
SplitMaxSize = Annotated[str | None, typer.Option(help="Most bytes of one file, as 300M or 2G; larger ones are split.")]
Target = Annotated[
    str | None, typer.Option(help="Hardware that ONNX levels are for: cpu, arm64, avx2, avx512, avx512_vnni, cuda, webgpu.")
]
Speed = Annotated[bool, typer.Option("--speed/--no-speed", help="Measure how fast the files run on this machine.")]
Exporter = Annotated[
    str,
    typer.Option(help="What turns the model into ONNX graphs: optimum, mobius, or auto: optimum where it knows the kind."),
]
