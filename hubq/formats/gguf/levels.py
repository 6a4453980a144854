"""The levels of GGUF, as data: llama.cpp's names, file type numbers and mixes (`llama_tensor_get_type_impl`, llama-quant.cpp).

A mix gives most tensors its `base` type. `rules` give some categories of tensors another one: the first rule of the
category whose conditions all hold decides. Conditions are functions of a tensor's place, categories parts of its name; both
are in recipe.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hubq.nouns import Level

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Mix:
    """How a level stores weights: `file_type` is `general.file_type`, `base` the storage type of most tensors.

    `bits` are those of a weight in the base type; `measured` the types that this level writes with an importance matrix only,
    besides those of MEASURED.
    """

    file_type: int
    base: str
    bits: float
    summary: str
    rules: Mapping[str, Rules] = field(default_factory=dict)
    measured: tuple[str, ...] = ()


def _rules(output: str = "Q6_K", **own: Rules) -> dict[str, Rules]:
    """A level's own rules, each after what nearly all levels share: the output's type, and Q8_0 in mixtures of 8 experts."""
    shared = {
        "output": (("falcon", "Q8_0"), ("unfit", "Q8_0"), ("always", output)),
        "attn_v": (("experts_8", "Q8_0"),),
        "attn_k": (("experts_8", "Q8_0"),),
    }
    return {category: shared.get(category, ()) + own.get(category, ()) for category in shared | own}


def _attn_output(base: str, *others: tuple[str, str]) -> Rules:
    return (("falcon", base), ("experts_8", "Q5_K"), *others)


def _low(spared: str, attn_output: str) -> dict[str, Rules]:
    """The rules of the levels below 3 bits: `spared` for the weights that suffer most, and for attention's output another."""
    return {
        "output": (("falcon", "Q8_0"), ("unfit", "Q8_0"), ("always", "Q5_K")),
        "token_embd": (("always", spared),),
        "attn_v": (("grouped", "Q4_K"), ("experts_4", "Q4_K"), ("always", spared)),
        "attn_k": (("experts_8", "Q4_K"),),
        "attn_output": (("experts_8", "Q5_K"), ("always", attn_output)),
        "ffn_down": (("counted_eighth", spared),),
    }


def _uneven(base: str) -> dict[str, Rules]:
    return _rules(
        attn_v=(("grouped", "Q5_K"),), attn_output=_attn_output(base), ffn_down=(("unmeasured first_eighth", "Q5_K"),)
    )


GROUPED_70B: Rules = (("grouped 70b", "Q5_K"), ("grouped", "Q4_K"))
MORE_BITS: Rules = (("more_bits", "Q6_K"),)
MIDDLE: Rules = (("middle", "IQ3_XXS"),)
TERNARY = _rules(token_embd=(("always", "Q4_K"),))

