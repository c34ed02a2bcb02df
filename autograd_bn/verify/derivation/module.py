"""A forward pass and its backward pass as a module of their own, from any function of arrays."""

import copy
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import lru_cache, partial, reduce, wraps
from typing import Any, Literal

import numpy as np

from ...engine import Tensor
from ..referee.author import parameters
from ..referee.held import is_float
from ..referee.inputs import checked
from ..referee.judge import check_backward
from ..referee.source import file_of, signature
from ..referee.verdict import Verdict
from .derived import Derivation, executed
from .expressions import Expression
from .lengths import recordings
from .text import WIDTH, Function, called, cheap, names_in, wrapped
from .tracing import Recording, Unwritable, mapped, reached
from .writer import Writer, below, used_again


def write_backward(
    f: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    form: Literal["steps", "folded"] = "steps",
) -> Derivation:
    """The forward pass `f` and its backward pass, written as NumPy code.

    `f` is what `check_backward` takes for forward, `y, cache = f(*inputs)`, or any function of arrays that tensors can
    go through. What its author named keeps its name, `dvar` is the gradient of `var`, lengths are written as `len(x)`,
    numbers in a dict are read from it, arrays in a dict or a list are inputs of their own, equal expressions stand
    once, and the cache holds what backward reads. A tensor among the inputs that requires no gradient gets none, as a
    net's images: None stands in its place. `names` are the inputs' names, by default those of f's parameters.
    `form="steps"` follows the graph node by node; `form="folded"` writes the formula of three paths for each batch
    norm, however it is spelled.

    The text is read off the recorded graph of the backward pass, run, compared with the engine's gradients at the
    inputs, at others near them and at other lengths, and judged by `check_backward`, before it is returned. Its forward
    refuses inputs that broadcast otherwise than these. `TypeError` and `ValueError` say why none is written: a branch
    on data, values that leave the tensors, a random mask, an operation without source.

    >>> import numpy as np, autograd_bn as ag
    >>> def forward(x, w):
    ...     return np.tanh(x @ w)
    >>> print(ag.write_backward(forward, (np.ones((5, 3)), np.ones((3, 2)))))
    import numpy as np
    <BLANKLINE>
    <BLANKLINE>
    def forward(x, w):
        y = np.tanh(x @ w)
        cache = x, w, y
        return y, cache
    <BLANKLINE>
    <BLANKLINE>
    def backward(dy, cache):
        x, w, y = cache
        g = dy * (1 - y**2)
        dw = x.T @ g
        dx = g @ w.T
        return dx, dw
    <BLANKLINE>
    """
    return written(f, inputs, names, form)


def written(
    f: Callable[..., Any],
    inputs: Sequence[Any],
    names: Sequence[str] | None = None,
    form: str = "steps",
    titles: tuple[str, str, str] = ("forward", "backward", ""),
) -> Derivation:
    """`write_backward`; `titles` are the names of both functions and of the gradient that is handed in."""
    if not callable(f):
        raise TypeError(f"f is a {type(f).__name__}, expected a function")
    if hasattr(owner := getattr(f, "__self__", f), "named_parameters"):
        f, inputs, names = _with_parameters(owner, inputs, names)
    if not isinstance(inputs, tuple | list):
        raise TypeError(f"inputs is a {type(inputs).__name__}, expected a tuple of what f takes: (x, ...)")
    if form not in ("steps", "folded"):
        raise ValueError(f"form is {form!r}, expected 'steps' or 'folded'")
    known = names or parameters(f, len(inputs))
    f, inputs, own = _parted(f, inputs, known)
    operands = checked(inputs, own, names if own is known else None)
    if not all(map(str.isidentifier, operands)):
        raise ValueError(f"names is {[*operands]}, expected names that code can have")
    given = dict(zip(operands, inputs, strict=True))
    wanted = [n for n, v in operands.items() if getattr(given[n], "requires_grad", is_float(v))]
    if not wanted:
        raise TypeError("inputs has no array of floats to take a gradient of, or only tensors that require no gradient")
    free = {n: p.default for n, p in signature(f).items() if n not in operands and not re.search("ax[ei]s|dim", n)}
    record = partial(Recording, f, wanted, form == "folded", False)
    for kinds in ((int, float), (float,)):  # whole numbers as they are where something else follows from them
        options = {n: value for n, value in free.items() if type(value) in kinds}
        whole = int in map(type, options.values())
        with np.errstate(all="ignore"), suppress(Unwritable) if whole else nullcontext():
            made = _Module(recordings(f, record, operands, options), f, titles).derived()
            break
    if len(wanted) < len([*filter(is_float, operands.values())]):  # the referee judges a gradient for every array
        written(f, [*operands.values()], [*operands], form)
    return made


