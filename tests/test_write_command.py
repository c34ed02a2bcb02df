"""The command that writes the backward passes of a file."""

from functools import partial

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.__main__ import main
from autograd_bn.verify.table import PRE

COURSE = """
import numpy as np

def affine_forward(x, w, b):
    return x @ w + b, (x, w, b)

def affine_backward(dout, cache):
    raise NotImplementedError

def norm_forward(x, gamma, beta, eps=1e-5):
    mu, var = x.mean(axis=0), x.var(axis=0)
    xhat = (x - mu) / np.sqrt(var + eps)
    return gamma * xhat + beta, (xhat, var, gamma, eps)

def norm_backward(dy, cache):
    xhat, var, gamma, eps = cache
    return gamma * dy / np.sqrt(var + eps), (dy * xhat).sum(0), dy.sum(0)

def kernel_forward(x):
    return np.convolve(x, x), x

def kernel_backward(dout, x):
    return np.correlate(dout, x)
"""


STYLES = """
import numpy as np

class Dense:
    def __init__(self, n_in, n_out):
        self.W, self.b = np.random.randn(n_in, n_out), np.zeros(n_out)
    def forward(self, x):
        self.x = x
        return x @ self.W + self.b
    def backward(self, dout):
        pass

class Norm:
    def __init__(self, dim, eps=1e-5):
        self.gamma, self.beta, self.eps, self.training = np.ones(dim), np.zeros(dim), eps, True
        self.running_mean, self.dgamma = np.zeros(dim), np.zeros(dim)
    def forward(self, x):
        mu = x.mean(axis=0) if self.training else self.running_mean
        self.running_mean = 0.9 * self.running_mean + 0.1 * mu
        self.diff, self.std = x - mu, np.sqrt(x.var(axis=0) + self.eps)
        return self.gamma * self.diff / self.std + self.beta
    def backward(self, dout):
        self.dgamma += (dout * self.diff / self.std).sum(axis=0)
        return dout

class Step:
    def __init__(self, n):
        self.layers = {"w": np.random.randn(n, 3)}
    def forward(self, x):
        self.kept = x, x @ self.layers["w"]
        return np.tanh(self.kept[1])
    def backward(self, grad, lr):
        x, z = self.kept
        self.layers["w"] -= lr * x.T @ grad
        return grad

class Relu:
    def __call__(self, z):
        self.out = np.maximum(0, z)
        return self.out
    def backward(self, dz):
        return dz

class Square:
    def forward(self, x):
        return x**2
    def backward(self, dy):
        return dy

class Cell:
    def __init__(self, H):
        self.U, self.H = np.random.randn(H, 2 * H), H
    def forward(self, h, c):
        a = h @ self.U
        f, g = 1 / (1 + np.exp(-a[:, :self.H])), np.tanh(a[:, self.H:])
        self.cache = h, c, f, g
        return f * g, f * c
    def backward(self, dh, dc):
        pass

class Own:
    def backward(self, dy):
        return dy

class Tanh(Own):
    def forward(self, x):
        self.out = np.tanh(x)
        return self.out

class Single:
    def forward(self, x):
        self.y = np.array(x, dtype=np.float32)
        return self.y**2
    def backward(self, g):
        return g

class Ctx:
    def save_for_backward(self, *values):
        self.saved = values

class Tangent:
    @staticmethod
    def forward(ctx, x):
        out = np.tanh(x)
        ctx.save_for_backward(out)
        return out
    @staticmethod
    def backward(ctx, dy):
        return dy

class CrossEntropy:
    def __call__(self, y_pred, y_true):
        self.p = np.exp(y_pred) / np.sum(np.exp(y_pred), axis=1, keepdims=True)
        self.y_true = y_true
        return np.mean(-np.sum(y_true * np.log(self.p), axis=1))
    def backward(self):
        return self.p - self.y_true

class Gather:
    def __init__(self):
        self.E = np.random.randn(4, 3)
    def forward(self, ids):
        self.hot = np.eye(4)[np.asarray(ids)]
        return self.hot @ self.E
    def backward(self, dy):
        pass

class Clipped:
    def forward(self, x):
        self.x = x
        self.out = np.minimum(np.maximum(x, 0), 50.0)
        return self.out
    def backward(self):
        return 1

class Looped:
    def forward(self, x):
        self.x = x
        return sum([x[:, j] ** 2 for j in range(x.shape[1])])
    def backward(self, dy):
        return dy

class Lowered:
    def forward(self, x):
        self.x = x
        columns = x.T
        columns[columns > 50] = columns[columns > 50] - 10
        return columns**2
    def backward(self, dy):
        return dy

class Gain:
    def __init__(self, gain=0.1):
        self.gain = gain
    def forward(self, x):
        self.x = x
        return x * self.gain if self.gain < 0.5 else x**2
    def backward(self, dy):
        return dy

class Normed:
    def __init__(self, d=4):
        self.g, self.b, self.eps = np.ones(d), np.zeros(d), 1e-5
    def forward(self, x):
        self.mu = x.mean(-1, keepdims=True)
        self.sigma = np.sqrt(x.var(-1, keepdims=True) + self.eps)
        self.xhat = (x - self.mu) / self.sigma
        return self.g * self.xhat + self.b
    def backward(self, dy):
        pass

class Scale:
    @staticmethod
    def forward(x, w):
        return x * w, (x, w)
    @staticmethod
    def backward(dy, cache):
        return dy, dy

class Leaky:
    def forward(self, x):
        self.out = np.where(x >= 0, x, 0.1 * x)
        return self.out
    def backward(self, dy):
        pass

class Entropy:
    def forward(self, logits, labels):
        self.labels = labels
        self.p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return -np.log(self.p[np.arange(len(labels)), labels]).mean()
    def backward(self):
        pass

class Kept:
    def __init__(self):
        self.params, self.grads = {"W": np.random.randn(4, 3)}, {}
    def forward(self, x):
        self.x = x
        return x @ self.params["W"]
    def backward(self, dy):
        pass

class Listed(Kept):
    def __init__(self):
        self.params, self.grads = [np.random.randn(4, 3)], [np.zeros((4, 3))]
    def forward(self, x):
        self.x = x
        return x @ self.params[0]

class Opened:
    def __init__(self, W=np.ones((4, 3)), b=np.zeros(3)):
        self.params, self.grads = [W, b], [np.zeros_like(W), np.zeros_like(b)]
    def forward(self, x):
        W, b = self.params
        self.x = x
        return x @ W + b
    def backward(self, dy):
        W, b = self.params
        return dy @ W.T

class OneHot:
    def forward(self, x, t):
        self.t = t
        self.p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
        if self.t.ndim == 2:
            return -(t * np.log(self.p)).sum() / len(x)
        return -np.log(self.p[np.arange(len(x)), t]).mean()
    def backward(self):
        pass

class Spread:
    def forward(self, x):
        self.x = x
        return (x**2).sum(axis=0) / max(len(x) - 1, 1)
    def backward(self, dy):
        pass

class Pool:
    def forward(self, x):
        blocks = x.reshape(len(x), -1, 2)
        self.shape, out = x.shape, blocks.max(axis=2)
        self.mask = blocks == out[:, :, None]
        return out
    def backward(self, dy):
        pass

def net(x, w):
    return np.tanh(x @ w), {"x": x, "w": w, "y": np.tanh(x @ w)}

def net_backward(dy, cache):
    grads = {}
    return grads

class Cubed:
    def forward(self, x):
        self.x4 = x**4
        return x**3
    def backward(self, dy):
        pass

class Averaged:
    def forward(self, x):
        self.y = x / max(len(x) - 1, 1)
        return self.y
    def backward(self, dy):
        pass

class Scaled:
    def forward(self, x, *, scale=2.0):
        self.x, self.scale = x, scale
        return scale * x**2
    def backward(self, dy):
        pass

class Mode:
    def forward(self, x, training=True):
        self.x = x
        return x**2 if training else x
    def backward(self, dy):
        pass

class Narrow:
    def __init__(self):
        self.w = np.ones(3)
    def forward(self, x):
        self.x = x
        return (x * self.w).astype(np.float32)
    def backward(self, dy):
        pass

def by_name(x, params):
    return x @ params["W"] + params["b"], (x, params)

def by_name_backward(dy, cache):
    pass

def shares(x):
    e = np.exp(x)
    return (e / e.sum(axis=1, keepdims=True)).sum(axis=1), x

def shares_backward(dy, cache):
    pass

class Weighted:
    def __init__(self):
        self.weight, self.weight_grad = np.random.randn(4, 3), None
    def forward(self, x):
        self.x = x
        return x @ self.weight
    def backward(self, dy):
        pass

class Box:
    def __init__(self, data):
        self.data, self.grad = data, None

class Boxed:
    def __init__(self):
        self.W = Box(np.random.randn(4, 3))
    def forward(self, x):
        self.x = x
        return x @ self.W.data
    def backward(self, dy):
        pass

class Nowhere:
    def __init__(self):
        self.weights = [np.random.randn(4, 3), np.random.randn(3, 2)]
    def forward(self, x):
        self.x = x
        self.h = np.tanh(x @ self.weights[0])
        return self.h @ self.weights[1]
    def backward(self, dy):
        pass

class Twice:
    def __init__(self):
        self.params, self.grads = [np.random.randn(4, 3), np.zeros(3)], [np.zeros((4, 3)), np.zeros(3)]
    def forward(self, x):
        self.x = x
        return x @ self.params[0] + self.params[1]
    def backward(self, dy):
        self.dW = self.x.T @ dy
        for g, d in zip(self.grads, (self.dW, dy.sum(axis=0))):
            g += d
        return dy @ self.params[0].T

class Anew(Twice):
    def backward(self, dy):
        self.grads = {"W": self.x.T @ dy, "b": dy.sum(axis=0)}
        self.dx = dy @ self.params[0].T
        return self.dx

class Filled(Twice):
    def __init__(self):
        self.W, self.dW = np.random.randn(4, 3), np.zeros((4, 3))
        self.all = [self.dW]
    def forward(self, x):
        self.x = x
        return x @ self.W
    def backward(self, dy, lr=0.1):
        self.dW[...] = self.x.T @ dy
        return dy @ self.W.T

class Stepping(Filled):
    def __init__(self):
        self.W = np.random.randn(4, 3)
    def backward(self, dy, lr=0.1):
        dx = dy @ self.W.T
        self.W -= lr * self.x.T @ dy
        return dx

class Momentum(Stepping):
    def backward(self, dy, lr=0.1):
        dx = dy @ self.W.T
        self.v = 0.9 * getattr(self, "v", 0) + self.x.T @ dy
        self.W -= lr * self.v
        return dx

class Decaying(Filled):
    def backward(self, dy):
        self.dW = 0.5 * self.dW + self.x.T @ dy
        return dy @ self.W.T

class Counted(Filled):
    def backward(self, dy):
        self.grads = {"W": self.x.T @ dy, "rows": float(len(dy))}
        return dy @ self.W.T

class Emptied(Twice):
    def __init__(self):
        self.params, self.grads = [np.random.randn(4, 3)], []
    def forward(self, x):
        self.x = x
        return x @ self.params[0]
    def backward(self, dy):
        pass

class Blurred:
    def forward(self, x):
        self.x = x
        return x**2 * np.array([1.0, 2.0, 1.0])
    def backward(self, dy):
        pass

class Elu:
    def __init__(self, alpha=1.5):
        self.alpha = alpha
    def forward(self, x):
        self.x = x
        return np.where(x > 0, x, self.alpha * (np.exp(x) - 1))
    def backward(self, dy):
        pass

class Swish:
    def __init__(self, beta=1.5):
        self.beta = beta
    def forward(self, x):
        self.x, self.s = x, 1 / (1 + np.exp(-self.beta * x))
        return x * self.s
    def backward(self, dy):
        pass

class Entropies:
    def forward(self, p, t):
        self.p, self.t = np.clip(p, 1e-7, 1 - 1e-7), t
        return -(t * np.log(self.p) + (1 - t) * np.log(1 - self.p)).mean()
    def backward(self):
        pass

class Rotated:
    def __init__(self, cos, sin):
        self.cos, self.sin = cos, sin
    def forward(self, x):
        self.x = x
        out = np.empty_like(x)
        out[..., ::2] = x[..., ::2] * self.cos - x[..., 1::2] * self.sin
        out[..., 1::2] = x[..., ::2] * self.sin + x[..., 1::2] * self.cos
        return out
    def backward(self, dy):
        pass

class Larger:
    def __init__(self, scale=2):
        self.scale = scale
    def forward(self, x):
        return x.repeat(self.scale, axis=2).repeat(self.scale, axis=3)
    def backward(self, dy):
        pass

class LogSoftmax:
    def forward(self, x):
        z = x - x.max(axis=1, keepdims=True)
        self.out = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return self.out
    def backward(self, dy):
        pass

class Pointwise:
    def __init__(self):
        self.W = np.random.randn(4, 3)
    def forward(self, x):
        self.x = x
        return np.einsum("oc,nchw->nohw", self.W, x)
    def backward(self, dy):
        pass

class Bag:
    def __init__(self):
        self.E = np.random.randn(7, 3)
    def forward(self, ids):
        self.ids = ids
        return self.E[ids].mean(axis=1)
    def backward(self, dy):
        pass

class Maxout:
    def forward(self, x):
        self.x = x.reshape(len(x), -1, 2)
        self.out = self.x.max(axis=2)
        return self.out
    def backward(self, dy):
        pass

class Times:
    def forward(self, inputs):
        a, b = inputs
        return a * b
    def backward(self, inputs, grads):
        a, b = inputs
        return grads * b, grads * a

class Alone:
    def forward(self, x):
        return x[0] * x[1],
    def backward(self, x, gy):
        return gy[0] * x[1], gy[0] * x[0]

class Halves:
    @staticmethod
    def forward(x):
        n = x.shape[1] // 2
        return (x[:, :n], x[:, n:]), None
    @staticmethod
    def backward(da, db):
        return np.concatenate([da, db], axis=1)

class Table:
    def __init__(self):
        self.E, self.dE = np.random.randn(7, 3), np.zeros((7, 3))
    def forward(self, ids):
        self.ids = ids
        return self.E[ids]
    def backward(self, dy):
        self.dE[...] = 0
        np.add.at(self.dE, self.ids, dy)

def margin_loss(x, y):
    N = len(x)
    margins = np.maximum(0, x - x[np.arange(N), y][:, None] + 1)
    margins[np.arange(N), y] = 0
    loss = margins.sum() / N
    dx = None
    return loss, dx

def regression_loss(x, w):
    d = x @ w
    loss = (d * d).sum() / len(x)
    dx, dw = None, None
    return loss, (dx, dw)

def sigmoid(z):
    return 1 / (1 + np.exp(-z))

def sigmoid_prime(z):
    return z

def softmax_loss(x, y):
    p = np.exp(x - x.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return -np.log(p[np.arange(len(x)), y]).mean(), x

def relu_in_place(x):
    x[x < 0] = 0
    return x

def relu_in_place_backward(dy, x):
    return dy
"""


