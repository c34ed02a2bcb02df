"""NumPy's functions on tensors against PyTorch, to second order, on the samples that PyTorch tests itself by."""

import warnings
from collections import Counter

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.engine.tensor import values_of

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")

SAME = (
    "abs ceil cos cosh deg2rad exp exp2 expm1 floor log log10 log1p log2 positive rad2deg reciprocal sign sin "
    "sinc sinh sqrt square tan tanh trunc ravel fliplr flipud isnan isfinite isinf signbit fmax fmin hypot "
    "remainder fmod logaddexp logaddexp2 floor_divide heaviside isclose logical_and logical_or logical_xor "
    "kron outer inner vdot matmul maximum minimum float_power eq:equal ne:not_equal lt:less le:less_equal "
    "gt:greater ge:greater_equal acos:arccos acosh:arccosh asin:arcsin asinh:arcsinh atan:arctan atanh:arctanh "
    "atan2:arctan2 neg:negative sgn:sign clone:copy mm:matmul mv:matmul bmm:matmul permute:transpose "
    "movedim:moveaxis unsqueeze:expand_dims diag tril triu trace round hsplit vsplit dsplit "
    "tensor_split:array_split dot atleast_1d atleast_2d atleast_3d rot90 flip diff take"
).split()
REDUCED = "sum mean amax:max amin:min nansum nanmean all any argmax argmin prod".split()
AXIS = {"dim": "axis", "dims": "axis", "keepdim": "keepdims"}


def numpy_function(name):
    return lambda *args, **options: getattr(np, name)(*args, **{AXIS.get(k, k): v for k, v in options.items()})


def reduction(name):
    def reduced(x, dim=None, keepdim=False, dtype=None):
        return getattr(np, name)(x, axis=dim if dim not in ((), []) else None, keepdims=keepdim)

    return reduced


def variance(function):
    def found(x, dim=None, unbiased=None, keepdim=False, correction=1):
        if isinstance(dim, bool):
            dim, unbiased, keepdim = (None if unbiased is None else unbiased), dim, keepdim
        correction = 1 if correction is None else correction
        ddof = correction if unbiased is None else int(unbiased)
        return function(x, axis=dim if dim not in ((), []) else None, ddof=ddof, keepdims=keepdim)

    return found


def one(items):
    return items[0] if len(items) == 1 and not isinstance(items[0], int) else items


def expanded(x, *size):
    size, shape = tuple(one(size)), np.shape(x)
    lead = len(size) - len(shape)
    return np.broadcast_to(x, tuple([shape[i - lead] if n == -1 else n for i, n in enumerate(size)]))


def at(x, dim, index):
    return x[(slice(None),) * (dim % np.ndim(x)) + (index,)]


def parts(x, size, dim=0):
    cuts = range(size, np.shape(x)[dim], size) if isinstance(size, int) else np.cumsum(size)[:-1]
    return np.split(x, [*map(int, cuts)], axis=dim)


def sort_either_way(x, dim=-1, descending=False, stable=False):
    return np.flip(np.sort(x, dim), dim) if descending else np.sort(x, dim)


TABLE = {}
for names, make in ((SAME, numpy_function), (REDUCED, reduction)):
    for pair in names:
        theirs, _, ours = pair.partition(":")
        TABLE[theirs] = make(ours or theirs)
