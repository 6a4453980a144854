"""What models are for, under the Hub's names of tasks, and what is scored of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["tokens", "vectors", "labels", "scores"]


@dataclass(frozen=True, slots=True)
class Task:
    """A task of the Hub.

    `kind` is what is compared: distributions over next `tokens`, one vector of each text, distributions over `labels`, or one
    score of each pair of texts. `endings` are those of classes in transformers. Of labels, `places` says where in a text there
    is one: at the whole of it, at each of its tokens, or at those that a mask hides.
    """

    name: str
    kind: Kind
    endings: tuple[str, ...]
    places: Literal["whole", "tokens", "masked"] = "whole"


_ROWS = (
    Task("text-generation", "tokens", ("ForCausalLM", "LMHeadModel")),
    Task("fill-mask", "labels", ("ForMaskedLM",), "masked"),
    Task("token-classification", "labels", ("ForTokenClassification",), "tokens"),
    Task("text-classification", "labels", ("ForSequenceClassification",)),
    Task("text-ranking", "scores", ()),  # a classifier with one label
    Task("feature-extraction", "vectors", ("Model",)),
)
TASKS: dict[str, Task] = {task.name: task for task in _ROWS}


def task_of(config: Mapping[str, Any]) -> str:
    """The name of the task that a model's class is for, by config.json; text generation where the class says nothing else."""
    name = str((config.get("architectures") or [""])[0])
    found = next((task.name for task in _ROWS if name.endswith(task.endings or ("-",))), "text-generation")
    return "text-ranking" if found == "text-classification" and _labels(config) == 1 else found


def _labels(config: Mapping[str, Any]) -> int:
    """How many labels a classifier has; transformers takes two where config.json does not say."""
    names = config.get("id2label")
    return len(names) if isinstance(names, Mapping) else int(config.get("num_labels", 2))
