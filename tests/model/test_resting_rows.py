"""Sequences that nobody reads are not forwarded, also where a padded batch is forwarded at once."""

from __future__ import annotations

import pytest
import torch

from lad_engine import Engine
from tiny_checkpoint import make_tiny

LENGTHS = (33, 11, 20, 8)


@pytest.mark.parametrize("rows_stand_alone", [False, True])
def test_a_padded_batch_leaves_resting_rows_out(tmp_path, monkeypatch, rows_stand_alone):
    model = Engine.load(make_tiny(tmp_path, tie=True), adapter=None, dtype="float32", batch_invariant=rows_stand_alone).model
    model.rows_stand_alone = rows_stand_alone
    ids = torch.randint(5, 300, (4, 40), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(6).expand(4, 6).contiguous()
    forwarded, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, *rest: forwarded.append(tuple(ids.shape)) or hidden(ids, *rest))
    with torch.inference_mode():
        whole = model.read_rows(ids, positions, LENGTHS)
        live = model.read_rows(ids, positions, LENGTHS, (True, False, False, True))
        none = model.read_rows(ids, positions, LENGTHS, (True,) * 4)
    # The longest of those that are read decides the shape.
    assert forwarded == [(4, 33), (2, 20)]
    torch.testing.assert_close(live[1:3], whole[1:3], atol=2e-5, rtol=1e-5)
    assert not live[[0, 3]].any() and not none.any()
