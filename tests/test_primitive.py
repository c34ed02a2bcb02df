"""Every primitive's derivative against central differences and complex steps, at orders 1 and 2.

A new primitive needs an entry in `SAMPLES`, or the first test fails.
"""

import copy
import functools
from typing import Any, NamedTuple

import numpy as np
import pytest

import autograd_bn as ag
import autograd_bn.nn.functions as nn
from autograd_bn.engine.node import Leaf
from autograd_bn.engine.primitive import primitive, registry
from autograd_bn.verify.derivation.tracing import put


class Sample(NamedTuple):
    """A call of the primitive on inputs that are away from its kinks, each given as shape or array.

    `analytic` replaces `f` in the complex step where the forward function itself is not analytic.
    """

    f: Any
    inputs: tuple[Any, ...]
    analytic: Any = None


def positive(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape) + 7).uniform(0.5, 2.0, shape)


def signed(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(len(shape) + 3)
    return rng.uniform(0.5, 2.0, shape) * rng.choice([-1, 1], shape)


def distinct(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).permutation(np.prod(shape)).reshape(shape) * 0.3 - 1.1


def alone() -> Any:
    return pytest.importorskip("mpi4py.MPI").COMM_SELF


def sign_times(x: Any) -> Any:
    return ag.multiply(x, np.sign(np.asarray(x).real))


MASK = np.array([[True], [False], [True]])

SAMPLES: dict[str, list[Sample]] = {
    "add": [Sample(ag.add, ((3, 1), (4,))), Sample(lambda x: x + x, ((2, 3),))],
    "subtract": [Sample(ag.subtract, ((3, 1), (2, 3, 4)))],
    "multiply": [Sample(ag.multiply, ((3, 1), (4,))), Sample(lambda x: ag.multiply(x, x), ((3,),))],
    "divide": [Sample(ag.divide, ((3, 1), positive(4))), Sample(lambda b: ag.divide(2.0, b), (signed(3),))],
    "power": [
        Sample(ag.power, (positive(3, 1), (4,))),
        Sample(lambda a: ag.power(a, 3), ((3, 2),)),
        Sample(lambda a: ag.power(a, -2), (signed(3),)),
        Sample(lambda a: ag.power(a, np.array([0.0, 1.0, 2.0, 3.0])), (signed(3, 1),)),
        Sample(lambda b: ag.power(2.0, b), ((3,),)),
        Sample(ag.power, (positive(3), np.array([0.0, 1.0, 2.0]))),
    ],
    "maximum": [Sample(ag.maximum, (distinct(3, 1), distinct(4) + 0.1))],
    "minimum": [Sample(ag.minimum, (distinct(3, 1), distinct(4) + 0.1))],
    "put": [Sample(lambda a, b: put(ag.square(a), b, index=(slice(2), 1)), ((3, 2), (2,)))],
    "where": [Sample(lambda a, b: ag.where(MASK, a, b), ((4,), (2, 1, 4)))],
    "negative": [Sample(ag.negative, ((2, 3),))],
    "exp": [Sample(ag.exp, ((2, 3),))],
    "log": [Sample(ag.log, (positive(2, 3),))],
    "sqrt": [Sample(ag.sqrt, (positive(2, 3),))],
    "rsqrt": [Sample(ag.rsqrt, (positive(2, 3),))],
    "square": [Sample(ag.square, ((2, 3),))],
    "abs": [Sample(ag.abs, (signed(2, 3),), sign_times)],
    "sin": [Sample(ag.sin, ((2, 3),))],
    "cos": [Sample(ag.cos, ((2, 3),))],
    "log1p": [Sample(ag.log1p, (positive(2, 3),))],
    "expm1": [Sample(ag.expm1, ((2, 3),))],
    "cumsum": [Sample(ag.cumsum, ((2, 3),)), Sample(lambda x: ag.cumsum(x, -1), ((2, 3),))],
    "pad": [Sample(lambda x: ag.pad(x, ((1, 0), (0, 2)), constant_values=3.0), ((2, 3),))],
    "tanh": [Sample(ag.tanh, ((2, 3),))],
    "sigmoid": [Sample(ag.sigmoid, ((2, 3),))],
    "relu": [Sample(ag.relu, (signed(2, 3),))],
    "astype": [Sample(lambda x: ag.square(x).astype(x.dtype), ((2, 3),))],
    "copy": [Sample(lambda x: ag.square(x).copy(), ((2, 3),))],
    "tan": [Sample(np.tan, (positive(2, 3) / 2,))],
    "arcsin": [Sample(np.arcsin, (signed(2, 3) / 3,))],
    "arccos": [Sample(np.arccos, (signed(2, 3) / 3,))],
    "arctan": [Sample(np.arctan, ((2, 3),))],
    "arctan2": [Sample(np.arctan2, (signed(3, 1), signed(4)))],
    "sinh": [Sample(np.sinh, ((2, 3),))],
    "cosh": [Sample(np.cosh, ((2, 3),))],
    "arcsinh": [Sample(np.arcsinh, ((2, 3),))],
    "arccosh": [Sample(np.arccosh, (positive(2, 3) + 1,))],
    "arctanh": [Sample(np.arctanh, (signed(2, 3) / 3,))],
    "deg2rad": [Sample(np.deg2rad, ((2, 3),))],
    "rad2deg": [Sample(np.rad2deg, ((2, 3),))],
    "log2": [Sample(np.log2, (positive(2, 3),))],
    "log10": [Sample(np.log10, (positive(2, 3),))],
    "exp2": [Sample(np.exp2, ((2, 3),))],
    "erf": [Sample(ag.erf, ((2, 3),))],
    "logaddexp": [Sample(np.logaddexp, ((3, 1), (4,)))],
    "logaddexp2": [Sample(np.logaddexp2, ((3, 1), (4,)))],
    "hypot": [Sample(np.hypot, (signed(3, 1), signed(4)))],
    "remainder": [Sample(np.remainder, (signed(3, 1), positive(4) * 0.7))],
    "fmod": [Sample(np.fmod, (signed(3, 1), positive(4) * 0.7))],
    "solve": [Sample(np.linalg.solve, (signed(2, 3, 3) + 4 * np.eye(3), signed(3, 2)))],
    "inv": [Sample(np.linalg.inv, (signed(2, 3, 3) + 4 * np.eye(3),))],
    "det": [Sample(np.linalg.det, (signed(2, 3, 3),))],
    "logdet": [Sample(lambda x: np.linalg.slogdet(x)[1], (signed(2, 3, 3),))],
    "stop_gradient": [
        Sample(lambda x: x * ag.stop_gradient(x), ((2, 3),), lambda x: x * np.asarray(x).real),
    ],
    "sum": [
        Sample(ag.sum, ((2, 3),)),
        Sample(lambda x: ag.sum(x, axis=(0, -1)), ((2, 3, 4),)),
        Sample(lambda x: ag.sum(x, axis=1, keepdims=True), ((2, 3, 4),)),
    ],
    "mean": [
        Sample(ag.mean, ((2, 3),)),
        Sample(lambda x: ag.mean(x, axis=[2, 0]), ((2, 3, 4),)),
        Sample(lambda x: ag.mean(x, axis=-2, keepdims=True), ((2, 3, 4),)),
    ],
    "var": [
        Sample(ag.var, ((2, 3),)),
        Sample(lambda x: ag.var(x, axis=(0, 2), ddof=1), ((2, 3, 4),)),
        Sample(lambda x: ag.var(x, axis=-1, keepdims=True), ((2, 3, 4),)),
    ],
    "max": [Sample(ag.max, (distinct(2, 3),)), Sample(lambda x: ag.max(x, axis=(0, 2)), (distinct(2, 3, 4),))],
    "min": [
        Sample(ag.min, (distinct(2, 3),)),
        Sample(lambda x: ag.min(x, axis=-1, keepdims=True), (distinct(2, 3),)),
    ],
    "logsumexp": [
        Sample(ag.logsumexp, ((2, 3),)),
        Sample(lambda x: ag.logsumexp(x, axis=(0, 2)), ((2, 3, 4),)),
        Sample(lambda x: ag.logsumexp(x, axis=1, keepdims=True), ((2, 3),)),
    ],
    "softmax": [Sample(ag.softmax, ((2, 3),)), Sample(lambda x: ag.softmax(x, axis=(0, 2)), ((2, 3, 2),))],
    "log_softmax": [Sample(ag.log_softmax, ((2, 3),)), Sample(lambda x: ag.log_softmax(x, axis=0), ((2, 3),))],
    "reshape": [Sample(lambda x: ag.reshape(ag.square(x), (3, -1)), ((2, 3),))],
    "transpose": [
        Sample(lambda x: ag.transpose(ag.square(x)), ((2, 3),)),
        Sample(lambda x: ag.transpose(ag.square(x), (2, 0, -2)), ((2, 3, 4),)),
    ],
    "broadcast_to": [Sample(lambda x: ag.broadcast_to(ag.square(x), (2, 3, 4)), ((3, 1),))],
    "sum_to": [Sample(lambda x: ag.engine.operations.sum_to(ag.square(x), (3, 1)), ((2, 3, 4),))],
    "concatenate": [
        Sample(lambda a, b: ag.concatenate([a, ag.square(b), a], axis=-1), ((2, 3), (2, 1))),
        Sample(lambda a, b: ag.concatenate([a, ag.square(b)], axis=None), ((2, 3), (2, 1))),
    ],
    "stack": [Sample(lambda a, b: ag.stack([a, ag.square(b), a], axis=-2), ((2, 3), (2, 3)))],
    "getitem": [
        Sample(lambda x: ag.square(x)[1:, ::-1], ((3, 4),)),
        Sample(lambda x: ag.square(x)[..., None, -1], ((3, 4),)),
        Sample(lambda x: ag.square(x)[[0, 0, 2], [1, 1, 3]], ((3, 4),)),
        Sample(lambda x: ag.square(x)[np.eye(3, dtype=bool)], ((3, 3, 2),)),
    ],
    "scatter": [Sample(lambda x: ag.engine.operations.scatter(ag.square(x), np.array([0, 2, 0]), (4, 2)), ((3, 2),))],
    "matmul": [
        Sample(ag.matmul, (m, n))
        for m, n in (
            ((2, 3), (3, 4)),
            ((3,), (3,)),
            ((3,), (3, 4)),
            ((2, 3), (3,)),
            ((5, 2, 3), (3, 4)),
            ((2, 1, 2, 3), (5, 3, 1)),
            ((3,), (2, 3, 4)),
            ((5, 2, 3), (3,)),
        )
    ],
    "einsum": [
        Sample(lambda a, b: ag.einsum("ij,kjl->lik", a, b), ((2, 3), (2, 3, 4))),
        Sample(lambda a, b: ag.einsum("ij,j->", a, b), ((2, 3), (3,))),
    ],
    "batch_norm": [
        Sample(lambda x, g, b: ag.batch_norm(x, g, b, eps=0.3), ((5, 3), (3,), (3,))),
        Sample(lambda x, g: ag.batch_norm(x, g, eps=0.3, axes=(0, -1)), ((3, 2, 2), (2,))),
    ],
    "linear": [
        Sample(nn.linear, ((2, 3), (4, 3), (4,))),
        Sample(lambda x, w: nn.linear(x, w, None), ((5, 2, 3), (4, 3))),
    ],
    "windows": [
        Sample(lambda x: nn.windows(ag.square(x), (2, 2), (1, 2), (0, 0)), ((2, 4, 5, 2),)),
        Sample(lambda x: nn.windows(ag.square(x), (3, 2), (2, 1), (1, 1)), ((1, 4, 3, 2),)),
    ],
    "fold": [Sample(lambda x: nn.fold(ag.square(x), (1, 4, 4, 2), (2, 1), (0, 0)), ((1, 2, 3, 2, 2, 2),))],
    "max_pool": [Sample(lambda x: nn.max_pool(x, (2, 2), (1, 1), (1, 0)), (distinct(1, 3, 3, 2),))],
    "cross_entropy": [Sample(lambda x: ag.nn.cross_entropy(x, [2, 0]), ((2, 3),))],
    "logistic_loss": [Sample(ag.nn.losses._logistic_loss, (signed(2, 3), (2, 3)))],
    "allreduce": [Sample(lambda x: ag.distributed.allreduce(ag.square(x), alone()), ((2, 3),))],
}


def drawn(sample: Sample, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=given) if isinstance(given, tuple) else given.astype(float) for given in sample.inputs]


