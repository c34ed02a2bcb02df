"""The optimisers: thirty steps beside PyTorch's, their state, and what they refuse."""

import tracemalloc

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn import nn, optim

rng = np.random.default_rng


def batch(step):
    x = rng([1, step]).normal(size=(12, 6, 6, 2))
    return x, (x.sum(axis=(1, 2, 3)) > 0) + (x[:, 0, 0, 0] > 0).astype(int)


def net(momentum, affine):
    r = rng(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, rng=r, dtype=float),
        nn.BatchNorm(3, momentum=momentum, affine=affine, dtype=float),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 8, rng=r, dtype=float),
        nn.BatchNorm(8, momentum=momentum, affine=affine, dtype=float),
        nn.Sigmoid(),
        nn.Dropout(0),
        nn.Linear(8, 3, rng=r, dtype=float),
    )


class ChannelsLast:
    """The same net in PyTorch; its flattened features are put in the order of ours."""

    def __init__(self, torch, momentum, affine, mine):
        f64 = {"dtype": torch.float64}
        self.torch = torch
        self.conv = torch.nn.Conv2d(2, 3, 3, padding=1, **f64)
        self.norms = [
            torch.nn.BatchNorm2d(3, momentum=momentum, affine=affine, **f64),
            torch.nn.BatchNorm1d(8, momentum=momentum, affine=affine, **f64),
        ]
        self.linear = [torch.nn.Linear(27, 8, **f64), torch.nn.Linear(8, 3, **f64)]
        self.order = [self.conv, self.norms[0], self.linear[0], self.norms[1], self.linear[1]]
        with torch.no_grad():
            for p, q in zip(self.parameters(), mine.parameters(), strict=True):
                p.copy_(torch.tensor(q.data))

    def parameters(self):
        return [p for layer in self.order for p in layer.parameters()]

    def __call__(self, x):
        torch = self.torch
        x = torch.tensor(np.moveaxis(x, -1, 1).copy())
        x = torch.nn.functional.max_pool2d(torch.relu(self.norms[0](self.conv(x))), 2)
        x = self.norms[1](self.linear[0](x.permute(0, 2, 3, 1).reshape(len(x), -1)))
        return self.linear[1](torch.dropout(torch.sigmoid(x), 0.0, True))


OPTIMISERS = {
    "sgd": lambda o, p: o.SGD(p, lr=0.2),
    "momentum": lambda o, p: o.SGD(p, lr=0.1, momentum=0.9),
    "momentum_and_decay": lambda o, p: o.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "decay": lambda o, p: o.SGD(p, lr=0.1, weight_decay=0.01),
    "adam": lambda o, p: o.Adam(p),
    "adam_with_betas": lambda o, p: o.Adam(p, 0.01, (0.8, 0.95), 1e-4),
    "adam_with_decay": lambda o, p: o.Adam(p, eps=1e-4, weight_decay=0.1),
    "adamw": lambda o, p: o.AdamW(p, eps=1e-4, weight_decay=0.1),
}


# Every optimiser with the default batch norm, and every batch norm with one optimiser.
@pytest.mark.parametrize(
    ("optimiser", "momentum", "affine"),
    [(optimiser, 0.1, True) for optimiser in OPTIMISERS]
    + [("momentum_and_decay", *norm) for norm in [(0.0, True), (1.0, True), (None, True), (0.1, False)]],
)
def test_thirty_steps_equal_pytorchs(optimiser, momentum, affine):
    torch = pytest.importorskip("torch")
    mine = net(momentum, affine)
    theirs = ChannelsLast(torch, momentum, affine, mine)
    start = mine.state_dict()
    make = OPTIMISERS[optimiser]
    a, b = make(optim, mine.parameters()), make(torch.optim, theirs.parameters())
    for step in range(30):
        x, labels = batch(step)
        a.zero_grad()
        b.zero_grad()
        nn.cross_entropy(mine(x), labels).backward()
        torch.nn.functional.cross_entropy(theirs(x), torch.tensor(labels)).backward()
        a.step()
        b.step()
    for (name, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=0, atol=1e-10, err_msg=name)
        # A bias before a norm has no gradient but for rounding.
        assert name.endswith("bias") or not np.array_equal(p.data, start[name])
    for norm, other in zip((mine[1], mine[6]), theirs.norms, strict=True):
        np.testing.assert_allclose(norm.running_mean, other.running_mean.numpy(), rtol=0, atol=1e-10)
        np.testing.assert_allclose(norm.running_var, other.running_var.numpy(), rtol=0, atol=1e-10)
    mine.eval()
    for norm in theirs.norms:
        norm.eval()
    x, labels = batch(1000)
    mine.zero_grad()
    b.zero_grad()
    y, other = mine(x), theirs(x)
    np.testing.assert_allclose(y.data, other.detach().numpy(), rtol=0, atol=1e-10)
    nn.cross_entropy(y, labels).backward()
    torch.nn.functional.cross_entropy(other, torch.tensor(labels)).backward()
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=0, atol=1e-10)


