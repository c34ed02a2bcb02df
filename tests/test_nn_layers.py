"""The layers: against PyTorch in float64, against differences, and what they refuse."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import autograd_bn as ag
from autograd_bn import nn
from autograd_bn.engine.node import no_update
from autograd_bn.nn import functions

rng = np.random.default_rng


def leaf(shape, seed=0):
    return ag.tensor(rng(seed).normal(size=shape), requires_grad=True)


# --- Derivatives -------------------------------------------------------------------------------------------

IMAGE, SMALL = (2, 5, 6, 3), (2, 3, 4, 2)


def test_windows_and_fold_are_each_others_transpose():
    x, g = rng(0).normal(size=IMAGE), rng(1).normal(size=(2, 3, 4, 2, 3, 3))
    forward = functions.windows(x, (2, 3), (2, 1), (1, 0))
    back = functions.fold(g, IMAGE, (2, 1), (1, 0))
    assert forward.shape == g.shape
    np.testing.assert_allclose((forward * g).sum(), (x * back).sum())


LAYERS = {
    "linear": (lambda: nn.Linear(3, 4, rng=0, dtype=float), (5, 3)),
    "conv": (lambda: nn.Conv2d(2, 2, (3, 2), stride=(1, 2), padding=1, rng=0, dtype=float), SMALL),
    "max_pool": (lambda: nn.MaxPool2d(2), SMALL),
    "avg_pool": (lambda: nn.AvgPool2d(3, 1, 1), SMALL),
    "flatten": (nn.Flatten, SMALL),
    "relu": (nn.ReLU, (4, 3)),
    "sigmoid": (nn.Sigmoid, (4, 3)),
    "tanh": (nn.Tanh, (4, 3)),
    "dropout": (lambda: nn.Dropout(0.3, rng=0), (4, 3)),
    "batch_norm": (lambda: nn.BatchNorm(3, dtype=float), (4, 3)),
    "batch_norm_composed": (lambda: nn.BatchNorm(3, channel_axis=1, form="composed", dtype=float), SMALL),
    "layer_norm": (lambda: nn.LayerNorm((4, 2), dtype=float), SMALL),
    "linear_of_a_vector": (lambda: nn.Linear(3, 4, rng=0, dtype=float), (3,)),
    "linear_over_axes": (lambda: nn.Linear(3, 4, rng=0, dtype=float), (2, 2, 3)),
    "batch_norm_eval": (lambda: nn.BatchNorm(3, dtype=float).eval(), (4, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_pass_gradcheck_at_both_orders(name):
    make, shape = LAYERS[name]
    layer = make()
    names = [name for name, _ in layer.named_parameters()]

    def f(x, *parameters):
        for attribute, parameter in zip(names, parameters, strict=True):
            setattr(layer, attribute, parameter)
        return layer(x)

    parameters = [p.data + rng(7).normal(size=p.shape) for p in layer.parameters()]
    before = layer.state_dict()
    assert ag.gradcheck(f, [rng(1).normal(size=shape), *parameters], order=2)
    for name in layer.buffers:
        np.testing.assert_array_equal(layer.state_dict()[name], before[name])


# --- Against PyTorch ---------------------------------------------------------------------------------------


def channels_first(x):
    return np.moveaxis(x, -1, 1).copy()


def compare_images(layer, theirs, image, torch):
    """Output, input gradient and parameter gradients of a layer equal those of PyTorch's."""
    x = ag.tensor(image, requires_grad=True)
    tx = torch.tensor(channels_first(image), requires_grad=True)
    y, ty = layer(x), theirs(tx)
    np.testing.assert_allclose(channels_first(y.data), ty.detach().numpy(), rtol=0, atol=1e-12)
    g = rng(5).normal(size=y.shape)
    y.backward(g)
    ty.backward(torch.tensor(channels_first(g)))
    np.testing.assert_allclose(channels_first(x.grad), tx.grad.numpy(), rtol=0, atol=1e-12)
    for p, tp in zip(layer.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.grad, tp.grad.numpy(), rtol=0, atol=1e-11)


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    bias=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_convolution_equals_pytorch(kernel, stride, padding, bias):
    torch = pytest.importorskip("torch")
    layer = nn.Conv2d(3, 4, kernel, stride, padding, bias, rng=0, dtype=float)
    theirs = torch.nn.Conv2d(3, 4, kernel, stride, padding, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for p, tp in zip(layer.parameters(), theirs.parameters(), strict=True):
            tp.copy_(torch.tensor(p.data))
    compare_images(layer, theirs, rng(1).normal(size=(2, 5, 6, 3)), torch)


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3)),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("kind", ["MaxPool2d", "AvgPool2d"])
def test_pooling_equals_pytorch_on_ties_too(kind, kernel, stride, data):
    torch = pytest.importorskip("torch")
    padding = tuple(data.draw(st.integers(0, size // 2)) for size in kernel)
    image = rng(1).integers(-2, 2, size=(2, 5, 6, 3)).astype(float)
    compare_images(
        getattr(nn, kind)(kernel, stride, padding), getattr(torch.nn, kind)(kernel, stride, padding), image, torch
    )


def test_max_pool_hands_on_nan_in_its_own_window_only():
    image = rng(0).normal(size=(1, 4, 4, 1))
    image[0, 1, 1, 0] = np.nan
    x = ag.tensor(image, requires_grad=True)
    y = nn.MaxPool2d(2)(x)
    assert np.isnan(y.data[0, 0, 0, 0])
    assert np.isfinite(y.data.ravel()[1:]).all()
    y.backward(np.ones(y.shape))
    assert x.grad[0, :2, :2, 0].tolist() == [[0, 0], [0, 1]]  # a NaN is the largest


@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_pytorch_over_leading_axes(bias):
    torch = pytest.importorskip("torch")
    layer = nn.Linear(3, 5, bias, rng=0, dtype=float)
    x = rng(1).normal(size=(2, 4, 3))
    expected = torch.nn.functional.linear(
        torch.tensor(x), torch.tensor(layer.weight.data), torch.tensor(layer.bias.data) if bias else None
    )
    np.testing.assert_allclose(layer(x).data, expected.numpy(), atol=1e-14)


@pytest.mark.parametrize(("shape", "axis"), [((6, 3), -1), ((4, 3, 5), 1), ((4, 2, 3, 5), 1), ((3, 8), 0)])
@pytest.mark.parametrize("form", ["fused", "composed"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0, None])
def test_batch_norm_equals_pytorch_in_training_and_evaluation(shape, axis, form, affine, tracking, momentum):
    torch = pytest.importorskip("torch")
    features = shape[axis]
    layer = nn.BatchNorm(
        features,
        channel_axis=axis,
        momentum=momentum,
        affine=affine,
        track_running_stats=tracking,
        form=form,
        eps=1e-3,
        dtype=float,
    )
    theirs = torch.nn.BatchNorm1d(features, 1e-3, momentum, affine, tracking, dtype=torch.float64)
    for step in range(4):
        if step == 3:
            layer.eval()
            theirs.eval()
        array = rng(step).normal(loc=step, size=shape)
        x = ag.tensor(array, requires_grad=True)
        flat = np.moveaxis(array, axis, -1).reshape(-1, features)
        tx = torch.tensor(flat, requires_grad=True)
        y, ty = layer(x), theirs(tx)
        g = rng(9).normal(size=shape)
        y.backward(g)
        ty.backward(torch.tensor(np.moveaxis(g, axis, -1).reshape(-1, features)))
        for mine, other in ((y.data, ty.detach()), (x.grad, tx.grad)):
            np.testing.assert_allclose(np.moveaxis(mine, axis, -1).reshape(-1, features), other.numpy(), atol=1e-10)
        for p, tp in zip(layer.parameters(), theirs.parameters(), strict=True):
            np.testing.assert_allclose(p.grad, tp.grad.numpy(), atol=1e-10)
        if tracking:
            np.testing.assert_allclose(layer.running_mean, theirs.running_mean.numpy(), atol=1e-12)
            np.testing.assert_allclose(layer.running_var, theirs.running_var.numpy(), atol=1e-12)
            assert layer.num_batches_tracked == theirs.num_batches_tracked.item() == min(step + 1, 3)


# --- Running statistics ------------------------------------------------------------------------------------


def statistics(norm):
    return copy.deepcopy([norm.running_mean, norm.running_var, norm.num_batches_tracked])


def unchanged(norm, before):
    return all(np.array_equal(a, b) for a, b in zip(statistics(norm), before, strict=True))


def test_statistics_stand_still_in_evaluation_backward_and_failure():
    norm = nn.BatchNorm(3)
    y = norm(leaf((5, 3)))
    before = statistics(norm)
    y.sum().backward()
    ag.grad(y.sum(), norm.gamma, create_graph=True)
    ag.Graph(y).values()
    with no_update():
        norm(leaf((5, 3)))
    for wrong in [(1, 3), (5, 4), ()]:
        with pytest.raises(ValueError):
            norm(np.ones(wrong))
    with pytest.raises(TypeError):
        norm(np.ones((5, 3), dtype=complex))
    norm.eval()(leaf((5, 3)))
    norm.eval()(leaf((1, 3)))
    assert unchanged(norm, before)


def test_statistics_change_without_recording_as_in_training():
    norm, other = nn.BatchNorm(3), nn.BatchNorm(3)
    x = leaf((5, 3))
    norm(x)
    with ag.no_grad():
        other(x)
    assert unchanged(other, statistics(norm))


def test_an_empty_batch_gives_an_empty_result_and_no_statistics():
    norm = nn.BatchNorm(3)
    before = statistics(norm)
    assert norm(np.ones((0, 3))).shape == (0, 3)
    assert unchanged(norm, before)


def test_a_graph_of_evaluation_outlives_the_next_update():
    norm = nn.BatchNorm(3, dtype=float)
    x = leaf((5, 3))
    y = norm.eval()(x)
    (expected,) = ag.grad(y.sum(), x)
    norm.train()(leaf((5, 3), seed=1))
    np.testing.assert_array_equal(ag.grad(y.sum(), x)[0], expected)


def test_frozen_gamma_and_beta_get_no_gradient():
    norm = nn.BatchNorm(3).eval()
    for p in norm.parameters():
        p.requires_grad = False
    x = leaf((5, 3))
    norm(x).sum().backward()
    assert norm.gamma.grad is norm.beta.grad is None
    assert x.grad is not None


def test_statistics_and_parameters_keep_the_precision_of_the_data():
    norm = nn.BatchNorm(2)
    x = rng(0).normal(size=(8, 2)).astype("float32")
    assert norm(x).dtype == np.float32
    assert norm.eval()(x).dtype == np.float32
    assert norm.running_mean.dtype == np.float64


@pytest.mark.parametrize("form", ["fused", "composed"])
def test_statistics_beyond_float16_stay_finite(form):
    norm = nn.BatchNorm(1, dtype="float16", form=form)
    x = np.array([[500.0], [-500.0]] * 8, dtype="float16")
    np.testing.assert_allclose(norm(x).data, np.sign(x), atol=1e-3)
    np.testing.assert_allclose(norm.running_var, 0.9 + 0.1 * 250_000 * 16 / 15, rtol=1e-6)
    norm.running_var = np.array([1e6])
    np.testing.assert_allclose(norm.eval()(x).data, np.sign(x) / 2, atol=1e-3)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_a_bad_momentum_is_named(momentum):
    with pytest.raises(ValueError, match="momentum is"):
        nn.BatchNorm(3, momentum=momentum)


def test_wrong_features_are_named_with_both_numbers():
    with pytest.raises(ValueError, match=r"\(5, 4\), expected 3 features on its axis -1"):
        nn.BatchNorm(3)(np.ones((5, 4)))
    with pytest.raises(ValueError, match="no channel_axis 2"):
        nn.BatchNorm(3, channel_axis=2)(np.ones((5, 3)))


# --- Dropout -----------------------------------------------------------------------------------------------


def test_dropout_repeats_with_its_seed_and_moves_on_from_call_to_call():
    x = np.ones((50, 20))
    one, two = nn.Dropout(0.3, rng=1), nn.Dropout(0.3, rng=1)
    first = one(x)
    np.testing.assert_array_equal(first, two(x))
    assert not np.array_equal(first, one(x))
    assert np.unique(first).tolist() == [0, 1 / 0.7]
    assert abs((first == 0).mean() - 0.3) < 0.05


def test_dropout_keeps_one_mask_while_statistics_are_held():
    x = np.ones((50, 20))
    dropout, other = nn.Dropout(0.3, rng=1), nn.Dropout(0.3, rng=1)
    with no_update():
        np.testing.assert_array_equal(dropout(x), dropout(x))
    np.testing.assert_array_equal(dropout(x), other(x))


def test_dropout_is_the_identity_in_evaluation_and_at_zero_and_nothing_at_one():
    x = leaf((4, 3))
    assert nn.Dropout(0.5).eval()(x) is x
    assert nn.Dropout(0)(x) is x
    y = nn.Dropout(1)(x)
    assert not y.data.any()
    y.sum().backward()
    assert not x.grad.any()


def test_dropout_makes_floats_of_integers():
    image = rng(0).integers(0, 255, size=(40, 40)).astype("uint8")
    found = nn.Dropout(0.5, rng=0)(image)
    assert found.dtype == np.float64
    assert set(np.unique(found / np.maximum(image, 1))) == {0, 2}


def test_dropout_keeps_float32():
    assert nn.Dropout(0.5, rng=0)(np.ones(4, dtype="float32")).dtype == np.float32


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_dropout_names_a_bad_probability(p):
    with pytest.raises(ValueError, match="p is"):
        nn.Dropout(p)


# --- Initial values and shapes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "fan_in"), [(lambda r: nn.Linear(30, 400, rng=r), 30), (lambda r: nn.Conv2d(5, 400, 3, rng=r), 45)]
)
def test_initial_values_are_pytorchs_uniform_and_seeded(make, fan_in):
    layer, same, other = make(0), make(rng(0)), make(1)
    bound = fan_in**-0.5
    for name, p in layer.named_parameters():
        assert p.dtype == np.float32
        assert p.name == name
        assert np.abs(p.data).max() <= bound
        assert np.abs(p.data).max() > 0.98 * bound
        assert abs(p.data.mean()) < 0.1 * bound
        np.testing.assert_array_equal(p.data, getattr(same, name).data)
        assert not np.array_equal(p.data, getattr(other, name).data)
    assert not np.array_equal(make(None).weight.data, make(None).weight.data)


def test_one_generator_serves_several_layers():
    def net(seed):
        r = rng(seed)
        return nn.Sequential(nn.Linear(3, 3, rng=r), nn.Linear(3, 3, rng=r))

    assert not np.array_equal(net(0)[0].weight.data, net(0)[1].weight.data)
    np.testing.assert_array_equal(net(0)[1].weight.data, net(0)[1].weight.data)


def test_flatten_and_convolution_take_an_empty_batch():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.MaxPool2d(2), nn.Flatten())
    assert net(np.ones((0, 6, 6, 1), dtype="float32")).shape == (0, 8)


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: nn.Linear(3, 2), (5, 4), r"\(5, 4\), expected 3 features"),
        (lambda: nn.Linear(3, 2), (), "expected 3 features"),
        (lambda: nn.Conv2d(3, 2, 3), (5, 8, 8), r"\(5, 8, 8\), expected \(N, H, W, C\)$"),
        (lambda: nn.Conv2d(3, 2, 3), (5, 8, 8, 1), r"expected \(N, H, W, C\) with 3 channels$"),
        (lambda: nn.Conv2d(3, 2, 3), (5, 3, 8, 8), r"with 3 channels; this looks like \(N, C, H, W\): x.transpose"),
        (lambda: nn.LayerNorm(3), (5, 4), r"\(5, 4\), expected \(3,\) as its last axes"),
        (lambda: nn.Conv2d(3, 2, 9), (5, 8, 8, 3), "smaller than the kernel"),
        (lambda: nn.MaxPool2d(2), (5, 8, 8), "expected .N, H, W, C"),
        (lambda: nn.AvgPool2d(9), (5, 8, 8, 3), "smaller than the kernel"),
    ],
)
def test_wrong_shapes_are_named(make, shape, message):
    with pytest.raises(ValueError, match=message):
        make()(np.ones(shape))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(0, 2), "in_features is 0"),
        (lambda: nn.Linear(2, 1.5), "out_features is 1.5"),
        (lambda: nn.Conv2d(1, 1, 0), "kernel_size is 0"),
        (lambda: nn.Conv2d(1, 1, (3, 3, 3)), r"kernel_size is \(3, 3, 3\), expected"),
        (lambda: nn.Conv2d(1, 1, 3, stride=0), "stride is 0"),
        (lambda: nn.Conv2d(1, 1, 3, padding=-1), "padding is -1"),
        (lambda: nn.MaxPool2d(2, padding=2), "at most half of kernel_size"),
        (lambda: nn.BatchNorm(0), "num_features is 0"),
        (lambda: nn.LayerNorm((3, 0)), "normalized_shape is 0"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- Layer norm, and memory that changes ----------------------------------------------------------------------


@pytest.mark.parametrize("axes", [1, 2])
def test_layer_norm_equals_pytorch(axes):
    torch = pytest.importorskip("torch")
    shape = IMAGE[-axes:]
    layer, theirs = nn.LayerNorm(shape, 1e-3, dtype=float), torch.nn.LayerNorm(shape, 1e-3, dtype=torch.float64)
    for p, q in zip(layer.parameters(), theirs.parameters(), strict=True):
        p.assign(rng(2).normal(size=p.shape))
        with torch.no_grad():
            q.copy_(torch.tensor(p.data))
    x, g = rng(0).normal(size=(2, *IMAGE))
    mine, other = ag.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = layer(mine), theirs(other)
    y.backward(g)
    z.backward(torch.tensor(g))
    np.testing.assert_allclose(y.data, z.detach().numpy(), atol=1e-12)
    for p, q in zip([mine, *layer.parameters()], [other, *theirs.parameters()], strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), atol=1e-12)


