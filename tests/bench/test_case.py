"""Cases, presets and filters: pure data, no measurement."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baselines import METHODS
from bench.build import build_map, build_problem, build_solver, compiling_pays
from bench.case import (
    DEFAULT_BATCH,
    DEFAULT_STEPS,
    GRADIENT_NAMES,
    MAP_NAMES,
    PROBLEM_NAMES,
    SOLVER_NAMES,
    VARIANTS,
    Case,
)
from bench.presets import MAIN_GRADIENTS, PRESETS, TIMEOUTS, select
from bench.presets.names import FEW_GRADIENTS, JFB_MAPS
from bench.recipes import RECOMMENDED
from bench.registry import has_inner_problem
from bench.training import config as training_config
from jfbcore.maps import MAPS
from jfbcore.problems import PROBLEMS
from jfbcore.solvers import SOLVERS

BASE = Case(problem="quadrotor", n_agents=6, gradient="jfb", batch_size=4, n_steps=8)
DIRECT = replace(BASE, gradient="direct")


class TestNames:
    """The names are repeated in bench.case so that listing needs no torch; they must not drift."""

    def test_names_are_those_of_the_registries_in_their_order(self):
        assert tuple(PROBLEMS) == PROBLEM_NAMES
        assert tuple(METHODS) == GRADIENT_NAMES
        assert tuple(SOLVERS) == SOLVER_NAMES
        assert tuple(MAPS) == MAP_NAMES

    @pytest.mark.parametrize("name", METHODS)
    def test_which_methods_have_an_inner_problem_is_their_own_word(self, name):
        assert has_inner_problem(name) == METHODS[name].inner_problem
        assert replace(BASE, gradient=name).inner_problem == METHODS[name].inner_problem

    @pytest.mark.parametrize("name", PROBLEM_NAMES)
    def test_default_discretisation_is_the_problems_own(self, name):
        problem = PROBLEMS[name](n_agents=1)
        assert DEFAULT_STEPS[name] == problem.n_steps

    def test_every_preset_has_a_timeout(self):
        assert set(TIMEOUTS) == set(PRESETS)


class TestId:
    """Ids name files and tracked history, so they are pinned here: a change loses the past."""

    @pytest.mark.parametrize(
        ("case", "expected"),
        [
            (BASE, "quadrotor-n6-jfb-scaled-picard-max500-b4-t8-float32-cpu"),
            (
                replace(BASE, gradient="unrolled", tolerance=None, max_iterations=5),
                "quadrotor-n6-unrolled-scaled-picard-k5-b4-t8-float32-cpu",
            ),
            (DIRECT, "quadrotor-n6-direct-b4-t8-float32-cpu"),
            (replace(DIRECT, network="shared"), "quadrotor-n6-direct-shared-b4-t8-float32-cpu"),
            (
                Case(
                    problem="consumption",
                    variant="released",
                    n_agents=100,
                    gradient="jfb-3",
                    map="plain",
                    step_size=1e-4,
                    solver="anderson",
                    max_iterations=499,
                    tolerance=0.1,
                    batch_size=128,
                    n_steps=100,
                    dtype="float64",
                    device="cuda",
                ),
                "consumption-released-n100-jfb-3-plain-anderson-a0.0001-max499-tol0.1-b128-t100"
                "-float64-cuda",
            ),
        ],
    )
    def test_is_pinned(self, case, expected):
        assert case.id == expected

    @pytest.mark.parametrize("preset", PRESETS)
    def test_is_unique_within_a_preset(self, preset):
        ids = [case.id for case in PRESETS[preset]()]
        assert len(ids) == len(set(ids))

    @pytest.mark.parametrize("preset", PRESETS)
    def test_is_a_plain_file_name(self, preset):
        for case in PRESETS[preset]():
            assert set(case.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.+")
            assert len(case.id) < 200

    @pytest.mark.parametrize("preset", PRESETS)
    def test_a_preset_is_the_same_every_time(self, preset):
        assert list(PRESETS[preset]()) == list(PRESETS[preset]())

    @pytest.mark.parametrize(
        "change",
        [
            {"problem": "bicycle"},
            {"n_agents": 7},
            {"gradient": "implicit"},
            {"map": "plain"},
            {"solver": "anderson"},
            {"max_iterations": 499},
            {"tolerance": None},
            {"tolerance": 1e-3},
            {"batch_size": 5},
            {"n_steps": 9},
            {"dtype": "float64"},
            {"device": "cuda"},
            {"map": "plain", "step_size": 0.5},
            {"recipe": "recommended", "train_seconds": 5.0, "learning_rate": 0.5},
        ],
        ids=lambda change: "-".join(change),
    )
    def test_every_field_that_changes_the_measurement_changes_the_id(self, change):
        assert replace(BASE, **change).id != BASE.id


class TestDictionary:
    @pytest.mark.parametrize("preset", PRESETS)
    def test_round_trip(self, preset):
        for case in PRESETS[preset]():
            found = case.to_dict(seed=3)
            assert found["id"] == case.id
            assert found["seed"] == 3
            back = Case.from_dict(found)
            assert back.id == case.id
            assert back.to_dict(seed=3) == found
            if case.gradient != "direct":
                assert back == case

    def test_names_every_field_of_the_record_schema(self):
        assert set(BASE.to_dict(0)) >= {
            "id",
            "problem",
            "n_agents",
            "gradient",
            "map",
            "solver",
            "max_iterations",
            "batch_size",
            "n_steps",
            "dtype",
            "device",
            "seed",
        }

    def test_the_direct_policy_has_no_inner_problem(self):
        case = replace(DIRECT, map="plain", step_size=1e-4)
        found = case.to_dict(0)
        for name in ("map", "solver", "max_iterations", "tolerance", "step_size"):
            assert found[name] is None
        assert found["network"] == "dense"
        # Records from before direct policies had a choice of networks.
        assert Case.from_dict(found | {"network": None}) == DIRECT

    def test_an_unknown_field_is_a_type_error_that_names_it(self):
        with pytest.raises(TypeError, match="momentum"):
            Case.from_dict(BASE.to_dict(0) | {"momentum": 0.9})
        with pytest.raises(TypeError, match="momentum"):
            Case(  # type: ignore[call-arg]
                problem="quadrotor",
                n_agents=1,
                gradient="jfb",
                batch_size=1,
                n_steps=1,
                momentum=0.9,
            )


class TestBadValues:
    @pytest.mark.parametrize(
        ("field", "value", "error"),
        [
            ("problem", "pendulum", ValueError),
            ("gradient", "jfb-2", ValueError),
            ("map", "scale", ValueError),
            ("solver", "broyden", ValueError),
            ("dtype", "float16", ValueError),
            ("device", "tpu", ValueError),
            ("variant", "paper", ValueError),
            ("variant", "concave", ValueError),  # of consumption only
            ("n_agents", 0, ValueError),
            ("n_agents", -1, ValueError),
            ("n_agents", 1.0, TypeError),
            ("n_agents", True, TypeError),
            ("max_iterations", 0, ValueError),
            ("max_iterations", "5", TypeError),
            ("batch_size", 0, ValueError),
            ("batch_size", None, TypeError),
            ("n_steps", 0, ValueError),
            ("train_steps", -1, ValueError),
            ("tolerance", 0.0, ValueError),
            ("tolerance", -1e-4, ValueError),
            ("tolerance", float("nan"), ValueError),
            ("tolerance", "1e-4", TypeError),
            ("step_size", 0.0, ValueError),
            ("step_size", float("inf"), ValueError),
        ],
    )
    def test_the_field_and_the_value_are_named(self, field, value, error):
        with pytest.raises(error, match=f"`{field}`") as caught:
            replace(BASE, **{field: value})
        assert str(value) in str(caught.value)

    def test_a_step_size_belongs_to_the_plain_map(self):
        """Silently replacing the scaled map by a plain one would mislabel the record."""
        with pytest.raises(ValueError, match="`step_size`"):
            replace(BASE, map="scaled", step_size=0.5)

    def test_a_learning_rate_belongs_to_a_recipe(self):
        trained = replace(BASE, recipe="recommended", train_seconds=5.0, learning_rate=0.5)
        assert training_config(trained, seed=0).learning_rate == 0.5
        with pytest.raises(ValueError, match=r"`learning_rate` 0\.5"):
            replace(BASE, learning_rate=0.5)
        with pytest.raises(ValueError, match="`learning_rate` must be > 0, got -1"):
            replace(trained, learning_rate=-1.0)


class TestSmoke:
    CASES = tuple(PRESETS["smoke"]())

    @pytest.mark.parametrize("n_agents", [1, 6, 20, 100])
    def test_quadrotors_with_every_main_gradient(self, n_agents):
        found = {
            c.gradient for c in self.CASES if c.problem == "quadrotor" and c.n_agents == n_agents
        }
        assert found >= set(MAIN_GRADIENTS)

    @pytest.mark.parametrize("problem", ["bicycle", "consumption"])
    def test_the_other_problems_with_every_main_gradient(self, problem):
        assert {c.gradient for c in self.CASES if c.problem == problem} >= set(MAIN_GRADIENTS)

    def test_every_problem_of_the_suite_is_there(self):
        for problem in PROBLEM_NAMES:
            found = {c.gradient for c in self.CASES if c.problem == problem}
            assert found >= set(FEW_GRADIENTS)

    def test_main_gradients_are_one_of_each_kind(self):
        assert set(MAIN_GRADIENTS) >= {
            "jfb",
            "implicit",
            "unrolled",
            "cvxpylayers",
            "torchdeq",
            "direct",
        }

    @pytest.mark.parametrize("gradient", ["jfb", "unrolled"])
    @pytest.mark.parametrize("iterations", [5, 500])
    @pytest.mark.parametrize("n_agents", [6, 100])
    def test_the_memory_claim_at_exact_iteration_counts(self, gradient, iterations, n_agents):
        found = [
            c
            for c in self.CASES
            if (c.problem, c.gradient, c.n_agents) == ("quadrotor", gradient, n_agents)
            and c.tolerance is None
            and c.max_iterations == iterations
        ]
        assert len(found) == 1

    def test_the_iteration_sweep_differs_in_nothing_but_the_count(self):
        few, many = (
            next(
                c
                for c in self.CASES
                if c.n_agents == 6 and c.gradient == "jfb" and c.id.find(f"-k{count}-") > 0
            )
            for count in (5, 500)
        )
        assert replace(many, max_iterations=5) == few

    @pytest.mark.parametrize("n_agents", [1, 6, 20, 100])
    def test_jfb_is_there_on_each_of_its_maps_alike(self, n_agents):
        rows = [
            c
            for c in self.CASES
            if (c.problem, c.gradient, c.n_agents) == ("quadrotor", "jfb", n_agents)
            and c.train_steps
            and c.solver in ("picard", "newton")
        ]
        for map_name, solver in JFB_MAPS:
            (row,) = (c for c in rows if (c.map, c.solver) == (map_name, solver))
            assert replace(row, map="scaled", solver="picard") in rows

    def test_needs_no_gpu(self):
        assert {c.device for c in self.CASES} == {"cpu"}


class TestOtherPresets:
    def test_cpu_and_gpu_measure_the_same_on_their_own_device(self):
        assert {c.device for c in PRESETS["cpu"]()} == {"cpu"}
        assert {c.device for c in PRESETS["gpu"]()} == {"cuda"}

    @pytest.mark.parametrize("preset", ["cpu", "gpu"])
    def test_cover_problems_agents_and_main_gradients(self, preset):
        cases = list(PRESETS[preset]())
        assert {c.problem for c in cases} == {"quadrotor", "bicycle", "consumption"}
        assert {c.n_agents for c in cases} == {1, 6, 20, 50, 100}
        assert {c.gradient for c in cases} >= set(MAIN_GRADIENTS)

    def test_rates_are_twice_and_half_the_recipes_own(self):
        rates: dict[tuple[str, str], set[float | None]] = {}
        for case in PRESETS["rates"]():
            rates.setdefault((case.problem, case.gradient), set()).add(case.learning_rate)
        assert set(rates) == {
            (problem, gradient)
            for problem in ("quadrotor", "consumption", "bicycle")
            for gradient in MAIN_GRADIENTS
        }
        for (problem, _), found in rates.items():
            own = RECOMMENDED[problem]["learning_rate"]
            assert found == {2 * own, own / 2}

    def test_targets_train_jfb_alike_where_it_is_biased_and_where_it_is_exact(self):
        rows = [
            c for c in PRESETS["targets"]() if (c.problem, c.gradient) == ("rotor-quadrotor", "jfb")
        ]
        assert {c.map for c in rows} == {"scaled", "newton"}
        assert len({replace(c, map="scaled") for c in rows}) == 1

    def test_a_hundred_of_everything_is_trained_by_jfb(self):
        """What the claim of scale rests on: every problem of the paper, quadrotors on every map."""
        trainings = (*PRESETS["targets"](), *PRESETS["scale"]())
        many = [c for c in trainings if c.n_agents == 100]
        assert {c.gradient for c in many} == {"jfb"}
        maps = {c.map for c in many if c.problem == "quadrotor"}
        assert maps == {"plain", "scaled", "newton"}
        rest = [c.problem for c in many if c.problem != "quadrotor"]
        assert sorted(rest) == ["bicycle", "consumption", "liquidation"]

    def test_growth_has_what_targets_leave_out(self):
        cases = [*PRESETS["targets"](), *PRESETS["growth"]()]
        assert len({c.id for c in cases}) == len(cases)
        jfb = {(c.problem, c.n_agents) for c in cases if c.gradient == "jfb"}
        assert jfb == {(c.problem, c.n_agents) for c in cases if c.gradient == "direct"}
        assert {problem for problem, _ in jfb} == set(PROBLEM_NAMES)
        assert {n for problem, n in jfb if problem == "quadrotor"} == {1, 6, 20, 100}
        for n_agents in (1, 6, 20, 100):
            own = [c for c in cases if (c.problem, c.n_agents) == ("quadrotor", n_agents)]
            assert {(c.map, c.solver) for c in own if c.gradient == "jfb"} == set(JFB_MAPS)

    def test_targets_compile_every_method_that_can_be(self):
        """Held to what the policies say, on the smallest case of each problem and method."""
        smallest = {
            (c.problem, c.gradient): c
            for c in sorted(
                (*PRESETS["targets"](), *PRESETS["growth"]()),
                key=lambda c: (-c.n_agents, c.compile),
            )
        }
        for case in smallest.values():
            assert case.compile == compiling_pays(case, training_config(case, 0)), case.id

    def test_the_field_is_every_method_at_every_size(self):
        cases = list(PRESETS["field"]())
        for n_agents in (1, 20, 100):
            found = [c for c in cases if c.n_agents == n_agents]
            assert {c.gradient for c in found} == set(GRADIENT_NAMES)
            maps = {(c.map, c.solver) for c in found if c.gradient == "jfb"}
            assert maps == set(JFB_MAPS)
            # One batch and one grid, or step times would not compare.
            assert len({(c.batch_size, c.n_steps, c.tolerance) for c in found}) == 1
        assert {c.device for c in cases} == {"cpu"}
        assert not any(c.train_steps or c.recipe for c in cases)

    def test_released_settings(self):
        for case in PRESETS["released"]():
            if case.gradient != "direct":  # which has no inner iteration to set
                assert case.map == "plain"
                assert case.step_size == 1e-4
                assert case.max_iterations == 499
                # absolute in the released code, a multiple of the gradient scale in a case
                scale = build_problem(case).gradient_scale
                assert case.tolerance * scale == pytest.approx(0.1)
            assert case.batch_size == DEFAULT_BATCH[case.problem]
            assert case.n_steps == DEFAULT_STEPS[case.problem]


class TestSelect:
    def test_without_filters_everything_in_order(self):
        assert select("smoke", []) == list(PRESETS["smoke"]())

    def test_filters_narrow_one_another(self):
        found = select("smoke", ["problem=quadrotor", "n_agents=6", "gradient=jfb"])
        expected = [
            c
            for c in PRESETS["smoke"]()
            if (c.problem, c.n_agents, c.gradient) == ("quadrotor", 6, "jfb")
        ]
        assert found == expected
        assert found

    def test_alternatives(self):
        found = select("smoke", ["gradient=jfb,direct"])
        assert {c.gradient for c in found} == {"jfb", "direct"}

    def test_by_id(self):
        wanted = "quadrotor-n6-jfb-scaled-picard-k5-b4-t8-float32-cpu"
        assert [c.id for c in select("smoke", [f"id={wanted}"])] == [wanted]

    def test_none_and_numbers_are_written_as_in_the_id(self):
        assert {c.tolerance for c in select("smoke", ["tolerance=none"])} == {None}
        assert {c.tolerance for c in select("smoke", ["tolerance=0.0001"])} == {1e-4}
        assert {c.timed for c in select("smoke", ["timed=False"])} == {False}

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("tolerance=none", "tolerance=null"),
            ("tolerance=0.0001", "tolerance=1e-4"),
            ("timed=False", "timed=false"),
            ("n_agents=6", "n_agents=6.0"),
        ],
    )
    def test_a_value_may_be_spelled_in_several_ways(self, one, other):
        assert select("smoke", [one]) == select("smoke", [other])

    def test_the_device_can_be_overridden(self):
        assert {c.device for c in select("smoke", [], device="cuda")} == {"cuda"}

    @pytest.mark.parametrize(
        ("preset", "filters", "named"),
        [
            ("night", [], "'night'"),
            ("smoke", ["problem"], "'problem'"),
            ("smoke", ["agents=6"], "'agents'"),
            ("smoke", ["n_agents=7"], "n_agents=7 leaves .*: n_agents may be 1, .* got '7'"),
            ("smoke", ["gradient=jfbb"], "gradient may be jfb, .*, direct"),
            ("smoke", ["tolerance=1", "problem=bicycle"], "tolerance may be 0.0001, none there"),
            ("smoke", ["id=x"], "or one of [0-9]+ more there, got 'x'"),
            ("smoke", ["problem=quadrotor", "problem=bicycle"], "problem=bicycle"),
        ],
    )
    def test_bad_input_is_named(self, preset, filters, named):
        with pytest.raises(ValueError, match=named):
            select(preset, filters)


class TestBuild:
    """The case's names become the objects they name."""

    def test_problem_variants(self):
        base = Case(problem="consumption", n_agents=3, gradient="jfb", batch_size=2, n_steps=4)
        built = {v: build_problem(replace(base, variant=v)) for v in VARIANTS}
        assert {v: p.eta for v, p in built.items()}["concave"] == 1.0
        # design.md 3.3: the default variant and the released one
        assert (built["default"].r, built["default"].gamma) == (0.3, 2.0)
        assert (built["released"].r, built["released"].gamma) == (3.0, 0.5)
        assert {p.n_steps for p in built.values()} == {4}
        assert {p.n_agents for p in built.values()} == {3}

    def test_tolerance_is_in_units_of_the_problems_gradient(self):
        problem = build_problem(BASE)
        solver = build_solver(BASE, problem)
        assert solver.tolerance == pytest.approx(1e-4 * problem.gradient_scale)
        assert build_solver(replace(BASE, tolerance=None), problem).tolerance is None

    def test_step_size_reaches_the_plain_map(self):
        assert build_map(replace(BASE, map="plain", step_size=0.25)).step_size == 0.25
        for name in MAP_NAMES:
            assert build_map(replace(BASE, map=name)) == MAPS[name]
