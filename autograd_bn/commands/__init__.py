"""The commands of the command line, one module each: `HELP`, `add_arguments(parser)`, `run(args) -> int`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class UsageError(Exception):
    """What the user asked for can't be done; the message is one line."""


def load_data(path: str | None) -> tuple[str, np.ndarray[Any, Any]]:
    """A name for the data and the data as floats, features last: the packaged digits, or the user's file."""
    import numpy as np

    if path is None:
        from ..nn.data import load_digits

        images, _ = load_digits()
        return "the packaged digits", images.reshape(len(images), -1)
    try:
        data = _read(Path(path))
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror or error}") from None
    if data.dtype.kind in "iub":
        data = data.astype(np.float64)
    if data.dtype.kind != "f":
        raise UsageError(f"{path} holds data of dtype {data.dtype}, expected real numbers")
    if data.ndim < 2:
        raise UsageError(f"{path} holds an array of shape {data.shape}, expected rows of features: two axes or more")
    return path, data


def _read(path: Path) -> np.ndarray[Any, Any]:
    import zipfile

    import numpy as np

    if path.suffix == ".csv":
        return _read_csv(path)
    if path.suffix not in (".npy", ".npz"):
        raise UsageError(f"{path} ends in {path.suffix!r}, expected .npy, .npz or .csv")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if path.suffix == ".npy":
                return np.asarray(loaded)
            names = loaded.files
            if len(names) != 1 and "x" not in names:
                raise UsageError(f"{path} holds {', '.join(names) or 'nothing'}: expected one array, or one named x")
            return np.asarray(loaded["x" if "x" in names else names[0]])
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = "it holds pickled objects" if "pickle" in str(error).lower() else "it is damaged or not such a file"
        raise UsageError(f"can't read {path}: {reason}") from None


def _read_csv(path: Path) -> np.ndarray[Any, Any]:
    import csv

    import numpy as np

    rows: list[list[float]] = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for number, cells in enumerate(csv.reader(file), 1):
            if not cells:
                continue
            try:
                rows.append([float(cell) for cell in cells])
            except ValueError:
                column, cell = next((i, c) for i, c in enumerate(cells, 1) if not _is_number(c))
                raise UsageError(f"{path}, line {number}, column {column}: {cell!r} is not a number") from None
            if len(cells) != len(rows[0]):
                raise UsageError(f"{path}, line {number} has {len(cells)} columns, expected {len(rows[0])}")
    if not rows:
        raise UsageError(f"{path} is empty, expected rows of numbers")
    return np.array(rows)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def writable_folder(path: str) -> Path:
    """The folder, made if it is missing; `UsageError` where nothing can be written there."""
    import tempfile

    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"can't write to the folder {path}: {error.strerror or error}") from None
    return folder


def world(option: str) -> Any:
    """All ranks that mpiexec started, which from here on end together; `UsageError` without mpi4py."""
    import signal

    try:
        from mpi4py import MPI
    except ImportError:
        raise UsageError(f'{option} needs mpi4py and mpiexec: pip install "autograd_bn[mpi]"') from None
    from ..distributed import end_together

    end_together(MPI.COMM_WORLD)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a KeyboardInterrupt would leave the other ranks waiting
    return MPI.COMM_WORLD
