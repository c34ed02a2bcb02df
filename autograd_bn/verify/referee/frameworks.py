"""PyTorch Functions and custom VJPs of JAX as pairs, with the framework's own derivative as the truth."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import numpy as np

from ...engine.node import Array
from ..gradcheck import Unjudgeable
from .held import is_float
from .pairs import NUMPY, Library, Pair, array, parameters, returned_names
from .source import framework, signature


def library_of(inputs: Sequence[Any]) -> Library:
    """What computes with these inputs: PyTorch where there is an array of its among them."""
    torch = framework("torch")
    return torch_library(torch) if torch is not None and any(map(torch.is_tensor, inputs)) else NUMPY


@contextmanager
def doubles(torch: Any) -> Iterator[None]:
    """Double precision for what the author's code makes itself."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def torch_library(torch: Any) -> Library:
    """Plain functions and objects on PyTorch's arrays, with its autodiff through forward as the truth."""

    def lift(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.floating):
            return torch.from_numpy(np.array(value))
        if isinstance(value, dict):
            return {key: lift(item) for key, item in value.items()}
        return type(value)(map(lift, value)) if type(value) in (list, tuple) else value

    def join(parts: list[Any]) -> Any:
        return torch.cat([part.reshape(-1) for part in parts]) if len(parts) > 1 else parts[0]

    def truth(calls: Any, names: list[str]) -> Any:
        def derive(values: dict[str, Any], dy: Array) -> dict[str, Array]:
            leaves = [
                torch.from_numpy(v).requires_grad_(is_float(v)) if isinstance(v, np.ndarray) else v
                for v in values.values()
            ]
            moves = {n: t for n, t in zip(values, leaves, strict=True) if torch.is_tensor(t) and t.requires_grad}
            with doubles(torch), torch.enable_grad():
                y = join(calls.outputs(calls.passed(leaves)))
                gradients = torch.autograd.grad(y, [*moves.values()], torch.as_tensor(dy), allow_unused=True)
            pairs = zip(moves, gradients, strict=True)
            return {n: np.zeros(np.shape(values[n])) if g is None else array(g) for n, g in pairs}

        return derive

    return Library(lift, array, join, partial(doubles, torch), truth)


