"""What a model with a head answers: the scores of the classes, for texts or for each token of them."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import TYPE_CHECKING, Any, Protocol

from tunery.models.heads import Head

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from tunery.data.render import Sequence


class HeadEngine(Protocol):
    """A model with a head that can be asked. `name` says which runtime it is, `context` how many tokens it takes."""

    name: str
    head: Head
    context: int

    def logits(self, sequences: Many[Sequence]) -> list[np.ndarray]:
        """float32 scores of each sequence: (classes,) of a text, or (T, classes) of its tokens."""


class TorchHead:
    """A transformers model with a head as a `HeadEngine`. It is in evaluation mode while it works, and afterwards as before."""

    name = "torch"

    def __init__(self, model: PreTrainedModel, head: Head, context: int | None = None) -> None:
        self.model, self.head = model, head
        text_config: Any = model.config.get_text_config()
        self.context = context or int(text_config.max_position_embeddings) - getattr(model, "virtual_tokens", 0)

    def logits(self, sequences: Many[Sequence]) -> list[np.ndarray]:
        """See `HeadEngine.logits`."""
        import torch

        from tunery.train.with_head import batches_for

        found: dict[int, np.ndarray] = {}
        model: Any = self.model
        training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                for batch in batches_for(model, sequences):
                    ids, mask = (torch.from_numpy(x).to(model.device) for x in (batch.ids, batch.mask))
                    logits = model(input_ids=ids, attention_mask=mask).logits
                    if self.head.kind == "token":
                        logits = logits[:, -ids.shape[1] :]  # PEFT gives scores of its virtual tokens too, which come first
                    values = logits.float().cpu().numpy()
                    found.update(batch.cut(values, self.head.kind))
        finally:
            model.train(training)
        return [found[n] for n in range(len(sequences))]
