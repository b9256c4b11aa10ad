"""Compiled kernels for processors from the sources in `native/`: built on first use, then cached.

Compiled rollouts in float32 take them; everything else takes the formulas beside which they stand
(`saved_sweep`, `interaction`). They are built by the compiler that torch.compile uses, for the
machine's own instructions, in the cache folder of torch.compile. Without a compiler, or with the
environment variable JFB_NATIVE=0, the formulas serve everywhere.
"""

from __future__ import annotations

import functools
import getpass
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SOURCES = Path(__file__).with_name("native")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-std=c++20", "-shared", "-fPIC")

#: the kernels as operators, to be called once `load` has been true
operators = torch.ops.jfbcore
_loaded = False


def wanted() -> bool:
    """False where the environment says JFB_NATIVE=0: then the formulas serve everywhere."""
    return os.environ.get("JFB_NATIVE") != "0"


@functools.cache
def load() -> bool:
    """Build the kernels where that was not done before, and register them: whether they serve.

    Warns with the compiler's first words where building fails.
    """
    global _loaded
    if not wanted():
        return False
    try:
        torch.ops.load_library(str(_build()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"compiled rollouts go on without the native kernels: {reason[:300]}", stacklevel=2
        )
        return False
    _register_shapes()
    _loaded = True
    return True


def serves(x: Tensor) -> bool:
    """Whether the kernels are loaded and take tensors like `x`."""
    return _loaded and x.device.type == "cpu" and x.dtype == torch.float32


def compiler() -> str:
    """The C++ compiler that torch.compile takes; FileNotFoundError where there is none."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        raise FileNotFoundError(f"no C++ compiler {name!r} was found; the variable CXX names one")
    return name


def cache_folder() -> Path:
    """Where what is built stays: in the cache folder of torch.compile."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if folder is None:
        folder = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    return Path(folder).absolute() / "jfbcore"


@functools.cache
def machine() -> str:
    """What the compiler says of itself and of this machine's instructions."""
    asked = [compiler(), "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout


def _build() -> Path:
    """The shared library for this source, compiler, machine and torch."""
    sources = [path.read_text("utf-8") for path in sorted(_SOURCES.iterdir())]
    key = "\n".join((*sources, " ".join(_FLAGS), machine(), torch.__version__))
    folder = cache_folder()
    library = folder / f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / library.name
        command = [
            compiler(),
            *_FLAGS,
            f"-I{home / 'include'}",
            str(_SOURCES / "kernels.cpp"),
            "-o",
            str(built),
        ]
        command += [f"-L{home / 'lib'}", "-ltorch_cpu"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        # In one step: another process may be building the same.
        built.replace(library)
    return library


def _register_shapes() -> None:
    """Tell torch.compile the shapes of what the operators return."""

    @torch.library.register_fake("jfbcore::network_forward")  # type: ignore[untyped-decorator]
    def _forward(z: Tensor, bias: Tensor, to_opened: Tensor, matrix: Tensor, *rest: Any) -> Any:
        biases, readout = rest[2], rest[3]
        layers, width = biases.shape[0], readout.shape[0]
        kept = (3 * layers + 1) * width + to_opened.shape[1] - width
        return z.new_empty(z.shape[0], matrix.shape[1]), z.new_empty(z.shape[0], kept)

    @torch.library.register_fake("jfbcore::network_backward")  # type: ignore[untyped-decorator]
    def _backward(kept: Tensor, at_step: Tensor, p_bar: Tensor, onto: Tensor, *rest: Any) -> Any:
        from_opened, weights, readout = rest[0], rest[2], rest[4]
        bars = from_opened.shape[0] + (2 * weights.shape[0] + 1) * readout.shape[0]
        return torch.empty_like(onto), onto.new_empty(onto.shape[0], bars)

    @torch.library.register_fake("jfbcore::network_gradients")  # type: ignore[untyped-decorator]
    def _gradients(
        z: Tensor, p_bar: Tensor, kept: Tensor, bars: Tensor, readout: Tensor, layers: int, _: float
    ) -> Any:
        width = readout.shape[0]
        opened = kept.shape[2] - 3 * layers * width
        return (
            z.new_empty(opened, z.shape[2]),
            z.new_empty(opened, p_bar.shape[2]),
            z.new_empty(z.shape[0], opened),
            z.new_empty(width),
            z.new_empty(p_bar.shape[2]),
            z.new_empty(layers, width, width),
            z.new_empty(layers, width),
        )

    @torch.library.register_fake("jfbcore::pairs")  # type: ignore[untyped-decorator]
    def _pairs(positions: Tensor, cutoff_squared: float) -> Any:
        return positions.new_empty(positions.shape[0]), torch.empty_like(positions)
