"""A table of what `tunery import` makes of a folder of other tools' example configurations, in Markdown.

    python tests/importers/survey.py FOLDER > table.md

FOLDER holds one folder for each source of examples, of any name; the tool of each file is found out as the command does.
docs/import-examples.md was made with it and says where the published examples are.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from tunery.errors import InputError
from tunery.importers import Imported, read


def row(name: str, found: Imported) -> str:
    """One file: the recipe in a few words, then what is left over by kind."""
    recipe = found.recipe
    task, method, sharding = (
        (v if isinstance(v, str) else v.get("loss") or v.get("name") or v.get("stage"))
        for v in (recipe["task"], recipe["method"], recipe.get("sharding", "none"))
    )
    kinds: dict[str, list[str]] = {"not understood": [], "no counterpart": [], "needless": []}
    for item in found.left_over:
        kinds[next(k for k in kinds if item.reason.startswith(k))].append(f"`{item.key}`")
    whole = "yes" if not kinds["not understood"] and not kinds["no counterpart"] else "no"
    return f"| {name} | {task}, {method}, {sharding} | {whole} | {', '.join(kinds['no counterpart'])} | {', '.join(kinds['not understood'])} | {len(kinds['needless'])} |"


def main(folder: Path) -> None:
    """Print the table, then the files that are refused with their reasons, then the totals."""
    refused: list[str] = []
    count: Counter[str] = Counter()
    print("| example | recipe | whole | no counterpart | not understood | needless |\n|---|---|---|---|---|---|")
    for top in sorted(p for p in folder.iterdir() if p.is_dir()):
        for file in sorted(p for p in top.resolve().rglob("*") if p.suffix in (".yaml", ".yml", ".json")):
            name = f"{top.name}/{file.relative_to(top.resolve())}"
            try:
                found = read(file)
            except InputError as e:
                count[f"{top.name}: refused"] += 1
                refused.append(f"- {name}: {str(e).removeprefix(str(file)).lstrip(': ').partition(';')[0]}")
                continue
            line = row(name, found)
            count[f"{top.name}: {'whole' if '| yes |' in line else 'with something left over'}"] += 1
            count[f"{top.name}: with a key not understood"] += any(i.reason == "not understood" for i in found.left_over)
            print(line)
    print("\nRefused:\n\n" + "\n".join(refused))
    print("\n" + "\n".join(f"- {what}: {n}" for what, n in sorted(count.items())))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
