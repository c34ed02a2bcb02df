"""What the referee judges: NumPy pairs, and PyTorch Functions, custom VJPs of JAX and layer objects as such pairs."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import numpy as np

from ...engine.node import Array
from ..gradcheck import Unjudgeable

_EXPECTED = "expected a torch.autograd.Function, a jax.custom_vjp function or a layer object with forward and backward"
# Where a layer object keeps its parameters and their gradients: in attributes, or in dicts or lists of such names.
_PLACES, _GRADIENT_PLACES = ("params", "parameters"), ("grads", "gradients", "grad")
Slot = tuple[str, Any]  # "" or one of these places, and the name or number there
_GRADIENT_NAMES = ("d{}", "d_{}", "grad_{}", "{}_grad", "grad{}")


@dataclass(frozen=True)
class Pair:
    """A target as `y, cache = forward(*inputs)` and `grads = backward(dy, cache)`, NumPy in and out.

    `source` is the author's backward, and `call(source, dy, cache)` what it returns, or an edited one in its place.
    `truth(inputs, dy)` are the gradients by the framework's own autodiff through the same forward code; it raises where
    that code leaves the framework.
    """

    forward: Callable[..., Any]
    inputs: tuple[Any, ...]
    names: list[str]
    source: Callable[..., Any]
    call: Callable[[Callable[..., Any], Any, Any], Any]
    truth: Callable[[dict[str, Any], Array], dict[str, Array]] | None = None


def adapt(target: Any, inputs: Sequence[Any]) -> Pair:
    """Recognise a target by what it is, with the frameworks that the caller has imported."""
    if isinstance(target, Pair):
        return target
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and isinstance(target, type) and issubclass(target, torch.autograd.Function):
        return _torch_function(torch, target, inputs)
    if jax is not None and isinstance(target, jax.custom_vjp):
        return _jax_function(jax, target, inputs)
    if isinstance(target, type) and hasattr(target, "forward") and hasattr(target, "backward"):
        raise TypeError(f"target is the class {target.__name__}, expected an object of it: {target.__name__}(...)")
    if not (hasattr(target, "forward") and hasattr(target, "backward")):
        raise TypeError(f"target is {getattr(target, '__name__', f'a {type(target).__name__}')}, {_EXPECTED}")
    return _layer(target, inputs)


def is_float(value: Any) -> bool:
    """Whether a value is an array that has a gradient."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _array(value: Any) -> Any:
    """A framework's array as NumPy's, floats in double precision; anything else as it is."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    elif hasattr(value, "__array__") and not isinstance(value, np.generic):
        value = np.asarray(value)
    return value.astype(np.float64, copy=False) if is_float(value) else value


def parameters(function: Callable[..., Any], count: int | None = None, skip: int = 0) -> list[str]:
    """The names of a function's first parameters, or of those that a caller must give."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        listed = [p for p in inspect.signature(function).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):  # a function of C, as of NumPy
        listed = []
    if count is None:
        return [p.name for p in listed if p.default is p.empty]
    names = [p.name for p in listed[skip : skip + count]]
    return names + [f"input{i}" for i in range(len(names), count)]


class NoPair(Exception):
    """A function isn't what its name seemed to say."""


