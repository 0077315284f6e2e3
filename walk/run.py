"""Walk the combination table: do every cell that is not refused for real, and write down which ones passed.

    make walk                                              # every cell; goes on where it stopped
    .venv/bin/python walk/run.py --only method=lora,dora --only sharding=none --workers 4
    .venv/bin/python walk/run.py --write                   # only write the table into README and docs/combinations.md again

A case is one training run on a tiny model with the exports made of it (tests/support/walk_case.py says what is done and compared). Results
go to src/tunery/combinations/walked.json, from which `tunery methods` takes its "yes"; what passed at this version is not done again
without --again. Cells on a GPU are walked where there is one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "support")]

from walk_case import Case, can_export  # noqa: E402

from tunery import __version__, combinations  # noqa: E402
from tunery.combinations import walked  # noqa: E402
from tunery.combinations.document import document, readme_section, with_section  # noqa: E402
from tunery.run import write_text  # noqa: E402

RESULTS = ROOT / "src" / "tunery" / "combinations" / "walked.json"
DOCS, README = ROOT / "docs" / "combinations.md", ROOT / "README.md"
LONGEST = 600
"""Seconds after which a case that does not end has failed."""


def main() -> int:
    options = _arguments()
    if options.write:
        write()
        return 0
    only = _only(options.only)
    device = _device()
    known = _read()
    todo = [case for case in cases(device) if _wanted(case, only)]
    rest = [c for case in todo if (c := replace(case, exports=_left(case, known, device, options.again))).exports]
    print(f"{len(todo)} runs in the table as asked for, {len(rest)} to do on {device}, {options.workers} at once", flush=True)
    failed = _walk(rest, known, device, options.workers)
    write()
    return 1 if failed else 0


def cases(device: str) -> Iterator[Case]:
    """Every training run of the table: one process before several, exports that take long in runs of their own."""
    possible = {name: can_export(name) for name in combinations.values()["export"]}
    for several, alone in [(False, None), *((False, name) for name in walked.FROM_SAVED), (True, None)]:
        runs: dict[Case, list[str]] = {}
        for cell in combinations.cells(device=device):
            own = cell["export"] if cell["export"] in walked.FROM_SAVED else None
            if (cell["sharding"] != "none") is not several or own != alone:
                continue
            if combinations.refusal_of(cell) is None and possible[cell["export"]]:
                for architecture in walked.architectures_of(cell):
                    run = Case(cell["task"], cell["method"], cell["sharding"], cell["precision"], architecture, ())
                    runs.setdefault(run, []).append(cell["export"])
        yield from (replace(run, exports=tuple(exports)) for run, exports in runs.items())


def write() -> None:
    """The table into docs/combinations.md and the README."""
    walked.walked.cache_clear()
    write_text(DOCS, document())
    write_text(README, with_section(README.read_text(encoding="utf-8"), readme_section()))
    print(f"wrote {DOCS.relative_to(ROOT)} and the table in README.md")


def _walk(todo: list[Case], known: dict[str, dict[str, str]], device: str, workers: int) -> int:
    """Each worker is a process of its own that is given one case after the other; one that dies or hangs has failed that case only."""
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in todo:
        waiting.put(case)
    lock, done, failed, started, saved = threading.Lock(), itertools.count(1), [0], time.monotonic(), [time.monotonic()]
    models = Path(tempfile.mkdtemp(prefix="tunery-walk-"))

    def finish(case: Case, result: Mapping[str, str | None]) -> None:
        with lock:
            passed = {name: __version__ if problem is None else f"failed: {problem}" for name, problem in result.items()}
            known.setdefault(_key(case, device), {}).update(passed)
            failed[0] += sum(problem is not None for problem in result.values())
            n = next(done)
            left = (time.monotonic() - started) / n * (len(todo) - n)
            print(f"[{n}/{len(todo)}, {left / 60:.0f} min left, {failed[0]} failed] {case.name}", flush=True)
            for name, problem in result.items():
                if problem is not None:
                    print(f"    {name}: {problem}", flush=True)
            if time.monotonic() - saved[0] > 20 or n == len(todo):
                _save(known)
                saved[0] = time.monotonic()

    def serve() -> None:
        worker = Worker(models)
        while True:
            try:
                case = waiting.get_nowait()
            except queue.Empty:
                break
            finish(case, worker.do(case))
        worker.close()

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(workers)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        with lock:
            _save(known)
        shutil.rmtree(models, ignore_errors=True)
    return failed[0]


class Worker:
    """A process that does cases, started again when it dies. What training prints goes nowhere."""

    def __init__(self, models: Path) -> None:
        self.models = models
        self.process: subprocess.Popen[str] | None = None

    def do(self, case: Case, second: bool = False) -> dict[str, str | None]:
        """The result of a case. A process that dies is given the case once more."""
        if self.process is None:
            self.process = self._start()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        timer = threading.Timer(LONGEST, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(asdict(case)) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if line:
            result: dict[str, str | None] = json.loads(line)
            return result
        code, self.process = self.process.wait(), None
        if not late and not second:  # what kills a process from outside, such as a machine short of memory, says nothing about the cell
            return self.do(case, second=True)
        return dict.fromkeys(case.exports, f"it took longer than {LONGEST} s" if late else f"the process died (exit code {code})")

    def close(self) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()

    def _start(self) -> subprocess.Popen[str]:
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
        path = f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        command = [sys.executable, str(ROOT / "walk" / "worker.py"), str(self.models)]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment, "PYTHONPATH": path},
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="AXIS=VALUE,...", help="only cells with one of these values")
    parser.add_argument("--again", action="store_true", help="also what passed at this version")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="processes at once")
    parser.add_argument("--write", action="store_true", help="walk nothing, only write the tables again")
    return parser.parse_args()


def _only(given: list[str]) -> dict[str, tuple[str, ...]]:
    known = {**combinations.values(), "model": tuple(a for names in walked.ARCHITECTURES.values() for a in names)}
    only: dict[str, tuple[str, ...]] = {}
    for item in given:
        axis, _, names = item.partition("=")
        wrong = [name for name in names.split(",") if name not in known.get(axis, ())]
        if wrong:
            sys.exit(
                f"--only {item}: {axis} has {', '.join(known[axis])}" if axis in known else f"--only {item}: axes are {', '.join(known)}"
            )
        only[axis] = tuple(names.split(","))
    return only


def _wanted(case: Case, only: Mapping[str, tuple[str, ...]]) -> bool:
    own: dict[str, tuple[str, ...]] = {axis: (value,) for axis, value in asdict(case).items() if isinstance(value, str)}
    own |= {"model": (case.architecture,), "export": case.exports}
    return all(set(own[axis]) & set(names) for axis, names in only.items() if axis in own)


def _left(case: Case, known: Mapping[str, Mapping[str, str]], device: str, again: bool) -> tuple[str, ...]:
    passed = known.get(_key(case, device), {})
    return tuple(name for name in case.exports if again or passed.get(name) != __version__)


def _key(case: Case, device: str) -> str:
    return walked.key_of({**asdict(case), "device": device}, case.architecture)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _read() -> dict[str, dict[str, str]]:
    return dict(json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]) if RESULTS.is_file() else {}


def _save(known: Mapping[str, Mapping[str, str]]) -> None:
    """One run a line, in order: a change of one is a change of one line."""
    lines = [f"  {json.dumps(key)}: {json.dumps(dict(sorted(known[key].items())), ensure_ascii=False)}" for key in sorted(known)]
    write_text(RESULTS, '{"runs": {\n' + ",\n".join(lines) + "\n}}\n" if lines else '{"runs": {}}\n')


if __name__ == "__main__":
    sys.exit(main())
