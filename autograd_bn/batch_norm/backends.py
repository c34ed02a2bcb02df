"""Which kernels run: NumPy's, or numba's where it is installed and the work is large enough to pay for it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from ..engine.node import Array
from . import numpy_kernels, pair_kernels
from .layout import Layout

# Elements from which on numba's kernels are worth the import.
LARGE = 1 << 18

# Rows from which on float64 is computed in pairs of doubles: sums of fewer may cancel further than these reach.
FEWEST = 32

_backend: str | None = None


def set_backend(name: Literal["numpy", "numba"] | None) -> None:
    """Choose the kernels of the fused node: "numpy", "numba", or None for the default.

    By default numba's run on float32 and float64 arrays of a quarter of a million elements and up, where numba is
    installed, and NumPy's on all others. Numba's compile on their first use and are kept on disk for the next process.
    What they do not cover (memory that is not contiguous in any order of the axes, other dtypes) runs in NumPy.
    `ValueError` for another name, `ImportError` for "numba" where it isn't installed.

    >>> import autograd_bn as ag
    >>> ag.set_backend("numpy")
    >>> ag.set_backend(None)
    """
    global _backend
    if name not in (None, "numpy", "numba"):
        raise ValueError(f'name is {name!r}, expected "numpy", "numba" or None')
    if name == "numba" and not _has_numba():
        raise ImportError('set_backend("numba") needs numba, which is not installed: pip install "autograd_bn[fast]"')
    _backend = name


def describe_backend() -> str:
    """One line that says which kernels run."""
    if _backend is not None:
        return f"the {_backend} kernels, chosen by set_backend"
    if _has_numba():
        return f"the numba kernels from {LARGE} elements on, the numpy kernels below"
    return "the numpy kernels (numba is not installed)"


def choose(layout: Layout, *views: Array, vectors: Iterable[Any] = ()) -> Any:
    """The module of kernels for arrays with this layout, and vectors of features that they work with."""
    kinds = {view.dtype.char for view in views}
    doubles = kinds == {"d"} and layout.count >= FEWEST and all(map(_in_range, vectors))
    if _backend == "numpy" or (_backend is None and (layout.size < LARGE or not _has_numba())):
        compiled = False
    else:
        compiled = all(view.flags.c_contiguous for view in views)
    if doubles and compiled:
        from . import numba_pair_kernels

        return numba_pair_kernels
    if kinds == {"f"} and compiled:
        from . import numba_kernels

        return numba_kernels
    return pair_kernels if doubles else numpy_kernels


def _in_range(vector: Any) -> bool:
    """Whether products with a vector's numbers are far from a double's largest and smallest."""
    if vector is None:
        return True
    sizes = np.abs(vector[vector != 0])
    return bool(((sizes > 1e-140) & (sizes < 1e140)).all())


@cache
def _has_numba() -> bool:
    return find_spec("numba") is not None
