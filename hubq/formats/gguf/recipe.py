"""Which storage type each tensor gets at a level: llama.cpp's choices (`llama_tensor_get_type`, llama-quant.cpp)."""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubq.errors import Unsupported, Usage
from hubq.formats.gguf.encode import TYPES
from hubq.formats.gguf.levels import MIXES, Mix, measured_types
from hubq.formats.gguf.tensors import Tensor
from hubq.nouns import Recipe


@dataclass(frozen=True, slots=True)
class Model:
    """What the choice of types depends on besides the tensors; `architecture` is `general.architecture`.

    Heads are those of the first layer. Of the layers the last `ahead` predict tokens further ahead.
    """

    layers: int
    heads: int
    kv_heads: int
    experts: int = 0
    architecture: str = "llama"
    ahead: int = 0

    @classmethod
    def read(cls, architecture: str, size: Callable[[str, int], int]) -> Model:
        """The model that llama.cpp sees in a file's hyper-parameters.

        `size(key, default)` gives one of them ("block_count"), of a list by layer the first; 0 where there is none.
        """
        layers, ahead, loops = size("block_count", 0), size("nextn_predict_layers", 0), size("num_loops", 1)
        if architecture == "nanbeige" and loops > 1:  # passes its layers several times
            layers = (layers - ahead) * loops
        if architecture == "graniteswitch":  # its router is one more layer
            layers, ahead = layers - ahead + 1, 1
        heads = size("attention.head_count", 0)
        return cls(layers, heads, size("attention.head_count_kv", heads), size("expert_count", 0), architecture, ahead)

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes it for Llama 70B, whose attention values it spares."""
        llama = self.architecture in ("llama", "llama-embed")
        grouped = not llama or (self.heads != self.kv_heads and self.experts != 8)
        return grouped and self.layers - self.ahead == LAYERS_OF_70B.get(self.architecture)

    @property
    def queries(self) -> int:
        """Query heads to a key head."""
        return self.heads // self.kv_heads if self.kv_heads else 0


LAYERS_OF_70B = {"llama": 80, "llama-embed": 80, "deci": 80, "qwen2": 80, "olmo": 80, "jais2": 68}


@dataclass(frozen=True, slots=True)
class Place:
    """What the rules see of a tensor.

    `number` counts the tensors of its category before it; `layer` is the same, but in the feed-forward part of mixtures the
    layer in its name; `layers` is how many there are. `measured` says whether an importance matrix is used.
    """

    shape: tuple[int, ...]
    category: str
    number: int
    layer: int
    layers: int
    mix: Mix
    model: Model
    measured: bool


# word of a rule's condition -> does it hold? A condition holds where all its words do
CONDITIONS: dict[str, Callable[[Place], bool]] = {
    "always": lambda place: True,
    "measured": lambda place: place.measured,
    "unmeasured": lambda place: not place.measured,
    "unfit": lambda place: bool(place.shape[-1] % TYPES[place.mix.base].block),
    "flat": lambda place: (
        math.prod(place.shape[-3:-2]) == 1
        or (place.model.architecture == "bailingmoe3" and not place.category.startswith("ffn"))
    ),
    "first_2": lambda place: place.layer < 2,
    "first_4": lambda place: place.layer < 4,
    "first_eighth": lambda place: place.layer < place.layers // 8,
    "first_sixteenth": lambda place: place.layer < place.layers // 16,
    "counted_eighth": lambda place: place.number < place.layers // 8,
    "middle": lambda place: place.layers // 8 <= place.layer < 7 * place.layers // 8,
    "more_bits": lambda place: (
        not place.layers // 8 <= place.layer < 7 * place.layers // 8 or (place.layer - place.layers // 8) % 3 == 2
    ),
    "grouped": lambda place: place.model.queries >= 4,
    "experts_4": lambda place: place.model.experts >= 4,
    "experts_8": lambda place: place.model.experts == 8,
    "70b": lambda place: place.model.is_70b,
    "falcon": lambda place: place.model.architecture == "falcon",
}

PER_LAYER = "per_layer_token_embd.weight"
ENDS = {"output.weight": "output", "token_embd.weight": "token_embd", PER_LAYER: "token_embd"}

# part of another tensor's name -> category; the first that fits
CATEGORIES = {
    "attn_qkv.weight": "attn_v",
    "attn_kv_b.weight": "attn_v",
    "attn_v.weight": "attn_v",
    "attn_k.weight": "attn_k",
    "attn_q.weight": "attn_q",
    "attn_output.weight": "attn_output",
    "ffn_up": "ffn_up",
    "ffn_gate": "ffn_gate",
    "ffn_down": "ffn_down",
}

# in names of matrices that are never quantized: norms, routers, what is small
KEPT = re.compile(
    r"""
    _norm\.weight | ffn_gate_inp\.weight | ffn_gate_tid2eid\.weight | altup | laurel | per_layer_model_proj
    | attn_rel_b\.weight | ssm_conv1d | shortconv\.conv\.weight | indexer\.[kq]_proj\.weight
    | time_mix_(first | [wva][012] | g[12] | decay_w[12] | lerp_fused)\.weight
    | \.position_embd | \.rel_pos | \.patch_embd | \.patch_merger | sam\.(pos_embd | neck\. | net_)
    | a\.rvq\.codebook | mm\.a\.code_embd | ^(position_embd | token_types)\.weight\Z
    """,
    re.VERBOSE,
)

# architecture -> in names of more such matrices
KEPT_OF = {
    "glm5-next": re.compile(
        r"""
        hc_ | indexer\.(attn_q_b | attn_k | proj) | indexer_compressor_(gate | ape) | attn_(kv_a_mqa | k_b | v_b)\.weight
        | ssm_([fg]_[ab] | beta)\.weight
        """,
        re.VERBOSE,
    )
}

# architecture -> in names of matrices that get Q8_0 at every level with blocks
SPARED_OF = {"glm5-next": re.compile(r"attn_q_[ab]|nextn\.eh_proj")}

# a row whose length the type's block does not divide is stored in this type instead, and where that does not fit either, or
# the block is as small as 32, in F16
FALLBACK = {"Q2_0": "Q4_0", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
FALLBACK |= dict.fromkeys(("TQ1_0", "TQ2_0"), "Q4_0")
FALLBACK |= dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL")

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Custom:
    """What a user wants other than the level's mix, with the meaning of llama-quantize's options.

    `tensor_types` are pairs of a pattern and a storage type: the first pattern found in a tensor's name decides. `output` is
    the type of the output matrix (of tied embeddings too), `embedding` that of the token embeddings; `pure` gives all other
    tensors the level's base type. Patterns and `pure` leave the levels F32, F16 and BF16 as they are.
    """

    tensor_types: tuple[tuple[str, str], ...] = ()
    output: str | None = None
    embedding: str | None = None
    pure: bool = False


NOTHING = Custom()


def parse_type(text: str) -> str:
    """A storage type's name in any case. Raises Usage for one that is none, with the nearest ones."""
    if text.upper() in TYPES:
        return text.upper()
    near = difflib.get_close_matches(text.upper(), TYPES, 3)
    raise Usage(
        f"there is no storage type {text!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""),
        f"the types are {', '.join(TYPES)}",
    )


