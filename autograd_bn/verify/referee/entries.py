"""What there is to judge in a file, how an object of a class is made, and how each becomes a pair."""

import ast
import copy
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, update_wrapper, wraps
from types import FunctionType
from typing import Any

import numpy as np

from ..gradcheck import Unjudgeable
from .author import Author, author_of, is_static, methods_of, parameters, returned_names, takes_a_context
from .conventions import adapt, called, loss_of, numpy_pair, with_a_loss
from .frameworks import NUMPY, array, jax_constants, torch_backend
from .guesses import Descent, Layer, layers, meant
from .held import arrays, is_float, is_tensor, objects
from .names import ASKS, BUILDS, COST, LOSS, NO_LOSS, SLOPE, SLOPES, TRAINING, forward_of, is_loss
from .pairs import Pair
from .source import by_position, code_of, file_of, framework, handed, keywords, signature, syntax, unwrapped

_LARGE = 2_000_000  # numbers that an object may hold


@dataclass(frozen=True)
class Entry:
    """Something to judge: what it takes, and how it becomes a pair or is called forward, on copies."""

    forward: str
    backward: str
    parameters: list[str]
    adapted: Callable[[Sequence[Any]], Pair]
    probe: Callable[[Sequence[Any]], Any]
    maker: "Maker | None" = None  # makes an object of the first values
    cost: float = 0.3  # what it costs more to try it than what it calls
    base: bool = False  # a base class, whose passes may be left to others
    code: tuple[Any, ...] = ()  # the author's functions that may have a word for a default, `mode="max"`
    kinds: dict[str, list[str]] = field(default_factory=dict)  # what some of its parameters are
    judged_with: "Entry | None" = None  # the same with the loss of its class or its file, where backward needs one

    @property
    def text(self) -> str:
        """The code of the author's functions, and of the class."""
        return "\n".join(map(code_of, self.code)) + (code_of(self.maker.what, 0) if self.maker else "")

    @property
    def space(self) -> dict[str, Any]:
        """The names of its file."""
        return getattr(unwrapped(self.code[0]), "__globals__", {}) if self.code else {}

    @property
    def keys(self) -> list[tuple[str, str]]:
        """What dicts hold for each of three layers, as `parameters["W" + str(l)]`."""
        dicts, key = [n for n in self.parameters if "options" in meant(n)[0]], r"\[f?[\"'](\w+?)(?:. *\+ *str\(|{|%)"
        words = dict.fromkeys([(name, word) for name in dicts for word in re.findall(rf"\b{name}{key}", self.text)])
        return [(name, f"{word}{layer}") for layer in (1, 2, 3) for name, word in words]

    @property
    def made(self) -> int:
        """How many of the values an object is made of."""
        return len(self.maker.needed) if self.maker else 0


def entries(space: dict[str, Any]) -> Iterator[Entry]:
    """Everything in a file that has a forward and a backward pass, in the file's order."""
    own = {n: v for n, v in space.items() if getattr(v, "__module__", None) == space["__name__"]}
    first = {v: n for n, v in reversed(own.items()) if isinstance(v, type)}  # `MSE = MeanSquaredError` is no other
    own = {n: v for n, v in own.items() if not isinstance(v, type) or first[v] == n}
    jax = framework("jax")
    rules = [value for value in own.values() if jax is not None and isinstance(value, jax.custom_vjp)]
    passes = [part for rule in rules for part in (rule.fwd, rule.bwd)]
    for name, value in own.items():
        if any(value is rule for rule in rules):
            back = getattr(value.bwd, "__name__", "bwd")
            probe, taken = _on(None, partial(handed, value.fun)), parameters(value.fun)
            apart = [taken[i] for i in jax_constants(value, taken)]
            kinds = {n: [kind for kind in meant(n)[0] if kind[0] == "="] or ["=0.5", "=2"] for n in apart}
            yield Entry(name, back, taken, _on(None, partial(adapt, value)), probe, cost=5.0, kinds=kinds)
        elif isinstance(value, type):
            yield from _class(name, value, space)
        elif inspect.isfunction(value) and not any(value is part for part in passes):
            yield from _function(name, value, space)


