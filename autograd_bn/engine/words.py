"""What newcomers from NumPy and PyTorch write, and what it is called here: texts of errors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from inspect import Parameter, signature
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

# Methods of tensors that are an operation of that name, or of another one: NumPy's, and PyTorch's that mean the same.
METHODS = {
    name: name
    for name in (
        "std prod cumsum cumprod trace dot repeat clip exp log swapaxes ravel squeeze diagonal take sqrt square tanh "
        "sigmoid relu sin cos abs softmax log_softmax logsumexp rsqrt log1p expm1 "
        "argmax argmin argsort round all any nonzero"
    ).split()
} | {"flatten": "ravel", "pow": "power", "conj": "copy"}

# What NumPy's functions take that ours don't, and what to write instead.
NUMPY_OPTIONS = {
    "dtype": "convert with t.astype(dtype)",
    "where": "choose with np.where(mask, t, value) first",
    "initial": "use np.maximum or + on the result",
    "order": "transpose first, or t.T.reshape(...) of the reversed shape, transposed again",
    "casting": "convert with t.astype(dtype)",
    "subok": "there are no subclasses",
    "optimize": "operands are taken from left to right",
    "like": "pass arrays",
    "correction": "use ddof=",
    "kind": "it is stable",
    "stable": "it is stable",
    "returned": "sum the weights yourself",
}
METHODS_OF_UFUNCS = {
    "reduce": "use sum, prod, max or min, or t.data",
    "accumulate": "use cumsum or cumprod, or t.data",
    "reduceat": "use sums of slices, joined by stack()",
    "outer": "give the operands shapes that broadcast",
    "at": "it writes in place: add onto a tensor of the same shape, or index with repeats, whose gradients add up",
}
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "order": ("C", "K", "A"),
    "casting": ("same_kind",),
    "subok": (True, False),
    "where": (True,),
    "optimize": (True, False, "greedy", "optimal"),
    "kind": ("quicksort", "heapsort", "mergesort", "stable"),
    "stable": (True, False),
    "returned": (False,),
}

OPTIONS = {"dim": "axis", "dims": "axis", "keepdim": "keepdims", "unbiased": "ddof", "correction": "ddof"}
OPTIONS |= {"repeats_interleave": "repeats", "min": "a_min", "max": "a_max", "size": "shape"}

# PyTorch's and NumPy's names, and what to write here: `t` is a tensor.
_ARRAYS = "NumPy's, which is an operand as it is; ag.tensor(array, requires_grad=True) makes it a leaf"
NAMES = {
    **dict.fromkeys("zeros ones full empty eye arange linspace zeros_like ones_like full_like".split(), _ARRAYS),
    **dict.fromkeys("rand randn randint".split(), "ag.tensor(np.random.default_rng(0).normal(size=shape))"),
    "Variable": "ag.tensor(data, requires_grad=True)",
    "Parameter": "ag.tensor(data, requires_grad=True), set as an attribute of a Module",
    "from_numpy": "ag.as_tensor(array)",
    "cat": "ag.concatenate(arrays, axis)",
    "unsqueeze": "np.expand_dims(t, axis), or t[:, None]",
    "numel": "t.size",
    "size": "t.shape",
    "dim": "t.ndim",
    "permute": "t.transpose(axes)",
    "t": "t.T",
    **dict.fromkeys(["mm", "bmm", "mv"], "a @ b"),
    "pow": "ag.power(a, b), or a ** b",
    "clamp": "np.clip(t, low, high)",
    "expand": "ag.broadcast_to(t, shape)",
    **dict.fromkeys(["to", "type"], "t.astype(dtype)"),
    "float": "t.astype(np.float32)",
    "double": "t.astype(np.float64)",
    "half": "t.astype(np.float16)",
    **dict.fromkeys(["cpu", "cuda"], "nothing: tensors are in the memory of this machine"),
    "contiguous": "nothing, or t.copy()",
    "clone": "t.copy()",
    "item_": "t.item()",
    "requires_grad_": "t.requires_grad = True",
    "zero_": "t.assign(np.zeros(t.shape))",
    "retain_grad": "ag.grad(output, t), which gives the gradient of any tensor",
    "grad_fn": "t.node",
    "is_leaf": "t.node.op is None",
    "autograd": "ag.grad, and t.backward()",
    "enable_grad": "nothing: operations are recorded outside of ag.no_grad()",
    "manual_seed": "rng = np.random.default_rng(0), which layers take as rng=",
    "functional": "ag.softmax, ag.relu and ag.nn.cross_entropy stand alone",
    "DataLoader": "ag.data.batches(x, y, size, rng=rng)",
    "layer_norm": "ag.nn.LayerNorm(shape)",
    "dropout": "ag.nn.Dropout(p)",
    "numpy": "np itself, whose functions take tensors",
    "dot": "a @ b, or np.dot(a, b)",
    "std": "np.std(t, axis), or t.std(axis)",
    **{
        name: f"np.{name}(...), which takes tensors"
        for name in (
            "tile clip squeeze expand_dims ravel swapaxes moveaxis split diff roll flip tril triu diag outer inner "
            "tensordot sort take log2 log10 tan sinh cosh arctan average hstack vstack argmax argmin sign round floor"
        ).split()
    },
}


def missing(what: str, name: str) -> str:
    """The message for an attribute that isn't there, with what to write instead where that is known."""
    return f"{what}: write {NAMES[name]}" if name in NAMES else what


def unknown_option(function: str, options: Iterable[str], known: Sequence[str]) -> str:
    """The message for options that a function doesn't take: what to write instead, or what it takes."""
    wrong = next(name for name in options if name not in known)
    ours = OPTIONS.get(wrong)
    if ours in known:
        return f"{function} takes no {wrong}=: it is called {ours}= here, as in NumPy"
    if wrong in NUMPY_OPTIONS:
        return f"{function} takes no {wrong}=: {NUMPY_OPTIONS[wrong]}"
    return f"{function} takes no {wrong}=, only {', '.join(known) or 'arrays'}"


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose error for arguments that it doesn't take says what it takes, or what to write instead."""

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        return called(function, function.__name__, args, options)

    return call


def called(function: Callable[..., R], who: str, args: Sequence[Any], options: Mapping[str, Any]) -> R:
    """What an `explained` function gives, under another name."""
    try:
        return function(*args, **options)
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise  # from inside
        known = signature(function).parameters
        if not options.keys() <= known.keys():
            raise TypeError(unknown_option(who, options, [*known])) from None
        spelled = ", ".join([str(parameter.replace(annotation=Parameter.empty)) for parameter in known.values()])
        raise TypeError(f"{who} takes ({spelled}), got {len(args)} arguments by position") from None


def is_default(option: str, value: Any) -> bool:
    """Whether an option of NumPy's that ours haven't is given what it is without it."""
    return (
        value is None or value is np._NoValue or (isinstance(value, str | bool) and value in _DEFAULTS.get(option, ()))
    )


def numpy_name(function: Any) -> str:
    """A function's name as users write it: "np.linalg.norm"."""
    module = getattr(function, "__module__", None) or "numpy"
    return f"{module.replace('numpy', 'np', 1)}.{function.__name__}"
