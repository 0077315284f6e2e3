"""Small configurations in the style of each tool, written for these tests, with the recipes that they mean."""

from __future__ import annotations

from typing import Any

LLAMAFACTORY = """
model_name_or_path: org/base-1b
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 4
lora_dropout: 0.1
lora_target: q_proj,v_proj
use_rslora: true
loraplus_lr_ratio: 16.0
quantization_bit: 4
quantization_method: bnb
double_quantization: false
deepspeed: examples/deepspeed/ds_z2_offload_config.json
dataset: first,second
eval_dataset: held_out
template: llama3
cutoff_len: 512
max_samples: 100
neat_packing: true
output_dir: saves/x
logging_steps: 10
save_steps: 50
plot_loss: true
report_to: none
per_device_train_batch_size: 2
gradient_accumulation_steps: 3
learning_rate: 1.0e-4
num_train_epochs: 2.0
lr_scheduler_type: linear
warmup_ratio: 0.1
weight_decay: 0.01
max_grad_norm: 0.5
optim: adamw_8bit
bf16: true
seed: 7
eval_strategy: steps
eval_steps: 25
use_galore: false
not_a_key: 1
"""

AXOLOTL = """
base_model: org/base-1b
model_type: LlamaForCausalLM
load_in_8bit: false
load_in_4bit: true
adapter: qlora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
lora_model_dir:
datasets:
  - path: org/chats
    type: chat_template
    split: train[:20%]
    field_messages: conversations
    message_property_mappings: {role: from, content: value}
  - path: json
    data_files: [mine.jsonl]
    type: alpaca
    shards: 4
val_set_size: 0.05
sequence_len: 1024
sample_packing: true
gradient_accumulation_steps: 2
micro_batch_size: 3
num_epochs: 4
optimizer: adamw_torch_fused
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.1
early_stopping_patience: 3
wandb_watch:
fsdp: [full_shard, auto_wrap]
fsdp_config:
  fsdp_offload_params: true
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  fsdp_made_up: 1
dp_shard_size: 4
special_tokens: {pad_token: <|end_of_text|>}
plugins: [axolotl.integrations.liger.LigerPlugin]
liger_rope: true
context_parapllel_size: 2
"""

TRL_DPO = """
model_name_or_path: org/base-1b
dtype: bfloat16
attn_implementation: flash_attention_2
dataset_name: org/pairs
dataset_config: en
dataset_train_split: train_prefs
dataset_test_split: test_prefs
eval_strategy: epoch
use_peft: true
lora_r: 8
lora_target_modules: [q_proj, k_proj]
use_dora: true
beta: 0.05
loss_type: sigmoid
label_smoothing: 0.1
max_length: 768
learning_rate: 5.0e-6
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
num_train_epochs: 1
lr_scheduler_type: cosine
warmup_ratio: 0.2
optim: paged_adamw_32bit
gradient_checkpointing: true
seed: 3
save_strategy: "no"
mystery: {deep: [1, 2]}
"""

KAITO = """
apiVersion: v1
kind: ConfigMap
metadata:
  name: params
  namespace: {{ .Release.Namespace }}
data:
  training_config.yaml: |
    training_config:
      ModelConfig:
        torch_dtype: bfloat16
        local_files_only: true
        device_map: auto
      QuantizationConfig:
        load_in_4bit: true
        bnb_4bit_quant_type: nf4
        bnb_4bit_compute_dtype: bfloat16
        bnb_4bit_use_double_quant: true
      LoraConfig:
        r: 4
        lora_alpha: 12
        lora_dropout: 0.2
        target_modules: [q_proj]
      TrainingArguments:
        output_dir: /mnt/results
        num_train_epochs: 5
        per_device_train_batch_size: 2
        learning_rate: 3e-4
        ddp_find_unused_parameters: false
        unheard_of: 1
      DataCollator:
        mlm: true
      DatasetConfig:
        shuffle_dataset: true
        train_test_split: 0.9
---
apiVersion: kaito.sh/v1beta1
kind: Workspace
metadata:
  name: workspace-tuning
resource:
  instanceType: Standard_NC24ads_A100_v4
tuning:
  preset:
    name: phi-3-mini-128k-instruct
  method: qlora
  config: params
  input:
    urls:
      - https://example.org/data/train.parquet?download=true
  output:
    image: registry.example.org/out:1
"""

