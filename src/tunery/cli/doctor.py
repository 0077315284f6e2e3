"""`tunery doctor`: what this machine can do, and what to install for more."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def doctor(json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False) -> None:
    """Say what this machine can do: cores, instructions, memory, GPU, compiler, extras, models, cache."""
    from tunery.cli.common import console, emit
    from tunery.doctor import examine

    found = examine()
    if json:
        emit(found)
    console().print(_table(found))


def _table(found: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="tunery doctor", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def row(what: str, text: str, good: bool | None = None) -> None:
        style = {True: "green", False: "yellow", None: ""}[good]
        table.add_row(what, Text(text, style=style))  # Text: square brackets are not markup

    cpu, memory, cache = found["cpu"], found["memory"], found["cache"]
    row("tunery", f"{found['tunery']}, Python {found['python']}, {found['platform']}")
    row("torch", found["torch"] or "missing: pip install torch", bool(found["torch"]))
    row("CPU", f"{cpu['name']}, {cpu['cores']} core{'s' if cpu['cores'] != 1 else ''}")
    for key, use in (("avx512", "fast float32"), ("avx512_bf16", "fast bf16"), ("amx_bf16", "fastest bf16")):
        row(f"  {key}", f"yes ({use})" if cpu[key] else "no", cpu[key] or None)
    row("memory", f"{_size(memory['available_bytes'])} available of {_size(memory['total_bytes'])}")
    for gpu in found["gpus"]:
        row("GPU", f"{gpu['name']}, {_size(gpu['memory_bytes'])}{', bf16' if gpu['bf16'] else ''}", True)
    if not found["gpus"]:
        row("GPU", "none that torch can use; everything runs on the CPU")
    compiler = found["compiler"]
    row(
        "C++ compiler",
        compiler["version"] or f"none (only torch.compile and DeepSpeed need one): {compiler['install']}",
        bool(compiler["path"]) or None,
    )
    kernels = found["kernels"]
    row(
        "C kernels",
        "yes (steps on the CPU are faster)"
        if kernels["present"]
        else "none (steps on the CPU are slower): install a C compiler such as gcc",
        kernels["present"] or None,
    )
    for name, extra in found["extras"].items():
        row(
            f"extra {name}",
            "present" if extra["present"] else f"missing {', '.join(extra['missing'])}: {extra['install']}",
            extra["present"],
        )
    llama = found["llama_cpp"]
    row("llama.cpp converter", llama["converter"] or f"none (a GGUF export needs it): {llama['install']}", bool(llama["converter"]) or None)
    row("llama.cpp quantiser", llama["quantizer"] or "none (only GGUF in q4_k_m needs it): build llama.cpp's llama-quantize")
    row("hub token", "there" if found["hub_token"] else "none (only pushing to a hub needs one): set HF_TOKEN")
    for name, model in found["models"].items():
        row(
            f"model {name}",
            "present" if model["present"] else f"missing ({_size(model['download_bytes'])}): {model['install']}",
            model["present"],
        )
    row("cache", f"{cache['folder']}: {_size(cache['size_bytes'])}, {_size(cache['free_bytes'])} free on its disk")
    return table


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
