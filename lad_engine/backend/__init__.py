"""The backend others embed: requests in, events out, without HTTP (`AsyncEngine`, and `SyncEngine` for threads)."""

from .async_engine import AsyncEngine, Handle
from .events import Committed, Event, Finished, Started, Stepped
from .limits import Limits
from .stats import AdapterStatus, Stats
from .sync_engine import SyncEngine, SyncHandle

__all__ = [
    "AdapterStatus",
    "AsyncEngine",
    "Committed",
    "Event",
    "Finished",
    "Handle",
    "Limits",
    "Started",
    "Stats",
    "Stepped",
    "SyncEngine",
    "SyncHandle",
]