OLIVE = """
{"input_model": {"type": "HfModel", "model_path": "org/base-1b"},
 "systems": {"local_system": {"type": "LocalSystem"}},
 "data_configs": [
   {"name": "train", "type": "HuggingfaceContainer",
    "load_dataset_config": {"data_name": "org/texts", "subset": "en", "split": "train[:90%]"},
    "pre_process_data_config": {"text_cols": ["text"], "max_seq_len": 640, "strategy": "join"}},
   {"name": "held_out", "load_dataset_config": {"data_name": "org/texts", "subset": "en", "split": "test"}}],
 "passes": {
   "tune": {"type": "LoftQ", "r": 8, "alpha": 24, "lora_dropout": 0.2, "train_data_config": "train", "eval_data_config": "held_out",
            "training_args": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 5, "max_steps": 60, "learning_rate": 1e-4,
                              "warmup_steps": 6, "lr_scheduler_type": "linear", "max_grad_norm": 0.3, "logging_steps": 50, "eval_steps": 20}},
   "build": {"type": "ModelBuilder", "precision": "int4"},
   "quantize": {"type": "AutoAWQQuantizer", "bits": 4}},
 "host": "local_system", "output_dir": "models", "novelty": true}
"""

OPENAI = """
{"model": "gpt-4o-mini", "training_file": "file-abc", "validation_file": "valid.jsonl", "seed": 42, "suffix": "mine",
 "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "batch_size": 8, "learning_rate_multiplier": 0.5, "n_epochs": "auto"}}},
 "integrations": [{"type": "wandb", "wandb": {"project": "p", "tags": ["a"]}}], "invented": 1}
"""

LLAMAFACTORY_V1 = """
model: org/base-1b
model_class: llm
template: qwen3
peft_config: {name: lora, r: 4, lora_alpha: 8, lora_dropout: 0.1, target_modules: all, strange: 1}
quant_config: {name: bnb, quantization_bit: 4}
dist_config: {name: fsdp2, dcp_path: null}
train_dataset: org/chats
micro_batch_size: 2
global_batch_size: 16
cutoff_len: 256
learning_rate: 2.0e-4
max_steps: 10
sample_backend: hf
"""

CONFIGS = {
    "llamafactory": LLAMAFACTORY,
    "axolotl": AXOLOTL,
    "trl": TRL_DPO,
    "kaito": KAITO,
    "olive": OLIVE,
    "openai": OPENAI,
    "llamafactory_v1": LLAMAFACTORY_V1,
}

RECIPES: dict[str, dict[str, Any]] = {
    "llamafactory": {
        "model": "org/base-1b",
        "task": "chat",
        "data": {"train": ["data/first.json", "data/second.json"], "valid": "data/held_out.json"},
        "method": {
            "name": "qlora",
            "rank": 4,
            "alpha": 8,
            "dropout": 0.1,
            "targets": ["q_proj", "v_proj"],
            "rslora": True,
            "double_quantisation": False,
            "loraplus_ratio": 16,
        },
        "train": {
            "epochs": 2,
            "tokens_per_step": 6 * 512,
            "max_length": 512,
            "learning_rate": 1e-4,
            "schedule": "linear",
            "warmup": 0.1,
            "weight_decay": 0.01,
            "clip": 0.5,
            "precision": "bf16",
            "validate_every": 25,
            "checkpoint_every": 50,
            "seed": 7,
        },
        "sharding": {"stage": "zero2", "offload": "cpu"},
    },
    "axolotl": {
        "model": "org/base-1b",
        "task": "chat",
        "data": {"train": ["org/chats:train[:20%]", "mine.jsonl"], "valid": 0.05},
        "method": {"name": "qlora", "rank": 32, "alpha": 16, "dropout": 0.05, "targets": "all-linear"},
        "train": {
            "epochs": 4,
            "tokens_per_step": 2 * 3 * 4 * 1024,
            "max_length": 1024,
            "learning_rate": 2e-4,
            "schedule": "cosine",
            "weight_decay": 0.1,
            "gradient_checkpointing": True,
            "early_stopping": 3,
        },
        "sharding": {"stage": "fsdp", "offload": "cpu", "processes": 4},
    },
    "trl": {
        "model": "org/base-1b",
        "task": {"name": "preference", "loss": "dpo", "beta": 0.05, "label_smoothing": 0.1},
        "data": {"train": "org/pairs/en:train_prefs", "valid": "org/pairs/en:test_prefs"},
        "method": {"name": "dora", "rank": 8, "alpha": 32, "dropout": 0.05, "targets": ["q_proj", "k_proj"]},
        "train": {
            "epochs": 1,
            "rows_per_step": 8,
            "max_length": 768,
            "learning_rate": 5e-6,
            "schedule": "cosine",
            "warmup": 0.2,
            "precision": "bf16",
            "gradient_checkpointing": True,
            "seed": 3,
        },
    },
    "kaito": {
        "model": "microsoft/Phi-3-mini-128k-instruct",
        "task": "chat",
        "data": {"train": "train.parquet", "valid": 0.1},
        "method": {"name": "qlora", "rank": 4, "alpha": 12, "dropout": 0.2, "targets": ["q_proj"]},
        "train": {"epochs": 5, "rows_per_step": 2, "learning_rate": 3e-4, "schedule": "linear", "warmup": 0, "precision": "bf16"},
    },
    "olive": {
        "model": "org/base-1b",
        "task": "text",
        "data": {"train": "org/texts/en:train[:90%]", "valid": "org/texts/en:test"},
        "method": {"name": "qlora", "rank": 8, "alpha": 24, "dropout": 0.2, "targets": "all-linear", "start": "loftq"},
        "train": {
            "max_steps": 60,
            "rows_per_step": 10,
            "max_length": 640,
            "learning_rate": 1e-4,
            "schedule": "linear",
            "warmup": 0.1,
            "clip": 0.3,
            "validate_every": 20,
        },
        "export": ["adapter", {"onnx": "int4"}],
    },
    "openai": {
        "model": "gpt-4o-mini",
        "task": {"name": "preference", "loss": "dpo", "beta": 0.2},
        "data": {"train": "file-abc", "valid": "valid.jsonl"},
        "method": "lora",
        "train": {"rows_per_step": 8, "learning_rate": 1e-4, "seed": 42},
    },
    "llamafactory_v1": {
        "model": "org/base-1b",
        "task": "chat",
        "data": {"train": "org/chats"},
        "method": {"name": "qlora", "rank": 4, "alpha": 8, "dropout": 0.1, "targets": "all-linear"},
        "train": {"max_steps": 10, "rows_per_step": 16, "max_length": 256, "learning_rate": 2e-4, "schedule": "constant", "warmup": 0},
        "sharding": "fsdp",
    },
}