def torch_function(torch: Any, target: Any, inputs: Sequence[Any]) -> Pair:
    """A `torch.autograd.Function`, with `ctx` in `forward` or with `setup_context`."""
    run, apart = [target.backward], target.setup_context is not torch.autograd.Function.setup_context
    grad = partial(torch.autograd.grad, allow_unused=True, retain_graph=True)
    library = torch_library(torch)
    listed = [*signature(target.forward).values()][(not apart) + len(inputs) :]
    defaults = [p.default for p in listed if p.default is not p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    defaults = defaults[: max(len(returned_names(target.backward)) - len(inputs), 0)]  # those it returns something for
    judged: Any = type(target.__name__, (target,), {"backward": staticmethod(lambda *args: run[0](*args))})

    def moves(value: Any) -> bool:
        return torch.is_tensor(value) and bool(value.requires_grad)

    def leaves_of(values: Iterable[Any]) -> list[Any]:
        return [torch.from_numpy(v).requires_grad_(is_float(v)) if isinstance(v, np.ndarray) else v for v in values]

    def applied(leaves: list[Any]) -> dict[int, Any]:
        """The outputs that have a derivative, by their places."""
        with doubles(torch):
            outputs = judged.apply(*leaves, *defaults)
        if outputs is None:
            raise NotImplementedError("forward returned None")
        moving = {i: y for i, y in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)) if moves(y)}
        if not moving:
            raise Unjudgeable(f"{target.__name__}.forward returned no output of floats")
        return moving

    @wraps(target.forward)
    def forward(*values: Any) -> tuple[Any, Any]:
        leaves = leaves_of(values)
        outputs = [*applied(leaves).values()]
        saved = list(map(array, outputs[0].grad_fn.saved_tensors))  # for the eye on overwritten arrays
        y = library.join(outputs)
        return array(y), (lambda: (leaves, y), saved)

    def pulled(y: Any, leaves: Iterable[Any], dy: Any) -> list[Any]:
        with doubles(torch):
            return list(map(array, grad(y, list(filter(moves, leaves)), torch.as_tensor(dy))))

    def call(function: Callable[..., Any], dy: Any, cache: Any) -> Any:
        leaves, y = cache[0]()
        run[0] = function
        gradients = iter(pulled(y, leaves, dy))
        return tuple([next(gradients) if moves(t) else None for t in leaves])

    def truth(values: dict[str, Any], dy: Array) -> dict[str, Array]:
        leaves = dict(zip(values, leaves_of(values.values()), strict=True))
        places = applied([*leaves.values()])
        context = torch.autograd.function.FunctionCtx()
        context.needs_input_grad = tuple(map(moves, [*leaves.values(), *defaults]))
        with doubles(torch), torch.enable_grad():
            outputs = target.forward(*[context][apart:], *leaves.values(), *defaults)
        listed = outputs if isinstance(outputs, tuple) else (outputs,)
        y = library.join([listed[place] for place in places])
        gradients = zip(filter(lambda n: moves(leaves[n]), leaves), pulled(y, leaves.values(), dy), strict=True)
        return {n: np.zeros(np.shape(values[n])) if g is None else g for n, g in gradients}

    names = parameters(target.forward, len(inputs), skip=0 if apart else 1)
    if defaults:  # backward may return None for what its callers leave out
        try:
            y, kept = forward(*map(array, inputs))
            call(target.backward, np.ones(np.shape(y)), kept)
        except Exception:
            defaults.clear()
    return Pair(forward, tuple(map(array, inputs)), names, target.backward, call, truth)


def jax_function(jax: Any, target: Any, inputs: Sequence[Any]) -> Pair:
    """A `jax.custom_vjp` function after `defvjp`."""
    if target.fwd is None or target.bwd is None:
        raise TypeError(f"{target.__name__} has no derivative yet, expected defvjp(fwd, bwd) before the check")
    names = parameters(target.fun, len(inputs))
    apart = {*target.nondiff_argnums, *[names.index(n) for n in getattr(target, "nondiff_argnames", ()) if n in names]}
    plain = tuple([v if i in apart else array(v) for i, v in enumerate(inputs)])
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
        return array(y), lambda: ([values[i] for i in sorted(apart)], kept)

    def call(function: Callable[..., Any], dy: Any, cache: Any) -> Any:
        constants, kept = cache()
        with doubles(True):
            gradients = function(*constants, kept, jax.numpy.asarray(dy))
        if not isinstance(gradients, tuple | list):
            raise TypeError(f"{function.__name__} returned a {type(gradients).__name__}, expected a tuple")
        returned = iter(gradients)
        return tuple([None if i in apart else array(next(returned, None)) for i in range(len(names))])

    def pulled(floats: Any, others: Any, dy: Any) -> Any:
        run = lambda moved: target.fun(*[{**fixed, **others, **moved}[name] for name in names])
        return jax.vjp(run, floats)[1](dy)[0]

    compiled = jax.jit(pulled)  # whole: operations compiled one by one take seconds

    def truth(values: dict[str, Any], dy: Array) -> dict[str, Array]:
        floats = {n: v for n, v in values.items() if n not in fixed and is_float(v)}
        others = {n: v for n, v in values.items() if n not in fixed and n not in floats}
        with doubles(True):
            try:
                gradients = compiled(floats, others, dy)
            except jax.errors.JAXTypeError:  # it branches on values
                gradients = pulled(floats, others, jax.numpy.asarray(dy))
        return {n: array(g) for n, g in gradients.items()}

    return Pair(forward, plain, names, target.bwd, call, truth)
