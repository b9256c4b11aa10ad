"""A digest of all that decides what a compiled function is."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jfbcore.kernels import native


def digest(module: nn.Module, name: str, arguments: Any, lengths: list[Tensor]) -> str | None:
    """A digest of all that decides what is built; None where something in `module` has none.

    That is: the module's state but for the values of its parameters and buffers, the source of
    all modules that it, this package and what they refer to are written in, the shapes of the
    arguments, versions, the machine's instructions, threads and the environment's settings.
    """
    content, modules = io.BytesIO(), set[str]()
    try:
        _Describer(content, modules, module).dump(module)
        sources = _sources(modules)
    except (
        pickle.PicklingError,
        TypeError,
        AttributeError,
        OSError,
        RecursionError,
        ValueError,
        KeyError,
    ):
        return None
    left_open = {id(x) for x in lengths if x.shape[0] > 1}
    leaves = [
        (id(x) in left_open or x.shape[0], x.shape[1:], x.dtype)
        if isinstance(x, Tensor) and x.dim()
        else getattr(x, "dtype", x)
        for x in pytree.tree_leaves(arguments)
    ]
    settings = sorted(
        (key, value)
        for key, value in os.environ.items()
        if key.startswith(("TORCH", "JFB_", "AOT_INDUCTOR", "ATEN", "CXX", "CPATH", "OMP_NUM"))
        and key != "TORCHINDUCTOR_CACHE_DIR"
    )
    parts = (
        name,
        leaves,
        sources,
        native.machine(),
        native.load(),
        torch.__version__,
        sys.version,
        torch.get_num_threads(),
        torch.get_default_dtype(),
        settings,
    )
    return hashlib.sha256(content.getvalue() + repr(parts).encode()).hexdigest()[:24]


class _Describer(pickle.Pickler):
    """Pickles a module without the values of its parameters and buffers, notes in `modules` where
    all of it is defined, and writes equal objects as equal bytes."""

    def __init__(self, file: io.BytesIO, modules: set[str], module: nn.Module) -> None:
        super().__init__(file)
        self.fast = True  # no references to what was written before, which depend on identity
        self._modules = modules
        self._inputs = {id(x) for x in (*module.parameters(), *module.buffers())}

    def persistent_id(self, value: Any) -> Any:
        """What is written in place of a tensor."""
        kind = value if isinstance(value, type) or callable(value) else type(value)
        self._modules.add(getattr(kind, "__module__", None) or type(value).__module__)
        if not isinstance(value, Tensor):
            return None
        known = (tuple(value.shape), str(value.dtype), value.requires_grad, str(value.device))
        values = None if id(value) in self._inputs else value.detach().cpu().numpy().tobytes()
        return repr((known, values))


def _sources(modules: set[str]) -> list[tuple[str, str]]:
    """Digests of the files of `modules` and of what they refer to, and of whole own packages."""
    found: dict[str, str] = {}
    waiting, seen = [*modules, "jfbcore"], set[str]()
    while waiting:
        name = waiting.pop()
        root = name.partition(".")[0]
        if name in seen or root in sys.stdlib_module_names or root in ("torch", "torchgen"):
            continue
        seen.add(name)
        module = sys.modules[name]
        path = Path(str(module.__file__))
        files = [path]
        if root in ("jfbcore", "baselines"):
            files = sorted(Path(str(sys.modules[root].__file__)).parent.rglob("*.*"))
            files = [file for file in files if file.suffix in (".py", ".cpp", ".h")]
            seen.update(n for n in sys.modules if n.partition(".")[0] == root)
            waiting += [] if root == "jfbcore" else ["jfbcore"]
        for file in files:
            if str(file) not in found:
                found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
        if root not in ("jfbcore", "baselines") and "-packages" not in str(path):
            for value in vars(module).values():
                other = value.__name__ if isinstance(value, ModuleType) else None
                other = other or getattr(value, "__module__", None)
                if isinstance(other, str) and other in sys.modules:
                    waiting.append(other)
    # Not where the files are: two copies of the same sources build the same.
    return sorted((Path(path).name, content) for path, content in found.items())
