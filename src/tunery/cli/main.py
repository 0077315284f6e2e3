"""The `tunery` command. Each command is one thin function in a file of its own name.

Exit codes: 0 done; 2 the input is wrong; 1 the run failed; 130 interrupted, and resumable.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tunery import __version__
from tunery.cli import chat, check, doctor, eval, export, import_, methods, report, resume, train
from tunery.cli.common import fail, keep_output_for_json, prepare_libraries

app = typer.Typer(
    name="tunery",
    help="Fine-tune small language models; get them back measured, exported and ready to talk.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for module in (check, train, resume, eval, export, report, chat, methods, doctor):
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
    from tunery.errors import TuneryError

    prepare_libraries()
    as_json = "--json" in sys.argv
    if as_json:
        keep_output_for_json()
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer's own answer to Ctrl-C, which says nothing
            code = fail("interrupted", 130, as_json)
    except TuneryError as e:
        code = fail(str(e), e.exit_code, as_json)
    except KeyboardInterrupt:
        code = fail("interrupted", 130, as_json)
    except typer.Exit as e:
        code = e.exit_code
    except Exception as e:
        if hasattr(e, "format_message"):  # a wrong option or argument, as the command-line library says it
            code = fail(e.format_message(), 2, as_json)
        elif e.__class__.__name__ == "Abort":
            code = fail("interrupted", 130, as_json)
        else:
            import traceback

            traceback.print_exc()
            code = fail(f"{e.__class__.__name__}: {e}; this is a fault in Tunery or in a library it uses, please report it", 1, as_json)
    sys.exit(code or 0)
