"""One worker of the walk: a case a line on standard input, its result a line on standard output, until the input ends."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "support")]

from forked import forked_processes  # noqa: E402
from walk_case import Case, walk  # noqa: E402


def main() -> None:
    models = Path(sys.argv[1])
    # Whatever a library prints goes to standard error, so that standard output holds results alone.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        plain = json.loads(line)
        case = Case(**{**plain, "exports": tuple(plain["exports"])})
        work = Path(tempfile.mkdtemp(prefix=case.name))
        try:
            with forked_processes():
                result = walk(case, models, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        results.write(json.dumps(result) + "\n")
        results.flush()


if __name__ == "__main__":
    main()
