"""The README's measured tables, made from the committed results and from nothing else.

python -m bench.report              # rewrite the tables between the README's markers, and the plots beside the results
python -m bench.report --check      # only say whether they are what the results give; exit status 1 where not
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import crossover, scaling, trials
from bench.quality_tables import quality_tables
from bench.results import REPOSITORY, RESULTS, read_results

BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
README = REPOSITORY / "README.md"
Result = Mapping[str, Any]
# What the CPU engine is asked for: (what, part of bench/cpu.py, ratio or figure, limit, whether at most). On a machine with bfloat16
# products the bf16 limits count; elsewhere they are shown with what that machine gives.
CPU_TARGETS = (
    ("step in bf16 against transformers fp32 eager", "step", "bf16 against fp32", 5.0),
    ("step in int8 against transformers fp32 eager", "step", "int8 against fp32", 7.0),
    ("step in bf16 against transformers bf16 eager", "step", "bf16 against bf16", 1.35),
    ("step in int8 against transformers bf16 eager", "step", "int8 against bf16", 2.0),
    ("step in fp32 against transformers fp32 eager", "step", "fp32 against fp32", None),
    ("head and draw of the answer rows against topk + softmax + multinomial, fp32", "head", "head in fp32", 1.8),
    ("head and draw of the answer rows against topk + softmax + multinomial, bf16", "head", "head in bf16", 1.8),
    ("update and re-noising against the authors' Python loops", "update", "update", 50.0),
    ("16-step answer against the authors' loop, fp32", "answer", "answer in fp32", 2.0),
    ("16-step answer against the authors' loop, bf16", "answer", "answer in bf16", 2.0),
    ("16-step answer against transformers generate, both in bf16", "generate", "bf16 against generate bf16", 4.0),
    ("16-step answer against transformers generate, both in fp32", "generate", "fp32 against generate fp32", 4.0),
)


def published(folder: Path) -> str:
    """Return the Markdown that stands between the markers: the results in a folder, its quality/ and its training/."""
    path = folder / "training" / "trials.json"
    results = read_results(folder) + ([json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else [])
    return "\n\n".join([*quality_tables(folder / "quality"), measured(results)])


def measured(results: list[Result]) -> str:
    """Return a table for each result that is no quick one."""
    shown = [result for result in results if not result.get("is_quick")]
    parts = [TABLES[result["bench"]](result) for result in shown if result["bench"] in TABLES]
    return "\n\n".join(parts) if parts else "Nothing has been measured yet."


def conditions_of(result: Result) -> str:
    """Return one line that says on what, with which versions and under which load a result was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    machine = f" {result['machine'][:1].upper()}{result['machine'][1:]}." if result.get("machine") else ""
    where = f"{result['device']}, {result['cores']} cores, {result['threads']} threads"
    return f"*{where}; {versions}; commit {result['commit']}, {result['date']}.{machine} {result['counted']}*"


