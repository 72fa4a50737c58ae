"""The WHILE-node decode loop: `csrc/cuda/decode_loop.cu`, built with nvcc on first use and called through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path

from torch import Tensor

from ..errors import CaptureError

SOURCE = Path("csrc", "cuda", "decode_loop.cu")
# Conditional nodes came with CUDA 12.4, but a WHILE body that holds a child graph is what 12.8 and later are tested with.
LEAST_TOOLKIT = (12, 8)
_SHAPE = re.compile(r"(\d+)\.?(\d)(a?)$")


class LoopLibrary:
    """The loaded shared library; `path` says where it lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise CaptureError(f"decode loop: {path.name} cannot be loaded ({error}). Delete it to have it built again.") from error
        pointer = ctypes.c_void_p
        self._library.lad_loop_create.argtypes = [ctypes.c_int, pointer, pointer, ctypes.c_int, pointer, pointer, ctypes.POINTER(pointer)]
        self._library.lad_loop_launch.argtypes = [pointer, pointer]
        self._library.lad_loop_destroy.argtypes = [pointer]
        self._library.lad_error_text.argtypes = [ctypes.c_int]
        self._library.lad_error_text.restype = ctypes.c_char_p

    def create(self, device: int, graph: int, done: Tensor, step: Tensor, bounds: Tensor) -> ctypes.c_void_p:
        """Build the executable loop around a captured step."""
        executable = ctypes.c_void_p()
        flags = (done.data_ptr(), done.numel(), step.data_ptr(), bounds.data_ptr())
        self._check(self._library.lad_loop_create(device, graph, *flags, ctypes.byref(executable)), "built")
        return executable

    def launch(self, executable: ctypes.c_void_p, stream: int) -> None:
        """Enqueue a loop."""
        self._check(self._library.lad_loop_launch(executable, stream), "launched")

    def destroy(self, executable: ctypes.c_void_p) -> None:
        """Free a loop."""
        self._check(self._library.lad_loop_destroy(executable), "freed")

    def _check(self, error: int, what: str) -> None:
        if error:
            text = self._library.lad_error_text(error).decode()
            raise CaptureError(f"decode loop: it cannot be {what} (CUDA error {error}, {text}). Use --driver replay.")


class DecodeLoop:
    """One captured step in a WHILE node. The graph's memory must outlive it; its own handle is freed with it.

    done: `[B]` bool, step: `[]` int64, bounds: `[2]` int64 (steps at most, rows not done at which the loop leaves), on one device.
    """

    def __init__(self, library: LoopLibrary, graph: int, done: Tensor, step: Tensor, bounds: Tensor) -> None:
        self._library = library
        self._executable = library.create(done.device.index or 0, graph, done, step, bounds)
        # Not at exit: the driver frees what is left, and may be gone before us.
        weakref.finalize(self, library.destroy, self._executable).atexit = False

    def launch(self, stream: int) -> None:
        """Enqueue the decode on a stream (its raw handle)."""
        self._library.launch(self._executable, stream)


def build_library(cache: Path, capability: tuple[int, int], archs: str | None = None) -> LoopLibrary:
    """Return the loop's library, from `cache` where it was built before.

    Args:
        cache: folder for built extensions; it need not exist yet. capability: of the GPU it will run on.
        archs: value of LAD_CUDA_ARCHS ("8.0", "8.0;9.0a"), what to compile for instead of `capability` alone.
    Raises:
        CaptureError: the source, nvcc or a new enough toolkit is missing, it does not compile, or the GPU is not among `archs`.
    """
    source = find_source()
    wanted = read_archs(archs) if archs else [f"{capability[0]}{capability[1]}{'a' if capability[0] >= 9 else ''}"]
    own = f"{capability[0]}{capability[1]}"
    if own not in [arch.rstrip("a") for arch in wanted]:
        raise CaptureError(
            f"decode loop: LAD_CUDA_ARCHS is {archs}, this GPU is {capability[0]}.{capability[1]}. Add it there, or use --driver replay."
        )
    nvcc = find_nvcc()
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < LEAST_TOOLKIT:
        got = found[0] if found else "of an unknown version"
        raise CaptureError(f"decode loop: nvcc is {got}, expected {LEAST_TOOLKIT[0]}.{LEAST_TOOLKIT[1]} or newer. Use --driver replay.")
    key = hashlib.sha256("\n".join([source.read_text(encoding="utf-8"), version, *wanted]).encode()).hexdigest()[:16]
    built = cache / f"decode_loop-{key}.so"
    if not built.is_file():
        _build(nvcc, source, built, wanted)
    return LoopLibrary(built)


def compile_command(nvcc: str, source: Path, out: Path, archs: list[str]) -> list[str]:
    """Return the nvcc call that makes the shared library for architectures such as "80" and "90a".

    Its CUDA runtime is linked in: handles of graphs and streams belong to the driver, so it need not be the one torch loaded.
    """
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [nvcc, "-std=c++17", "-O2", "-shared", "-Xcompiler=-fPIC", "-cudart=static", *targets, "-o", str(out), str(source)]


def read_archs(archs: str) -> list[str]:
    """Read LAD_CUDA_ARCHS ("8.0;9.0a") as nvcc names them ("80", "90a").

    Raises:
        CaptureError: an entry is not an architecture.
    """
    names = []
    for part in filter(None, re.split(r"[;,\s]+", archs)):
        found = _SHAPE.match(part)
        if found is None:
            raise CaptureError(f"LAD_CUDA_ARCHS: {part!r} is no architecture, expected numbers such as 8.0 or 9.0a.")
        names.append("".join(found.groups()))
    return names


def find_source() -> Path:
    """Return the CUDA source: beside the package where it is installed, or at the root of the tree.

    Raises:
        CaptureError: neither place has it.
    """
    for root in Path(__file__).parents[1:3]:
        if (root / SOURCE).is_file():
            return root / SOURCE
    raise CaptureError(f"decode loop: {SOURCE} is not installed, expected it beside the package. Use --driver replay.")


def find_nvcc() -> str:
    """Return the CUDA compiler of PATH, or of CUDA's usual folder.

    Raises:
        CaptureError: there is none.
    """
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        raise CaptureError("decode loop: nvcc is missing, expected the CUDA toolkit. Install it, or use --driver replay.")
    return nvcc


def _build(nvcc: str, source: Path, built: Path, archs: list[str]) -> None:
    try:
        built.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when whole, so that two processes may build at once and neither loads half a file.
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            partial = Path(folder) / built.name
            done = subprocess.run(compile_command(nvcc, source, partial, archs), capture_output=True, text=True, check=False)
            if done.returncode != 0:
                reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-200:])
                raise CaptureError(f"decode loop: nvcc failed ({reason}). Use --driver replay.")
            os.replace(partial, built)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CaptureError(
            f"decode loop: {built.parent} cannot be written ({reason}). Set LAD_CACHE to a folder you may write to."
        ) from error
