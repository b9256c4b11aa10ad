"""Objects as plain data and back: a class and the arguments that its constructor was given.

An object is described by those constructor arguments that it keeps as attributes of the same name,
or by what its method `constructor_arguments` returns. Numbers drawn or learned are no part of a
description; they are in a module's state_dict.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn

from jfbcore.jfb import GradientEstimator
from jfbcore.maps import FixedPointMap
from jfbcore.problems.base import Problem
from jfbcore.solvers.base import Solver

#: packages any of whose classes may be rebuilt, and the bases of classes from elsewhere
_PACKAGES = ("jfbcore", "baselines")
_BASES = (Problem, FixedPointMap, Solver, GradientEstimator, nn.Module)
#: constructor arguments that are not described: where an object lives, what drew it, and other
#: names of `n_agents`, which are refused beside it
_LEFT_OUT = ("device", "generator", "n_goods", "n_assets")


def describe(thing: object) -> Any:
    """`thing` as numbers, strings, None, lists and dicts.

    Raises ValueError where a constructor argument is not known, or is nothing that can be rebuilt.
    """
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, list | tuple):
        return [describe(item) for item in thing]
    if isinstance(thing, torch.dtype):
        return {"dtype": str(thing).removeprefix("torch.")}
    if isinstance(thing, Tensor):  # a buffer, whose values are in the state_dict
        return {"shape": list(thing.shape)}
    if isinstance(thing, type):
        return {"type": _path(thing)}
    if not isinstance(thing, _BASES) and not dataclasses.is_dataclass(thing):
        raise ValueError(f"a {type(thing).__name__} cannot be described in a file: {thing!r}")
    arguments = constructor_arguments(thing)
    for name, parameter in inspect.signature(type(thing)).parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ValueError(
                f"{type(thing).__name__} does not keep its argument `{name}` as an attribute of "
                "that name"
            )
    path = _path(type(thing))
    return {"class": path, "arguments": {name: describe(x) for name, x in arguments.items()}}


def rebuild(description: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """What `describe` described, on `device`; `dtype` for classes whose objects do not keep theirs.

    Only classes of jfbcore and baselines are rebuilt, and those of modules that have been imported
    already if they are problems, maps, solvers, gradients, torch modules or dataclasses. Raises
    ValueError otherwise.
    """
    if isinstance(description, list):
        return tuple(rebuild(item, device, dtype) for item in description)
    if not isinstance(description, dict):
        return description
    if "dtype" in description:
        return getattr(torch, description["dtype"])
    if "shape" in description:
        return torch.zeros(description["shape"], device=device, dtype=dtype)
    if "type" in description:
        return _class_at(description["type"])
    cls, given = _class_at(description["class"]), description["arguments"]
    arguments = {}
    if "problem" in given:  # first, because it decides the dtype of the rest
        arguments["problem"] = rebuild(given["problem"], device)
        dtype = arguments["problem"].dtype
    for name in given.keys() - arguments.keys():
        arguments[name] = rebuild(given[name], device, dtype)
    # A generator spares torch's global one; what it draws is overwritten by a state_dict.
    own = {"device": device, "dtype": dtype, "generator": torch.Generator()}
    names = inspect.signature(cls).parameters
    extra = {name: value for name, value in own.items() if name in names and name not in arguments}
    return cls(**arguments, **extra)


def constructor_arguments(thing: object) -> dict[str, Any]:
    """The arguments of `thing`'s constructor that it keeps."""
    if hasattr(thing, "constructor_arguments"):
        return dict(thing.constructor_arguments())
    names = [x for x in inspect.signature(type(thing)).parameters if x not in _LEFT_OUT]
    return {name: getattr(thing, name) for name in names if hasattr(thing, name)}


def one_line(thing: object, longest: int = 60) -> str:
    """`thing` as code that builds it: of a problem its size, of others what is not the default.

    Plain values whose code is more than `longest` characters long are left out.
    """
    if isinstance(thing, type):
        return thing.__name__
    problem = isinstance(thing, Problem)
    if not problem and (dataclasses.is_dataclass(thing) or not isinstance(thing, _BASES)):
        code = repr(thing).removeprefix("torch.") if isinstance(thing, torch.dtype) else repr(thing)
        return code if isinstance(thing, _BASES) or len(code) <= longest else "…"
    parameters, arguments = inspect.signature(type(thing)).parameters, constructor_arguments(thing)
    always = ("n_agents", "n_steps", "t_final", "dtype") if problem else ()
    names = [name for name in always if name in arguments]
    for name, value in arguments.items():
        default = parameters[name].default
        if name not in names and not isinstance(value, Tensor) and repr(value) != repr(default):
            names.append(name)
    shown = ", ".join(f"{name}={one_line(arguments[name], longest)}" for name in names)
    return f"{type(thing).__name__}({shown})"


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _class_at(path: str) -> type:
    module_name, _, name = path.partition(":")
    ours = module_name.split(".")[0] in _PACKAGES
    try:
        module = importlib.import_module(module_name) if ours else sys.modules[module_name]
        cls: type = getattr(module, name)
    except (ImportError, KeyError, AttributeError) as error:
        raise ValueError(f"class {path} is not there; import its module first") from error
    if (
        not isinstance(cls, type)
        or cls.__module__ != module_name
        or not (ours or issubclass(cls, _BASES) or dataclasses.is_dataclass(cls))
    ):
        raise ValueError(f"{path} is no problem, map, solver, gradient, torch module or dataclass")
    return cls
