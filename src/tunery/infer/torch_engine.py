"""Generation by transformers and torch: any causal model in memory, an adapter on it or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunery.infer.batches import batches, check_prompt, check_tokens, until_stop
from tunery.infer.engine import OnProgress
from tunery.infer.sampling import Sampling

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class TorchEngine:
    """A transformers model as an `Engine`.

    Sampling settings and stop tokens that the model's own files bring are never used: a figure must mean the same for every model.
    While the engine works, the model is in evaluation mode; afterwards it is as before.
    """

    name = "torch"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stop_ids: tuple[int, ...], context: int | None = None
    ) -> None:
        self.model, self.tokenizer, self.stop_ids = model, tokenizer, tuple(stop_ids)
        text_config: Any = model.config.get_text_config()
        # A method's virtual tokens (prompt tuning and its like) stand before every row.
        self.context = context or int(text_config.max_position_embeddings) - getattr(model, "virtual_tokens", 0)

    def generate(self, prompts: list[list[int]], sampling: Sampling, on_progress: OnProgress | None = None) -> list[list[int]]:
        """See `Engine.generate`. What prompts begin with in common is computed once, and rows that have ended are dropped.

        Where a model cannot do that (see `_reading.able`), transformers' own generation does it, padded on the left with a mask.
        """
        from tunery.infer import _reading

        for n, prompt in enumerate(prompts):
            check_prompt(prompt, self.context, f"prompt {n + 1}: ")
        limits = [min(sampling.max_new_tokens, self.context - len(p)) for p in prompts]
        with self._ready(), _seeded(sampling.seed):
            if prompts and _reading.able(self.model, max(len(p) + limit for p, limit in zip(prompts, limits, strict=True))):
                return self._shared(prompts, limits, sampling, on_progress)
            return self._padded(prompts, sampling, on_progress)

    def _shared(self, prompts: list[list[int]], limits: list[int], sampling: Sampling, on_progress: OnProgress | None) -> list[list[int]]:
        import numpy as np
        import torch

        from tunery.infer._answering import begin, go_on
        from tunery.infer._reading import Reader, Wanted, together
        from tunery.infer._shared_attention import seen_by

        answers: list[list[int]] = [[] for _ in prompts]
        rows = [np.array(p) for p in prompts]
        draw = _Draw(sampling)
        done = 0
        with seen_by(self.model), torch.inference_mode():
            reader = Reader(self.model)
            for numbers in together(rows, sampling.max_new_tokens):
                read = reader.read([Wanted(rows[n], np.array([len(rows[n]) - 1])) for n in numbers])
                begun = begin(reader, read, [(len(rows[n]), limits[n]) for n in numbers], draw, self.stop_ids)
                go_on(reader, read, begun, draw, self.stop_ids)
                for n, answer in zip(numbers, begun, strict=True):
                    answers[n] = answer.tokens
                done += len(numbers)
                if on_progress:
                    on_progress(done, len(prompts))
        return answers

    def _padded(self, prompts: list[list[int]], sampling: Sampling, on_progress: OnProgress | None) -> list[list[int]]:
        import torch

        answers: list[list[int]] = [[] for _ in prompts]
        done = 0
        for batch in batches(prompts, sampling.max_new_tokens, self.context):
            rows = [prompts[n] for n in batch.rows]
            width = max(len(r) for r in rows)
            ids = torch.tensor([[self._pad] * (width - len(r)) + r for r in rows], device=self.model.device)
            mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=self.model.device)
            out: Any = self.model.generate(  # type: ignore[operator]
                inputs=ids, attention_mask=mask, generation_config=self._config(sampling, batch.new_tokens)
            )
            for n, tokens in zip(batch.rows, out[:, width:].tolist(), strict=True):
                answers[n] = until_stop(tokens, self.stop_ids, batch.new_tokens)
            done += len(rows)
            if on_progress:
                on_progress(done, len(prompts))
        return answers

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[int]:
        """See `Engine.stream`."""
        import torch

        check_prompt(prompt, self.context)
        draw = _Draw(sampling, torch.Generator(device=self.model.device).manual_seed(sampling.seed))
        new = torch.tensor([prompt], device=self.model.device)
        cache = None
        with self._ready():
            for _ in range(min(sampling.max_new_tokens, self.context - len(prompt))):
                with torch.inference_mode():  # inside the loop: it must not stay on in the caller between two tokens
                    out = self.model(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1)
                    token = int(draw(out.logits[:, -1]))
                if token in self.stop_ids:
                    return
                yield token
                cache = out.past_key_values
                new = torch.tensor([[token]], device=self.model.device)

    def logits(self, tokens: list[int]) -> np.ndarray:
        """See `Engine.logits`."""
        import torch

        check_tokens(tokens, self.context)
        with self._ready(), torch.inference_mode():
            out = self.model(input_ids=torch.tensor([tokens], device=self.model.device), use_cache=False)
        values: np.ndarray = out.logits[0].float().cpu().numpy()
        return values

    @property
    def _pad(self) -> int:
        return self.stop_ids[0] if self.stop_ids else 0  # masked on the left, and cut off behind the stop token

    def _config(self, sampling: Sampling, new_tokens: int) -> Any:
        from transformers import GenerationConfig

        chance: dict[str, Any] = {"do_sample": False}
        if not sampling.greedy:
            chance = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        return GenerationConfig(
            max_new_tokens=new_tokens,
            eos_token_id=list(self.stop_ids) or None,
            pad_token_id=self._pad,
            num_beams=1,
            use_cache=True,
            **chance,
        )

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The model without what its files say about generation (transformers would fill every open setting from it)."""
        from transformers import GenerationConfig
        from transformers.utils import logging

        model: Any = self.model
        own, training, verbosity = model.generation_config, model.training, logging.get_verbosity()
        model.generation_config = GenerationConfig()
        model.eval()
        logging.set_verbosity_error()
        # Only the last position's logits are wanted, a slice; on a CPU a linear layer copies its whole weight for each row of a slice.
        hook = model.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: (inputs[0].contiguous(),))
        try:
            yield
        finally:
            hook.remove()
            model.generation_config = own
            model.train(training)
            logging.set_verbosity(verbosity)


class _Draw:
    """One token for each row of logits (R, V), by torch's random state unless there is a generator."""

    def __init__(self, sampling: Sampling, generator: torch.Generator | None = None) -> None:
        from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self.greedy, self.generator = sampling.greedy, generator
        self.warpers: list[Any] = []
        if not sampling.greedy:
            self.warpers.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self.warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        import torch

        from tunery.infer._answering import greedy

        if self.greedy:
            return greedy(logits)
        logits = logits.float()
        for warper in self.warpers:
            logits = warper(None, logits)
        return torch.multinomial(logits.softmax(-1), 1, generator=self.generator)[:, 0]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's random state set for the block, and put back after it: generating must not change what training draws next."""
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