def quadratic(w):
    (w * w).sum().backward()


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_state_continues_to_the_bit(make):
    w = ag.tensor(rng(0).normal(size=5), requires_grad=True)
    optimiser = make(optim, [w])

    def run(optimiser, w, steps):
        for _ in range(steps):
            optimiser.zero_grad()
            quadratic(w)
            optimiser.step()

    run(optimiser, w, 3)
    state, value = optimiser.state_dict(), w.data.copy()
    run(optimiser, w, 3)
    again = ag.tensor(value, requires_grad=True)
    other = make(optim, [again])
    other.load_state_dict(state)
    run(other, again, 3)
    np.testing.assert_array_equal(again.data, w.data)


def test_a_step_is_counted_as_an_overwrite_and_leaves_gradients_alone():
    w = ag.tensor([1.0, 2.0], requires_grad=True)
    loss = (w * w).sum()
    loss.backward()
    before = w.grad.copy()
    memory = w.data
    for make in OPTIMISERS.values():
        make(optim, [w]).step()
    np.testing.assert_array_equal(w.grad, before)
    assert w.data is memory
    with pytest.raises(RuntimeError, match="overwritten"):
        loss.backward()


def test_a_parameter_without_gradient_stays():
    w, still = ag.tensor([1.0], requires_grad=True), ag.tensor([1.0], requires_grad=True)
    for make in OPTIMISERS.values():
        optimiser = make(optim, [w, still])
        optimiser.zero_grad()
        quadratic(w)
        optimiser.step()
    assert still.data.tolist() == [1.0]
    assert w.data.tolist() != [1.0]


def test_float32_stays_and_a_step_allocates_next_to_nothing():
    w = ag.tensor(np.ones(100_000), dtype="float32", requires_grad=True)
    quadratic(w)
    for make in OPTIMISERS.values():
        optimiser = make(optim, [w])
        tracemalloc.start()
        optimiser.step()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert w.dtype == np.float32
        assert peak < 20_000


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: optim.SGD([], 0.1), ValueError, "params is empty"),
        (lambda w: optim.SGD([w, w], 0.1), ValueError, "params has a tensor twice"),
        (lambda w: optim.SGD([w, w * 2], 0.1), TypeError, r"params\[1\]"),
        (lambda w: optim.SGD([w.data], 0.1), TypeError, r"params\[0\] is ndarray"),
        (lambda w: optim.SGD([w], -0.1), ValueError, "lr is -0.1"),
        (lambda w: optim.SGD([w], float("nan")), ValueError, "lr is nan"),
        (lambda w: optim.SGD([w], 0.1, momentum=-1), ValueError, "momentum is -1"),
        (lambda w: optim.SGD([w], 0.1, weight_decay=-1), ValueError, "weight_decay is -1"),
        (lambda w: optim.Adam([w], betas=(0.9, 1.0)), ValueError, r"betas\[1\] is 1.0"),
        (lambda w: optim.Adam([w], betas=None), ValueError, "betas is None"),
        (lambda w: optim.Adam([w], betas=(0.9,)), ValueError, r"betas is \(0.9,\), expected two"),
        (lambda w: optim.SGD(ag.nn.Linear(2, 2), 0.1), TypeError, r"Linear, expected its parameters\(\)"),
        (lambda w: optim.Adam([w], lr="fast"), ValueError, "lr is 'fast'"),
        (lambda w: optim.StepLR(None, 3), TypeError, "optimizer is a NoneType"),
        (lambda w: optim.Adam([w]).load_state_dict(None), TypeError, "state is a NoneType"),
        (lambda w: optim.Adam([w], eps=-1), ValueError, "eps is"),
        (lambda w: optim.Adam([w], weight_decay=float("inf")), ValueError, "weight_decay is inf"),
        (lambda w: optim.StepLR(optim.SGD([w], 0.1), 0), ValueError, "step_size is 0"),
        (lambda w: optim.StepLR(optim.SGD([w], 0.1), 1, -1), ValueError, "gamma is -1"),
        (lambda w: optim.CosineAnnealingLR(optim.SGD([w], 0.1), 2.5), ValueError, "T_max is 2.5"),
        (lambda w: optim.CosineAnnealingLR(optim.SGD([w], 0.1), 2, -1), ValueError, "eta_min is -1"),
    ],
)
def test_bad_settings_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(ag.tensor([1.0], requires_grad=True))


