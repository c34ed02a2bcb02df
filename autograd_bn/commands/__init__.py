"""The commands of the command line, one module each: `HELP`, `add_arguments(parser)`, `run(args) -> exit status`.

Here is what they share: their errors, how they print, and the bar that shows how far they are.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


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


@contextmanager
def progress(total: int, text: str, done: int = 0, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, where tqdm is installed; the function moves it on by a step and sets the text beside it."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda text: None
        return
    disable = True if quiet or sys.stderr is None else None  # None: where it is no terminal
    with tqdm(total=total, initial=done, disable=disable, leave=False, dynamic_ncols=True) as bar:
        bar.set_postfix_str(text)

        def show(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update()

        yield show
