"""How a GGUF scores text: by llama.cpp, as users will run it, or by its weights alone, decoded into the reference model.

The two disagree on purpose: llama.cpp also rounds activations and keeps its cache in 16 bits. So every number names its engine.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hubq.checkpoint import few, open_checkpoint
from hubq.errors import BadSource, HubqError, MissingExtra, Usage
from hubq.formats import cores
from hubq.formats.gguf.arch import family
from hubq.formats.gguf.decode import decode
from hubq.formats.gguf.encode import TYPES
from hubq.formats.gguf.read import StoredTensor, read_set
from hubq.formats.gguf.tensors import Tensor, restore
from hubq.nouns import Artifact, Source

Model = Callable[[np.ndarray, Any], Any]
DECODER = "text-generation"

RUNTIME = "llama.cpp"
AGAIN = "build it again in a fresh folder: --work-dir DIR"
SLAB = 1 << 18  # weights that a core decodes at a time, so that its intermediate arrays stay in its cache


def available() -> tuple[str, ...]:
    """The engines that can run here, most faithful to what users will run first."""
    return tuple(name for name in ENGINES if name != RUNTIME or importlib.util.find_spec("llama_cpp"))


def load_source(source: Source) -> AbstractContextManager[Model]:
    """The GGUF that a source is, as a function from token ids to logits. Raises as `load`."""
    assert source.gguf
    _check_available(RUNTIME)
    return _run(source.gguf, DECODER)


def load(artifact: Artifact, source: Source, engine: str, task: str = DECODER) -> AbstractContextManager[Model]:
    """A GGUF that scores token ids: a context manager of a callable like that of reference.load, or of reference.load_rows.

    For the latter llama.cpp gives the embedding of a text as a row alone, where the file says how to pool.

    Raises Usage for an unknown engine, MissingExtra where llama.cpp is not installed, HubqError for a file that does not load.
    """
    if engine not in ENGINES:
        raise Usage(f"there is no engine {engine!r} for GGUF", f"choose one of {', '.join(ENGINES)}")
    _check_available(engine)
    return ENGINES[engine](artifact, source, task)


def _check_available(engine: str) -> None:
    if engine not in available():
        raise MissingExtra("the engine llama.cpp needs llama-cpp-python", 'pip install "hubq[llama]"')


@contextmanager
def _weights(artifact: Artifact, source: Source, task: str) -> Iterator[Model]:
    from hubq import reference

    tensors = decoded(artifact.path, source)
    with (
        reference.load(source.config, tensors) if task == DECODER else reference.load_rows(source.config, tensors, task) as run
    ):
        yield run


def decoded(path: Path, source: Source) -> Iterator[tuple[str, np.ndarray]]:
    """The weights of a GGUF under the names and in the row order of its source, float32, one tensor at a time.

    Modules of the source that the GGUF leaves out, such as a vision tower, come from the source.
    `path` is the model's file, or any of its parts. Raises HubqError for files that cannot be read or lack a tensor.
    """
    try:
        parts = read_set(path)
    except (BadSource, OSError) as error:
        raise HubqError(f"{path.name} cannot be read as GGUF: {error}", AGAIN) from error
    found = {tensor.name: (part.path, tensor) for part in parts for tensor in part.tensors}
    with open_checkpoint(source.folder, [file.path for file in source.files]) as checkpoint:
        stored, kind = checkpoint.tensors, family(source.config)
        wanted = [tensor for tensor in kind.tensors(source.config, stored) if tensor.sources]
    if missing := [tensor.name for tensor in wanted if tensor.name not in found]:
        raise HubqError(f"{path.name} lacks tensors: {few(missing)}", AGAIN)
    with ThreadPoolExecutor(cores()) as pool:

        def read(tensor: Tensor) -> np.ndarray:
            file, entry = found[tensor.name]
            if entry.shape != tensor.shape or entry.type not in TYPES:
                raise HubqError(f"{path.name} holds {tensor.name} as {list(entry.shape)} of type {entry.type}", AGAIN)
            return _decoded(file, entry, pool)

        yield from restore(wanted, stored, read)
    if rest := [name for name in stored if name.partition(".")[0] in kind.left_out]:
        with open_checkpoint(source.folder, [file.path for file in source.files]) as checkpoint:
            yield from ((name, checkpoint.read(name)) for name in rest)


def _decoded(path: Path, stored: StoredTensor, pool: Executor) -> np.ndarray:
    """One tensor's weights, float32, decoded on all cores by slabs of blocks: to the decoder each slab is one long row."""
    kind = TYPES[stored.type]
    count = math.prod(stored.shape) // kind.block
    data = np.memmap(path, np.uint8, "r", stored.offset, (count, kind.bytes))
    values, step = np.empty((count, kind.block), np.float32), SLAB // kind.block

    def fill(start: int) -> None:
        slab = slice(start, start + step)
        values[slab] = decode(data[slab].reshape(1, -1), stored.type).reshape(-1, kind.block)

    list(pool.map(fill, range(0, count, step)))
    return values.reshape(stored.shape)


