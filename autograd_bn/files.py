"""Files that are written whole or not at all."""

import io
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def path_of(path: Any) -> Path:
    """A path, or a `TypeError`."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path is a {type(path).__name__}, expected a string or a pathlib.Path")
    return Path(path)


def ending(path: str | Path) -> str:
    """How a path ends, in the words of an error."""
    suffix = Path(path).suffix
    return f"ends in {suffix!r}" if suffix else "has no suffix"


def is_one_file(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths lead to the same file, and it is there."""
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def _opened(file: Path, mode: str, shown: Path) -> IO[bytes]:
    try:
        return file.open(mode)
    except OSError as error:
        raise OSError(error.errno, f"path can't be written: {error.strerror}", str(shown)) from None


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write in the block, which takes the place of the one at `path` when the block ends without an error.

    It is written beside `path`, flushed to the disk and renamed: whatever happens on the way, and however many threads
    write at once, `path` is one whole file. It keeps its mode, a link keeps leading to it, and a device is written to.
    """
    shown, path = path_of(path), Path(os.path.realpath(path))
    try:
        mode = path.stat().st_mode
    except OSError:  # which opening it will say
        mode = 0
    if mode and not stat.S_ISREG(mode):  # a device or a pipe, or a folder, which raises
        with _opened(path, "wb", shown) as device:
            content = io.BytesIO()  # a device can't go back, as the writer of an archive does
            yield content
            device.write(content.getbuffer())
        return
    unfinished = path.with_name(f".{secrets.token_hex(8)}.unfinished")
    new = _opened(unfinished, "xb", shown)
    try:
        with new as file:
            if mode and os.name == "posix":
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    if os.name == "posix":  # the rename itself is safe once the folder is on the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
