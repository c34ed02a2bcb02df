"""The layers, with PyTorch's arguments and defaults, and features last.

`rng` is a seed or a NumPy generator, so that everything repeats bit for bit; `None` draws from a new
generator that the operating system seeds, as `numpy.random.default_rng()` does. Parameters are made in `dtype`.
"""

import copy
import math
from functools import lru_cache, partial
from typing import Any, ClassVar, Literal

import numpy as np

from ..batch_norm import batch_norm
from ..distributed import end_together
from ..distributed.collectives import raise_together
from ..engine import Tensor, as_tensor, mean, relu, reshape, sigmoid, tanh, transpose
from ..engine.node import Array, mode
from .arguments import Rng, above_zero, generator, number, pair, positive
from .functions import Pair, linear, max_pool, operand, windows
from .module import Module


def _shape(x: Any) -> tuple[int, ...]:
    return operand(x, "x").shape  # type: ignore[no-any-return]


def _floats(x: Any) -> Any:
    x = operand(x, "x")
    return x.astype(float) if x.dtype.kind in "iub" else x


def _parameter(value: Array, dtype: Any, name: str) -> Tensor:
    return as_tensor(value.astype(dtype), requires_grad=True, name=name)


def _uniform(shape: tuple[int, ...], bias: bool, rng: Rng, dtype: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as PyTorch draws them: uniformly within 1 / sqrt(what one output adds up)."""
    bound, rng = 1 / math.sqrt(math.prod(shape[1:])), generator(rng)
    weight = _parameter(rng.uniform(-bound, bound, shape), dtype, "weight")
    return weight, _parameter(rng.uniform(-bound, bound, shape[0]), dtype, "bias") if bias else None


class Linear(Module):
    """`x @ weight.T + bias`: x (..., in_features), weight (out_features, in_features), bias (out_features,).

    Both are drawn uniformly within 1 / sqrt(in_features). `ValueError` if the last axis of x has another length.

    >>> import numpy as np, autograd_bn as ag
    >>> layer = ag.nn.Linear(3, 2, rng=0)
    >>> layer(np.ones((5, 3), dtype="float32")).shape
    (5, 2)
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, rng: Rng = None, *, dtype: Any = np.float32
    ) -> None:
        self.in_features = positive(in_features, "in_features")
        self.out_features = positive(out_features, "out_features")
        self.weight, self.bias = _uniform((out_features, in_features), bias, rng, dtype)

    def forward(self, x: Any) -> Any:
        shape = _shape(x)
        if not shape or shape[-1] != self.in_features:
            raise ValueError(f"x has shape {shape}, expected {self.in_features} features on its last axis")
        return linear(x, self.weight, self.bias)

    def _settings(self) -> str:
        return f"{self.in_features}, {self.out_features}{', bias=False' if self.bias is None else ''}"


