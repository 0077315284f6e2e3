"""Ways to train in several processes: one file each, found by name.

    ddp     every process holds everything; gradients are summed
    zero1   the optimiser's state is divided           (Rajbhandari et al. 2020, "ZeRO": P_os)
    zero2   gradients too                              (P_os+g)
    zero3   weights too, gathered layer by layer       (P_os+g+p)
    fsdp    as zero3, by torch itself

Every process takes a part of each step's rows and divides by the weight of the whole step; gradients are summed. So the result is that of
one process, to rounding, whatever the number. A sharding file holds `SUMMARY`, `Options`, `REFUSES` where it has any, and what the
`Sharding` protocol lists; where it has settings of its own to check against the recipe, `settle(options, train)` does that. The engine that the training loop works with is in the files that begin with `_`.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

from pydantic import Field

from tunery.errors import InputError
from tunery.recipe import Named, options_of
from tunery.recipe import Options as RecipeOptions

if TYPE_CHECKING:
    from tunery.sharding._engine import Engine


MEETING = "TUNERY_MEETING"
"""The environment variable with the file over which the processes of `tunery.launch` meet; under torchrun they meet as torchrun says."""


class Sharding(Protocol):
    """What every sharding file offers."""

    SUMMARY: str
    Options: type[RecipeOptions]

    def require(self) -> None:
        """Raise MissingExtraError when what this sharding needs is not installed."""

    def engine(self, options: Any) -> Engine:
        """What the training loop works with, in a process that has met the others (`_processes.meet`)."""


class ProcessOptions(RecipeOptions):
    """What every sharding lets a recipe set."""

    processes: Annotated[int, Field(gt=0)] | None = None
    """How many processes train. Left out: one for each GPU, or 2 on a CPU, the fewest that share; more would only divide the same cores."""


def names() -> list[str]:
    """Every sharding that a recipe may name."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> Sharding:
    """The sharding of that name. Raises InputError naming the nearest."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
        raise InputError(f"sharding `{name}` is not known; " + (f"did you mean `{near[0]}`?" if near else f"known: {', '.join(names())}"))
    return cast(Sharding, importlib.import_module(f"{__name__}.{name}"))


def of(chosen: Named, source: str = "recipe", lines: Mapping[tuple[str, ...], int] | None = None) -> tuple[Sharding, Any]:
    """The sharding that a recipe chose, and its options. Raises InputError for an unknown name or option, MissingExtraError."""
    sharding = get(chosen.name)
    options = options_of(chosen, sharding.Options, "sharding", source, lines)
    sharding.require()
    return sharding, options


def started_outside() -> int | None:
    """How many processes have been started, this one among them, by a launcher such as torchrun or by `tunery.launch`; None: it is alone."""
    met = {"RANK", "WORLD_SIZE"} <= set(os.environ) and ("MASTER_ADDR" in os.environ or MEETING in os.environ)
    return int(os.environ["WORLD_SIZE"]) if met else None


def processes(chosen: Named, options: Any, gpus: int) -> tuple[int, str]:
    """How many processes train, and why. Raises InputError when there are not enough GPUs, or a launcher started several for `none`."""
    outside, wanted = started_outside(), getattr(options, "processes", None)
    if chosen.name == "none":
        if outside is not None and outside > 1:
            raise InputError(f"sharding: `none` trains in one process, and {outside} were started; set sharding to ddp, or start one")
        return 1, "one process, as the recipe says"
    if outside is not None:
        more = f" (the recipe says {wanted}; the steps are the same)" if wanted not in (None, outside) else ""
        return outside, f"as many as the launcher started{more}"
    count = wanted or gpus or 2
    if 0 < gpus < count:
        raise InputError(f"sharding.processes: {count} processes need a GPU each, and there are {gpus}; lower it")
    if wanted:
        return count, "as the recipe says"
    return count, "auto: one for each GPU" if gpus else "auto: 2 on a CPU, the fewest that share; more would only divide the same cores"