def _function(name: str, value: Any, space: dict[str, Any]) -> Iterator[Entry]:
    """`f_forward` and `f_backward`, or such names; `f(x, deriv=False)`; or `loss, dx = f_loss(x, y)`.

    What a framework made of a function, as `jax.grad(f)`, nobody wrote by hand, unless it decorates that, `@no_grad()`.
    """
    functions = {n: v for n, v in space.items() if inspect.isfunction(v) or inspect.ismethod(v)}
    inside = file_of(value) if unwrapped(value).__name__ == name else ""
    written = space["__file__"] in (value.__code__.co_filename, inside)
    forward = forward_of(name, functions) if written else None
    flags = [n for n, p in signature(value).items() if p.default is False and n.lower() in SLOPES]
    flag = flags[0] if flags and written and not forward else None
    ahead = functions[forward] if forward else value
    on = partial(_on, _torch_of(space, ahead))
    if forward or flag:
        code, back = (ahead, value), update_wrapper(partial(value, **{flag: True}), value) if flag else value
        if len(parameters(ahead)) == len(parameters(back)) == 1:
            ahead, back = _each(ahead, forward or name), _each(back, name)
        pair: Any = lambda ahead: on(partial(numpy_pair, ahead, back))
        entry = Entry(forward or name, name, parameters(ahead), pair(ahead), on(partial(handed, ahead)), code=code)
        lost = with_a_loss(ahead, back, _losses(space))
        other = replace(entry, parameters=parameters(lost), adapted=pair(lost), probe=on(partial(handed, lost)))
        yield replace(entry, judged_with=None if lost is ahead else other)
    elif written and _returns_a_function(value):  # `y, backward = f(x)`
        yield Entry(name, name, parameters(value), on(partial(numpy_pair, value, backward)), on(partial(handed, value)))
    elif (asks := [n for n in signature(value) if ASKS.fullmatch(n)]) or _is_loss(name, returned_names(value)):
        whole = update_wrapper(partial(value, **dict.fromkeys(asks, True)), value) if asks else value
        pair = on(partial(called, Author(whole, whole)))
        yield Entry(name, name, parameters(value), pair, on(partial(handed, whole)), code=(value,))


def _class(name: str, what: Any, space: dict[str, Any]) -> Iterator[Entry]:
    """A Function of PyTorch's, a class whose passes stand by themselves, or one of which an object is made first."""
    passes = methods_of(what)
    if passes is None:
        yield from _beside_each_other(name, what, space)
        return
    names, forward, torch = (f"{name}.{passes[0]}", f"{name}.{passes[1]}"), getattr(what, passes[0]), framework("torch")
    taken, on = parameters(forward), partial(_on, _torch_of(space, forward))
    if torch is not None and issubclass(what, torch.autograd.Function):
        apart = what.setup_context is not torch.autograd.Function.setup_context
        pair = _on(None, partial(adapt, what))
        yield Entry(*names, taken[not apart :], pair, lambda values: None, cost=5.0, code=(forward,))
    elif inspect.ismethod(forward) or takes_a_context(forward) or is_static(what, passes[0]):
        author = author_of(what)
        lead = [author.owner] if author.leads else []
        probe = lambda values: handed(author.forward, [*copy.deepcopy(lead), *values])
        adapted = lambda values: called(author_of(what), values)
        yield Entry(*names, taken[takes_a_context(forward) :], on(adapted), on(probe), code=(forward,))
    else:
        maker, kinds = _maker(what, _torch_of(space, forward))
        costs = [getattr(p.default, "fn", None) for code in _constructors(what) for p in signature(code).values()]
        losses = tuple(filter(inspect.isfunction, costs))  # `cost=CrossEntropyCost`
        losses = losses or _losses(dict(inspect.getmembers(what, inspect.isfunction))) or _losses(space)
        build: Any = lambda maker: _of_objects(names, maker, kinds, partial(on, made=len(maker.needed)))
        entry, other = build(maker), build(replace(maker, losses=losses))
        yield replace(entry, judged_with=None if entry.parameters == other.parameters else other)


