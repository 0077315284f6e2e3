"""Importing this imports what a process of a sharded run needs, so that those forked afterwards need not."""

import importlib
import importlib.util

for name in (
    "torch",
    "peft",
    "transformers.models.llama.modeling_llama",
    "transformers.models.phi3.modeling_phi3",
    "transformers.models.bert.modeling_bert",
    "tunery.launch.work",
    "tunery.infer.open_engine",
    "tunery.train.loop",
    "tunery.train.learners",
    "tunery.train.with_head",
    "tunery.train.preference_pairs",
    "tunery.sharding._engine",
    "tunery.sharding._deepspeed",
    "tunery.sharding._fully_sharded",
):
    importlib.import_module(name)
if importlib.util.find_spec("deepspeed"):
    from tunery.sharding._import_deepspeed import import_deepspeed

    import_deepspeed()
if importlib.util.find_spec("bitsandbytes"):
    importlib.import_module("bitsandbytes")