TABLE |= {
    "rsqrt": ag.rsqrt,
    "sigmoid": ag.sigmoid,
    "erf": ag.erf,
    "nn.functional.relu": lambda x, inplace=False: ag.relu(x),
    "softmax": lambda x, dim, dtype=None: ag.softmax(x, dim),
    "log_softmax": lambda x, dim, dtype=None: ag.log_softmax(x, dim),
    "logsumexp": lambda x, dim, keepdim=False: ag.logsumexp(x, dim, keepdim),
    "var": variance(np.var),
    "std": variance(np.std),
    "add": lambda a, b, alpha=1: a + alpha * b,
    "sub": lambda a, b, alpha=1: a - alpha * b,
    "rsub": lambda a, b, alpha=1: b - alpha * a,
    "mul": lambda a, b: a * b,
    "true_divide": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "__radd__": lambda a, b: b + a,
    "__rmul__": lambda a, b: b * a,
    "__rsub__": lambda a, b: b - a,
    "__rdiv__": lambda a, b: b / a,
    "__rpow__": lambda a, b: b**a,
    "__rmod__": lambda a, b: b % a,
    "__rmatmul__": lambda a, b: b @ a,
    "clamp": lambda x, min=None, max=None: np.clip(x, min, max),
    "lerp": lambda a, b, w: a + w * (b - a),
    "addcmul": lambda a, b, c, value=1: a + value * b * c,
    "addcdiv": lambda a, b, c, value=1: a + value * b / c,
    "addmm": lambda a, b, c, beta=1, alpha=1: beta * a + alpha * (b @ c),
    "addmv": lambda a, b, c, beta=1, alpha=1: beta * a + alpha * (b @ c),
    "baddbmm": lambda a, b, c, beta=1, alpha=1: beta * a + alpha * (b @ c),
    "addr": lambda a, b, c, beta=1, alpha=1: beta * a + alpha * np.outer(b, c),
    "meshgrid": lambda vectors, *others, indexing="ij": np.meshgrid(*flat(vectors), *others, indexing=indexing),
    "cumsum": lambda x, dim, dtype=None: np.cumsum(x, axis=dim) if np.ndim(x) else x,
    "cumprod": lambda x, dim, dtype=None: np.cumprod(x, axis=dim) if np.ndim(x) else x,
    "reshape": lambda x, *shape: np.reshape(x, tuple(one(shape))),
    "view": lambda x, *shape: np.reshape(x, tuple(one(shape))),
    "T": lambda x: x.T,
    "t": np.transpose,
    "transpose": lambda x, a, b: np.swapaxes(x, a, b),
    "mT": lambda x: np.swapaxes(x, -1, -2),
    "expand": expanded,
    "broadcast_to": expanded,
    "cat": lambda arrays, dim=0: np.concatenate(list(arrays), axis=dim),
    "stack": lambda arrays, dim=0: np.stack(list(arrays), axis=dim),
    "hstack": lambda arrays: np.hstack(list(arrays)),
    "vstack": lambda arrays: np.vstack(list(arrays)),
    "dstack": lambda arrays: np.dstack(list(arrays)),
    "column_stack": lambda arrays: np.column_stack(list(arrays)),
    "split": parts,
    "split_with_sizes": parts,
    "chunk": lambda x, n, dim=0: np.array_split(x, n, axis=dim),
    "tile": lambda x, *times: np.tile(x, one(times)),
    "repeat": lambda x, *times: np.tile(x, one(times)),
    "roll": lambda x, shifts, dims=None: np.roll(x, shifts, dims if dims not in ((), []) else None),
    "diagonal": np.diagonal,
    "diagflat": np.diagflat,
    "select": at,
    "unbind": lambda x, dim=0: [at(x, dim, i) for i in range(np.shape(x)[dim])],
    "index_select": lambda x, dim, index: at(x, dim, index),
    "gather": lambda x, dim, index: np.take_along_axis(x, index, axis=dim),
    "take_along_dim": lambda x, index, dim=None: np.take_along_axis(x, index, axis=dim),
    "masked_fill": lambda x, mask, value: np.where(mask, value, x),
    "where": lambda a, condition, b: np.where(condition, a, b),
    "tensordot": lambda a, b, dims=2: np.tensordot(a, b, dims),
    "einsum": lambda arrays, equation: np.einsum(equation, *arrays),
    "trapezoid": lambda y, x=None, dx=1.0, dim=-1: np.trapezoid(y, x, dx, dim),
    "sort": sort_either_way,
    "linalg.inv": np.linalg.inv,
    "linalg.det": np.linalg.det,
    "linalg.matrix_power": np.linalg.matrix_power,
    "linalg.multi_dot": np.linalg.multi_dot,
    "nn.functional.linear": lambda x, w, b=None: x @ w.T if b is None else x @ w.T + b,
}


def ours(tree, leaves):
    """PyTorch's arguments as ours; the tensors that require a gradient are added to `leaves`, in pairs."""
    if isinstance(tree, torch.Tensor):
        array = tree.detach().numpy().copy()
        if not tree.requires_grad:
            return array
        leaves.append((tree, ag.tensor(array, requires_grad=True)))
        return leaves[-1][1]
    if isinstance(tree, (list, tuple)):
        return type(tree)(ours(item, leaves) for item in tree)
    return {name: ours(value, leaves) for name, value in tree.items()} if isinstance(tree, dict) else tree