def _of_objects(names: tuple[str, str], maker: "Maker", kinds: dict[str, list[str]], on: Any) -> Entry:
    """An entry of which objects are made first."""
    base, taken = bool(maker.what.__subclasses__()), parameters(maker.forward)[1:]
    asked = {name: name + "_" * (name in taken) for name in maker.needed}  # `Cell(d, h)` takes x and h
    kinds = {asked[name]: kind for name, kind in kinds.items()}
    code = *_constructors(maker.what), maker.forward, getattr(maker.what, names[1].rpartition(".")[2])
    return Entry(
        *names, [*asked.values(), *taken], on(maker.pair), on(maker.probe), maker, base=base, code=code, kinds=kinds
    )


def _losses(functions: dict[str, Any]) -> tuple[Any, ...]:
    functions = {name: value for name, value in functions.items() if inspect.isfunction(value)}
    slopes = [value for name, value in functions.items() if re.fullmatch("(cost|loss)_(derivative|prime)", name)]
    losses = [value for name, value in functions.items() if is_loss(name)]
    return tuple(losses or [loss for slope in slopes for loss in loss_of(slope)])


def _beside_each_other(name: str, what: type, space: dict[str, Any]) -> Iterator[Entry]:
    """The methods of a class that are functions and their derivatives, `sigmoid` and `sigmoid_prime`, of no object."""
    with suppress(TypeError):  # one without attributes: what a constructor makes, these don't read
        blank: Any = object.__new__(what)
        methods = {n: getattr(blank, n) for n, v in vars(what).items() if isinstance(v, staticmethod | FunctionType)}
        for method, value in methods.items():
            if method.strip("_") == method and forward_of(method, methods):
                for entry in _function(method, value, space | methods):
                    yield replace(entry, forward=f"{name}.{entry.forward}", backward=f"{name}.{entry.backward}")


def _torch_of(space: dict[str, Any], function: Any) -> Any:
    """PyTorch, where a file imports it and a function doesn't compute with NumPy alone."""
    modules = {name: value for name, value in space.items() if inspect.ismodule(value)}
    homes = {name: str(getattr(value, "__name__", "")).partition(".")[0] for name, value in modules.items()}
    code = getattr(unwrapped(function), "__code__", None)
    read = {homes.get(name) for name in code.co_names} if code else set[Any]()
    plain = "numpy" in read and "torch" not in read
    return framework("torch") if "torch" in homes.values() and not plain else None


def _each(function: Any, name: str) -> Any:
    """A function of this name that may be one of a number, on arrays too: entry by entry, where it takes none."""

    @wraps(function)
    def call(*values: Any) -> Any:
        try:
            return function(*values)
        except (TypeError, ValueError):
            with suppress(Exception):
                return np.vectorize(function, otypes=[float])(*values)
            raise

    call.__name__ = name  # a decorator may have another
    return call


def _returns_a_function(function: Any) -> bool:
    """Whether a function returns two results, of which the second is a function that is defined in it."""
    nodes = [*ast.walk(syntax(function))]
    inner = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    pairs = [n.value.elts for n in nodes if isinstance(n, ast.Return) and isinstance(n.value, ast.Tuple)]
    lasts = [elements[1] for elements in pairs if len(elements) == 2]
    return any(isinstance(last, ast.Lambda) or getattr(last, "id", "") in inner for last in lasts)


def backward(dy: Any, cache: Any) -> Any:
    """What the function that came back beside the output makes of dy."""
    return cache(dy)


def _is_loss(name: str, returned: list[str]) -> bool:
    """Whether a function may return a loss and its gradient."""
    if len(returned) == 1 or NO_LOSS.search(name):
        return False
    said = {bool(re.fullmatch(COST, word)) for word in returned[:2]} == {True, False}
    return bool(LOSS.search(name) or (said and SLOPE.fullmatch(returned[-1])))


