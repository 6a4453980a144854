"""Which file a tag leads to: how llama.cpp, the Hub and Ollama read the names of GGUF files.

llama.cpp (common/download.cpp, find_best_model) takes the first listed file in whose path `TAG[.-]` occurs, in any case, so
`:F16` finds M-BF16.gguf. The Hub (huggingface.js, packages/tasks/src/gguf.ts) shows as a file's level the last name of one that
occurs in its path, and Ollama asks the Hub for a level, or for a file by its whole name; of files in parts it takes none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from hubq.formats.gguf.split import parse_part

# what stands in the name of a file that is no model of its own
BESIDE = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
PRESET = "preset.ini"  # with it in a repository, llama.cpp takes nothing else from there

# the levels that the Hub knows, in the order in which it looks for them
_HUB = """
F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q8_0 Q5_0 Q5_1 Q2_K_XL Q3_K_XL Q4_K_XL Q5_K_XL Q6_K_XL Q8_K_XL Q2_K_S Q2_K Q3_K_S
Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M
BF16 TQ1_0 TQ2_0 MXFP4_MOE MXFP4 NVFP4 Q1_0 Q2_0
"""
KNOWN = _HUB.split()
_LABEL = re.compile(rf"(?:UD-)?(?:{'|'.join(KNOWN)})(?:_[A-Z]+)?")


def models(paths: Iterable[str]) -> list[str]:
    """The GGUF files among paths that are models, sorted as the Hub lists them; of a model in parts the first."""
    found = [path for path in sorted(paths) if path.endswith(".gguf") and not any(word in _name(path) for word in BESIDE)]
    return [path for path in found if (part := parse_part(_name(path))) is None or part.number == 0]


def by_llama_cpp(paths: Collection[str], tag: str) -> str | None:
    """The file that `-hf REPO:TAG` loads, or None."""
    pattern = re.compile(re.escape(tag) + "[.-]", re.IGNORECASE)
    return next((path for path in models(paths) if pattern.search(path)), None)


def label(path: str) -> str | None:
    """What the Hub shows as a file's level, or None."""
    found: list[str] = _LABEL.findall(path.upper())
    return found[-1] if found else None


def by_ollama(paths: Collection[str], tag: str) -> list[str]:
    """The files that `hf.co/REPO:TAG` could mean: one where all is well."""
    whole = [path for path in models(paths) if path.lower() == tag.lower()]
    return whole or [path for path in models(paths) if label(path) == tag.upper() and parse_part(_name(path)) is None]


def misleading(paths: Collection[str], chosen: Sequence[tuple[str, str]]) -> list[str]:
    """What is wrong with the names in a repository that holds `paths`, a sentence each; nothing where every tag leads to its
    own file. `chosen` are (path, tag) of the files in question; a level that the Hub does not know has no tag there."""
    faults = []
    for path, tag in chosen:
        found = by_llama_cpp(paths, tag)
        if found != path:
            faults.append(f"the tag {tag} would load {found or 'nothing'} in llama.cpp, and not {path}")
        twins = [other for other in by_ollama(paths, tag) if other != path]
        if twins and label(path) == tag.upper():
            faults.append(f"the tag {tag} means {' and '.join(sorted([path, *twins]))} on the Hub and in Ollama")
    return faults


def refused(paths: Collection[str], files: Mapping[str, str]) -> list[str]:
    """What forbids to publish `files` (path -> level) into a repository that then holds `paths`, a sentence each."""
    tags = {path: tag for path in models(paths) if (tag := label(path))} | dict(files)
    faults = [f"with {PRESET} in the repository llama.cpp takes no model from it"] if PRESET in paths else []
    return list(dict.fromkeys([*faults, *misleading(paths, list(tags.items()))]))


def _name(path: str) -> str:
    return path.rpartition("/")[2]
