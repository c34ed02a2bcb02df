"""A training step of the paper's net (784-100-100-100-10, sigmoid, batch norm, batch 60, SGD) beside its peers.

python tests/bench/training.py: the libraries take turns within one process, in a new order each time; the medians of
their steps and their ratios to this project's are printed as a Markdown table. All start from the same weights, in
float32, and the losses after the first steps are compared, so that all do the same work.
"""

import random
import time
from statistics import median

import numpy as np

from autograd_bn import nn, optim, tensor, write_backward

SIZES = (784, 100, 100, 100)
BATCH, LR, EPS = 60, 0.1, 1e-5
ROUNDS = 1500


def project(weights, data):
    """The project itself, as a user writes it."""
    layers = []
    for weight in weights[:-1]:
        layers += [nn.Linear(*weight.shape[::-1], bias=False), nn.BatchNorm(len(weight)), nn.Sigmoid()]
    net = nn.Sequential(*layers, nn.Linear(100, 10))
    net[-1].bias.assign(np.zeros(10, np.float32))
    for layer, weight in zip(net.layers[::3], weights, strict=True):
        layer.weight.assign(weight)
    optimiser = optim.SGD(net.parameters(), LR)

    def step(i):
        x, labels = data[i % len(data)]
        optimiser.zero_grad()
        loss = nn.cross_entropy(net(x), labels)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def pytorch(weights, data):
    """PyTorch, eager."""
    import torch

    layers = []
    for weight in weights[:-1]:
        layers += [
            torch.nn.Linear(*weight.shape[::-1], bias=False),
            torch.nn.BatchNorm1d(len(weight)),
            torch.nn.Sigmoid(),
        ]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(100, 10))
    with torch.no_grad():
        net[-1].bias.zero_()
        for layer, weight in zip(net[::3], weights, strict=True):
            layer.weight.copy_(torch.tensor(weight))
    optimiser = torch.optim.SGD(net.parameters(), LR)
    data = [(torch.tensor(x), torch.tensor(labels)) for x, labels in data]

    def step(i):
        x, labels = data[i % len(data)]
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def mygrad(weights, data):
    """MyGrad, with its own batch norm, loss and activation."""
    import mygrad as mg
    from mygrad.nnet import batchnorm, sigmoid, softmax_crossentropy

    mg.turn_memory_guarding_off()
    layers = [mg.tensor(weight) for weight in weights]
    gammas = [mg.tensor(np.ones(len(weight), np.float32)) for weight in weights[:-1]]
    betas = [mg.tensor(np.zeros(len(weight), np.float32)) for weight in weights[:-1]]
    bias = mg.tensor(np.zeros(10, np.float32))
    parameters = [*layers, *gammas, *betas, bias]

    def step(i):
        x, labels = data[i % len(data)]
        for weight, gamma, beta in zip(layers[:-1], gammas, betas, strict=True):
            x = sigmoid(batchnorm(mg.matmul(x, weight.T), gamma=gamma, beta=beta, eps=EPS))
        loss = softmax_crossentropy(mg.matmul(x, layers[-1].T) + bias, labels)
        loss.backward()
        for parameter in parameters:
            parameter.data -= LR * parameter.grad
            parameter.null_grad()
        return loss.item()

    return step


def jax_jit(weights, data):
    """JAX, the whole step compiled; its parameters are given away and so written in place."""
    import jax
    import jax.numpy as jnp

    def loss_of(parameters, x, labels):
        moments = []
        for weight, gamma, beta in zip(*parameters[:3], strict=True):
            z = x @ weight.T
            mean, var = z.mean(axis=0), z.var(axis=0)
            moments.append((mean, var))
            x = jax.nn.sigmoid((z - mean) / jnp.sqrt(var + EPS) * gamma + beta)
        logits = x @ parameters[3].T + parameters[4]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -chosen.mean(), moments

    def update(parameters, running, x, labels):
        (loss, moments), grads = jax.value_and_grad(loss_of, has_aux=True)(parameters, x, labels)
        parameters = jax.tree.map(lambda p, g: p - LR * g, parameters, grads)
        running = [
            (0.9 * mean + 0.1 * m, 0.9 * var + 0.1 * BATCH / (BATCH - 1) * v)
            for (mean, var), (m, v) in zip(running, moments, strict=True)
        ]
        return parameters, running, loss

    compiled = jax.jit(update, donate_argnums=(0, 1))
    hidden = [jnp.array(weight) for weight in weights[:-1]]
    ones, zeros = ([jnp.full(len(weight), value, jnp.float32) for weight in hidden] for value in (1, 0))
    state = [
        (hidden, ones, zeros, jnp.array(weights[-1]), jnp.zeros(10)),
        [(z + 0, o + 0) for z, o in zip(zeros, ones, strict=True)],
    ]

    def step(i):
        x, labels = data[i % len(data)]
        state[0], state[1], loss = compiled(*state, x, labels)
        return float(loss)

    return step


