"""Tensors of torch.save archives as safetensors files of bounded size, one shard in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from .legacy_archive import LegacyArchive, TensorRef
from .whole_files import write_tensors

SHARD_BYTES = 2 << 30


def write_shards(folder: Path, tensors: Mapping[str, tuple[LegacyArchive, TensorRef]]) -> None:
    """Write model.safetensors, or shards of about SHARD_BYTES and their index, in the dtypes stored."""
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, (_, ref) in sorted(tensors.items()):
        size = ref.storage.count * ref.dtype.itemsize
        if shards[-1] and size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    files = [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors" for i in range(1, len(shards) + 1)
    ]
    for file, names in zip(files, shards, strict=True):
        loaded = {name: tensors[name][0].load(tensors[name][1]) for name in names}
        write_tensors(folder / file, loaded, {"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
