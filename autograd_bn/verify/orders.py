"""A function and its derivatives of every order: what `gradcheck`, `compare` and `prove_equal` walk through."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import engine as ag
from ..engine import Tensor
from ..engine.node import Array, no_update, recording


def derivatives(
    f: Callable[..., Any],
    inputs: Sequence[Tensor],
    order: int,
    weigh: Callable[[Tensor], Any],
    *,
    record: bool = False,
    what: str = "f",
    label: str = "output",
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The outputs of `f`, then the gradient of these weighed by numbers, then that one's, up to `order`, by name.

    Before them come the variables that the last depends on: the inputs that require a gradient, by their names, and
    those of the weights that do. `weigh` gives the weights of an output, an array or a tensor. The last order is
    recorded only if `record` is set. Outputs are called `label`, then "d" or "d2" and the variable's name. Running
    statistics stay as they are.

    >>> x = ag.tensor([2.0, 3.0], requires_grad=True, name="x")
    >>> _, (value, gradient) = derivatives(ag.square, [x], 1, lambda t: np.ones(t.shape))
    >>> gradient["dx"].data
    array([4., 6.])
    """
    variables = {t.name or "": t for t in inputs if t.requires_grad}
    with recording(record or order > 0), no_update():
        result = f(*inputs)
    several = isinstance(result, tuple | list)
    for k, output in enumerate(result if several else [result]):
        if not isinstance(output, Tensor):
            which = f" as its output {k}" if several else ""
            raise TypeError(f"{what} returned a {type(output).__name__}{which}, expected a tensor")
    if several and not result:
        raise ValueError(f"{what} returned no outputs, expected a tensor or several")
    orders = [{f"{label}[{k}]": output for k, output in enumerate(result)} if several else {label: result}]
    for k in range(1, order + 1):
        weights = {name: weigh(output) for name, output in orders[-1].items()}
        gradients = vjp(orders[-1].values(), variables.values(), weights.values(), record=record or k < order)
        orders.append({f"d{k if k > 1 else ''}{name}": g for name, g in zip(variables, gradients, strict=True)})
        variables |= {f"(weights of {name})": w for name, w in weights.items() if getattr(w, "requires_grad", False)}
    return variables, orders


def vjp(outputs: Iterable[Tensor], variables: Iterable[Tensor], weights: Any, *, record: bool = False) -> list[Tensor]:
    """The vector-Jacobian product: the gradients of all outputs, each weighed by an array of its shape, together."""
    leaves = list(variables)
    gradients = ag.grad(list(outputs), leaves, list(weights), create_graph=record, allow_unused=True)
    return [
        ag.as_tensor(np.zeros(leaf.shape, leaf.dtype) if g is None else g)
        for g, leaf in zip(gradients, leaves, strict=True)
    ]


def input_names(f: Callable[..., Any], inputs: Sequence[Any]) -> list[str]:
    """What to call each input: its tensor's name, else the parameter of `f`, or of a module's `forward`."""
    try:
        listed = inspect.signature(getattr(f, "forward", f)).parameters.values()
        parameters = [p.name for p in listed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):
        parameters = []
    names: list[str] = []
    for i, value in enumerate(inputs):
        name = value.name if isinstance(value, Tensor) else None
        name = name or (parameters[i] if i < len(parameters) else f"input {i}")
        names.append(name if name not in names else f"{name} (input {i})")
    return names


def function_names(f: Callable[..., Any], g: Callable[..., Any]) -> tuple[str, str]:
    """The two functions' names, or f and g where these don't tell them apart."""
    first, second = (getattr(h, "__name__", "<lambda>") for h in (f, g))
    return ("f", "g") if "<lambda>" in (first, second) or first == second else (first, second)


def arguments(inputs: Any) -> list[Any]:
    """The arguments for a function; an array or a tensor by itself is one."""
    if isinstance(inputs, np.ndarray | Tensor):
        return [inputs]
    if not isinstance(inputs, Iterable):
        raise TypeError(f"inputs is a {type(inputs).__name__}, expected a sequence of arrays, one for each argument")
    if not (values := list(inputs)):
        raise ValueError("inputs is empty, expected an array for each argument")
    return values


def check_settings(order: int, seed: int, **functions: Any) -> None:
    """Raise where an order, a seed or a function is none."""
    for name, value, least in (("order", order, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}")
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"{name} is a {type(function).__name__}, expected a function of tensors")


def check_same(left: Mapping[str, Array], right: Mapping[str, Array]) -> None:
    """Raise `ValueError` unless f and g gave the same quantities, in the same shapes."""
    if [*left] != [*right]:
        raise ValueError(f"f gives {', '.join(left)} and g {', '.join(right)}: expected the same outputs")
    if not any(value.size for value in left.values()):
        raise ValueError("f and g give no numbers at these inputs, so that there is nothing to compare")
    for name, value in left.items():
        if value.shape != right[name].shape:
            raise ValueError(f"{name} has shape {value.shape} from f and {right[name].shape} from g: expected the same")


def place(name: str, index: Iterable[Any]) -> str:
    """What an entry of an array is called: "x[0, 1]"."""
    listed = ", ".join([str(int(i)) for i in index])
    return f"{name}[{listed}]" if listed else name
