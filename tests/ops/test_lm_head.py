"""What parity on its own cases cannot see of the head: tile and chunk edges, rounding, rows that must not depend on others, memory."""

from __future__ import annotations

import inspect

import pytest
import torch

pytest.importorskip("triton", reason="Triton is only published for Linux")

from lad_engine.kernels.choose_token import triton_kernel as choice
from lad_engine.kernels.choose_token.cases import rule_columns
from lad_engine.kernels.lm_head import cublas_kernel, triton_kernel
from lad_engine.kernels.lm_head.reference import lm_head as reference
from lad_engine.ops import load_op

BACKENDS = {"cublas": cublas_kernel, "triton": triton_kernel}


def inputs(N, V, D, device, *, dtype=torch.float32, **rule):
    """Small integers, so that a sum of products is one number whatever its order, and many scores are equal."""
    rows, weight = (torch.randint(-1, 2, shape, device=device).to(dtype) for shape in ((N, D), (V, D)))
    return {"rows": rows, "weight": weight / 8, **rule_columns(device, N, V, **rule)}


def assert_same(backend, case):
    token, confidence = BACKENDS[backend].lm_head(**case)
    wanted_token, wanted_confidence = reference(**case)
    assert token.tolist() == wanted_token.tolist()
    torch.testing.assert_close(confidence, wanted_confidence, rtol=4e-6, atol=1e-12)
    return token, confidence


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("N", "V", "D", "k"), [(1, 2, 64, 2), (3, 127, 64, 4), (17, 257, 577, 3), (9, 128, 48, 1), (5, 385, 64, 8), (2, 1030, 576, 5)]
)
def test_edges_of_a_tile(backend, N, V, D, k, device):
    assert_same(backend, inputs(N, V, D, device, max_top_k=k, top_k=k, temperature=0.9, top_p=0.95))


@pytest.mark.parametrize("k", [1, 4, 50])
def test_chunks_carry_keys_and_mass_on(k, device, monkeypatch):
    monkeypatch.setattr(cublas_kernel, "launch_config", lambda N, V: {"columns": 300})
    monkeypatch.setattr(cublas_kernel, "MAX_ROWS", 3)
    case = inputs(4, 700, 64, device, max_top_k=k, top_k=k, temperature=1.1)
    case["full_confidence"] = torch.ones_like(case["full_confidence"])
    # Equal scores on both sides of a chunk's end: the lower id wins.
    case["weight"][290:310] = case["weight"][5]
    case["rows"][0] = 8 * case["weight"][5]
    assert_same("cublas", case)
    # A row whose first chunk is forbidden has no mass there, and no NaN.
    case["bias_ids"] = torch.arange(300, device=device)
    case["bias_values"] = torch.full((4, 300), -torch.inf, device=device)
    token, _ = assert_same("cublas", case)
    assert int(token.min()) >= 300


def test_a_forbidden_tile_has_no_mass_and_no_nan(device):
    case = inputs(2, 300, 64, device, max_top_k=4, top_k=4)
    case["bias_ids"] = torch.arange(1, 300, device=device)
    case["bias_values"] = torch.full((2, 299), -torch.inf, device=device)
    token, confidence = assert_same("triton", case)
    assert token.tolist() == [0, 0] and confidence.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_are_rounded_before_they_are_compared(backend, device):
    # 2053 is no number of fp16: rounded to 2052 it ties with the lower id, in fp32 it would win.
    case = inputs(2, 300, 64, device, dtype=torch.float16)
    case["rows"][:], case["weight"][:] = 0.0, 0.0
    case["rows"][:, :2] = 1.0
    case["weight"][100, 0] = case["weight"][200, 0] = 2052.0
    case["weight"][200, 1] = 1.0
    assert int((case["rows"].float() @ case["weight"].float().T)[0].argmax()) == 200
    token, _ = assert_same(backend, case)
    assert token.tolist() == [100, 100]


@pytest.mark.parametrize("backend", BACKENDS)
def test_calls_no_short_list_answers_hold_few_rows_of_logits(backend, device, monkeypatch):
    seen, linear = [], torch.nn.functional.linear
    monkeypatch.setattr(cublas_kernel, "FULL_ROWS", 2)
    calls = (
        {"max_top_k": 0, "top_k": 0, "top_p": 0.7},
        {"max_top_k": 1, "top_k": 0, "samples_all": True, "temperature": 0.8},
        {"max_top_k": 129, "top_k": 129, "temperature": 2.0},
    )
    for rule in calls:
        case = inputs(3, 260, 64, device, **rule)
        wanted = reference(**case)
        monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w: (seen.append(len(x)), linear(x, w))[1])
        token, _ = BACKENDS[backend].lm_head(**case)
        monkeypatch.setattr(torch.nn.functional, "linear", linear)
        assert token.tolist() == wanted[0].tolist()
    assert seen == [2, 1] * len(calls)


