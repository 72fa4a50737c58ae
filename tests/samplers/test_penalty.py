"""Frequency and presence penalties: what counts, and that a decode under them is the plain loop's, alone and in a batch."""

from __future__ import annotations

import pytest
import torch
from stub_model import EOS, MASK

from lad_engine import Engine, Prompt
from lad_engine.errors import ConfigError
from lad_engine.samplers.penalty import penalties
from lad_engine.text.formats import prompt_ids
from tiny_adapter import write_adapter
from tiny_checkpoint import make_tiny

SETTINGS = {"remasking": "transfer", "temperature": 0.0, "block_length": 1, "steps": 12, "max_new_tokens": 12, "eos_treatment": "forbid"}


def test_a_token_is_lowered_for_each_time_it_was_written_and_once_for_being_there():
    answer = torch.tensor([[7, 8, 7, MASK, EOS, 7, 9], [8, 8, 8, 8, MASK, 9, EOS]])
    is_open = torch.ones_like(answer, dtype=torch.bool)
    is_open[0, 0], is_open[0, 6] = False, False
    by = penalties(answer, is_open, MASK, torch.tensor([EOS]), torch.tensor([0.5, 0.0]), torch.tensor([0.25, -1.0]))
    # Given tokens (the first 7, the 9) count for nothing; the same token is lowered alike wherever it stands.
    assert by.tolist() == [[1.25, 0.75, 1.25, 0.0, 0.0, 1.25, 0.0], [-1.0, -1.0, -1.0, -1.0, 0.0, -1.0, 0.0]]


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    folder = make_tiny(tmp_path_factory.mktemp("tiny"))
    return Engine.load(folder, adapter=write_adapter(folder, folder / "a.safetensors"), device="cpu", dtype="float32")


def plain(engine: Engine, prompt: Prompt, penalty: float, presence: float) -> list[int]:
    """One position after the other, greedily, with the penalty taken off the logits by hand."""
    front, out = prompt_ids(prompt, engine.codec, engine.adapter_facts), []
    for place in range(12):
        canvas = torch.tensor([[*front, *out, *[engine.mask_id] * (12 - place)]])
        row = engine.model.head.row_of(torch.tensor([len(front) + place]))
        with torch.no_grad():
            logits = engine.model.head.logits(engine.model.hidden(canvas)[0, row])[0]
        logits[[engine.mask_id, *engine.eos_ids]] = -torch.inf
        for token in set(out):
            logits[token] -= penalty * out.count(token) + presence
        out.append(int(logits.argmax()))
    return out


@pytest.mark.parametrize(("frequency", "presence"), [(0.0, 0.0), (1.5, 0.0), (0.0, 1.0), (0.75, 0.5), (-2.0, 0.0)])
def test_a_decode_is_the_plain_loops(engine, frequency, presence):
    prompt = Prompt("the user is in", format="raw")
    params = engine.sampling("paper", **SETTINGS, frequency_penalty=frequency, presence_penalty=presence)
    assert list(engine.generate(prompt, params)[0].token_ids) == plain(engine, prompt, frequency, presence)


def test_a_penalty_changes_no_batch_mate_and_a_batch_no_penalised_answer(engine):
    prompt = Prompt("the user is in", format="raw")
    plainly = engine.sampling("paper", **SETTINGS)
    lowered = plainly.replace(frequency_penalty=1.0, presence_penalty=1.0)
    alone = [engine.generate(prompt, one)[0] for one in (plainly, lowered)]
    together = engine.generate([prompt] * 3, [plainly, lowered, plainly])
    assert alone[0].token_ids != alone[1].token_ids
    assert len(set(alone[1].token_ids)) > len(set(alone[0].token_ids))
    for result, wanted in zip(together, (alone[0], alone[1], alone[0]), strict=True):
        assert (result.token_ids, result.confidences) == (wanted.token_ids, wanted.confidences)


def test_a_penalty_is_refused_where_tokens_are_not_final(engine):
    with pytest.raises(ConfigError, match=r"frequency_penalty is 1\.0, expected it only with remasking transfer"):
        engine.sampling("paper", frequency_penalty=1.0)
    with pytest.raises(ConfigError, match=r"presence_penalty is 3\.0, expected"):
        engine.sampling("paper", **SETTINGS, presence_penalty=3.0)
