"""The kernels in NumPy: the steps of a whole array, on blocks that stay in cache."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ...engine.node import Array
from . import thresholds, whole
from .blocks import Block, Layout
from .threads import share


def run(layout: Layout, work: Callable[[Block], None]) -> None:
    def quietly(block: Block) -> None:
        with np.errstate(all="ignore"):  # of each thread its own
            work(block)

    share(quietly, layout.blocks, layout.size > thresholds.SHARED_NUMPY)


def laid(block: Block, vector: Any) -> Any:
    """A vector of features as a block's statistics lie; or None."""
    return None if vector is None else vector[block.features].reshape(block.kept)


def statistics(layout: Layout, x: Array, sums: Array) -> None:
    """`sums` gets by part and feature: a centre, the mean's distance from it, and the sum of squares about the mean."""

    def work(block: Block) -> None:
        (centre, distance), squares, _ = whole.statistics(x[block.where], layout.axes)
        vectors = (np.zeros_like(distance) if centre is None else centre, distance, squares)
        sums[:, block.part, block.features] = np.stack(vectors).reshape(3, -1)

    run(layout, work)


def backward_sums(layout: Layout, g: Array, x: Array, means: Any, sums: Array) -> None:
    """`sums` gets, for each part and feature, the sums of g and of g * (x - means); `means` may be None."""

    def work(block: Block) -> None:
        piece, mean = x[block.where], laid(block, means)
        both = whole.backward_sums(g[block.where], piece, layout.axes, mean)[:2]
        sums[:, block.part, block.features] = np.stack(both).reshape(2, -1)

    run(layout, work)


def affine(layout: Layout, views: list[Array], vectors: list[Any]) -> None:
    """y = (x - means) * slopes + constants + g * directs, each a vector of features.

    `views` are x, y and g, `vectors` these four; the means may be None, and g and directs be left out.
    """

    def work(block: Block) -> None:
        x, y, *rest = [view[block.where] for view in views]
        g = rest[0] if rest else None
        result = whole.affine(x, layout.axes, [laid(block, vector) for vector in vectors], None, g)
        np.copyto(y, result, casting="same_kind")

    run(layout, work)
