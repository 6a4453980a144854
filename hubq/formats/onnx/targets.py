"""What levels are told by the hardware that they are for, as data.

Sources: Optimum's AutoQuantizationConfig and Sentence-Transformers' names for the 8 bits by column; onnxruntime's "Quantize
ONNX models" for 7 bits and unsigned weights where signed ones overflow (VPMADDUBSW, on x86 without VNNI); onnxruntime-genai's
model builder and onnxruntime's WebGPU kernels for blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hubq.errors import Usage
from hubq.formats.onnx.levels import Scheme


@dataclass(frozen=True, slots=True)
class Target:
    """Hardware, and what suits it.

    `accuracy_level` is that of MatMulNBits: 4 rounds activations to 8 bits, 0 leaves them. `symmetric` blocks have no zero
    points. `unsigned` stores the 8 bits of columns as uint8, `reduced` only 7 of them.
    """

    summary: str
    accuracy_level: int = 4
    symmetric: bool = False
    unsigned: bool = False
    reduced: bool = False


TARGETS: dict[str, Target] = {
    "cpu": Target("any CPU"),
    "arm64": Target("ARM: signed 8 bits are at least as fast as unsigned ones"),
    "avx2": Target("x86 with AVX2: unsigned 8 bits, for products of signed ones overflow", unsigned=True),
    "avx512": Target("x86 with AVX-512 without VNNI: 7 of 8 bits, for products of more overflow", reduced=True),
    "avx512_vnni": Target("x86 with VNNI: signed 8 bits"),
    "cuda": Target("NVIDIA GPUs: activations stay floats", 0, symmetric=True),
    "webgpu": Target("browsers' GPUs: no zero points, which their fast kernels lack", symmetric=True),
}


def find(name: str) -> Target:
    """The target of a name. Raises Usage for one that is none."""
    if name not in TARGETS:
        raise Usage(f"there is no target {name!r}", f"targets are {', '.join(TARGETS)}")
    return TARGETS[name]


def suited(scheme: Scheme, target: str) -> Scheme:
    """A level's scheme for a target."""
    chosen = find(target)
    return replace(
        scheme,
        accuracy_level=chosen.accuracy_level,
        symmetric=scheme.symmetric or chosen.symmetric,
        unsigned=chosen.unsigned if scheme.unsigned is None else scheme.unsigned,
        reduced=chosen.reduced,
    )