def leaf(array: np.ndarray) -> ag.Tensor:
    """A leaf that requires a gradient whatever its dtype: the rules take complex numbers, the users' door doesn't."""
    return ag.Tensor(array, Leaf(array, True))


def first_order(f: Any, inputs: list[np.ndarray], weights: np.ndarray) -> list[np.ndarray]:
    leaves = [leaf(array) for array in inputs]
    return list(ag.grad(f(*leaves), leaves, [weights]))


def second_order(f: Any, inputs: list[np.ndarray], weights: np.ndarray, directions: list[np.ndarray]) -> Any:
    leaves = [leaf(array) for array in inputs]
    seed = leaf(weights)
    gradients = ag.grad(f(*leaves), leaves, [seed], create_graph=True)
    return ag.grad(gradients, [*leaves, seed], directions, allow_unused=True)


def central(f: Any, inputs: list[np.ndarray], step: float = 1e-5) -> list[np.ndarray]:
    """The gradient of a scalar function, entry by entry."""

    def slope(i: int, k: int) -> float:
        ends = []
        for sign in (1, -1):
            moved = [array.copy() for array in inputs]
            moved[i].reshape(-1)[k] += sign * step
            ends.append(f(*moved))
        return (ends[0] - ends[1]) / (2 * step)

    return [np.array([slope(i, k) for k in range(array.size)]).reshape(array.shape) for i, array in enumerate(inputs)]