@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (2, 0), (1, 1), (3, 1)])
def test_an_image_overwritten_before_backward_is_an_error_or_makes_no_difference(kernel, padding):
    layer = nn.Conv2d(1, 1, kernel, padding=padding, rng=0, dtype=float)
    image = rng(0).normal(size=(1, 4, 4, 1))
    x = ag.tensor(image, requires_grad=True)
    layer(x).sum().backward()
    right = layer.weight.grad
    layer.zero_grad()
    y = layer(x).sum()
    x.assign(image * 100)
    if kernel == 1 and padding == 0:  # the windows are the image itself
        with pytest.raises(RuntimeError, match="overwritten"):
            y.backward()
    else:
        y.backward()
        np.testing.assert_array_equal(layer.weight.grad, right)


def test_a_pooled_image_overwritten_before_backward_is_an_error():
    x = ag.tensor(rng(0).normal(size=(1, 4, 4, 1)), requires_grad=True)
    y = nn.MaxPool2d(2)(x).sum()
    x.assign(-x.data)
    with pytest.raises(RuntimeError, match="overwritten"):
        y.backward()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_layer_with_parameters_takes_a_dtype(dtype):
    x = np.ones((2, 4, 4, 3), dtype)
    for layer in (nn.Linear(3, 2, dtype=dtype), nn.Conv2d(3, 2, 3, dtype=dtype), nn.BatchNorm(3, dtype=dtype)):
        assert {p.dtype for p in layer.parameters()} == {np.dtype(dtype)}
        assert layer(x).dtype == dtype
    assert nn.LayerNorm(3, dtype=dtype)(x).dtype == dtype


