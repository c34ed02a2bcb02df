"""The commands of the command line, one module each: `HELP`, `add_arguments(parser)`, `run(args) -> exit status`.

Here is what they share: the user's data, the files that they write, and the bar that shows how far they are.
"""

from __future__ import annotations

import csv
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from ..engine import Tensor, as_tensor
from ..engine.node import Array
from ..nn.checkpoint import load
from ..nn.data import load_digits


class UsageError(Exception):
    """What the user asked for can't be done; the message is one line."""


@contextmanager
def refused() -> Iterator[None]:
    """What the library refuses inside is a `UsageError`."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(str(error)) from None


def words(error: OSError) -> str:
    """What went wrong with a file, as one would say it."""
    return os.strerror(error.errno).lower() if error.errno else str(error)


def complain(text: str) -> None:
    """One line on standard error, in one write: several ranks may share it."""
    if sys.stderr is not None:
        flushed(sys.stderr, f"{text}\n")


def flushed(stream: TextIO, text: str = "") -> None:
    """Write the last text to a stream; what it can't take is dropped, or Python would try again at its end."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def fill(text: str) -> str:
    """A paragraph as wide as the terminal, but no wider than one reads well."""
    return textwrap.fill(text, min(shutil.get_terminal_size((100, 24)).columns, 100))


class Data(NamedTuple):
    """A batch as floats, features last, with gamma and beta; the names of the features."""

    name: str
    x: Array
    gamma: Array
    beta: Array
    columns: tuple[str, ...] = ()

    def leaves(self) -> list[Tensor]:
        """The arrays as tensors that a gradient flows to."""
        return [as_tensor(getattr(self, name), requires_grad=True, name=name) for name in ("x", "gamma", "beta")]

    def not_finite(self) -> dict[str, int]:
        """How many values of each feature are NaN or infinite, for the features that have any."""
        counts = np.count_nonzero(~np.isfinite(self.x), axis=tuple(range(self.x.ndim - 1)))
        names = self.columns or [f"x[..., {i}]" for i in range(len(counts))]
        return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


def load_data(path: str | None) -> Data:
    """The packaged digits, or the user's file: .npy, .npz (one array or `x`, and `gamma` and `beta`), or .csv.

    A gamma or beta that isn't there is drawn at random: 1 and 0 would hide mistakes.
    """
    columns: tuple[str, ...] = ()
    if path is None:
        images, _ = load_digits()
        arrays = {"x": images.reshape(len(images), -1)}
    else:
        try:
            arrays, columns = _read(Path(path))
        except UsageError:
            raise
        except OSError as error:
            raise UsageError(f"can't read {path}: {words(error)}") from None
        except Exception as error:  # whatever a damaged file leads to
            why = "it holds pickled objects" if "Object arrays" in str(error) else "it is damaged or not such a file"
            raise UsageError(f"can't read {path}: {why}") from None
    data = [name for name in arrays if name not in ("gamma", "beta")]
    if "x" not in data and len(data) != 1:
        raise UsageError(f"{path} holds {', '.join(arrays) or 'nothing'}: expected one array, or one named x")
    for name, array in arrays.items():
        if array.dtype.kind in "iub":
            arrays[name] = array.astype(np.float64)
    x = arrays["x" if "x" in data else data[0]]
    if x.dtype.kind != "f":
        raise UsageError(f"{path} holds data of dtype {x.dtype}, expected real numbers")
    if x.ndim < 2:
        raise UsageError(f"{path} holds an array of shape {x.shape}, expected rows of features: two axes or more")
    rng = np.random.default_rng(0)
    gamma, beta = (rng.uniform(low, high, x.shape[-1:]).astype(x.dtype) for low, high in ((0.5, 1.5), (-1, 1)))
    return Data(path or "the packaged digits", x, arrays.get("gamma", gamma), arrays.get("beta", beta), columns)


def _read(path: Path) -> tuple[dict[str, Array], tuple[str, ...]]:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _read_csv(path)
    if suffix == ".npz":
        return load(path), ()
    if suffix == ".npy":
        with path.open("rb") as file:
            return {"x": np.lib.format.read_array(file, allow_pickle=False)}, ()
    raise UsageError(f"{path} ends in {path.suffix!r}, expected .npy, .npz or .csv")


def _read_csv(path: Path) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Rows of numbers, and the names of the columns where the first line has no number in it.

    Columns are separated by tabs, semicolons or commas, whichever the first line has; beside semicolons a comma is a
    decimal one.
    """
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        first = file.readline()
        file.seek(0)
        separator = next((mark for mark in "\t;" if mark in first), ",")
        reader = csv.reader(file, delimiter=separator)
        lines = [(reader.line_num, [_number(cell, separator) for cell in cells]) for cells in reader if cells]
    columns: tuple[str, ...] = ()
    if lines and not any(isinstance(cell, float) for cell in lines[0][1]):
        columns = tuple([str(cell).strip() for cell in lines.pop(0)[1]])
    if not lines:
        raise UsageError(f"{path} is empty, expected rows of numbers")
    expected = len(columns or lines[0][1])
    for line, cells in lines:
        if len(cells) != expected:
            raise UsageError(f"{path}, line {line} has {len(cells)} columns, expected {expected}")
        for i, cell in enumerate(cells, 1):
            if isinstance(cell, str):
                raise UsageError(f"{path}, line {line}, column {i}: {cell!r} is not a number")
    return {"x": np.array([cells for _, cells in lines])}, columns


def _number(cell: str, separator: str) -> float | str:
    try:
        return float(cell.replace(",", ".") if separator == ";" else cell)
    except ValueError:
        return cell


def writable_folder(path: str | Path) -> Path:
    """The folder, made if it is missing; `UsageError` where nothing can be written there."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"can't write to the folder {path}: {words(error)}") from None
    return folder


def output_file(path: str, suffixes: Sequence[str]) -> Path:
    """A file to write, in a folder that is made if it is missing; `UsageError` for another suffix."""
    target = Path(path)
    if target.suffix not in suffixes:
        raise UsageError(f"{path} ends in {target.suffix!r}, expected {' or '.join(suffixes)}")
    writable_folder(target.parent)
    if target.is_dir():
        raise UsageError(f"can't write {path}: it is a folder")
    return target


@contextmanager
def progress(total: int, text: str, done: int = 0, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, where tqdm is installed; the function moves it on by a step and sets the text beside it."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda text: None
        return
    with tqdm(total=total, initial=done, disable=True if quiet else None, leave=False, dynamic_ncols=True) as bar:
        bar.set_postfix_str(text)

        def show(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update()

        yield show