def complex_step(f: Any, inputs: list[np.ndarray], step: float = 1e-40) -> list[np.ndarray]:
    """The gradient of a scalar analytic function, to the last bits: nothing is subtracted."""

    def slope(i: int, k: int) -> float:
        moved = [array.astype(complex) for array in inputs]
        moved[i].reshape(-1)[k] += 1j * step
        return f(*moved).imag / step

    return [np.array([slope(i, k) for k in range(array.size)]).reshape(array.shape) for i, array in enumerate(inputs)]


CASES = [
    pytest.param(name, sample, id=f"{name}-{i}") for name, rows in SAMPLES.items() for i, sample in enumerate(rows)
]
# Their forward functions work in real arithmetic.
REAL_ONLY = {"batch_norm", "cross_entropy", "logistic_loss", "put"}
REAL_ONLY |= set("arctan2 deg2rad rad2deg erf logaddexp logaddexp2 hypot remainder fmod logdet".split())


def test_every_primitive_has_a_sample_that_records_it():
    assert registry.keys() == SAMPLES.keys(), "a primitive has no entry in SAMPLES, or an entry no primitive"
    for name, rows in SAMPLES.items():
        for sample in rows:
            assert name in ag.Graph(sample.f(*[leaf(array) for array in drawn(sample, 0)])).ops