@pytest.fixture
def course(tmp_path):
    path = tmp_path / "course.py"
    path.write_text(COURSE)
    return path


@pytest.fixture
def written(tmp_path, capsys):
    """What is written for one style, and the style's file with that in place."""

    def write(name, *options):
        path = tmp_path / "styles.py"
        path.write_text(STYLES)
        assert main(["write", str(path), name, *options]) == 0, capsys.readouterr().err
        text, space = capsys.readouterr().out, {"__name__": "styles"}
        exec(compile(STYLES, "styles.py", "exec"), space)
        home, _, method = name.rpartition(".")
        own = dict(space)
        exec(compile(text, "written.py", "exec"), own)
        if home:
            setattr(space[home], method, vars(own[home])[method])
        else:
            space[name] = own[name]
        return text, space

    return write


def arrays(*shapes):
    return tuple([np.random.default_rng(len(shape)).normal(size=shape) for shape in shapes])


@pytest.mark.parametrize(
    ("name", "made", "inputs", "lines"),
    [
        ("Single.backward", (), arrays((5, 4)), ["return 2 * g * self.y"]),
        ("Tanh.backward", (), arrays((5, 4)), ["class Tanh:", "return dy * (1 - self.out**2)"]),
        ("Dense.backward", (4, 3), arrays((5, 4)), ["self.dW = self.x.T @ dout", "return dout @ self.W.T"]),
        ("Norm.backward", (4,), arrays((5, 4)), ["self.dgamma += dgamma", "if not self.training:"]),
        ("Step.backward", (4,), arrays((5, 4)), ["x, z = self.kept", 'self.layers["w"] -= lr * dw']),
        ("Normed.backward", (4,), arrays((5, 4)), ["self.dg = (dy * self.xhat).sum(axis=0)"]),
        ("Relu.backward", (), arrays((5, 4)), ["return np.where(self.out > 0, dz, 0)"]),
        ("Cell.backward", (3,), arrays((5, 3), (5, 3)), ["h, c, f, g = self.cache", "return dh2, dc2"]),
        ("Scale.backward", (), arrays((5, 3), (5, 3)), ["@staticmethod", "x, w = cache"]),
    ],
)
def test_a_method_is_written_in_its_class_from_what_forward_keeps(written, name, made, inputs, lines):
    shape = {"h": "h=(5,3) c=(5,3) H=3", "x": "x=(5,3) w=(5,3)"}
    options = ["--inputs", shape[{"Cell": "h", "Scale": "x"}[name[:-9]]]] if len(inputs) > 1 else []
    text, space = written(name, *options)
    home = name.partition(".")[0]
    assert all(f" {line}\n" in f" {text}" or f"\n{line}\n" in text for line in lines), text
    np.random.seed(0)  # noqa: NPY002
    pair = [space[home].forward, space[home].backward] if home == "Scale" else [space[home](*made)]
    assert ag.check_backward(*pair, inputs).ok