def numpy_pair(forward: Any, backward: Any, inputs: Sequence[Any]) -> Pair:
    """`y, cache = forward(...)` and `backward(dy, cache)`, also with several outputs, which are laid end to end.

    A forward without a cache goes with a backward that takes forward's own arguments, by their names.
    """
    for what, function in (("forward", forward), ("backward", backward)):
        if not callable(function):
            raise TypeError(f"{what} is a {type(function).__name__}, expected a function")
    forward, backward = copy.deepcopy((forward, backward))  # methods write into their object: into one copy of it
    names, owner = parameters(forward, len(inputs)), [backward.__self__] if inspect.ismethod(backward) else []
    signature = inspect.signature(backward)

    @wraps(forward)
    def one(*values: Any) -> Any:
        result = forward(*values)
        several = isinstance(result, tuple | list)
        *outputs, cache = result if several else (result, None)
        rest = [cache]
        if result is not None and not several:
            named, wanted = dict(zip(names, values, strict=True)), parameters(backward)[1:]
            if not set(wanted) <= set(named):
                raise Unjudgeable("forward returned no cache, expected a pair (y, cache)")
            rest = [named[name] for name in wanted]
        try:
            signature.bind(*outputs, *rest)
        except TypeError as error:
            raise Unjudgeable(f"backward takes other arguments than (dy, cache): {error}") from None
        y = np.concatenate([np.reshape(y, -1) for y in outputs]) if len(outputs) > 1 else outputs[0]
        return y, ([np.shape(y) for y in outputs], rest)

    def call(function: Callable[..., Any], dy: Any, cache: Any) -> Any:
        shapes, rest = cache
        given = [dy]
        if len(shapes) > 1:
            ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
            parts = zip(np.split(np.reshape(dy, -1), ends), shapes, strict=True)
            given = [part.reshape(shape) for part, shape in parts]
        return function(*owner, *given, *rest)

    return Pair(one, tuple(inputs), names, getattr(backward, "__func__", inspect.unwrap(backward)), call)


def loss(function: Callable[..., Any], inputs: Sequence[Any]) -> Pair:
    """`loss, dx = function(x, ...)`; several gradients are those of the first inputs, or a dict by their names."""
    first = function(*copy.deepcopy(inputs))
    if not isinstance(first, tuple | list) or len(first) != 2 or np.ndim(first[0]):
        raise NoPair
    count = len(inputs) if isinstance(first[1], dict) else len(first[1]) if isinstance(first[1], tuple) else 1

    @wraps(function)
    def forward(*moved: Any) -> Any:
        return function(*moved, *inputs[count:])[0], moved

    def call(edited: Callable[..., Any], dy: Any, moved: Any) -> Any:
        found = edited(*moved, *inputs[count:])[1]
        if isinstance(found, dict):
            return {name: dy * value for name, value in found.items()}
        return None if found is None else tuple([dy * d for d in (found if count > 1 else (found,))])

    return Pair(forward, tuple(inputs[:count]), parameters(function, count), function, call)