@pytest.mark.parametrize(("name", "sample"), CASES)
def test_first_order_agrees_with_differences_and_complex_steps(name, sample):
    inputs = drawn(sample, 1)
    out = sample.f(*[leaf(array) for array in inputs]).data
    weights = np.random.default_rng(2).normal(size=out.shape)
    f, analytic = sample.f, sample.analytic or sample.f
    if name not in ("astype", "copy", "getitem", "stop_gradient"):  # methods of tensors
        assert np.array_equal(f(*inputs), out)
    gradients = first_order(f, inputs, weights)
    if name != "stop_gradient":
        differences = central(lambda *arrays: np.sum(weights * f(*map(leaf, arrays)).data), inputs)
        for found, expected in zip(gradients, differences, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    if name not in REAL_ONLY:
        steps = complex_step(lambda *arrays: np.sum(weights * analytic(*map(leaf, arrays)).data), inputs)
        for found, expected in zip(gradients, steps, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "sample"), CASES)
def test_second_order_agrees_with_differences_and_complex_steps(name, sample):
    inputs = drawn(sample, 3)
    out = sample.f(*[leaf(array) for array in inputs]).data
    rng = np.random.default_rng(4)
    weights = rng.normal(size=out.shape)
    directions = [rng.normal(size=array.shape) for array in inputs]
    found = second_order(sample.f, inputs, weights, directions)

    def along(f):
        def slope(*moved):
            *arrays, seed = moved
            gradients = first_order(f, arrays, seed)
            return sum(np.sum(g * d) for g, d in zip(gradients, directions, strict=True))

        return slope

    expected = [central(along(sample.f), [*inputs, weights])]
    tolerances = [{"rtol": 1e-6, "atol": 1e-7}]
    if name == "stop_gradient":  # the difference sees through the cut, the derivative must not
        x, w, d = inputs[0], weights, directions[0]
        expected, tolerances = [[np.zeros_like(x), x * d]], [{"rtol": 1e-12}]
        assert np.array_equal(second_order(sample.f, inputs, weights, directions)[1], x * d)
        assert w.shape == d.shape
    elif name not in REAL_ONLY:
        expected.append(complex_step(along(sample.analytic or sample.f), [*inputs, weights]))
        tolerances.append({"rtol": 1e-11, "atol": 1e-12})
    for reference, tolerance in zip(expected, tolerances, strict=True):
        for g, r in zip(found, reference, strict=True):
            np.testing.assert_allclose(np.zeros_like(r) if g is None else g, r, **tolerance)


