"""lad_engine: adapt, run and serve diffusion language models made from autoregressive ones.

The public names load on first use, so that `import lad_engine` and `--help` stay fast.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# `python -m lad_engine.<verb>` in a clone imports this folder instead of the installed package: it then finds kernels/ in the folder
# above, and the built extension in the installed package.
if (Path(__file__).parent.parent / "kernels" / "op.py").is_file():
    __path__ = [__path__[0], str(Path(__file__).parent.parent), *pkgutil.extend_path(__path__, __name__)[1:]]

_PUBLIC = {
    "Engine": "engine",
    "AsyncEngine": "backend",
    "SyncEngine": "backend",
    "Limits": "backend",
    "EngineConfig": "config",
    "SamplingParams": "config",
    "GenerationResult": "contracts",
    "StepEvent": "contracts",
    "Prompt": "text.prompts",
    "LadError": "errors",
    "ConfigError": "errors",
    "CheckpointError": "errors",
    "AdapterError": "errors",
    "RequestError": "errors",
    "DownloadError": "errors",
    "OpsError": "errors",
    "TrainingError": "errors",
    "OverloadError": "errors",
    "DeadlineError": "errors",
    "RequestCancelledError": "errors",
    "StepError": "errors",
    "ClosedError": "errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lad_engine' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
