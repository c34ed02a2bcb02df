"""Pairs from PyTorch, JAX and layer objects: the referee sees them as NumPy, with their own autodiff as the truth."""

import copy

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.verify.referee.conventions import adapt

rng = np.random.default_rng(0)
X, GAMMA, BETA = rng.normal(size=(6, 3)) + 0.5, rng.uniform(0.5, 2, 3), rng.normal(size=3)


def check(target, inputs):
    """The verdict on a target, which must agree with its truth at another gradient."""
    a = adapt(target, inputs)
    verdict = ag.check_backward(target, inputs)
    if a.truth is not None:
        values = dict(zip(a.names, copy.deepcopy(a.inputs), strict=True))
        y, cache = a.forward(*values.values())
        dy = np.random.default_rng(1).normal(size=np.shape(y))
        truth, found = a.truth(values, dy), a.call(a.source, dy, cache).back
        agree = [np.allclose(found[a.names.index(n)], g, atol=1e-12) for n, g in truth.items()]
        assert all(agree) == verdict.ok
    return verdict


def wrong(verdict):
    return [row.name for row in verdict.rows if not row.ok and row.what == "gradient"]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def jax():
    return pytest.importorskip("jax")


def test_a_numpy_pair_may_have_several_outputs_or_no_cache():
    several = lambda x: (2 * x, x**2, x)
    assert ag.check_backward(several, lambda da, db, x: 2 * da + 2 * x * db, (X,)).ok
    assert not ag.check_backward(several, lambda da, db, x: 2 * db + 2 * x * da, (X,)).ok
    assert ag.check_backward(lambda x, w: x * w, lambda dy, w, x: (dy * w, dy * x), (X, X + 1)).ok
    with pytest.raises(ValueError, match="returned no cache"):
        ag.check_backward(lambda x: 2 * x, lambda dy, cache: 2 * dy, (X,))
    with pytest.raises(ValueError, match="takes other arguments than"):
        ag.check_backward(several, lambda dy, a, b, c, d, e: dy, (X,))
    verdict = ag.check_backward(several, lambda dy, x: 2 * dy, (X,))
    assert verdict.ok
    assert verdict.unseen == ("output 1 of forward, for which backward takes no gradient",)


def batch_norm(torch, apart, slip):
    """Batch norm as a Function, in either style, right or without the path through the variance."""

    def passed(x, gamma, beta, eps):
        mean, var = x.mean(0), x.var(0, unbiased=False)
        inv = 1 / torch.sqrt(var + eps)
        return gamma * (x - mean) * inv + beta, (x - mean) * inv, inv

    class Base(torch.autograd.Function):
        @staticmethod
        def backward(ctx, dy):
            xhat, inv, gamma = ctx.saved_tensors
            dx = dgamma = dbeta = None
            if ctx.needs_input_grad[1]:
                dgamma, dbeta = (dy * xhat).sum(0), dy.sum(0)
            if ctx.needs_input_grad[0]:
                through_var = 0 if slip else xhat * (dy * xhat).mean(0)
                dx = gamma * inv * (dy - dy.mean(0) - through_var)
            return dx, dgamma, dbeta, None

    class InForward(Base):
        @staticmethod
        def forward(ctx, x, gamma, beta, eps=0.01):
            y, xhat, inv = passed(x, gamma, beta, eps)
            ctx.save_for_backward(xhat, inv, gamma)
            return y

    class Apart(Base):
        @staticmethod
        def forward(x, gamma, beta, eps=0.01):
            return passed(x, gamma, beta, eps)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.mark_non_differentiable(*output[1:])
            ctx.save_for_backward(*output[1:], inputs[1])

        @staticmethod
        def backward(ctx, dy, *_):
            return Base.backward(ctx, dy)

    return Apart if apart else InForward


