"""Versions of packages with faults that a hostile model could use, and what hubq refuses for them."""

from __future__ import annotations

import re
from importlib import metadata

from hubq.errors import Unsupported

# package -> the first version without a fault, and what that is
LEAST = {
    "huggingface_hub": ("1.26.0", "downloads could leave their folder (huggingface_hub PR 4540)"),
    "torch": ("2.10.0", "loading a pickle could run code in spite of weights_only (CVE-2026-24747)"),
    "transformers": ("5.3.0", "config.json could name code for the package kernels to load (CVE-2026-4372)"),
}
KERNELS = ("4.56.0", "5.3.0")  # from which transformers on CVE-2026-4372 is there, and from which no longer


def number(version: str) -> tuple[int, ...]:
    """A version to compare by: "4.57.6" is (4, 57, 6); a local or preliminary part counts for nothing."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[+a-z]", version)[0]))


def version(package: str) -> str:
    """The version of an installed package; empty where it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def faults() -> list[str]:
    """What is known of the installed versions, one sentence for each package that is too old."""
    found = []
    for name, (least, fault) in LEAST.items():
        if (here := version(name)) and number(here) < number(least):
            found.append(f"{name} {here}: {fault}; {least} mends it")
    return found


def refuse_kernels() -> None:
    """Raises Unsupported where the package kernels stands beside a transformers that a config.json can make use it."""
    here = version("transformers")
    if version("kernels") and number(KERNELS[0]) <= number(here) < number(KERNELS[1]):
        raise Unsupported(
            f"transformers {here} with the package kernels runs code that a config.json names (CVE-2026-4372)",
            "pip uninstall kernels, or pip install --upgrade transformers",
        )
