"""Layers: affine, convolution, pooling, embedding, dropout, indexing."""

import numpy as np


#: x 5,4; w 4,3; b 3
def affine_forward(x, w, b):
    return x @ w + b, (x, w)


def affine_backward(dout, cache):
    x, w = cache
    dx = dout @ w.T
    dw = x.T @ dout
    # slip: x.T @ dout => x.T @ dout / len(x) : factor N
    # slip: x.T @ dout => -x.T @ dout : sign
    # slip: x.T @ dout => (dout.T @ x) : transpose
    db = dout.sum(axis=0)
    # slip: dout.sum(axis=0) => dout.mean(axis=0) : mean for sum
    # slip: dout.sum(axis=0) => dout : missing sum
    return dx, dw, db
    # slip: dx, dw, db => dw, dx, db : swapped


#: x 3,2,3; w 6,4; b 4
def affine_images_forward(x, w, b):
    N = x.shape[0]
    flat = x.reshape(N, -1)
    return np.dot(flat, w) + b, (x, w, b)


def affine_images_backward(dout, cache):
    x, w, b = cache
    N = x.shape[0]
    dx = np.dot(dout, w.T).reshape(x.shape)
    # slip: .reshape(x.shape) =>  : shape
    # slip: np.dot(dout, w.T) => 2 * np.dot(dout, w.T) : constant
    dw = np.dot(x.reshape(N, -1).T, dout)
    # slip: x.reshape(N, -1).T => x.reshape(-1, N) : transpose
    db = np.sum(dout, axis=0)
    # slip: np.sum(dout, axis=0) => np.sum(dout) * np.ones_like(b) : axis
    return dx, dw, db


#: x 4,4; w 4,4
def square_matmul_forward(x, w):
    return x @ w, (x, w)


def square_matmul_backward(dy, cache):
    x, w = cache
    dx = dy @ w.T
    # slip: dy @ w.T => dy @ w : transpose
    # slip: dy @ w.T => w.T @ dy : swapped
    dw = x.T @ dy
    # slip: x.T @ dy => x @ dy : transpose
    # slip: x.T @ dy => dy.T @ x : transpose
    return dx, dw


#: x 2,2,5,5; w 3,2,3,3; b 3
def conv_forward(x, w, b):
    stride, pad = 2, 1
    N, C, H, W = x.shape
    F, _, HH, WW = w.shape
    xp = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    Ho, Wo = 1 + (H + 2 * pad - HH) // stride, 1 + (W + 2 * pad - WW) // stride
    out = np.zeros((N, F, Ho, Wo))
    for i in range(Ho):
        for j in range(Wo):
            window = xp[:, :, i * stride : i * stride + HH, j * stride : j * stride + WW]
            out[:, :, i, j] = np.tensordot(window, w, axes=([1, 2, 3], [1, 2, 3])) + b
    return out, (xp, w, stride, pad)


def conv_backward(dout, cache):
    xp, w, stride, pad = cache
    F, _, HH, WW = w.shape
    dxp, dw = np.zeros_like(xp), np.zeros_like(w)
    for i in range(dout.shape[2]):
        for j in range(dout.shape[3]):
            rows, cols = slice(i * stride, i * stride + HH), slice(j * stride, j * stride + WW)
            # slip: slice(j * stride, j * stride + WW) => slice(j, j + WW) : index
            dw += np.tensordot(dout[:, :, i, j], xp[:, :, rows, cols], axes=(0, 0))
            # slip: dw += => dw = : accumulate
            dxp[:, :, rows, cols] += np.tensordot(dout[:, :, i, j], w, axes=(1, 0))
            # slip: += => = : accumulate
    dx = dxp[:, :, pad:-pad, pad:-pad]
    # slip: pad:-pad, pad:-pad => : -2 * pad, : -2 * pad : index
    db = dout.sum(axis=(0, 2, 3))
    # slip: dout.sum(axis=(0, 2, 3)) => dout.mean(axis=(0, 2, 3)) : mean for sum
    return dx, dw, db


#: x 3,8; k 3
def conv1d_forward(x, k):
    out = np.stack([np.convolve(row, k, mode="valid") for row in x])
    return out, (x, k)


def conv1d_backward(dy, cache):
    x, k = cache
    dx = np.stack([np.convolve(row, k[::-1], mode="full") for row in dy])
    # slip: k[::-1] => k : index
    # slip: k[::-1] => -k[::-1] : sign
    dk = np.sum([np.convolve(row[::-1], d, mode="valid")[::-1] for row, d in zip(x, dy, strict=True)], axis=0)
    # slip: np.sum( => np.mean( : mean for sum
    # slip: mode="valid")[::-1] => mode="valid") : index
    return dx, dk[::-1]
    # slip: dk[::-1] => dk : index