def test_the_thousandth_candidate_is_exact(device):
    case = inputs(2, 1500, 64, device, max_top_k=1024, top_k=1024, temperature=8.0)
    case["uniforms"] = torch.tensor([0.3, 0.99999], device=device)
    assert_same("cublas", case)


def test_a_row_has_the_same_bits_whatever_it_is_called_with(device):
    rows, weight = torch.randn(130, 64, device=device), torch.randn(300, 64, device=device)
    rule = rule_columns(device, 130, 300, max_top_k=1, temperature=0.8)
    every = triton_kernel.lm_head(rows, weight, **rule)
    some = torch.tensor([129, 3, 77], device=device)
    tables = {name: value[some] if isinstance(value, torch.Tensor) and name != "bias_ids" else value for name, value in rule.items()}
    few = triton_kernel.lm_head(rows[some], weight, **tables)
    assert torch.equal(few[0], every[0][some]) and torch.equal(few[1], every[1][some])
    assert few[0].tolist() == reference(rows[some], weight, **tables)[0].tolist()
    # The tile takes no number of rows.
    assert "N" not in inspect.signature(triton_kernel.launch_config).parameters


@pytest.mark.parametrize("rule", [{"max_top_k": 50, "top_k": 50}, {"max_top_k": 0, "top_k": 0, "top_p": 0.7}, {"max_top_k": 4, "top_k": 4}])
def test_the_invariant_form_keeps_a_rows_bits_in_every_call(rule, device, monkeypatch):
    monkeypatch.setattr(triton_kernel, "FULL_ROWS", 4)
    case = inputs(6, 300, 64, device, temperature=0.8, **rule)
    case["rows"] = torch.randn_like(case["rows"])
    token, confidence = triton_kernel.invariant(**case)
    assert token.tolist() == reference(**case)[0].tolist()
    columns = [name for name, value in case.items() if isinstance(value, torch.Tensor) and name not in ("weight", "bias_ids")]
    for row in range(6):
        alone = triton_kernel.invariant(**{**case, **{name: case[name][row : row + 1] for name in columns}})
        assert torch.equal(alone[0][0], token[row]) and torch.equal(alone[1][0], confidence[row])


def test_a_measured_tile_chooses_the_same_tokens(device):
    case = inputs(5, 300, 64, device, max_top_k=4, top_k=4, temperature=0.9)
    for config in triton_kernel.candidates(64, 2, 90):
        run = load_op("lm_head").configured("triton", config)
        assert run(**case)[0].tolist() == reference(**case)[0].tolist()
    with pytest.raises(ValueError, match="lm_head=triton: config names BLOCK_M, expected BLOCK_D"):
        triton_kernel.configured({"BLOCK_M": 64})


def test_a_chunk_covers_the_vocabulary_and_stays_in_the_cache():
    for N in (1, 17, 127, 128, 129, 256, 500, 1000, cublas_kernel.MAX_ROWS):
        for V in (2, 123, 49152, 128256, 262144):
            columns = cublas_kernel.launch_config(N, V)["columns"]
            assert 0 < columns <= V
            assert columns == V or columns % cublas_kernel.TILE_COLUMNS == 0
            assert N * columns * 2 <= 8.8e6
            config = choice.launch_config(columns, least_tiles=1)
            assert config["splits"] * config["split_length"] >= columns > (config["splits"] - 1) * config["split_length"]
    # PERF: one wave of 128 x 256 tiles on 132 multiprocessors at 256 rows.
    assert cublas_kernel.launch_config(256, 128256)["columns"] == 16896


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_shapes_are_named_and_no_rows_are_no_work(backend, device):
    case = inputs(2, 30, 64, device)
    head = BACKENDS[backend].lm_head
    for wrong in ({"rows": case["rows"][:, 1:]}, {"weight": case["weight"].half()}, {"rows": case["rows"][0]}):
        with pytest.raises(ValueError, match="lm_head: rows are"):
            head(**{**case, **wrong})
    with pytest.raises(ValueError, match="lm_head: bias_values is"):
        head(**{**case, "bias_values": case["bias_values"][:1]})
    empty = {name: value[:0] if name in ("rows", "bias_values") else value for name, value in case.items()}
    token, confidence = head(**empty)
    assert token.shape == confidence.shape == (0,)
