"""Recurrent cells and nets, and attention."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


#: x 4,3; h 4,5; Wx 3,5; Wh 5,5; b 5
def rnn_step_forward(x, h, Wx, Wh, b):
    out = np.tanh(x @ Wx + h @ Wh + b)
    return out, (x, h, Wx, Wh, out)


def rnn_step_backward(dnext, cache):
    x, h, Wx, Wh, out = cache
    da = dnext * (1 - out**2)
    # slip: (1 - out**2) => (1 - out) : wrong power
    # slip: (1 - out**2) => (1 - h**2) : wrong variable
    dx, dWx = da @ Wx.T, x.T @ da
    dh = da @ Wh.T
    # slip: Wh.T => Wh : transpose
    dWh = h.T @ da
    # slip: h.T @ da => out.T @ da : wrong variable
    # slip: h.T @ da => (h.T @ da).T : transpose
    db = da.sum(0)
    # slip: da.sum(0) => dnext.sum(0) : wrong variable
    return dx, dh, dWx, dWh, db


#: x 2,4,3; h0 2,4; Wx 3,4; Wh 4,4; b 4
def rnn_forward(x, h0, Wx, Wh, b):
    h, hs = h0, []
    for t in range(x.shape[1]):
        h = np.tanh(x[:, t] @ Wx + h @ Wh + b)
        hs.append(h)
    return np.stack(hs, axis=1), (x, h0, Wx, Wh, np.stack(hs, axis=1))


def rnn_backward(dh, cache):
    x, h0, Wx, Wh, hs = cache
    dx, dWx, dWh, db = np.zeros_like(x), np.zeros_like(Wx), np.zeros_like(Wh), np.zeros(Wh.shape[0])
    carry = np.zeros_like(h0)
    for t in range(x.shape[1] - 1, -1, -1):
        da = (dh[:, t] + carry) * (1 - hs[:, t] ** 2)
        # slip: dh[:, t] + carry => dh[:, t] : missing path
        # slip: 1 - hs[:, t] ** 2 => 1 - hs[:, t - 1] ** 2 : index
        before = hs[:, t - 1] if t > 0 else h0
        # slip: hs[:, t - 1] if t > 0 else h0 => hs[:, t] : index
        dx[:, t] = da @ Wx.T
        dWx += x[:, t].T @ da
        # slip: += => = : accumulate
        dWh += before.T @ da
        # slip: before.T @ da => da.T @ before : transpose
        db += da.sum(0)
        # slip: da.sum(0) => da.mean(0) : mean for sum
        carry = da @ Wh.T
        # slip: da @ Wh.T => da @ Wh : transpose
    return dx, carry, dWx, dWh, db


#: x 3,4; h 3,2; c 3,2; Wx 4,8; Wh 2,8; b 8
def lstm_step_forward(x, h, c, Wx, Wh, b):
    H = h.shape[1]
    a = x @ Wx + h @ Wh + b
    i, f, o = sigmoid(a[:, :H]), sigmoid(a[:, H : 2 * H]), sigmoid(a[:, 2 * H : 3 * H])
    g = np.tanh(a[:, 3 * H :])
    c_next = f * c + i * g
    return o * np.tanh(c_next), (x, h, c, Wx, Wh, i, f, o, g, c_next)


def lstm_step_backward(dh_next, cache):
    x, h, c, Wx, Wh, i, f, o, g, c_next = cache
    tc = np.tanh(c_next)
    do = dh_next * tc
    # slip: dh_next * tc => dh_next * c_next : wrong variable
    dc = dh_next * o * (1 - tc**2)
    # slip: * (1 - tc**2) =>  : missing factor
    # slip: dh_next * o * => dh_next * : missing factor
    di, df, dg = dc * g, dc * c, dc * i
    # slip: dc * c, => dc * c_next, : wrong variable
    # slip: dc * g, dc * c, dc * i => dc * i, dc * c, dc * g : swapped
    da = np.hstack((di * i * (1 - i), df * f * (1 - f), do * o * (1 - o), dg * (1 - g**2)))
    # slip: dg * (1 - g**2) => dg * g * (1 - g) : wrong formula
    # slip: do * o * (1 - o) => do * (1 - o) : missing factor
    dc_prev = dc * f
    # slip: dc * f => dc * i : wrong variable
    return da @ Wx.T, da @ Wh.T, dc_prev, x.T @ da, h.T @ da, da.sum(0)


#: x 3,4; h 3,2; Wz 6,2; Wr 6,2; Wc 6,2
def gru_forward(x, h, Wz, Wr, Wc):
    xh = np.hstack([x, h])
    z, r = sigmoid(xh @ Wz), sigmoid(xh @ Wr)
    xrh = np.hstack([x, r * h])
    n = np.tanh(xrh @ Wc)
    return (1 - z) * n + z * h, (xh, z, r, xrh, n, h, Wz, Wr, Wc)


def gru_backward(dout, cache):
    xh, z, r, xrh, n, h, Wz, Wr, Wc = cache
    D = xh.shape[1] - h.shape[1]
    dn = dout * (1 - z) * (1 - n**2)
    # slip: dout * (1 - z) => dout * z : wrong formula
    # slip: (1 - n**2) => (1 - n) : wrong power
    dz = dout * (h - n) * z * (1 - z)
    # slip: (h - n) => (n - h) : sign
    # slip: (h - n) => h : missing path
    dxrh = dn @ Wc.T
    dr = dxrh[:, D:] * h * r * (1 - r)
    # slip: dxrh[:, D:] * h * r => dxrh[:, D:] * r : missing factor
    dxh = dz @ Wz.T + dr @ Wr.T
    # slip: + dr @ Wr.T =>  : missing path
    dx = dxh[:, :D] + dxrh[:, :D]
    dh = dout * z + dxh[:, D:] + dxrh[:, D:] * r
    # slip: dout * z + =>  : missing path
    # slip: dxrh[:, D:] * r => dxrh[:, D:] : missing factor
    return dx, dh, xh.T @ dz, xh.T @ dr, xrh.T @ dn


#: q 4,3; k 5,3; v 5,2
def attention_forward(q, k, v):
    s = q @ k.T / np.sqrt(q.shape[1])
    p = softmax(s)
    return p @ v, (q, k, v, p)


def attention_backward(dout, cache):
    q, k, v, p = cache
    scale = 1 / np.sqrt(q.shape[1])
    # slip: 1 / np.sqrt(q.shape[1]) => 1 / q.shape[1] : wrong power
    # slip: 1 / np.sqrt(q.shape[1]) => np.sqrt(q.shape[1]) : operator
    dv = p.T @ dout
    # slip: p.T @ dout => p.T @ dout / len(q) : factor N
    dp = dout @ v.T
    ds = p * (dp - (dp * p).sum(-1, keepdims=True))
    # slip: p * (dp - => (dp - : missing factor
    # slip: .sum(-1, => .sum(0, : axis
    # slip: (dp - (dp * p) => (dp + (dp * p) : sign
    dq = ds @ k * scale
    # slip: ds @ k * scale => ds @ k : missing factor
    dk = ds.T @ q * scale
    # slip: ds.T @ q => dp.T @ q : wrong variable
    return dq, dk, dv
    # slip: dq, dk, dv => dq, dv, dk : swapped


#: x 2,4,6; Wq 6,6; Wk 6,6; Wv 6,6; Wo 6,6
def multi_head_forward(x, Wq, Wk, Wv, Wo):
    B, T, C = x.shape
    H, E = 2, C // 2

    def split(a):
        return a.reshape(B, T, H, E).transpose(0, 2, 1, 3)

    q, k, v = split(x @ Wq), split(x @ Wk), split(x @ Wv)
    s = q @ k.transpose(0, 1, 3, 2) / np.sqrt(E)
    s = np.where(np.tril(np.ones((T, T), bool)), s, -1e9)
    p = softmax(s)
    merged = (p @ v).transpose(0, 2, 1, 3).reshape(B, T, C)
    return merged @ Wo, (x, Wq, Wk, Wv, Wo, q, k, v, p, merged)


def multi_head_backward(dout, cache):
    x, Wq, Wk, Wv, Wo, q, k, v, p, merged = cache
    B, T, C = x.shape
    H, E = 2, C // 2

    def join(a):
        return a.transpose(0, 2, 1, 3).reshape(B, T, C)

    dWo = np.einsum("btc,btd->cd", merged, dout)
    dm = (dout @ Wo.T).reshape(B, T, H, E).transpose(0, 2, 1, 3)
    # slip: dout @ Wo.T => dout @ Wo : transpose
    dp = dm @ v.transpose(0, 1, 3, 2)
    dv = join(p.transpose(0, 1, 3, 2) @ dm)
    # slip: p.transpose(0, 1, 3, 2) @ dm => p @ dm : transpose
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / np.sqrt(E)
    # slip: / np.sqrt(E) => / np.sqrt(C) : wrong variable
    # slip: / np.sqrt(E) =>  : missing factor
    # slip: (dp * p).sum( => (dp * p).mean( : mean for sum
    dq, dk = join(ds @ k), join(ds.transpose(0, 1, 3, 2) @ q)
    dx = dq @ Wq.T + dk @ Wk.T + dv @ Wv.T
    # slip: + dk @ Wk.T =>  : missing path
    # slip: dk @ Wk.T => dk @ Wq.T : wrong variable
    flat = x.reshape(-1, C)
    return dx, *[flat.T @ d.reshape(-1, C) for d in (dq, dk, dv)], dWo
    # slip: (dq, dk, dv) => (dk, dq, dv) : swapped


#: x 3,5; h 3,4; Wx 5,4; Wh 4,4
def residual_cell_forward(x, h, Wx, Wh):
    a = x @ Wx
    r = np.maximum(a + h @ Wh, 0)
    return h + 0.5 * r, (x, h, Wx, Wh, a + h @ Wh)


def residual_cell_backward(dy, cache):
    x, h, Wx, Wh, pre = cache
    da = 0.5 * dy * (pre > 0)
    # slip: 0.5 * dy => dy : constant
    # slip: pre > 0 => h > 0 : wrong variable
    # slip: pre > 0 => pre < 0 : comparison
    dh = dy + da @ Wh.T
    # slip: dy + da @ Wh.T => da @ Wh.T : missing path
    # slip: dy + da => dy - da : sign
    return da @ Wx.T, dh, x.T @ da, h.T @ da
    # slip: h.T @ da => h.T @ dy : wrong variable


#: x 3,6,2; h 3,4; W 6,4; U 4,4; v 2
def gated_sum_forward(x, h, W, U, v):
    e = np.einsum("btd,d->bt", x, v)
    a = softmax(e)
    ctx = np.einsum("bt,btd->bd", a, x)
    return np.tanh(h @ U) * ctx.sum(1, keepdims=True) + a @ W, (x, h, W, U, v, a, ctx)


def gated_sum_backward(dy, cache):
    x, h, W, U, v, a, ctx = cache
    t = np.tanh(h @ U)
    total = ctx.sum(1, keepdims=True)
    dt = dy * total
    du = dt * (1 - t**2)
    # slip: dt * (1 - t**2) => dt : missing factor
    dtotal = (dy * t).sum(1, keepdims=True)
    # slip: .sum(1, keepdims=True) => .mean(1, keepdims=True) : mean for sum
    da = dy @ W.T + dtotal * x.sum(2)
    # slip: dy @ W.T + =>  : missing path
    de = a * (da - (a * da).sum(1, keepdims=True))
    # slip: - (a * da) => + (a * da) : sign
    dx = dtotal[:, :, None] * a[:, :, None] + de[:, :, None] * v
    # slip: + de[:, :, None] * v =>  : missing path
    return dx, du @ U.T, a.T @ dy, h.T @ du, np.einsum("bt,btd->d", de, x)
    # slip: a.T @ dy => a.T @ dt : wrong variable
