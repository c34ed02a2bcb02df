"""The graph: nodes, what each keeps for its derivative, and their order."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .primitive import Primitive

Array = np.ndarray[Any, np.dtype[Any]]
Edge = tuple[Any, int, Any, tuple[Any, ...]]


class Buffer:
    """The memory of a leaf, shared by every view of it; `version` counts the assignments."""

    __slots__ = ("version",)

    def __init__(self) -> None:
        self.version = 0


class Node:
    """One recorded operation: where its inputs came from and how a gradient flows back to them.

    A node holds no value. `args` are the positional operands in order, each a `Node` or a constant;
    `params` is the keyword metadata. `edges` has one entry for every input that a gradient may flow to:
    `(input, position, rule, read)`, where `read` are just those values that the rule needs. `guards` are the buffers
    of leaves that stand in `read`, each with the version it had. `buffer` is the leaf's memory that this
    node's value is a view of, if it is one.
    """

    __slots__ = (
        "__weakref__",
        "args",
        "buffer",
        "dtype",
        "edges",
        "guards",
        "name",
        "params",
        "primitive",
        "requires_grad",
        "shape",
    )

    primitive: Primitive | None
    args: tuple[Any, ...]
    params: dict[str, Any]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    edges: tuple[Edge, ...]
    guards: tuple[tuple[Buffer, int], ...]
    buffer: Buffer | None
    requires_grad: bool
    name: str | None

    @property
    def op(self) -> str | None:
        """The operation's name; `None` for a leaf."""
        return None if self.primitive is None else self.primitive.name

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The nodes this one was computed from, in argument order; constants are left out."""
        return tuple([arg for arg in self.args if isinstance(arg, Node)])

    def become(self, other: Node) -> None:
        """Take over `other`'s operation: whoever reads this node now gets its value the other way.

        Shape, dtype and name stay. This is the one step that a rewrite of the graph is made of.
        """
        for slot in ("primitive", "args", "params", "edges", "guards", "buffer"):
            setattr(self, slot, getattr(other, slot))

    def check_guards(self) -> None:
        """Raise `RuntimeError` if a value that a derivative would read was overwritten by `assign`."""
        for buffer, version in self.guards:
            if buffer.version != version:
                names = [repr(node.name) for node in self.inputs if node.buffer is buffer and node.name]
                raise RuntimeError(
                    f"{names[0] if names else 'an input'} of {self.op!r} was overwritten by assign() after "
                    f"the forward pass read it (version {version} then, {buffer.version} now): "
                    "run the forward pass again before asking for its gradient"
                )

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<Node {self.op or 'leaf'}{name} shape={self.shape} dtype={self.dtype}>"


class Leaf(Node):
    """A value that nothing in the graph computed: it owns its data and its gradient."""

    __slots__ = ("data", "grad")

    def __init__(self, data: Array, requires_grad: bool = False, buffer: Buffer | None = None) -> None:
        self.primitive = None
        self.args = self.edges = self.guards = ()
        self.params = {}
        self.shape = data.shape
        self.dtype = data.dtype
        self.buffer = buffer or Buffer()
        self.requires_grad = requires_grad
        self.name = None
        self.data = data
        self.grad: Array | None = None


def topological_order(outputs: Iterable[Node]) -> list[Node]:
    """Every node below `outputs`, inputs before consumers, in the order in which they were recorded.

    Depth first without recursion, so that a chain of a million nodes is no special case.
    """
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, Iterator[Node]]] = []
    for output in outputs:
        if output in seen:
            continue
        seen.add(output)
        stack.append((output, iter(output.inputs)))
        while stack:
            node, inputs = stack[-1]
            for parent in inputs:
                if parent not in seen:
                    seen.add(parent)
                    stack.append((parent, iter(parent.inputs)))
                    break
            else:
                order.append(node)
                stack.pop()
    return order


class _Mode(threading.local):
    """Whether a recorded training forward may move statistics; per thread."""

    updating = True


mode = _Mode()
paused: set[int] = set()  # the threads that record nothing; to see it empty takes a fifth of a thread-local's time


@contextmanager
def recording(on: bool) -> Iterator[None]:
    """Record operations inside the block, or don't, in this thread; the former state is restored at its end."""
    thread = threading.get_ident()
    before = thread not in paused
    (paused.discard if on else paused.add)(thread)
    try:
        yield
    finally:
        (paused.discard if before else paused.add)(thread)


def no_grad() -> AbstractContextManager[None]:
    """Record nothing inside the block, in this thread; the former state is restored at its end.

    Works as a decorator too. What is computed inside is a leaf without gradient.

    >>> import autograd_bn as ag
    >>> x = ag.tensor([1.0, 2.0], requires_grad=True)
    >>> with ag.no_grad():
    ...     (x * 2).requires_grad
    False
    """
    return recording(False)


@contextmanager
def no_update() -> Iterator[None]:
    """A forward pass inside the block, in this thread, leaves running statistics as they are."""
    before, mode.updating = mode.updating, False
    try:
        yield
    finally:
        mode.updating = before
