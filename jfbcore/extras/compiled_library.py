"""Functions compiled into shared libraries: built in processes of their own, kept on disk.

The code generator of torch.compile takes seconds to import and hundreds of megabytes to run. Here
it does so in forked processes, one for each function, which end when the libraries are written.
The process that asked loads the libraries and never imports the generator. A library is found
again by a digest of all that goes into it (`build_digest`); what has no digest is built every time.
"""

from __future__ import annotations

import functools
import os
import pickle
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jfbcore.extras.build_digest import digest
from jfbcore.kernels import native

#: a function, arguments like those that it will have, and those of them (or of their parts) whose
#: first dimension may have any length above one
Job = tuple[Callable[..., Any], tuple[Any, ...], list[Tensor]]
_CONSTANT = -1
#: settings of torch's code generator: compiling its headers ahead takes longer than one build gains
#: by it; that the compiler knows this machine's vector instructions need not be tried out; and a
#: loop's output that is written over at once would be declared twice (a swarm's batch of one)
_SETTINGS = {
    "aot_inductor.precompile_headers": False,
    "cpp.vec_isa_ok": True,
    "inplace_buffers": False,
}


@dataclass(frozen=True)
class _Signature:
    """How a library's tensors belong to the function's arguments and results.

    `inputs`: for each input its place among the tensors of the arguments and the parameters and
    buffers of the module, or `_CONSTANT` for the next of `constants`. `results`: the function's
    result with the number of an output in place of each tensor.
    """

    inputs: list[int]
    constants: list[Tensor]
    results: Any


class Library:
    """A function from a shared library, for contiguous arguments of the shapes it was built for."""

    def __init__(self, folder: Path, name: str, module: nn.Module) -> None:
        self._signature: _Signature = pickle.loads((folder / f"{name}.pickle").read_bytes())
        self._module = module
        path = str(folder / f"{name}.so")
        self._run = torch._C._aoti.AOTIModelContainerRunnerCpu(path, 1).run

    def __call__(self, *arguments: Any) -> Any:
        """The results, as the function's own."""
        tensors, constants = _tensors(arguments, self._module), iter(self._signature.constants)
        inputs = [
            next(constants) if i == _CONSTANT else tensors[i].detach().contiguous()
            for i in self._signature.inputs
        ]
        outputs = self._run(inputs)
        return pytree.tree_map(lambda i: outputs[i], self._signature.results)


def libraries(module: nn.Module, jobs: Mapping[str, Job]) -> dict[str, Library]:
    """The functions of `jobs`, which hold no state but that of `module`, as libraries.

    Those that were built before are loaded; the others are built first, all at the same time.
    Raises RuntimeError with the words of a build that failed.
    """
    folder = native.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    own = tempfile.TemporaryDirectory(dir=folder)
    places, missing = {}, {}
    for name, job in jobs.items():
        key = digest(module, name, *job[1:])
        places[name] = Path(own.name) / name if key is None else folder / f"rollout-{key}"
        if not places[name].exists():
            missing[name] = job, places[name]
    builds = [
        functools.partial(_build, module, name, job, place)
        for name, (job, place) in missing.items()
    ]
    with own:
        if builds:
            _in_processes([functools.partial(_build_all, builds)])
        return {name: Library(place, name, module) for name, place in places.items()}


def _in_processes(tasks: Sequence[Callable[[], None]]) -> None:
    """Run `tasks` at the same time, each in a fork of this process.

    Raises RuntimeError with the traceback of one that failed.
    """
    started: list[tuple[int, int]] = []
    for task in tasks:
        reader, writer = os.pipe()
        if (process := os.fork()) == 0:
            # Nothing of the parent's runs on in here, whatever happens.
            code = 1
            try:
                task()
                code = 0
            except BaseException:
                os.write(writer, traceback.format_exc()[-4000:].encode())
            finally:
                os._exit(code)
        os.close(writer)
        started.append((process, reader))
    failures = []
    for process, reader in started:
        with os.fdopen(reader, "rb") as pipe:
            words = pipe.read().decode(errors="replace")
        if os.waitpid(process, 0)[1] != 0:
            failures.append(words or "the building process was killed")
    if failures:
        raise RuntimeError(f"compiling a rollout failed: {failures[0]}")