def test_a_constant_that_forward_keeps_is_read(written):
    text, space = written("Gather.backward")
    assert "self.dE = (self.hot.swapaxes(-1, -2) @ dy).sum(axis=0)\n" in text
    layer = space["Gather"]()
    dy = np.random.default_rng(0).normal(size=layer.forward(np.array([[0, 3, 1], [1, 1, 2]])).shape)
    layer.backward(dy)
    true = np.zeros((4, 3))
    np.add.at(true, [[0, 3, 1], [1, 1, 2]], dy)
    assert np.allclose(layer.dE, true, rtol=1e-12)


def test_a_context_of_the_files_own_is_read_in_the_class_of_the_passes(written):
    text, _ = written("Tangent.backward")
    assert "class Tangent:\n    @staticmethod\n    def backward(ctx, dy):\n" in text
    assert text.endswith("return dy * (1 - ctx.saved[0] ** 2)\n")


def test_a_loss_of_an_object_has_the_gradient_for_1(written):
    _, space = written("CrossEntropy.backward")
    y_true = np.eye(4)[[0, 3, 1, 1, 2]]
    assert ag.check_backward(space["CrossEntropy"](), [*arrays((5, 4)), y_true]).ok


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Leaky.backward", "return np.where(self.x >= 0, dy, 0.1 * dy)\n"),  # self.out > 0 is another at 0
        ("Elu.backward", "return np.where(self.x > 0, dy, self.alpha * dy * np.exp(self.x))\n"),
        ("Swish.backward", "return dy * self.s + self.beta * ds * self.s * (1 - self.s)\n"),
        ("Entropies.backward", "return np.where((self.p > 1e-7) & (self.p < 0.9999999), dp, 0)\n"),
        ("Rotated.backward", "dx[..., ::2] = dy[..., 1::2] * self.sin + dy[..., ::2] * self.cos\n"),
        ("Larger.backward", "return total2.sum(axis=3)\n"),
        ("Table.backward", "self.dE[...] = 0\n        np.add.at(self.dE, self.ids, dy)\n"),
        ("LogSoftmax.backward", "return dy - dy.sum(axis=1, keepdims=True) * np.exp(self.out)\n"),
        ("Pointwise.backward", 'return np.einsum("nohw,oc->nchw", dy, self.W)\n'),
        ("Bag.backward", "np.add.at(self.dE, self.ids, (dy / self.ids.shape[1])[:, None])\n"),
        ("Entropy.backward", "= -1 / (part * len(self.labels))\n"),
        ("Kept.backward", 'self.grads["W"] = self.x.T @ dy\n        return dy @ self.params["W"].T\n'),
        ("Averaged.backward", "# where len(x) > 1\n        return dy / (len(dy) - 1)\n"),
        ("Pool.backward", "np.where(self.mask, dy[:, :, None], 0)\n"),  # which no output reads
        ("Cubed.backward", "# forward has to keep self.x = x\n        return 3 * dy * self.x**2\n"),
        ("net_backward", 'return {"x": dx, "w": dw}\n'),
        ("Scaled.backward", "return 2 * self.scale * dy * self.x\n"),
        ("shares_backward", "    return np.zeros(cache.shape)\n"),  # they add up to 1
        ("Mode.backward", "# where training is True\n        return 2 * dy * self.x\n"),
        ("Narrow.backward", "return dy * self.w\n"),
        ("Spread.backward", "if len(self.x) == 1:\n"),
        ("Opened.backward", "W, _ = self.params\n        self.grads[1][...] = dy.sum(axis=0)\n"),
        ("OneHot.backward", "if self.t.ndim != 1:\n"),  # forward takes rows of 0 and 1 too
        ("Listed.backward", "self.grads[0][...] = self.x.T @ dy\n        return dy @ self.params[0].T\n"),
        (
            "Twice.backward",
            "self.dW = self.x.T @ dy\n        self.grads[0] += self.dW\n        self.grads[1] += dparams_1\n",
        ),
        ("Anew.backward", "self.dx = dy @ self.params[0].T\n"),
        ("Anew.backward", 'self.grads = {"W": dparams_0, "b": dparams_1}\n        return self.dx\n'),
        ("Filled.backward", "self.dW[...] = self.x.T @ dy\n        return dy @ self.W.T\n"),
        ("Stepping.backward", "self.W -= lr * dW\n        return dx\n"),
        ("Weighted.backward", "self.weight_grad = self.x.T @ dy\n"),
        ("Boxed.backward", "self.W.grad = self.x.T @ dy\n"),
        ("margin_loss", "d = np.full(x.shape, 1 / N)\n"),
        ("margin_loss", "\n    return loss, dx\n"),
        ("regression_loss", "\n    return loss, (dx, dw)\n"),
        ("Emptied.backward", "self.grads.append(dparams_0)\n"),
        ("Blurred.backward", "return 2 * dy * np.array([1.0, 2.0, 1.0]) * self.x\n"),
        ("Maxout.backward", "return dx.reshape(len(dy), -1)\n"),  # of no 2, which is (5 - 1) // 2 among its lengths
    ],
)
def test_it_is_written_where_and_as_its_author_would(written, name, line):
    text, _ = written(name)
    assert line in text, text


