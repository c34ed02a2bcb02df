"""Batch norm by hand, in the spellings of papers, courses and forums."""

import numpy as np


#: x 9,4; gamma 4 +; beta 4
def graph_walk_forward(x, gamma, beta, eps=1e-3):
    N, D = x.shape
    mu = 1.0 / N * np.sum(x, axis=0)
    xmu = x - mu
    sq = xmu**2
    var = 1.0 / N * np.sum(sq, axis=0)
    sqrtvar = np.sqrt(var + eps)
    ivar = 1.0 / sqrtvar
    xhat = xmu * ivar
    out = gamma * xhat + beta
    return out, (xhat, gamma, xmu, ivar, sqrtvar, var, eps)


def graph_walk_backward(dout, cache):
    xhat, gamma, xmu, ivar, sqrtvar, var, eps = cache
    N, D = dout.shape
    dbeta = np.sum(dout, axis=0)
    # slip: np.sum(dout, axis=0) => np.mean(dout, axis=0) : mean for sum
    dgamma = np.sum(dout * xhat, axis=0)
    # slip: dout * xhat => dout * xmu : wrong variable
    dxhat = dout * gamma
    # slip: dout * gamma => dout : missing factor
    divar = np.sum(dxhat * xmu, axis=0)
    dxmu1 = dxhat * ivar
    dsqrtvar = -1.0 / (sqrtvar**2) * divar
    # slip: -1.0 / (sqrtvar**2) => -1.0 / sqrtvar : wrong power
    # slip: -1.0 => 1.0 : sign
    dvar = 0.5 * 1.0 / np.sqrt(var + eps) * dsqrtvar
    # slip: 0.5 * 1.0 => 1.0 : constant
    # slip: var + eps => var : eps
    dsq = 1.0 / N * np.ones((N, D)) * dvar
    # slip: 1.0 / N * np.ones => np.ones : factor N
    dxmu2 = 2 * xmu * dsq
    # slip: 2 * xmu => xmu : constant
    dx1 = dxmu1 + dxmu2
    # slip: dxmu1 + dxmu2 => dxmu1 - dxmu2 : sign
    # slip: dxmu1 + dxmu2 => dxmu1 : missing path
    dmu = -1 * np.sum(dxmu1 + dxmu2, axis=0)
    dx2 = 1.0 / N * np.ones((N, D)) * dmu
    dx = dx1 + dx2
    # slip: dx1 + dx2 => dx1 : missing path
    return dx, dgamma, dbeta


#: x 8,5; gamma 5 +; beta 5
def paper_forward(x, gamma, beta, eps=1e-2):
    mean = x.mean(axis=0)
    var = x.var(axis=0)
    xn = (x - mean) / np.sqrt(var + eps)
    return gamma * xn + beta, (x, mean, var, xn, gamma, eps)


def paper_backward(dy, cache):
    x, mean, var, xn, gamma, eps = cache
    m = x.shape[0]
    # slip: x.shape[0] => x.shape[1] : axis
    dxn = dy * gamma
    dvar = np.sum(dxn * (x - mean) * -0.5 * (var + eps) ** -1.5, axis=0)
    # slip: -1.5 => -0.5 : wrong power
    # slip: -0.5 * => -1.0 * : constant
    dmean = np.sum(-dxn / np.sqrt(var + eps), axis=0) + dvar * np.mean(-2 * (x - mean), axis=0)
    # slip: -dxn => dxn : sign
    dx = dxn / np.sqrt(var + eps) + dvar * 2 * (x - mean) / m + dmean / m
    # slip: dvar * 2 * (x - mean) / m => dvar * 2 * (x - mean) / (m - 1) : factor N
    # slip: + dmean / m => + dmean : factor N
    # slip: + dmean / m => - dmean / m : sign
    # slip: dvar * 2 * (x - mean) => dvar * 2 * x : wrong variable
    dgamma = np.sum(dy * xn, axis=0)
    # slip: dy * xn => dxn * xn : wrong variable
    dbeta = np.sum(dy, axis=0)
    # slip: np.sum(dy => np.sum(dxn : wrong variable
    return dx, dgamma, dbeta


#: x 10,3; gamma 3 +; beta 3
def short_forward(x, gamma, beta):
    mu, std = x.mean(0), np.sqrt(x.var(0) + 1e-2)
    z = (x - mu) / std
    return gamma * z + beta, {"z": z, "std": std, "gamma": gamma}