class _Window(Module):
    """What convolution and pooling share: the windows that they slide over an image."""

    one_box: ClassVar[bool] = True  # in a picture, until it is opened

    def __init__(self, kernel_size: int | Pair, stride: int | Pair, padding: int | Pair) -> None:
        self.kernel_size = pair(kernel_size, "kernel_size", 1)
        self.stride = pair(stride, "stride", 1)
        self.padding = pair(padding, "padding", 0)

    def _check(self, x: Any) -> None:
        shape = _shape(x)
        if len(shape) != 4:
            raise ValueError(f"x has shape {shape}, expected (N, H, W, C)")
        for length, pad, size in zip(shape[1:3], self.padding, self.kernel_size, strict=True):
            if length + 2 * pad < size:
                raise ValueError(
                    f"x has shape {shape}: with padding {self.padding} it is smaller than the kernel {self.kernel_size}"
                )

    def _settings(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class Conv2d(_Window):
    """The cross-correlation of images (N, H, W, in_channels) with `weight`, plus `bias`.

    `weight` is (out_channels, in_channels, *kernel_size), the result (N, rows, columns, out_channels). Both parameters
    are drawn uniformly within 1 / sqrt(in_channels * kernel area). `kernel_size`, `stride` and `padding` (zeros on both
    sides) are an integer or a pair. `ValueError` where x has other axes or channels, or is smaller than the kernel.

    >>> import numpy as np, autograd_bn as ag
    >>> ag.nn.Conv2d(1, 4, 3, padding=1, rng=0)(np.ones((2, 8, 8, 1), dtype="float32")).shape
    (2, 8, 8, 4)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        bias: bool = True,
        rng: Rng = None,
        *,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        self.in_channels = positive(in_channels, "in_channels")
        self.out_channels = positive(out_channels, "out_channels")
        self.weight, self.bias = _uniform((out_channels, in_channels, *self.kernel_size), bias, rng, dtype)

    def forward(self, x: Any) -> Any:
        shape = _shape(x)
        if len(shape) == 4 and shape[3] != self.in_channels:
            turned = "; this looks like (N, C, H, W): x.transpose(0, 2, 3, 1)" if shape[1] == self.in_channels else ""
            raise ValueError(f"x has shape {shape}, expected (N, H, W, C) with {self.in_channels} channels{turned}")
        self._check(x)
        view = windows(x, self.kernel_size, self.stride, self.padding)
        fan_in = math.prod(view.shape[3:])
        weight = reshape(transpose(self.weight, (0, 2, 3, 1)), (self.out_channels, fan_in))
        return linear(reshape(view, (*view.shape[:3], fan_in)), weight, self.bias)

    def _settings(self) -> str:
        bias = ", bias=False" if self.bias is None else ""
        return f"{self.in_channels}, {self.out_channels}, {super()._settings()}{bias}"


class MaxPool2d(_Window):
    """The largest element of every window of images (N, H, W, C): (N, rows, columns, C).

    `stride` is `kernel_size` by default; `padding` never wins. Of equal elements the first gets the gradient.

    >>> import numpy as np, autograd_bn as ag
    >>> ag.nn.MaxPool2d(2)(np.arange(4.0).reshape(1, 2, 2, 1))
    array([[[[3.]]]])
    """

    def __init__(self, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> None:
        super().__init__(kernel_size, kernel_size if stride is None else stride, padding)
        if any(2 * pad > size for pad, size in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(f"padding is {padding}, expected at most half of kernel_size {kernel_size}")

    def forward(self, x: Any) -> Any:
        self._check(x)
        return max_pool(x, self.kernel_size, self.stride, self.padding)


class AvgPool2d(MaxPool2d):
    """The mean of every window of images (N, H, W, C): (N, rows, columns, C). Padded zeros count.

    >>> import numpy as np, autograd_bn as ag
    >>> ag.nn.AvgPool2d(2)(np.arange(4.0).reshape(1, 2, 2, 1))
    array([[[[1.5]]]])
    """

    def forward(self, x: Any) -> Any:
        self._check(x)
        return mean(windows(x, self.kernel_size, self.stride, self.padding), (3, 4))


class Flatten(Module):
    """Every axis but the first made one: (N, ...) becomes (N, size of a row)."""

    def forward(self, x: Any) -> Any:
        shape = _shape(x)
        if not shape:
            raise ValueError("x has shape (), expected rows: one axis or more")
        return reshape(x, (shape[0], math.prod(shape[1:])))


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Any) -> Any:
        return relu(operand(x, "x"))


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Any) -> Any:
        return sigmoid(operand(x, "x"))


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Any) -> Any:
        return tanh(operand(x, "x"))


class Dropout(Module):
    """In training each element is 0 with probability `p`, and the others are scaled by 1 / (1 - p).

    In evaluation it is the identity. The masks come from the layer's own generator, made from `rng`.

    >>> import numpy as np, autograd_bn as ag
    >>> dropout = ag.nn.Dropout(0.5, rng=0)
    >>> dropout(np.ones(6)), dropout.eval()(np.ones(6))
    (array([2., 0., 0., 0., 2., 2.]), array([1., 1., 1., 1., 1., 1.]))
    """

    def __init__(self, p: float = 0.5, rng: Rng = None) -> None:
        self.p = number(p, "p", lambda p: 0 <= p <= 1, "a probability from 0 to 1")
        self.rng = generator(rng)

    def forward(self, x: Any) -> Any:
        if not self.training or self.p == 0:
            return x
        x = _floats(x)
        rng = copy.deepcopy(self.rng) if not mode.updating.get() else self.rng
        keep = rng.random(x.shape) >= self.p
        return x * (keep / x.dtype.type(1 - self.p) if self.p < 1 else keep)

    def _settings(self) -> str:
        return f"p={self.p}"


class BatchNorm(Module):
    """Batch norm of the features on `channel_axis`, over all other axes, with running statistics.

    In training it normalises by the batch, and a forward pass that succeeds moves `running_mean` and `running_var`
    towards its mean and unbiased variance: `momentum` is the weight of the new value, `None` averages over all batches.
    They are float64, evaluation normalises by them, and checks leave them as they are. `track_running_stats=False` has
    none and always normalises by the batch. `gamma` and `beta` start as 1 and 0; `affine=False` has none. `form` and
    `comm`: see `batch_norm`; `eps` is one number here.

    `ValueError` where x has another number of features, or one value per feature in training.

    S. Ioffe and C. Szegedy, "Batch Normalization", 2015, algorithm 2.

    >>> import autograd_bn as ag
    >>> norm = ag.nn.BatchNorm(2)
    >>> norm([[1.0, 10.0], [3.0, 30.0]]).data.round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> norm.running_mean, norm.running_var
    (array([0.2, 2. ]), array([ 1.1, 20.9]))
    """

    buffers: ClassVar[tuple[str, ...]] = ("running_mean", "running_var", "num_batches_tracked")

    def __init__(
        self,
        num_features: int,
        *,
        channel_axis: int = -1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        form: Literal["fused", "composed"] = "fused",
        comm: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        if comm is not None:
            end_together(comm)
        self.num_features = positive(num_features, "num_features")
        if momentum is not None:
            number(momentum, "momentum", lambda m: 0 <= m <= 1, "a weight from 0 to 1, or None for an average")
        if form not in ("fused", "composed"):
            raise ValueError(f'form is {form!r}, expected "fused" or "composed"')
        whole = lambda axis: isinstance(axis, int | np.integer)
        self.channel_axis = number(channel_axis, "channel_axis", whole, "an integer")
        self.eps = above_zero(eps, "eps")
        self.momentum = momentum
        self.form: Literal["fused", "composed"] = form
        self.comm = comm
        self.gamma = _parameter(np.ones(num_features), dtype, "gamma") if affine else None
        self.beta = _parameter(np.zeros(num_features), dtype, "beta") if affine else None
        self.running_mean = np.zeros(num_features) if track_running_stats else None
        self.running_var = np.ones(num_features) if track_running_stats else None
        self.num_batches_tracked = np.array(0) if track_running_stats else None

    def forward(self, x: Any) -> Any:
        tracking = self.running_mean is not None
        by_batch = self.training or not tracking
        try:
            axes, n = _batch_axes(_shape(x), self.channel_axis, self.num_features)
        except Exception as error:
            raise_together(self.comm if by_batch else None, error)
        if n == 1 and self.training and tracking and self.comm is None:
            raise ValueError(
                f"x has shape {_shape(x)}, one value per feature, whose variance is 0: "
                "train on more rows (batches has drop_last), or call model.eval() first"
            )
        norm = partial(batch_norm, x, self.gamma, self.beta, axes=axes, eps=self.eps, form=self.form)
        if not by_batch:
            return norm(mean=self.running_mean, var=self.running_var)
        y, mean, var, n = norm(comm=self.comm, return_stats="count")
        if n and tracking and mode.updating.get():
            self._track(mean, var, n)
        return y

    def _track(self, mean: Any, var: Any, n: int) -> None:
        count: Any = self.num_batches_tracked + 1  # type: ignore[operator]
        weight = 1 / count if self.momentum is None else self.momentum
        mean = (1 - weight) * self.running_mean + weight * mean  # type: ignore[operator]
        var = (1 - weight) * self.running_var + weight * n / (n - 1) * var  # type: ignore[operator]
        vars(self).update(running_mean=mean, running_var=var, num_batches_tracked=np.asarray(count))

    def _settings(self) -> str:
        return f"{self.num_features}, channel_axis={self.channel_axis}, eps={self.eps}, momentum={self.momentum}"


@lru_cache
def _batch_axes(shape: tuple[int, ...], channel_axis: int, num_features: int) -> tuple[tuple[int, ...], int]:
    """The axes of the statistics, and how many values each has."""
    if not -len(shape) <= channel_axis < len(shape):
        raise ValueError(f"x has shape {shape}, which has no channel_axis {channel_axis}")
    channel = channel_axis % len(shape)
    if shape[channel] != num_features:
        raise ValueError(f"x has shape {shape}, expected {num_features} features on its axis {channel_axis}")
    axes = tuple([axis for axis in range(len(shape)) if axis != channel])
    return axes, math.prod([shape[axis] for axis in axes])


class LayerNorm(Module):
    """Each row normalised by its own mean and biased variance over the last axes, then times `gamma` plus `beta`.

    `normalized_shape`, an integer or a tuple, is the shape of those axes and of `gamma` and `beta`. It is batch norm
    over the other axes: one node, followed by a product and a sum. A row of one value is 0 before `gamma` and `beta`.
    `ValueError` where the last axes of x differ.

    J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer Normalization", 2016, section 3.

    >>> import autograd_bn as ag
    >>> ag.nn.LayerNorm(2)([[1.0, 3.0], [10.0, 30.0]]).data.round(3)
    array([[-1.,  1.],
           [-1.,  1.]])
    """

    def __init__(self, normalized_shape: int | tuple[int, ...], eps: float = 1e-5, *, dtype: Any = np.float32) -> None:
        shape = tuple(normalized_shape) if isinstance(normalized_shape, tuple | list) else (normalized_shape,)
        if not shape:
            raise ValueError("normalized_shape is (), expected the length of one axis or more")
        self.normalized_shape = tuple([positive(n, "normalized_shape") for n in shape])
        self.eps = above_zero(eps, "eps")
        self.gamma = _parameter(np.ones(shape), dtype, "gamma")
        self.beta = _parameter(np.zeros(shape), dtype, "beta")

    def forward(self, x: Any) -> Any:
        shape, count = _shape(x), len(self.normalized_shape)
        if shape[-count:] != self.normalized_shape:
            raise ValueError(f"x has shape {shape}, expected {self.normalized_shape} as its last axes")
        if math.prod(self.normalized_shape) == 1:  # the row's only value is its mean
            x = _floats(x)
            return (x - x) * self.gamma + self.beta
        return batch_norm(operand(x, "x"), axes=tuple(range(-count, 0)), eps=self.eps) * self.gamma + self.beta

    def _settings(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"