@pytest.mark.parametrize(("name", "place"), [("Nowhere.backward", "weights[0]"), ("by_name", "W")])
def test_a_gradient_that_has_no_place_is_not_put_anywhere(tmp_path, capsys, name, place):
    path = tmp_path / "styles.py"
    path.write_text(STYLES)
    assert main(["write", str(path), name]) == 2
    assert f"nothing says where the gradient of {place} goes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Momentum", "backward changes W as well"),
        ("Decaying", "backward leaves more than a gradient in dW"),
        ("Counted", "backward keeps more than gradients in self.grads"),
        ("Times", "forward opens inputs"),  # a guess hands it an array of two rows
        ("Alone", "forward returns a tuple of one"),
        ("Halves", "backward takes db, and what it is handed is no gradient"),
    ],
)
def test_what_no_gradient_alone_can_stand_for_is_not_written(tmp_path, capsys, name, words):
    (file := tmp_path / "styles.py").write_text(STYLES)
    assert main(["write", str(file), f"{name}.backward"]) == 2
    assert words in capsys.readouterr().err


def test_a_gradient_for_1_has_no_1_in_it(written):
    text, _ = written("Clipped.backward")
    assert "        return np.where((self.x > 0) & (self.x < 50), 1, 0)\n" in text


def test_a_loop_is_not_written_out_step_by_step(tmp_path, capsys):
    path = tmp_path / "styles.py"
    path.write_text(STYLES)
    assert main(["write", str(path), "Looped.backward", "--inputs", "x=(5,4)"]) == 2
    assert "Looped.backward: forward has a loop" in capsys.readouterr().err


