"""The peer's side of the evaluation benchmark: transformers' generate, greedy, in batches padded on the left. Prints one JSON object.

Prompts of similar length share a batch. Nothing of Tunery is imported.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="what bench/evaluate.py wrote")
    parser.add_argument("--limit", type=int, help="the first prompts alone")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    parser.add_argument("--batch", type=int, required=True, help="prompts generated together")
    args = parser.parse_args()

    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    asked = json.loads(args.prompts.read_text())
    prompts, stop_ids = asked["prompts"][: args.limit], asked["stop_ids"]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype), attn_implementation="sdpa").eval()
    model.generation_config = GenerationConfig()  # greedy and nothing else, whatever the model's files say

    def generate(rows: list[list[int]], new_tokens: int) -> list[list[int]]:
        width = max(len(r) for r in rows)
        ids = torch.tensor([[stop_ids[0]] * (width - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=stop_ids, pad_token_id=stop_ids[0])
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return [row[: next((n for n, t in enumerate(row) if t in stop_ids), len(row))] for row in out[:, width:].tolist()]

    generate(prompts[:4], 2)  # what only the first call costs
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    began = time.perf_counter()
    for start in range(0, len(order), args.batch):
        part = order[start : start + args.batch]
        for n, answer in zip(part, generate([prompts[n] for n in part], asked["new_tokens"]), strict=True):
            answers[n] = answer
    seconds = time.perf_counter() - began
    result = {
        "answers": answers,
        "rows_per_second": len(prompts) / seconds,
        "seconds": seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
