"""`Tensor`: a value and its place in the graph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from numbers import Rational
from opcode import opmap
from typing import Any, final

import numpy as np

from .node import Array, Buffer, Leaf, Node, mode


def recorded(self: Any, *args: Any, **options: Any) -> Tensor:
    """The signature of a method that records a node; a placeholder for it in the class."""
    raise NotImplementedError


def computed(self: Any, *args: Any, **options: Any) -> Any:
    """The signature of a method that computes on the values alone; a placeholder for it in the class."""
    raise NotImplementedError


@final
class Tensor:
    """An array that remembers how it was computed.

    Made by `tensor` and `as_tensor`, or by an operation on other tensors. It has NumPy's operators and
    methods (`sum`, `mean`, `var`, `max`, `min`, `reshape`, `transpose`, `T`, indexing, ...) and follows
    NumPy's promotion, with Python scalars weak.

    >>> import autograd_bn as ag
    >>> w = ag.tensor([1.0, -2.0], requires_grad=True, name="w")
    >>> (w * w).sum().backward()
    >>> w.grad
    array([ 2., -4.])
    """

    __slots__ = ("__weakref__", "_value", "node")

    def __init__(self, value: Any, node: Node) -> None:
        self._value = value
        self.node = node

    @property
    def data(self) -> Array:
        """The values, shared: writable in a leaf, read-only in a computed tensor."""
        value = self._value
        if not isinstance(self.node, Leaf):
            value = np.asarray(value)
            value.flags.writeable = False
        return value  # type: ignore[no-any-return]

    @data.setter
    def data(self, value: Any) -> None:
        if value is self._value and isinstance(self.node, Leaf):  # t.data -= step ends here
            self.node.buffer.touch()  # type: ignore[union-attr]
        else:
            self.assign(value)

    @property
    def grad(self) -> Array | None:
        """The gradient that `backward` has added up so far, or `None`."""
        return self.node.grad if isinstance(self.node, Leaf) else None

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is not None:
            value = np.array(values_of(value), dtype=self.dtype)
            if value.shape != self.shape:
                raise ValueError(f"grad has shape {value.shape}, expected the tensor's shape {self.shape}")
        self._leaf("grad can be set").grad = value

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient may flow to this tensor."""
        return self.node.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        leaf = self._leaf("requires_grad can be set")
        if value:
            check_differentiable(leaf.data)
        leaf.requires_grad = bool(value)

    @property
    def name(self) -> str | None:
        """A name for pictures, tables and error messages."""
        return self.node.name

    @name.setter
    def name(self, value: str | None) -> None:
        self.node.name = value

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return self.node.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the elements."""
        return self.node.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.node.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.size(self._value))

    @property
    def T(self) -> Tensor:
        """The tensor with its axes reversed."""
        return self.transpose()

    def item(self) -> Any:
        """The only element, as a Python scalar; `ValueError` if there are more."""
        return np.asarray(self._value).item()

    def numpy(self) -> Array:
        """The values as an array, shared; the same as `data`."""
        return self.data

    def detach(self) -> Tensor:
        """A leaf with the same memory and no history; no gradient flows through it."""
        return Tensor(self.data, Leaf(self.data, buffer=self.node.buffer))

    def zero_grad(self) -> None:
        """Forget the gradient: `grad` is `None` again."""
        self.grad = None

    def assign(self, value: Any) -> None:
        """Overwrite a leaf's values in place, keeping its memory, shape and dtype.

        The assignment is counted: a backward pass that would read an overwritten value raises
        `RuntimeError` in place of a wrong gradient. `ValueError` where shapes differ, `TypeError` where
        the values don't fit the dtype, `RuntimeError` on a computed tensor or a view of one.
        """
        leaf = self._leaf("assign() works")
        array = values_of(value)
        if array.shape != self.shape:
            raise ValueError(f"value has shape {array.shape}, expected the tensor's shape {self.shape}")
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise TypeError(f"value has dtype {array.dtype}, which does not fit the tensor's {self.dtype}")
        if not leaf.data.flags.writeable:
            raise RuntimeError(
                "assign() needs memory of the tensor's own, and this one's is read-only: copy() it first"
            )
        np.copyto(leaf.data, array, casting="same_kind")
        leaf.buffer.touch()  # type: ignore[union-attr]

    def _leaf(self, what: str) -> Leaf:
        if not isinstance(self.node, Leaf):
            raise RuntimeError(f"{what} on leaf tensors only, and this one was computed by {self.node.op!r}")
        return self.node

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a tensor without axes")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        for i in range(len(self)):
            yield self[i]

    def __float__(self) -> float:
        self._check_not_stored()
        return float(self.item())

    def __int__(self) -> int:
        self._check_not_stored()
        return int(self.item())

    def _check_not_stored(self) -> None:
        """Raise where it is `array[i] = t` that asks for a number, as NumPy does for an element."""
        caller = sys._getframe(2)
        if not isinstance(self.node, Leaf) and caller.f_code.co_code[caller.f_lasti] == opmap["STORE_SUBSCR"]:
            self._check_uncut()

    def __bool__(self) -> bool:
        return bool(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        vectorized = dtype is not None and np.dtype(dtype).hasobject and not self.dtype.hasobject
        if vectorized or not isinstance(self.node, Leaf):
            self._check_uncut()
        return np.array(self.data, dtype=dtype, copy=copy)

    def _check_uncut(self) -> None:
        """Raise where NumPy would take the values of a tensor out of the graph."""
        if mode.recording and self.requires_grad:
            what = f"what {self.node.op!r} computed" if self.node.op else "a leaf that requires a gradient"
            raise RuntimeError(
                f"NumPy would make an array of {what}, which cuts the graph: join tensors with stack() or "
                "concatenate(), choose among their elements with np.where; t.data, t.detach(), float(t) cut on purpose"
            )

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __repr__(self) -> str:
        name = f", name={self.name!r}" if self.name else ""
        op = f", op={self.node.op!r}" if self.node.op else ""
        grad = ", requires_grad=True" if self.requires_grad else ""
        value = np.array2string(np.asarray(self._value), separator=", ", prefix="tensor(")
        return f"tensor({value}, shape={self.shape}, dtype={self.dtype}{op}{name}{grad})"

    # Bound in `protocols`, each to the operation of its name.
    backward: Callable[..., None]
    sum = mean = var = std = max = min = prod = cumsum = trace = dot = repeat = clip = exp = log = recorded
    reshape = view = transpose = swapaxes = ravel = flatten = squeeze = copy = __getitem__ = recorded
    __add__ = __sub__ = __mul__ = __truediv__ = __pow__ = __matmul__ = recorded
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rpow__ = __rmatmul__ = recorded
    __neg__ = __pos__ = __abs__ = recorded
    argmax = argmin = round = astype = __lt__ = __le__ = __gt__ = __ge__ = computed


def values_of(given: Any) -> Array:
    """The values of a tensor, or anything else as an array."""
    return given.data if isinstance(given, Tensor) else array_of(given, "a value")


def exact(values: Any, what: str) -> Array:
    """Objects as an array in which every integer is a `Fraction`, so that no division of two can round.

    `TypeError` for a float among them: an exact answer was meant.
    """

    def rational(element: Any) -> Any:
        if isinstance(element, float):
            raise TypeError(f"{what} gives the float {element!r} among exact numbers: use Fractions all through")
        return Fraction(element) if isinstance(element, int) else element

    out = np.empty(np.shape(values), dtype=object)
    out[...] = np.frompyfunc(rational, 1, 1)(values)
    return out


def array_of(data: Any, what: str, dtype: Any = None) -> Array:
    """`data` as an array; `TypeError` for tensors in a list."""
    if isinstance(data, (list, tuple)) and any(isinstance(item, Tensor) for item in _flat(data)):
        raise TypeError(
            f"{what} is a {type(data).__name__} of tensors, which would cut the graph: join them with "
            "stack(), or take the values of each with detach()"
        )
    return np.asarray(data, dtype=dtype)


def checked(data: Any, dtype: Any = None, what: str = "data") -> Array:
    """`data` as an array of real numbers; `TypeError` for tensors in a list, for text, complex and other elements."""
    array = array_of(data, what, dtype)
    if array.dtype.kind not in "fiubO":
        raise TypeError(f"{what} has dtype {array.dtype}, expected real numbers")
    return array


def _flat(items: Any) -> Iterator[Any]:
    for item in items:
        if isinstance(item, (list, tuple)):
            yield from _flat(item)
        else:
            yield item


def check_differentiable(data: Array) -> None:
    """Raise `TypeError` unless `data` are floats or exact rational numbers."""
    if data.dtype.kind == "f":
        return
    if data.dtype == object:
        for element in data.flat:
            if not isinstance(element, Rational):
                raise TypeError(
                    "requires_grad=True on an object array needs exact rational numbers (int, Fraction), "
                    f"got an element of type {type(element).__name__}"
                )
        return
    raise TypeError(
        f"requires_grad=True needs floating-point data or exact rationals, got dtype {data.dtype}; "
        "pass dtype=float to convert"
    )


def tensor(data: Any, *, requires_grad: bool = False, dtype: Any = None, name: str | None = None) -> Tensor:
    """A new leaf tensor that holds a copy of `data`.

    `data` is anything `numpy.array` takes; `dtype` converts it. With `requires_grad=True` the data must be
    floats of any width or an object array of exact rationals: anything else raises `TypeError`.

    >>> import autograd_bn as ag
    >>> ag.tensor([1, 2], dtype="float32", requires_grad=True)
    tensor([1., 2.], shape=(2,), dtype=float32, requires_grad=True)
    """
    if isinstance(data, Tensor):
        raise TypeError(
            "data is a tensor, and a copy would cut the graph: use copy(), or detach() to cut it on purpose"
        )
    array = np.array(checked(data, dtype))
    if requires_grad:
        check_differentiable(array)
        array = exact(array, "data") if array.dtype == object else array
    return _leaf(array, requires_grad, name, None)


def as_tensor(array: Any, *, requires_grad: bool = False, dtype: Any = None, name: str | None = None) -> Tensor:
    """A leaf tensor that shares the array's memory where its dtype allows; a tensor comes back as it is.

    Writing to the array by hand isn't counted as `Tensor.assign` is: do it between passes only.

    >>> import autograd_bn as ag
    >>> array = np.zeros(2)
    >>> ag.as_tensor(array).assign([1.0, 2.0])
    >>> array
    array([1., 2.])
    """
    if isinstance(array, Tensor) and not requires_grad and dtype is None and name is None:
        return array
    data = checked(array, dtype, "array")
    shared = isinstance(array, Tensor) and np.may_share_memory(data, array.data)
    return _leaf(data, requires_grad, name, array.node.buffer if shared else None)


def _leaf(data: Array, requires_grad: bool, name: str | None, buffer: Buffer | None) -> Tensor:
    if requires_grad:
        check_differentiable(data)
    leaf = Leaf(data, bool(requires_grad), buffer)
    leaf.name = name
    return Tensor(data, leaf)
