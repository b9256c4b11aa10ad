"""Objects from outside the suite: found by file, by module or by entry point, and identified.

A specification is `package.module:Attribute`, `path/to/file.py:Attribute` or the name of an
installed entry point. What a record says of one has no path of this machine in it: a file goes by
its base name and by the hash of its content.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.failures import words_of


@dataclass(frozen=True)
class Plugin:
    """An object from outside: what it is called, where it comes from, and the object itself.

    `name` is what records and case ids say. `source` is "file F", "module M" or "entry point
    M:Attribute of DISTRIBUTION". `sha256` is the hash of the file that was loaded, None where the
    module has no source file.
    """

    name: str
    source: str
    sha256: str | None
    value: Any

    def describe(self) -> dict[str, str | None]:
        """The plug-in as a record names it."""
        return {"name": self.name, "source": self.source, "sha256": self.sha256}


#: modules that were loaded from a file and the file's hash, by its absolute path; a file is run
#: once a process
_FILES: dict[Path, tuple[types.ModuleType, str | None]] = {}


def is_specification(name: str) -> bool:
    """Whether `name` says where an object is, as `module:Attribute` or `file.py:Attribute`."""
    return ":" in name


def absolute(name: str) -> str:
    """`name` with the path of a file, if it has one, made absolute."""
    place, _, attribute = name.rpartition(":")
    return f"{Path(place).expanduser().resolve()}:{attribute}" if _is_file(place) else name


def shown(name: str) -> str:
    """`name` as records and tables show it: a file by its base name."""
    place, _, attribute = name.rpartition(":")
    return f"{Path(place).name}:{attribute}" if _is_file(place) else name


def without_folders(text: str, names: Iterable[object]) -> str:
    """`text` with the path of every file among `names` cut down to the file's base name."""
    for place in (str(name).rpartition(":")[0] for name in names):
        if _is_file(place):
            text = text.replace(place, Path(place).name)
    return text


def in_file_name(name: str) -> str:
    """`name` as part of a file's name: `di.py:Mine` becomes `di.Mine`."""
    place, colon, attribute = shown(name).rpartition(":")
    return f"{place.removesuffix('.py')}.{attribute}" if colon else name


def load(field: str, name: str) -> Plugin:
    """The object that the specification `name` stands for; `field` is named in errors.

    Raises ValueError, in one line, where the file, the module or the attribute is not there and
    where loading it fails.
    """
    place, _, attribute = name.rpartition(":")
    file = _is_file(place)
    module, sha256 = (_load_file if file else _load_module)(field, place)
    source = f"file {Path(place).name}" if file else f"module {place}"
    return Plugin(shown(name), source, sha256, _attribute(field, module, place, attribute))


def entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    """The installed entry points of `group` by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


def load_entry_point(field: str, point: importlib.metadata.EntryPoint) -> Plugin:
    """The object of an entry point; ValueError, in one line, where it cannot be loaded."""
    module, sha256 = _load_module(field, point.module)
    value: Any = module
    for part in point.attr.split(".") if point.attr else ():
        value = _attribute(field, value, point.module, part)
    source = f"entry point {point.value}"
    if point.dist is not None:
        source += f" of {point.dist.name} {point.dist.version}"
    return Plugin(point.name, source, sha256, value)


def close_matches(name: str, allowed: Sequence[str]) -> str:
    """ "; did you mean X?" for the names of `allowed` that are close to `name`, or nothing."""
    close = difflib.get_close_matches(name, allowed, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place


def _load_file(field: str, place: str) -> tuple[types.ModuleType, str | None]:
    path = Path(place).expanduser().resolve()
    if path in _FILES:
        return _FILES[path]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"`{field}` {place} cannot be read: {error.strerror}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    # A name of its own, so that two files of one base name stay apart.
    where = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    module = types.ModuleType(f"_jfbbench_{path.stem}_{where}")
    module.__file__ = str(path)
    # Dataclasses and pickling look a class's module up there.
    sys.modules[module.__name__] = module
    try:
        # The bytes that were hashed, whatever happens to the file meanwhile.
        exec(compile(content, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise ValueError(f"`{field}` {place} cannot be loaded: {words_of(error)}") from error
    _FILES[path] = module, sha256
    return _FILES[path]


def _load_module(field: str, name: str) -> tuple[types.ModuleType, str | None]:
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"`{field}` {name} cannot be imported: {words_of(error)}") from error
    path = getattr(module, "__file__", None)
    if path is None or not path.endswith(".py"):
        return module, None
    return module, hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _attribute(field: str, owner: Any, place: str, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        public = [each for each in vars(owner) if not each.startswith("_")]
        raise ValueError(
            f"`{field}` {place} has no {name!r}{close_matches(name, public)}"
        ) from None