def short_backward(dout, cache):
    z, std, gamma = cache["z"], cache["std"], cache["gamma"]
    n = len(dout)
    dbeta = dout.sum(0)
    dgamma = (dout * z).sum(0)
    # slip: (dout * z).sum(0) => dout.sum(0) * z.sum(0) : wrong variable
    dx = gamma / (n * std) * (n * dout - dbeta - z * dgamma)
    # slip: (n * dout - => (dout - : factor N
    # slip: gamma / (n * std) => 1 / (n * std) : missing factor
    # slip: - z * dgamma => + z * dgamma : sign
    # slip: - dbeta => - dbeta / n : factor N
    # slip: gamma / (n * std) => gamma / std : factor N
    # slip: (n * std) => (n * std**2) : wrong power
    return dx, dgamma, dbeta


#: x 4,3,3,2; gamma 2 +; beta 2
def images_forward(x, gamma, beta):
    axes = (0, 1, 2)
    mu = np.mean(x, axes)
    xc = x - mu
    r = 1 / np.sqrt(np.mean(xc * xc, axes) + 0.01)
    return gamma * xc * r + beta, (xc, r, gamma)


def images_backward(dy, cache):
    xc, r, gamma = cache
    axes = (0, 1, 2)
    xhat = xc * r
    # slip: xc * r => xc : missing factor
    dbeta = dy.sum(axes)
    dgamma = (dy * xhat).sum(axes)
    count = dy.shape[0] * dy.shape[1] * dy.shape[2]
    # slip: dy.shape[0] * dy.shape[1] * dy.shape[2] => dy.shape[0] : factor N
    g = dy * gamma
    dx = r * (g - g.sum(axes) / count - xhat * (g * xhat).sum(axes) / count)
    # slip: xhat * (g * xhat) => (g * xhat) : missing factor
    # slip: r * (g => (g : missing factor
    # slip: g.sum(axes) / count - => g.sum(axes) / count + : sign
    # slip: xhat * (g * xhat).sum(axes) => xhat * (dy * xhat).sum(axes) : wrong variable
    return dx, dgamma, dbeta


#: x 3,2,4,3; gamma 1,2,1,1 +; beta 1,2,1,1
def channels_first_forward(x, gamma, beta):
    mean = x.mean(axis=(0, 2, 3), keepdims=True)
    var = ((x - mean) ** 2).mean(axis=(0, 2, 3), keepdims=True)
    inv = (var + 1e-2) ** -0.5
    xhat = (x - mean) * inv
    return xhat * gamma + beta, (xhat, inv, gamma)


def channels_first_backward(dy, cache):
    xhat, inv, gamma = cache
    dgamma = np.sum(dy * xhat, axis=(0, 2, 3), keepdims=True)
    dbeta = np.sum(dy, axis=(0, 2, 3), keepdims=True)
    # slip: axis=(0, 2, 3), keepdims=True => axis=(0, 2, 3)[:2], keepdims=True : axis
    dxhat = dy * gamma
    mean_dxhat = dxhat.mean(axis=(0, 2, 3), keepdims=True)
    # slip: .mean(axis=(0, 2, 3) => .mean(axis=(2, 3) : axis
    # slip: .mean( => .sum( : mean for sum
    mean_prod = (dxhat * xhat).mean(axis=(0, 2, 3), keepdims=True)
    # slip: (dxhat * xhat) => (dy * xhat) : wrong variable
    dx = inv * (dxhat - mean_dxhat - xhat * mean_prod)
    # slip: inv * => inv**2 * : wrong power
    # slip: - xhat * mean_prod =>  : missing path
    # slip: (dxhat - mean_dxhat => (dxhat + mean_dxhat : sign
    return dx, dgamma, dbeta


#: x 6,4; gamma 4 +; beta 4
def loops_forward(x, gamma, beta):
    n, d = x.shape
    out = np.zeros((n, d))
    xhat, inv = np.zeros((n, d)), np.zeros(d)
    for j in range(d):
        m = sum(x[i, j] for i in range(n)) / n
        v = sum((x[i, j] - m) ** 2 for i in range(n)) / n
        inv[j] = 1 / np.sqrt(v + 0.01)
        for i in range(n):
            xhat[i, j] = (x[i, j] - m) * inv[j]
            out[i, j] = gamma[j] * xhat[i, j] + beta[j]
    return out, (xhat, inv, gamma)


def loops_backward(dy, cache):
    xhat, inv, gamma = cache
    n, d = dy.shape
    dx, dgamma, dbeta = np.zeros((n, d)), np.zeros(d), np.zeros(d)
    for j in range(d):
        for i in range(n):
            dgamma[j] += dy[i, j] * xhat[i, j]
            # slip: += => = : accumulate
            dbeta[j] += dy[i, j]
            # slip: dy[i, j] => dy[i, j] * gamma[j] : wrong variable
        for i in range(n):
            dx[i, j] = gamma[j] * inv[j] * (dy[i, j] - dbeta[j] / n - xhat[i, j] * dgamma[j] / n)
            # slip: gamma[j] * inv[j] => gamma[j] : missing factor
            # slip: - dbeta[j] / n => - dbeta[j] / d : axis
            # slip: xhat[i, j] * dgamma[j] / n => xhat[i, j] * dgamma[j] : factor N
            # slip: - xhat[i, j] * => + xhat[i, j] * : sign
    return dx, dgamma, dbeta


