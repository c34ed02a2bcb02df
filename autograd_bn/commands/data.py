"""The user's files: what he gives as data, and what he wants written."""

import csv
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..engine import Tensor, as_tensor
from ..engine.node import Array
from ..files import ending, is_one_file
from ..nn.checkpoint import TooLarge, load
from ..nn.data import load_digits
from ..verify.referee.entries import Entry
from . import UsageError, words

DATA = ".npy, .npz, .csv, .tsv or .txt file, features last"


class Data(NamedTuple):
    """A batch as floats, features last, with gamma and beta; the names of the features; how the file was read."""

    name: str
    x: Array
    gamma: Array
    beta: Array
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def leaves(self) -> list[Tensor]:
        """The arrays as tensors that a gradient flows to."""
        return [as_tensor(getattr(self, name), requires_grad=True, name=name) for name in ("x", "gamma", "beta")]

    def not_finite(self) -> dict[str, int]:
        """How many values of each feature are NaN or infinite, for the features that have any."""
        counts = np.count_nonzero(~np.isfinite(self.x), axis=tuple(range(self.x.ndim - 1)))
        names = self.columns or [f"x[..., {i}]" for i in range(len(counts))]
        return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


def taken(inputs: Mapping[str, Any], listed: Sequence[Entry]) -> None:
    """`UsageError` for inputs by names that none of the entries takes."""
    names = {name for entry in listed for name in entry.parameters}
    if listed and (unknown := ", ".join(sorted(inputs.keys() - names))):
        raise UsageError(f"--inputs names {unknown}, which no forward takes, expected of {', '.join(sorted(names))}")


def load_data(path: str | None, columns: str | None = None) -> Data:
    """The packaged digits, or the user's file: .npy, .npz (one array or `x`, and `gamma` and `beta`), or text.

    `columns` picks columns of a text file. A gamma or beta that isn't there is drawn at random: 1 and 0 would hide
    mistakes.
    """
    try:
        arrays, names, notes = _read(path, columns)
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"can't read {path}: {words(error)}") from None
    except TooLarge as error:
        raise UsageError(f"{error}, or save it by numpy.savez, without compression") from None
    except Exception as error:  # whatever a damaged file leads to
        why = "it holds pickled objects" if "Object arrays" in str(error) else "it is damaged or not such a file"
        raise UsageError(f"can't read {path}: {why}") from None
    data = [name for name in arrays if name not in ("gamma", "beta")]
    if "x" not in data and len(data) != 1:
        raise UsageError(f"{path} holds {', '.join(arrays) or 'nothing'}: expected one array, or one named x")
    arrays = {name: a.astype(np.float64) if a.dtype.kind in "iub" else a for name, a in arrays.items()}
    x = arrays["x" if "x" in data else data[0]]
    if odd := [str(a.dtype) for a in arrays.values() if a.dtype.kind != "f"]:
        raise UsageError(f"{path} holds data of dtype {odd[0]}, expected real numbers")
    if x.ndim < 2 or not x.size:
        raise UsageError(f"{path} holds an array of shape {x.shape}, expected rows of features: two axes or more")
    rng = np.random.default_rng(0)
    gamma, beta = (rng.uniform(low, high, x.shape[-1:]).astype(x.dtype) for low, high in ((0.5, 1.5), (-1, 1)))
    return Data(path or "the packaged digits", x, arrays.get("gamma", gamma), arrays.get("beta", beta), names, notes)


def _read(path: str | None, columns: str | None) -> tuple[dict[str, Array], tuple[str, ...], tuple[str, ...]]:
    """The arrays of a file by name, the names of its columns, and what was done to read it."""
    suffix = "" if path is None else Path(path).suffix.lower()
    if path is not None and suffix in (".csv", ".tsv", ".txt"):
        x, names, notes = _read_text(Path(path), columns)
        return {"x": x}, names, notes
    if columns is not None:
        raise UsageError("--columns picks columns of a .csv, .tsv or .txt file")
    if path is None:
        images, _ = load_digits()
        return {"x": images.reshape(len(images), -1)}, (), ()
    if suffix == ".npz":
        return load(path), (), ()
    if suffix == ".npy":
        with open(path, "rb") as file:
            return {"x": np.lib.format.read_array(file, allow_pickle=False)}, (), ()
    raise UsageError(f"{path} {ending(path)}, expected .npy, .npz, .csv, .tsv or .txt")


