"""Activations and other elementwise or row-wise functions."""

import numpy as np


#: x 5,4
def sigmoid_forward(x):
    s = 1 / (1 + np.exp(-x))
    return s, (x, s)


def sigmoid_backward(dout, cache):
    x, s = cache
    return dout * s * (1 - s)
    # slip: (1 - s) => (1 + s) : sign
    # slip: s * (1 - s) => (1 - s) : missing factor
    # slip: s * (1 - s) => x * (1 - x) : wrong variable
    # slip: s * (1 - s) => s * s : wrong formula


#: x 4,6
def tanh_forward(x):
    t = np.tanh(x)
    return t, (x, t)


def tanh_backward(dy, cache):
    x, t = cache
    return dy * (1 - t**2)
    # slip: t**2 => t : wrong power
    # slip: 1 - t**2 => 1 + t**2 : sign
    # slip: t**2 => x**2 : wrong variable
    # slip: dy * (1 - t**2) => 1 - t**2 : ignores dy


#: x 6,4
def relu_forward(x):
    return np.maximum(0, x), x


def relu_backward(dout, x):
    dx = dout.copy()
    dx[x <= 0] = 0
    # slip: x <= 0 => x >= 0 : comparison
    # slip: x <= 0 => dout <= 0 : wrong variable
    # slip: ] = 0 => ] = 1 : constant
    return dx


#: x 5,5
def leaky_forward(x, slope=0.1):
    return np.where(x > 0, x, slope * x), (x, slope)


def leaky_backward(dy, cache):
    x, slope = cache
    return dy * np.where(x > 0, 1.0, slope)
    # slip: np.where(x > 0, 1.0, slope) => np.where(x > 0, slope, 1.0) : swapped
    # slip: 1.0, slope => 1.0, 0.0 : constant
    # slip: np.where(x > 0, 1.0, slope) => np.where(x > 0, 1.0, slope * x) : extra factor
    # slip: np.where(x > 0, 1.0, slope) => np.where(x > 0, 1.0, -slope) : sign


#: x 6,3
def elu_forward(x, alpha=1.3):
    out = np.where(x > 0, x, alpha * (np.exp(x) - 1))
    return out, (x, out, alpha)


def elu_backward(dy, cache):
    x, out, alpha = cache
    return dy * np.where(x > 0, 1, out + alpha)
    # slip: out + alpha => out : missing path
    # slip: out + alpha => out + 1 : constant
    # slip: out + alpha => out - alpha : sign
    # slip: out + alpha => x + alpha : wrong variable


#: x 5,4
def softplus_forward(x):
    return np.log1p(np.exp(x)), x


def softplus_backward(dy, x):
    return dy / (1 + np.exp(-x))
    # slip: np.exp(-x) => np.exp(x) : sign
    # slip: dy / (1 + np.exp(-x)) => dy * np.exp(-x) / (1 + np.exp(-x)) : extra factor
    # slip: dy / (1 + np.exp(-x)) => dy / (1 + np.exp(-x)) ** 2 : wrong power


#: x 4,5
def gelu_forward(x):
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), (x, t, c)


def gelu_backward(dout, cache):
    x, t, c = cache
    dinner = c * (1 + 3 * 0.044715 * x**2)
    # slip: 3 * 0.044715 => 0.044715 : constant
    # slip: c * (1 => (1 : missing factor
    # slip: x**2 => x**3 : wrong power
    dt = (1 - t**2) * dinner
    # slip: (1 - t**2) => (1 + t**2) : sign
    return dout * (0.5 * (1 + t) + 0.5 * x * dt)
    # slip: 0.5 * x * dt => 0.5 * dt : missing factor
    # slip: 0.5 * x * dt => x * dt : constant
    # slip: + 0.5 * x * dt =>  : missing path


#: x 6,4
def silu_forward(x):
    s = 1 / (1 + np.exp(-x))
    return x * s, (x, s)


def silu_backward(dy, cache):
    x, s = cache
    return dy * (s + x * s * (1 - s))
    # slip: s + x * s * (1 - s) => s * (1 - s) : missing path
    # slip: s + x * => s - x * : sign
    # slip: x * s * (1 - s) => s * (1 - s) : missing factor
    # slip: x * s * (1 - s) => x * (1 - s) : missing factor


#: x 5,4
def softmax_forward(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    return p, p


def softmax_backward(dy, p):
    return p * (dy - (dy * p).sum(axis=-1, keepdims=True))
    # slip: axis=-1 => axis=0 : axis
    # slip: (dy * p).sum( => (dy * p).mean( : mean for sum
    # slip: dy - (dy * p) => dy + (dy * p) : sign
    # slip: p * (dy - (dy * p).sum(axis=-1, keepdims=True)) => p * (1 - p) * dy : missing path
    # slip: (dy * p).sum => dy.sum : missing factor


#: x 4,6
def logsumexp_forward(x):
    m = x.max(1)
    e = np.exp(x - m[:, None])
    return m + np.log(e.sum(1)), e


def logsumexp_backward(dy, e):
    total = e.sum(1, keepdims=True)
    return dy[:, None] * e / total
    # slip: e / total => e : missing factor
    # slip: e / total => e * total : operator
    # slip: dy[:, None] * e / total => dy[:, None] / total : missing factor


#: x 5,6
def glu_forward(x):
    a, b = x[:, :3], x[:, 3:]
    g = 1 / (1 + np.exp(-b))
    return a * g, (a, g)


def glu_backward(dy, cache):
    a, g = cache
    da = dy * g
    # slip: dy * g => dy * g * (1 - g) : extra factor
    db = dy * a * g * (1 - g)
    # slip: dy * a * g => dy * g : missing factor
    # slip: (1 - g) => (1 - g**2) : wrong power
    return np.concatenate([da, db], axis=1)
    # slip: [da, db] => [db, da] : swapped


#: x 5,3 +; y 5,3 +
def arithmetic_forward(x, y):
    q = np.log(x) * y / (1 + x * y)
    return q, (x, y)


def arithmetic_backward(dq, cache):
    x, y = cache
    d = 1 + x * y
    dx = dq * (y / (x * d) - np.log(x) * y**2 / d**2)
    # slip: - np.log(x) => + np.log(x) : sign
    # slip: y**2 / d**2 => y / d**2 : wrong power
    # slip: d**2 => d : wrong power
    dy = dq * np.log(x) / d**2
    # slip: / d**2 => / d : wrong power
    # slip: np.log(x) => x : wrong variable
    return dx, dy
