"""The command line: `autograd-bn` and `python -m autograd_bn`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from . import __version__
from .commands import UsageError

COMMANDS = ("compare", "render", "check", "train", "bench")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autograd-bn",
        description="Batch norm as a node of a graph that you can open, check and trust. "
        "Without a command: compare, on the packaged digits.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f".commands.{name}", __package__)
        summary, _, details = module.HELP.partition("\n\n")
        sub = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary}\n\n{details}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the result is its exit status: 0 pass, 1 mismatch, 2 usage."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(given or ["compare"])
    if args.command is None:
        _parser().error("which command? " + ", ".join(COMMANDS))
    try:
        status = int(args.run(args))
        sys.stdout.flush()
    except UsageError as error:
        print(f"autograd-bn {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


if __name__ == "__main__":
    sys.exit(main())
