"""Losses: with an upstream gradient, without one, and with a penalty."""

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


#: scores 6,4; labels 6 int 4
def cross_entropy_forward(scores, labels):
    p = softmax(scores)
    n = scores.shape[0]
    return -np.log(p[np.arange(n), labels]).mean(), (p, labels)


def cross_entropy_backward(dy, cache):
    p, labels = cache
    n = p.shape[0]
    d = p.copy()
    d[np.arange(n), labels] -= 1
    # slip: -= 1 => += 1 : sign
    # slip: -= 1 => -= 2 : constant
    d /= n
    # slip: d /= n => d /= p.shape[1] : axis
    # slip: d /= n => d = d : factor N
    return dy * d
    # slip: dy * d => -dy * d : sign


#: logits 5,3; labels 5 int 3
def log_softmax_forward(logits, labels):
    shifted = logits - logits.max(1, keepdims=True)
    counts = np.exp(shifted)
    total = counts.sum(1, keepdims=True)
    logprobs = shifted - np.log(total)
    loss = -logprobs[range(len(labels)), labels].mean()
    return loss, (counts, total, labels)


def log_softmax_backward(_, cache):
    counts, total, labels = cache
    n = len(labels)
    dlogprobs = np.zeros_like(counts)
    dlogprobs[range(n), labels] = -1.0 / n
    # slip: -1.0 / n => 1.0 / n : sign
    # slip: -1.0 / n => -1.0 : factor N
    dtotal = -(dlogprobs.sum(1, keepdims=True)) / total
    # slip: / total =>  : missing factor
    # slip: dlogprobs.sum(1, keepdims=True) => dlogprobs.sum(0, keepdims=True) : axis
    dcounts = dtotal * np.ones_like(counts)
    dlogits = dlogprobs + dcounts * counts
    # slip: dcounts * counts => dcounts : missing factor
    # slip: dlogprobs + dcounts * counts => dcounts * counts : missing path
    return dlogits


#: pred 6,3; target 6,3
def squared_forward(pred, target):
    diff = pred - target
    return np.mean(diff**2), diff


def squared_backward(dout, diff):
    n = diff.size
    # slip: diff.size => diff.shape[0] : factor N
    dpred = dout * 2 * diff / n
    # slip: 2 * diff => diff : constant
    # slip: 2 * diff / n => 2 * diff : factor N
    # slip: 2 * diff / n => 2 / n : missing factor
    return dpred, -dpred
    # slip: dpred, -dpred => dpred, dpred : sign
    # slip: dpred, -dpred => -dpred, dpred : swapped


#: x 7,4; w 4; y 7
def ridge_forward(x, w, y, lam=0.3):
    err = x @ w - y
    return 0.5 * (err**2).sum() + 0.5 * lam * (w**2).sum(), (x, w, err, lam)


def ridge_backward(dout, cache):
    x, w, err, lam = cache
    dw = x.T @ err + lam * w
    # slip: x.T @ err + lam * w => x.T @ err : missing path
    # slip: + lam * w => - lam * w : sign
    # slip: lam * w => 2 * lam * w : constant
    # slip: x.T @ err => err @ x / len(x) : factor N
    dx = np.outer(err, w)
    return dout * dx, dout * dw, -dout * err
    # slip: -dout * err => dout * err : sign


#: logits 6; targets 6 p
def bce_logits_forward(logits, targets):
    loss = np.logaddexp(0, logits) - logits * targets
    return loss.sum(), (logits, targets)


def bce_logits_backward(dy, cache):
    logits, targets = cache
    s = 1 / (1 + np.exp(-logits))
    # slip: np.exp(-logits) => np.exp(logits) : sign
    d = s - targets
    # slip: s - targets => targets - s : sign
    # slip: s - targets => logits - targets : wrong variable
    # slip: s - targets => (s - targets) * s * (1 - s) : extra factor
    return dy * d, -dy * logits
    # slip: -dy * logits => -dy * s : wrong variable


#: p 6,2 p; t 6,2 p
def bce_forward(p, t):
    loss = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    return loss.mean(), (p, t)


