"""The levels of ONNX, as data: the file names of transformers.js (`utils/dtypes.js`) and what each level does to a model.

A decoder's activations do not survive 8 bits for a whole tensor: its `q8` has the weights in blocks instead. An encoder's do,
and run fastest that way. Levels whose way costs decoders more than its bits should are special: made on request.

A mixture has no name in transformers.js, which takes its file as `model_file_name`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hubq.nouns import Level


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a level does to the weights.

    `way` names how: `keep` leaves them, `blocks` rounds blocks of a row to `bits` bits (MatMulNBits, GatherBlockQuantized),
    `dynamic` rounds columns to 8 bits and the activations while the model runs (MatMulInteger), `nf4` rounds blocks to the
    16 values of NormalFloat (MatMulBnb4), `builder` leaves all to onnxruntime-genai. `symmetric` blocks have no zero points,
    `half` stores what stays a float in 16 bits; `raised` are parts in 8 bits, see MIXTURE. `unsigned` and `reduced` (7 bits)
    are for `dynamic`; where `unsigned` is None the target says. `accuracy_level` is that of MatMulNBits: 4 rounds activations
    to 8 bits in blocks, too, which is several times faster; 0 leaves them.
    """

    way: Literal["keep", "blocks", "dynamic", "nf4", "builder"]
    bits: int = 32
    symmetric: bool = False
    unsigned: bool | None = None
    half: bool = False
    raised: Mapping[str, str] = field(default_factory=dict)
    reduced: bool = False
    accuracy_level: int = 4


@dataclass(frozen=True, slots=True)
class Row:
    """A level: its file's `suffix`, the `bits` of a weight with its share of the scales, its schemes by kind of model."""

    suffix: str
    bits: float
    summary: str
    decoder: Scheme
    encoder: Scheme
    special: bool = False


HALF = Scheme("keep", 16, half=True)
BLOCKS_8 = Scheme("blocks", 8, symmetric=True)
BLOCKS_4_HALF = Scheme("blocks", 4, half=True)
COLUMNS_8 = Scheme("dynamic", 8)
INT8 = Scheme("dynamic", 8, unsigned=False)
UINT8 = Scheme("dynamic", 8, unsigned=True)
NF4 = Scheme("nf4", 4)
BUILDER = Scheme("builder", 4, symmetric=True)

LAYER = re.compile(r"\.(\d+)\.")  # the number of a layer in the name of a part
# parts that a scheme may store in 8 bits, by how their names end -> in `every` layer, or at the `ends`: the first and the last
# eighth. Values are a small part of a model whose heads share them, and worth the most; the next are the head, then the rest.
VALUES = {"v_proj": "every"}
MIXTURE = {**VALUES, "lm_head": "every", "down_proj": "ends"}

BLOCKS_4 = Scheme("blocks", 4)
BLOCKS_4_VALUES = Scheme("blocks", 4, raised=VALUES)
BLOCKS_4_MIXED = Scheme("blocks", 4, raised=MIXTURE)

# best first; the order of `hubq levels` and of cards
TABLE: dict[str, Row] = {
    "fp32": Row("", 32, "full precision, for further work and comparison", Scheme("keep"), Scheme("keep")),
    "fp16": Row("_fp16", 16, "half precision, for GPUs and WebGPU", HALF, HALF),
    "q8": Row(
        "_quantized", 9, "8 bits: decoders in blocks of 32, encoders by column with 8-bit activations", BLOCKS_8, COLUMNS_8
    ),
    "int8": Row("_int8", 8, "8 bits by column, signed, activations too: for encoders", INT8, INT8, special=True),
    "uint8": Row("_uint8", 8, "8 bits by column, unsigned, activations too: for encoders", UINT8, UINT8, special=True),
    "q4_mixed": Row("_q4_mixed", 5.75, "q4 with head and outer layers in 8 bits", BLOCKS_4_MIXED, BLOCKS_4, special=True),
    "q4": Row("_q4", 5.25, "4 bits in blocks of 32 with an offset, embeddings too", BLOCKS_4_VALUES, BLOCKS_4),
    "q4f16": Row("_q4f16", 4.625, "q4 with half precision for all else, for WebGPU", BLOCKS_4_HALF, BLOCKS_4_HALF),
    "bnb4": Row("_bnb4", 4.5, "4-bit NormalFloat in blocks of 64; superseded by q4", NF4, NF4, special=True),
    "genai-int4": Row("", 5.125, "a folder for onnxruntime-genai, 4 bits in blocks of 32", BUILDER, BUILDER, special=True),
}

LEVELS: dict[str, Level] = {
    name: Level(f"onnx:{name}", row.bits, row.summary, special=row.special) for name, row in TABLE.items()
}


def file_name(level_name: str) -> str:
    """The file of a level under `onnx/`, as transformers.js looks for it: `model_q4.onnx`."""
    return f"model{TABLE[level_name].suffix}.onnx"


def scheme(level_name: str, decoder: bool) -> Scheme:
    """What a level does to a decoder or to an encoder."""
    row = TABLE[level_name]
    return row.decoder if decoder else row.encoder


def raised(parts: Mapping[str, str], module: str, layers: int) -> bool:
    """Whether a part of a model with so many layers is stored in 8 bits where `parts` are."""
    where, layer = parts.get(module.rpartition(".")[2]), LAYER.search(module)
    if where == "ends" and layer:
        return not layers // 8 <= int(layer[1]) < layers - layers // 8
    return where is not None
