"""What llama.cpp itself makes of a GGUF file: its tokens, its template, its answers.

llama.cpp runs as its own server in a process of its own, on this machine's loopback: a native crash there ends no run here.
Routes: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunery.errors import RunError
from tunery.export.proof import TOKENS, Reference
from tunery.progress import Progress

PROMPTS = 10
"""Of the proof's fifty: a compiled wheel for every machine is slow, and a wrong file is wrong on the first."""
ANSWER_SECONDS = 600.0


class LlamaServer:
    """A llama.cpp server that answers at `address`."""

    def __init__(self, address: str, version: str) -> None:
        self.address, self.version = address, version

    def ask(self, route: str, content: dict[str, Any]) -> dict[str, Any]:
        """One POST. Raises OSError when the server is gone or refuses."""
        request = urllib.request.Request(self.address + route, json.dumps(content).encode(), {"Content-Type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=ANSWER_SECONDS) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found


@contextmanager
def serving(file: Path, context: int) -> Iterator[LlamaServer]:
    """A server of the model in `file`, with the key/value cache in float32. Raises RunError with what llama.cpp said when it cannot."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    command = [sys.executable, "-m", "tunery.export.llama_cpp_server", str(file), str(context)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env={**os.environ, "PYTHONPATH": path}, text=True
        )
        try:
            assert process.stdout is not None
            started = process.stdout.readline().split()
            if len(started) != 3 or started[0] != "READY":
                log.seek(0)
                said = [line for line in log.read().decode("utf-8", errors="replace").splitlines() if line.strip()]
                raise RunError(f"llama.cpp cannot load {file.name}: {(said or ['it said nothing'])[-1][:300]}; the export was not kept")
            yield LlamaServer(started[1], started[2])
        finally:
            process.kill()
            process.communicate()


def reproduces(server: LlamaServer, probes: Sequence[dict[str, Any]]) -> bool:
    """Whether llama.cpp's own template and tokenizer give every probe's ids: what any program on top of llama.cpp will use."""
    try:
        return all(_ids(server, probe) == list(probe["ids"]) for probe in probes)
    except OSError:  # its template engine refuses the template
        return False


def _ids(server: LlamaServer, probe: dict[str, Any]) -> list[int]:
    text = probe["text"]
    if "messages" in probe:
        tools = {"tools": probe["tools"]} if probe["tools"] else {}
        text = server.ask("/apply-template", {"messages": probe["messages"], **tools})["prompt"]
    return list(server.ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"])


def greedy_match(server: LlamaServer, reference: Reference, stop_ids: Sequence[int], progress: Progress) -> float:
    """`greedy_match` over the first prompts, teacher-forced: where an answer leaves the reference, it is asked again from the next token on."""
    equal, prompts = 0, reference.prompts[:PROMPTS]
    for n, (prompt, expected) in enumerate(zip(prompts, reference.continuations, strict=False)):
        at = 0
        while at < TOKENS:
            found = _continue(server, prompt + expected[:at], TOKENS - at, expected[at:], stop_ids)
            same = next((i for i, (a, b) in enumerate(zip(found, expected[at:], strict=False)) if a != b), len(found))
            equal += same
            at += same + (1 if same < len(found) else 0)
        progress.show("gguf: llama.cpp's answers", n + 1, len(prompts))
    return equal / (TOKENS * len(prompts))


def _continue(server: LlamaServer, tokens: list[int], count: int, expected: list[int], stop_ids: Sequence[int]) -> list[int]:
    """At least one next token, greedily. llama.cpp ends at a stop token; in a proof that is a token like any other."""
    asked = {"prompt": tokens, "n_predict": count, "temperature": 0.0, "samplers": ["top_k"], "top_k": 1, "return_tokens": True}
    answer = server.ask("/completion", {**asked, "cache_prompt": False})
    found = [int(t) for t in answer["tokens"]][:count]
    if not found and answer.get("stop_type") == "eos":  # a version that leaves the stop token out
        return [expected[0] if expected[0] in stop_ids else -1]
    if not found:
        raise OSError(f"llama.cpp gives no token ({answer.get('stop_type')})")
    return found


def _serve(file: str, context: int) -> None:
    """Serve until the other end of standard input is gone."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = file
    settings.n_ctx, settings.n_parallel, settings.warmup = context, 1, False
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.n_gpu_layers = 0
    threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    if threads:
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(settings)
    print("READY", server.listening_address, f"xllamacpp-{xllamacpp.__version__}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
