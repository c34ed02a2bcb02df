"""Other normalisations: layer, group, instance, RMS, weight, unit length, contrast."""

import numpy as np


#: x 5,7; gamma 7 +; beta 7
def layer_forward(x, gamma, beta):
    mu = x.mean(axis=1, keepdims=True)
    var = x.var(axis=1, keepdims=True)
    inv = 1 / np.sqrt(var + 0.01)
    xhat = (x - mu) * inv
    return gamma * xhat + beta, (xhat, inv, gamma)


def layer_backward(dout, cache):
    xhat, inv, gamma = cache
    D = dout.shape[1]
    # slip: dout.shape[1] => dout.shape[0] : axis
    dxhat = dout * gamma
    # slip: dout * gamma => dout : missing factor
    dx = inv / D * (D * dxhat - dxhat.sum(1, keepdims=True) - xhat * (dxhat * xhat).sum(1, keepdims=True))
    # slip: dxhat.sum(1, keepdims=True) - => dxhat.sum(0, keepdims=True) - : axis
    # slip: - xhat * (dxhat => + xhat * (dxhat : sign
    # slip: inv / D * (D => 1 / D * (D : missing factor
    # slip: (D * dxhat => (dxhat : factor N
    return dx, (dout * xhat).sum(0), dout.sum(0)
    # slip: (dout * xhat).sum(0) => (dxhat * xhat).sum(0) : wrong variable
    # slip: (dout * xhat).sum(0) => (dout * xhat).sum(1) : axis


#: x 3,4,6; weight 6 +; bias 6
def transformer_layer_forward(x, weight, bias):
    c = x - x.sum(-1, keepdims=True) / x.shape[-1]
    rstd = ((c**2).sum(-1, keepdims=True) / x.shape[-1] + 0.01) ** -0.5
    norm = c * rstd
    return norm * weight + bias, (norm, rstd, weight)


def transformer_layer_backward(dout, cache):
    norm, rstd, weight = cache
    dnorm = dout * weight
    dx = dnorm - dnorm.mean(-1, keepdims=True) - norm * (dnorm * norm).mean(-1, keepdims=True)
    # slip: dnorm.mean(-1, keepdims=True) - => dnorm.mean(1, keepdims=True) - : axis
    # slip: - norm * (dnorm * norm).mean(-1, keepdims=True) =>  : missing path
    # slip: (dnorm * norm).mean( => (dnorm * norm).sum( : mean for sum
    dx *= rstd
    # slip: dx *= rstd => dx *= rstd**2 : wrong power
    dweight = (dout * norm).sum((0, 1))
    # slip: .sum((0, 1)) => .mean((0, 1)) : mean for sum
    dbias = dout.sum((0, 1))
    return dx, dweight, dbias


