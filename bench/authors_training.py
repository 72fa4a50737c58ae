"""The authors' training recipe written plainly with PEFT and transformers, from a description (LAD spec, section 2).

What costs time is kept: every example padded with EOS to the whole window, an additive mask of ones over all positions, logits of every
position in fp32 at once, mean cross-entropy over all of them. Corruption was done once beforehand, so it is outside the clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn


@dataclass(frozen=True)
class AuthorsRecipe:
    """Their optimiser's settings; rank is the smallest of the paper's."""

    rank: int = 128
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    learning_rate: float = 1e-5
    weight_decay: float = 0.01
    clip: float = 0.5
    warmup_steps: int = 100
    steps: int = 100_000


class AuthorsTraining:
    """Trains LoRA pairs that PEFT lays beside `base` (a causal model of transformers); autocast on a GPU, as they do.

    Raises:
        ImportError: peft is not installed.
    """

    def __init__(self, base: nn.Module, recipe: AuthorsRecipe = AuthorsRecipe()) -> None:
        import peft

        settings = peft.LoraConfig(
            r=recipe.rank, lora_alpha=recipe.rank, target_modules=list(recipe.targets), lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
        )
        self.model = peft.get_peft_model(base, settings).train()
        self.recipe = recipe
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self.schedule = transformers.get_cosine_schedule_with_warmup(self.optimizer, recipe.warmup_steps, recipe.steps)

    def loss(self, noised: Tensor, clean: Tensor) -> Tensor:
        """Return the mean cross-entropy of every position of `noised` `[B, T]` against `clean`."""
        B, T = clean.shape
        mask = torch.ones(B, 1, T, T, dtype=next(self.model.parameters()).dtype, device=clean.device)
        with torch.autocast(clean.device.type, dtype=torch.bfloat16, enabled=clean.device.type == "cuda"):
            logits = self.model(input_ids=noised, attention_mask=mask, use_cache=False).logits
        return nn.functional.cross_entropy(logits.float().view(B * T, -1), clean.view(-1))

    def update(self, noised: Tensor, clean: Tensor) -> float:
        """Make one optimizer update and return its loss."""
        loss = self.loss(noised, clean)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return float(loss.detach())
