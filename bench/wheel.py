"""How setuptools fills the wheel: with the suite's data, without its tests and benches.

Setuptools imports this file while it builds; nothing else does, and no wheel has it.
"""

from __future__ import annotations

from pathlib import Path

from setuptools.command.build_py import build_py

#: what `bench.places.data` finds in the installed package
DATA = ("references/*.json", "baseline.json")
#: modules of bench that serve a checkout alone
_LEFT_OUT = ("wheel", "test_benchmarks", "conftest")


class BuildPy(build_py):
    """Copies the data from reports/ into bench/data, whose committed copy is the only one."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """The modules of a package, but for those of a checkout alone."""
        found = super().find_package_modules(package, package_dir)
        return [m for m in found if (m[0], m[1]) not in [("bench", name) for name in _LEFT_OUT]]

    def run(self) -> None:
        """Build, and copy the data unless the installation stays tied to the checkout."""
        super().run()
        if self.editable_mode:
            return
        for pattern in DATA:
            for source in sorted(Path("reports").glob(pattern)):
                target = Path(self.build_lib, "bench", "data", source.relative_to("reports"))
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))