@pytest.mark.parametrize("apart", [False, True])
def test_a_function_of_either_style_is_judged(torch, apart):
    inputs = [torch.tensor(a, dtype=torch.float32) for a in (X, GAMMA, BETA)]
    before, default = [t.clone() for t in inputs], torch.get_default_dtype()
    assert check(batch_norm(torch, apart, False), (*inputs, 0.01))
    verdict = check(batch_norm(torch, apart, True), (*inputs, 0.01))
    assert wrong(verdict) == ["dx"]
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert torch.get_default_dtype() is default


def test_arrays_that_a_function_makes_itself_are_double(torch):
    class Shifted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x @ torch.eye(3) + torch.tensor(0.1)

        @staticmethod
        def backward(ctx, dy):
            return dy @ torch.eye(3)

    assert check(Shifted, (X,))


def test_a_layer_of_tensors_is_judged_in_double_precision_and_left_as_it_is(torch):
    class Tied:
        def __init__(self):
            self.w = torch.randn(3, 3)
            self.params = [self.w]

        def forward(self, x):
            self.x = x
            return x @ self.w + x @ self.params[0].T

        def backward(self, dy):
            self.dw = self.x.T @ dy + dy.T @ self.x
            return dy @ (self.w + self.w.T)

    layer = Tied()
    verdict = ag.check_backward(layer, [torch.randn(5, 3)])
    assert verdict.ok
    assert [row.name for row in verdict.rows] == ["dx", "dw"]
    assert layer.w.dtype == torch.float32
    assert layer.w is layer.params[0]


def test_a_context_of_the_authors_own_is_found_beside_the_passes():
    class Ctx:
        def keep(self, *arrays):
            self.kept = arrays

    def forward(ctx, x):
        ctx.keep(x)
        return x**2

    space = {"__name__": Ctx.__module__, "Ctx": Ctx}
    own = type(forward)(forward.__code__, space)
    assert ag.check_backward(own, lambda ctx, dy: 2 * ctx.kept[0] * dy, [X]).ok


def test_a_gradient_overwritten_in_place_is_seen(torch):
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx, dy):
            return dy.mul_(2)

    assert "overwrites dy" in str(ag.check_backward(Twice, (X,)))


@pytest.mark.parametrize("count", [1, 2])
def test_a_function_is_run_as_pytorch_runs_it(torch, count):
    """Which sums a gradient over broadcast axes by itself, and counts the gradients."""

    class Bias(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, b):
            return x + b

        @staticmethod
        def backward(ctx, dy):
            return (dy, dy)[:count]

    verdict = ag.check_backward(Bias, (X, BETA))
    assert verdict.ok == (count == 2)
    assert verdict.ok or "returned an incorrect number of gradients (expected 2, got 1)" in str(verdict)


def test_a_function_with_several_outputs_is_judged_in_all_of_them(torch):
    def both(slip):
        class Both(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, n):
                ctx.save_for_backward(x)
                return x * n, x**2

            @staticmethod
            def backward(ctx, a, b):
                return 2 * a + (2 - slip) * ctx.saved_tensors[0] * b, None

        return Both

    assert check(both(0), (X, 2)).ok
    assert wrong(check(both(1), (X, 2))) == ["dx"]


def jax_norm(jax, slip, steps=()):
    jnp = jax.numpy

    def plain(x, gamma, power):
        return gamma * x / jnp.sqrt((x**power).mean(-1, keepdims=True) + 0.1)

    def fwd(x, gamma, power):
        return plain(x, gamma, power), (x, gamma, 1 / jnp.sqrt((x**2).mean(-1, keepdims=True) + 0.1))

    def bwd(power, kept, g):
        x, gamma, r = kept
        h = g * gamma
        dx = r * h - (0 if slip else x * r**3 * (h * x).mean(-1, keepdims=True))
        return dx, (g * x * r).sum(0)

    from functools import partial

    f = partial(jax.custom_vjp, nondiff_argnums=(2,))(plain)
    f.defvjp(fwd, bwd)
    return f


def test_a_custom_vjp_is_judged_in_double_precision(jax):
    inputs = jax.numpy.asarray(X), jax.numpy.asarray(GAMMA), 2
    assert check(jax_norm(jax, False), inputs)
    assert wrong(check(jax_norm(jax, True), inputs)) == ["dx"]
    assert jax.numpy.zeros(1).dtype == "float32"