LEFT: dict[str, dict[str, str]] = {
    "llamafactory": {
        "not understood": "not_a_key",
        "no counterpart": "trust_remote_code template max_samples optim",
        "needless": "output_dir logging_steps plot_loss report_to use_galore",
    },
    "axolotl": {
        "not understood": "fsdp_config.fsdp_made_up context_parapllel_size",
        "no counterpart": "datasets[1].type datasets[1].shards warmup_steps evals_per_epoch",
        "needless": "model_type lora_model_dir datasets[0].field_messages datasets[0].message_property_mappings bf16 gradient_checkpointing_kwargs "
        "saves_per_epoch wandb_watch fsdp_config.fsdp_transformer_layer_cls_to_wrap special_tokens plugins liger_rope",
    },
    "trl": {"not understood": "mystery.deep", "no counterpart": "", "needless": "attn_implementation save_strategy"},
    "kaito": {
        "not understood": "T.TrainingArguments.unheard_of",
        "no counterpart": "Workspace.resource Workspace.tuning.config Workspace.tuning.output",
        "needless": "ConfigMap.apiVersion ConfigMap.kind ConfigMap.metadata T.ModelConfig.local_files_only T.ModelConfig.device_map "
        "T.QuantizationConfig.bnb_4bit_compute_dtype T.TrainingArguments.output_dir T.TrainingArguments.ddp_find_unused_parameters "
        "T.DataCollator.mlm T.DatasetConfig.shuffle_dataset Workspace.apiVersion Workspace.kind Workspace.metadata",
    },
    "olive": {
        "not understood": "novelty",
        "no counterpart": "data_configs[0].pre_process_data_config.text_cols passes.quantize.type passes.quantize.bits",
        "needless": "input_model.type systems data_configs[0].type data_configs[0].pre_process_data_config.strategy "
        "passes.tune.training_args.logging_steps host output_dir",
    },
    "openai": {
        "not understood": "invented",
        "no counterpart": "suffix integrations[0].type integrations[0].wandb.project integrations[0].wandb.tags",
        "needless": "method.dpo.hyperparameters.n_epochs",
    },
    "llamafactory_v1": {
        "not understood": "peft_config.strange",
        "no counterpart": "template",
        "needless": "model_class dist_config.dcp_path micro_batch_size sample_backend",
    },
}
"""Which keys are left over, by the first words of the reason. `T` stands for the path of KAITO's sections."""