#: x 9,3; gamma 3 +; beta 3
def einsum_forward(x, gamma, beta):
    n = x.shape[0]
    centred = x - np.einsum("nd->d", x) / n
    var = np.einsum("nd,nd->d", centred, centred) / n
    inv = 1 / np.sqrt(var + 0.01)
    return np.einsum("nd,d,d->nd", centred, inv, gamma) + beta, (centred, inv, gamma)


def einsum_backward(g, cache):
    centred, inv, gamma = cache
    n = len(g)
    dgamma = np.einsum("nd,nd,d->d", g, centred, inv)
    # slip: "nd,nd,d->d", g, centred, inv => "nd,nd->d", g, centred : missing factor
    dbeta = np.einsum("nd->d", g)
    scale = gamma * inv
    # slip: gamma * inv => inv : missing factor
    projected = np.einsum("nd,nd,d->d", g, centred, inv**2) / n
    # slip: inv**2 => inv : wrong power
    # slip: / n =>  : factor N
    dx = scale * (g - dbeta / n - centred * projected)
    # slip: dbeta / n => dbeta : factor N
    # slip: - centred * projected => + centred * projected : sign
    return dx, dgamma, dbeta


#: x 7,3; gamma 3 +; beta 3
def matrix_forward(x, gamma, beta):
    n = x.shape[0]
    C = np.eye(n) - np.ones((n, n)) / n
    xc = C @ x
    s = np.sqrt((xc**2).sum(0) / n + 0.01)
    return xc / s * gamma + beta, (C, xc, s, gamma)


def matrix_backward(dout, cache):
    C, xc, s, gamma = cache
    n = len(xc)
    dxhat = dout * gamma
    ds = -(dxhat * xc).sum(0) / s**2
    # slip: / s**2 => / s : wrong power
    # slip: = -( => = ( : sign
    dxc = dxhat / s + ds * xc / (n * s)
    # slip: ds * xc / (n * s) => ds * xc / n : missing factor
    # slip: ds * xc / (n * s) => 2 * ds * xc / (n * s) : constant
    # slip: + ds * xc / (n * s) =>  : missing path
    dx = C.T @ dxc
    # slip: C.T @ dxc => dxc : missing path
    return dx, (dout * xc / s).sum(0), dout.sum(0)
    # slip: dout * xc / s => dout * xc : missing factor
    # slip: dout.sum(0) => dout.sum(1) : axis


#: x 8,3; gamma 3 +; beta 3
def moments_forward(x, gamma, beta):
    m1 = np.average(x, axis=0)
    m2 = np.average(x * x, axis=0)
    var = m2 - m1 * m1
    rstd = 1 / np.sqrt(var + 0.02)
    a = gamma * rstd
    b = beta - a * m1
    return a * x + b, (x, m1, rstd, gamma, a)


def moments_backward(dy, cache):
    x, m1, rstd, gamma, a = cache
    n = x.shape[0]
    db = dy.sum(0)
    da = (dy * x).sum(0) - m1 * db
    # slip: - m1 * db =>  : missing path
    dgamma = da * rstd
    # slip: da * rstd => da : missing factor
    drstd = da * gamma
    dvar = -0.5 * drstd * rstd**3
    # slip: rstd**3 => rstd**2 : wrong power
    # slip: -0.5 => 0.5 : sign
    dm1 = -a * db - 2 * m1 * dvar
    # slip: - 2 * m1 * dvar =>  : missing path
    # slip: - 2 * m1 => - m1 : constant
    dx = a * dy + (dm1 + 2 * x * dvar) / n
    # slip: 2 * x * dvar => x * dvar : constant
    # slip: (dm1 + 2 * x * dvar) / n => dm1 + 2 * x * dvar : factor N
    return dx, dgamma, db


#: x 6,5; gamma 5 +; beta 5
def unbiased_forward(x, gamma, beta):
    n = x.shape[0]
    mean = x.sum(0) / n
    diff = x - mean
    var = (diff**2).sum(0) / (n - 1)
    inv = (var + 0.01) ** -0.5
    raw = diff * inv
    return gamma * raw + beta, (n, diff, inv, raw, gamma)


