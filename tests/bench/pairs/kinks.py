"""Right pairs at inputs where the derivative doesn't exist: nothing here may be called wrong."""

import numpy as np


#: x =np.array([[0.0, 1.5, -2.0], [0.7, 0.0, -0.3]])
def relu_at_zero_forward(x):
    return np.maximum(x, 0), x


def relu_at_zero_backward(dy, x):
    return dy * (x > 0)


#: x =np.array([[0.0, 1.5, -2.0], [0.7, 0.0, -0.3]])
def relu_closed_forward(x):
    return np.maximum(x, 0), x


def relu_closed_backward(dy, x):
    return dy * (x >= 0)


#: x 4,3; w =np.zeros((3, 5)); b =np.zeros(5)
def zero_weights_forward(x, w, b):
    z = x @ w + b
    return np.maximum(0, z), (x, w, z)


def zero_weights_backward(dy, cache):
    x, w, z = cache
    dz = dy * (z > 0)
    return dz @ w.T, x.T @ dz, dz.sum(0)


#: x =np.array([[1.0, 3.0, 3.0, 0.5], [2.0, 2.0, 1.0, -1.0]])
def max_tie_forward(x):
    return x.max(1), x


def max_tie_backward(dy, x):
    dx = np.zeros_like(x)
    dx[np.arange(len(x)), x.argmax(1)] = dy
    return dx


#: x =np.round(np.random.default_rng(1).normal(size=(1, 2, 4, 4)) * 1.2)
def pool_ties_forward(x):
    N, C, H, W = x.shape
    blocks = x.reshape(N, C, H // 2, 2, W // 2, 2)
    out = blocks.max(axis=(3, 5))
    return out, (x, blocks, out)


def pool_ties_backward(dout, cache):
    x, blocks, out = cache
    mask = blocks == out[:, :, :, None, :, None]
    mask = mask / mask.sum(axis=(3, 5), keepdims=True)
    return (mask * dout[:, :, :, None, :, None]).reshape(x.shape)


#: x =np.array([-1.0, 1.0, 0.3, 2.0, -4.0, 1.0])
def clip_at_bound_forward(x):
    return np.clip(x, -1, 1), x


def clip_at_bound_backward(dy, x):
    return dy * ((x > -1) & (x < 1))


#: x =np.array([-1.0, 1.0, 0.3, 2.0, -4.0, 1.0])
def hard_tanh_forward(x):
    return np.minimum(np.maximum(x, -1), 1), x


def hard_tanh_backward(dy, x):
    return dy * (np.abs(x) <= 1)


#: x =np.array([[0.0, -2.0], [1.0, 0.0]])
def absolute_forward(x):
    return np.abs(x), x


def absolute_backward(dy, x):
    return dy * np.sign(x)


#: x =np.column_stack([np.random.default_rng(0).normal(size=6), np.full(6, 255.0)]); gamma 2 +; beta 2
def constant_feature_forward(x, gamma, beta):
    mu, var = x.mean(0), x.var(0)
    inv = 1 / np.sqrt(var + 1e-5)
    xhat = (x - mu) * inv
    return gamma * xhat + beta, (xhat, inv, gamma)


def constant_feature_backward(dy, cache):
    xhat, inv, gamma = cache
    n = len(dy)
    dgamma, dbeta = (dy * xhat).sum(0), dy.sum(0)
    return gamma * inv / n * (n * dy - dbeta - xhat * dgamma), dgamma, dbeta


#: scores =np.array([[2.0, 1.0, 3.0], [0.5, 0.5, 1.5]]); labels =np.array([2, 2])
def hinge_at_margin_forward(scores, labels):
    n = len(labels)
    margins = np.maximum(0, scores - scores[np.arange(n), labels][:, None] + 1)
    margins[np.arange(n), labels] = 0
    return margins.sum() / n, (margins, labels)


def hinge_at_margin_backward(dy, cache):
    margins, labels = cache
    n = len(labels)
    d = (margins > 0) * 1.0
    d[np.arange(n), labels] -= d.sum(1)
    return dy * d / n


#: x =np.array([0.5, -0.5, 0.2, 3.0]); y =np.array([0.0, 0.0, 0.2, 0.0])
def l1_loss_forward(x, y):
    return np.abs(x - y).mean(), x - y


def l1_loss_backward(dy, r):
    d = dy * np.sign(r) / r.size
    return d, -d


#: x =np.array([[0.0, -1.0, 2.0], [1.0, 0.0, 0.0]])
def leaky_at_zero_forward(x):
    return np.where(x > 0, x, 0.2 * x), x


def leaky_at_zero_backward(dy, x):
    return dy * np.where(x > 0, 1, 0.2)


#: x =np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0]]); y =np.array([[1.0, 1.0], [3.0, 1.0], [0.0, 2.0]])
def maximum_tie_forward(x, y):
    return np.maximum(x, y), (x, y)


def maximum_tie_backward(g, cache):
    x, y = cache
    return g * (x >= y), g * (x < y)


#: x =np.zeros((3, 4)); w 4,2
def zero_images_forward(x, w):
    z = np.maximum(x @ w, 0)
    return z * 2, (x, w, z)


def zero_images_backward(dy, cache):
    x, w, z = cache
    dz = 2 * dy * (z > 0)
    return dz @ w.T, x.T @ dz


#: x =np.array([[3.0, 4.0], [0.0, 0.0]])
def safe_length_forward(x):
    return np.sqrt((x**2).sum(1)), x


def safe_length_backward(dy, x):
    n = np.sqrt((x**2).sum(1, keepdims=True))
    return dy[:, None] * x / np.where(n > 0, n, 1)


#: x =np.array([[2.0, -1.0], [0.0, 0.5]]); t =np.array([[1.0, -1.0], [0.0, 1.5]])
def huber_at_delta_forward(x, t):
    r = x - t
    small = np.abs(r) <= 1
    return np.where(small, 0.5 * r**2, np.abs(r) - 0.5), r


def huber_at_delta_backward(dy, r):
    d = dy * np.where(np.abs(r) < 1, r, np.sign(r))
    return d, -d
