"""The peer's side of the benchmark: trl.SFTTrainer with PEFT, in an environment without Tunery. Prints one JSON object.

Layouts of a batch:
  padding   one row a line, filled up to the longest
  packing   TRL's padding-free form: the rows end to end in one sequence. TRL's `packing=True` lays rows out the same way but also moves
            them between steps, which would change what a step learns from. Without flash attention, transformers finds the rows' borders
            in the position ids and masks across them; `rows_apart` says whether that held: one row is changed, and the next must not notice.

Gradient checkpointing, TRL's default, is off: it costs time and saves memory that is not scarce here.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any


def rows_apart(trainer: Any, rows: list[dict[str, list[int]]]) -> bool:
    """Whether the second of two rows laid end to end has the same hidden states whatever the first one holds."""
    import torch

    first, second = rows[0], rows[1]
    other = {**first, "input_ids": first["input_ids"][::-1]}
    found = []
    for before in (first, other):
        batch = trainer.data_collator([before, second])
        batch.pop("labels")
        with torch.no_grad():
            states = trainer.model.get_base_model().model(**batch, use_cache=False).last_hidden_state
        found.append(states[0, len(before["input_ids"]) :])
    return torch.equal(*found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--rows-per-step", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True, help="timed steps; one more comes before them")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--layout", choices=("padding", "packing"), required=True)
    parser.add_argument("--batch", type=int, required=True, help="rows of one forward pass; the rest of a step is accumulated")
    parser.add_argument("--no-autocast", action="store_true", help="bf16 weights without autocast: the adapter then computes in float32")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    parser.add_argument("--save", type=Path, help="a folder for the trained adapter")
    args = parser.parse_args()

    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ended: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended.append(time.perf_counter())

    rows = json.loads(args.rows.read_text())[: args.rows_per_step * (args.steps + 1)]
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype), attn_implementation="sdpa")
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=args.batch,
            gradient_accumulation_steps=args.rows_per_step // args.batch,
            max_steps=args.steps + 1,
            learning_rate=args.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            bf16=args.dtype == "bfloat16" and not args.no_autocast,
            use_cpu=True,
            dataloader_pin_memory=False,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            completion_only_loss=True,
            max_length=None,
            padding_free=args.layout == "packing",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=PeftModel.from_pretrained(base, args.adapter, is_trainable=True),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(args.model),
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        if list(trainer.train_dataset["input_ids"]) != [row["input_ids"] for row in rows]:
            sys.exit("TRL changed the rows or their order while preparing them")
        trainer.train()
        if args.save:
            trainer.model.save_pretrained(args.save)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds = ended[-1] - ended[0]
    timed = rows[args.rows_per_step :]
    result = {
        "rows_per_second": len(timed) / seconds,
        "tokens_per_second": sum(len(row["input_ids"]) for row in timed) / seconds,
        "seconds": seconds,
        "peak_memory_bytes": peak,
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "supervised_tokens": sum(label != -100 for labels in trainer.train_dataset["labels"] for label in labels[1:]),
        "threads": torch.get_num_threads(),
        "versions": {name: metadata.version(name) for name in ("trl", "torch", "transformers", "peft")},
        "rows_apart": rows_apart(trainer, trainer.train_dataset.to_list()) if args.layout == "packing" else True,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
