"""Two source trees make one package (`kernels/` becomes `lad_engine.kernels`), plus the CPU extension where a compiler exists."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent


def packages() -> list[str]:
    """Every package of both trees, under the names they are installed as."""
    kernels = ["lad_engine.kernels", *(f"lad_engine.kernels.{name}" for name in find_packages(str(ROOT / "kernels")))]
    # Sources that are compiled on the user's machine travel with the package.
    return [*find_packages(str(ROOT), include=["lad_engine", "lad_engine.*"]), *kernels, "lad_engine.csrc"]


def cpu_extension() -> list[Extension]:
    """The pybind11 extension `lad_engine._cpu`, or nothing when it is switched off or pybind11 is missing."""
    if os.environ.get("LAD_SKIP_EXT") == "1":
        return []
    try:
        import pybind11
    except ImportError:
        print("lad_engine: pybind11 is missing, so the C++ extension is not built; everything else works.", file=sys.stderr)
        return []
    files = [*(ROOT / "csrc").glob("bindings_*.cpp"), *(ROOT / "csrc" / "cpu").glob("*.cpp")]
    sources = sorted(path.relative_to(ROOT).as_posix() for path in files)
    headers = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.h"))
    if sys.platform == "win32":
        print("lad_engine: the C++ extension needs GCC or Clang, so it is not built; everything else works.", file=sys.stderr)
        return []
    # One wheel serves every machine of its architecture: no -march=native, the instructions are chosen at run time. A product and a sum
    # are not contracted into one rounding, so that every choice gives the same bits.
    flags = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wno-psabi"]
    return [
        Extension(
            "lad_engine._cpu",
            sources,
            depends=headers,
            include_dirs=["csrc", pybind11.get_include()],
            extra_compile_args=flags,
            language="c++",
            optional=True,
        )
    ]


class OptionalBuild(build_ext):
    """Build what can be built: without a working compiler the package still installs, and says so when the ops are selected."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # noqa: BLE001 - a missing compiler surfaces as a different exception on every platform
            print(f"lad_engine: the C++ extension is not built ({error}); everything else works.", file=sys.stderr)


setup(
    packages=packages(),
    package_dir={"lad_engine": "lad_engine", "lad_engine.kernels": "kernels", "lad_engine.csrc": "csrc"},
    package_data={"lad_engine": ["assets/**/*", "webui/*"], "lad_engine.kernels": ["tuned/*.json"], "lad_engine.csrc": ["cuda/*.cu"]},
    ext_modules=cpu_extension(),
    cmdclass={"build_ext": OptionalBuild},
)
