"""The distribution as it is installed: whose packages are imported, which extra brings what."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "jfbbench"
#: the import names that the distribution takes
NAMES = ("bench", "baselines", "jfbcore")
#: modules that are not called as the distribution that brings them
_DISTRIBUTION_OF = {"pynvml": "nvidia-ml-py", "yaml": "PyYAML"}
#: extras that only ask for others, or are for work on the suite itself
_LAST = ("test", "dev", "all")


def check_names() -> None:
    """Raise ValueError where Python imports another project's `baselines` or `jfbcore`."""
    here = Path(__file__).resolve().parent.parent
    for name in NAMES:
        spec = importlib.util.find_spec(name)
        found = [
            Path(place).resolve() for place in (spec and spec.submodule_search_locations) or ()
        ]
        if found != [here / name]:
            where = found[0] if found else "nowhere"
            raise ValueError(
                f"Python finds the package `{name}` in {where}, expected {here / name}: another "
                f"project has the same name; install {DISTRIBUTION} in an environment of its own"
            )


def extra_of(module: str) -> str:
    """The extra of the distribution that brings `module`; "dev", which brings all, if none does."""
    wanted = _DISTRIBUTION_OF.get(module, module).lower().replace("_", "-")
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return "dev"
    found = [re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", line) for line in lines]
    extras = [m[2] for m in found if m and m[1].lower().replace("_", "-") == wanted]
    return min(extras, key=lambda extra: extra in _LAST, default="dev")
