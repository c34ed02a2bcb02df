"""Checkpoints: named arrays in one `.npz` file, never pickled, and never half written."""

import io
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..engine.node import Array
from ..engine.tensor import values_of
from ..files import path_of, whole

MOST = 65535  # what an archive can count and a name can have of bytes


class TooLarge(RuntimeError):
    """A file whose arrays would take more memory than allowed."""


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write named arrays (numbers, strings, tensors) to `path` as an uncompressed `.npz` file.

    Whatever happens on the way, `path` is one whole file, the old or the new. Before anything is written:
    `TypeError` for arguments in the other order, names that aren't strings, masked arrays and arrays of Python objects,
    `ValueError` for what `load` couldn't read: too many arrays, names with a NUL or too long.

    >>> import tempfile
    >>> import autograd_bn as ag
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ag.save(f"{folder}/net.npz", {"weight": [1.0, 2.0]})
    ...     ag.load(f"{folder}/net.npz")
    {'weight': array([1., 2.])}
    """
    if isinstance(state, str | os.PathLike):
        raise TypeError(f"state is a {type(state).__name__}, expected save(path, state)")
    if not isinstance(state, Mapping):
        raise TypeError(f"state is a {type(state).__name__}, expected arrays by name: a model's state_dict()")
    arrays: dict[str, Array] = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise TypeError(f"state has the name {name!r}, expected strings")
        try:
            array = arrays[name] = values_of(value)
        except ValueError:
            raise ValueError(f"state[{name!r}] has rows of unlike lengths, expected an array") from None
        if "\0" in name or len(f"{name}.npy".encode()) > MOST:
            raise ValueError(f"state has the name {name[:40]!r}, which a checkpoint can't hold")
        if array.dtype.hasobject:
            raise TypeError(f"state[{name!r}] is an array of Python objects, which a checkpoint can't hold")
    if len(arrays) > MOST:
        raise ValueError(f"state has {len(arrays)} arrays, a checkpoint holds at most {MOST}")
    with whole(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def load(path: str | os.PathLike[str], *, limit: int = 1 << 30) -> dict[str, Array]:
    """Read the named arrays of an `.npz` file; `ValueError` where it is damaged or holds objects: none is unpickled.

    `RuntimeError` for a compressed file whose arrays are larger than the file and than `limit` bytes.
    """
    arrays: dict[str, Array] = {}
    content = path_of(path).read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if len(archive.infolist()) != int.from_bytes(content[-12:-10], "little"):  # zipfile takes less for all
                raise ValueError("its list of members is damaged")
            if (size := sum(member.file_size for member in archive.infolist())) > max(limit, len(content)):
                raise TooLarge(f"{os.fspath(path)} unpacks to {size:,} bytes; load(path, limit={size}) allows it")
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name == member.filename or name in arrays:
                    raise ValueError(f"unexpected member {member.filename!r}")
                array = io.BytesIO(archive.read(member))  # whole, so that its checksum is known to be right
                arrays[name] = np.lib.format.read_array(array, allow_pickle=False)
    except TooLarge:
        raise
    except Exception as error:  # whatever a damaged file leads to
        raise ValueError(f"{os.fspath(path)} is not an intact checkpoint: {error}") from None
    return arrays
