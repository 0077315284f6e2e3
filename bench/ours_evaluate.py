"""Tunery's side of the evaluation benchmark: greedy answers to prompts, or a whole evaluation. Prints one JSON object."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="what bench/evaluate.py wrote")
    parser.add_argument("--adapter", type=Path, help="a LoRA adapter on the model")
    parser.add_argument("--limit", type=int, help="the first prompts alone")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    parser.add_argument("--whole", type=Path, help="the rows themselves: also the likelihood of the right answer and of each label")
    args = parser.parse_args()

    import torch

    from tunery import methods, tasks
    from tunery.data.render import Renderer
    from tunery.data.rows import read_rows
    from tunery.evaluate import by_answer
    from tunery.infer.sampling import Sampling
    from tunery.infer.torch_engine import TorchEngine
    from tunery.kernels.fused import fuse
    from tunery.machine import peak_memory
    from tunery.models.load import load_model, load_tokenizer
    from tunery.progress import Quiet
    from tunery.train import attention

    asked = json.loads(args.prompts.read_text())
    prompts = asked["prompts"][: args.limit]
    model, tokenizer = fuse(load_model(args.model, args.dtype, attention=attention.register())), load_tokenizer(args.model)
    if args.adapter:
        lora = methods.get("lora")
        written = json.loads((args.adapter / "adapter_config.json").read_text())
        model = lora.attach(model, lora.Options.model_validate({"rank": written["r"], "alpha": written["lora_alpha"]}), 0)
        lora.load(model, args.adapter)
        model.eval()
    engine = TorchEngine(model, tokenizer, tuple(asked["stop_ids"]))
    engine.generate(prompts[:4], Sampling(max_new_tokens=2))  # what only the first call costs
    result: dict[str, Any] = {}
    began = time.perf_counter()
    if args.whole:
        rows = list(read_rows(str(args.whole)))[: len(prompts)]
        lines = by_answer.predict(
            model, Renderer(tokenizer), tasks.get("chat"), rows, 1024, engine.context, asked["new_tokens"], Quiet(), "now"
        )
        result["labels"], result["references"] = [line["label"] for line in lines], [line["reference"] for line in lines]
    else:
        result["answers"] = engine.generate(prompts, Sampling(max_new_tokens=asked["new_tokens"]))
    seconds = time.perf_counter() - began
    result |= {
        "rows_per_second": len(prompts) / seconds,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