def _read_text(path: Path, columns: str | None) -> tuple[Array, tuple[str, ...], tuple[str, ...]]:
    """The numbers of the columns that hold some, or of those asked for; their names; what was done, in words.

    The separator is the first of tab, semicolon, comma and space to cut most rows alike.
    """
    text = path.read_text("utf-8-sig", errors="replace").removeprefix("#").splitlines(True)  # "#" as by `savetxt`
    separator, most = ",", 0
    for mark in "\t;, ":
        widths = Counter([len(cells) for _, cells in _cells(text[:100], mark)])
        width, often = max(widths.items(), key=lambda item: item[1], default=(0, 0))
        if width > 1 and often > most:
            separator, most = mark, often
    rows, names, notes = _cells(text, separator), list[str](), []
    if rows and all(_number(cell, separator) is None for cell in rows[0][1]):
        names = rows.pop(0)[1]
        notes.append(f"Line 1 is taken for the names of the columns: {few(names)}.")
    elif rows:
        notes.append(f"No names of columns: line 1 is taken for numbers ({few(rows[0][1])}).")
    if not rows:
        raise UsageError(f"{path} is empty, expected rows of numbers")
    width = len(names or rows[0][1])
    for line, cells in rows:
        if len(cells) != width:
            raise UsageError(f"{path}, line {line}: the number of columns is {len(cells)}, expected {width}")
    asked = range(width) if columns is None else [_place(c, names, width) for c in next(csv.reader([columns])) or [""]]
    values = {i: [_number(cells[i], separator) for _, cells in rows] for i in asked}
    taken = [i for i in asked if columns is not None or any(value is not None for value in values[i])]
    if skipped := [names[i] if names else f"column {i + 1}" for i in asked if i not in taken]:
        notes.append(f"Without what holds no number: {few(skipped)}.")
    for i in taken or asked:
        for (line, cells), value in zip(rows, values[i], strict=True):
            if value is None:
                raise UsageError(f"{path}, line {line}, column {i + 1}: {cells[i]!r} is not a number")
    x = np.array([values[i] for i in taken], dtype=float).T
    return x, tuple([names[i] for i in taken if names]), tuple(notes)


def _cells(lines: list[str], separator: str) -> list[tuple[int, list[str]]]:
    """Each row's cells, behind the number of the row's last line."""
    text = [line.strip() for line in lines] if separator == " " else lines
    reader = csv.reader(text, delimiter=separator, skipinitialspace=True)
    return [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]


def _number(cell: str, separator: str) -> float | None:
    """The number in a cell; beside semicolons a comma is a decimal one. Python's 2024_01 is text to everybody else."""
    try:
        return None if "_" in cell else float(cell.replace(",", ".") if separator == ";" else cell)
    except ValueError:
        return None


def _place(asked: str, names: list[str], width: int) -> int:
    """Where a column stands that is asked for by its name, or by its number from 1."""
    asked = asked.strip()
    if names.count(asked) == 1:
        return names.index(asked)
    if asked.isdecimal() and 1 <= int(asked) <= width:
        return int(asked) - 1
    known = f"{few(names)}, or " if names else ""
    raise UsageError(f"--columns has {asked!r}, expected {known}a number from 1 to {width}")


def few(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


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


def output_file(path: str, suffixes: Sequence[str], source: str = "") -> Path:
    """A file to write, in a folder that is made if missing; `UsageError` for another suffix, and for the `source`."""
    target = Path(path)
    if target.suffix not in suffixes:
        raise UsageError(f"{path} {ending(path)}, expected {' or '.join(suffixes)}")
    writable_folder(target.parent)
    taken = "a folder" if target.is_dir() else "the file to read" if is_one_file(target, source) else ""
    if taken:
        raise UsageError(f"can't write {path}: it is {taken}")
    return target
