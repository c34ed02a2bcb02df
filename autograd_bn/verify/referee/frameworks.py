"""What an author computes with: NumPy, PyTorch or JAX, with their own derivatives for the truth and fixed seeds."""

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from typing import Any, NamedTuple

import numpy as np

from ...engine.node import Array
from ..gradcheck import Unjudgeable
from .author import parameters, returned_names
from .held import inner, is_float, is_tensor, vector
from .pairs import Pair
from .returned import Gradients
from .source import framework, signature, unwrapped

# Of NumPy's, Python's and PyTorch's first four random numbers one is below 0.15 and one above 0.85: a small mask that
# is 1 throughout would hide that it is forgotten.
SEED = 1481


class Backend(NamedTuple):
    """What an author computes with: arrays into it and out of it, outputs laid end to end, and its own derivative."""

    lift: Callable[[Any], Any]
    lower: Callable[[Any], Any]
    join: Callable[[list[Any]], Any]
    precise: Callable[[], Any]
    truth: Any = None


def _joined(parts: list[Any]) -> Any:
    return np.concatenate([np.reshape(part, -1) for part in parts]) if len(parts) > 1 else parts[0]


def _jax_doubles() -> Any:
    """Double precision for what is computed with JAX, if that is imported at all."""
    jax = framework("jax")
    if jax is None:
        return nullcontext()
    return (jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64)(True)


NUMPY = Backend(lambda value: value, lambda value: value, _joined, _jax_doubles)


def array(value: Any) -> Any:
    """A framework's array, or a list of floats, as NumPy's, floats in double precision; anything else as it is."""
    value = vector(inner(value))
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    elif hasattr(value, "__array__") and not isinstance(value, np.generic):
        value = np.asarray(value)
    return value.astype(np.float64, copy=False) if is_float(value) else value