# Objects


@dataclass(frozen=True)
class Maker:
    """How an object of a layer class is made: of what it needs, and of what is `fixed`."""

    what: Any
    torch: Any
    needed: list[str]
    fixed: dict[str, Any]
    losses: tuple[Any, ...] = ()

    @property
    def forward(self) -> Any:
        """The class's forward pass."""
        fore, back = methods_of(self.what) or ("", "")
        return with_a_loss(getattr(self.what, fore), getattr(self.what, back), self.losses)

    @cached_property
    def taken(self) -> tuple[int, int]:
        """How many values the forward pass must be handed, and how many it takes."""
        most = [*by_position(self.forward), *keywords(self.forward)]
        return len(parameters(self.forward)) - 1, len(most) - 1

    @cached_property
    def builds(self) -> list[str]:
        """The methods that may make an object whole."""
        methods = inspect.getmembers(self.what, inspect.isfunction)
        return [n for n, method in methods if BUILDS.fullmatch(f"{n}({', '.join(parameters(method)[1:])})")]

    def parted(self, values: Sequence[Any]) -> int:
        """How many of the values the object is made of: a file may give those too that have a default."""
        least, most = self.taken
        return len(self.needed) if len(values) <= len(self.needed) + most else len(values) - least

    def __call__(self, values: Sequence[Any]) -> Any:
        """An object, whole, with training switched on."""
        count, backend = self.parted(values), torch_backend(self.torch) if self.torch else NUMPY
        np.random.seed(0)  # noqa: NPY002
        values = [backend.lift(array(v)) if is_tensor(v) else array(v) if is_float(v) else v for v in values]
        with backend.precise():
            if count > len(self.needed):
                owner = self.what(*values[:count], **self.fixed)
            else:
                owner = self.what(**dict(zip(self.needed, values, strict=False)), **self.fixed)
        for name, value in [*getattr(owner, "__dict__", {}).items()]:
            if value is False and re.fullmatch(TRAINING, name):
                setattr(owner, name, True)
            elif type(value) in (list, tuple) and not value and re.fullmatch(r"\w*(layers|modules)", name):
                setattr(owner, name, type(value)(layers()))
        if (size := sum([int(np.prod(np.shape(value))) for value in arrays(owner).values()])) > _LARGE:
            name = self.what.__name__
            raise Unjudgeable(f"an object of {name} holds {size:,} numbers, which is too much to try inputs on")
        return self._built(owner, values[count:])

    def _built(self, owner: Any, values: Sequence[Any]) -> Any:
        """An object that `build(input_shape)`, or another such method, makes whole, where forward fails without it."""
        shape: tuple[int, ...] = np.shape(values[0]) if values else ()
        if not shape or not self.builds:
            return owner
        steps = [name for name in self.builds if parameters(getattr(self.what, name))[1][:5] == "optim"]
        builds = [n for n in self.builds if n not in steps]
        sizes = (shape[1:], shape, *shape[-1:]) if builds != ["build"] else (shape, shape[1:])  # Keras counts the batch
        for (name, size), step in itertools.product([("", shape), *itertools.product(builds, sizes)], [*steps, ""]):
            with suppress(Exception):
                made = copy.deepcopy(owner)
                for method, given in ((name, size), (step, Descent())):
                    if method:
                        getattr(made, method)(given)
                handed(self.forward, copy.deepcopy([made, *values]))
                return made
        return owner

    def pair(self, values: Sequence[Any]) -> Pair:
        """An object as a pair."""
        author, rest = author_of(self(values)), values[self.parted(values) :]
        forward = with_a_loss(author.forward, author.backward, self.losses)
        pair = called(replace(author, forward=forward), rest)
        if not any(isinstance(value, Layer) for value in objects(author.owner)):
            return pair
        # Without calls: no code is written that would be right for these layers alone.
        return replace(pair, notes=(*pair.notes, "It is judged with layers of the referee's own."), calls=None)

    def probe(self, values: Sequence[Any]) -> Any:
        """The forward pass of an object."""
        owner, rest = self(values), values[self.parted(values) :]
        return handed(self.forward, [owner, *rest])