def bce_backward(dy, cache):
    p, t = cache
    dp = (p - t) / (p * (1 - p)) / p.size
    # slip: (p - t) => (t - p) : sign
    # slip: (p * (1 - p)) => p : missing factor
    # slip: (1 - p)) / p.size => (1 - p)) / len(p) : factor N
    dt = -(np.log(p) - np.log(1 - p)) / p.size
    # slip: np.log(p) - np.log(1 - p) => np.log(p) + np.log(1 - p) : sign
    return dy * dp, dy * dt


#: scores 6,4; labels 6 int 4
def hinge_forward(scores, labels):
    n = len(labels)
    correct = scores[np.arange(n), labels][:, None]
    margins = np.maximum(0, scores - correct + 1.0)
    margins[np.arange(n), labels] = 0
    return margins.sum() / n, (margins, labels)


def hinge_backward(dout, cache):
    margins, labels = cache
    n = len(labels)
    dscores = (margins > 0).astype(float)
    # slip: margins > 0 => margins < 0 : comparison
    # slip: (margins > 0).astype(float) => margins.copy() : wrong variable
    dscores[np.arange(n), labels] -= dscores.sum(axis=1)
    # slip: dscores.sum(axis=1) => 1 : missing factor
    # slip: -= => += : sign
    # slip: dscores.sum(axis=1) => dscores.mean(axis=1) : mean for sum
    return dout * dscores / n


#: x 5,3; y 5,3
def huber_forward(x, y, delta=0.8):
    r = x - y
    small = np.abs(r) <= delta
    return np.where(small, 0.5 * r**2, delta * (np.abs(r) - 0.5 * delta)), (r, small, delta)


def huber_backward(dy, cache):
    r, small, delta = cache
    d = dy * np.where(small, r, delta * np.sign(r))
    # slip: delta * np.sign(r) => np.sign(r) : missing factor
    # slip: np.where(small, r, => np.where(small, 0.5 * r, : constant
    # slip: delta * np.sign(r) => delta : missing factor
    # slip: np.where(small, => np.where(~small, : comparison
    return d, -d


#: q 5,4; p 5,4 p
def kl_forward(q, p):
    s = softmax(q)
    return np.sum(p * (np.log(p) - np.log(s))), (s, p)


def kl_backward(dy, cache):
    s, p = cache
    dq = s * p.sum(1, keepdims=True) - p
    # slip: s * p.sum(1, keepdims=True) - p => s - p : missing factor
    # slip: s * p.sum(1, keepdims=True) - p => p - s * p.sum(1, keepdims=True) : sign
    dp = np.log(p) + 1 - np.log(s)
    # slip: + 1 =>  : missing path
    # slip: - np.log(s) => + np.log(s) : sign
    return dy * dq, dy * dp


#: a 6,3; b 6,3
def cosine_forward(a, b):
    na, nb = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    dot = (a * b).sum(1)
    return 1 - dot / (na * nb), (a, b, na, nb, dot)


def cosine_backward(g, cache):
    a, b, na, nb, dot = cache
    c = (dot / (na * nb))[:, None]
    scale = (g / (na * nb))[:, None]
    # slip: (na * nb) => na : missing factor
    da = -scale * b + (g / na**2)[:, None] * c * a
    # slip: -scale * b => scale * b : sign
    # slip: (g / na**2) => (g / na) : wrong power
    # slip: c * a => c * b : wrong variable
    db = -scale * a + (g / nb**2)[:, None] * c * b
    # slip: (g / nb**2)[:, None] * c * b => (g / na**2)[:, None] * c * b : wrong variable
    return da, db


#: emb 6,4; w 4,3; labels 6 int 3
def whole_net_forward(emb, w, labels):
    h = np.tanh(emb)
    p = softmax(h @ w)
    n = len(labels)
    return -np.log(p[np.arange(n), labels]).sum() / n + 0.05 * np.sum(w * w), (h, w, p, labels)


def whole_net_backward(dloss, cache):
    h, w, p, labels = cache
    n = len(labels)
    dlogits = (p - np.eye(3)[labels]) / n
    # slip: / n =>  : factor N
    dw = h.T @ dlogits + 0.1 * w
    # slip: 0.1 * w => 0.05 * w : constant
    # slip: + 0.1 * w =>  : missing path
    demb = (dlogits @ w.T) * (1 - h**2)
    # slip: (1 - h**2) => (1 + h**2) : sign
    # slip: (1 - h**2) => h * (1 - h) : wrong formula
    return demb, dw, None
