"""PyTorch Functions, JAX functions with a custom VJP and layer objects, each as a pair of NumPy functions."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np

from ...engine.node import Array

_EXPECTED = "expected a torch.autograd.Function, a jax.custom_vjp function or a layer object with forward and backward"
# Where a layer object keeps its parameters and their gradients: in attributes, or in dicts or lists of such names.
_PLACES, _GRADIENT_PLACES = ("", "params", "parameters"), ("grads", "gradients", "grad")
_GRADIENT_NAMES = ("d{}", "d_{}", "grad_{}", "{}_grad", "grad{}")


@dataclass(frozen=True)
class Adapted:
    """A target as `y, cache = forward(*inputs)` and `grads = backward(dy, cache)`, NumPy in and out.

    `truth(inputs, dy)` are the gradients by the framework's own autodiff through the same forward code (it raises
    where that code leaves the framework), `source` is the author's backward, and `rebuild(function)` is `backward`
    with an edited `function` in the place of `source`.
    """

    forward: Callable[..., Any]
    inputs: tuple[Any, ...]
    names: list[str]
    source: Callable[..., Any]
    rebuild: Callable[[Callable[..., Any]], Callable[..., Any]]
    truth: Callable[[dict[str, Any], Array], dict[str, Array]] | None = None

    @property
    def backward(self) -> Callable[..., Any]:
        """The author's backward as it stands."""
        return self.rebuild(self.source)


def adapt(target: Any, inputs: Sequence[Any]) -> Adapted:
    """Recognise a target by what it is, with the frameworks that the caller has imported."""
    if not isinstance(inputs, tuple | list):
        raise TypeError(f"inputs is a {type(inputs).__name__}, expected a tuple of what forward takes: (x, ...)")
    if isinstance(target, Adapted):
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


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _array(value: Any) -> Any:
    """A framework's array as NumPy's, floats in double precision; anything else as it is."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    elif hasattr(value, "__array__") and not isinstance(value, np.generic):
        value = np.asarray(value)
    return value.astype(np.float64, copy=False) if _is_float(value) else value


def _parameters(function: Callable[..., Any], count: int, skip: int = 0) -> list[str]:
    """The names of a function's first parameters."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds][skip : skip + count]
    return names + [f"input{i}" for i in range(len(names), count)]


