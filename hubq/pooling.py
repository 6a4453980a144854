"""How the last hidden states of a text's tokens become one vector, in repositories of sentence-transformers.

modules.json lists the steps of such a model; the folder of the step Pooling says in its config.json which mode it has
(`pooling_mode`), or of which of several it makes use (`pooling_mode_mean_tokens` and so on), as of sentence-transformers 6.0
(sentence_transformer/modules/pooling.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hubq.checkpoint import AGAIN, few
from hubq.errors import BadSource, Unsupported
from hubq.parse import read_json
from hubq.tokenize import read_table

MODULES = "modules.json"
FOLDER = re.compile("[0-9]_Pooling", re.ASCII)  # as sentence-transformers names it, and hubq fetches it
# old settings -> the modes that they switch on
FLAGS = {f"pooling_mode_{mode}_tokens": mode for mode in ("max", "mean", "mean_sqrt_len", "weightedmean")}
FLAGS |= {"pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}
# the steps that a file of the model needs nothing for: what runs it normalizes vectors, Dropout is for training
WITHOUT_WEIGHTS = ("Transformer", "Pooling", "Normalize", "Dropout")
# mode -> hidden states [T, D] of a text to its vector [D]
POOLS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda hidden: hidden.mean(axis=0),
    "cls": lambda hidden: hidden[0],
    "lasttoken": lambda hidden: hidden[-1],
}
DEFAULT = "mean"  # where no Pooling is named
HINT = "use a model of sentence-transformers that pools by mean, cls or lasttoken"


def pooling(folder: Path) -> str | None:
    """The mode, one of POOLS, of a model whose small files are in `folder`; None where modules.json names no pooling.

    Raises BadSource for files that cannot be read, Unsupported for another mode.
    """
    found = [path for kind, path in _steps(folder) if kind == "Pooling"]
    if not found:
        return None
    path = folder / found[0] / "config.json"
    if len(found) > 1 or not FOLDER.fullmatch(found[0]):
        raise Unsupported(f"modules.json has Pooling in {few(found)}, and hubq reads it in one folder like 1_Pooling", HINT)
    if not path.is_file():
        raise BadSource(f"modules.json names {found[0]}, and that has no config.json", AGAIN)
    settings = read_table(path)
    modes = _modes(settings)
    if len(modes) > 1 or modes[0] not in POOLS:
        raise Unsupported(f"hubq knows no pooling by {' and '.join(modes)}", HINT)
    if settings.get("include_prompt") is False:
        raise Unsupported("the pooling leaves prompts out (include_prompt), and what runs the files would not", HINT)
    return modes[0]


def lost_steps(folder: Path) -> tuple[str, ...]:
    """The folders of the steps of modules.json that make other vectors of the pooled ones, and that no file of hubq holds."""
    return tuple(path or kind for kind, path in _steps(folder) if kind not in WITHOUT_WEIGHTS)


def _modes(settings: Mapping[str, Any]) -> list[str]:
    modes = settings.get("pooling_mode", [mode for flag, mode in FLAGS.items() if settings.get(flag)] or ["mean"])
    modes = [modes] if isinstance(modes, str) else modes
    if not (isinstance(modes, list) and modes and all(isinstance(mode, str) for mode in modes)):
        raise BadSource(f"the config.json of Pooling has a pooling_mode that is none: {modes!r}", AGAIN)
    return modes


def _steps(folder: Path) -> list[tuple[str, str]]:
    """(class, folder) of each step of a model of sentence-transformers."""
    try:
        steps = read_json((folder / MODULES).read_bytes()) if (folder / MODULES).is_file() else []
        return [(str(step["type"]).rpartition(".")[2], str(step["path"])) for step in steps]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadSource(f"{MODULES} cannot be read: {error}", AGAIN) from None
