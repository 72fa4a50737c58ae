"""The authors' decoding loops in plain Python lists, as the specification describes them, drawing from the same random numbers.

It shares no code with the engine: Philox, the schedules, the token choice and every re-noising policy are written out again.
`predict(ids, prompt length, step)` is the caller's, so that the loop also runs over a full-size model; `choose` picks its tokens.
"""

from __future__ import annotations

import heapq
import math
import struct
from collections.abc import Callable

SAMPLE, RENOISE, RETAIN, TRANSFER, START = range(5)


def float32(x: float) -> float:
    return struct.unpack("f", struct.pack("f", x))[0]


def philox_uniform(seed: int, position: int, step: int, purpose: int) -> float:
    """Philox4x32-10 with counter (position, step, purpose, 0); 23 bits and a half of its first word."""
    c = [position, step, purpose, 0]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k1, a & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return ((c[0] >> 9) + 0.5) / 2**23


def choose(logits: list[float], u: float, params, mask_id: int, eos_ids: tuple[int, ...]) -> tuple[int, float]:
    """Bias, temperature, top-k, top-p, one draw; confidence in fp32."""
    logits = list(logits)
    if eos_ids:
        logits[eos_ids[0]] = float32(logits[eos_ids[0]] - params.eos_bias)
    forbidden = {mask_id, *params.suppress_tokens, *(eos_ids if params.eos_treatment == "forbid" else ())}
    for token in forbidden:
        logits[token] = -math.inf
    # The same as sorting everything and taking the first, ties to the lower id.
    order = heapq.nsmallest(params.top_k or len(logits), range(len(logits)), key=lambda v: -logits[v])
    scale = params.temperature if params.temperature > 0 else 1.0
    weight = [math.exp((x - logits[order[0]]) / scale) for x in logits]
    kept = order
    if params.top_p < 1:
        mass, running, survivors = sum(weight[v] for v in kept), 0.0, []
        for v in kept:
            counted = running + weight[v] if params.top_p_rule == "drop_crossing" else running
            if not survivors or counted <= params.top_p * mass:
                survivors.append(v)
            running += weight[v]
        kept = survivors
    total = sum(weight[v] for v in kept)
    token = kept[0]
    if params.temperature > 0:
        running = 0.0
        for v in kept if params.top_k or params.top_p < 1 else range(len(logits)):
            running += weight[v]
            if running > u * total:
                token = v
                break
    return token, float32(weight[token] / (sum(weight) if params.confidence == "full" else total))


def eta(params, i: int) -> float:
    N = params.steps
    if params.noise_schedule == "linear":
        return max(0.0, min(1.0, params.noise_start * (1 - (i + 1) / N)))
    return schedule(params, i) * params.noise_start


def schedule(params, i: int) -> float:
    s = params.noise_sharpness
    return (math.exp(-s * (i / params.steps)) - math.exp(-s)) / (1 - math.exp(-s))


def how_many(params, i: int, positions: int) -> int:
    if params.noise_schedule == "linear":
        return round(eta(params, i) * positions)
    return int(schedule(params, i) * positions * params.noise_start)


def draw_without_replacement(pool: list[int], weight: dict[int, float], n: int, draw: Callable[[int], float]) -> list[int]:
    """Weighted reservoir keys log(u) / w; the n largest win, ties to the lower index."""
    return sorted(pool, key=lambda r: (-math.log(draw(r)) / max(weight[r], 2.0**-126), r))[: max(n, 0)]