class Vocabulary:
    """The tokenizer that llama.cpp makes of a file. `bos` and `eos` are ids, or None where the file names none."""

    def __init__(self, model: Any) -> None:
        import llama_cpp

        self._api, self._vocab = llama_cpp, llama_cpp.llama_model_get_vocab(model)
        bos, eos = llama_cpp.llama_vocab_bos(self._vocab), llama_cpp.llama_vocab_eos(self._vocab)
        self.bos, self.eos = (None if bos < 0 else bos), (None if eos < 0 else eos)
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))
        self.adds_eos = bool(llama_cpp.llama_vocab_get_add_eos(self._vocab))

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of a text: with BOS and EOS where the file says so, and special tokens in it taken for what they are."""
        data = text.encode()
        ids = (ctypes.c_int32 * (2 * len(data) + 8))()
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, len(ids), add_special, parse_special)
        return ids[:count]

    def text(self, token: int | None) -> str:
        """What a token stands for, special ones written out; nothing for no token."""
        return "" if token is None else self.piece(token).decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for in a text, special ones written out."""
        buffer = ctypes.create_string_buffer(1024)
        size = self._api.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)
        return buffer.raw[: max(size, 0)]

    def ends(self, token: int) -> bool:
        """Whether generation stops at a token."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))


@contextmanager
def vocabulary(path: Path) -> Iterator[Vocabulary]:
    """A file's tokenizer in llama.cpp, without its weights. Raises HubqError for a file that does not load."""
    import llama_cpp

    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    with _model(path, settings) as model:
        yield Vocabulary(model)


def _llama_cpp(artifact: Artifact, source: Source, task: str) -> AbstractContextManager[Model]:
    return _run(artifact.path, task)


def tokenize(source: Source, text: str) -> tuple[np.ndarray, np.ndarray, int | None]:
    """A text's ids [N] by the tokenizer of the GGUF that a source is, where each ends in the text's UTF-8 bytes [N], and BOS.

    BOS is None where no text begins with it. Raises HubqError for a file without a tokenizer, MissingExtra without llama.cpp.
    """
    assert source.gguf
    _check_available(RUNTIME)
    with vocabulary(source.gguf) as vocab:
        ids = vocab.encode(text, add_special=False)
        sizes = {token: len(vocab.piece(token)) for token in set(ids)}
        bos = vocab.bos if vocab.adds_bos else None
    ends, size = np.cumsum([sizes[token] for token in ids], dtype=np.int64), len(text.encode())
    surplus = int(ends[-1]) - size if ids else 0
    # one byte too many is the space that SentencePiece puts in front; where some text has no piece, ends are about right
    ends = np.maximum(ends - 1, 0) if surplus == 1 else ends if surplus == 0 else ends * size // ends[-1]
    return np.array(ids, np.int64), ends, bos


@contextmanager
def _run(path: Path, task: str) -> Iterator[Model]:
    import llama_cpp

    with _model(path, llama_cpp.llama_model_default_params()) as model:
        if task == DECODER:
            yield lambda ids, first: _decode(model, path.name, ids, first)
        else:
            yield lambda ids, segments: _embed(model, path.name, ids)