def test_a_state_that_does_not_fit_changes_nothing():
    w = ag.tensor([1.0, 2.0], requires_grad=True)
    quadratic(w)
    optimiser = optim.Adam([w])
    optimiser.step()
    before = optimiser.state_dict()
    with pytest.raises(ValueError, match=r"missing first\.0; missing second\.0; unexpected third\.0"):
        optimiser.load_state_dict({"steps.0": 1, "third.0": 1})
    with pytest.raises(ValueError, match=r"second\.0 has dtype complex128"):
        optimiser.load_state_dict({**before, "first.0": np.ones(2), "second.0": np.ones(2) * 1j})
    with pytest.raises(ValueError, match=r"second.0 has shape \(3,\), expected \(2,\)"):
        optimiser.load_state_dict({**before, "first.0": np.ones(2), "second.0": np.ones(3)})
    for name, array in optimiser.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("name", ["adam", "adam_with_decay", "adamw", "momentum"])
def test_a_parameter_that_joins_late_is_counted_from_its_own_first_step_as_in_pytorch(name):
    torch = pytest.importorskip("torch")
    values = rng(0).normal(size=(2, 5))
    mine = [ag.tensor(value, requires_grad=True) for value in values]
    theirs = [torch.tensor(value, requires_grad=True) for value in values]
    a, b = OPTIMISERS[name](optim, mine), OPTIMISERS[name](torch.optim, theirs)
    for step in range(8):
        a.zero_grad()
        b.zero_grad()
        used = 1 if step < 5 else 2
        for p, q in zip(mine[:used], theirs[:used], strict=True):
            ((p - 2.0) ** 2).sum().backward()
            ((q - 2.0) ** 2).sum().backward()
        a.step()
        b.step()
        for p, q in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=0, atol=1e-13)


SCHEDULES = {
    "steps": lambda o, optimiser: o.StepLR(optimiser, 3, 0.5),
    "steps_by_default": lambda o, optimiser: o.StepLR(optimiser, 4),
    "cosine": lambda o, optimiser: o.CosineAnnealingLR(optimiser, 6),
    "cosine_to_a_floor": lambda o, optimiser: o.CosineAnnealingLR(optimiser, 5, 0.01),
}


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_equal_pytorchs_and_go_on_from_their_state(make):
    torch = pytest.importorskip("torch")
    a = optim.SGD([ag.tensor(1.0, requires_grad=True)], 0.3)
    b = torch.optim.SGD([torch.tensor(1.0, requires_grad=True)], 0.3)
    mine, theirs = make(optim, a), make(torch.optim.lr_scheduler, b)
    for _ in range(15):
        b.step()
        mine.step()
        theirs.step()
        assert a.lr == pytest.approx(b.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
    again = optim.SGD([ag.tensor(1.0, requires_grad=True)], 7.0)
    other = make(optim, again)
    other.load_state_dict(mine.state_dict())
    assert again.lr == a.lr
    mine.step()
    other.step()
    assert again.lr == a.lr
    with pytest.raises(ValueError, match="missing base_lr"):
        other.load_state_dict({"last_epoch": 3})
    assert other.last_epoch == mine.last_epoch


def test_a_momentum_that_is_set_later_counts():
    torch = pytest.importorskip("torch")
    p, q = ag.tensor([1.0, 2.0], requires_grad=True), torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    a, b = optim.SGD([p], 0.1), torch.optim.SGD([q], 0.1)
    assert a.state_dict() == {}
    for step, momentum in enumerate((0.0, 0.9, 0.9, 0.5, 0.0, 0.0)):
        a.momentum = b.param_groups[0]["momentum"] = momentum
        a.zero_grad()
        b.zero_grad()
        (p**3).sum().backward()
        (q**3).sum().backward()
        a.step()
        b.step()
        if momentum:
            np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-12, err_msg=str(step))
    assert list(a.state_dict()) == ["velocity.0"]
    with pytest.raises(ValueError, match="momentum is -1"):
        a.momentum = -1