class _Context:
    """What PyTorch hands to `forward` and `backward` as `ctx`."""

    saved_tensors: tuple[Any, ...] = ()
    constant: tuple[Any, ...] = ()
    needs_input_grad: tuple[bool, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None:
        self.constant = tensors

    def _nothing(self, *_: Any) -> None: ...

    save_for_forward = mark_dirty = set_materialize_grads = _nothing


def _torch_function(torch: Any, target: Any, inputs: Sequence[Any]) -> Adapted:
    """A `torch.autograd.Function`, with `ctx` in `forward` or with `setup_context`."""
    apart = target.setup_context is not torch.autograd.Function.setup_context

    @contextmanager
    def doubles(recording: bool) -> Iterator[None]:
        """Double precision for what the author's code makes, and recording or not, as PyTorch would have it."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with torch.set_grad_enabled(recording):
                yield
        finally:
            torch.set_default_dtype(before)

    def run(values: Sequence[Any]) -> tuple[Any, Any, tuple[Any, ...]]:
        """The place of the output that has a derivative, the context, all outputs."""
        tensors = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in values]  # memory is shared
        context = _Context()
        context.needs_input_grad = tuple([torch.is_tensor(t) and t.is_floating_point() for t in tensors])
        given = target.forward(*tensors) if apart else target.forward(context, *tensors)
        if apart:
            target.setup_context(context, tuple(tensors), given)
        if given is None:
            raise NotImplementedError("forward returned None")
        outputs = given if isinstance(given, tuple) else (given,)
        places = [i for i, t in enumerate(outputs) if torch.is_tensor(t) and not any(t is c for c in context.constant)]
        if len(places) != 1:
            raise ValueError(f"{target.__name__}.forward returned {len(places)} differentiable outputs, expected one")
        return places[0], context, outputs

    @wraps(target.forward)
    def forward(*values: Any) -> tuple[Any, Any]:
        with doubles(False):
            place, context, outputs = run(values)
        saved = [_array(t) for t in context.saved_tensors if torch.is_tensor(t)]  # for the eye on overwritten arrays
        return _array(outputs[place]), (lambda: (place, context, outputs), saved)

    def rebuild(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def backward(dy: Any, cache: Any) -> Any:
            place, context, outputs = cache[0]()
            with doubles(False):
                gradients = [torch.zeros_like(t) if torch.is_tensor(t) else None for t in outputs]
                gradients[place] = torch.as_tensor(dy)
                found = function(context, *gradients)
            given = list(map(_array, found if isinstance(found, tuple) else (found,)))
            while len(given) > len(inputs) and given[-1] is None:  # of arguments with defaults
                given.pop()
            return tuple(given)

        return backward

    def truth(values: dict[str, Any], dy: Array) -> dict[str, Array]:
        leaves = {n: torch.tensor(v, requires_grad=True) for n, v in values.items() if _is_float(v)}
        with doubles(True):
            place, _, outputs = run(list({**values, **leaves}.values()))
            found = torch.autograd.grad(outputs[place], [*leaves.values()], torch.as_tensor(dy), allow_unused=True)
        return {
            n: np.zeros(np.shape(values[n])) if g is None else _array(g) for n, g in zip(leaves, found, strict=True)
        }

    names = _parameters(target.forward, len(inputs), skip=0 if apart else 1)
    return Adapted(forward, tuple(map(_array, inputs)), names, target.backward, rebuild, truth)


def _jax_function(jax: Any, target: Any, inputs: Sequence[Any]) -> Adapted:
    """A `jax.custom_vjp` function after `defvjp`."""
    if target.fwd is None or target.bwd is None:
        raise TypeError(f"{target.__name__} has no derivative yet, expected defvjp(fwd, bwd) before the check")
    names = _parameters(target.fun, len(inputs))
    apart = {*target.nondiff_argnums, *[names.index(n) for n in getattr(target, "nondiff_argnames", ()) if n in names]}
    plain = tuple([v if i in apart else _array(v) for i, v in enumerate(inputs)])
    fixed = {n: v for i, (n, v) in enumerate(zip(names, plain, strict=True)) if i in apart or not hasattr(v, "dtype")}
    agreed: list[bool] = []
    doubles = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64

    def arrays(values: Any) -> list[Any]:
        return [jax.numpy.asarray(v) if isinstance(v, np.ndarray) else v for v in values]

    @wraps(target.fwd)
    def forward(*values: Any) -> tuple[Any, Any]:
        with doubles(True):
            y, kept = target.fwd(*arrays(values))
            expected = target.fun(*arrays(values)) if not agreed else y
        if np.shape(y) != np.shape(expected) or not np.allclose(y, expected, rtol=1e-9, atol=1e-12, equal_nan=True):
            raise ValueError(f"the first output of {target.fwd.__name__} isn't what {target.__name__} returns")
        agreed.append(True)
        return _array(y), lambda: ([values[i] for i in sorted(apart)], kept)

    def rebuild(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def backward(dy: Any, cache: Any) -> Any:
            constants, kept = cache()
            with doubles(True):
                found = function(*constants, kept, jax.numpy.asarray(dy))
            if not isinstance(found, tuple | list):
                raise TypeError(f"{function.__name__} returned a {type(found).__name__}, expected a tuple")
            given = iter(found)
            return tuple([None if i in apart else _array(next(given, None)) for i in range(len(names))])

        return backward

    def pulled(floats: Any, others: Any, dy: Any) -> Any:
        run = lambda moved: target.fun(*[{**fixed, **others, **moved}[name] for name in names])
        return jax.vjp(run, floats)[1](dy)[0]

    compiled = jax.jit(pulled)  # whole: operations compiled one by one take seconds

    def truth(values: dict[str, Any], dy: Array) -> dict[str, Array]:
        floats = {n: v for n, v in values.items() if n not in fixed and _is_float(v)}
        others = {n: v for n, v in values.items() if n not in fixed and n not in floats}
        with doubles(True):
            try:
                found = compiled(floats, others, dy)
            except jax.errors.JAXTypeError:  # it branches on values
                found = pulled(floats, others, jax.numpy.asarray(dy))
        return {n: _array(g) for n, g in found.items()}

    return Adapted(forward, plain, names, target.bwd, rebuild, truth)


def _layer(layer: Any, inputs: Sequence[Any]) -> Adapted:
    """A layer object, which keeps its cache, its parameters and their gradients: `dx = layer.backward(dy)`."""
    names = _parameters(type(layer).forward, len(inputs), skip=1)
    again = len(names) > 1 and _parameters(type(layer).backward, len(inputs), skip=1) == names  # loss.backward(x, y)
    slots = {name: slot for name, slot in _slots(layer, inputs, again).items() if name not in names}

    @wraps(type(layer).forward)
    def forward(*values: Any) -> tuple[Any, Any]:
        one = copy.deepcopy(layer)
        for (place, key, other, gradient), value in zip(slots.values(), values[len(names) :], strict=True):
            same = _get(one, place, key)
            if np.shape(same) != np.shape(value):
                raise ValueError(f"the layer's {key} has shape {np.shape(same)}, not {np.shape(value)}")
            for holder in [_holder(one, p) for p in _PLACES]:
                for k in [k for k, v in _items(holder).items() if v is same]:
                    holder[k] = value
            if isinstance(kept := _get(one, other, gradient), np.ndarray):
                kept[...] = 0  # some layers add to it
        return one.forward(*values[: len(names)]), lambda: (one, values[: len(names)])

    def rebuild(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def backward(dy: Any, cache: Any) -> Any:
            one, taken = cache()
            given = dy * function(one, *taken) if again else function(one, dy)
            given = tuple(given) if isinstance(given, tuple | list) else (given,)
            filled = (*given, *[None] * (len(names) - len(given)))
            return (*filled, *[_get(one, other, key) for _, _, other, key in slots.values()])

        return backward

    values = (*inputs, *[_get(layer, place, key) for place, key, _, _ in slots.values()])
    return Adapted(forward, values, [*names, *slots], type(layer).backward, rebuild)


def _holder(layer: Any, place: str) -> Any:
    """What holds a layer's arrays: its attributes, or the dict or list that is one of them."""
    attributes = getattr(layer, "__dict__", {})
    return attributes.get(place) if place else attributes


def _items(holder: Any) -> dict[Any, Any]:
    return holder if isinstance(holder, dict) else dict(enumerate(holder)) if isinstance(holder, list) else {}


def _get(layer: Any, place: str, key: Any) -> Any:
    return _items(_holder(layer, place)).get(key)


def _slots(layer: Any, inputs: Sequence[Any], again: bool) -> dict[str, tuple[str, Any, str, Any]]:
    """Where a layer keeps each parameter and its gradient: (place, key, the gradient's place, its key)."""
    one, held = copy.deepcopy(layer), dict[tuple[str, Any], Array]()
    for place in _PLACES:
        held |= {(place, key): value for key, value in _items(_holder(one, place)).items() if _is_float(value)}
    with np.errstate(all="ignore"), suppress(Exception):  # what it raises is for the verdict to report
        given = copy.deepcopy(tuple(inputs))
        y = one.forward(*given)
        one.backward(*given) if again else one.backward(np.ones(np.shape(y)))
    found = dict[str, tuple[str, Any, str, Any]]()
    for (place, key), value in held.items():
        names = [g.format(key) for g in _GRADIENT_NAMES]
        slots = [(place, name) for name in names] + [(p, name) for p in _GRADIENT_PLACES for name in (key, *names)]
        slot = next((slot for slot in slots if _get(one, *slot) is not None), None)
        known = any(_get(one, p, k) is value for p, k, _, _ in found.values())
        if slot and not known and _get(one, place, key) is value:  # what forward sets anew is part of its cache
            found[key if isinstance(key, str) else f"{place}[{key}]"] = place, key, *slot
    return found