def test_a_number_of_the_object_by_which_forward_branches_has_to_be_what_it_was(written):
    _, space = written("Gain.backward")
    layer = space["Gain"](0.7)
    layer.forward(np.ones((5, 4)))
    with pytest.raises(ValueError, match=r"written for self.gain == 0.1"):
        layer.backward(np.ones((5, 4)))


def test_what_forward_changes_by_a_view_is_not_read(tmp_path, capsys):
    path = tmp_path / "styles.py"
    path.write_text(STYLES)
    assert main(["write", str(path), "Lowered.backward"]) == 2
    assert "sets elements of a view of what it keeps" in capsys.readouterr().err


def test_what_forward_does_not_keep_is_said(written):
    text, _ = written("Square.backward")
    assert text.endswith("        # forward has to keep self.x = x\n        return 2 * dy * self.x\n")


def test_a_derivative_and_a_loss_are_written_whole(written):
    (x,) = arrays((6, 4))
    _, space = written("sigmoid_prime")
    s = space["sigmoid"](x)
    assert np.allclose(space["sigmoid_prime"](x), s * (1 - s), rtol=1e-12)
    text, space = written("softmax_loss")
    labels = np.array([0, 3, 1, 1, 2, 0])
    loss, dx = space["softmax_loss"](x, labels)
    p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    assert np.isclose(loss, -np.log(p[np.arange(6), labels]).mean())
    assert np.allclose(dx, (p - np.eye(4)[labels]) / 6, rtol=1e-12)
    assert "return loss" in text or "dx = p * (" in text


def test_a_gradient_that_is_0_at_the_inputs_is_not_written(tmp_path, capsys):
    path = tmp_path / "cosine.py"
    path.write_text(
        "import numpy as np\n"
        "def cosine_forward(a, b):\n"
        "    na, nb = np.sqrt((a * a).sum(axis=1)), np.sqrt((b * b).sum(axis=1))\n"
        "    return (a * b).sum(axis=1) / (na * nb), (a, b, na, nb)\n"
        "def cosine_backward(ds, cache):\n    pass\n"
    )
    assert main(["write", str(path), "--inputs", "a=(5,4) b=(5,1)"]) == 2
    assert "cosine_backward: the gradient of b is 0 where an axis has length 1" in capsys.readouterr().err
    assert main(["write", str(path), "--inputs", "a=(5,4) b=(5,4)"]) == 0


def test_an_input_that_forward_overwrites_is_not_taken_for_what_it_was(tmp_path, capsys):
    path = tmp_path / "styles.py"
    path.write_text(STYLES)
    assert main(["write", str(path), "relu_in_place_backward"]) in (0, 2)
    text = capsys.readouterr().out
    space = {}
    exec(STYLES + text, space)
    (x,) = arrays((5, 4))
    if text:
        assert np.allclose(space["relu_in_place_backward"](np.ones((5, 4)), np.maximum(x, 0)), x > 0)


