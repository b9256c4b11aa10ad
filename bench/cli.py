"""`python -m bench VERB`: the command line."""

from __future__ import annotations

import importlib
import os
import sys
import warnings

import jfbcore
from bench.arguments import Parser
from bench.packages import DISTRIBUTION, NAMES, check_names, extra_of

#: modules of bench.commands, in the order of the help
VERBS = (
    *("list", "check", "run", "train", "evaluate", "plot", "report", "reference"),
    *("verify", "gate", "predict", "roofline", "validate", "export", "compare", "release"),
    *("where",),
)


#: verbs whose exit code is a verdict, and theirs where the reader left before there was one: what
#: a shell reports of a process that SIGPIPE has ended
_JUDGES = ("check", "compare", "gate", "reference", "release", "validate", "verify")
_BROKEN_PIPE = 128 + 13


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit code. Bad input is one line on stderr and exit code 2."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = Parser(
        prog="python -m bench",
        description="Benchmark of implicit-layer gradients in optimal control.",
    )
    parser.add_argument(
        "--version", action="version", version=f"{DISTRIBUTION} {jfbcore.__version__}"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name in VERBS:
        module = importlib.import_module(f"bench.commands.{name}")
        verb = verbs.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    args.arguments = arguments
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        code = None
        try:
            check_names()
            code = args.run(args)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            # The reader of our output went away; nothing more to say, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if code is not None:
                return code
            return _BROKEN_PIPE if args.verb in _JUDGES else 0
        except KeyboardInterrupt:
            print(f"bench {args.verb}: interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            if (words := _in_words(error)) is None:
                raise
            print(f"bench {args.verb}: error: {words}", file=sys.stderr)
            return 2


def _in_words(error: Exception) -> str | None:
    """One line for an error that the user can do something about, None for any other."""
    if isinstance(error, ValueError | TypeError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or NAMES[0]).partition(".")[0]
        if missing in NAMES:
            return None
        install = f"pip install '{DISTRIBUTION}[{extra_of(missing)}]'"
        return f"needs {missing}, which is not installed; {install}"
    if isinstance(error, MemoryError | RuntimeError):
        from bench.failures import ran_out

        return None if (reason := ran_out(error)) is None else f"out of memory: {reason}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return None


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {message}", file=sys.stderr)
