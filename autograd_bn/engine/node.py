"""The graph: nodes, what each saves for its derivative, and their order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from copy import deepcopy
from functools import wraps
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import ref

import numpy as np

if TYPE_CHECKING:
    from .primitive import Primitive

P = ParamSpec("P")
R = TypeVar("R")
Array = np.ndarray[Any, np.dtype[Any]]


class Clock:
    """Time, counted in assignments to any memory: `now` of them have been made, each at its time."""

    __slots__ = ("counting", "now", "times")

    def __init__(self) -> None:
        self.counting = threading.Lock()
        self.now = 0
        self.times: dict[int, int] = {}  # by the id of the memory's owner, which lives as long as a buffer asks for it


clock = Clock()


class Buffer:
    """The memory that a leaf's data lie in, whoever else has views of it, and when it was last assigned to."""

    __slots__ = ("owner",)

    def __init__(self, data: Array) -> None:
        self.owner = owner_of(data)

    @property
    def written(self) -> int:
        return clock.times.get(id(self.owner), 0)

    def touch(self) -> None:
        """Say that the memory was written to."""
        with clock.counting:
            clock.now += 1
            clock.times[id(self.owner)] = clock.now

    def __deepcopy__(self, memo: dict[int, Any]) -> Buffer:
        twin = Buffer(deepcopy(self.owner, memo))
        clock.times[id(twin.owner)] = self.written
        return twin


def owner_of(array: Any) -> Any:
    """The array whose memory an array is a view of."""
    base = getattr(array, "base", None)
    while base is not None and isinstance(base, np.ndarray):
        array, base = base, base.base
    return array


class Node:
    """One recorded operation: where its inputs came from and what the derivative reads.

    `args` are the positional operands in order, each a `Node` or a constant; `params` is the keyword metadata.
    `wanted` are the positions of the inputs that a gradient may flow to. `saved` has a place for each operand, for the
    result and for what the forward pass `kept`, with None in those that no rule reads; it is () where all would be
    None. `read` is the time, as `clock` counts it, at which the operands were read. `buffer` is the leaf's memory that
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
        "views",
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
    ) -> None:
        self.primitive = primitive
        self.args = args
        self.params = params
        self.shape: tuple[int, ...] = out.shape
        self.dtype: np.dtype[Any] = out.dtype
        self.wanted = wanted
        self.saved = saved
        self.read = read
        self.buffer: Buffer | None = None
        self.requires_grad = wanted != ()
        self.name: str | None = None
        self.views: set[ref[Any]] | None = None  # the tensors recorded as views of this memory, if any

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

    def take_over(self, other: Node) -> None:
        """Compute what `other` computes, in its way: whoever reads this node now gets its value the other way.

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

    def __deepcopy__(self, memo: dict[int, Any]) -> Node:
        for node in topological_order([self]):  # inputs first, so that no copy calls for another
            if id(node) not in memo:
                memo[id(node)] = twin = object.__new__(type(node))
                for slot in (slot for kind in type(node).__mro__[:-1] for slot in getattr(kind, "__slots__", ())):
                    if slot not in ("__weakref__", "primitive", "params", "views"):
                        setattr(twin, slot, deepcopy(getattr(node, slot), memo))
                twin.primitive, twin.params, twin.views = node.primitive, node.params, None
        return memo[id(self)]  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<Node {self.op or 'leaf'}{name} shape={self.shape} dtype={self.dtype}>"


class Leaf(Node):
    """A value that nothing in the graph computed: it owns its data and its gradient."""

    __slots__ = ("data", "grad")

    def __init__(self, data: Array, requires_grad: bool = False, name: str | None = None, grad: Any = None) -> None:
        super().__init__(None, (), {}, data)
        self.buffer = Buffer(data)
        self.requires_grad = requires_grad
        self.data = data
        self.name = name
        self.grad: Array | None = grad

    def __reduce__(self) -> Any:
        return Leaf, (self.data, self.requires_grad, self.name, self.grad)


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
            args = node.args
            if not args:
                order.append(node)
                continue
            stack += (node, None)  # again when its inputs are done
            for position in reversed(node.wanted if receivers else range(len(args))):
                arg = args[position]
                if isinstance(arg, Node):
                    stack.append(arg)
    return order


class _Mode:
    """What a forward pass leaves behind, per thread and asynchronous task: a record of it, moved running statistics."""

    recording = ContextVar("recording", default=True)
    updating = ContextVar("updating", default=True)
    # What a comparison, or another result without gradient, reads of a tensor.
    watcher: ContextVar[Callable[..., Any] | None] = ContextVar("watcher", default=None)
    # What setting elements of a tensor does, which raises without it.
    setter: ContextVar[Callable[[Any, Any, Any], Any] | None] = ContextVar("setter", default=None)


mode = _Mode()


class _Set:
    """A switch of `mode`, set in a block or in the calls of a function, and then what it was."""

    def __init__(self, switch: ContextVar[Any], on: Any) -> None:
        self.switch, self.on = switch, on
        self.before: list[Any] = []

    def __enter__(self) -> None:
        self.before.append(self.switch.get())
        self.switch.set(self.on)

    def __exit__(self, *error: object) -> None:
        self.switch.set(self.before.pop())

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        code = getattr(function, "__code__", None)
        if code is not None and code.co_flags & (CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR):
            raise TypeError(
                f"{code.co_name} is a generator or a coroutine, whose body runs after the call: write the block "
                "`with ag.no_grad():` inside it, without a yield"
            )

        @wraps(function)
        def inside(*args: P.args, **options: P.kwargs) -> R:
            with _Set(self.switch, self.on):
                return function(*args, **options)

        return inside


def recording(on: bool) -> _Set:
    """Record operations inside the block, or don't, in this thread and task; afterwards as before."""
    return _Set(mode.recording, on)


def no_grad() -> _Set:
    """Record nothing inside the block, in this thread and task; the former state is restored at its end.

    Works as a decorator too, but of a generator or a coroutine: `TypeError`. What is computed inside is a leaf without
    gradient.

    >>> import autograd_bn as ag
    >>> x = ag.tensor([1.0, 2.0], requires_grad=True)
    >>> with ag.no_grad():
    ...     (x * 2).requires_grad
    False
    """
    return _Set(mode.recording, False)


def watching(watcher: Callable[..., Any]) -> _Set:
    """Inside the block, in this thread, what is computed without gradient is computed of `watcher(tensor)`."""
    return _Set(mode.watcher, watcher)


def setting(setter: Callable[[Any, Any, Any], Any]) -> _Set:
    """Inside the block, in this thread, `t[index] = value` makes `t` the tensor `setter(t, index, value)`."""
    return _Set(mode.setter, setter)


def no_update() -> _Set:
    """A forward pass inside the block, in this thread, leaves running statistics as they are."""
    return _Set(mode.updating, False)