def test_the_answers_of_a_course_file_are_written_in_its_own_names(course, tmp_path, capsys):
    out = tmp_path / "answers.py"
    assert main(["write", str(course), "affine_backward", "-o", str(out)]) == 0
    assert capsys.readouterr().err == f"written to {out}\n"
    space = {}
    exec(COURSE + out.read_text(), space)
    inputs = arrays((5, 4), (4, 3), (3,))
    assert ag.check_backward(space["affine_forward"], space["affine_backward"], inputs).ok
    assert "def affine_backward(dout, cache):\n    x, w, _ = cache\n" in out.read_text()
    assert capsys.readouterr().out == ""


def test_what_can_not_be_written_is_said(course, capsys):
    assert main(["write", str(course), "--form", "folded"]) == 1
    said = capsys.readouterr()
    assert said.out.count("import numpy") == 1
    assert "dx = gamma / np.sqrt(var + eps) * (dy - dbeta / len(dy) - dgamma / len(dy) * xhat)" in said.out
    assert said.err.count("\n") == 1
    assert "kernel_backward: " in said.err
    assert main(["write", str(course), "kernel_forward"]) == 2


def test_the_file_to_read_is_not_written_to(course, capsys):
    text = course.read_bytes()
    link = course.with_name("link.py")
    link.symlink_to(course)
    for output in (course, link, course.parent / "." / course.name):
        assert main(["write", str(course), "-o", str(output)]) == 2
        assert "it is the file to read" in capsys.readouterr().err
        assert course.read_bytes() == text


def test_a_name_that_is_not_there_is_a_usage_error(course, capsys):
    assert main(["write", str(course), "nothing"]) == 2
    assert "defines no forward or backward pass named nothing" in capsys.readouterr().err


def test_a_wrong_verdict_brings_what_would_be_right(course):
    space = {}
    exec(compile(COURSE, str(course), "exec"), space)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(6, 4)), rng.normal(size=4), rng.normal(size=4)
    verdict = ag.check_backward(space["norm_forward"], space["norm_backward"], inputs)
    assert not verdict.ok
    assert ag.check_backward(verdict.solution.forward, verdict.solution.backward, inputs).ok
    assert "What would be right:\n\ndef norm_backward(dy, cache):\n" in str(verdict)
    assert f"<details><summary>What would be right</summary>{PRE}def norm_backward" in verdict._repr_html_()
    right = ag.check_backward(verdict.solution.forward, verdict.solution.backward, inputs)
    assert right.solution is None
    assert "What would be right" not in str(right)


def test_a_wrong_verdict_on_an_object_brings_what_would_be_right(tmp_path):
    path = tmp_path / "styles.py"
    path.write_text(STYLES)
    space = {"__name__": "styles"}
    exec(compile(STYLES, str(path), "exec"), space)
    (x,) = arrays((5, 4))
    verdict = ag.check_backward(space["Step"](4), [x])
    assert "What would be right:\n\nclass Step:\n    def backward(self, grad, lr):\n" in str(verdict)
    y, cache = verdict.solution.forward(*verdict.solution.inputs.values())
    dy = np.random.default_rng(0).normal(size=y.shape)
    dx, dw = verdict.solution.backward(dy, cache)
    _, w = verdict.solution.inputs.values()
    assert np.allclose(dx, dy * (1 - np.tanh(x @ w) ** 2) @ w.T)
    assert np.allclose(dw, x.T @ (dy * (1 - np.tanh(x @ w) ** 2)))


def test_a_wrong_verdict_of_which_forward_keeps_too_little_brings_a_forward_pass():
    def forward(x):
        return np.exp(x) * x, None

    def backward(dy, cache):
        return dy

    (x,) = arrays((5, 4))
    solution = ag.check_backward(forward, backward, [x]).solution
    assert solution.source.startswith("import numpy as np\n\n\ndef forward(x):\n")
    assert ag.check_backward(solution.forward, solution.backward, [x]).ok


def test_functions_in_a_function_are_solved_in_its_place():
    def forward(x):
        y = np.tanh(x)
        return y, y

    def backward(dy, y):
        return dy * (1 - y)

    solution = ag.check_backward(forward, backward, arrays((5, 4))).solution
    assert solution.source == "def backward(dy, y):\n    return dy * (1 - y**2)\n"


def test_the_mode_of_a_batch_norm_is_said_where_its_cache_is_of_training_alone(tmp_path, capsys):
    (tmp_path / "course.py").write_text("""
import numpy as np

def norm_forward(x, gamma, beta, bn_param):
    mode, eps = bn_param["mode"], bn_param.get("eps", 1e-5)
    mean, var, cache = x.mean(axis=0), x.var(axis=0), None
    if mode == "test":
        mean, var = bn_param["running_mean"], bn_param["running_var"]
    std = np.sqrt(var + eps)
    xhat = (x - mean) / std
    if mode == "train":
        bn_param["running_mean"], bn_param["running_var"] = mean, var
        cache = (xhat, gamma, std)
    return gamma * xhat + beta, cache

def norm_backward(dout, cache):
    pass
""")
    assert main(["write", str(tmp_path / "course.py")]) == 0
    text = capsys.readouterr().out
    assert "# where bn_param['mode'] is 'train'\n" in text
    assert "dx = gamma / std * (dout - dbeta / N - dgamma / N * xhat)\n" in text.replace("len(dout)", "N")
    assert "def norm_forward" not in text