# best first; the order of `hubq levels` and of cards
MIXES: dict[str, Mix] = {
    "F32": Mix(0, "F32", 32, "full precision, for further work and comparison"),
    "BF16": Mix(32, "BF16", 16, "what most models are published in; keeps every bit of a bfloat16 source"),
    "F16": Mix(1, "F16", 16, "half precision, for hardware without bfloat16"),
    "Q8_0": Mix(7, "Q8_0", 8.5, "8 bits in blocks of 32"),
    "Q6_K": Mix(18, "Q6_K", 6.5625, "6 bits in blocks of 256", _rules()),
    "Q5_K_M": Mix(
        17, "Q5_K", 5.5, "5 bits, 6 for some layers of attention and feed-forward", _rules(attn_v=MORE_BITS, ffn_down=MORE_BITS)
    ),
    "Q5_K_S": Mix(16, "Q5_K", 5.5, "5 bits in blocks of 256", _rules()),
    "Q5_1": Mix(9, "Q5_1", 6.0, "5 bits in blocks of 32 with an offset; superseded by Q5_K", _rules()),
    "Q5_0": Mix(
        8, "Q5_0", 5.5, "5 bits in blocks of 32; superseded by Q5_K", _rules(ffn_down=(("measured first_eighth", "Q5_1"),))
    ),
    "Q4_K_M": Mix(
        15,
        "Q4_K",
        4.5,
        "4 bits, 6 for some layers of attention and feed-forward",
        _rules(
            attn_v=(*MORE_BITS, ("70b", "Q5_K")),
            attn_output=_attn_output("Q4_K"),
            ffn_down=(("falcon first_sixteenth", "Q6_K"), ("falcon more_bits", "Q5_K"), *MORE_BITS),
        ),
    ),
    "Q4_K_S": Mix(
        14,
        "Q4_K",
        4.5,
        "4 bits, 5 for the first layers",
        _rules(
            attn_v=(("first_4", "Q5_K"), ("70b", "Q5_K")),
            attn_output=_attn_output("Q4_K"),
            ffn_down=(("falcon", "Q4_K"), ("first_eighth", "Q5_K")),
        ),
    ),
    "Q4_1": Mix(3, "Q4_1", 5.0, "4 bits in blocks of 32 with an offset; superseded by Q4_K", _rules()),
    "Q4_0": Mix(
        2,
        "Q4_0",
        4.5,
        "4 bits in blocks of 32, which some processors run fastest",
        _rules(ffn_down=(("measured first_eighth", "Q4_1"),)),
    ),
    "IQ4_NL": Mix(
        25, "IQ4_NL", 4.5, "4 bits on an uneven grid in blocks of 32, for rows that 256 does not divide", _uneven("IQ4_NL")
    ),
    "MXFP4_MOE": Mix(
        38,
        "MXFP4",
        4.25,
        "for mixtures of experts: 4-bit floats (MXFP4) for the experts, 8 bits for all else",
        {"output": (("always", "Q8_0"),), "*": (("flat", "Q8_0"),)},
    ),
    "IQ4_XS": Mix(30, "IQ4_XS", 4.25, "4 bits on an uneven grid in blocks of 256", _uneven("IQ4_XS")),
    "Q3_K_L": Mix(
        13,
        "Q3_K",
        3.4375,
        "3 bits, 5 for half of attention and feed-forward",
        _rules(
            attn_v=(("always", "Q5_K"),),
            attn_output=(("falcon", "Q4_K"), ("experts_8", "Q3_K"), ("always", "Q5_K")),
            ffn_down=(("falcon", "Q4_K"), ("always", "Q5_K")),
        ),
    ),
    "Q3_K_M": Mix(
        12,
        "Q3_K",
        3.4375,
        "3 bits, 4 or 5 for half of attention and feed-forward",
        _rules(
            attn_v=(("first_2", "Q5_K"), ("70b", "Q5_K"), ("always", "Q4_K")),
            attn_output=_attn_output("Q3_K", ("always", "Q4_K")),
            ffn_down=(("first_sixteenth", "Q5_K"), ("more_bits", "Q4_K"), ("falcon", "Q3_K"), ("always", "Q4_K")),
        ),
    ),
    "IQ3_M": Mix(
        27,
        "IQ3_S",
        3.4375,
        "3 bits from a codebook, 4 for half of attention and the first layers",
        _rules(
            attn_v=(("70b", "Q5_K"), ("always", "Q4_K")),
            attn_output=_attn_output("IQ3_S", ("always", "Q4_K")),
            ffn_down=(("first_eighth", "Q4_K"), ("experts_8 more_bits", "Q4_K")),
        ),
    ),
    "Q3_K_S": Mix(
        11, "Q3_K", 3.4375, "3 bits in blocks of 256", _rules(attn_v=(("70b", "Q5_K"),), attn_output=_attn_output("Q3_K"))
    ),
    "IQ3_S": Mix(26, "IQ3_S", 3.4375, "3 bits from a codebook", _rules(attn_v=GROUPED_70B, attn_output=_attn_output("IQ3_S"))),
    "IQ3_XS": Mix(
        22,
        "IQ3_S",
        3.4375,
        "3 bits from a codebook, a smaller one for queries, keys and the middle layers",
        _rules(
            attn_v=GROUPED_70B,
            attn_k=(("always", "IQ3_XXS"),),
            attn_q=(("always", "IQ3_XXS"),),
            attn_output=_attn_output("IQ3_S"),
            ffn_gate=MIDDLE,
            ffn_up=MIDDLE,
        ),
    ),
    "IQ3_XXS": Mix(
        23,
        "IQ3_XXS",
        3.0625,
        "3 bits from a small codebook, 2 for queries and keys",
        _rules(
            "Q5_K",
            token_embd=(("always", "IQ3_S"),),
            attn_v=(*GROUPED_70B, ("unmeasured", "IQ3_S")),
            attn_k=(("always", "IQ2_S"),),
            attn_q=(("always", "IQ2_S"),),
            attn_output=_attn_output("IQ3_XXS", ("always", "IQ3_S")),
            ffn_down=(("unmeasured first_eighth", "Q4_K"), ("unmeasured", "Q3_K")),
        ),
    ),
    "Q2_K": Mix(
        10,
        "Q2_K",
        2.625,
        "2 bits, 3 or 4 for half of attention and feed-forward",
        _rules(
            attn_v=(("70b", "Q5_K"), ("grouped", "Q4_K"), ("always", "Q3_K")),
            attn_output=_attn_output("Q2_K", ("always", "Q3_K")),
            ffn_down=(("always", "Q3_K"),),
        ),
    ),
    "Q2_K_S": Mix(
        21,
        "Q2_K",
        2.625,
        "2 bits in blocks of 256, 4 for the first layers",
        _rules(attn_v=GROUPED_70B, ffn_down=(("first_eighth", "Q4_K"),)),
        measured=("Q2_K",),
    ),
    "IQ2_M": Mix(29, "IQ2_S", 2.5625, "2 bits from a large codebook, 3 for half of attention", _low("IQ3_S", "IQ3_S")),
    "IQ2_S": Mix(28, "IQ2_XS", 2.3125, "2 bits from a codebook, 3 for half of attention", _low("IQ3_S", "IQ3_S")),
    "IQ2_XS": Mix(20, "IQ2_XS", 2.3125, "2 bits from a codebook", _low("Q2_K", "IQ2_XS")),
    "Q2_0": Mix(41, "Q2_0", 2.25, "for models trained to weights of -1, 0 and 1: 2 bits each in blocks of 64", TERNARY),
    "IQ2_XXS": Mix(19, "IQ2_XXS", 2.0625, "2 bits from a small codebook", _low("Q2_K", "IQ2_XXS")),
    "TQ2_0": Mix(37, "TQ2_0", 2.0625, "for models trained to weights of -1, 0 and 1: 2 bits each in blocks of 256", TERNARY),
    "IQ1_M": Mix(31, "IQ1_M", 1.75, "1 bit from a codebook with finer scales", _low("Q2_K", "IQ2_XXS")),
    "TQ1_0": Mix(36, "TQ1_0", 1.6875, "for models trained to weights of -1, 0 and 1: five in a byte", TERNARY),
    "IQ1_S": Mix(24, "IQ1_S", 1.5625, "1 bit from a codebook", _low("Q2_K", "IQ2_XXS")),
    "Q1_0": Mix(40, "Q1_0", 1.125, "for models trained to weights of -1 and 1: 1 bit in blocks of 128", _rules()),
}