def test_a_planted_wrong_rule_is_caught():
    @primitive(lambda g, out: g * (1 - out))  # the factor `out` is missing
    def wrong_sigmoid(x, /):
        return 1 / (1 + np.exp(-x))

    with pytest.raises(AssertionError, match="Not equal"):
        test_first_order_agrees_with_differences_and_complex_steps("wrong", Sample(wrong_sigmoid, ((3,),)))


def test_a_new_operation_is_one_declaration():
    @primitive(lambda g, x, times: g * times * x ** (times - 1))
    def nth(x, /, times=2):
        return x**times

    x = ag.tensor([1.0, 2.0], requires_grad=True)
    y = nth(x, 3)
    assert (ag.Graph(y).ops, y.node.params) == ({"nth": 1}, {"times": 3})
    assert np.array_equal(ag.grad(y.sum(), x)[0], [3.0, 12.0])
    assert np.array_equal(ag.hessian(lambda x: nth(x, times=3).sum(), x.data), [[6.0, 0.0], [0.0, 12.0]])
    assert type(nth(x.data)) is np.ndarray
    with pytest.raises(TypeError, match="nth"):
        nth(x, 3, 4)
    with pytest.raises(TypeError, match="times"):
        nth(x, 3, times=4)


def test_only_the_packages_own_primitives_have_its_names():
    @primitive(lambda g: 5 * g)
    @functools.wraps(ag.exp)
    def like_ours(x, /):
        return x * 5

    sqrt = primitive(lambda g: 7 * g)(ag.sqrt.__wrapped__)  # with another rule
    x = ag.tensor([1.0, 4.0], requires_grad=True)
    assert [f(x).node.own_op for f in (ag.exp, ag.sqrt, ag.mean)] == ["exp", "sqrt", "mean"]
    for mine, name in ((like_ours, "exp"), (sqrt, "sqrt")):
        assert (mine(x).node.op, mine(x).node.own_op) == (name, None)
        assert registry.get(name) is not mine(x).node.primitive
    assert x.node.own_op is None
    assert copy.deepcopy(ag.multiply)(x, x).node.own_op == "multiply"


def test_a_missing_rule_is_an_error_not_a_zero():
    with pytest.raises(TypeError, match="where has no derivative with respect to its argument 1"):
        ag.where(ag.tensor([1.0], requires_grad=True), 1.0, 2.0)


def test_joint_rule_gets_the_gradients_that_are_wanted():
    asked = []

    def rule(g, wanted, a, b, kept):
        asked.append(wanted)
        return (g * b + kept * 0 if wanted[0] else None, g * a if wanted[1] else None)

    @primitive(rule, joint=True)
    def product(a, b, /):
        return a * b, 7

    a, b = ag.tensor([2.0], requires_grad=True), ag.tensor([3.0], requires_grad=True)
    y, kept = product(a, b)
    assert kept == 7
    assert ag.grad(y, a) == (np.array([3.0]),)
    y.backward()
    assert (a.grad, b.grad) == (np.array([3.0]), np.array([2.0]))
    y, _ = product(a, 5.0)
    assert ag.grad(y, a) == (np.array([5.0]),)
    assert asked == [(True, False), (True, True), (True, False)]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ((1.0,), "the rule of 'product' gave 1 gradients, expected a tuple of 2, one for each input"),
        ((1.0, 2.0, 3.0), "the rule of 'product' gave 3 gradients, expected a tuple of 2"),
        (np.ones((2, 1)), "the rule of 'product' gave a ndarray, expected a tuple of 2"),
        (None, "the rule of 'product' gave a NoneType, expected a tuple of 2"),
        ((np.ones(1), None), "the rule of 'product' for its argument 2 gave None"),
    ],
)
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_joint_rule_that_gives_no_gradient_for_each_input_is_named(results, message, create_graph):
    @primitive(lambda g, wanted: results, joint=True)
    def product(a, b, /):
        return a * b, None

    a, b = ag.tensor([2.0], requires_grad=True), ag.tensor([3.0], requires_grad=True)
    with pytest.raises(TypeError, match=message):
        ag.grad(product(a, b)[0], [a, b], create_graph=create_graph)