NUMBERS = """
import numpy as np

def kept_forward(x, gamma, beta, bn_param):
    eps = bn_param.get("eps", 1e-5)
    mean, var = x.mean(axis=0), x.var(axis=0)
    return gamma * (x - mean) / np.sqrt(var + eps) + beta, (x, mean, var, gamma{})

def kept_backward(dout, cache):
    pass
"""


def test_a_number_in_a_dict_is_read_where_forward_keeps_it_and_never_taken_for_its_default(tmp_path, capsys):
    (file := tmp_path / "course.py").write_text(NUMBERS.format(", eps"))
    assert main(["write", str(file)]) == 0
    text = capsys.readouterr().out
    assert "x, mean, var, gamma, eps = cache\n" in text
    assert "def kept_forward" not in text
    file.write_text(NUMBERS.format(""))
    assert main(["write", str(file)]) == 0
    assert 'eps = bn_param.get("eps", 1e-05)\n' in capsys.readouterr().out


COUNTS = """
import numpy as np

def up_forward(x, scale=2):
    return x.repeat(scale, axis=1), (x, scale)
def up_backward(g, cache):
    pass

def power_forward(x, n=3):
    return x**n, (x, n)
def power_backward(g, cache):
    pass

def pad_forward(x, pad=1):
    return np.pad(x, pad) ** 2, (x, pad)
def pad_backward(g, cache):
    pass

def softmax_forward(x, axis=-1):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    y = e / e.sum(axis=axis, keepdims=True)
    return y, y
def softmax_backward(g, y):
    pass

class Heads:
    def __init__(self, d_model, n_heads):
        self.h, self.dk = n_heads, d_model // n_heads
        self.W = np.random.randn(d_model, d_model)
    def split(self, x):
        return x.reshape(len(x), self.h, self.dk)
    def forward(self, x):
        self.x = x
        return self.split(x @ self.W).transpose(1, 0, 2).reshape(-1, self.dk)
    def backward(self, g):
        pass
"""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("up_backward", "return g.reshape(len(g), x.shape[1], scale).sum(axis=2)\n"),
        ("power_backward", "return n * g * x ** (n - 1)\n"),
        ("pad_backward", "[pad:len(g) - pad, pad:g.shape[1] - pad]\n"),
        ("softmax_backward", "return y * (g - (g * y).sum(axis=-1, keepdims=True))\n"),
        ("Heads.backward", "g.reshape(self.h, "),  # which another method reads
    ],
)
def test_a_whole_number_that_is_kept_is_called_by_its_name(name, line, tmp_path, capsys):
    """As a number it would be wrong at another."""
    (file := tmp_path / "course.py").write_text(COUNTS)
    assert main(["write", str(file), name]) == 0
    assert line in capsys.readouterr().out


FLAT = """
import numpy as np

def affine_forward(x, w, b):
    return x.reshape(x.shape[0], -1).dot(w) + b, (x, w, b)

def affine_backward(dout, cache):
    pass

class Affine:
    def __init__(self, W, b):
        self.W, self.b = W, b
        self.dW = self.db = None
    def forward(self, x):
        self.x_shape = x.shape
        self.x = x.reshape(len(x), -1)
        return np.dot(self.x, self.W) + self.b
    def backward(self, dout):
        pass

class Flatten:
    def forward(self, x):
        self.shape = x.shape
        return x.reshape(x.shape[0], -1)
    def backward(self, dout):
        pass
"""


def test_what_makes_rows_of_images_is_written_for_images(tmp_path, capsys):
    """At rows, which forward takes as well, the gradient would have the shape of rows."""
    file = tmp_path / "flat.py"
    file.write_text(FLAT)
    assert main(["write", str(file)]) == 0
    text = capsys.readouterr().out
    space = {}
    exec(FLAT + text, space)
    assert "return dout.reshape(self.shape)" in text
    assert "return dx.reshape(self.x_shape)" in text
    x, w, b, dy = arrays((5, 2, 3, 4), (24, 6), (6,), (5, 6))
    for flat in (x, x.reshape(5, 24)):
        rows = flat.reshape(5, 24)
        dx, dw, db = space["affine_backward"](dy, space["affine_forward"](flat, w, b)[1])
        np.testing.assert_allclose(dx, (dy @ w.T).reshape(flat.shape), rtol=1e-12)
        np.testing.assert_allclose(dw, rows.T @ dy, rtol=1e-12)
        np.testing.assert_allclose(db, dy.sum(axis=0), rtol=1e-12)


