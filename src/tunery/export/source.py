"""What every exporter is handed: the weights, and what the result must be able to reproduce."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import RunError
from tunery.export.proof import Reference
from tunery.models.load import load_model, load_tokenizer
from tunery.progress import Progress, Quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunery.infer.engine import Engine


@dataclass(frozen=True)
class ExportSource:
    """A trained model (a base folder and an adapter in PEFT's file format) or a bare one (`adapter` None), and what proves its exports.

    `prompts`: token ids for the proof (see `prompts.proof_prompts`); `probes`: conversations with their ids (see `probes.make_probes`);
    `stop_ids`: what ends an answer. `trained` loads the trained model in float32 by the code that trained it, so that the adapter's
    export is proven against that and not against PEFT itself; None: by PEFT. `held_out` measures an engine on the test rows and returns
    `metric, value, low, high` of the trained model, `export_value`, and whether that is `kept` within the bounds.
    """

    base_folder: Path
    adapter: Path | None
    prompts: list[list[int]]
    probes: list[dict[str, Any]]
    stop_ids: tuple[int, ...]
    trained: Callable[[], PreTrainedModel] | None = None
    held_out: Callable[[Engine], dict[str, Any]] | None = None
    progress: Progress = Quiet()  # noqa: RUF009  it has no state

    @cached_property
    def reference(self) -> Reference:
        """The float32 torch model's own continuations and logits: computed once, shared by all exports."""
        model = self.trained() if self.trained else self.load_by_peft() if self.adapter else load_model(self.base_folder)
        return Reference.of(model, load_tokenizer(self.base_folder), self.prompts, self.progress)

    def start(self) -> float:
        """The time at which an export's own work begins: the reference, which all share, is there then."""
        _ = self.reference
        return time.monotonic()

    def load_by_peft(self, adapter: Path | None = None) -> Any:
        """The float32 base with the adapter (or another folder with the same) on it, as any user of PEFT loads it."""
        import warnings

        from peft import PeftModel

        adapter = adapter or self.adapter
        base = load_model(self.base_folder)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT uses what transformers is about to rename
                return PeftModel.from_pretrained(base, str(adapter)).eval()
        except Exception as e:  # PEFT raises what it comes upon
            raise RunError(
                f"{adapter}: PEFT cannot load this adapter on {self.base_folder} ({(str(e).splitlines() or [repr(e)])[0][:300]})"
            ) from e