@contextmanager
def _model(path: Path, settings: Any, hint: str = AGAIN) -> Iterator[Any]:
    import llama_cpp

    llama_cpp.llama_log_set(_listen, None)
    llama_cpp.llama_backend_init()
    _log.clear()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), settings)
    if not model:
        raise HubqError(f"llama.cpp cannot load {path.name}: {_reason()}", hint)
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


def _decode(model: Any, name: str, ids: np.ndarray, first: int) -> np.ndarray:
    """Logits [T - 1 - first, V], float32, of one window in an empty context: one batch, as llama-perplexity does."""
    import llama_cpp

    wanted = np.zeros(len(ids), np.int8)
    wanted[first:-1] = 1
    shape = (int(wanted.sum()), llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))
    with _computed(model, name, ids, wanted, False) as context:
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape).copy()


def _embed(model: Any, name: str, ids: np.ndarray) -> np.ndarray:
    """The embedding of a text, [1, D] float32, pooled as the file says; where it says nothing the last hidden states [T, D]."""
    import llama_cpp

    width = llama_cpp.llama_model_n_embd(model)
    with _computed(model, name, ids, np.ones(len(ids), np.int8), True) as context:
        pooled = llama_cpp.llama_pooling_type(context) != llama_cpp.LLAMA_POOLING_TYPE_NONE
        found = llama_cpp.llama_get_embeddings_seq(context, 0) if pooled else llama_cpp.llama_get_embeddings(context)
        if not found:
            raise HubqError(f"llama.cpp makes no embedding with {name}: {_reason()}", AGAIN)
        return np.ctypeslib.as_array(found, (1 if pooled else len(ids), width)).copy()


@contextmanager
def _computed(model: Any, name: str, ids: np.ndarray, wanted: np.ndarray, embeddings: bool) -> Iterator[Any]:
    """A context in which the model has run on ids [T], in one batch; `wanted` [T] marks those that an output is wanted of."""
    import llama_cpp

    with _context(model, name, len(ids), embeddings=embeddings) as context:
        tokens = ids.astype(np.int32)
        batch = llama_cpp.llama_batch(
            n_tokens=len(ids),
            token=tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            logits=wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        if code := llama_cpp.llama_decode(context, batch):
            raise HubqError(f"llama.cpp failed on {name} with code {code}: {_reason()}", AGAIN)
        yield context


@contextmanager
def _context(model: Any, name: str, count: int, **others: Any) -> Iterator[Any]:
    """A context for `count` ids, in one batch where the `others` of llama.cpp's settings do not say how many."""
    import llama_cpp

    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = count
    settings.n_threads = settings.n_threads_batch = cores()
    for key, value in others.items():
        setattr(settings, key, value)
    context = llama_cpp.llama_init_from_model(model, settings)
    if not context:
        raise HubqError(f"llama.cpp cannot make room for {count} tokens of {name}: {_reason()}", "use shorter windows")
    try:
        yield context
    finally:
        llama_cpp.llama_free(context)


class _Player:
    """A llama.cpp context as speed.Player has it; `generates` where it keeps a cache of what went before."""

    def __init__(self, context: Any, name: str) -> None:
        import llama_cpp

        self._api, self._context, self._name = llama_cpp, context, name
        self._memory = llama_cpp.llama_get_memory(context)
        self.generates = bool(self._memory)

    def feed(self, ids: np.ndarray, fresh: bool) -> None:
        if fresh and self._memory:
            self._api.llama_memory_clear(self._memory, True)
        tokens = ids.astype(np.int32)
        batch = self._api.llama_batch_get_one(tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)), len(ids))
        if code := self._api.llama_decode(self._context, batch):
            raise HubqError(f"llama.cpp failed on {self._name} with code {code}: {_reason()}", AGAIN)
        self._api.llama_synchronize(self._context)


def player(path: Path, count: int) -> AbstractContextManager[_Player]:
    """A file in llama.cpp with room for `count` ids, as speed.Player. Raises MissingExtra where llama.cpp is not installed,
    HubqError, when it is entered, where the file does not load."""
    _check_available(RUNTIME)
    return _player(path, count)