STUBS = """
import numpy as np

def kept_forward(x, w):
    a = np.tanh(x @ w)
    return a, (x, {"w": w, "a": a})

def kept_backward(da, cache):
    pass

def shaped_forward(x, w):
    a = x.reshape(len(x), -1)
    return a @ w, (x.shape, a, w)

def shaped_backward(dy, cache):
    pass

def net_forward(x, params):
    a = np.tanh(x @ params["W"] + params["b"])
    return a, (x, {"a": a}, params)

def net_backward(da, cache):
    grads = {}
    return grads

def svm_forward(W, X, y):
    scores = X.dot(W)
    margins = np.maximum(0, scores - scores[np.arange(len(y)), y][:, None] + 1)
    margins[np.arange(len(y)), y] = 0
    return margins.sum() / len(y), (W, X, y, margins)

def svm_backward(dout, cache):
    pass

def grouped_forward(x, parts=2, power=1.5):
    n, d = x.shape
    return np.abs(x.reshape(n, parts, d // parts)).mean(axis=2) ** power, None

def grouped_backward(dy, cache):
    pass

def layer_norm_forward(x, gamma):
    xhat = (x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True)
    return gamma * xhat, (x, gamma)

def layer_norm_backward(dy, cache):
    pass

def joined_forward(a, b, W):
    x = np.concatenate([a, b], axis=1)
    return np.tanh(x @ W), (a, b, x, W)

def joined_backward(dy, cache):
    pass

def pooled_forward(x, r):
    return np.log(np.exp(r * x).mean(axis=1)) / r, (x, r)

def pooled_backward(dy, cache):
    pass

class Gate:
    def __init__(self, d, h):
        self.Wz, self.Uz = np.random.randn(d, h), np.random.randn(h, h)
        self.Wn, self.Un = np.random.randn(d, h), np.random.randn(h, h)
    def forward(self, x, h):
        self.x, self.h = x, h
        self.z = 1 / (1 + np.exp(-(x @ self.Wz + h @ self.Uz)))
        self.n = np.tanh(x @ self.Wn + h @ self.Un)
        return (1 - self.z) * h + self.z * self.n
    def backward(self, dh_next):
        pass

class Slope:
    def __init__(self, channels):
        self.a = np.full(channels, 0.25)
    def forward(self, x):
        self.x = x
        return np.where(x > 0, x, self.a[:, None, None] * x)
    def backward(self, dy):
        pass

class Pooled:
    def forward(self, x):
        self.shape = x.shape
        return x.reshape(x.shape[0], x.shape[1], -1).mean(axis=2)
    def backward(self, dy):
        pass
"""


@pytest.fixture
def filled_in(tmp_path, capsys):
    """The stubs with one written, its text, and what was said beside it."""

    def write(name, *options):
        path, space = tmp_path / "stubs.py", {"__name__": "stubs"}
        path.write_text(STUBS)
        assert main(["write", str(path), name, *options]) == 0, capsys.readouterr().err
        text, said = capsys.readouterr()
        exec(compile(STUBS, "stubs.py", "exec"), space)
        classes = {key: value for key, value in space.items() if isinstance(value, type)}
        exec(compile(text, "written.py", "exec"), space)
        for key, value in classes.items():  # in his class
            value.backward = space[key].backward
        return space | classes, text, said

    return write


@pytest.mark.parametrize(
    ("name", "inputs", "lines"),
    [
        ("kept", arrays((7, 4), (4, 1)), ["x, kept = cache", 'dx = g @ kept["w"].T']),
        ("shaped", arrays((3, 2, 5), (10, 2)), ["shape, a, w = cache", "dx = da.reshape(shape)"]),
        ("svm", (*arrays((3, 6), (8, 3)), np.arange(8) % 6), ["W, X, y, margins = cache"]),
        ("grouped", arrays((1, 6)), ["def grouped_forward(x, parts=2, power=1.5):"]),
    ],
)
def test_a_stub_of_functions_is_filled_in(filled_in, name, inputs, lines):
    space, text, _ = filled_in(f"{name}_backward")
    assert all(line in text for line in lines), text
    pair = space[f"{name}_forward"], space[f"{name}_backward"]
    assert ag.check_backward(*pair, inputs).ok


def test_a_whole_number_is_an_option_of_the_forward_pass_that_is_written(filled_in):
    space, _, _ = filled_in("grouped_backward")
    forward = partial(space["grouped_forward"], parts=3)
    assert ag.check_backward(forward, space["grouped_backward"], arrays((4, 12))).ok


def test_parameters_in_a_dict_are_read_where_the_cache_has_it(filled_in):
    space, text, _ = filled_in("net_backward")
    assert "x, kept, params = cache" in text
    assert 'params["W"].T' in text
    x, W, b = arrays((6, 2), (2, 3), (3,))

    def forward(x, W, b):
        return space["net_forward"](x, {"W": W, "b": b})

    def backward(dy, cache):
        grads = space["net_backward"](dy, cache)
        return grads["x"], grads["W"], grads["b"]

    assert ag.check_backward(forward, backward, (x, W, b)).ok


@pytest.mark.parametrize(
    ("name", "made", "inputs"),
    [
        ("Gate", (4, 3), arrays((7, 4), (7, 3))),
        ("Slope", (3,), arrays((2, 3, 4, 5))),
        ("Pooled", (), arrays((2, 3, 4, 5))),
    ],
)
def test_a_stub_is_written_for_a_batch(filled_in, name, made, inputs):
    space, _, _ = filled_in(f"{name}.backward")
    assert ag.check_backward(space[name](*made), inputs).ok


def test_another_number_of_axes_is_said_where_it_would_be_wrong_in_silence(filled_in):
    assert "    # where x.ndim == 2\n" in filled_in("layer_norm_backward")[1]
    assert "ndim" not in filled_in("svm_backward")[1] + filled_in("kept_backward")[1]


def test_a_guess_that_is_as_good_as_others_is_said(filled_in):
    _, _, said = filled_in("joined_backward")
    assert "joined_backward: written for a (" in said
    assert "give --inputs" in said
    assert not filled_in("joined_backward", "--inputs", "a=(5,4) b=(5,3) W=(7,2)")[2]


def test_an_input_is_a_number_where_its_shape_has_no_axes(filled_in):
    space, _, _ = filled_in("pooled_backward", "--inputs", "x=(5,4) r=()")
    pair = space["pooled_forward"], space["pooled_backward"]
    assert ag.check_backward(*pair, (*arrays((6, 3)), np.array(0.7))).ok


def test_lambdas_are_solved_as_functions_that_have_a_name():
    square, half = lambda x: (x**2, x), lambda dy, x: dy * x
    verdict = ag.check_backward(square, half, arrays((4, 3)))
    assert verdict.solution.source == "def backward(dy, x):\n    return 2 * dy * x\n"
