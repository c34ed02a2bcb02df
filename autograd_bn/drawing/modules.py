"""A model's forward pass, with the calls of its modules, so that a picture can show whose work a node is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..engine import Node, Tensor, as_tensor
from ..engine.node import no_update, recording


class Call(NamedTuple):
    """One forward pass of a module."""

    path: str
    title: str
    result: Node
    kind: str  # "box" for one shape in a picture, "fused" for a fused node alone that is opened there, else "module"


@dataclass(slots=True)
class Calls:
    """The calls that every node was recorded in, outermost first, and the full name of every parameter."""

    of: dict[Node, list[Call]] = field(default_factory=dict)
    names: dict[Node, str] = field(default_factory=dict)


def run(model: Any, inputs: Any, opened: bool) -> tuple[Any, Calls]:
    """The result of `model(*inputs)`, recorded, and its calls; small layers are one box unless they are `opened`.

    Running statistics and generators stay as they are.
    """
    given = inputs if isinstance(inputs, list | tuple) else [inputs]
    names = list(inspect.signature(model.forward).parameters)
    names += [f"input {i}" for i in range(len(names), len(given))]
    tensors = [x if isinstance(x, Tensor) else as_tensor(x, name=name) for x, name in zip(given, names, strict=False)]
    calls = Calls(names={parameter.node: name for name, parameter in model.named_parameters()})

    def seen(path: str, module: Any, args: tuple[Any, ...], result: Any) -> None:
        path = "" if module is model else path
        known, recorded = {tensor.node for tensor in _tensors(args)}, list[Node]()
        reached = [tensor.node for tensor in _tensors([result])]
        for node in reached:  # which grows
            elsewhere = path and node in calls.of and not calls.of[node][0].path.startswith(f"{path}.")
            if node.op and node not in known and not elsewhere:
                known.add(node)
                recorded.append(node)
                reached += node.inputs
        if recorded:
            small = len(recorded) == 1 or (not opened and getattr(module, "one_box", False))
            fused = opened and len(recorded) == 1 and recorded[0].op == "batch_norm"
            call = Call(path, _title(path, module), recorded[0], "fused" if fused else "box" if small else "module")
            for node in recorded:
                calls.of.setdefault(node, []).insert(0, call)

    with recording(True), no_update(), model.watching(seen):
        return model(*tensors), calls


def _tensors(given: Iterable[Any]) -> Iterator[Tensor]:
    for item in given:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from _tensors(item)


def _title(path: str, module: Any) -> str:
    """Where a module stands and what it is, with what is said first of it: "1: BatchNorm(32)"."""
    kind = re.sub(r",? ?\w+=(\([^)]*\)|[^,()]*)", "", repr(module).split("\n")[0]).removesuffix("(").removesuffix("()")
    return f"{path}: {kind}" if path else kind
