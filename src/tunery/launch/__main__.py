"""One of the processes that train together: `python -m tunery.launch RUN FAILURE [DESCRIPTOR]`, started by `processes.py`.

FAILURE is the file into which what made it fail is written, DESCRIPTOR where the first process tells its progress. It ends as soon as its
standard input closes, which is when the process that started it has ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from tunery.errors import TuneryError
from tunery.launch.processes import Reported
from tunery.launch.work import take_part
from tunery.progress import Progress, Quiet
from tunery.run import Run, write_text


def main(run: str, failure: str, descriptor: str | None = None) -> int:
    """Train; the exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    progress: Progress = Reported(int(descriptor)) if descriptor else Quiet()
    try:
        take_part(Run.open(run), progress)
    except BaseException as e:
        message = {"kind": e.__class__.__name__, "message": str(e), "time": time.time()}
        write_text(Path(failure), json.dumps(message))
        if not isinstance(e, TuneryError | KeyboardInterrupt):
            traceback.print_exc()
        return e.exit_code if isinstance(e, TuneryError) else 130 if isinstance(e, KeyboardInterrupt) else 1
    return 0


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # libraries that exchange data have threads of their own, which may wait for a process that is gone
