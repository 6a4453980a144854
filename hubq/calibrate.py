"""Activations of a model over text: for every weight, the sum of squares of each column's inputs, as llama-imatrix counts them.

All matrix products with weights go through torch.nn.functional.linear, whoever calls it: a Linear, a router, or a loop over
slices of experts that transformers keeps stacked in one parameter; those of GPT-2, where inputs are the weight's rows, go
through torch.addmm. There each is recognised by where its weight lies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from hubq.checkpoint import AGAIN, few
from hubq.errors import BadSource, Unsupported

# parts of a checkpoint's names -> what transformers calls them
RENAMED = {".block_sparse_moe.": ".mlp."}
# a weight of one expert -> the parameter that holds it for all experts
STACKED = dict.fromkeys(("w1", "w3", "gate_proj", "up_proj"), "gate_up_proj") | dict.fromkeys(("w2", "down_proj"), "down_proj")
_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<number>\d+)\.(?P<part>\w+)\.weight")


@dataclass(frozen=True, slots=True)
class Activation:
    """What one weight was multiplied with: sums of squares by input, float32 [experts, inputs], and tokens, int64 [experts].

    A weight that a checkpoint keeps for each expert apart, and one outside mixtures, has one row.
    """

    sums: np.ndarray
    counts: np.ndarray


def collect(
    model: Any, weights: Collection[str], windows: Iterable[np.ndarray], progress: Callable[[int], None] = lambda done: None
) -> dict[str, Activation]:
    """The activations of a transformers model at weights named as in its checkpoint, over windows of token ids [T].

    Squares are summed in float32 within a window, in float64 over windows. `progress` hears the windows done. Raises BadSource
    for activations that are not finite, Unsupported for weights whose inputs cannot be seen.
    """
    places = _places(weights, model)
    watch = _Watch(parameter for parameter, _ in places.values())
    head = model.get_output_embeddings()
    with_head = head is not None and any(parameter is head.weight for parameter, _ in places.values())
    run = model if with_head else model.base_model  # without the head where nobody asks for what it is multiplied with
    with _one_expert_at_a_time(model), torch.inference_mode():
        for done, ids in enumerate(windows, 1):
            batch = torch.as_tensor(ids, dtype=torch.int64, device=model.device)[None]
            with watch:
                run(input_ids=batch, use_cache=False)
            progress(done)
    watch.check({parameter.data_ptr(): name for name, (parameter, _) in places.items()})
    return {name: watch.activation(parameter, expert) for name, (parameter, expert) in places.items()}


def _places(weights: Iterable[str], model: Any) -> dict[str, tuple[torch.Tensor, int | None]]:
    """The parameter that holds each of a checkpoint's weights, and at which expert. Raises Unsupported where there is none."""
    parameters = dict(model.named_parameters())
    prefix = f"{model.base_model_prefix}."  # which old checkpoints lack
    parameters |= {name.removeprefix(prefix): parameter for name, parameter in parameters.items()}
    found = {name: _place(name, parameters) for name in weights}
    if lost := [name for name, lies in found.items() if lies is None]:
        raise Unsupported(
            f"transformers' {type(model).__name__} has no parameters for these weights: {few(lost)}",
            "give an importance matrix from elsewhere: --imatrix FILE",
        )
    return {name: lies for name, lies in found.items() if lies}


def _place(name: str, parameters: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, int | None] | None:
    for theirs, ours in RENAMED.items():
        name = name.replace(theirs, ours)
    if name in parameters:
        return parameters[name], None
    match = _EXPERT.fullmatch(name)
    stack = parameters.get(f"{match['experts']}.{STACKED.get(match['part'])}") if match else None
    if match is None or stack is None or int(match["number"]) >= len(stack):
        return None
    return stack, int(match["number"])


@contextmanager
def _one_expert_at_a_time(model: Any) -> Iterator[None]:
    """While transformers computes mixtures as their authors wrote them, without a kernel for all experts at once."""
    before = model.get_experts_implementation()
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


class _Watch(TorchFunctionMode):
    """Sees every linear product and adds up the squares of its inputs, for the weights that lie in `parameters`."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._sums: dict[int, torch.Tensor] = {}
        self._counts: dict[int, list[int]] = {}
        self._slices: dict[int, tuple[int, int]] = {}  # address of a weight -> that of its parameter, and the expert
        self._last: tuple[Any, Any] = (None, None)  # query, key and value share their input, and so do gate and up
        for parameter in parameters:
            start = parameter.data_ptr()
            experts = len(parameter) if parameter.dim() > 2 else 1
            if start not in self._sums:
                self._sums[start] = torch.zeros(experts, parameter.shape[-1], dtype=torch.float64, device=parameter.device)
                self._counts[start] = [0] * experts
                step = parameter.stride(0) * parameter.element_size()
                self._slices |= {start + expert * step: (start, expert) for expert in range(experts)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear:
            self._see(*args[:2])
        elif func is torch.addmm:
            self._see(*args[1:3])
        return func(*args, **(kwargs or {}))

    def _see(self, inputs: torch.Tensor, weight: torch.Tensor) -> None:
        if (found := self._slices.get(weight.data_ptr())) is None:
            return
        start, expert = found
        if self._sums[start].shape[-1] != inputs.shape[-1]:  # the weight has its inputs as rows
            self._sums[start] = self._sums[start].new_zeros(len(self._sums[start]), inputs.shape[-1])
        if self._last[0] is not inputs:
            rows = inputs.reshape(-1, inputs.shape[-1])
            self._last = inputs, rows.square().sum(0)
        self._sums[start][expert] += self._last[1]
        self._counts[start][expert] += inputs.numel() // inputs.shape[-1]

    def __exit__(self, *details: Any) -> None:
        self._last = (None, None)
        super().__exit__(*details)

    def check(self, names: Mapping[int, str]) -> None:
        """Hold what was seen against the parameters' names. Raises BadSource and Unsupported as collect does."""
        for start, sums in self._sums.items():
            if not torch.isfinite(sums.to(torch.float32)).all():
                raise BadSource(
                    f"the activations that {names[start]!r} is multiplied with are not finite (NaN or infinity)", AGAIN
                )
        silent = {start: len(counts) for start, counts in self._counts.items() if not any(counts)}
        # of experts that the model does not stack, one may have met no token
        if unseen := [names[start] for start, experts in silent.items() if experts > 1 or ".experts." not in names[start]]:
            raise Unsupported(
                f"what these weights are multiplied with cannot be seen: {few(unseen)}",
                "give an importance matrix from elsewhere: --imatrix FILE",
            )

    def activation(self, parameter: torch.Tensor, expert: int | None) -> Activation:
        """What was seen at a parameter, or at one of its experts."""
        rows = slice(None) if expert is None else slice(expert, expert + 1)
        sums = self._sums[parameter.data_ptr()][rows].to(torch.float32).cpu().numpy()
        return Activation(sums, np.array(self._counts[parameter.data_ptr()][rows], np.int64))
