"""The packaged digits, and mini-batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.node import Array
from .arguments import Rng, generator, positive
from .functions import operand


def load_digits() -> tuple[Array, Array]:
    """Handwritten digits: images (1797, 8, 8), float32 from 0 to 1, and their labels (1797,), int64 from 0 to 9.

    New arrays at every call. From E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits",
    UCI Machine Learning Repository, 1998, doi 10.24432/C50P49, CC BY 4.0.

    >>> import autograd_bn as ag
    >>> images, labels = ag.data.load_digits()
    >>> images.shape, images.dtype.name, labels[:10]
    ((1797, 8, 8), 'float32', array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]))
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as archive:
        return archive["images"].astype(np.float32) / 16, archive["labels"].astype(np.int64)


def batches(
    x: Any, y: Any, size: int, rng: Rng = None, drop_last: bool = False, **unknown: Any
) -> Iterator[tuple[Array, Array]]:
    """One pass over the rows of `x` and `y`, `size` at a time; the last batch has the rows that are left.

    `drop_last` leaves that one out if it is not full: batch norm can't learn from a single row. `rng`, a generator or a
    seed, shuffles the rows; without it they come in order, as views. Bad arguments raise `ValueError` at the call.

    >>> import numpy as np, autograd_bn as ag
    >>> [len(x) for x, y in ag.data.batches(np.zeros((5, 2)), np.zeros(5), 2, rng=0)]
    [2, 2, 1]
    """
    if unknown:
        raise TypeError(f"batches has no argument {', '.join(unknown)}: give rng, a seed or a generator, to shuffle")
    x, y = np.asarray(operand(x, "x")), np.asarray(operand(y, "y"))
    if not x.ndim or not y.ndim or len(x) != len(y):
        raise ValueError(f"x of shape {x.shape} and y of shape {y.shape} must have one row for each example")
    size = positive(size, "size")
    order = None if rng is None else generator(rng).permutation(len(x))
    slices = [slice(start, start + size) for start in range(0, len(x) - (size - 1 if drop_last else 0), size)]
    return ((x[rows], y[rows]) for rows in (slices if order is None else (order[some] for some in slices)))
