"""Generation by ONNX Runtime: a folder that onnxruntime-genai's model builder made, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import InputError, MissingExtraError, RunError
from tunery.infer.batches import batches, check_prompt, check_tokens, until_stop
from tunery.infer.engine import OnProgress
from tunery.infer.sampling import Sampling
from tunery.models.load import load_tokenizer

if TYPE_CHECKING:
    import numpy as np


class OnnxEngine:
    """An ONNX model folder (`genai_config.json`, `model.onnx`, tokenizer, template) as an `Engine`.

    `stop_ids` and `context` are those of `genai_config.json`. The tokenizer is transformers', from the same folder, so that the ids
    are those of training. Raises InputError when the folder cannot be used, MissingExtraError without onnxruntime-genai.
    """

    name = "onnx"

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        file = folder / "genai_config.json"
        if not file.is_file():
            raise InputError(
                f"{folder}: this is not an ONNX model folder (it has no genai_config.json); make one with `tunery export RUN --to onnx --out DIR`"
            )
        og = import_genai()
        try:
            config = json.loads(file.read_text(encoding="utf-8"))["model"]
            stops, self.context, self._pad = config["eos_token_id"], int(config["context_length"]), config.get("pad_token_id")
        except (ValueError, KeyError, TypeError) as e:
            raise InputError(f"{file}: cannot be read ({e!r}); export the model again") from None
        self.stop_ids = tuple(stops) if isinstance(stops, list) else (int(stops),)
        self.tokenizer = load_tokenizer(folder)
        try:
            self.model = og.Model(str(folder))
        except Exception as e:  # the library raises plain RuntimeError for everything
            raise InputError(f"{folder}: ONNX Runtime cannot load this model ({str(e).splitlines()[0][:300]}); export it again") from None

    def generate(self, prompts: list[list[int]], sampling: Sampling, on_progress: OnProgress | None = None) -> list[list[int]]:
        """See `Engine.generate`. Prompts of similar length are computed together, padded on the right.

        The runtime takes trailing pad tokens for padding, so a prompt that itself ends with one is computed alone.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        done = 0
        everyone = range(len(prompts))
        alone = frozenset(everyone if self._pad is None else (n for n in everyone if prompts[n] and prompts[n][-1] == self._pad))
        for batch in batches(prompts, sampling.max_new_tokens, self.context, alone):
            rows = [prompts[n] for n in batch.rows]
            width = max(len(r) for r in rows)
            generator = self._generator(width + batch.new_tokens, sampling, len(rows))
            if len(rows) > 1:
                generator.append_tokens([r + [self._pad] * (width - len(r)) for r in rows])
            else:
                self._read(generator, rows[0])
            found: list[list[int]] = [[] for _ in rows]
            while not generator.is_done():
                generator.generate_next_token()
                for tokens, token in zip(found, generator.get_next_tokens(), strict=True):
                    tokens.append(int(token))
            for n, tokens in zip(batch.rows, found, strict=True):
                answers[n] = until_stop(tokens, self.stop_ids, batch.new_tokens)
            done += len(rows)
            if on_progress:
                on_progress(done, len(prompts))
        return answers

    def stream(self, prompt: list[int], sampling: Sampling) -> Iterator[int]:
        """See `Engine.stream`."""
        check_prompt(prompt, self.context)
        generator = self._generator(min(len(prompt) + sampling.max_new_tokens, self.context), sampling, 1)
        self._read(generator, prompt)
        while not generator.is_done():
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            if token in self.stop_ids:
                return
            yield token

    def logits(self, tokens: list[int]) -> np.ndarray:
        """See `Engine.logits`. Raises RunError for a model that only computes the last position."""
        import numpy as np

        check_tokens(tokens, self.context)
        generator = self._generator(len(tokens), Sampling(), 1)
        generator.append_tokens(tokens)
        values = np.asarray(generator.get_output("logits"), dtype=np.float32)[0]
        if len(values) != len(tokens):
            raise RunError(f"the ONNX model gives {len(values)} logits for {len(tokens)} tokens; build it without prune_lm_head")
        return values

    def _read(self, generator: Any, prompt: list[int]) -> None:
        """Hand one prompt over. A last pad token (often also the end of turn) goes apart, or the runtime would go on from the token before."""
        if len(prompt) > 1 and prompt[-1] == self._pad:
            generator.append_tokens(prompt[:-1])
            prompt = prompt[-1:]
        generator.append_tokens(prompt)

    def _generator(self, max_length: int, sampling: Sampling, rows: int) -> Any:
        og = import_genai()
        params = og.GeneratorParams(self.model)
        chance: dict[str, Any] = {"do_sample": False}
        if not sampling.greedy:
            chance = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "random_seed": sampling.seed,
            }
        # Every setting that the model's folder could bring is stated, so that it means nothing.
        neutral = {"num_beams": 1, "min_length": 0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
        params.set_search_options(max_length=max_length, batch_size=rows, **neutral, **chance)
        return og.Generator(self.model, params)


def import_genai() -> Any:
    """The module onnxruntime_genai. Raises MissingExtraError naming the line that installs it."""
    try:
        import onnxruntime_genai
    except ImportError as e:
        raise MissingExtraError(
            f"ONNX models need onnxruntime-genai, which is not installed ({e}); install it with: pip install 'tunery[onnx]'"
        ) from None
    return onnxruntime_genai
