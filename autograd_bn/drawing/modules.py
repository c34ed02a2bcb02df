"""A model's forward pass, with the calls of its modules, so that a picture can show whose work a node is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..engine import Leaf, Node, Tensor, as_tensor
from ..engine.node import no_update, recording, topological_order


@dataclass(eq=False, slots=True)
class Call:
    """One forward pass of a module: the nodes that it recorded itself, and the pass that it is a part of."""

    path: str
    title: str
    result: Node
    one_box: bool  # in a picture
    single: bool = False  # it recorded one node and no more
    nodes: list[Node] = field(default_factory=list)
    parent: Call | None = None


@dataclass(slots=True)
class Calls:
    """The calls of a forward pass, those inside others first, and the full name of every parameter."""

    found: list[Call] = field(default_factory=list)
    names: dict[Node, str] = field(default_factory=dict)

    @property
    def of(self) -> dict[Node, Call]:
        """The innermost call that a node was recorded in."""
        return {node: call for call in self.found for node in call.nodes}


def run(model: Any, inputs: Any, opened: bool) -> tuple[Any, Calls]:
    """The result of `model(*inputs)`, recorded, and its calls; small layers are one box unless they are `opened`.

    Running statistics and generators stay as they are.
    """
    given = inputs if isinstance(inputs, list | tuple) else [inputs]
    names = list(inspect.signature(model.forward).parameters)
    names += [f"input {i}" for i in range(len(names), len(given))]
    tensors = [x if isinstance(x, Tensor) else as_tensor(x, name=name) for x, name in zip(given, names, strict=False)]
    calls = Calls(names={parameter.node: name for name, parameter in model.named_parameters()})
    owner: dict[Node, Call] = {}

    def seen(path: str, module: Any, args: tuple[Any, ...], result: Any) -> None:
        results = [tensor.node for tensor in _tensors([result])]
        known = {tensor.node for tensor in _tensors(args)}
        stack = [node for node in results if node not in known]
        if not stack:
            return
        root = module is model
        call = Call(
            "" if root else path,
            _title("" if root else path, module),
            results[0],
            getattr(module, "one_box", False) and not opened,
        )
        while stack:
            node = stack.pop()
            if node in known or isinstance(node, Leaf):
                continue
            known.add(node)
            if node not in owner:
                owner[node] = call
                call.nodes.append(node)
            else:
                inner = owner[node]
                while inner.parent and inner.parent is not call:
                    inner = inner.parent
                if inner is not call and not root and not inner.path.startswith(path + "."):
                    continue
                inner.parent = None if inner is call else call
            stack += node.inputs
        call.single = call.nodes == [call.result] and not any(inner.parent is call for inner in calls.found)
        call.one_box |= call.single and not (opened and call.result.op == "batch_norm")
        calls.found.append(call)

    with recording(True), no_update(), model.watching(seen):
        result = model(*tensors)
    order = {node: i for i, node in enumerate(topological_order([tensor.node for tensor in _tensors([result])]))}
    for call in calls.found:
        call.nodes = sorted([node for node in call.nodes if node in order], key=order.__getitem__)
    return result, calls


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
