"""Which kernels run: NumPy's, or numba's where it is installed and the work is large enough to pay for it."""

import math
import warnings
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, Literal

from ...engine.node import Array
from . import thresholds
from .layout import Layout

# Variances from which on squares and products come near the end of a double's range.
LARGEST = 1e280

_backend: str | None = None


def set_backend(name: Literal["numpy", "numba"] | None) -> None:
    """Choose the kernels of the fused node: "numpy", "numba", or None for the default.

    By default numba's run on float32 and float64 arrays of a few thousand elements and up, where numba is installed,
    and NumPy's on all others: by shape, dtype and memory alone, so that a run repeats bit for bit. Numba's compile on
    their first use, which takes some seconds for each dtype, and are kept on disk for the next process. What they do
    not cover (memory that is not contiguous in any order of the axes, other dtypes) runs in NumPy, and so does all
    where numba is installed but can't be used, after one warning.
    `ValueError` for another name, `ImportError` for "numba" where it isn't installed or can't be used.

    >>> import autograd_bn as ag
    >>> ag.set_backend("numpy")
    >>> ag.set_backend(None)
    """
    global _backend
    if name not in (None, "numpy", "numba"):
        raise ValueError(f'name is {name!r}, expected "numpy", "numba" or None')
    if name == "numba" and not _has_numba():
        raise ImportError('set_backend("numba") needs numba, which is not installed: pip install "autograd_bn[fast]"')
    if name == "numba" and compiled() is None:
        raise ImportError('set_backend("numba") needs numba, which is installed but does not work here')
    _backend = name


def describe_backend() -> str:
    """One line that says which kernels run."""
    if _backend is not None:
        return f"the {_backend} kernels, chosen by set_backend"
    if _has_numba():
        return f"the numba kernels from {thresholds.COMPILED} elements on, the numpy kernels below"
    return "the numpy kernels (numba is not installed)"


def choose(x: Array, axes: tuple[int, ...], g: Any = None) -> Layout:
    """The layout of these arrays, and so whose kernels run: by shape, dtype, memory and what is installed alone."""
    layout = chosen(axes, x.shape, x.strides, x.dtype, _backend)
    if g is None or not layout.compiled or (g.dtype == x.dtype and layout.view(g).flags.c_contiguous):
        return layout
    return chosen(axes, x.shape, x.strides, x.dtype, "numpy")


@lru_cache(512)
def chosen(
    axes: tuple[int, ...], shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any, backend: str | None
) -> Layout:
    """The same of what an array is known by, since all of it is worked out once."""
    if dtype.char in "fd" and dtype.isnative and _numba_wanted(math.prod(shape), backend):
        layout = Layout(axes, shape, strides, dtype, compiled=True)
        if layout.contiguous:
            return layout
    return Layout(axes, shape, strides, dtype, compiled=False)


@cache
def compiled() -> Any:
    """The kernels in numba, which are imported when first asked for; None, and one warning, where they can't be."""
    try:
        from . import numba
    except Exception as error:  # it finds no place for its cache, no LLVM, a NumPy that it doesn't know, ...
        reason = str(error).partition("\n")[0] or type(error).__name__
        warnings.warn(f"numba is installed but does not work here, NumPy computes: {reason}", RuntimeWarning, 2)
        return None
    return numba


def _numba_wanted(size: int, backend: str | None) -> bool:
    """Whether numba's kernels are to run on arrays of so many elements, if they can."""
    if size == 0 or backend == "numpy" or (backend is None and size < thresholds.COMPILED) or not _has_numba():
        return False
    return compiled() is not None


@cache
def _has_numba() -> bool:
    return find_spec("numba") is not None
