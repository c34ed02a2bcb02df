"""Batch norm, forward plus backward, beside its peers: python tests/bench/batch_norm.py [THREADS [CASE ...]]

Every repeat times all in a new order; the table has the ratio of each peer's median to ours (above 1 we are faster),
then ms. "by hand" is the textbook in NumPy without an engine, in x's own dtype and on one thread.
"""

import itertools
import random
import sys
import time
from statistics import median

import autograd.numpy as anp
import mygrad
import numpy as np
import torch
from autograd import grad as autograd_grad
from mygrad.nnet.layers import batchnorm

import autograd_bn as ag

SHAPES = {
    "8x4": ((8, 4), (0,)),
    "64x100": ((64, 100), (0,)),
    "256x128": ((256, 128), (0,)),
    "1797x64": ((1797, 64), (0,)),
    "1024x1024": ((1024, 1024), (0,)),
    "4096x512": ((4096, 512), (0,)),
    "8192x1024": ((8192, 1024), (0,)),
    "32768x1024": ((32768, 1024), (0,)),
    "200704x64": ((200704, 64), (0,)),
    "64x256x28x28 NCHW": ((64, 256, 28, 28), (0, 2, 3)),
    "64x28x28x256 NHWC": ((64, 28, 28, 256), (0, 1, 2)),
}
PEERS = ["PyTorch", "composed", "by hand", "MyGrad", "autograd", "10 passes"]


def by_hand(x, g, gamma, beta, axes, eps=1e-5):
    """The textbook's passes, with parameters in the shape of the statistics."""
    n = x.size // gamma.size
    centred = x - x.mean(axes, keepdims=True)
    r = 1 / np.sqrt((centred * centred).mean(axes, keepdims=True) + x.dtype.type(eps))
    normal = centred * r
    y = gamma * normal + beta
    dbeta = g.sum(axes, keepdims=True)
    dgamma = (g * normal).sum(axes, keepdims=True)
    return y, gamma * r * (g - dbeta / n - normal * (dgamma / n)), dgamma, dbeta


def contenders(shape, axes, dtype):
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, *shape), dtype=dtype)
    channels = next(n for i, n in enumerate(shape) if i not in axes)
    gamma, beta = rng.standard_normal((2, channels), dtype=dtype)
    leaves = [ag.as_tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    last = len(shape) == 4 and axes == (0, 1, 2)
    order = (0, 3, 1, 2) if last else tuple(range(len(shape)))
    tx, tgamma, tbeta = [torch.from_numpy(a.copy()) for a in (x, gamma, beta)]
    torches = [t.detach().requires_grad_() for t in (tx.permute(order), tgamma, tbeta)]
    tg = torch.from_numpy(g).permute(order)
    wide = tuple(1 if i in axes else n for i, n in enumerate(shape))

    def ours(form, backend):
        def run():
            ag.set_backend(backend)
            ag.grad(ag.batch_norm(*leaves, axes=axes, form=form), leaves, g)

        return run

    def pytorch():
        y = torch.nn.functional.batch_norm(torches[0], None, None, *torches[1:], True, 0.1, 1e-5)
        torch.autograd.grad(y, torches, tg)

    def mygrads():
        inputs = [mygrad.tensor(a, copy=False) for a in (x.transpose(order), gamma, beta)]
        batchnorm(inputs[0], gamma=inputs[1], beta=inputs[2], eps=1e-5).backward(g.transpose(order))

    def loss(x, gamma, beta):
        centred = x - anp.mean(x, axes, keepdims=True)
        r = 1 / anp.sqrt(anp.mean(centred * centred, axes, keepdims=True) + dtype(1e-5))
        return anp.sum(g * (centred * r * anp.reshape(gamma, wide) + anp.reshape(beta, wide)))

    derivative = autograd_grad(loss, (0, 1, 2))
    source, target = torch.from_numpy(x.ravel()), torch.empty(x.size)
    return {
        "numpy": ours("fused", "numpy"),
        "numba": ours("fused", "numba"),
        "PyTorch": pytorch,
        "MyGrad": mygrads,
        "autograd": lambda: derivative(x, gamma, beta),
        "composed": ours("composed", None),
        "by hand": lambda: by_hand(x, g, gamma.reshape(wide), beta.reshape(wide), axes),
        "10 passes": lambda: [target.copy_(source) for _ in range(5)],
    }


def main():
    threads, *names = sys.argv[1:] or ["2"]
    torch.set_num_threads(int(threads))
    ag.set_num_threads(int(threads))
    for backend in ("numpy", "numba"):
        print(f"\n| {backend}, {threads} threads | {' | '.join(PEERS)} | ms |\n|---|{'---|' * (len(PEERS) + 1)}")
        for name, dtype in itertools.product(names or SHAPES, (np.float32, np.float64)):
            shape, axes = SHAPES[name]
            runs = contenders(shape, axes, dtype)
            runs = {key: run for key, run in runs.items() if key in (backend, *PEERS)}
            times = {key: [] for key in runs}
            for _ in range(max(5, min(200, int(3e6 / np.prod(shape))))):
                for key, run in random.sample(list(runs.items()), len(runs)):
                    start = time.perf_counter()
                    run()
                    times[key].append(time.perf_counter() - start)
            middle = {key: median(spent[1:]) for key, spent in times.items()}
            ratios = " | ".join(f"{middle[peer] / middle[backend]:.2f}" for peer in PEERS)
            print(f"| {name} {np.dtype(dtype)} | {ratios} | {1e3 * middle[backend]:.3f} |", flush=True)
    ag.set_backend(None)
    ag.set_num_threads(None)


if __name__ == "__main__":
    main()