def test_padding_never_wins_against_minus_infinity():
    torch = pytest.importorskip("torch")
    x = np.full((1, 4, 4, 1), -np.inf)
    x[0, 3, 3] = 1.0
    mine, theirs = ag.tensor(x, requires_grad=True), torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    g = np.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    nn.MaxPool2d(2, padding=1)(mine).backward(g)
    torch.nn.functional.max_pool2d(theirs, 2, padding=1).backward(torch.tensor(g.transpose(0, 3, 1, 2)))
    assert mine.grad.ravel().tolist() == theirs.grad.ravel().tolist()


@pytest.mark.parametrize("shape", [1, (1, 1)])
def test_a_row_of_one_value_is_beta_and_has_no_gradient(shape):
    torch = pytest.importorskip("torch")
    layer, theirs = nn.LayerNorm(shape, dtype=float), torch.nn.LayerNorm(shape, dtype=torch.float64)
    x = np.random.default_rng(0).normal(size=(5, *layer.normalized_shape))
    layer.beta.assign(np.full(layer.beta.shape, 0.25))
    torch.nn.init.constant_(theirs.bias, 0.25)
    leaf, their_leaf = ag.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    (layer(leaf) ** 2).sum().backward()
    (theirs(their_leaf) ** 2).sum().backward()
    np.testing.assert_array_equal(layer(leaf).data, theirs(their_leaf).detach().numpy())
    pairs = (leaf, their_leaf), (layer.gamma, theirs.weight), (layer.beta, theirs.bias)
    for mine, other in pairs:
        np.testing.assert_allclose(mine.grad, other.grad.numpy(), atol=1e-12)
    assert not leaf.grad.any()
    assert layer(np.ones(x.shape, int)).dtype == float