def test_a_custom_vjp_without_rules_or_with_another_output_is_declined(jax):
    with pytest.raises(TypeError, match="no derivative yet"):
        adapt(jax.custom_vjp(lambda x: x), (X,))
    f = jax.custom_vjp(lambda x: x)
    f.defvjp(lambda x: (2 * x, None), lambda _, g: (g,))
    with pytest.raises(ValueError, match="isn't what"):
        adapt(f, (X,)).forward(X)


class Affine:
    """Parameters and gradients as attributes."""

    def __init__(self, slip=False):
        self.W, self.b, self.slip = rng.normal(size=(3, 2)), np.zeros(2), slip
        self.dW = np.zeros((3, 2))
        self.db = None

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b

    def backward(self, dy):
        self.dW += self.x.T @ dy  # adds
        self.db = dy.mean(0) if self.slip else dy.sum(0)
        self.dx = dy @ self.W.T
        return self.dx


class Scale:
    """Parameters and gradients in dicts."""

    def __init__(self):
        self.params, self.grads = {"weight": np.array([2.0, 0.5, 1.5])}, {"weight": None}

    def forward(self, x):
        self.kept = x
        return x * self.params["weight"]

    def backward(self, dout):
        self.grads["weight"] = np.sum(dout * self.kept, axis=0)
        return dout * self.params["weight"]


class Listed:
    """Parameters and gradients in lists, under other names too."""

    def __init__(self):
        self.W = rng.normal(size=(3, 2))
        self.params, self.grads = [self.W], [np.zeros((3, 2))]

    def forward(self, x):
        self.kept = x
        return x @ self.W

    def backward(self, dout):
        self.grads[0][...] = self.kept.T @ dout
        return dout @ self.params[0].T


class Table:
    """A parameter that may seem to be longer, with a gradient that is made once."""

    def __init__(self):
        self.params, self.grads = [rng.normal(size=(4, 3))], [np.zeros((4, 3))]

    def forward(self, x):
        self.kept = x
        return x * self.params[0][[0, 2, 2, 1, 0, 1]]

    def backward(self, dout):
        self.grads[0][...] = 0
        np.add.at(self.grads[0], [0, 2, 2, 1, 0, 1], dout * self.kept)
        return dout * self.params[0][[0, 2, 2, 1, 0, 1]]


@pytest.mark.parametrize(
    ("make", "names"), [(Affine, "x W b"), (Scale, "x weight"), (Listed, "x W"), (Table, "x params[0]")]
)
def test_a_layer_is_judged_with_its_parameters(make, names):
    layer = make()
    layer.backward(np.ones(layer.forward(X).shape))  # a layer that has run before keeps a cache
    before = str(vars(layer))
    assert adapt(layer, (X,)).names == names.split()
    verdict = check(layer, (X,))
    assert verdict.ok, verdict
    assert str(vars(layer)) == before


def test_a_wrong_gradient_of_a_layers_parameter_is_seen():
    assert wrong(check(Affine(slip=True), (X,))) == ["db"]


def test_an_edited_backward_takes_the_place_of_the_authors():
    adapted = adapt(Affine(), (X,))
    assert adapted.source is Affine.backward
    y, cache = adapted.forward(*adapted.inputs)
    gradients = adapted.call(lambda self, dy: 3 * Affine.backward(self, dy), np.ones(y.shape), cache)
    np.testing.assert_allclose(gradients[0], 3 * np.ones(y.shape) @ adapted.inputs[1].T)


def test_anything_else_is_declined_by_name():
    with pytest.raises(TypeError, match="target is a int, expected a torch"):
        adapt(3, (X,))
    with pytest.raises(TypeError, match="target is the class Affine, expected an object of it"):
        adapt(Affine, (X,))
    with pytest.raises(TypeError, match="inputs is a ndarray, expected a tuple"):
        ag.check_backward(Affine(), X)
