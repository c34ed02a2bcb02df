"""What an author wrote: what his two passes are called, what they take and return by name, and what they work on."""

import ast
import copy
import dis
import inspect
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any

from ..gradcheck import Unjudgeable
from .names import CONTEXTS, KEEPING, METHODS, WEIGHTS, is_label, plain
from .source import by_position, code_of, framework, keywords, signature, syntax, unwrapped

_EXPECTED = (
    "expected a torch.autograd.Function, a jax.custom_vjp function, a layer object with forward and backward, "
    "or a function that returns a loss and its gradients"
)


@dataclass(frozen=True)
class Author:
    """What an author wrote: `forward(*lead, ...)` and `backward(*lead, ...)`; the lead is a copy of `owner` a call."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    owner: Any = None
    leads: bool = False

    @property
    def whole(self) -> bool:
        """Whether one function returns a loss and its gradients: the two passes are one."""
        return self.forward is self.backward

    def copied(self) -> Any:
        """A copy of the owner, with the modules in it as they are."""
        try:
            with suppress(TypeError):
                return copy.deepcopy(self.owner)
            modules = [*sys.modules.values()]  # of which it holds one
            return copy.deepcopy(self.owner, dict(zip(map(id, modules), modules, strict=True)))  # no work that counts
        except Exception as error:
            kind = type(self.owner).__name__
            raise Unjudgeable(f"an object of {kind} can't be copied ({error}), and is not run as it is") from None


class Context:
    """A `ctx` for functions that keep what backward reads in one."""

    saved: tuple[Any, ...] = ()

    def save_for_backward(self, *values: Any) -> None:
        """Keep what backward reads."""
        self.saved = values

    def __setitem__(self, key: str, value: Any) -> None:
        self.__dict__[key] = value

    def __getitem__(self, key: str) -> Any:
        return self.__dict__[key]

    saved_tensors = saved_values = to_save = property(lambda self: self.saved)
    needs_input_grad = (True,) * 99


def context_of(forward: Any) -> Any:
    """A context of the author's own file, else one of ours."""
    space, torch = getattr(unwrapped(forward), "__globals__", {}), framework("torch")
    for value in [*space.values()]:
        own = isinstance(value, type) and value.__module__ == space.get("__name__")
        own = own and not (torch and issubclass(value, torch.autograd.Function))
        if own and (hasattr(value, "save_for_backward") or re.search("(?i)ctx|context", value.__name__)):
            with suppress(Exception):
                return value()
    return Context()


def parameters(function: Callable[..., Any], count: int | None = None, skip: int = 0) -> list[str]:
    """The names of a function's first parameters, or of those that a caller must give: two of `*ws`, w1 and w2."""
    more = next((p.name for p in signature(function).values() if p.kind is p.VAR_POSITIONAL), "")
    listed, by_name = by_position(function), keywords(function)
    if count is None:  # a bias is there, too, where it may be left out, and so are the labels of `loss(X, y=None)`
        loss = getattr(function, "__name__", "") == "loss"
        free = [p.name for p in listed if p.default is None and re.fullmatch(WEIGHTS, plain(p.name))]
        free += [p.name for p in listed if loss and (is_label(p.name) or p.name == "reg")]
        needed = [p.default is p.empty or p.name in free for p in listed]
        names = [p.name for i, p in enumerate(listed) if p.default is p.empty or all(needed[: i + 1])] + by_name
        read = more not in ("args", "argv", "") and re.search(rf"\b{more}\b", code_of(function, 0))
        return [*names, f"{more.rstrip('s')}1", f"{more.rstrip('s')}2"] if read else names
    names = [p.name for p in listed[skip : skip + count - len(by_name)]] + by_name
    return names + [f"{more.rstrip('s') or 'input'}{i + 1}" for i in range(count - len(names))]


def returned_names(function: Any) -> list[str]:
    """What a function's last `return` calls the values that it returns; an empty name for what has none."""
    if parts := getattr(function, "parts", ()):
        return ["", *returned_names(parts[0])]
    returns = [node for node in ast.walk(syntax(function)) if isinstance(node, ast.Return)]
    returns = sorted(returns, key=lambda node: node.lineno)
    values = [node.value for node in returns if node.value is not None]
    items = values[-1].elts if values and isinstance(values[-1], ast.Tuple | ast.List) else values[-1:]
    items = [*items[0].elts, *items[1:]] if items and isinstance(items[0], ast.Tuple) else items
    items = [item.left if isinstance(item, ast.BinOp) and isinstance(item.op, ast.Div) else item for item in items]
    return [re.sub(r"\W", "", i.attr if isinstance(i, ast.Attribute) else getattr(i, "id", "")) for i in items]


def methods_of(what: type) -> tuple[str, str] | None:
    """What a class calls its two passes, which are one where it has none but a `loss` that returns two values."""
    own = {name for base in what.__mro__ for name in vars(base)}
    for pair in METHODS:
        if own >= {*pair} and all(callable(getattr(what, name)) for name in pair):
            return pair
    return ("loss", "loss") if len(returned_names(getattr(what, "loss", None))) == 2 else None


def author_of(target: Any) -> Author:
    """The passes of a class or an object, and what they work on."""
    what = target if isinstance(target, type) else type(target)
    passes = methods_of(what)
    if passes is None or (passes[0] == "__call__" and inspect.isfunction(target)):
        raise TypeError(f"target is {getattr(target, '__name__', f'a {what.__name__}')}, {_EXPECTED}")
    forward, backward = _called(what, passes[0]), getattr(what, passes[1])
    if inspect.ismethod(forward) and not takes_a_context(forward):  # a class method
        return Author(_switched(forward.__func__), backward.__func__, what, leads=True)
    if takes_a_context(forward):
        return Author(forward, backward, context_of(forward), leads=True)
    if is_static(what, passes[0]):
        return Author(forward, backward)
    if isinstance(target, type):
        raise TypeError(f"target is the class {target.__name__}, expected an object of it: {target.__name__}(...)")
    if is_static(what, passes[1]):  # which reads nothing of the object
        return Author(_switched(forward.__get__(target)), backward)
    if passes[0] == passes[1]:
        return Author(backward, backward, target, leads=True)
    return Author(_switched(forward), backward, target, leads=True)


def takes_a_context(forward: Any) -> bool:
    """Whether a forward pass keeps what backward reads in a context that it is handed."""
    return next(iter(signature(forward)), "") in CONTEXTS


def is_static(what: type, name: str) -> bool:
    """Whether a method of a class takes no object."""
    return isinstance(inspect.getattr_static(what, name), staticmethod)


def _called(what: type, name: str) -> Any:
    """The forward pass, by way of `__call__` where that calls it and keeps something on the object."""
    forward = getattr(what, name)
    call = next((vars(base)["__call__"] for base in what.__mro__ if "__call__" in vars(base)), None)
    if name == "__call__" or not inspect.isfunction(call) or not inspect.isfunction(forward):
        return forward
    stores = any(step.opname == "STORE_ATTR" for step in dis.get_instructions(call.__code__))
    return wraps(forward)(lambda *values: call(*values)) if stores and name in call.__code__.co_names else forward


def _switched(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass that is told to keep what backward reads, where it has a switch for that, `train=False`."""
    off = [n for n, p in signature(forward).items() if p.default is False and re.fullmatch(KEEPING, n.lower())]
    if not off:
        return forward

    @wraps(forward)
    def call(*values: Any) -> Any:
        filled = [*signature(forward)][: len(values)]
        return forward(*values, **{name: True for name in off if name not in filled})

    return call
