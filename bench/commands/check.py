"""Check that a problem or a method can be measured: every requirement, and what to do.

Exits with 0 where all hold and with 1 where one does not.
"""

from __future__ import annotations

import argparse

HELP = "check what a problem or a method must satisfy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        metavar="NAME",
        help="a problem or a method: a name of `bench list`, of an entry point, "
        "package.module:Attribute or path/to/file.py:Attribute",
    )
    parser.add_argument(
        "--problem", metavar="P", help="check a method on this problem (default: the suite's own)"
    )


def run(args: argparse.Namespace) -> int:
    from bench import plugins
    from bench.registry import METHODS, PROBLEMS

    kind = _kind(args.name)
    shown = plugins.shown(args.name)
    if kind is PROBLEMS and args.problem is not None:
        raise ValueError(f"`problem` is for checking a method, and {shown} is a problem")
    from bench.check.methods import METHOD_REQUIREMENTS, MethodSubject
    from bench.check.problems import PROBLEM_REQUIREMENTS, ProblemSubject
    from bench.check.requirement import Requirement, judge

    if kind is METHODS:
        method = METHODS.resolve(args.name)
        subject: object = MethodSubject(method)
        if args.problem is not None:
            subject = MethodSubject(method, (PROBLEMS.resolve(args.problem),))
        requirements: tuple[Requirement, ...] = METHOD_REQUIREMENTS
    else:
        subject = ProblemSubject(PROBLEMS.resolve(args.name))
        requirements = PROBLEM_REQUIREMENTS
    print(f"{shown}, a {'method' if kind is METHODS else 'problem'}")
    held = 0
    for outcome in judge(requirements, subject):
        held += outcome.holds
        remark = f": {outcome.remark}" if outcome.remark else ""
        if outcome.holds:
            print(f"OK    {outcome.requirement.what}{remark}", flush=True)
        else:
            print(f"FAIL  {outcome.requirement.what}{remark}")
            print(f"      do: {outcome.requirement.remedy}", flush=True)
    print(f"{held} of {len(requirements)} requirements hold")
    return 0 if held == len(requirements) else 1


def _kind(name: str):
    """The kind of thing that `name` names; ValueError in one line where it is neither."""
    from bench import plugins
    from bench.registry import METHODS, PROBLEMS

    kinds = (METHODS, PROBLEMS)
    if not plugins.is_specification(name):
        for kind in kinds:
            if name in kind.names or name in plugins.entry_points(kind.group):
                return kind
        allowed = [*PROBLEMS.names, *METHODS.names]
        for kind in kinds:
            allowed += plugins.entry_points(kind.group)
        raise ValueError(
            f"`name` must be a problem or a method ({', '.join(allowed)}), package.module:"
            f"Attribute or path/to/file.py:Attribute, got {name!r}"
            f"{plugins.close_matches(name, allowed)}"
        )
    value = plugins.load("name", name).value
    for kind in kinds:
        try:
            kind.accept(value)
        except TypeError:
            continue
        return kind
    raise ValueError(
        f"`name` {plugins.shown(name)} is neither a problem (a subclass of jfbcore.problems."
        "Problem) nor a method (a baselines.Method, a jfbcore.jfb.GradientEstimator or a class of "
        f"jfbcore.policy.Policy), but {value!r}"
    )
