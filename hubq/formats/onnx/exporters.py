"""What turns a model into graphs, as data: where each exporter runs, and the kinds of decoders that it takes.

Optimum (optimum-onnx 0.1) traces transformers 4.57; mobius (mobius-onnx 0.1) builds graphs from definitions of its own, for
kinds that came later. Of those that mobius announces, here are the ones whose graphs compute what transformers computes: of
the others, many do not, and some without an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hubq.sealed import Environment

WORKER = Path(__file__).parent / "worker"
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Exporter:
    """An exporter: its `title`, its `package`, where it runs and what, and the bytes that its environment takes of the disk."""

    title: str
    package: str
    environment: Environment
    script: Path
    size: int

    @property
    def version(self) -> str:
        """The version of its package."""
        return self.environment.pins[self.package]


OPTIMUM = Environment("optimum", WORKER / "optimum.txt", ("onnxruntime", "accelerate", "optimum.exporters.onnx"))
MOBIUS = Environment("mobius", WORKER / "mobius.txt", ("mobius",))

# in this order where nobody chooses
EXPORTERS = {
    "optimum": Exporter("Optimum", "optimum-onnx", OPTIMUM, WORKER / "export_optimum.py", 1_200_000_000),
    "mobius": Exporter("mobius", "mobius-onnx", MOBIUS, WORKER / "export_mobius.py", 1_200_000_000),
}

# exporter -> the kinds of decoders (model_type) that it exports
DECODERS = {
    "optimum": {
        *("arcee", "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "bloom", "codegen", "cohere", "deepseek_v3"),
        *("falcon", "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss"),
        *("gptj", "granite", "helium", "internlm2", "llama", "marian", "mbart", "mistral", "mpt", "nemotron", "olmo", "olmo2"),
        *("opt", "pegasus", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm"),
    },
    "mobius": {
        *("apertus", "diffllama", "exaone4", "glm4", "granitemoe", "ministral3", "mixtral", "olmoe", "qwen2_moe", "starcoder2"),
        # Optimum's too
        *("gemma2", "llama", "phi3", "qwen2", "qwen3"),
    },
}
# kinds of rotary embeddings that mobius computes as transformers does, and the kinds of decoders of which it does one more
ROTARY = {"default", "linear", "llama3"}
YARN = {"ministral3"}
