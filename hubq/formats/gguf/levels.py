"""The levels of GGUF, as data: llama.cpp's names, file type numbers and mixes (`llama_tensor_get_type_impl`, llama-quant.cpp).

A mix gives most tensors its `base` type. `rules` give some categories of tensors another one: the first rule of the
category whose condition holds decides. Conditions are functions of a tensor's place, see recipe.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hubq.nouns import Level


@dataclass(frozen=True, slots=True)
class Mix:
    """How a level stores weights: `file_type` is `general.file_type`, `base` the storage type of most tensors."""

    file_type: int
    base: str
    bits: float
    summary: str
    rules: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)


MORE_BITS = (("more_bits", "Q6_K"),)

# best first; the order of `hubq levels` and of cards. Bits are those of the base type.
MIXES: dict[str, Mix] = {
    "F32": Mix(0, "F32", 32, "full precision, for further work and comparison"),
    "BF16": Mix(32, "BF16", 16, "what most models are published in; keeps every bit of a bfloat16 source"),
    "F16": Mix(1, "F16", 16, "half precision, for hardware without bfloat16"),
    "Q8_0": Mix(7, "Q8_0", 8.5, "8 bits in blocks of 32"),
    "Q6_K": Mix(18, "Q6_K", 6.5625, "6 bits in blocks of 256"),
    "Q5_K_M": Mix(
        17, "Q5_K", 5.5, "5 bits, 6 for some layers of attention and feed-forward", {"attn_v": MORE_BITS, "ffn_down": MORE_BITS}
    ),
    "Q5_K_S": Mix(16, "Q5_K", 5.5, "5 bits in blocks of 256"),
    "Q5_1": Mix(9, "Q5_1", 6.0, "5 bits in blocks of 32 with an offset; superseded by Q5_K"),
    "Q5_0": Mix(8, "Q5_0", 5.5, "5 bits in blocks of 32; superseded by Q5_K"),
    "Q4_K_M": Mix(
        15, "Q4_K", 4.5, "4 bits, 6 for some layers of attention and feed-forward", {"attn_v": MORE_BITS, "ffn_down": MORE_BITS}
    ),
    "Q4_K_S": Mix(
        14,
        "Q4_K",
        4.5,
        "4 bits, 5 for the first layers",
        {"attn_v": (("first_4", "Q5_K"),), "ffn_down": (("first_eighth", "Q5_K"),)},
    ),
    "Q4_1": Mix(3, "Q4_1", 5.0, "4 bits in blocks of 32 with an offset; superseded by Q4_K"),
    "Q4_0": Mix(2, "Q4_0", 4.5, "4 bits in blocks of 32, which some processors run fastest"),
    "Q3_K_L": Mix(
        13,
        "Q3_K",
        3.4375,
        "3 bits, 5 for half of attention and feed-forward",
        {"attn_v": (("always", "Q5_K"),), "attn_output": (("always", "Q5_K"),), "ffn_down": (("always", "Q5_K"),)},
    ),
    "Q3_K_M": Mix(
        12,
        "Q3_K",
        3.4375,
        "3 bits, 4 or 5 for half of attention and feed-forward",
        {
            "attn_v": (("first_2", "Q5_K"), ("always", "Q4_K")),
            "attn_output": (("always", "Q4_K"),),
            "ffn_down": (("first_sixteenth", "Q5_K"), ("always", "Q4_K")),
        },
    ),
    "Q3_K_S": Mix(11, "Q3_K", 3.4375, "3 bits in blocks of 256"),
    "Q2_K": Mix(
        10,
        "Q2_K",
        2.625,
        "2 bits, 3 or 4 for half of attention and feed-forward",
        {
            "attn_v": (("grouped_by_4", "Q4_K"), ("always", "Q3_K")),
            "attn_output": (("always", "Q3_K"),),
            "ffn_down": (("always", "Q3_K"),),
        },
    ),
}

LEVELS: dict[str, Level] = {name: Level(f"gguf:{name}", mix.bits, mix.summary) for name, mix in MIXES.items()}
