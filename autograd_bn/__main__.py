"""The command line: `autograd-bn` and `python -m autograd_bn`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from . import __version__
from .commands import UsageError, complain, flushed, words

COMMANDS = ("compare", "render", "check", "write", "train", "bench")


class _Paragraphs(argparse.HelpFormatter):
    """Descriptions filled to the width of the terminal, paragraph by paragraph; examples stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join([p if p.startswith("example") else fill(p, width, indent) for p in text.split("\n\n")])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autograd-bn",
        description="Batch norm as a node of a graph that you can open, check and trust. "
        "Without a command: compare, on the packaged digits.",
        epilog="Exit status: 0 pass, 1 mismatch, 2 usage.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f".commands.{name}", __package__)
        sub = subparsers.add_parser(
            name, help=module.HELP.partition("\n")[0], description=module.HELP, formatter_class=_Paragraphs
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run, parser=sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the result is its exit status: 0 pass, 1 mismatch, 2 usage."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["compare"]
    try:
        if sys.stdout is None:
            raise UsageError("standard output is closed")
        if argv is None:  # letters that a terminal lacks come escaped
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            args, unknown = _parser().parse_known_args(arguments)
            if unknown:
                args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
            status = int(args.run(args))
        except SystemExit as exit:  # --help, or what argparse has said already
            status = int(exit.code or 0)
        sys.stdout.flush()
    except UsageError as error:
        problem = str(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as in `... | head`, which has what it wants
        flushed(sys.stdout)
        return 2
    except OSError as error:  # a full disk
        problem = f"can't write {error.filename2 or error.filename or 'to standard output'}: {words(error)}"
        flushed(sys.stdout)
    else:
        return status
    complain(f"autograd-bn {arguments[0]}: {problem}")
    return 2


if __name__ == "__main__":
    sys.exit(main())