def _constructors(what: type) -> list[Any]:
    return [vars(base)["__init__"] for base in what.__mro__ if inspect.isfunction(vars(base).get("__init__"))]


def _maker(what: type, torch: Any) -> tuple[Maker, dict[str, list[str]]]:
    """How an object is made: of what has no default, of large sizes as small ones, in double precision.

    And what some of that is. What is handed on as `*args` is what the class above takes.
    """
    listed = list[inspect.Parameter]()
    for constructor in _constructors(what):
        taken = [*signature(constructor).values()][1:]
        listed = [p for p in taken if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if listed or not taken:
            break
    needed, fixed, kinds = list[str](), dict[str, Any](), dict[str, list[str]]()
    lengths = _used_as_lengths(what)
    for p in listed:
        several = meant(p.name)[0][0].startswith("=[")
        if (p.annotation in (int, "int") or p.name in lengths) and not (several or _is_size(p.name)):
            kinds[p.name] = ["=3", "=4"] if kinds else ["=4", "=3"]
        sizes = [n for n in p.default if type(n) is int] if type(p.default) is tuple else []
        large = type(p.default) is int and p.default > 16 and _is_size(p.name)
        image = len(sizes) == 3 and min(sizes) > 0
        kinds |= {p.name: ["=[4,6,6]"]} if image else {}
        needed += [p.name] if p.default is p.empty or large or image or p.name == "reg" else []
        if p.name == "rng" and p.default is None:
            fixed["rng"] = np.random.default_rng(0)
        if "float32" in str(p.default) and p.name == "dtype":
            fixed["dtype"] = (torch or np).float64
    return Maker(what, torch, needed, fixed), {name: kinds[name] for name in needed if name in kinds}


# What is in the brackets of calls that take a shape, and in the inner ones of those that take one beside numbers.
_SHAPE = r"\b(?:zeros|ones|empty|randn?|random|random_sample|standard_normal|eye|identity|range|arange|size=)"
_SHAPED = re.compile(_SHAPE + r"\(((?:[^()]|\([^()]*\))*)\)|\b(?:full|normal|uniform)\([^()]*(\([^()]*\))")


def _used_as_lengths(what: type) -> set[str]:
    """What a class is made of that gives arrays their lengths, `np.zeros(n)`, also by way of `self.n = n`."""
    text = "\n".join([code_of(base, 0) for base in what.__mro__ if base.__module__ == what.__module__])
    shapes = [re.sub(r"\blen\(\w+\)", "", shape) for call in _SHAPED.findall(text) for shape in call]
    used = {word for shape in shapes for word in re.findall(r"\w+", shape)}
    used |= {value for name, value in re.findall(r"[(,]\s*(\w+)=(\w+)", text) if _is_size(name)}  # `FFN(hidden_dim=d)`
    return used | {value for name, value in re.findall(r"self\.(\w+) *= *(\w+)", text) if name in used}


def _is_size(name: str) -> bool:
    """Whether a parameter's name says that it is a length."""
    return bool(re.fullmatch(r"=[2-6]", meant(name)[0][0]))


# Calls


def _on(torch: Any, call: Callable[[list[Any]], Any], made: int = 0) -> Callable[[Sequence[Any]], Any]:
    """A call on copies of NumPy's arrays, or on PyTorch's where the file computes with these, but for the first few."""

    def on(values: Sequence[Any]) -> Any:
        np.random.seed(0)  # noqa: NPY002
        plain = copy.deepcopy(list(values))
        if torch is None:
            return call(plain)
        backend, copies = torch_backend(torch), copy.deepcopy(plain)
        with backend.precise():
            try:
                return call([*copies[:made], *map(backend.lift, copies[made:])])
            except Exception as error:
                with suppress(Exception):
                    return call(plain)
                raise error

    return on
