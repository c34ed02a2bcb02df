"""Equal blocks and time steps that follow each other, of which a picture shows one."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from ..engine import Leaf, Node
from . import labels
from .scene import Call, Scene

MANY = 3  # blocks in a row that are drawn as one
SAVED = 6  # operations that this has to leave out
LONGEST = 100  # operations of a block
Repeat = list[list[Node]]  # blocks of operations, all of one length


def repeats_of(scene: Scene, reached: Collection[Node]) -> list[Repeat]:
    """The blocks of a scene that a picture shows as one, with their leaves; gradients have `reached` some nodes."""

    def sign(node: Node) -> Any:
        """What has to be equal of two operations that one shape stands for."""
        about = [(call.kind, call.title.rpartition(": ")[2]) for call in scene.calls_of(node)]
        text = labels.title(node) if node.own_op != "getitem" else []  # time steps read one place after the other
        return node.primitive, text, about, node.shape, node.dtype, node.requires_grad, node.name, node in reached

    equal = equal_blocks(scene.graph.nodes, scene.graph.outputs, sign) if scene.only is None else []
    return [with_leaves(repeat) for repeat in equal if cuts_no_call(scene, repeat)]


def cuts_no_call(scene: Scene, repeat: Repeat) -> bool:
    """Whether each call of a module is inside a block, or has all of the blocks inside."""
    blocks = {node: i for i, block in enumerate(repeat) for node in block}
    met: dict[Call, list[int | None]] = {}
    for node in [node for node in scene.graph.nodes if node.op]:
        for call in scene.calls_of(node):
            met.setdefault(call, []).append(blocks.get(node))
    inside = [len(set(places)) == 1 or len(blocks) == sum(i is not None for i in places) for places in met.values()]
    return all(inside)


def equal_blocks(nodes: Sequence[Node], outputs: Sequence[Node], sign: Callable[[Node], Any]) -> list[Repeat]:
    """The blocks that follow each other and are equal but for their leaves: by `sign`, and by what they read.

    That is the same place of the block before, or the same node. No other block than the next reads one, but the last.
    """
    row, equal, start = Row(nodes, outputs, sign), list[Repeat](), 0
    steps, signs = row.steps, row.signs
    while start < len(steps):
        size, most = 1, 1
        for length in range(1, min(LONGEST, (len(steps) - start) // MANY) + 1):
            if signs[start] == signs[start + length] and (most == 1 or length % size):
                blocks = row.count(start, length)
                if blocks >= MANY and (blocks - 1) * length >= SAVED and blocks * length > most * size:
                    size, most = length, blocks
        if most > 1:
            # Of the places where a block may begin the last: then what differs in the first stays outside.
            start = max([i for i in range(start, start + size) if row.count(i, size) == most])
            equal.append([steps[i : i + size] for i in range(start, start + most * size, size)])
        start += most * size
    return equal


class Row:
    """The operations of a graph in a row, each with its place, its sign and the places of what reads it."""

    def __init__(self, nodes: Sequence[Node], outputs: Sequence[Node], sign: Callable[[Node], Any]) -> None:
        self.steps = [node for node in deepest_first(nodes, outputs) if node.primitive]
        self.outputs, self.signs = outputs, [sign(node) for node in self.steps]
        self.places = {node: i for i, node in enumerate(self.steps)}
        self.readers: dict[Node, set[int]] = {node: set() for node in nodes}
        for node, i in self.places.items():
            for parent in node.inputs:
                self.readers[parent].add(i)

    def count(self, start: int, size: int) -> int:
        """How many equal blocks of a size stand in a row."""
        blocks = 1
        while (end := start + (blocks + 1) * size) <= len(self.steps):
            if not all(self.alike(i, i - size) for i in range(end - size, end)):
                break
            before = self.steps[end - 2 * size : end - size]
            if any(node in self.outputs or max(self.readers[node], default=0) >= end for node in before):
                break
            blocks += 1
        return blocks

    def alike(self, i: int, j: int) -> bool:
        """Whether two operations are equal, and read what is."""
        one, other = self.steps[i].args, self.steps[j].args
        if self.signs[i] != self.signs[j] or not all(self.same(*pair, i - j) for pair in zip(one, other, strict=True)):
            return False
        pairs = {(id(a), id(b)) for a, b in zip(one, other, strict=True)}
        return len(pairs) == len({*map(id, one)}) == len({*map(id, other)})  # w · w is not v · w

    def same(self, one: Any, other: Any, apart: int) -> bool:
        """Whether two operands are the same, or stand `apart` places from each other."""
        if one is other:
            return True
        if not isinstance(one, Node) or not isinstance(other, Node):
            return type(one) is type(other) and bool(np.array_equal(one, other))
        if one in self.places and other in self.places:
            return self.places[one] - self.places[other] == apart
        kinds = {(node.primitive, node.shape, node.dtype, node.requires_grad) for node in (one, other)}
        return len(kinds) == len(self.readers[one]) == len(self.readers[other]) == 1


def deepest_first(nodes: Sequence[Node], outputs: Sequence[Node]) -> list[Node]:
    """The nodes, inputs first, each as late as it can be: what belongs to a time step follows the step before."""
    depth: dict[Node, int] = {}
    for node in nodes:
        depth[node] = 1 + max([depth[parent] for parent in node.inputs], default=0)
    ordered: dict[Node, None] = {}
    stack = [(node, False) for node in reversed(outputs)]
    while stack:
        node, ready = stack.pop()
        if ready:
            ordered[node] = None
        elif node not in ordered:
            parents = sorted(dict.fromkeys(node.inputs), key=depth.__getitem__)
            stack += [(node, True), *[(parent, False) for parent in parents]]
    return list(ordered)


def with_leaves(repeat: Repeat) -> Repeat:
    """The blocks, each with the leaves that it has for itself."""
    pairs = zip(repeat[0], repeat[1], strict=True)
    places = [
        (i, place)
        for i, (node, other) in enumerate(pairs)
        for place, arg in enumerate(node.args)
        if isinstance(arg, Leaf) and arg is not other.args[place]
    ]
    return [[*block, *dict.fromkeys([block[i].args[place] for i, place in places])] for block in repeat]