def _build_all(builds: Sequence[Callable[[], None]]) -> None:
    """Import the code generator once, for processes that build at the same time."""
    import torch._inductor.codegen.cpp_wrapper_cpu
    import torch._inductor.compile_fx  # noqa: F401

    _in_processes(builds)


def _build(module: nn.Module, name: str, job: Job, place: Path) -> None:
    """Compile one function and leave library and signature in the folder `place`."""
    from torch._inductor.compile_fx import compile_fx_aot

    warnings.simplefilter("ignore", FutureWarning)  # of torch's generator about torch's own trees
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the parent's other threads do not exist in a fork
    with tempfile.TemporaryDirectory(dir=native.cache_folder()) as scratch:
        graph, fakes, signature = _capture(module, job)
        options = {
            "aot_inductor.output_path": f"{scratch}/{name}.so",
            "cpp.threads": threads,
            **_SETTINGS,
        }
        compile_fx_aot(graph, fakes, config_patches=options)
        finished = Path(scratch) / "finished"
        finished.mkdir()
        library = Path(scratch) / f"{name}.so"
        library.rename(finished / library.name)
        for operators in Path(scratch).glob("*.wrapper.json"):
            # What the library calls that is not torch's own; the loader wants it beside it.
            operators.rename(finished / f"{name}.json")
        (finished / f"{name}.pickle").write_bytes(pickle.dumps(signature))
        try:
            finished.rename(place)
        except OSError:
            # Another process was faster.
            if not place.exists():
                raise


def _capture(module: nn.Module, job: Job) -> tuple[torch.fx.GraphModule, list[Any], _Signature]:
    """The graph of a function, its inputs as fake tensors, and how both belong to the function."""
    function, arguments, lengths = job
    tensors = _tensors(arguments, module)
    for tensor in lengths:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    graphs: list[torch.fx.GraphModule] = []
    inputs: list[tuple[Any, Any, Any]] = []
    outputs: list[Tensor] = []

    def keep(graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        nodes = graph.graph.find_nodes(op="placeholder")
        values = [node.meta["example_value"] for node in nodes]
        inputs.extend(zip(nodes, values, examples, strict=True))
        (results,) = next(iter(graph.graph.find_nodes(op="output"))).args
        outputs.extend(torch.empty(()) for _ in results)
        return lambda *_: tuple(outputs)

    def called(*arguments: Any) -> Any:
        return function(*arguments)

    results = torch.compile(called, backend=keep, fullgraph=True, dynamic=False)(*arguments)
    (graph,) = graphs
    order, constants, fakes = [], [], []
    for node, value, example in inputs:
        if not isinstance(value, Tensor):
            _from_a_size(graph, node, value, inputs)
            continue
        fakes.append(value)
        order.append(next((i for i, x in enumerate(tensors) if x is example), _CONSTANT))
        if order[-1] == _CONSTANT:
            constants.append(example.detach().clone().contiguous())
    graph.recompile()
    numbers = {id(output): i for i, output in enumerate(outputs)}
    return (
        graph,
        fakes,
        _Signature(order, constants, pytree.tree_map(lambda x: numbers[id(x)], results)),
    )


def _from_a_size(
    graph: torch.fx.GraphModule, node: Any, wanted: Any, inputs: list[tuple[Any, Any, Any]]
) -> None:
    """Replace an input that is the length of a dimension of another input."""
    for other, value, _ in inputs:
        for dimension, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if isinstance(size, torch.SymInt) and size.node.expr == wanted.node.expr:
                with graph.graph.inserting_after(inputs[-1][0]):
                    read = graph.graph.call_function(
                        torch.ops.aten.sym_size.int, (other, dimension)
                    )
                read.meta["example_value"] = wanted
                node.replace_all_uses_with(read)
                graph.graph.erase_node(node)
                return
    raise RuntimeError(f"no input has the length {wanted}")


def _tensors(arguments: Any, module: nn.Module) -> list[Tensor]:
    """The tensors that a library's inputs are taken from."""
    leaves = [x for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor)]
    return [*leaves, *module.parameters(), *module.buffers()]
