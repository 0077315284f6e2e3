"""What every exporter is handed: the weights, and what the result must be able to reproduce."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import RunError
from tunery.export.head_proof import HeadReference
from tunery.export.proof import Reference
from tunery.infer.head_engine import TorchHead
from tunery.infer.torch_engine import TorchEngine
from tunery.models.heads import Head
from tunery.models.load import load_model, load_tokenizer
from tunery.progress import Progress, Quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunery.data.render import Sequence
    from tunery.infer.engine import Engine


@dataclass(frozen=True)
class ExportSource:
    """A trained model (a base folder and an adapter in PEFT's file format) or a bare one (`adapter` None), and what proves its exports.

    `head`: the task's head, where it has one. `prompts`: token ids for the proof (see `prompts.proof_prompts`), or of a model with a head `sequences`
    (see `head_proof.proof_sequences`); `probes`: conversations with their ids (see `probes.make_probes`);
    `stop_ids`: what ends an answer. `trained` loads the trained model in float32 by the code that trained it, so that the adapter's
    export is proven against that and not against PEFT itself; None: by PEFT. `held_out` measures an engine on the test rows and returns
    `metric, value, low, high` of the trained model, `export_value`, and whether that is `kept` within the bounds. `fitted` makes of the
    float32 base the one that the adapter was trained on, where that is another: with QLoRA what its four bits stand for.
    """

    base_folder: Path
    adapter: Path | None
    prompts: list[list[int]]
    probes: list[dict[str, Any]]
    stop_ids: tuple[int, ...]
    trained: Callable[[], PreTrainedModel] | None = None
    held_out: Callable[[Engine], dict[str, Any]] | None = None
    progress: Progress = Quiet()  # noqa: RUF009  it has no state
    head: Head | None = None
    sequences: list[Sequence] = field(default_factory=list)
    fitted: Callable[[PreTrainedModel], PreTrainedModel] | None = None

    @cached_property
    def reference(self) -> Any:
        """The float32 torch model's own answers, a `Reference` or a `HeadReference`: computed once, shared by all exports."""
        model = self.trained() if self.trained else self.load_by_peft() if self.adapter else self.load_base()
        if self.head:
            return HeadReference.of(self.engine(model), self.sequences)
        return Reference.of(model, load_tokenizer(self.base_folder), self.prompts, self.progress)

    def engine(self, model: PreTrainedModel) -> Any:
        """A model in memory as the engine that `reference` is compared with."""
        if self.head:
            return TorchHead(model, self.head)
        return TorchEngine(model, load_tokenizer(self.base_folder), self.stop_ids)

    def load_base(self) -> PreTrainedModel:
        """The float32 base that the adapter fits, under the task's head where it has one."""
        base = load_model(self.base_folder, head=self.head)
        return self.fitted(base) if self.fitted else base

    def start(self) -> float:
        """The time at which an export's own work begins: the reference, which all share, is there then."""
        _ = self.reference
        return time.monotonic()

    def load_by_peft(self, adapter: Path | None = None) -> Any:
        """The float32 base with the adapter (or another folder with the same) on it, as any user of PEFT loads it."""
        import warnings

        from peft import PeftModel

        adapter = adapter or self.adapter
        base = self.load_base()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT uses what transformers is about to rename
                model: Any = PeftModel.from_pretrained(base, str(adapter)).eval()
        except Exception as e:  # PEFT raises what it comes upon
            raise RunError(
                f"{adapter}: PEFT cannot load this adapter on {self.base_folder} ({(str(e).splitlines() or [repr(e)])[0][:300]})"
            ) from e
        # With virtual tokens PEFT takes a text's class from the last token, padding or not.
        model.rows_apart = model.active_peft_config.is_prompt_learning
        return model