def _torch_function(torch: Any, target: Any, inputs: Sequence[Any]) -> Pair:
    """A `torch.autograd.Function`, with `ctx` in `forward` or with `setup_context`."""
    run, apart = [target.backward], target.setup_context is not torch.autograd.Function.setup_context
    grad = partial(torch.autograd.grad, allow_unused=True, retain_graph=True)
    judged: Any = type(target.__name__, (target,), {"backward": staticmethod(lambda *args: run[0](*args))})

    @contextmanager
    def doubles() -> Iterator[None]:
        """Double precision for what the author's code makes itself."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    def moves(value: Any) -> bool:
        return torch.is_tensor(value) and bool(value.requires_grad)

    def leaves_of(values: Iterable[Any]) -> list[Any]:
        return [torch.from_numpy(v).requires_grad_(is_float(v)) if isinstance(v, np.ndarray) else v for v in values]

    def applied(leaves: list[Any]) -> tuple[int, Any]:
        """The output that has a derivative, after its place."""
        with doubles():
            outputs = judged.apply(*leaves)
        if outputs is None:
            raise NotImplementedError("forward returned None")
        found = [(i, y) for i, y in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)) if moves(y)]
        if len(found) != 1:
            raise ValueError(f"{target.__name__}.forward returned {len(found)} differentiable outputs, expected one")
        return found[0]

    @wraps(target.forward)
    def forward(*values: Any) -> tuple[Any, Any]:
        leaves = leaves_of(values)
        _, y = applied(leaves)
        saved = list(map(_array, y.grad_fn.saved_tensors))  # for the eye on overwritten arrays
        return _array(y), (lambda: (leaves, y), saved)

    def pulled(y: Any, leaves: Iterable[Any], dy: Any) -> list[Any]:
        with doubles():
            return list(map(_array, grad(y, list(filter(moves, leaves)), torch.as_tensor(dy))))

    def call(function: Callable[..., Any], dy: Any, cache: Any) -> Any:
        leaves, y = cache[0]()
        run[0] = function
        found = iter(pulled(y, leaves, dy))
        return tuple([next(found) if moves(t) else None for t in leaves])

    def truth(values: dict[str, Any], dy: Array) -> dict[str, Array]:
        leaves = dict(zip(values, leaves_of(values.values()), strict=True))
        place, _ = applied([*leaves.values()])
        context = torch.autograd.function.FunctionCtx()
        context.needs_input_grad = tuple(map(moves, leaves.values()))
        with doubles(), torch.enable_grad():
            outputs = target.forward(*[context][apart:], *leaves.values())
        y = outputs[place] if isinstance(outputs, tuple) else outputs
        found = zip(filter(lambda n: moves(leaves[n]), leaves), pulled(y, leaves.values(), dy), strict=True)
        return {n: np.zeros(np.shape(values[n])) if g is None else g for n, g in found}

    names = parameters(target.forward, len(inputs), skip=0 if apart else 1)
    return Pair(forward, tuple(map(_array, inputs)), names, target.backward, call, truth)


def _jax_function(jax: Any, target: Any, inputs: Sequence[Any]) -> Pair:
    """A `jax.custom_vjp` function after `defvjp`."""
    if target.fwd is None or target.bwd is None:
        raise TypeError(f"{target.__name__} has no derivative yet, expected defvjp(fwd, bwd) before the check")
    names = parameters(target.fun, len(inputs))
    apart = {*target.nondiff_argnums, *[names.index(n) for n in getattr(target, "nondiff_argnames", ()) if n in names]}
    plain = tuple([v if i in apart else _array(v) for i, v in enumerate(inputs)])
    fixed = {n: v for i, (n, v) in enumerate(zip(names, plain, strict=True)) if i in apart or not hasattr(v, "dtype")}
    doubles = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64

    def arrays(values: Any) -> list[Any]:
        return [jax.numpy.asarray(v) if isinstance(v, np.ndarray) else v for v in values]

    with doubles(True):
        y, expected = target.fwd(*arrays(plain))[0], target.fun(*arrays(plain))
    if np.shape(y) != np.shape(expected) or not np.allclose(y, expected, rtol=1e-9, atol=1e-12, equal_nan=True):
        raise ValueError(f"the first output of {target.fwd.__name__} isn't what {target.__name__} returns")

    @wraps(target.fwd)
    def forward(*values: Any) -> tuple[Any, Any]:
        with doubles(True):
            y, kept = target.fwd(*arrays(values))
        return _array(y), lambda: ([values[i] for i in sorted(apart)], kept)

    def call(function: Callable[..., Any], dy: Any, cache: Any) -> Any:
        constants, kept = cache()
        with doubles(True):
            found = function(*constants, kept, jax.numpy.asarray(dy))
        if not isinstance(found, tuple | list):
            raise TypeError(f"{function.__name__} returned a {type(found).__name__}, expected a tuple")
        given = iter(found)
        return tuple([None if i in apart else _array(next(given, None)) for i in range(len(names))])

    def pulled(floats: Any, others: Any, dy: Any) -> Any:
        run = lambda moved: target.fun(*[{**fixed, **others, **moved}[name] for name in names])
        return jax.vjp(run, floats)[1](dy)[0]

    compiled = jax.jit(pulled)  # whole: operations compiled one by one take seconds

    def truth(values: dict[str, Any], dy: Array) -> dict[str, Array]:
        floats = {n: v for n, v in values.items() if n not in fixed and is_float(v)}
        others = {n: v for n, v in values.items() if n not in fixed and n not in floats}
        with doubles(True):
            try:
                found = compiled(floats, others, dy)
            except jax.errors.JAXTypeError:  # it branches on values
                found = pulled(floats, others, jax.numpy.asarray(dy))
        return {n: _array(g) for n, g in found.items()}

    return Pair(forward, plain, names, target.bwd, call, truth)


def _layer(layer: Any, inputs: Sequence[Any]) -> Pair:
    """A layer object, which keeps its cache, its parameters and their gradients: `dx = layer.backward(dy)`."""
    names = parameters(type(layer).forward, len(inputs), skip=1)
    again = len(names) > 1 and parameters(type(layer).backward, len(inputs), skip=1) == names  # loss.backward(x, y)
    slots = {name: slot for name, slot in _slots(layer, inputs, again).items() if name not in names}

    @wraps(type(layer).forward)
    def forward(*values: Any) -> tuple[Any, Any]:
        one = copy.deepcopy(layer)
        kept = _kept(one)
        for (slot, gradient), value in zip(slots.values(), values[len(names) :], strict=True):
            if np.shape(kept[slot]) != np.shape(value):
                raise ValueError(f"the layer's {slot[1]} has shape {np.shape(kept[slot])}, not {np.shape(value)}")
            for place, key in [other for other, v in kept.items() if v is kept[slot]]:
                (vars(one)[place] if place else vars(one))[key] = value
            if isinstance(kept.get(gradient), np.ndarray):
                kept[gradient][...] = 0  # some layers add to it
        return one.forward(*values[: len(names)]), lambda: (one, values[: len(names)])

    def call(function: Callable[..., Any], dy: Any, cache: Any) -> Any:
        one, taken = cache()
        given = dy * function(one, *taken) if again else function(one, dy)
        given = tuple(given) if isinstance(given, tuple | list) else (given,)
        filled = (*given, *[None] * (len(names) - len(given)))
        return (*filled, *[_kept(one).get(gradient) for _, gradient in slots.values()])

    values = (*inputs, *[_kept(layer)[slot] for slot, _ in slots.values()])
    return Pair(forward, values, [*names, *slots], type(layer).backward, call)


def _kept(layer: Any) -> dict[Slot, Any]:
    """What a layer keeps: its attributes, and what is in those dicts and lists of them that hold arrays."""
    own = getattr(layer, "__dict__", {})
    kept = {("", key): value for key, value in own.items()}
    for place in (*_PLACES, *_GRADIENT_PLACES):
        held = own.get(place)
        items = held.items() if isinstance(held, dict) else enumerate(held) if isinstance(held, list) else ()
        kept |= {(place, key): value for key, value in items}
    return kept


def _slots(layer: Any, inputs: Sequence[Any], again: bool) -> dict[str, tuple[Slot, Slot]]:
    """Where a layer keeps each parameter, and its gradient."""
    one = copy.deepcopy(layer)
    before = _kept(one)
    with np.errstate(all="ignore"), suppress(Exception):  # what it raises is for the verdict to report
        given = copy.deepcopy(tuple(inputs))
        y = one.forward(*given)
        one.backward(*given) if again else one.backward(np.ones(np.shape(y)))
    after, found = _kept(one), dict[str, tuple[Slot, Slot]]()
    for (place, key), value in before.items():
        # What forward sets anew is part of its cache; a parameter may be held twice.
        own = after.get((place, key)) is value and not any(before[slot] is value for slot, _ in found.values())
        if is_float(value) and own and place not in _GRADIENT_PLACES:
            names = [g.format(key) for g in _GRADIENT_NAMES]
            slots = [(place, name) for name in names] + [(p, name) for p in _GRADIENT_PLACES for name in (key, *names)]
            for slot in [slot for slot in slots if after.get(slot) is not None][:1]:
                found[key if isinstance(key, str) else f"{place}[{key}]"] = (place, key), slot
    return found
