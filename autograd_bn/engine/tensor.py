"""`Tensor`: a value and its place in the graph."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from numbers import Number, Rational
from typing import Any, final

import numpy as np

from .. import engine
from . import operations as ops, words
from .callers import alone, converts_unasked, takes_unasked
from .node import Array, Leaf, Node, mode

Axis = int | Sequence[int] | None


def _changing(operation: str) -> Callable[[Any, Any], Any]:
    """The operator `t += other`, of an operation."""

    def change(self: Tensor, other: Any) -> Tensor:
        holders = sys.getrefcount(self)  # here: how many of them a further call adds is the interpreter's choice
        return self._in_place(getattr(ops, operation), other, holders)

    return change


@final
class Tensor(np.lib.mixins.NDArrayOperatorsMixin):
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

    def __init__(self, value: Any, node: Node | None = None) -> None:
        if node is None:
            raise TypeError("a tensor is made by ag.tensor(data, requires_grad=...), or by ag.as_tensor(array)")
        self._value = value
        self.node = node

    @property
    def data(self) -> Array:
        """The values, shared: writable in a leaf, read-only in a computed tensor."""
        if isinstance(self.node, Leaf):
            return self._value
        return unwritable(np.asarray(self._value))

    @data.setter
    def data(self, value: Any) -> None:
        if value is self._value and isinstance(self.node, Leaf):  # t.data -= step ends here
            self.node.buffer.touch()  # type: ignore[union-attr]
        else:
            self.assign(value)

    @property
    def grad(self) -> Array | None:
        """The gradient that `backward` has added up so far, or `None`; only leaves get one."""
        if isinstance(self.node, Leaf):
            return self.node.grad
        if self.requires_grad:
            warnings.warn(
                f"the .grad of a tensor computed by {self.node.op!r} is always None: backward() fills that of leaves, "
                "and ag.grad(output, t) gives the gradient of any other tensor",
                stacklevel=2,
            )
        return None

    @grad.setter
    def grad(self, value: Any) -> None:
        if value is not None:
            value = np.array(checked(value, None, "grad"), dtype=self.dtype)
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
        return plain(self).item()

    def numpy(self) -> Array:
        """The values as an array, shared; the same as `data`."""
        return self.data

    def tolist(self) -> Any:
        """The values as Python numbers in lists."""
        return plain(self).tolist()

    def detach(self) -> Tensor:
        """A leaf with the same memory and no history; no gradient flows through it."""
        data = self.data
        return Tensor(data, Leaf(data))

    def zero_grad(self) -> None:
        """Forget the gradient: `grad` is `None` again."""
        self.grad = None

    def assign(self, value: Any) -> None:
        """Overwrite a leaf's values in place, keeping its memory, shape and dtype.

        The assignment is counted: a backward pass that would read an overwritten value raises
        `RuntimeError` in place of a wrong gradient. `ValueError` where shapes differ or a number is too large for
        the dtype, `TypeError` for a dtype that doesn't fit, `RuntimeError` on a computed tensor or a view of one.
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
        np.copyto(leaf.data, held(array, self.dtype, "value"))
        leaf.buffer.touch()  # type: ignore[union-attr]

    def backward(self, gradient: Any = None) -> None:
        """Add the derivative of this tensor into `.grad` of every leaf that requires it.

        `gradient` weighs the elements of the tensor and has its shape; a tensor of one element may leave it out.
        The graph stays as it was, so that a second call adds the same again. If anything raises, no `.grad` has
        changed. `ValueError` for a missing gradient or a wrong shape, `RuntimeError` if nothing requires a
        gradient or a value was overwritten by `assign`.

        >>> import autograd_bn as ag
        >>> x = ag.tensor([1.0, 2.0], requires_grad=True)
        >>> (x * x).backward([1.0, 10.0])
        >>> x.grad
        array([ 2., 40.])
        """
        engine.backward.backward(self, gradient)

    def _leaf(self, what: str) -> Leaf:
        if not isinstance(self.node, Leaf):
            raise RuntimeError(f"{what} on leaf tensors only, and this one was computed by {self.node.op!r}")
        return self.node

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a tensor without axes")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        self._check_taken()
        return float(self.item())

    def __int__(self) -> int:
        self._check_taken()
        return int(self.item())

    def _check_taken(self) -> None:
        """Raise where it is `array[i] = t` or `math.exp(t)` that asks for a number."""
        if takes_unasked(sys._getframe(2)):
            self._warn_of_a_cut() if isinstance(self.node, Leaf) else self._check_uncut()

    def __bool__(self) -> bool:
        return bool(plain(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        vectorized = dtype is not None and np.dtype(dtype).hasobject and not self.dtype.hasobject
        if vectorized or not isinstance(self.node, Leaf):
            self._check_uncut()
        elif converts_unasked(sys._getframe(1), copy):
            self._warn_of_a_cut()
        return np.array(self.data, dtype=dtype, copy=copy)

    def _warn_of_a_cut(self) -> None:
        if mode.recording.get() and self.requires_grad:
            warnings.warn(
                "NumPy made an array, or math a number, of a leaf that requires a gradient, and no gradient will flow "
                "through it: write X @ t or np.dot(X, t) for X.dot(t), stack([t, t]) for [t, t], np.exp(t) for "
                "math.exp(t), and t.data to cut on purpose",
                stacklevel=3,
            )

    def _check_uncut(self) -> None:
        """Raise where NumPy would take the values of a tensor out of the graph."""
        if mode.recording.get() and self.requires_grad:
            what = f"what {self.node.op!r} computed" if self.node.op else "a leaf that requires a gradient"
            raise RuntimeError(
                f"NumPy would make an array, or math a number, of {what}, which cuts the graph: join tensors with "
                "stack() or concatenate(), choose among their elements with np.where, write np.exp(t) for math.exp(t); "
                "t.data, t.detach(), float(t) cut on purpose"
            )

    def __format__(self, spec: str) -> str:
        return format(self.data.item(), spec) if spec else repr(self)

    def __repr__(self) -> str:
        name = f", name={self.name!r}" if self.name else ""
        op = f", op={self.node.op!r}" if self.node.op else ""
        grad = ", requires_grad=True" if self.requires_grad else ""
        value = np.array2string(np.asarray(self._value), separator=", ", prefix="tensor(")
        return f"tensor({value}, shape={self.shape}, dtype={self.dtype}{op}{name}{grad})"

    # NumPy's protocols

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        return engine.protocols.call_ufunc(ufunc, method, inputs, options)

    def __array_function__(self, func: Any, types: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return engine.protocols.call(func, args, options)

    # Operators. Those that are not here are NumPy's functions, by `__array_ufunc__`.

    def __add__(self, other: Any) -> Tensor:
        return ops.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return ops.add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return ops.subtract(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return ops.subtract(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return ops.multiply(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return ops.multiply(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return ops.divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return ops.divide(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return ops.power(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return ops.power(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return ops.matmul(other, self)

    __iadd__ = _changing("add")
    __isub__ = _changing("subtract")
    __imul__ = _changing("multiply")
    __itruediv__ = _changing("divide")
    __ipow__ = _changing("power")
    __imatmul__ = _changing("matmul")
    __imod__ = _changing("remainder")

    def __neg__(self) -> Tensor:
        return ops.negative(self)

    def __eq__(self, other: Any) -> Any:  # of what is no number, too
        return plain(self) == plain(other)

    def __ne__(self, other: Any) -> Any:
        return plain(self) != plain(other)

    __hash__ = object.__hash__

    def __getitem__(self, index: Any) -> Tensor:
        return ops.getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        setter = mode.setter.get()
        if setter is not None:
            made = setter(self, index, value)
            self._value, self.node = made._value, made.node
            return
        raise TypeError(
            "a tensor's elements can't be set: choose among elements with np.where(mask, a, b), or join tensors with "
            "stack() or concatenate(); a leaf's values are set by assign()"
        )

    def _in_place(self, operation: Callable[..., Any], other: Any, holders: int) -> Tensor:
        if mode.setter.get() is not None:
            return operation(self, other)
        if isinstance(self.node, Leaf):
            if not mode.recording.get():
                self.assign(operation(self, other))
                return self
            if self.requires_grad:
                raise RuntimeError(
                    "a leaf that requires a gradient can't be changed in place while operations are recorded: "
                    "write t = t - step for a new tensor, which gets no .grad, or change it inside "
                    "`with ag.no_grad():`, as training does"
                )
        primitive = self.node.primitive
        viewing = primitive is not None and primitive.view and getattr(self._value, "base", None) is not None
        viewed = self.node.views is not None and any(view() is not self for view in self.node.views)
        if viewing or viewed or holders > alone(self, sys._getframe(2)):
            raise RuntimeError(
                "t -= step makes a new tensor for the name t, but something else holds this one, a view of it or what "
                "it is a view of, and would keep the old values: write t = t - step for a new tensor, and return it "
                "where a caller is to see it, or change a leaf inside `with ag.no_grad():`"
            )
        return operation(self, other)

    # Methods: NumPy's, and those of PyTorch's that mean the same

    def sum(self, axis: Axis = None, keepdims: bool = False, **options: Any) -> Tensor:
        """The sum over `axis`."""
        return ops.sum(self, axis, keepdims, **options)

    def mean(self, axis: Axis = None, keepdims: bool = False, **options: Any) -> Tensor:
        """The mean over `axis`."""
        return ops.mean(self, axis, keepdims, **options)

    def var(self, axis: Axis = None, ddof: int = 0, keepdims: bool = False, **options: Any) -> Tensor:
        """The variance over `axis`."""
        return ops.var(self, axis, ddof, keepdims, **options)

    def max(self, axis: Axis = None, keepdims: bool = False, **options: Any) -> Tensor:
        """The largest element over `axis`."""
        return ops.max(self, axis, keepdims, **options)

    def min(self, axis: Axis = None, keepdims: bool = False, **options: Any) -> Tensor:
        """The smallest element over `axis`."""
        return ops.min(self, axis, keepdims, **options)

    def reshape(self, *shape: Any, **options: Any) -> Tensor:
        """The same elements in another shape, one sequence or spelled out."""
        return ops.reshape(self, _one(shape), **options)

    view = reshape

    def transpose(self, *axes: Any) -> Tensor:
        """The tensor with its axes in another order, reversed by default."""
        return ops.transpose(self, _one(axes) if axes else None)

    def copy(self) -> Tensor:
        """A copy, recorded."""
        return ops.copy(self)

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """The tensor in another float type, recorded; in any other type a plain array. Copied in any case."""
        return ops.astype(self, dtype)

    def __getattr__(self, name: str) -> Any:
        # Every other method is the operation of its name, as `prod`, `clip` and `relu`.
        if (operation := words.METHODS.get(name)) is None:
            raise AttributeError(words.missing(f"tensors have no {name!r}", name))
        return partial(getattr(ops, operation, None) or getattr(np, operation), self)

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *words.METHODS]


def unwritable(value: Any) -> Any:
    """A view of an array through which nothing can be written; anything else as it is."""
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
    return value


def values_of(data: Any) -> Array:
    """The values of a tensor, or anything else as an array."""
    return data.data if isinstance(data, Tensor) else array_of(data, "a value")


def plain(operand: Any) -> Any:
    """What a result without gradient is computed of: a tensor's values, and anything else as it is."""
    if not isinstance(operand, Tensor):
        return operand
    watcher = mode.watcher.get()
    return watcher(operand) if watcher else operand.data


def exact(values: Any, what: str) -> Array:
    """Objects as an array in which every integer is a `Fraction`, so that no division of two can round.

    `TypeError` for a float among them: an exact answer was meant.
    """

    def rational(element: Any) -> Any:
        if isinstance(element, float | np.floating):
            raise TypeError(f"{what} gives the float {element!r} among exact numbers: use Fractions all through")
        return Fraction(int(element)) if isinstance(element, int | np.integer) else element

    out = np.empty(np.shape(values), dtype=object)
    out[...] = np.frompyfunc(rational, 1, 1)(values)
    return out


def array_of(data: Any, what: str, dtype: Any = None) -> Array:
    """`data` as an array: what every operand passes. `TypeError` for tensors in a list, masked arrays and matrices."""
    if type(data) is np.ndarray and dtype is None and data.dtype.kind != "O":
        return data
    if holds_tensors(data):
        raise TypeError(
            f"{what} is a {type(data).__name__} of tensors, which would cut the graph: join them with "
            "stack(), or take the values of each with detach()"
        )
    if (kind := type(data).__name__) in ("MaskedArray", "matrix"):
        raise TypeError(f"{what} is a {kind}, which computes in its own way: pass m.filled(value), or np.asarray(m)")
    return np.asarray(data, dtype=dtype)


def held(array: Array, dtype: np.dtype[Any], what: str) -> Array:
    """`array` in another dtype; `ValueError` for a number that is too large for it."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind in "fiu":
        lost = np.isfinite(array) & ~np.isfinite(cast) if dtype.kind == "f" else cast != array
        if lost.any():
            raise ValueError(f"{what} has {array[lost].flat[0]!s}, which is too large for {dtype}")
    return cast


def holds_tensors(data: Any) -> bool:
    """Whether there is a tensor: the thing itself, or in lists, tuples, dicts and arrays of objects."""
    if isinstance(data, np.ndarray):
        return data.dtype.hasobject and holds_tensors(data.ravel().tolist())
    if isinstance(data, dict):
        data = [*data.values()]
    if isinstance(data, (list, tuple)):
        return any(isinstance(item, (Tensor, list, tuple, dict, np.ndarray)) and holds_tensors(item) for item in data)
    return isinstance(data, Tensor)


def checked(data: Any, dtype: Any = None, what: str = "data") -> Array:
    """`data` as an array of real numbers; `TypeError` for tensors in a list, for text, complex and other elements."""
    data = data.data if isinstance(data, Tensor) else data
    array = array_of(data, what, None if isinstance(data, np.ndarray) and data.dtype.kind == "c" else dtype)
    if array.dtype.kind not in "fiubO":
        raise TypeError(f"{what} has dtype {array.dtype}, expected real numbers")
    if array.dtype == object and (others := [type(e).__name__ for e in array.flat if not isinstance(e, Number)]):
        raise TypeError(f"{what} holds a {others[0]}, expected real numbers")
    return array


def _one(items: tuple[Any, ...]) -> Any:
    """A shape or axes, given as one sequence or spelled out."""
    return items[0] if len(items) == 1 else items


def tensors_of(items: Any, what: str) -> list[Tensor]:
    """A tensor, or several, as a list; `TypeError` for anything else."""
    if not isinstance(items, (Tensor, list, tuple)):
        raise TypeError(f"{what} is a {type(items).__name__}, expected a tensor or a list of tensors")
    tensors = [items] if isinstance(items, Tensor) else list(items)
    for i, item in enumerate(tensors):
        if not isinstance(item, Tensor):
            raise TypeError(f"{what}[{i}] is a {type(item).__name__}, expected a tensor")
    return tensors


def check_differentiable(data: Array, what: str = "") -> None:
    """Raise `TypeError`, which begins with `what`, unless `data` are floats or exact rational numbers."""
    if data.dtype == object:
        if others := [type(e).__name__ for e in data.flat if not isinstance(e, Rational)]:
            needs = f"{what}requires_grad=True on objects needs exact rationals (int, Fraction)"
            raise TypeError(f"{needs}, got a {others[0]}")
    elif data.dtype.kind != "f":
        needs = f"{what}requires_grad=True needs floating-point data or exact rationals"
        raise TypeError(f"{needs}, got dtype {data.dtype}; pass dtype=float to convert")


def tensor(data: Any, *, requires_grad: bool = False, dtype: Any = None, name: str | None = None) -> Tensor:
    """A new leaf, a tensor that nothing computed, which holds a copy of `data`.

    `data` is anything `numpy.array` takes; `dtype` converts it, `name` is for pictures and errors. With
    `requires_grad=True` it must be floats of any width or exact rationals (dtype object); else `TypeError`.

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
    return _leaf(array, requires_grad, name)


def as_tensor(array: Any, *, requires_grad: bool = False, dtype: Any = None, name: str | None = None) -> Tensor:
    """A leaf tensor that shares the array's memory where its dtype allows; a tensor comes back as it is.

    Writing to the array by hand isn't counted as `Tensor.assign` is: do it between passes only. See `tensor` too.

    >>> import numpy as np, autograd_bn as ag
    >>> array = np.zeros(2)
    >>> ag.as_tensor(array).assign([1.0, 2.0])
    >>> array
    array([1., 2.])
    """
    if isinstance(array, Tensor):
        if not requires_grad and dtype is None and name is None:
            return array
        if not (requires_grad and isinstance(array.node, Leaf)):
            array._check_uncut()
    return _leaf(checked(array, dtype, "array"), requires_grad, name)


def _leaf(data: Array, requires_grad: bool, name: str | None) -> Tensor:
    if requires_grad:
        check_differentiable(data)
    leaf = Leaf(data, bool(requires_grad))
    leaf.name = name
    return Tensor(data, leaf)