def _parted(f: Any, inputs: Sequence[Any], names: Any) -> Any:
    """`f` as a function of the arrays that dicts and lists among its inputs hold, in their place; these, and names."""
    parts, kinds = dict[str, list[tuple[str, Any]]](), (Tensor, np.ndarray, float)
    for name, value in zip(names, inputs, strict=False):
        own = [(text, item) for text, item in reached(value, name, 20) if isinstance(item, kinds)]
        several = isinstance(value, dict | tuple | list) and any(np.ndim(item) for _, item in own)
        parts[name] = own if several else [(name, value)]
    if all([text for text, _ in own] == [name] for name, own in parts.items()):
        return f, inputs, names
    ways = [re.findall(r"\w+", text) for own in parts.values() for text, _ in own]
    ends = [way[-1] for way in ways if way[-1].isidentifier()]
    called = [way[-1] if ends.count(way[-1]) == 1 else "_".join(way) for way in ways]

    @wraps(f)
    def forward(*values: Any, run: Any = f, **options: Any) -> Any:
        left = iter(values)
        leaf: Any = lambda item: next(left) if isinstance(item, kinds) else copy.deepcopy(item)
        held = zip(parts, inputs, strict=True)
        return run(*[next(left) if parts[n][0][0] == n else mapped(value, leaf) for n, value in held], **options)

    vars(forward)["parted"] = f
    return forward, [item for own in parts.values() for _, item in own], called


def _with_parameters(module: Any, inputs: Any, names: Any) -> Any:
    """A module's forward as a function of its inputs and its parameters, on a copy; these, and their names."""
    module = copy.deepcopy(module)
    ways, own = zip(*[(path.split("."), value) for path, value in module.named_parameters()], strict=True)

    @wraps(module.forward)
    def forward(*values: Any) -> Any:
        for (*way, last), value in zip(ways, values[-1].values(), strict=True):
            setattr(reduce(lambda part, step: getattr(part, step, None) or part[int(step)], way, module), last, value)
        return module.forward(*values[:-1])

    called = ["_".join([last, *way]) for *way, last in ways]
    listed = names or parameters(module.forward, len(inputs))
    return forward, (*inputs, dict(zip(called, own, strict=True))), [*listed, "parameters"]


