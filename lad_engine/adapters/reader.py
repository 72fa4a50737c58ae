"""Read an adapter from wherever it is: our single file, a PEFT folder, or a hub id."""

from __future__ import annotations

from pathlib import Path

from ..errors import AdapterError
from ..model.hub import download, is_hub_id
from .low_rank import Adapter
from .peft_config import CONFIG_NAME
from .peft_folder import read_peft_folder
from .single_file import read_single_file

PICKLE_ENDINGS = (".pth", ".pt", ".bin", ".pkl", ".ckpt")
HUB_PATTERNS = (
    CONFIG_NAME,
    "*.safetensors",
    "normalization_state.pt",
    "trainable_base_state.pt",
    "*_config.json",
    "mask_token.json",
    "lad_facts.json",
)


def read_adapter(source: str | Path) -> Adapter:
    """Read an adapter; nothing in it is executed.

    Args:
        source: a PEFT folder, a folder with one adapter file, an adapter file of ours, or a hub id ("owner/name").
    Raises:
        AdapterError: there is nothing, or it is damaged, a pickle or of a kind we would compute wrongly.
        DownloadError: a hub id could not be fetched.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix in PICKLE_ENDINGS:
            raise AdapterError(
                f"{path}: is a pickle, expected safetensors. Convert it once with: python -m lad_engine.convert {path} OUT.safetensors."
            )
        if path.name == CONFIG_NAME:
            return read_peft_folder(path.parent)
        return read_single_file(path)
    if path.is_dir():
        return _read_folder(path)
    if is_hub_id(source):
        return _read_folder(download(str(source), patterns=HUB_PATTERNS))
    raise AdapterError(
        f"{source}: there is no such file or folder, expected a PEFT folder, an adapter file or a hub id like owner/name. Check the path."
    )


def _read_folder(folder: Path) -> Adapter:
    files = sorted(folder.glob("*.safetensors"))
    if (folder / CONFIG_NAME).is_file() or len(files) != 1:
        return read_peft_folder(folder)
    return read_single_file(files[0])
