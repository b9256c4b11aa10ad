"""`bench check`: the requirements hold for everything registered, and say what is wrong."""

from __future__ import annotations

import pytest

from baselines import METHODS
from bench.check.methods import METHOD_REQUIREMENTS, MethodSubject
from bench.check.problems import PROBLEM_REQUIREMENTS, ProblemSubject
from bench.check.requirement import judge
from jfbcore.problems import PROBLEMS
from tests.bench import outside
from tests.bench.helpers import run_cli


@pytest.mark.parametrize("requirement", PROBLEM_REQUIREMENTS, ids=lambda r: r.what)
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_meets(name, requirement):
    requirement.holds(ProblemSubject(PROBLEMS[name], agents=(1, 2, 3, 7)))


@pytest.mark.parametrize("requirement", METHOD_REQUIREMENTS, ids=lambda r: r.what)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_meets(name, requirement):
    requirement.holds(MethodSubject(METHODS[name]))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_methods_are_checked_on_the_problem_asked_for(problem):
    subject = MethodSubject(METHODS["jfb"], (PROBLEMS[problem],))
    assert all(outcome.holds for outcome in judge(METHOD_REQUIREMENTS, subject))


def assert_failed(out: str, requirement: str, seen: str) -> None:
    lines = out.splitlines()
    (index,) = [i for i, line in enumerate(lines) if f"FAIL  {requirement}" in line]
    assert seen in lines[index]
    assert lines[index + 1].startswith("      do: ")


class TestCommand:
    def test_a_problem_in_a_file(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        outside.write(tmp_path, "di.py", outside.DOUBLE_INTEGRATOR)
        code, out, err = run_cli(capsys, "check", "di.py:DoubleIntegrator")
        assert (code, err) == (0, ""), out
        lines = out.splitlines()
        assert lines[0] == "di.py:DoubleIntegrator, a problem"
        assert all(line.startswith("OK") for line in lines[1:-1])
        number = len(PROBLEM_REQUIREMENTS)
        assert lines[-1] == f"{number} of {number} requirements hold"

    @pytest.mark.parametrize("attribute", ["Blend", "quarter", "method", "Linear"])
    def test_a_method_in_a_file(self, attribute, tmp_path, capsys):
        path = outside.write(tmp_path, "mine.py", outside.METHODS)
        code, out, _ = run_cli(capsys, "check", f"{path}:{attribute}", "--problem", "quadrotor")
        assert code == 0, out
        assert out.startswith(f"mine.py:{attribute}, a method\n")
        assert "bytes saved at K = 5" in out

    @pytest.mark.parametrize(
        ("correct", "wrong", "requirement", "seen"),
        [
            (
                "torch.exp(0.5 * u.square().sum(1))\n\n    def terminal",
                "torch.exp(0.5 * u.square().sum(1, keepdim=True))\n\n    def terminal",
                "formulas have their shapes",
                "running_cost` returned shape (3, 1), expected (3,)",
            ),
            (
                "self._normal(batch, self.state_dim, generator)",
                "torch.randn(batch, self.state_dim, dtype=self.dtype)",
                "initial states follow their generator",
                "two generators of one seed give different states",
            ),
            (
                "5.0 * z.square().sum(1)",
                "5.0 * z.square().sum(1) / z[:, 0].mean()",
                "formulas have their shapes",
                "terminal_cost` differs from its value for one sample alone",
            ),
            (
                "2 * n_agents, n_agents",
                "0, n_agents",
                "is built from n_agents",
                "`state_dim` is 0",
            ),
        ],
    )
    def test_a_wrong_problem_is_told_what_to_do(
        self, correct, wrong, requirement, seen, tmp_path, capsys
    ):
        assert correct in outside.DOUBLE_INTEGRATOR
        path = outside.write(tmp_path, "di.py", outside.DOUBLE_INTEGRATOR.replace(correct, wrong))
        code, out, err = run_cli(capsys, "check", f"{path}:DoubleIntegrator")
        assert (code, err) == (1, "")
        assert_failed(out, requirement, seen)

    @pytest.mark.parametrize(
        ("override", "requirement", "seen"),
        [
            (
                "def grad(self, u): return -super().grad(u)",
                "formulas have their shapes",
                "grad` differs from the gradient of H",
            ),
            (
                "def curvature_scaling(self, u): return u.detach()",
                "formulas have their shapes",
                "must be positive",
            ),
            (
                "def newton_direction(self, u, r): return r * u",
                "formulas have their shapes",
                "must be an ascent direction",
            ),
            (
                "def hvp(self, u, v): return super().hvp(u, v) + v.cumsum(1)",
                "formulas have their shapes",
                "hvp` differs from the Hessian product of H",
            ),
        ],
    )
    def test_a_wrong_override_is_told_what_to_do(
        self, override, requirement, seen, tmp_path, capsys
    ):
        content = f"{outside.DOUBLE_INTEGRATOR}{outside.OVERRIDE}    {override}\n"
        path = outside.write(tmp_path, "di.py", content)
        code, out, err = run_cli(capsys, "check", f"{path}:DoubleIntegrator")
        assert (code, err) == (1, "")
        assert_failed(out, requirement, seen)

    @pytest.mark.parametrize(
        ("correct", "wrong", "requirement"),
        [
            (
                "        if not torch.is_grad_enabled():\n            return solved\n",
                "        solved.control.requires_grad_()\n"
                "        if not torch.is_grad_enabled():\n            return solved\n",
                "decides the same without grad mode",
            ),
            (
                "control = one + self.share",
                "control = 1.1 * one + self.share",
                "finds the maximiser of H",
            ),
            (
                "control = one + self.share * (fixed_point_map(one) - one)",
                "control = (one + 0.0).detach()",
                "decides a finite control with a graph",
            ),
        ],
    )
    def test_a_wrong_method_is_told_what_to_do(self, correct, wrong, requirement, tmp_path, capsys):
        assert correct in outside.METHODS
        path = outside.write(tmp_path, "mine.py", outside.METHODS.replace(correct, wrong))
        code, out, _ = run_cli(capsys, "check", f"{path}:Blend")
        assert code == 1
        assert f"FAIL  {requirement}" in out
