"""A model's forward pass, with the calls of its modules, so that a picture can show whose work a node is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..engine import Leaf, Node, Tensor, as_tensor
from ..engine.node import no_update, recording


@dataclass(eq=False, slots=True)
class Call:
    """One forward pass of a module, and the pass that it is a part of."""

    path: str
    title: str
    result: Node
    single: bool = False  # it recorded one node and no more
    one_box: bool = False  # in a picture
    parent: Call | None = None


@dataclass(slots=True)
class Calls:
    """The innermost call that a node was recorded in, and the full name of every parameter."""

    of: dict[Node, Call] = field(default_factory=dict)
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
        outside = {tensor.node for tensor in _tensors(args)}
        stack = [tensor.node for tensor in _tensors([result]) if tensor.node not in outside]
        if not stack:
            return
        path = "" if module is model else path
        call = Call(path, _title(path, module), stack[0])
        inside = set[Node]()
        while stack:
            node = stack.pop()
            if node in outside or node in inside or isinstance(node, Leaf):
                continue
            outermost = calls.of.setdefault(node, call)
            while outermost.parent:
                outermost = outermost.parent
            if outermost is not call:
                if path and not outermost.path.startswith(f"{path}."):
                    continue  # of a module that stands elsewhere
                outermost.parent = call
            inside.add(node)
            stack += node.inputs
        call.single = inside == {call.result}
        call.one_box = (getattr(module, "one_box", False) and not opened) or (
            call.single and not (opened and call.result.op == "batch_norm")
        )

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
