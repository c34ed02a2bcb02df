"""How a job ends when one of its ranks leaves: no other may wait for it for ever."""

import atexit
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TAG = 32_749  # of the message with which a rank leaves
_GRACE = 2.0  # seconds for what a rank sent before it left
_waiting: dict[int, tuple[float, Any]] = {}  # the threads in an exchange: since when, and over which communicator
_left: dict[int, tuple[str, float]] = {}  # the ranks that have left: with what words, and when they were heard
_ended = threading.Event()
_watcher: threading.Thread | None = None


def end_together(comm: Any) -> None:
    """From now on the other ranks end, with status 1, where this one fails or leaves while they wait for it.

    An exception that nothing catches on the main thread ends the job at once. A rank that is waited for in an exchange
    and has left, by `sys.exit` or an error, or has failed in another thread, ends it within seconds, even if it leaves
    before its own first call. `BatchNorm` with `comm` and the first exchange of a job call this. `TypeError` for what
    isn't a communicator.
    """
    global _watcher
    if not callable(getattr(comm, "Allgather", None)):
        raise TypeError(f"comm is a {type(comm).__name__}, expected an mpi4py communicator such as MPI.COMM_WORLD")
    if _watcher or comm.size == 1 or not hasattr(comm, "Abort"):  # a picture's stand-in has no job to end
        return
    MPI = sys.modules["mpi4py.MPI"]
    _watcher = threading.Thread(target=_watch, args=(MPI,), daemon=True)
    if MPI.Query_thread() == MPI.THREAD_MULTIPLE:
        _watcher.start()
    report, report_thread = sys.excepthook, threading.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        report(kind, error, trace)
        _abort(MPI, f"rank {comm.rank} of {comm.size} failed, and so ends the job")

    def thread_hook(args: Any) -> None:
        report_thread(args)
        _say_goodbye(MPI, f"failed in a thread by {_named(args.exc_value)}")

    sys.excepthook, threading.excepthook = hook, thread_hook


@contextmanager
def waiting_for(comm: Any) -> Iterator[None]:
    """Inside the block this thread waits for all ranks of `comm`."""
    thread = threading.get_ident()
    _waiting[thread] = time.monotonic(), comm
    try:
        yield
    finally:
        del _waiting[thread]


def _watch(MPI: Any) -> None:
    """Listen for ranks that leave, and end the job where one of them is waited for."""
    while not _ended.wait(0.25):
        _listen(MPI)
        for rank, (words, heard) in _left.items():
            for since, comm in list(_waiting.values()):
                (there,) = MPI.Group.Translate_ranks(MPI.COMM_WORLD.group, [rank], comm.group)
                if there != MPI.UNDEFINED and time.monotonic() - max(heard, since) > _GRACE:
                    _abort(MPI, f"rank {rank} {words}; rank {MPI.COMM_WORLD.rank} waits for it, and so ends the job")


def _listen(MPI: Any) -> None:
    world = MPI.COMM_WORLD
    while world.iprobe(MPI.ANY_SOURCE, _TAG):
        status = MPI.Status()
        words = world.recv(source=MPI.ANY_SOURCE, tag=_TAG, status=status)
        _left[status.source] = words, time.monotonic()


def _abort(MPI: Any, line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    time.sleep(0.5)  # the launcher drops what it has not yet passed on when the job is aborted
    MPI.COMM_WORLD.Abort(1)


def _say_goodbye(MPI: Any, words: str) -> None:
    world = MPI.COMM_WORLD
    for rank in {*range(world.size)} - {world.rank, *_left}:
        world.isend(words, rank, _TAG)


@atexit.register
def _leave() -> None:
    MPI = sys.modules.get("mpi4py.MPI")
    if MPI is None or not MPI.Is_initialized() or MPI.Is_finalized():
        return
    _ended.set()
    if _watcher and _watcher.is_alive():
        _watcher.join()
    error = getattr(sys, "last_value", None)
    _listen(MPI)
    _say_goodbye(MPI, "left the job" if error is None else f"failed by {_named(error)}")
    # A message that nobody has received at the end may end the job by a signal, and who leaves now sends one too.
    until = time.monotonic() + 1
    while len(_left) < MPI.COMM_WORLD.size - 1 and time.monotonic() < until:
        time.sleep(0.01)
        _listen(MPI)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
