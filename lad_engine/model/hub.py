"""Fetch the files of a checkpoint from the Hugging Face hub, or find them in its cache."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError
from tqdm.auto import tqdm

from ..errors import DownloadError
from .cache import Progress

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.json", "merges.txt")
# what a base model needs and nothing else: no pickles, no second copy of the weights in another format
PATTERNS = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", *TOKENIZER_FILES)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(source: str | Path) -> bool:
    """Say whether `source` has the form of a hub id, "owner/name"."""
    return HUB_ID.fullmatch(str(source)) is not None


def download(repository: str, progress: Progress | None = None, patterns: Sequence[str] = PATTERNS) -> Path:
    """Return the local folder of hub id `repository`, fetching what is not cached yet (HF_HUB_OFFLINE and HF_HOME are honoured).

    Raises:
        DownloadError: the id does not exist, needs a login, or the hub cannot be reached and nothing is cached.
    """
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns), tqdm_class=_bar(repository, progress)))
    except GatedRepoError:
        raise DownloadError(f"{repository}: the hub asks for a login. Accept its licence on its page and run `hf auth login`.") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise DownloadError(
            f"{repository}: no such folder here and no such model on the hub. Check the name, or run `hf auth login`."
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise DownloadError(
            f"{repository}: no such folder here, and not in the hub cache while {why}. Run `hf download {repository}` once with a network."
        ) from error
    # the hub client has changed its network library twice; any failure of a fetch is the same to the caller
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise DownloadError(
            f"{repository}: the download failed ({reason[0] if reason else type(error).__name__}). Run the same command again."
        ) from error


def _bar(repository: str, progress: Progress | None) -> type[tqdm]:
    """Return a bar class that prints nothing and reports bytes to `progress`."""
    most = 0

    class ReportingBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": progress is None})

        def display(self, *args: Any, **options: Any) -> None:
            nonlocal most
            # newer clients keep one bar for bytes received and one for bytes written; show the one that is ahead
            if progress is not None and self.unit == "B" and self.n >= most:
                most = self.n
                progress(f"downloading {repository}", int(self.n), int(self.total or 0))

    return ReportingBar