def _table(title: str, result: Result, head: list[str], rows: list[list[str]], *notes: str) -> str:
    lines = [f"#### {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *notes, *([""] if notes else []), conditions_of(result)])


def _ms(us: float) -> str:
    ms = us / 1e3
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 1 else f"{us:.0f} us"


def _spread(timing: Mapping[str, Any]) -> str:
    return f"{_ms(timing['median_us'])} ({_ms(timing['min_us'])} to {_ms(timing['max_us'])})"


def _setting(row: Mapping[str, Any]) -> list[str]:
    return [str(row["model"]), str(row.get("precision") or row["dtype"]), str(row["batch"]), str(row["canvas"]), str(row["answer_rows"])]


# Of a row of bench/families/decode.py and its transcription: field, digits shown.
FAMILY_FIGURES = (("ms_per_step", 1), ("tokens_per_s", 2), ("head_rows_per_step", 0))
SETTING_HEAD = ["model", "precision", "batch", "canvas", "rows read"]


def step_table(result: Result) -> str:
    """One line per setting: ours, each opponent, and how many times longer it takes."""
    rows = []
    for row in result["rows"]:
        ours = min((t for who, t in row["times"].items() if who.startswith("ours")), key=lambda t: t["median_us"], default=None)
        others = [f"{who} {_ms(t['median_us'])}" for who, t in row["times"].items() if not who.startswith("ours")]
        ratios = [f"{who} {ratio:.2f} x" for who, ratio in row.get("ratios", {}).items()]
        rows.append([*_setting(row), _spread(ours) if ours else "", "<br>".join(others), "<br>".join(ratios)])
    return _table("One denoising step", result, [*SETTING_HEAD, "ours", "others", "others / ours"], rows)


def cpu_table(result: Result) -> str:
    """The targets of the CPU engine, each with what was measured, and the times behind them."""
    ratios = {(row["part"], name): ratio for row in result["rows"] for name, ratio in row.get("ratios", {}).items()}
    rows = []
    for what, part, name, limit in CPU_TARGETS:
        found = ratios.get((part, name))
        verdict = "" if limit is None or found is None else "met" if found >= limit else "missed"
        rows.append([what, "" if limit is None else f"≥ {limit:g} x", "unmeasured" if found is None else f"{found:.2f} x", verdict])
    for row in (row for row in result["rows"] if row["part"] == "start" and row["times"]):
        seconds, peak = row["times"]["start to first step"]["median_us"] / 1e6, row["peak_mb"]
        limits = (900.0, 4.0) if row["dtype"] == "bfloat16" else (None, None)
        figures = (("peak memory", "MB", peak, limits[0], 0), ("start to first step", "s", seconds, limits[1], 1))
        for what, unit, value, limit, digits in figures:
            verdict = "" if limit is None else "met" if value <= limit else "missed"
            wanted = "" if limit is None else f"≤ {limit:g} {unit}"
            rows.append([f"{what}, default base, {row['dtype']}", wanted, f"{value:.{digits}f} {unit}", verdict])
    times = [f"{row['part']}: " + ", ".join(f"{who} {_ms(t['median_us'])}" for who, t in row["times"].items()) for row in result["rows"]]
    settings = dict.fromkeys((row["model"], row["canvas"], row["answer_rows"]) for row in result["rows"] if row["part"] != "start")
    sizes = "".join(f"{model}, canvas {canvas}, {answer_rows} rows read, batch 1. " for model, canvas, answer_rows in settings)
    setting = f"{sizes}Medians: {'; '.join(times)}."
    return _table("CPU engine", result, ["what", "target", "measured", "verdict"], rows, setting)


def decode_table(result: Result) -> str:
    """One line per decode: whole time, tokens a second, first text."""
    rows = []
    for row in result["rows"]:
        for who, timing in row["times"].items():
            rate = row.get("tokens_before_eos_per_s") or row["batch"] * row["answer_rows"] / timing["median_us"] * 1e6
            first = _ms(row["first_text_us"]) if row.get("first_text_us") and who.startswith("ours") else ""
            rows.append([*_setting(row), who, str(row["steps"]), _spread(timing), f"{rate:.0f}", first])
    crossings = [
        f"Batch {found['batch']}, canvas {found['canvas']}: {found['against']} is faster from {found['crossover_steps']:.0f} steps on."
        for found in result.get("crossovers", [])
        if found["crossover_steps"] is not None
    ]
    head = [*SETTING_HEAD, "decoder", "steps", "whole answer", "tokens/s", "first text"]
    return _table("Whole answers", result, head, rows, *crossings)


def scaling_table(result: Result) -> str:
    """One line per size of each axis, and the exponents."""
    rows = []
    for row in result["rows"]:
        timing = min(row["times"].values(), key=lambda t: t["median_us"])
        size = f"{row['axis']} {row[row['axis']]}"
        rows.append(
            [str(row["model"]), row["dtype"], size, _spread(timing), _ms(row["floor_us"]), f"{row['floor_us'] / timing['median_us']:.0%}"]
        )
    fits = [
        f"{fit['model']}: time grows as {fit['axis']}^{fit['exponent']:.2f} (the roof as {fit['axis']}^{fit['exponent_of_floor']:.2f})."
        for fit in result["exponents"]
        if fit["exponent"] is not None
    ]
    return _table("Growth with canvas, batch and steps", result, ["model", "dtype", "size", "time", "roof", "share of roof"], rows, *fits)


def ops_table(result: Result) -> str:
    """One line per op and case: our best backend, the best library call, and their ratio."""
    rows = []
    for row in result["rows"]:
        ours = {who: t["median_us"] for who, t in row["times"].items() if not who.startswith("peer: ") and who != "reference"}
        peers = {who.removeprefix("peer: "): t["median_us"] for who, t in row["times"].items() if who.startswith("peer: ")}
        best, peer = (min(found, key=found.__getitem__) if found else None for found in (ours, peers))
        reference = row["times"].get("reference")
        rows.append(
            [
                f"{row['op']} {row['case']}".strip(),
                row["dtype"],
                f"{best} {_ms(ours[best])}" if best else "",
                f"{peer} {_ms(peers[peer])}" if peer else "",
                f"{peers[peer] / ours[best]:.2f} x" if best and peer else "",
                _ms(reference["median_us"]) if reference else "",
            ]
        )
    return _table("Ops", result, ["op", "dtype", "ours", "library", "library / ours", "plain PyTorch"], rows)


def agreement_table(result: Result) -> str:
    """One line per precision: how many tokens agree with the weights as they are, and the time of a step."""
    rows = []
    for row in result["rows"]:
        found, base = row["agreement"], row["times"].get(row["dtype"])
        ours = row["times"].get(found["precision"])
        speed = f"{base['median_us'] / ours['median_us']:.2f} x" if base and ours else ""
        share = f"{found['token_agreement']:.1%}"
        rows.append([found["base"], str(found["adapter"]), found["precision"], row["dtype"], share, str(found["positions"]), speed])
    return _table(
        "Agreement of a precision", result, ["base", "adapter", "precision", "against", "tokens equal", "of", "step faster by"], rows
    )


def families_table(result: Result) -> str:
    """One line per family and loop: what a pass costs on both sides, how often it is made, and the target where there is one."""
    rows, notes = [], []
    for row in result["rows"]:
        theirs, ratio, limit = row["transcription"], row["ratios"]["transcription"], row.get("target")
        verdict = "" if limit is None else f" ({'met' if ratio >= limit else 'missed'}: ≥ {limit:g} x)"
        pairs = [f"{row[name]:.{digits}f} / {theirs[name]:.{digits}f}" for name, digits in FAMILY_FIGURES]
        where = f"{row['model']}, {row['dtype']}, B {row['batch']}, T {row['canvas']}"
        rows.append([f"{row['family']}, {row['loop']}", where, f"{row['nfe']} / {theirs['nfe']}", *pairs, f"{ratio:.2f} x{verdict}"])
        if row.get("peak_mib") is not None:
            peaks = f"{row['peak_mib']:.0f} MiB, transcription {theirs['peak_mib']:.0f} MiB"
            whole = f"one fp32 number per position and vocabulary entry takes {row['noise_mib']:.0f} MiB"
            notes.append(f"Memory beyond the model, {row['family']} {row['loop']}: {peaks}; {whole}.")
    head = ["family, loop", "model", "NFE", "ms per step", "tokens/s", "rows through the head per step", "transcription / ours"]
    return _table("Decoding families, ours / plain transcription of the reference loop", result, head, rows, *notes)


def evidence_table(result: Result) -> str:
    """One line per claim about an adaptation: both values, how much better ours is with its interval, and whether it holds.

    What is measured beside the claims stands below them without being asked for.
    """
    rows, notes = [], []
    for row in result["rows"]:
        for one in [*row["claims"], *({**one, "what": f"(beside) {one['what']}"} for one in row.get("beside", []))]:
            gain = f"{one['gain']:.3g} ({one['low']:.3g} to {one['high']:.3g})" if "gain" in one else ""
            verdict = "holds" if one["is_clear"] else "holds, within chance" if one["holds"] else "does not hold"
            rows.append([row["family"], one["what"], f"{one['value']:.3g}", f"{one['against']:.3g}", gain, str(one["n"]), verdict])
        if row.get("plot"):
            notes.append(f"Loss curve: [bench/results/{row['plot']}](bench/results/{row['plot']}).")
    head = ["family", "claim", "value", "against", "better by (95 %)", "examples", "verdict"]
    return _table("What a short adaptation learnt", result, head, rows, *notes)


def train_table(result: Result) -> str:
    """One line per model and contestant: tokens a second, MFU, and how much faster than the authors' recipe."""
    rows = []
    for row in result["rows"]:
        for who, timing in row["times"].items():
            ratio = row["ratios"].get(who)
            verdict = "" if who != "ours" or ratio is None else f" ({'met' if ratio >= row['target'] else 'missed'}: ≥ {row['target']:g} x)"
            rates = [f"{row[field][who]:.1f}" for field in ("text_tokens_per_s", "positions_per_s")]
            speed = "" if ratio is None else f"{ratio:.2f} x{verdict}"
            rows.append([str(row["model"]), row["dtype"], who, _spread(timing), *rates, f"{row['mfu'][who]:.1%}", speed])
    head = ["model", "dtype", "trainer", "epoch", "text tokens/s", "positions/s", "MFU", "against the authors' recipe"]
    return _table("Training speed", result, head, rows)


def trials_table(result: Result) -> str:
    """One line per trial, as bench/trials.py writes them."""
    steps = {row["config"]["steps"] for row in result["rows"]}
    updates = " and ".join(str(count) for count in sorted(steps))
    return "\n".join([f"#### Training trials of {updates} updates", "", trials.table(result["rows"]), conditions_of(result)])


def profile_table(result: Result) -> str:
    """One line per op of a step: its time, share and rates."""
    rows = []
    for row in result["rows"]:
        rates = [f"{row[name]:.0f}" if row[name] and row[name] >= 1 else "" for name in ("gflop_per_s", "gb_per_s")]
        name = f"{row['op']} {row['case']}".strip()
        rows.append([row["precision"], name, str(row["calls"]), _spread(row["times"]["ours"]), f"{row['share']:.1%}", *rates])
    head = ["precision", "op", "calls", "together", "share", "GFLOP/s", "GB/s"]
    return _table("Where a step on a CPU goes", result, head, rows)


def serve_table(result: Result) -> str:
    """One line per mix, mode and number of clients; the targets that were missed below."""
    rows = []
    for row in result["rows"]:
        mode = "each row by itself" if row["batch_invariant"] else "rows together"
        speed = [f"{row['requests_per_s']:.1f}", f"{row['speedup']:.2f} x", f"{row['median_ms']:.1f} ms", f"{row['mean_batch']:.1f}"]
        rows.append([row["mix"], mode, str(row["clients"]), *speed, str(row["different"])])
    head = ["canvases", "mode", "clients", "requests/s", "against the first", "each", "rows a step", "answers that differ"]
    note = f"HTTP adds {result['overhead_ms']:.2f} ms to a request. Missed targets: {'; '.join(result['missed']) or 'none'}."
    return _table("Serving a tiny model", result, head, rows, note)


def soak_table(result: Result) -> str:
    """One line per soak or load; what did not hold below."""
    rows, notes = [], []
    for row in result["rows"]:
        if row["kind"] == "soak":
            found = f"{row['stuck']} stuck, {row['server_errors']} errors of the server, memory {row['rss_kib_per_min']:+.0f} KiB a minute"
            found += f", {row['adapter_changes']} adapter changes, {row['given_up']} requests left"
        else:
            found = f"{row['lost']} lost, {row['different']} of {row['compared']} answers differ from those alone"
        rows.append([row["kind"], f"{row['seconds'] / 60:.1f} min", str(row["clients"]), str(row["requests"]), found])
        notes += [f"Does not hold: {sentence}." for sentence in row["broken"]]
    return _table("Soak and load of a server", result, ["what", "time", "clients", "requests", "found"], rows, *notes)


TABLES: dict[str, Callable[[Result], str]] = {
    "cpu": cpu_table,
    "step": step_table,
    "decode": decode_table,
    "scaling": scaling_table,
    "ops": ops_table,
    "agreement": agreement_table,
    "profile": profile_table,
    "serve": serve_table,
    "soak": soak_table,
    "train": train_table,
    "trials": trials_table,
    "families": families_table,
    "families_evidence": evidence_table,
}


def replaced(readme: str, tables: str) -> str:
    """Return the README with `tables` between its markers; ValueError where a marker is missing or out of order."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"report: README.md lacks {BEGIN} ... {END}, expected both. Put the markers where the tables belong.")
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def plots(folder: Path) -> list[Path]:
    """Draw each decode's crossover and each scaling result beside its JSON; nothing without matplotlib."""
    draw_by_bench = {"decode": crossover.plot, "scaling": scaling.plot}
    drawn = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(result, dict) and result.get("bench") in draw_by_bench:
            drawn.append(draw_by_bench[result["bench"]](result["rows"], path.with_suffix(".png")))
    return [path for path in drawn if path is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where the README is stale")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=README)
    options = parser.parse_args()
    old = options.readme.read_text(encoding="utf-8")
    new = replaced(old, published(options.results))
    if options.check:
        if old != new:
            sys.exit(f"{options.readme}: the measured tables are stale. Run python -m bench.report and commit the README.")
        return
    options.readme.write_text(new, encoding="utf-8")
    drawn = plots(options.results)
    print(f"{options.readme}: {'changed' if old != new else 'as it was'}; plots: {', '.join(path.name for path in drawn) or 'none'}")


if __name__ == "__main__":
    main()
