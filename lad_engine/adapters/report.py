"""Reports lie beside the adapter they are about, where that place can be written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from .low_rank import Adapter

log = logging.getLogger(__name__)


def save_report(save: Callable[[Any, Path], Any], report: Any, adapter: Adapter | None, kind: str) -> None:
    """Save a report beside the adapter's files; without an adapter on disk there is nowhere, and a refusal is only a warning."""
    if adapter is None or adapter.path is None:
        return
    try:
        save(report, adapter.path)
    except AdapterError as error:
        log.warning("the %s report is not saved: %s", kind, error)
