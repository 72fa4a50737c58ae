"""The folder where converted models live, and building one entry of it: whole or not at all, by one process at a time."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from ..errors import DownloadError

# (what is being done, bytes or items done, their total or 0 when unknown); called often, from the thread that does the work
Progress = Callable[[str, int, int], None]


def cache_root() -> Path:
    """Return $LAD_CACHE, or the platform's own cache folder for lad-engine; it need not exist yet."""
    chosen = os.environ.get("LAD_CACHE")
    if chosen:
        return Path(chosen).expanduser().resolve()
    if sys.platform == "win32":
        return Path.home() / "AppData" / "Local" / "lad-engine"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lad-engine"
    return Path.home() / ".cache" / "lad-engine"


def build_once(destination: Path, build: Callable[[Path], None], progress: Progress | None = None) -> Path:
    """Return `destination`, after `build(partial)` filled a folder beside it that is then renamed to it.

    A finished destination is returned at once, also from a read-only cache. A second process waits for the first. What an
    earlier process left behind when it died is removed; what fails here is removed before the error leaves.

    Raises:
        DownloadError: the cache cannot be written, or the disk is full.
    """
    if destination.is_dir():
        return destination
    parent, key = destination.parent, destination.name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _locked(parent / f".{key}.lock", key, progress):
            if destination.is_dir():
                return destination
            # we hold the lock, so a partial folder can only belong to a process that died
            for stale in parent.glob(f".{key}.partial-*"):
                shutil.rmtree(stale, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{key}.partial-", dir=parent))
            try:
                build(partial)
                partial.chmod(0o755)
                partial.rename(destination)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DownloadError(_describe(error, parent)) from error
    return destination


def _locked(path: Path, key: str, progress: Progress | None) -> AcquireReturnProxy:
    """Take the lock, for a `with` statement; the operating system frees it when its holder dies."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        if progress is not None:
            progress(f"waiting for another process that prepares {key}", 0, 0)
        return lock.acquire()


def _describe(error: OSError, parent: Path) -> str:
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(parent).free / 1e6 if parent.is_dir() else 0
        return (
            f"{parent}: the disk is full ({free:.0f} MB free after cleaning up); nothing was kept. Free some space or set LAD_CACHE "
            "to a folder on another disk, then run the same command again."
        )
    reason = error.strerror or type(error).__name__
    return f"{parent}: the cache folder cannot be written ({reason}). Set LAD_CACHE to a folder you may write to."
