"""The `tunery` command. Each command is one thin function in a file of its own name.

Exit codes: 0 done; 2 the input is wrong; 1 the run failed; 130 interrupted, and resumable.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tunery import __version__
from tunery.cli import chat, check, doctor, eval, export, import_, methods, plan, report, resume, train
from tunery.cli.common import fail, output_kept_for_json, prepare_libraries

app = typer.Typer(
    name="tunery",
    help="Fine-tune small language models; get them back measured, exported and ready to talk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for module in (check, plan, train, resume, eval, export, report, chat, methods, doctor):
    app.command()(getattr(module, module.__name__.rpartition(".")[2]))
app.command("import")(import_.import_)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Fine-tune small language models; get them back measured, exported and ready to talk."""


def run() -> None:
    """The console script: errors that Tunery knows end in one sentence and their exit code, never in a traceback."""
    prepare_libraries()
    as_json = "--json" in sys.argv
    with output_kept_for_json(as_json):
        code = _exit_code(as_json)
    sys.exit(code)


def _exit_code(as_json: bool) -> int:
    """Run the command that the arguments name, and say what went wrong."""
    from tunery.errors import TuneryError

    try:
        code = app(standalone_mode=False)
        return fail("interrupted", 130, as_json) if code == 130 else code or 0  # 130 is typer's own answer to Ctrl-C, which says nothing
    except TuneryError as e:
        return fail(str(e), e.exit_code, as_json)
    except KeyboardInterrupt:
        return fail("interrupted", 130, as_json)
    except typer.Exit as e:
        return e.exit_code
    except Exception as e:
        if hasattr(e, "format_message"):  # a wrong option or argument, as the command-line library says it
            return fail(e.format_message(), 2, as_json)
        if e.__class__.__name__ == "Abort":
            return fail("interrupted", 130, as_json)
        import traceback

        traceback.print_exc()
        return fail(f"{e.__class__.__name__}: {e}; this is a fault in Tunery or in a library it uses, please report it", 1, as_json)