def parse_tensor_type(text: str) -> tuple[str, str]:
    """Pattern and type of `attn_q=q8_0`. The pattern is in small letters, as llama-quantize has it. Raises Usage."""
    pattern, _, type_name = text.partition("=")
    if not (pattern and type_name):
        raise Usage(f"{text!r} is no pattern and type", "write them as in attn_q=q8_0")
    _compile(pattern.lower())
    return pattern.lower(), parse_type(type_name)


def read_tensor_types(path: Path) -> tuple[tuple[str, str], ...]:
    """The pairs of pattern and type in a file for llama-quantize's --tensor-type-file. Raises Usage."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Usage(f"{path} cannot be read: {reason}", "name a file with lines such as attn_q=q8_0") from None
    return tuple(parse_tensor_type(pair) for pair in text.split())


def _compile(pattern: str) -> re.Pattern[str]:
    """A pattern as `re` knows it; for what names need it means what std::regex takes it for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning is about syntax that std::regex reads in another way, as [[:digit:]]
            return re.compile(pattern)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        raise Usage(
            f"the pattern {pattern!r} cannot be used: {error}", "write a part of tensors' names, or a simple regular expression"
        ) from None


def recipe(
    level: str, tensors: Sequence[Tensor], model: Model, matrix: Collection[str] | None = None, custom: Custom = NOTHING
) -> Recipe:
    """The recipe of a level ("Q4_K_M") for the tensors of one model.

    `matrix` names the tensors that the importance matrix covers; None: there is none. Raises Usage for a pattern of `custom`
    that fits no tensor and for a type of output or embeddings whose blocks do not divide the rows, Unsupported for a row that
    fits neither its type nor another one.
    """
    mix, patterns = MIXES[level], _patterns(custom, tensors, model.architecture)
    decided = {tensor.name: _decided(tensor, mix, patterns, custom, model.architecture) for tensor in tensors}
    places = _places(tensors, decided, mix, model, matrix is not None)
    types, fallbacks = {}, 0
    for tensor in tensors:
        wanted = decided[tensor.name] or _mixed(places[tensor.name], custom)
        types[tensor.name] = fitting(wanted, tensor)
        fallbacks += types[tensor.name] != wanted
    return Recipe(f"gguf:{level}", types, fallbacks)


def unmeasured(level: str, chosen: Recipe, matrix: Collection[str] | None) -> list[str]:
    """The tensors of a recipe that need an importance which `matrix` (the names that it covers, or None) does not have.

    They are those that llama.cpp refuses (`tensor_requires_imatrix`), and those whose type has no encoder without one.
    """
    covered, needing = matrix or (), measured_types(level)
    return [
        name
        for name, type_name in chosen.types.items()
        if (type_name in needing and name not in ENDS) or TYPES[type_name].encoder is None
        if name not in covered
    ]