# least bits of a weight -> the group of levels
GROUPS = {16: "16-32 bit", 5.5: "5-8 bit", 3: "3-4 bit", 0: "1-2 bit"}

# the types that llama.cpp writes with an importance matrix only, but for the embeddings and the output
MEASURED = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})


def group(level: Level) -> str:
    """The precision that the field sorts a level under: "1-2 bit", "3-4 bit", "5-8 bit" or "16-32 bit"."""
    return next(name for least, name in GROUPS.items() if level.bits >= least)


def measured_types(level_name: str) -> frozenset[str]:
    """The types that a level writes with an importance matrix only (`tensor_requires_imatrix`, llama-quant.cpp)."""
    return MEASURED | set(MIXES[level_name].measured)


def needs_matrix(level_name: str) -> bool:
    """Whether a level needs an importance matrix for models whose rows fit its types; `unmeasured` tells for one model."""
    mix = MIXES[level_name]
    inner = [rules for category, rules in mix.rules.items() if category not in ("output", "token_embd")]
    return not measured_types(level_name).isdisjoint({mix.base, *(wanted for rules in inner for _, wanted in rules)})


# levels for models that were trained to few values, or for mixtures of experts; and F16, since in a repository that holds BF16
# as well, llama.cpp's tag :F16 loads M-BF16.gguf. Of the two BF16 loses nothing of what most models are published in
SPECIAL = frozenset({"MXFP4_MOE", "Q2_0", "TQ2_0", "TQ1_0", "Q1_0", "F16"})

# other names that llama-quantize takes
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

LEVELS: dict[str, Level] = {
    name: Level(f"gguf:{name}", mix.bits, mix.summary, needs_matrix(name), name in SPECIAL) for name, mix in MIXES.items()
}
