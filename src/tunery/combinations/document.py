"""The combination table as the project's documents show it: a whole page, and the README's section. Tests hold both to the code."""

from __future__ import annotations

from tunery.combinations import cells, refusal_of, table
from tunery.combinations.walked import ARCHITECTURES, FROM_SAVED, status_of, walked

COMMAND = "python walk/run.py --write"
BEGIN, END = f"<!-- combinations: written by `{COMMAND}` -->", "<!-- /combinations -->"

_DEFINITION = """\
A recipe chooses a task, a method, a sharding, a precision, a device, exports and a model. One value of each is a *cell*. Each part's file
declares what it does not go together with; the rest of this page is derived from that, and `tunery check` refuses what is refused here.

A cell is *walked* when, on a tiny random model of each architecture of its kind ({architectures}; where it is sharded, on one of them, in
turn), a recipe with exactly its seven choices was trained for three steps through `tunery.finetune` (in two processes where it is sharded),
what was learned changed the model, the run was loaded again and gave the same losses, and the export was made with its proof. A run of two processes must also leave the very files
that one process leaves, tensor for tensor in name, type and shape. The exports that take long ({long}) read nothing but those files, so
they are made from the run of one process, and a cell of several counts when both were walked: its training, and its export. Nothing else
is inferred from a neighbouring cell: what was not walked is `untested`. `make walk` walks every cell and writes this page."""


def document() -> str:
    """docs/combinations.md."""
    architectures = "; ".join(f"{kind}: {' and '.join(names)}" for kind, names in ARCHITECTURES.items())
    blocks = [
        "# What goes with what",
        f"Written by `{COMMAND}`; do not edit.",
        _DEFINITION.format(architectures=architectures, long=", ".join(FROM_SAVED)),
    ]
    blocks += [_counts(), table.in_full().strip()]
    failures = _failures()
    if failures:
        blocks += ["## Cells that fail", "\n".join(failures)]
    return "\n\n".join(blocks) + "\n"


def readme_section() -> str:
    """The README's table, without the marks around it."""
    lines = [
        table.markdown("method", ("task",)),
        table.markdown("method", ("sharding", "export")),
        f"{_counts()} `no (4)` is refused for reason 4, and what was never walked would say `untested`. `tunery methods` lists the reasons, and so "
        "does [docs/combinations.md](docs/combinations.md), which also says what walking a cell means.",
    ]
    return "\n\n".join(lines)


def with_section(text: str, section: str) -> str:
    """`text` with what stands between the two marks replaced. Raises ValueError when the marks are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the lines `{BEGIN}` and `{END}` are missing")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"


def _counts() -> str:
    allowed = [cell for cell in cells(device=table.WALKED_ON) if refusal_of(cell) is None]
    passed = sum(status_of(cell)[0] == "yes" for cell in allowed)
    return f"Of {len(allowed):,} cells on a CPU that are not refused, {passed:,} have been walked."


def _failures() -> list[str]:
    return [
        f"- `{run}`, export `{name}`: {said.removeprefix('failed: ')}"
        for run, exports in sorted(walked().items())
        for name, said in exports.items()
        if said.startswith("failed: ")
    ]
