"""The graph: nodes, what each saves for its derivative, and their order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .primitive import Primitive

Array = np.ndarray[Any, np.dtype[Any]]


class Buffer:
    """The memory of a leaf, shared by every view of it, and when it was last assigned to.

    Time is counted in assignments, to any leaf: `now` of them have been made.
    """

    __slots__ = ("written",)
    now = 0
    _counting = threading.Lock()

    def __init__(self) -> None:
        self.written = 0

    def touch(self) -> None:
        """Say that the memory was written to."""
        with Buffer._counting:
            Buffer.now += 1
            self.written = Buffer.now


class Node:
    """One recorded operation: where its inputs came from and what the derivative reads.

    `args` are the positional operands in order, each a `Node` or a constant; `params` is the keyword metadata.
    `wanted` are the positions of the inputs that a gradient may flow to. `saved` has a place for each operand, for the
    result and for what the forward pass `kept`, with None in those that no rule reads; it is () where all would be
    None. `read` is the time, as `Buffer` counts it, at which the operands were read. `buffer` is the leaf's memory that
    this node's value is a view of, if it is one.

    The collector visits a node and its `args`, and nothing else that a recorded number makes.
    """

    __slots__ = (
        "__weakref__",
        "args",
        "buffer",
        "dtype",
        "name",
        "params",
        "primitive",
        "read",
        "requires_grad",
        "saved",
        "shape",
        "wanted",
    )

    def __init__(
        self,
        primitive: Primitive | None,
        args: tuple[Any, ...],
        params: dict[str, Any],
        out: Any,
        wanted: tuple[int, ...] = (),
        saved: tuple[Any, ...] = (),
        read: int = 0,
        buffer: Buffer | None = None,
    ) -> None:
        self.primitive = primitive
        self.args = args
        self.params = params
        self.shape: tuple[int, ...] = out.shape
        self.dtype: np.dtype[Any] = out.dtype
        self.wanted = wanted
        self.saved = saved
        self.read = read
        self.buffer = buffer
        self.requires_grad = wanted != ()
        self.name: str | None = None

    @property
    def op(self) -> str | None:
        """The operation's name; `None` for a leaf."""
        return None if self.primitive is None else self.primitive.name

    @property
    def own_op(self) -> str | None:
        """The operation's name if it is the package's own; `None` for anybody else's, whatever its name, and a leaf."""
        return self.primitive.name if self.primitive is not None and self.primitive.own else None

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The nodes this one was computed from, in argument order; constants are left out."""
        return tuple([arg for arg in self.args if isinstance(arg, Node)])

    @property
    def receivers(self) -> tuple[Node, ...]:
        """Those of the inputs that a gradient may flow to."""
        return tuple([self.args[position] for position in self.wanted])

    def become(self, other: Node) -> None:
        """Take over `other`'s operation: whoever reads this node now gets its value the other way.

        Shape, dtype and name stay. This is the one step that a rewrite of the graph is made of.
        """
        for slot in ("primitive", "args", "params", "wanted", "saved", "read", "buffer"):
            setattr(self, slot, getattr(other, slot))

    def check_unchanged(self, *, all_operands: bool = False) -> None:
        """Raise `RuntimeError` if an operand that was saved (or any of them) was overwritten by `assign` since."""
        for position, arg in enumerate(self.args):
            read = all_operands or (self.saved and (self.saved[position] is not None or self.buffer is not None))
            if read and isinstance(arg, Node) and arg.buffer is not None and arg.buffer.written > self.read:
                raise RuntimeError(
                    f"{repr(arg.name) if arg.name else 'an input'} of {self.op!r} was overwritten by assign() "
                    "after the forward pass read it: run the forward pass again"
                )

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<Node {self.op or 'leaf'}{name} shape={self.shape} dtype={self.dtype}>"


class Leaf(Node):
    """A value that nothing in the graph computed: it owns its data and its gradient."""

    __slots__ = ("data", "grad")

    def __init__(self, data: Array, requires_grad: bool = False, buffer: Buffer | None = None) -> None:
        super().__init__(None, (), {}, data, buffer=buffer or Buffer())
        self.requires_grad = requires_grad
        self.data = data
        self.grad: Array | None = None


def topological_order(outputs: Iterable[Node], *, receivers: bool = False) -> list[Node]:
    """Every node below `outputs`, inputs before consumers, in the order in which they were recorded.

    With `receivers` only those that a gradient may flow to. Depth first without recursion, so that a chain of a million
    nodes is no special case.
    """
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[Any] = [*outputs][::-1]
    while stack:
        node = stack.pop()
        if node is None:
            order.append(stack.pop())
        elif node not in seen:
            seen.add(node)
            stack += (node, None)  # again when its inputs are done
            for position in reversed(node.wanted if receivers else range(len(node.args))):
                arg = node.args[position]
                if isinstance(arg, Node):
                    stack.append(arg)
    return order


class _Mode(threading.local):
    """What a forward pass leaves behind, per thread: a record of its operations, moved running statistics."""

    recording = True
    updating = True
    watcher: Callable[[Any], Any] | None = (
        None  # what a comparison or another result without gradient reads of a tensor
    )


mode = _Mode()


@contextmanager
def _set(switch: str, on: Any) -> Iterator[None]:
    before = getattr(mode, switch)
    setattr(mode, switch, on)
    try:
        yield
    finally:
        setattr(mode, switch, before)


def recording(on: bool) -> AbstractContextManager[None]:
    """Record operations inside the block, or don't, in this thread; the former state is restored at its end."""
    return _set("recording", on)


def no_grad() -> AbstractContextManager[None]:
    """Record nothing inside the block, in this thread; the former state is restored at its end.

    Works as a decorator too. What is computed inside is a leaf without gradient.

    >>> import autograd_bn as ag
    >>> x = ag.tensor([1.0, 2.0], requires_grad=True)
    >>> with ag.no_grad():
    ...     (x * 2).requires_grad
    False
    """
    return _set("recording", False)


def watching(watcher: Callable[[Any], Any]) -> AbstractContextManager[None]:
    """Inside the block, in this thread, what is computed without gradient is computed of `watcher(tensor)`."""
    return _set("watcher", watcher)


def no_update() -> AbstractContextManager[None]:
    """A forward pass inside the block, in this thread, leaves running statistics as they are."""
    return _set("updating", False)