def renoise(answer: list[int], pool: list[int], window: int, i: int, params, conf, eos_ids, draw, open_count: int) -> list[int]:
    """Return the positions that become MASK, for every policy but retention."""
    n = how_many(params, i, open_count)
    if params.remasking == "none":
        return []
    if params.remasking == "bernoulli":
        delays = params.eos_treatment == "low_confidence"
        return [r for r in pool if draw(r) < eta(params, i) or (delays and answer[r] in eos_ids)]
    if params.remasking == "clusters":
        if n == 0:
            return []
        clusters = max(1, int((1 - params.cluster_size) * n))
        width = max(1, int(n / clusters))
        covered = set()
        for j in range(clusters):
            begin = max(0, int(draw(j) * window) - width // 2)
            covered |= set(range(begin, min(window, begin + width)))
        return [r for r in sorted(covered)[:n] if r in pool]
    if params.eos_split:
        text = [r for r in pool if answer[r] not in eos_ids]
        ends = [r for r in pool if answer[r] in eos_ids]
        for_text = int(n * len(text) / (len(text) + len(ends) + 1e-5))
        shares = [(text, for_text), (ends, n - for_text)]
    else:
        shares = [(pool, n)]
    out = []
    for part, share in shares:
        if params.remasking == "confidence":
            delayed = {r for r in part if params.eos_treatment == "low_confidence" and answer[r] in eos_ids}
            out += sorted(part, key=lambda r: (-1.0 if r in delayed else conf[r], r))[:share]
        else:
            weight = {r: max(float32(1 - conf[r]), float32(params.noise_clip)) if params.remasking == "weighted" else 1.0 for r in part}
            out += draw_without_replacement(part, weight, share, draw)
    return out


def grow_retained(answer, open_now, retained: set[int], i: int, params, conf, eos_ids, draw, window: int) -> set[int]:
    """The later samplers' retention: fill the kept set up to round((1 - eta) A), best first."""
    keep = min(len(open_now), max(0, round((1 - eta(params, i)) * len(open_now))))
    needed = keep - len(retained)
    candidates = [r for r in open_now if r not in retained]
    if needed <= 0 or not candidates:
        return retained

    def ranked(pool: list[int]) -> list[int]:
        def score(r: int) -> float:
            if params.eos_treatment == "low_confidence" and answer[r] in eos_ids:
                return -1.0
            return conf[r] if params.selection == "confidence" else draw(r)

        return sorted(pool, key=lambda r: (-score(r), r))

    if not params.eos_split:
        return retained | set(ranked(candidates)[:needed])
    ends = [r for r in range(window) if answer[r] in eos_ids]
    boundary = min(ends) if ends else window
    before = [r for r in open_now if r < boundary]
    target = round(keep * len(before) / len(open_now))
    kept_before = len([r for r in retained if r < boundary])
    chosen = ranked([r for r in candidates if r < boundary])[: max(0, target - kept_before)]
    chosen += ranked([r for r in candidates if r >= boundary])[: max(0, keep - target - (len(retained) - kept_before))]
    if len(chosen) < needed:
        chosen += [r for r in candidates if r not in chosen][: needed - len(chosen)]
    return retained | set(chosen)


def authors_loop(predict: Callable, prompt: list[int], answer: list[int], is_open: list[bool], params, mask_id: int, eos_ids) -> dict:
    """Decode one request; `predict(ids, length of the prompt, step)` returns (tokens, confidences) of the visible answer.

    Returns:
        dict with states (after every step, whole answer), answer, nfe, stopped_early.
    """
    answer, A = list(answer), len(answer)

    def drawer(step: int, purpose: int) -> Callable[[int], float]:
        return lambda r: philox_uniform(params.seed, r, step, purpose)

    drafted = [r for r in range(A) if is_open[r] and answer[r] != mask_id]
    for r in draw_without_replacement(drafted, dict.fromkeys(drafted, 1.0), int(params.noise_start * len(drafted)), drawer(0, START)):
        answer[r] = mask_id
    if params.remasking == "transfer":
        return transfer_loop(predict, prompt, answer, is_open, params, mask_id, eos_ids)
    shown = {r for r in range(A) if is_open[r] and answer[r] != mask_id}
    retained: set[int] = set()
    held = [0.0] * A
    states, history, stopped = [], [], False
    for i in range(params.steps):
        window = A if params.tokens_per_step is None else min(A, params.tokens_per_step * (i + 1))
        open_now = [r for r in range(window) if is_open[r]]
        tokens, conf = predict(prompt + answer[:window], len(prompt), i)
        for r in open_now:
            if params.retention == "locked" and r in retained:
                continue
            answer[r], held[r] = tokens[r], conf[r]
        history.append(answer[:window])
        stopped = params.early_stop and len(history) >= 3 and history[-1] == history[-2] == history[-3]
        if stopped or i == params.steps - 1:
            states.append(list(answer))
            break
        protected = shown if params.permanent_unmask else set()
        pool = [r for r in open_now if r not in protected]
        if params.retention != "none":
            retained = grow_retained(answer, open_now, retained, i, params, held, eos_ids, drawer(i, RETAIN), window)
            noise = [r for r in pool if r not in retained]
        else:
            noise = renoise(answer, pool, window, i, params, held, eos_ids, drawer(i, RENOISE), len(open_now))
        for r in noise:
            answer[r] = mask_id
        shown |= {r for r in open_now if answer[r] != mask_id}
        states.append(list(answer))
    return {"states": states, "answer": answer, "nfe": len(states), "stopped_early": stopped and i < params.steps - 1}


def transfer_loop(predict, prompt, answer, is_open, params, mask_id: int, eos_ids) -> dict:
    """LLaDA: blocks left to right, mask_count // steps tokens a step become final, the surest (or any) first.

    With a threshold also all that are so sure (Fast-dLLM), always in the leftmost block that is not done.
    """
    A = len(answer)
    width = min(params.block_length or A, A)
    blocks = math.ceil(A / width)
    planned = []
    for b in range(blocks):
        steps = params.steps // blocks + (1 if b < params.steps % blocks else 0)
        inside = range(b * width, min(A, (b + 1) * width))
        masked = len([r for r in inside if is_open[r] and answer[r] == mask_id])
        planned += [(inside, masked // steps + (1 if j < masked % steps else 0)) for j in range(steps)]
    states = []
    for i, (inside, budget) in enumerate(planned):
        tokens, conf = predict(prompt + answer, len(prompt), i)
        candidates = [r for r in range(A) if is_open[r] and answer[r] == mask_id]
        if params.threshold is not None and candidates:
            inside = range(candidates[0] // width * width, min(A, (candidates[0] // width + 1) * width))
        candidates = [r for r in candidates if r in inside]

        def score(r: int, tokens=tokens, conf=conf, step=i) -> float:
            if params.eos_treatment == "low_confidence" and tokens[r] in eos_ids:
                return -1.0
            return conf[r] if params.selection == "confidence" else philox_uniform(params.seed, r, step, TRANSFER)

        chosen = sorted(candidates, key=lambda r: (-score(r), r))[:budget]
        if params.threshold is not None:
            chosen += [r for r in candidates if score(r) >= params.threshold]
        for r in chosen:
            answer[r] = tokens[r]
        states.append(list(answer))
        # Ours: what is read cannot change once no MASK is left in front of an end of text (given tokens behind it are read too).
        given_until = max((r + 1 for r in range(A) if not is_open[r]), default=0)
        end = next((r for r in range(given_until, A) if answer[r] in eos_ids), A)
        if params.early_stop and not any(is_open[r] and answer[r] == mask_id for r in range(end)):
            answer = [tokens[r] if is_open[r] and answer[r] == mask_id else answer[r] for r in range(A)]
            states[-1] = list(answer)
            return {"states": states, "answer": answer, "nfe": i + 1, "stopped_early": i + 1 < params.steps}
    return {"states": states, "answer": answer, "nfe": len(states), "stopped_early": False}
