"""DoRA's and QLoRA's training step beside LoRA's, and how near LoRA's comes to the machine's own rate: a section of bench/run.py's report."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

METHODS = ("lora", "dora", "qlora")


def section(run: Callable[[str], dict[str, Any]], name: str, rounds: int, matrix_rate: float) -> dict[str, Any]:
    """The three methods in turn, `rounds` times, each in a fresh process, in an order that changes from round to round.

    run: one process of the named method, as bench/ours.py reports it. matrix_rate: floating point operations a second that matrix
    products reach here in the number format of the training.
    """
    taken: list[dict[str, dict[str, Any]]] = []
    for number in range(rounds):
        order = METHODS[number % 3 :] + METHODS[: number % 3]
        taken.append({method: run(method) for method in order})
    rates = {m: median(t[m]["tokens_per_second"] for t in taken) for m in METHODS}
    ratios = {m: [t["lora"]["tokens_per_second"] / t[m]["tokens_per_second"] for t in taken] for m in METHODS[1:]}
    quantised = taken[0]["qlora"]["quantised"]
    return {
        "name": name,
        "tokens_per_second": rates,
        "step_over_lora": {m: {"of_medians": rates["lora"] / rates[m], "low": min(r), "high": max(r)} for m, r in ratios.items()},
        "peak_memory_bytes": {m: median(t[m]["peak_memory_bytes"] for t in taken) for m in METHODS},
        "quantised_share": quantised["bytes"] / quantised["bfloat16_bytes"],
        "matrix_rate": matrix_rate,
        "matrix_share": median(t["lora"]["product_operations_per_second"] for t in taken) / matrix_rate,
        "rounds": taken,
    }


def table(measured: list[dict[str, Any]]) -> list[str]:
    """The section in Markdown, line by line."""
    if not measured:
        return []
    lines = [
        "",
        "## Methods",
        "",
        "Tunery's own steps, the same rows with each method, in turn. Share of the matrix rate: floating point operations of LoRA's products and "
        "attention a second of the whole step, over what matrix products alone reach here (`tunery plan --calibrate` measures that).",
        "",
        "| workload | LoRA | DoRA step ÷ LoRA step | QLoRA step ÷ LoRA step | four-bit weights ÷ bf16 | LoRA's share of the matrix rate | peak memory (LoRA, DoRA, QLoRA) |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in measured:
        ratio = [f"**{r['of_medians']:.2f}** ({r['low']:.2f}–{r['high']:.2f})" for r in m["step_over_lora"].values()]
        peaks = ", ".join(f"{m['peak_memory_bytes'][name] / 1e9:.2f}" for name in METHODS)
        lines.append(
            f"| {m['name']} | {m['tokens_per_second']['lora']:.0f} tokens/s | {ratio[0]} | {ratio[1]} | {m['quantised_share']:.3f} "
            f"| {m['matrix_share']:.0%} of {m['matrix_rate'] / 1e9:.0f} GFLOP/s | {peaks} GB |"
        )
    return lines