def quantizable(tensor: Tensor, architecture: str) -> bool:
    """Whether a tensor may be quantized: matrices may, but for those that are KEPT; vectors may not."""
    ends_well = tensor.name.endswith("weight") or len(tensor.name) == 5  # where rfind() finds nothing, at -1 as 5 - 6 is
    is_matrix = math.prod(tensor.shape[:-1]) > 1 and ends_well
    return is_matrix and not KEPT.search(tensor.name) and not _found(KEPT_OF, architecture, tensor.name)


def _found(patterns: Mapping[str, re.Pattern[str]], architecture: str, name: str) -> bool:
    return architecture in patterns and bool(patterns[architecture].search(name))


def fitting(wanted: str, tensor: Tensor) -> str:
    """The type itself, or its fallback where its blocks do not divide a row. Raises Unsupported where there is no fallback."""
    if _fits(wanted, tensor):
        return wanted
    if wanted not in FALLBACK and TYPES[wanted].block > 32:
        raise Unsupported(_misfit(wanted, tensor), "leave that type or level out; llama.cpp has no other one for such rows")
    return FALLBACK[wanted] if wanted in FALLBACK and _fits(FALLBACK[wanted], tensor) else "F16"


def _fits(type_name: str, tensor: Tensor) -> bool:
    return tensor.shape[-1] % TYPES[type_name].block == 0


def _misfit(type_name: str, tensor: Tensor) -> str:
    columns, block = tensor.shape[-1], TYPES[type_name].block
    return f"{tensor.name} cannot be {type_name}: its rows of {columns} weights are no multiple of {block}"


def _patterns(custom: Custom, tensors: Sequence[Tensor], architecture: str) -> list[tuple[re.Pattern[str], str]]:
    names = [tensor.name for tensor in tensors if quantizable(tensor, architecture)]
    patterns = [(_compile(pattern), type_name) for pattern, type_name in custom.tensor_types]
    for pattern, _ in patterns:
        if not any(map(pattern.search, names)):
            raise Usage(
                f"no tensor fits the pattern {pattern.pattern!r}", f"tensors have names such as {names[len(names) // 2]}"
            )
    return patterns


def _decided(
    tensor: Tensor, mix: Mix, patterns: Sequence[tuple[re.Pattern[str], str]], custom: Custom, architecture: str
) -> str | None:
    """The type that a tensor gets whatever the mix's rules say, or None; in llama.cpp's order."""
    if not quantizable(tensor, architecture):
        return tensor.kept
    named = next((type_name for pattern, type_name in patterns if pattern.search(tensor.name)), None)
    wanted = {"token_embd": custom.embedding, "output": custom.output}.get(category(tensor.name))
    if wanted and not (named and tensor.name == PER_LAYER):  # a pattern is stronger for that table alone
        if not _fits(wanted, tensor):
            raise Usage(_misfit(wanted, tensor), "choose a type with smaller blocks, such as Q8_0 or Q4_0")
        return wanted
    if mix.base in FLOATS:
        return mix.base
    return named or (mix.base if custom.pure else "Q8_0" if _found(SPARED_OF, architecture, tensor.name) else None)


def category(name: str) -> str:
    """The category of a tensor, "" for one that no rule is about."""
    return ENDS.get(name) or next((category for part, category in CATEGORIES.items() if part in name), "")


def _places(
    tensors: Sequence[Tensor], decided: dict[str, str | None], mix: Mix, model: Model, measured: bool
) -> dict[str, Place]:
    """The places of the tensors that are not yet `decided`. llama.cpp goes by layer and name, and counts only these."""
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    values = sum(category(tensor.name) == "attn_v" for tensor in tensors)
    seen: Counter[str] = Counter()
    places = {}
    for tensor in sorted(tensors, key=lambda tensor: (_layer(tensor.name), tensor.name)):
        if decided[tensor.name]:
            continue
        kind = category(tensor.name)
        number = seen[kind]
        seen[kind] += 1
        layer = _layer(tensor.name) if model.experts > 1 and kind.startswith("ffn") else number
        kind = "output" if tied and kind == "token_embd" else kind
        layers = values if kind == "attn_v" else model.layers
        places[tensor.name] = Place(tensor.shape, kind, number, layer, layers, mix, model, measured)
    return places


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)", name)
    return int(match[1]) if match else -1


def _mixed(place: Place, custom: Custom) -> str:
    """The type that the mix's rules give, but for tied embeddings whose type is the user's choice."""
    if place.category == "output" and custom.output:
        return custom.output
    rules = place.mix.rules.get(place.category, place.mix.rules.get("*", ()))
    holding = (wanted for words, wanted in rules if all(CONDITIONS[word](place) for word in words.split()))
    return next(holding, place.mix.base)