def by_hand(weights, data):
    """NumPy, with forward and backward written out."""
    weights = [weight.copy() for weight in weights]
    gammas = [np.ones(len(weight), np.float32) for weight in weights[:-1]]
    betas = [np.zeros(len(weight), np.float32) for weight in weights[:-1]]
    means = [np.zeros(len(weight), np.float32) for weight in weights[:-1]]
    variances = [np.ones(len(weight), np.float32) for weight in weights[:-1]]
    bias = np.zeros(10, np.float32)
    rows = np.arange(BATCH)

    def step(i):
        x, labels = data[i % len(data)]
        kept = []
        for k in range(3):
            z = x @ weights[k].T
            mean = z.mean(axis=0)
            centred = z - mean
            var = np.square(centred).mean(axis=0)
            r = 1 / np.sqrt(var + EPS)
            normal = centred * r
            y = 1 / (1 + np.exp(-(normal * gammas[k] + betas[k])))
            means[k] = 0.9 * means[k] + 0.1 * mean
            variances[k] = 0.9 * variances[k] + 0.1 * BATCH / (BATCH - 1) * var
            kept.append((x, normal, r, y))
            x = y
        logits = x @ weights[3].T + bias
        shifted = logits - logits.max(axis=1, keepdims=True)
        e = np.exp(shifted)
        total = e.sum(axis=1, keepdims=True)
        loss = (np.log(total[:, 0]) - shifted[rows, labels]).mean()
        g = e / total
        g[rows, labels] -= 1
        g /= BATCH
        g, weights[3][...], bias[...] = g @ weights[3], weights[3] - LR * (g.T @ x), bias - LR * g.sum(axis=0)
        for k in (2, 1, 0):
            x, normal, r, y = kept[k]
            g = g * y * (1 - y)
            dgamma, dbeta = (g * normal).sum(axis=0), g.sum(axis=0)
            g = (gammas[k] * r) * (g - dbeta / BATCH - normal * (dgamma / BATCH))
            gammas[k] -= LR * dgamma
            betas[k] -= LR * dbeta
            down = g @ weights[k] if k else None
            weights[k] -= LR * (g.T @ x)
            g = down
        return float(loss)

    return step


def layer(x, weight, gamma, beta, eps=EPS):
    """Batch norm and the activation, as by hand."""
    z = x @ weight.T
    mean = z.mean(axis=0)
    centred = z - mean
    var = np.square(centred).mean(axis=0)
    r = 1 / np.sqrt(var + eps)
    normal = centred * r
    return 1 / (1 + np.exp(-(normal * gamma + beta)))


def written(weights, data):
    """The forward pass of the step by hand, its backward pass as `write_backward` gives it."""

    def forward(x, labels, w1, gamma1, beta1, w2, gamma2, beta2, w3, gamma3, beta3, w4, bias):
        x = layer(x, w1, gamma1, beta1)
        x = layer(x, w2, gamma2, beta2)
        x = layer(x, w3, gamma3, beta3)
        logits = x @ w4.T + bias
        shifted = logits - logits.max(axis=1, keepdims=True)
        e = np.exp(shifted)
        total = e.sum(axis=1)
        return (np.log(total) - shifted[np.arange(len(x)), labels]).mean()

    parameters = []
    for weight in weights[:-1]:
        parameters += [weight.copy(), np.ones(len(weight), np.float32), np.zeros(len(weight), np.float32)]
    parameters += [weights[-1].copy(), np.zeros(10, np.float32)]
    rng = np.random.default_rng(0)
    shapes = [(6, 7), (6,), (5, 7), 5, 5, (4, 5), 4, 4, (8, 4), 8, 8, (3, 8), 3]  # its lengths are those of its inputs
    x, _, *rest = [rng.normal(size=shape) for shape in shapes]
    code = write_backward(forward, [tensor(x), rng.integers(0, 3, 6), *rest], form="folded")

    def step(i):
        x, labels = data[i % len(data)]
        loss, cache = code.forward(x, labels, *parameters)
        gradients = code.backward(np.float32(1), cache)[2:]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= LR * gradient
        return float(loss)

    return step


def main():
    """Measure and print."""
    rng = np.random.default_rng(0)
    weights = [
        rng.normal(scale=n**-0.5, size=(m, n)).astype(np.float32) for n, m in zip(SIZES, (*SIZES[1:], 10), strict=True)
    ]
    data = [(rng.random((BATCH, 784), dtype=np.float32), rng.integers(0, 10, size=BATCH)) for _ in range(20)]
    steps = {
        "autograd_bn": project(weights, data),
        "PyTorch eager": pytorch(weights, data),
        "jax.jit": jax_jit(weights, data),
        "MyGrad": mygrad(weights, data),
        "NumPy by hand": by_hand(weights, data),
        "NumPy as written": written(weights, data),
    }
    for i in range(30):
        losses = {name: step(i) for name, step in steps.items()}
    first = losses["autograd_bn"]
    for name, loss in losses.items():
        if abs(loss - first) > 1e-3 * abs(first):
            raise SystemExit(f"{name} does other work: its loss is {loss}, this project's {first}")
    seconds = {name: [] for name in steps}
    for i in range(ROUNDS):
        for name, step in random.sample(list(steps.items()), len(steps)):
            start = time.perf_counter()
            step(i)
            seconds[name].append(time.perf_counter() - start)
    mine = median(seconds["autograd_bn"])
    print("| training step | median | times this project's |\n| --- | ---: | ---: |")
    for name, taken in seconds.items():
        print(f"| {name} | {median(taken) * 1e6:,.0f} µs | {median(taken) / mine:.2f} |")


if __name__ == "__main__":
    main()