class _Module(Writer):
    """A forward pass that keeps what its backward pass reads, and this."""

    def __init__(self, runs: Sequence[Recording], f: Callable[..., Any], titles: tuple[str, str, str]) -> None:
        *self.titles, upstream = titles
        super().__init__(runs, upstream)
        self.f = f

    def source(self) -> str:
        """The text of both."""
        ends, first = [*self.gradients.values()], self.first
        # What backward reads of forward; what is cheap it makes again from what that is made of.
        kept = [e for e in self.forward if e in self.named or not cheap(e)]
        reached = {*ends, *[part for e in below(ends, kept) for part in e.parts]}
        crossing = [e for e in kept if e in reached]
        ahead = self._ahead(crossing)
        outputs = [ahead.fitted(partial(ahead.text, y), WIDTH // len(self.ys) - 20) for y in self.ys]
        read = {e: ahead.names[e] for e in crossing if e in ahead.names} | ahead.names
        back = self.function({**self.seeds, **read})
        self.back(back, read, {g: f"d{name}" for name, g in self.gradients.items()})
        zeros = {name: f"np.zeros_like({name})" for name in first.leaves}
        own = {name: back.text(g) for name, g in self.gradients.items()}
        returned = [own.get(name) or zeros.get(name, "None") for name in first.args]
        while returned[-1] == "None":
            returned.pop()
        in_back, in_ahead = names_in([*back.lines, *returned]), names_in([*ahead.lines, *outputs])
        # What backward reads of forward: arrays, numbers, and lengths that none of these has.
        taken = [*first.args, *first.options]
        seeds = [*self.seeds.values()]
        cached = [n for n in dict.fromkeys([*taken, *ahead.names.values()]) if n in in_back and n not in seeds]
        held = {**self.seeds, **{e: n for e, n in ahead.names.items() if n in cached}}
        lengths = [n for n in self.numbers if n not in taken]
        opened, missing = self.lengths([n for n in lengths if n in in_back], held, {})
        cached += missing
        wanted = [n for n in lengths if n in in_ahead or n in missing]
        measured, missing = self.lengths(wanted, self.inputs, self.settings)
        if missing:
            raise Unwritable(f"forward reads the number {missing[0]}, which follows no length of the inputs")
        if len(cached) > 1:
            ahead.lines.append(wrapped("cache = ", cached))
        cache = "cache" if len(cached) > 1 else "".join(cached) or "None"
        ahead.lines = [*self.guard(), *measured, *ahead.lines, wrapped("return ", outputs, f", {cache}")]
        unpacked = [wrapped("", cached, " = cache")] if cached else []
        back.lines = [*unpacked, *opened, *back.lines, wrapped("return ", returned)]
        arguments = [*first.args, *[f"{name}={value!r}" for name, value in first.options.items()]]
        both = zip(self.titles, (arguments, [*seeds, "cache"]), (ahead, back), strict=True)
        parts = [*{**ahead.above, **back.above}.values()]
        for title, names, function in both:
            body = "\n".join(function.lines).replace("\n", "\n    ")
            parts.append(f"{wrapped(f'def {title}(', names, '):', 4)}\n    {body}\n")
        return "import numpy as np\n\n\n" + "\n\n".join(parts)

    def _ahead(self, crossing: Sequence[Expression]) -> Function:
        """The forward pass: a line for what its author named, for what backward reads, and for what is used twice."""
        again = used_again(self.forward, {*self.named, *crossing})
        inner = below([part for y in self.ys for part in y.parts])
        out = self.function(self.inputs)
        out.reserved = {*self.named.values(), *self.seeds.values()}
        for e in self.forward:
            kept = e in self.named or e in crossing or e in again or (e in self.ys and e in inner)
            if e not in out.names and kept and e.op not in ("number", "array"):
                own = "y" if e in self.ys and len(self.ys) == 1 else self.meant.get(e, called(e))
                out.line(e, self.named.get(e) or out.fresh(own))
        return out

    def run(self, text: str) -> Derivation:
        """Both functions, of which forward refuses inputs that broadcast otherwise than these."""
        space = executed(text, {})
        ahead, back = [space[title] for title in self.titles]
        lengths = {n: [*zip(*[np.shape(run.inputs[n]) for run in self.runs], strict=True)] for n in self.first.inputs}

        @lru_cache(maxsize=100)
        def check(shapes: tuple[tuple[int, ...], ...]) -> None:
            found = {(1,) * len(self.runs): 1}  # what has one length in all runs has one here
            for known, shape in zip(lengths.values(), shapes, strict=False):
                if len(known) != len(shape) or any(map(lambda k, n: found.setdefault(k, n) != n, known, shape)):
                    said = " and ".join([f"{name} has shape {own}" for name, own in zip(lengths, shapes, strict=False)])
                    raise ValueError(f"{said}: they broadcast otherwise than the inputs that this was written from")

        @wraps(ahead)
        def forward(*values: Any, **options: Any) -> Any:
            check(tuple(map(np.shape, values)))
            return ahead(*values, **options)

        return Derivation(text, forward, back, self.runs[2].inputs, file_of(self.f))

    def hold(self, made: Derivation, run: Recording) -> None:
        """Hold both against a recording, and against f on arrays."""
        *outputs, cache = made.forward(*run.inputs.values(), **run.options)
        gradients = _one_an_input(made, *[y.data for y in run.upstream], cache)
        run.hold(outputs, dict(zip(run.inputs, gradients, strict=True)))
        try:
            plain = self.f(*copy.deepcopy([*run.inputs.values()]), **run.options)
        except Exception:  # f takes no arrays, but tensors
            return
        plain = [*plain][: len(outputs)] if isinstance(plain, tuple | list) and len(plain) > 1 else [plain]
        for y, expected in zip(outputs, plain, strict=True):
            if not np.allclose(y, np.asarray(expected), rtol=1e-9, atol=1e-12):
                raise Unwritable("forward gives something else on arrays, as where it sets elements of a view")

    def verdict(self, made: Derivation) -> Verdict | None:
        """The referee's, who sees code without the constants of `stop_gradient`, and judges all gradients or none."""
        constant = any(op == "stop_gradient" for op, _ in self.first.course)
        if constant or [*self.first.leaves] != [name for name, value in made.inputs.items() if is_float(value)]:
            return None
        backward = wraps(made.backward)(partial(_one_an_input, made))  # so that no name has to say whose each is
        with warnings.catch_warnings(action="ignore"):  # of what its arrays are told that are filled
            return check_backward(made.forward, backward, [*made.inputs.values()], names=[*made.inputs])


def _one_an_input(made: Derivation, *values: Any) -> tuple[Any, ...]:
    """What its backward pass returns, with None for the inputs at the end that have no gradient."""
    returned = made.backward(*values)
    listed = returned if isinstance(returned, tuple) else (returned,)
    return (*listed, *[None] * (len(made.inputs) - len(listed)))
