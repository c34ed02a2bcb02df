"""What code that is judged may reach beyond its arrays: nothing, whatever it is called with."""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from ..gradcheck import Unjudgeable

# Python's audit events of what changes files, starts programs or calls other machines; of `open` its flags say it.
_BEYOND = re.compile(
    r"os\.(?!listdir|scandir|f?walk|listxattr|getxattr|putenv|unsetenv|add_dll)"
    r"|socket\.(?!__new__|gethostname)|(shutil|subprocess|sqlite3|webbrowser|pty|urllib|winreg|syslog)\."
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_UNHEARD = (("torch.serialization", "_open_zipfile_writer"), ("cv2", "imwrite"))  # C++ opens the file, without an event
ALL = 0  # no thread's number
_threads = set[int]()


class Refused(Unjudgeable, OSError):
    """Code that is judged would reach beyond its arrays; it was kept from it."""


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse what reaches out, but what imports and compilers keep for themselves."""
    writes = event == "open" and (arguments[2] or 0) & _WRITES
    if _threads & {ALL, threading.get_ident()} and (writes or _BEYOND.match(event)):
        said = [os.fspath(value) for value in arguments if isinstance(value, str | bytes | os.PathLike)]
        if not any("__pycache__" in str(value) or value == os.devnull for value in said):
            call = f"{event}({repr(said[0])[:60] if said else ''})"
            raise Refused(f"it calls {call}, but what is judged may touch nothing beyond its arrays")


_listening = cache(partial(sys.addaudithook, _hear))


def _heard(opener: Any) -> Any:
    """What opens a file without Python's hearing of it, so that it does."""

    def call(first: Any, *others: Any, **named: Any) -> Any:
        if isinstance(first, str | os.PathLike):
            _hear("open", (first, None, os.O_WRONLY))
        return opener(first, *others, **named)

    return call


@contextmanager
def harmless(thread: int | None = None) -> Iterator[None]:
    """Let nothing on this thread, or all, write or delete a file, start a program or call a machine: `Refused`."""
    thread = threading.get_ident() if thread is None else thread
    if _threads & {ALL, thread}:
        yield
        return
    _listening()
    openers = [(sys.modules[module], name) for module, name in _UNHEARD if module in sys.modules]
    before = [(module, name, getattr(module, name)) for module, name in openers]
    for module, name, opener in before:
        setattr(module, name, _heard(opener))
    _threads.add(thread)
    try:
        yield
    finally:
        _threads.discard(thread)
        for module, name, opener in before:
            setattr(module, name, opener)
