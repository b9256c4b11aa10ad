"""What a problem and a method have to satisfy, as functions that the tests call too."""

from bench.check.methods import METHOD_REQUIREMENTS, MethodSubject
from bench.check.problems import PROBLEM_REQUIREMENTS, ProblemSubject
from bench.check.requirement import Outcome, Requirement, Unmet, judge

__all__ = [
    "METHOD_REQUIREMENTS",
    "PROBLEM_REQUIREMENTS",
    "MethodSubject",
    "Outcome",
    "ProblemSubject",
    "Requirement",
    "Unmet",
    "judge",
]