ALONE = ag.tensor(3.0, requires_grad=True) * 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: nn.LayerNorm(2)([[ALONE, ALONE]]),
        lambda: nn.LayerNorm(1)([[ALONE], [ALONE]]),
        lambda: nn.Dropout()([ALONE, ALONE]),
        lambda: nn.Linear(2, 2)([[ALONE, ALONE]]),
        lambda: nn.BatchNorm(2)([[ALONE, ALONE], [ALONE, ALONE]]),
        lambda: nn.Conv2d(1, 1, 1)([[[[ALONE]]]]),
        lambda: nn.Sequential(nn.Flatten(), nn.ReLU())([[ALONE, ALONE]]),
        lambda: nn.cross_entropy([[ALONE, ALONE]], [0]),
        lambda: nn.mse_loss([ALONE, ALONE], [0.0, 0.0]),
        lambda: nn.mse_loss([0.0, 0.0], (ALONE, ALONE)),
        lambda: nn.binary_cross_entropy_with_logits([ALONE], [1.0]),
        lambda: ag.data.batches([ALONE, ALONE], [0, 1], 1),
    ],
)
def test_tensors_in_a_list_are_refused_everywhere(call):
    with pytest.raises((TypeError, RuntimeError), match=r"cuts? the graph"):
        call()