#: x 2,6,3,2; gamma 6 +; beta 6
def group_forward(x, gamma, beta):
    N, C, H, W = x.shape
    G = 3
    xg = x.reshape(N, G, C // G, H, W)
    mean = xg.mean(axis=(2, 3, 4), keepdims=True)
    var = xg.var(axis=(2, 3, 4), keepdims=True)
    xhat = ((xg - mean) / np.sqrt(var + 0.01)).reshape(N, C, H, W)
    out = gamma[:, None, None] * xhat + beta[:, None, None]
    return out, (G, var, xhat, gamma)


def group_backward(dout, cache):
    G, var, xhat, gamma = cache
    N, C, H, W = dout.shape
    dgamma = (dout * xhat).sum(axis=(0, 2, 3))
    dbeta = dout.sum(axis=(0, 2, 3))
    # slip: dout.sum(axis=(0, 2, 3)) => dout.mean(axis=(0, 2, 3)) : mean for sum
    dxhat = (dout * gamma[:, None, None]).reshape(N, G, C // G, H, W)
    xg = xhat.reshape(N, G, C // G, H, W)
    m = C // G * H * W
    # slip: C // G * H * W => C * H * W : factor N
    # slip: C // G * H * W => H * W : factor N
    a = dxhat.sum(axis=(2, 3, 4), keepdims=True)
    # slip: axis=(2, 3, 4) => axis=(3, 4) : axis
    b = (dxhat * xg).sum(axis=(2, 3, 4), keepdims=True)
    dx = (m * dxhat - a - xg * b) / (m * np.sqrt(var + 0.01))
    # slip: - a - => + a - : sign
    # slip: np.sqrt(var + 0.01) => (var + 0.01) : wrong power
    # slip: - xg * b => - b : missing factor
    return dx.reshape(N, C, H, W), dgamma, dbeta


#: x 2,3,4,3; gamma 3 +; beta 3
def instance_forward(x, gamma, beta):
    mean = np.mean(x, axis=(2, 3), keepdims=True)
    std = np.sqrt(np.mean((x - mean) ** 2, axis=(2, 3), keepdims=True) + 0.01)
    xn = (x - mean) / std
    return gamma.reshape(1, -1, 1, 1) * xn + beta.reshape(1, -1, 1, 1), (xn, std, gamma)


def instance_backward(dy, cache):
    xn, std, gamma = cache
    dgamma = np.sum(dy * xn, axis=(0, 2, 3))
    # slip: dy * xn => dy * xn * std : extra factor
    dbeta = np.sum(dy, axis=(0, 2, 3))
    dxn = dy * gamma.reshape(1, -1, 1, 1)
    m1 = np.mean(dxn, axis=(2, 3), keepdims=True)
    # slip: axis=(2, 3) => axis=(0, 2, 3) : axis
    m2 = np.mean(dxn * xn, axis=(2, 3), keepdims=True)
    # slip: axis=(2, 3) => axis=(0, 2, 3) : axis
    dx = (dxn - m1 - xn * m2) / std
    # slip: (dxn - m1 - xn * m2) => (dxn - xn * m2) : missing path
    # slip: - xn * m2 => + xn * m2 : sign
    # slip: / std => * std : operator
    return dx, dgamma, dbeta


#: x 5,6; g 6 +
def rms_forward(x, g):
    ms = np.mean(x**2, axis=-1, keepdims=True)
    r = 1 / np.sqrt(ms + 0.01)
    return x * r * g, (x, r, g)


def rms_backward(dy, cache):
    x, r, g = cache
    n = x.shape[-1]
    dg = np.sum(dy * x * r, axis=0)
    # slip: dy * x * r => dy * x : missing factor
    dxr = dy * g
    # slip: dy * g => dy : missing factor
    dr = np.sum(dxr * x, axis=-1, keepdims=True)
    dms = -0.5 * dr * r**3
    # slip: r**3 => r**2 : wrong power
    # slip: -0.5 => 0.5 : sign
    dx = dxr * r + 2 * x * dms / n
    # slip: 2 * x * dms / n => 2 * x * dms : factor N
    # slip: 2 * x * dms => x * dms : constant
    # slip: + 2 * x * dms / n =>  : missing path
    return dx, dg


#: x 3,4,5; weight 5 +
def llama_rms_forward(x, weight):
    scale = np.sqrt((x * x).mean(-1, keepdims=True) + 0.01)
    return weight * (x / scale), (x, weight, scale)


def llama_rms_backward(grad, cache):
    x, weight, scale = cache
    xhat = x / scale
    dweight = (grad * xhat).reshape(-1, x.shape[-1]).sum(0)
    # slip: grad * xhat => grad * x : wrong variable
    dxhat = grad * weight
    dx = (dxhat - xhat * (dxhat * xhat).mean(-1, keepdims=True)) / scale
    # slip: / scale => / scale**2 : wrong power
    # slip: (dxhat - xhat * => (dxhat + xhat * : sign
    # slip: .mean(-1, => .mean(1, : axis
    # slip: (dxhat * xhat).mean( => (dxhat * xhat).sum( : mean for sum
    return dx, dweight


#: v 4,6; g 4 +; x 5,6
def weight_norm_forward(v, g, x):
    norm = np.sqrt((v**2).sum(1))
    w = (g / norm)[:, None] * v
    return x @ w.T, (v, g, x, norm, w)


def weight_norm_backward(dy, cache):
    v, g, x, norm, w = cache
    dw = dy.T @ x
    dx = dy @ w
    # slip: dy @ w => dy @ v : wrong variable
    dg = (dw * v).sum(1) / norm
    # slip: / norm =>  : missing factor
    # slip: .sum(1) => .mean(1) : mean for sum
    dv = (g / norm)[:, None] * dw - (g * dg / norm**2)[:, None] * v
    # slip: (g * dg / norm**2) => (g * dg / norm) : wrong power
    # slip: * dw - (g => * dw + (g : sign
    # slip: (g * dg / norm**2) => (dg / norm**2) : missing factor
    return dv, dg, dx


#: x 6,4
def unit_length_forward(x):
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / length, (x, length)


def unit_length_backward(dout, cache):
    x, length = cache
    u = x / length
    along = np.sum(dout * u, axis=1, keepdims=True)
    # slip: axis=1 => axis=0 : axis
    # slip: dout * u => dout * x : wrong variable
    dx = (dout - u * along) / length
    # slip: dout - u * along => dout : missing path
    # slip: - u * along => + u * along : sign
    # slip: u * along => along : missing factor
    # slip: / length =>  : missing factor
    return dx


#: x 3,5,4
def response_forward(x, k=2.0, alpha=0.5, beta=0.75):
    sq = x**2
    s = sq.copy()
    s[:, 1:] += sq[:, :-1]
    s[:, :-1] += sq[:, 1:]
    d = k + alpha * s
    return x * d**-beta, (x, d, alpha, beta)


def response_backward(dy, cache):
    x, d, alpha, beta = cache
    inner = dy * x * d ** (-beta - 1)
    # slip: (-beta - 1) => (-beta) : wrong power
    spread = inner.copy()
    spread[:, 1:] += inner[:, :-1]
    # slip: spread[:, 1:] += inner[:, :-1] => spread[:, 1:] -= inner[:, :-1] : sign
    spread[:, :-1] += inner[:, 1:]
    # slip: += => = : accumulate
    dx = dy * d**-beta - 2 * alpha * beta * x * spread
    # slip: 2 * alpha * beta => 2 * alpha : missing factor
    # slip: 2 * alpha => alpha : constant
    return dx


#: x 5,4; w 4,3; gamma 3 +; beta 3
def linear_then_norm_forward(x, w, gamma, beta):
    z = x @ w
    mu = z.mean(0)
    inv = 1 / np.sqrt(z.var(0) + 0.01)
    zhat = (z - mu) * inv
    return np.tanh(gamma * zhat + beta), (x, w, gamma, zhat, inv, np.tanh(gamma * zhat + beta))


def linear_then_norm_backward(dy, cache):
    x, w, gamma, zhat, inv, out = cache
    du = dy * (1 - out**2)
    # slip: (1 - out**2) => (1 - out) : wrong power
    dgamma = (du * zhat).sum(0)
    # slip: du * zhat => dy * zhat : wrong variable
    dbeta = du.sum(0)
    dzhat = du * gamma
    dz = inv * (dzhat - dzhat.mean(0) - zhat * (dzhat * zhat).mean(0))
    # slip: - dzhat.mean(0) =>  : missing path
    # slip: zhat * (dzhat * zhat).mean(0) => zhat * (dzhat * zhat).sum(0) : mean for sum
    dx = dz @ w.T
    dw = x.T @ dz
    # slip: x.T @ dz => x.T @ du : wrong variable
    return dx, dw, dgamma, dbeta