def flat(result):
    return [*result] if isinstance(result, (list, tuple)) else [result]


def zeros(g, like):
    if g is None:
        return np.zeros(tuple(like.shape))
    return g.numpy(force=True) if isinstance(g, torch.Tensor) else values_of(g)


def judged(name, op, sample):
    """What comes of a sample: "agree", "refused", or what is wrong."""
    leaves = []
    args, options = ours((sample.input, *sample.args), leaves), ours(sample.kwargs, leaves)
    expected = flat(op(sample.input, *sample.args, **sample.kwargs))[: 1 if name == "sort" else None]  # without places
    try:
        outputs = flat(TABLE[name](*args, **options))
    except (TypeError, ValueError, IndexError, ZeroDivisionError, np.linalg.LinAlgError) as error:
        return "refused" if str(error) else "unclear"
    if not all(isinstance(y, torch.Tensor) for y in expected):
        return "not said"
    if [np.shape(a) for a in outputs] != [tuple(b.shape) for b in expected]:
        return "other shape"  # of 0-d arrays, which NumPy makes 1-d, and of options that mean another thing there
    for a, b in zip(outputs, expected, strict=True):
        if not np.allclose(values_of(a), b.detach().numpy(), 1e-9, 1e-10, equal_nan=True):
            return "wrong value"
    live = [(a, b) for a, b in zip(outputs, expected, strict=True) if b.requires_grad]
    if not live or not leaves:
        return "agree"
    rng = np.random.default_rng(0)
    theirs, mine = zip(*leaves, strict=True)
    seeds = [rng.normal(size=np.shape(a)) for a, _ in live]
    weights = [torch.tensor(w, requires_grad=True) for w in seeds]
    tensors = [ag.tensor(w, requires_grad=True) for w in seeds]
    twice = op.supports_gradgrad
    true = torch.autograd.grad([b for _, b in live], theirs, weights, create_graph=twice, allow_unused=True)
    if not all(isinstance(a, ag.Tensor) for a, _ in live):
        return "cut" if any(g is not None and g.any() for g in true) else "agree"
    found = ag.grad([a for a, _ in live], mine, tensors, create_graph=True, allow_unused=True)
    for g, h, x in zip(found, true, theirs, strict=True):
        if not np.allclose(zeros(g, x), zeros(h, x), 1e-7, 1e-9, equal_nan=True):
            return "wrong gradient"
    if not twice:
        return "agree"
    along = [rng.normal(size=tuple(x.shape)) for x in theirs]
    true = [(h, torch.tensor(u)) for h, u in zip(true, along, strict=True) if h is not None and h.requires_grad]
    found = [(g, u) for g, u in zip(found, along, strict=True) if g is not None and g.requires_grad]
    every, own = [*theirs, *weights], [*mine, *tensors]
    second = mine = [None] * len(every)
    if true:
        second = torch.autograd.grad([h for h, _ in true], every, [u for _, u in true], allow_unused=True)
    if found:
        mine = ag.grad([g for g, _ in found], own, [u for _, u in found], allow_unused=True)
    for g, h, x in zip(mine, second, every, strict=True):
        a, b = np.zeros(tuple(x.shape)) if g is None else g, zeros(h, x)
        if not np.allclose(np.where(np.isnan(b), 0, a), np.nan_to_num(b), 1e-6, 1e-8):
            return "wrong second order"
    return "agree"


def test_samples_of_pytorch_agree_or_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db

        outcomes, wrong = Counter(), []
        for op in op_db:
            if op.name not in TABLE or not op.supports_dtype(torch.float64, "cpu"):
                continue
            torch.manual_seed(0)
            samples = op.sample_inputs("cpu", torch.float64, requires_grad=op.supports_autograd)
            for i, sample in zip(range(100), samples, strict=False):
                if sum(t.numel() for t in flat(sample.input) if isinstance(t, torch.Tensor)) > 5000:
                    continue
                outcome = judged(op.name, op, sample)
                outcomes[outcome] += 1
                if outcome not in ("agree", "refused", "not said"):
                    wrong.append((op.name, i, outcome))
    assert not wrong
    assert outcomes["agree"] > 1300
