"""The quickstart: fetch real data, train a real model, measure it, export it, talk to it.

    make quickstart            # or: python examples/quickstart/run.py

A run that was interrupted goes on; a finished one is moved aside first.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from fetch import INSTRUCTION, fetch

HERE = Path(__file__).parent
RUN = Path("runs") / "quickstart"
HEADLINE = "area man wins argument with himself in shower, demands recount"


def tunery(*arguments: str | Path) -> None:
    """Run a command as a user would, shown first."""
    words = ["tunery", *map(str, arguments)]
    print(f"\n$ {' '.join(w if ' ' not in w else repr(w) for w in words)}", flush=True)
    code = subprocess.run([sys.executable, "-c", "from tunery.cli.main import run; run()", *words[1:]], check=False).returncode
    if code:
        sys.exit(code)


def main() -> None:
    started = time.monotonic()
    print(f"headlines: {fetch()}")
    report = RUN / "report.json"
    if report.is_file() and json.loads(report.read_text())["status"] == "succeeded":
        RUN.rename(RUN.with_name(f"{RUN.name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(report.stat().st_mtime))}"))
    if (RUN / "recipe.yaml").is_file():
        tunery("resume", RUN)
    else:
        tunery("train", HERE / "recipe.yaml", "--run", RUN)
    tunery("chat", RUN, "-m", f"{INSTRUCTION}\n{HEADLINE}")
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes in all. Open {RUN / 'report.html'} in a browser.")


if __name__ == "__main__":
    main()