WORKING = "def op(x, /):\n    return x"
REFUSED = {
    "no slash": ("primitive(lambda g: g)", "def op(x):\n    return x", "op takes no arrays: put a /"),
    "too few rules": ("primitive(lambda g: g)", "def op(a, b, /):\n    return a", "op has 1 rules for 2 arrays"),
    "too many rules": ("primitive(lambda g: g, None)", WORKING, "op has 2 rules for 1 arrays"),
    "two joint rules": ("primitive(lambda g: g, None, joint=True)", WORKING, "op has 2 rules for 1"),
    "an unknown name": ("primitive(lambda g, inp: g)", WORKING, "op: a rule reads 'inp', which is none of x, out"),
    "kept alone": ("primitive(lambda g, kept: g)", WORKING, "a rule reads 'kept'"),
    "values of many": ("primitive(lambda g, out: g)", "def op(*xs):\n    return xs[0]", "any number of arrays"),
    "a ufunc": ("primitive(np.cos)", WORKING, "a rule of op is a ufunc"),
    "no brackets": ("primitive", WORKING, "without brackets"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_declaration_that_cannot_work_is_refused_when_it_is_made(name):
    decorator, function, message = REFUSED[name]
    before = dict(registry)
    with pytest.raises(TypeError, match=message):
        exec(f"@{decorator}\n{function}", {"primitive": primitive, "np": np})
    with pytest.raises(TypeError, match="decorates a Python function, got a Tensor"):
        primitive(lambda g: g)(ag.tensor(1.0))
    assert registry == before


def test_a_rule_with_a_wrong_result_names_its_operation():
    results = {"shape": lambda g: g[:1, :2], "smaller": lambda g: g[0, 0], "None": lambda g: None}
    for what, rule in results.items():

        @primitive(rule)
        def crooked(x, /):
            return x * 1

        x = ag.tensor(np.ones((2, 3)), requires_grad=True)
        error = TypeError if what == "None" else ValueError
        with pytest.raises(error, match=r"the rule of 'crooked' for its argument 1 gave (shape|None)"):
            crooked(x).sum().backward()
        assert x.grad is None


def test_what_a_users_function_and_rules_get_can_not_be_written_to():
    def shifted(x, /):
        x += 1
        return x

    x, weights = ag.tensor([1.0, 2.0], requires_grad=True), np.ones(2)
    for rule, forward in (
        (lambda g: g.__imul__(2), lambda x, /: 2 * x),  # `add` hands one array to both
        (lambda g, x: x.__imul__(g), lambda x, /: x * x / 2),
        (lambda g, out: out.__imul__(g), lambda x, /: np.exp(x)),
        (lambda g: g, shifted),
    ):
        f = primitive(rule)(forward)
        with pytest.raises(ValueError, match="read-only"):
            ag.grad(f(x) + f(x), x, weights)
        assert weights.tolist() == [1, 1]
        assert x.data.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("forward", "joint", "message"),
    [
        (lambda x, /: None, False, "gives a NoneType, expected an array of real numbers"),
        (lambda x, /: (x, x), False, "gives a tuple, expected an array"),
        (lambda x, /: ag.tensor([1.0]), False, "gives a Tensor, expected an array"),
        (lambda x, /: x * 1j, False, "the result of .* has dtype complex128"),
        (lambda x, /: np.array(["a", "b"]), False, "the result of .* has dtype <U1"),
        (lambda x, /: 2 * x, True, "is joint and gives a ndarray, expected a result and `kept`"),
    ],
)
def test_a_result_that_is_no_array_of_numbers_is_refused(forward, joint, message):
    rule = (lambda g, wanted: (g,)) if joint else (lambda g: g)
    with pytest.raises(TypeError, match=message):
        primitive(rule, joint=joint)(forward)(ag.tensor([1.0, 2.0], requires_grad=True))


def test_a_complex_gradient_is_no_gradient():
    @primitive(lambda g: g * (1 + 1j))
    def turned(x, /):
        return x * 1

    x = ag.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match=r"'turned'.* complex numbers"):
        turned(x).sum().backward()
    assert x.grad is None


def test_a_list_among_the_options_is_the_callers_to_change():
    x = ag.tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    axis = [0, 1]
    y = ag.sum(x, axis)
    axis.remove(0)
    y.backward()
    assert np.array_equal(x.grad, np.ones((2, 3)))


def test_a_view_that_reads_its_result_notices_an_assignment():

    @primitive(lambda g, out: g * out, view=True)
    def seen(x, /):
        return x[...]

    w = ag.tensor([1.0, 2.0], requires_grad=True, name="w")
    y = seen(w).sum()
    w.assign([3.0, 4.0])
    with pytest.raises(RuntimeError, match="'w' of 'seen' was overwritten"):
        y.backward()