def lowered(value: Any) -> Any:
    """A framework's arrays as NumPy's, also inside of containers."""
    if isinstance(value, dict):
        return {key: lowered(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(lowered, value)) if not hasattr(value, "_make") else tuple(map(lowered, value))
    return array(value)


def backend_of(inputs: Sequence[Any]) -> Backend:
    """What computes with these inputs: PyTorch where there is an array of its among them."""
    torch = framework("torch")
    return torch_backend(torch) if torch is not None and any(map(torch.is_tensor, inputs)) else NUMPY


@contextmanager
def doubles(torch: Any) -> Iterator[None]:
    """Double precision for what the author's code makes itself."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def torch_backend(torch: Any) -> Backend:
    """Plain functions and objects on PyTorch's arrays, with its autodiff through forward as the truth."""

    def lift(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.floating):
            return torch.from_numpy(np.array(value))
        if isinstance(value, dict):
            return {key: lift(item) for key, item in value.items()}
        return type(value)(map(lift, value)) if type(value) in (list, tuple) else value

    def join(parts: list[Any]) -> Any:
        return torch.cat([part.reshape(-1) for part in parts]) if len(parts) > 1 else parts[0]

    def truth(calls: Any) -> Any:
        def derive(values: dict[str, Any], dy: Array) -> dict[str, Array]:
            leaves = _leaves(torch, values)
            with doubles(torch), torch.enable_grad():
                y = join(calls.outputs(calls.passed([*leaves.values()])))
            return _pulled(torch, y, leaves, dy, zeros=True)

        return derive

    return Backend(lift, array, join, partial(doubles, torch), truth)


def _leaves(torch: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """PyTorch's arrays in the place of NumPy's, floats as leaves of a graph."""
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    leaves = {name: torch.from_numpy(value).requires_grad_(is_float(value)) for name, value in arrays.items()}
    return {**values, **leaves}


def _moves(value: Any) -> bool:
    return is_tensor(value) and bool(value.requires_grad)


def _pulled(torch: Any, y: Any, leaves: Mapping[str, Any], dy: Any, zeros: bool = False) -> dict[str, Any]:
    """The gradient of each leaf, None or `zeros` where y doesn't depend on it."""
    moving = {name: leaf for name, leaf in leaves.items() if _moves(leaf)}
    options = {"allow_unused": True, "retain_graph": True, "materialize_grads": zeros}
    with doubles(torch):
        gradients = torch.autograd.grad(y, [*moving.values()], torch.as_tensor(dy), **options)
    return dict(zip(moving, map(array, gradients), strict=True))


@contextmanager
def seeded(function: Any) -> Iterator[None]:
    """The same random numbers in every call, and the caller's generators as they were."""
    space = getattr(unwrapped(function), "__globals__", {})
    torch = framework("torch")
    own = [v for v in [*space.values()] if isinstance(v, np.random.Generator)]
    was = [copy.deepcopy(g.bit_generator.state) for g in own]
    kept = np.random.get_state(), random.getstate(), torch and torch.get_rng_state()  # noqa: NPY002
    np.random.seed(SEED)  # noqa: NPY002
    random.seed(SEED)
    if torch:  # not `torch.manual_seed`, which formats the stack for each kind of device
        torch.default_generator.manual_seed(SEED)
    try:
        yield
    finally:
        for generator, state in zip(own, was, strict=True):
            generator.bit_generator.state = state
        np.random.set_state(kept[0])  # noqa: NPY002
        random.setstate(kept[1])
        if torch:
            torch.set_rng_state(kept[2])


def torch_function(torch: Any, target: Any, inputs: Sequence[Any]) -> Pair:
    """A `torch.autograd.Function`, with `ctx` in `forward` or with `setup_context`."""
    run, apart = [target.backward], target.setup_context is not torch.autograd.Function.setup_context
    backend, names = torch_backend(torch), parameters(target.forward, len(inputs), skip=0 if apart else 1)
    defaults = _left_out(target, (not apart) + len(inputs), len(inputs))
    judged: Any = type(target.__name__, (target,), {"backward": staticmethod(lambda *args: run[0](*args))})

    def applied(leaves: Mapping[str, Any]) -> dict[int, Any]:
        """The outputs that have a derivative, by their places."""
        with doubles(torch), seeded(target):
            outputs = judged.apply(*leaves.values(), *defaults)
        if outputs is None:
            raise NotImplementedError("forward returned None")
        moving = {i: y for i, y in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)) if _moves(y)}
        if not moving:
            raise Unjudgeable(f"{target.__name__}.forward returned no output of floats")
        return moving

    @wraps(target.forward)
    def forward(*values: Any) -> tuple[Any, Any]:
        leaves = _leaves(torch, dict(zip(names, values, strict=True)))
        outputs = [*applied(leaves).values()]
        saved = list(map(array, outputs[0].grad_fn.saved_tensors))  # for the eye on overwritten arrays
        y = backend.join(outputs)
        return array(y), (lambda: (leaves, y), saved)

    def call(function: Callable[..., Any], dy: Any, cache: Any) -> Gradients:
        leaves, y = cache[0]()
        run[0] = function
        pulled = _pulled(torch, y, leaves, dy)
        return Gradients(tuple(map(pulled.get, names)), {}, (), tuple(names))

    def truth(values: dict[str, Any], dy: Array) -> dict[str, Array]:
        leaves = _leaves(torch, values)
        places = applied(leaves)
        context = torch.autograd.function.FunctionCtx()
        context.needs_input_grad = tuple(map(_moves, [*leaves.values(), *defaults]))
        with doubles(torch), seeded(target), torch.enable_grad():
            outputs = target.forward(*[context][apart:], *leaves.values(), *defaults)
        listed = outputs if isinstance(outputs, tuple) else (outputs,)
        return _pulled(torch, backend.join([listed[place] for place in places]), leaves, dy, zeros=True)

    if defaults:  # backward may return None for what its callers leave out
        try:
            y, kept = forward(*map(array, inputs))
            call(target.backward, np.ones(np.shape(y)), kept)
        except Exception:
            defaults.clear()
    return Pair(forward, tuple(map(array, inputs)), names, target.backward, call, truth)


