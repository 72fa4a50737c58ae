"""Tiny random checkpoints in TESS 2's published layout, and a reward model for them: `python tests/tiny_simplex.py FOLDER` writes both.

They decode at once: `python -m lad_engine.generate --model FOLDER/tess2 --reward-model FOLDER/reward --reward-scale 5 "the user"`.
    tess2   a Mistral with timestep_embed.weight [H, 1] and the reference's config fields; pad is id 0
    reward  the same backbone with score.weight [1, H] and no head
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tiny_checkpoint import save_sharded, save_tokenizer, tiny_config, tiny_tensors

PAD_ID = 0
FIELDS = {
    "self_condition": "logits_mean",
    "self_condition_mix_before_weights": True,
    "self_condition_mix_logits_before_weights": False,
    "self_condition_zeros_after_softmax": False,
    "self_condition_mlp_projection": False,
    "deepmind_conditional": False,
    "classifier_free_simplex_inputs": False,
    "classifier_free_uncond_input": "empty_token",
    "empty_token_be_mask": False,
    "is_causal": False,
    "mask_padding_in_loss": False,
    "padding_side": "right",
    "disable_timestep_embed": False,
    "pad_token_id": PAD_ID,
}


def make_tess(folder: str | Path, seed: int = 0, **config: object) -> Path:
    """Write a checkpoint and return its folder; `config` overrides fields of config.json."""
    return _written(folder, tiny_config("mistral", **{**FIELDS, **config}), seed, "timestep_embed.weight", (-1, 1))


def make_reward(folder: str | Path, seed: int = 1, **config: object) -> Path:
    """Write a sequence classifier with one label and return its folder."""
    settings = {"architectures": ["MistralForSequenceClassification"], "num_labels": 1, **config}
    return _written(folder, tiny_config("mistral", tie=True, **settings), seed, "score.weight", (1, -1))


def _written(folder: str | Path, settings: dict, seed: int, name: str, shape: tuple[int, int]) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    own = torch.randn(settings["hidden_size"], generator=torch.Generator().manual_seed(seed + 99)).view(shape)
    save_sharded(folder, {**tiny_tensors(settings, seed=seed), name: own}, shards=2)
    save_tokenizer(folder)
    return folder


if __name__ == "__main__":
    make_tess(Path(sys.argv[1]) / "tess2")
    make_reward(Path(sys.argv[1]) / "reward")
