"""What CUDA cases measure, on a CPU: the case says cuda, its step is built on the CPU."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import build, device, measure, worker
from bench.case import Case
from bench.failures import line_about_memory
from bench.predict import fill_predictions, fit, fit_on_cpu, predicted_by
from bench.probes.probe import Hooks
from bench.records import empty_record, explain_nulls, read_record, write_json
from tests.bench.helpers import record_path, run_cli, stale_reasons, unexplained_nulls
from tests.test_nvml import FIRST, Driver

TIMED = Case(
    problem="quadrotor",
    n_agents=1,
    gradient="jfb",
    tolerance=None,
    max_iterations=5,
    batch_size=2,
    n_steps=3,
    device="cuda",
)
MEMORY = replace(TIMED, timed=False)
PEAKS = {"max_allocated_bytes": 10, "max_reserved_bytes": 20}


@pytest.fixture
def steps(monkeypatch) -> list[str]:
    """What is done in order: "step" for each whole step, and the passes by name."""
    done: list[str] = []

    class OnTheCPU(measure.Step):
        def __init__(self, case: Case, seed: int = 0) -> None:
            super().__init__(replace(case, device="cpu", compile=False), seed)

        def __call__(self) -> float:
            done.append("step")
            return super().__call__()

    def allocator(step: measure.Step) -> dict[str, int]:
        done.append("allocator")
        step()
        return dict(PEAKS)

    for name in ("measure_time", "measure_memory", "gradient_cosine", "linear_residual"):
        own = getattr(measure, name)
        monkeypatch.setattr(
            measure, name, lambda *a, own=own, name=name: done.append(name) or own(*a)
        )
    monkeypatch.setattr(measure, "Step", OnTheCPU)
    monkeypatch.setattr(measure, "cuda_memory", allocator)
    monkeypatch.setattr(measure, "busy_seconds", lambda step: done.append("profiler") or 1.0)
    monkeypatch.setattr(build, "check_device", lambda _: None)
    return done


def filled(case: Case, **changes) -> dict:
    record = empty_record(case, 0) | {"threads": 1, "machine": {"cpu": "a", "gpu": "b"}}
    record["git"] = {"commit": "c", "dirty": False}
    worker.fill(record, case, 0, Hooks(**({"context": lambda: (7, None)} | changes)))
    assert unexplained_nulls(record) == set()
    assert stale_reasons(record) == set()
    return record


class TestMemoryOnly:
    def test_one_step_and_nothing_else(self, steps):
        record = filled(MEMORY, measured=lambda: steps.append("marked"))
        assert steps == ["allocator", "step", "marked"]
        assert record["status"] == "ok"
        assert record["iterations"] == {"mean": 5.0, "max": 5}
        assert record["residual"]["max"] > 0
        assert record["cuda"]["context_bytes"] == 7
        assert record["cuda"]["max_allocated_bytes"] == 10
        for name in ("peak_live_tensor_bytes", "saved_tensor_bytes", "gradient_cosine"):
            assert record[name] is None
            assert "taken on the CPU" in record["null_reasons"][name]

    def test_a_tolerance_that_is_met_is_recorded(self, steps):
        record = filled(replace(MEMORY, tolerance=1e-4, max_iterations=500))
        assert record["tolerance_reached"] is True

    def test_a_direct_policy(self, steps):
        record = filled(replace(MEMORY, gradient="direct"))
        assert (record["status"], record["iterations"]) == ("ok", None)
        assert "no inner problem" in record["null_reasons"]["gradient_cosine"]

    def test_a_step_that_is_not_finite_diverges(self, steps):
        record = filled(replace(MEMORY, map="plain", step_size=1e6, max_iterations=50))
        assert record["status"] == "diverged"

    def test_a_compiled_step_is_built_before_its_memory_is_taken(self, steps):
        filled(replace(MEMORY, compile=True))
        assert steps == [*["step"] * measure.WARM_UP, "allocator", "step"]


class TestTimed:
    def test_few_iterations_are_tracked_and_compared(self, steps):
        record = filled(TIMED)
        assert steps[:2] == ["measure_time", "allocator"]
        assert {"measure_memory", "gradient_cosine", "linear_residual"} <= set(steps)
        assert record["peak_live_tensor_bytes"] > record["saved_tensor_bytes"] > 0
        assert record["gradient_cosine"] is not None

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"max_iterations": 51}, "more than 50 inner iterations"),
            ({"compile": True}, "a compiled CUDA case"),
        ],
    )
    def test_more_or_compiled_are_not(self, steps, changes, reason):
        record = filled(replace(TIMED, **changes))
        profiled = ["profiler"] * ("compile" in changes)
        assert steps == ["measure_time", "allocator", "step", *profiled]
        assert (record["cuda"]["busy_seconds"] is None) == ("compile" not in changes)
        assert record["status"] == "ok"
        assert record["step_seconds"]["repeats"] >= 3
        assert record["iterations"]["max"] == record["case"].get(
            "max_iterations", changes.get("max_iterations")
        )
        for name in ("peak_live_tensor_bytes", "saved_tensor_bytes", "gradient_cosine"):
            assert reason in record["null_reasons"][name]

    def test_the_cpu_tracks_whatever_it_has(self):
        case = replace(TIMED, device="cpu", max_iterations=500)
        assert device.uncounted_reason(case) is None
        assert device.uncounted_reason(replace(case, timed=False)) is None


class TestOutOfMemory:
    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
            torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaError…` in docs"),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried"),
        ],
        ids=["allocator", "accelerator", "cublas", "cudnn", "inductor"],
    )
    def test_is_a_status_and_keeps_what_was_reached(self, error, steps, monkeypatch):
        def fail(_):
            raise error

        monkeypatch.setattr(measure, "cuda_memory", fail)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 456)
        record = filled(MEMORY)
        assert record["status"] == "out_of_memory"
        assert any(word in record["reason"].lower() for word in ("memory", "alloc_failed"))
        assert record["reason"].count("\n") == 0
        assert record["cuda"]["max_allocated_bytes"] == 123
        assert record["cuda"]["max_reserved_bytes"] == 456

    def test_another_error_of_the_device_is_a_crash(self, steps, monkeypatch):
        def fail(_):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(measure, "cuda_memory", fail)
        assert filled(MEMORY)["status"] == "crashed"

    def test_peaks_of_the_step_are_not_replaced_by_those_of_what_follows(self, monkeypatch):
        record = empty_record(MEMORY, 0)
        record["cuda"] |= PEAKS
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
        device.keep_peaks(record)
        assert record["cuda"]["max_allocated_bytes"] == 10

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("terminate called\n  what():  CUDA error: out of memory\n", "what():  CUDA error"),
            ("a\nMemoryError\n", "MemoryError"),
            ("std::bad_alloc", "std::bad_alloc"),
            ("OutOfResources: out of resource: shared memory, Required: 1", None),
            ("an illegal memory access was encountered", None),
        ],
    )
    def test_lines_about_it(self, text, expected):
        found = line_about_memory(text)
        assert (found is None) if expected is None else found.startswith(expected)


class TestContext:
    @pytest.fixture
    def driver(self, tmp_path, monkeypatch) -> Driver:
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "pynvml", raising=False)
        monkeypatch.setattr(device, "create_context", lambda: None)
        yield Driver(tmp_path)
        sys.modules.pop("pynvml", None)

    def test_is_the_devices_use_minus_the_idle_baseline(self, driver):
        driver.use(501_000)
        assert device.context_bytes(FIRST, 1000) == (500_000, None)

    def test_an_old_driver(self, driver):
        driver.set(old_driver=True)
        driver.use(3000)
        assert device.context_bytes(FIRST, 1000) == (2000, None)

    @pytest.mark.parametrize(
        ("uuid", "idle", "changes", "reason"),
        [
            (FIRST, None, {}, "no idle baseline"),
            (None, None, {}, "no idle baseline"),
            ("GPU-3", 0, {}, "knows no device GPU-3"),
            (FIRST, 0, {"init_error": "Driver Not Loaded"}, "Driver Not Loaded"),
            (FIRST, 0, {"device_error": "GPU is lost"}, "GPU is lost"),
        ],
    )
    def test_unknown_with_a_reason(self, driver, uuid, idle, changes, reason):
        driver.set(**changes)
        found, why = device.context_bytes(uuid, idle)
        assert found is None
        assert reason in why

    def test_a_reason_becomes_that_of_the_record(self, steps):
        record = filled(MEMORY, context=lambda: (None, "no NVML"))
        assert record["null_reasons"]["cuda.context_bytes"] == "no NVML"


@pytest.mark.slow
class TestFill:
    def record(self, out: Path, case: Case, status: str) -> Path:
        record = empty_record(case, 0) | {"status": status}
        explain_nulls(record, "not measured")
        path = record_path(out, case, 0)
        write_json(path, record)
        return path

    def test_the_model_fills_exact_counts_once_per_kind(self, tmp_path):
        bigger = replace(MEMORY, batch_size=3, max_iterations=9)
        served = [
            self.record(tmp_path, case, status)
            for case, status in ((MEMORY, "ok"), (bigger, "out_of_memory"))
        ]
        left = [
            self.record(tmp_path, case, "ok")
            for case in (
                replace(MEMORY, gradient="direct"),
                replace(MEMORY, tolerance=1e-4),
                replace(MEMORY, device="cpu"),
                replace(MEMORY, compile=True),
                replace(MEMORY, problem="bicycle", gradient="cvxpylayers"),
            )
        ]
        before = [path.read_bytes() for path in left]
        fitted = []

        def counted(case):
            fitted.append(case.gradient)
            return fit(case)

        assert fill_predictions(tmp_path, counted) == {"filled": 2, "left": 5}
        assert fitted.count("jfb") == 1
        assert [path.read_bytes() for path in left] == before
        for path, case in zip(served, (MEMORY, bigger), strict=True):
            record = read_record(path)
            assert record["predicted"] == predicted_by(fit_on_cpu(case), case)
            assert not any(name.startswith("predicted") for name in record["null_reasons"])
            assert "saved_tensor_bytes" in record["null_reasons"]
            assert unexplained_nulls(record) == stale_reasons(record) == set()
        stamps = [(path.stat().st_ino, path.read_bytes()) for path in served]
        assert fill_predictions(tmp_path) == {"filled": 2, "left": 5}
        assert [(path.stat().st_ino, path.read_bytes()) for path in served] == stamps

    def test_what_it_says_is_what_a_cpu_measures(self, tmp_path):
        case = replace(MEMORY, batch_size=12, n_steps=20, max_iterations=70, gradient="unrolled")
        path = self.record(tmp_path, case, "out_of_memory")
        fill_predictions(tmp_path)
        predicted = read_record(path)["predicted"]
        exact = measure.measure_memory(measure.Step(replace(case, device="cpu")))
        assert predicted["saved_tensor_bytes"] == pytest.approx(
            exact["saved_tensor_bytes"], rel=max(1e-9, predicted["model_error"])
        )

    def test_on_the_command_line(self, tmp_path, capsys):
        self.record(tmp_path, replace(MEMORY, gradient="direct"), "ok")
        code, out, _ = run_cli(capsys, "predict", "--fill", tmp_path)
        assert (code, out) == (0, f"0 records filled, 1 left; in {tmp_path}\n")
        code, _, err = run_cli(capsys, "predict", "--fill", tmp_path / "nowhere")
        assert code == 2
        assert "holds no records" in err