def _left_out(target: Any, first: int, count: int) -> list[Any]:
    """The defaults of what callers leave out, from the `first` on, of which backward returns something all the same."""
    listed = [*signature(target.forward).values()][first:]
    defaults = [p.default for p in listed if p.default is not p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return defaults[: max(len(returned_names(target.backward)) - count, 0)]


def jax_function(jax: Any, target: Any, inputs: Sequence[Any]) -> Pair:
    """A `jax.custom_vjp` function after `defvjp`."""
    if target.fwd is None or target.bwd is None:
        raise TypeError(f"{target.__name__} has no derivative yet, expected defvjp(fwd, bwd) before the check")
    names = parameters(target.fun, len(inputs))
    apart = jax_constants(target, names)
    if held := [names[i] for i in sorted(apart) if np.ndim(inputs[i])]:
        raise ValueError(f"{held[0]} is an array, expected a constant: it is one of nondiff_argnums")
    plain = tuple([getattr(v, "item", lambda v=v: v)() if i in apart else array(v) for i, v in enumerate(inputs)])
    fixed = {n: v for i, (n, v) in enumerate(zip(names, plain, strict=True)) if i in apart or not hasattr(v, "dtype")}

    def arrays(values: Any) -> list[Any]:
        return [jax.numpy.asarray(v) if isinstance(v, np.ndarray) else v for v in values]

    with _jax_doubles():
        y, expected = target.fwd(*arrays(plain))[0], target.fun(*arrays(plain))
    if np.shape(y) != np.shape(expected) or not np.allclose(y, expected, rtol=1e-9, atol=1e-12, equal_nan=True):
        raise ValueError(f"the first output of {target.fwd.__name__} isn't what {target.__name__} returns")

    @wraps(target.fwd)
    def forward(*values: Any) -> tuple[Any, Any]:
        with _jax_doubles():
            y, kept = target.fwd(*arrays(values))
        return array(y), lambda: ([values[i] for i in sorted(apart)], kept)

    def call(function: Callable[..., Any], dy: Any, cache: Any) -> Gradients:
        constants, kept = cache()
        with _jax_doubles():
            gradients = function(*constants, kept, jax.numpy.asarray(dy))
        if not isinstance(gradients, tuple | list):
            raise TypeError(f"{function.__name__} returned a {type(gradients).__name__}, expected a tuple")
        returned = iter(gradients)
        back = tuple([None if i in apart else array(next(returned, None)) for i in range(len(names))])
        return Gradients(back, {}, (), tuple(names))

    truth = _jax_truth(jax, lambda values: target.fun(*[{**fixed, **values}[name] for name in names]))
    return Pair(forward, plain, names, target.bwd, call, lambda values, dy: truth(values, [*fixed], dy))


def jax_constants(target: Any, names: Sequence[str]) -> set[int]:
    """The places of a `jax.custom_vjp` function's arguments that have no gradient."""
    return {*target.nondiff_argnums, *[names.index(n) for n in getattr(target, "nondiff_argnames", ()) if n in names]}


def _jax_truth(jax: Any, run: Callable[[dict[str, Any]], Any]) -> Callable[..., dict[str, Array]]:
    """The gradients by the inputs that are floats and not `fixed`, with the function compiled where it can be."""

    def pulled(floats: Any, others: Any, dy: Any) -> Any:
        return jax.vjp(lambda moved: run({**others, **moved}), floats)[1](dy)[0]

    compiled = jax.jit(pulled)  # whole: operations compiled one by one take seconds

    def truth(values: dict[str, Any], fixed: Sequence[str], dy: Array) -> dict[str, Array]:
        floats = {n: v for n, v in values.items() if n not in fixed and is_float(v)}
        others = {n: v for n, v in values.items() if n not in fixed and n not in floats}
        with _jax_doubles():
            try:
                gradients = compiled(floats, others, dy)
            except jax.errors.JAXTypeError:  # it branches on values
                gradients = pulled(floats, others, jax.numpy.asarray(dy))
        return {n: array(g) for n, g in gradients.items()}

    return truth