def unbiased_backward(dout, cache):
    n, diff, inv, raw, gamma = cache
    dgamma = (dout * raw).sum(0)
    dbeta = dout.sum(0)
    draw = gamma * dout
    dinv = (draw * diff).sum(0)
    dvar = -0.5 * inv**3 * dinv
    ddiff = draw * inv + 2 * diff * dvar / (n - 1)
    # slip: / (n - 1) => / n : factor N
    # slip: 2 * diff * dvar => 2 * raw * dvar : wrong variable
    # slip: draw * inv => dout * inv : wrong variable
    dmean = -ddiff.sum(0)
    dx = ddiff + dmean / n
    # slip: dmean / n => dmean / (n - 1) : factor N
    # slip: ddiff + dmean / n => ddiff - dmean / n : sign
    return dx, dgamma, dbeta
    # slip: dx, dgamma, dbeta => dx, dbeta, dgamma : swapped


#: x 9,4; gamma 4 +; beta 4; mean 4; var 4 +
def inference_forward(x, gamma, beta, mean, var):
    inv = 1.0 / np.sqrt(var + 0.01)
    xhat = (x - mean) * inv
    return gamma * xhat + beta, (xhat, inv, gamma)


def inference_backward(dy, cache):
    xhat, inv, gamma = cache
    dx = dy * gamma * inv
    # slip: dy * gamma * inv => dy * gamma * inv - (dy * gamma * inv).mean(0) : extra path
    # slip: dy * gamma * inv => dy * inv : missing factor
    dmean = -np.sum(dx, axis=0)
    # slip: -np.sum => np.sum : sign
    dvar = -0.5 * np.sum(dy * gamma * xhat, axis=0) * inv**2
    # slip: inv**2 => inv**3 : wrong power
    # slip: dy * gamma * xhat => dy * xhat : missing factor
    return dx, np.sum(dy * xhat, axis=0), np.sum(dy, axis=0), dmean, dvar


#: x 8,4
def standardise_forward(x):
    mu = x.mean(0)
    sigma = x.std(0)
    return (x - mu) / sigma, (x, mu, sigma)


def standardise_backward(dy, cache):
    x, mu, sigma = cache
    n = x.shape[0]
    dsigma = np.sum(dy * -(x - mu) / sigma**2, axis=0)
    # slip: -(x - mu) => (x - mu) : sign
    # slip: / sigma**2 => / sigma : wrong power
    dmu = -np.sum(dy, axis=0) / sigma
    # slip: / sigma =>  : missing factor
    dx = dy / sigma + dsigma * (x - mu) / (n * sigma) + dmu / n
    # slip: (n * sigma) => sigma : factor N
    # slip: (x - mu) / (n * sigma) => (x - mu) / (2 * n * sigma) : constant
    # slip: + dmu / n =>  : missing path
    return dx


#: x 7,4; gamma 4 +; beta 4
def backprop_by_lines_forward(hprebn, bngain, bnbias):
    n = hprebn.shape[0]
    bnmeani = 1 / n * hprebn.sum(0, keepdims=True)
    bndiff = hprebn - bnmeani
    bndiff2 = bndiff**2
    bnvar = 1 / (n - 1) * bndiff2.sum(0, keepdims=True)
    bnvar_inv = (bnvar + 1e-2) ** -0.5
    bnraw = bndiff * bnvar_inv
    return bngain * bnraw + bnbias, (bngain, bndiff, bnvar, bnvar_inv, bnraw)


def backprop_by_lines_backward(dhpreact, cache):
    bngain, bndiff, bnvar, bnvar_inv, bnraw = cache
    n = len(bndiff)
    dbngain = (bnraw * dhpreact).sum(0)
    dbnraw = bngain * dhpreact
    dbnbias = dhpreact.sum(0)
    dbndiff = bnvar_inv * dbnraw
    dbnvar_inv = (bndiff * dbnraw).sum(0, keepdims=True)
    # slip: bndiff * dbnraw => bnraw * dbnraw : wrong variable
    dbnvar = -0.5 * (bnvar + 1e-2) ** -1.5 * dbnvar_inv
    dbndiff2 = 1 / (n - 1) * np.ones_like(bndiff) * dbnvar
    # slip: 1 / (n - 1) => 1 / n : factor N
    dbndiff += 2 * bndiff * dbndiff2
    # slip: += => = : accumulate
    # slip: 2 * bndiff => 2 * bndiff**2 : wrong power
    dbnmeani = (-dbndiff).sum(0)
    dhprebn = dbndiff.copy()
    dhprebn += 1 / n * (np.ones_like(bndiff) * dbnmeani)
    # slip: 1 / n * => 1 / (n - 1) * : factor N
    return dhprebn, dbngain, dbnbias