@contextmanager
def _player(path: Path, count: int) -> Iterator[_Player]:
    import llama_cpp

    with _model(path, llama_cpp.llama_model_default_params()) as model, _context(model, path.name, count) as context:
        yield _Player(context, path.name)


class Batched:
    """A file in llama.cpp that runs on `room` texts of `length` ids at a time, in the batches of llama-perplexity."""

    def __init__(self, model: Any, context: Any, name: str, length: int, batch: int) -> None:
        import llama_cpp

        self._api, self._context, self._name, self._step = llama_cpp, context, name, min(batch, length)
        self.vocabulary, self.room = Vocabulary(model), max(1, batch // length)
        self.width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def __call__(self, ids: np.ndarray, first: int) -> np.ndarray:
        """Logits [C, T - first, V], float32, of ids [C, T] from `first` on, C at most `room`; they last until the next call."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        starts = range(0, ids.shape[1], self._step)
        if len(starts) == 1:
            return self._run(ids, 0, first)
        parts = [self._run(ids[:, start : start + self._step], start, first).copy() for start in starts]
        return np.concatenate(parts, axis=1)

    def _run(self, ids: np.ndarray, start: int, first: int) -> np.ndarray:
        """Logits of ids [C, T] that have `start` others before them, as they lie in llama.cpp's memory."""
        count, size = ids.shape
        tokens, owners = ids.astype(np.int32).ravel(), np.arange(count, dtype=np.int32).repeat(size)
        places = np.tile(np.arange(start, start + size, dtype=np.int32), count)
        wanted, ones = (places >= first).astype(np.int8), np.ones(ids.size, np.int32)
        addresses = owners.ctypes.data + owners.itemsize * np.arange(ids.size, dtype=np.uintp)  # of each token's owners: one
        integers = ctypes.POINTER(ctypes.c_int32)
        batch = self._api.llama_batch(
            n_tokens=ids.size,
            token=tokens.ctypes.data_as(integers),
            pos=places.ctypes.data_as(integers),
            n_seq_id=ones.ctypes.data_as(integers),
            seq_id=addresses.ctypes.data_as(ctypes.POINTER(integers)),
            logits=wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        if code := self._api.llama_decode(self._context, batch):
            raise HubqError(f"llama.cpp failed on {self._name} with code {code}: {_reason()}", "use a smaller context")
        shape = (count, int(wanted.sum()) // count, self.width)
        if not shape[1]:
            return np.empty(shape, np.float32)
        return np.ctypeslib.as_array(self._api.llama_get_logits(self._context), shape)


@contextmanager
def batched(path: Path, length: int, batch: int) -> Iterator[Batched]:
    """A GGUF opened with the settings of llama-perplexity, for texts of `length` ids and batches of `batch` ids.

    Raises MissingExtra where llama.cpp is not installed, HubqError for a file that does not load or predicts no next tokens.
    """
    _check_available(RUNTIME)
    import llama_cpp

    room = max(1, batch // length)
    sizes = {"n_batch": min(batch, room * length), "n_ubatch": 512, "n_seq_max": room}
    with (
        _model(path, llama_cpp.llama_model_default_params(), "see what it is: hubq show FILE") as model,
        _context(model, path.name, room * length, **sizes) as context,
    ):
        if not llama_cpp.llama_get_memory(context):
            raise HubqError(f"{path.name} predicts no next tokens", "perplexity is for models that generate text")
        yield Batched(model, context, path.name, length, batch)


_log: deque[str] = deque(maxlen=20)


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _listen(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    """llama.cpp's log goes here instead of standard error; errors (level 4) are kept for an exception to quote."""
    if level == 4:
        _log.append(text.decode("utf-8", "replace").strip())


def _reason() -> str:
    return _log[0] if _log else "it gives no reason"


ENGINES: dict[str, Callable[[Artifact, Source, str], AbstractContextManager[Model]]] = {
    RUNTIME: _llama_cpp,
    "weights": _weights,
}