#: x 2,3,4,4
def max_pool_forward(x):
    N, C, H, W = x.shape
    blocks = x.reshape(N, C, H // 2, 2, W // 2, 2)
    out = blocks.max(axis=3).max(axis=4)
    return out, (x, blocks, out)


def max_pool_backward(dout, cache):
    x, blocks, out = cache
    mask = blocks == out[:, :, :, None, :, None]
    # slip: == => != : comparison
    # slip: blocks == out => blocks <= out : comparison
    dx = mask * dout[:, :, :, None, :, None]
    # slip: mask * dout => mask * x.reshape(blocks.shape) * dout : extra factor
    # slip: mask * dout => mask / 4 * dout : factor N
    return dx.reshape(x.shape)


#: x 2,6,4,3
def mean_pool_forward(x):
    N, H, W, C = x.shape
    return x.reshape(N, H // 2, 2, W // 2, 2, C).mean(axis=(2, 4)), x.shape


def mean_pool_backward(dy, shape):
    dx = np.repeat(np.repeat(dy, 2, axis=1), 2, axis=2) / 4
    # slip: / 4 =>  : factor N
    # slip: / 4 => / 2 : constant
    # slip: np.repeat(np.repeat(dy, 2, axis=1), 2, axis=2) => np.tile(dy, (1, 2, 2, 1)) : index
    return dx


#: table 6,3; ids 2,5 int 6
def embedding_forward(table, ids):
    return table[ids], (table.shape, ids)


def embedding_backward(dout, cache):
    shape, ids = cache
    dtable = np.zeros(shape)
    np.add.at(dtable, ids, dout)
    # slip: np.add.at(dtable, ids, dout) => dtable[ids] += dout : accumulate
    # slip: np.add.at(dtable, ids, dout) => dtable[ids] = dout : accumulate
    # slip: ids, dout) => ids, -dout) : sign
    return dtable


#: x 6,5
def dropout_forward(x, keep=0.7):
    mask = (np.random.default_rng(3).random(x.shape) < keep) / keep
    return x * mask, (mask, keep)


def dropout_backward(dout, cache):
    mask, keep = cache
    return dout * mask
    # slip: dout * mask => dout * (mask > 0) : missing factor
    # slip: dout * mask => dout * mask * keep : extra factor
    # slip: dout * mask => dout : missing factor
    # slip: dout * mask => dout * (1 - mask) : wrong formula


#: x 4,3; y 4,5; w 3,2,5
def bilinear_forward(x, y, w):
    return np.einsum("ni,iko,no->nk", x, w, y), (x, y, w)


def bilinear_backward(g, cache):
    x, y, w = cache
    dx = np.einsum("nk,iko,no->ni", g, w, y)
    # slip: g, w, y => -g, w, y : sign
    dy = np.einsum("nk,iko,ni->no", g, w, x)
    dw = np.einsum("nk,ni,no->iko", g, x, y)
    # slip: g, x, y) => g, x, y) / len(g) : factor N
    # slip: g, x, y) => g, x, y**2) : wrong power
    return dx, dy, dw
    # slip: dx, dy, dw => dx, 2 * dy, dw : constant


#: x 5,6; w1 6,4; b1 4; w2 4,2; b2 2
def two_layers_forward(x, w1, b1, w2, b2):
    z = x @ w1 + b1
    h = np.maximum(z, 0)
    return h @ w2 + b2, (x, w1, z, h, w2)


def two_layers_backward(dout, cache):
    x, w1, z, h, w2 = cache
    dw2 = h.T @ dout
    # slip: h.T @ dout => z.T @ dout : wrong variable
    db2 = dout.sum(0)
    dh = dout @ w2.T
    dz = dh * (z > 0)
    # slip: dh * (z > 0) => dh : missing factor
    # slip: (z > 0) => (dh > 0) : wrong variable
    # slip: (z > 0) => (z < 0) : comparison
    dw1 = x.T @ dz
    # slip: x.T @ dz => x.T @ dh : wrong variable
    db1 = dz.sum(0)
    # slip: dz.sum(0) => dh.sum(0) : wrong variable
    dx = dz @ w1.T
    return dx, dw1, db1, dw2, db2


#: x 4,5; scale 5; shift 1
def broadcast_forward(x, scale, shift):
    return x * scale + shift, (x, scale)


def broadcast_backward(dy, cache):
    x, scale = cache
    dscale = (dy * x).sum(axis=0)
    # slip: (dy * x).sum(axis=0) => (dy * scale).sum(axis=0) : wrong variable
    dshift = np.array([dy.sum()])
    # slip: dy.sum() => dy.mean() : mean for sum
    return dy * scale, dscale, dshift
    # slip: dy * scale => dy * x : wrong variable
