"""A local model folder → a model and a tokenizer in memory.

Weights come from safetensors only, in the asked-for precision, frozen and in evaluation mode: a method then decides what
is trained. A folder whose weights do not fill its architecture is refused, where transformers would fill in random ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunery.errors import InputError
from tunery.models._mapped import given_back
from tunery.models.heads import CLASSES, Head, check_own_head, new_layers
from tunery.models.source import check_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

DTYPES = ("float32", "bfloat16")


def load_model(
    folder: str | Path, dtype: str = "float32", device: str = "cpu", attention: str = "sdpa", head: Head | None = None, seed: int = 0
) -> PreTrainedModel:
    """The causal language model in `folder`, or the same layers under a task's `head`; every parameter has `requires_grad=False`.

    `attention` is transformers' `attn_implementation`. A head that the folder does not hold begins with random values that depend on
    `seed` alone; `model.new_layers` names all layers that did. Under a head, padding is what the tokenizer pads with. Raises InputError
    when the folder, its architecture, the device or the weights cannot be used.
    """
    folder = Path(folder)
    check_folder(folder)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; choose {' or '.join(DTYPES)}")

    import torch
    from safetensors import SafetensorError

    automatic = automatic_class(head)
    if head:
        check_own_head(folder, head)
    if device.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        raise InputError(f"the device {device} is not there: torch {torch.__version__} sees no GPU; use cpu, or see `tunery doctor`")
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]), given_back(folder, dtype):
            torch.manual_seed(seed)
            model, report = automatic.from_pretrained(
                folder,
                **(head.config() if head else {}),
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except torch.OutOfMemoryError:
        raise  # the folder is right, the device is too small
    except (ValueError, KeyError, OSError, RuntimeError, ImportError, SafetensorError) as e:
        raise InputError(
            f"{folder}: transformers cannot load this model ({_first_line(e)}); check the folder, or choose another model"
        ) from None
    # transformers fills in what is missing with random values, in silence: a head and what lies before it may be new, nothing else may.
    new, missing = new_layers(report["missing_keys"]) if head else ((), sorted(report["missing_keys"]))
    if missing:
        raise InputError(
            f"{folder}: the weights lack {len(missing)} tensors of the architecture ({missing[0]} first); download the model again"
        )
    model.new_layers = new
    if head:
        _set_padding(model, folder)
        model.config.get_text_config().use_cache = False  # keys and values serve generation alone
    model.requires_grad_(False)
    return model.eval().to(device)


def automatic_class(head: Head | None) -> Any:
    """transformers' own class that finds the model class for a folder: of a causal language model, or with a head."""
    import transformers

    return getattr(transformers, f"AutoModel{CLASSES[head.kind] if head else 'ForCausalLM'}")


def _set_padding(model: Any, folder: Path) -> None:
    """The token to pad with into the configuration: a decoder's class finds the end of each text by it. The tokenizer decides.

    Without one of its own it is the end token, as is usual.
    """
    tokenizer = load_tokenizer(folder)
    own = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if own is None and model.config.get_text_config().pad_token_id is None:
        raise InputError(
            f"{folder}: the tokenizer has neither a pad token nor an end token, so texts cannot share a batch; set `pad_token`"
        )
    if own is not None:
        model.config.pad_token_id = model.config.get_text_config().pad_token_id = own


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`, with its chat template when it has one. Raises InputError when there is none."""
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise InputError(f"{folder}: there is no tokenizer here (no tokenizer.json); copy the model's tokenizer files into it")

    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as e:  # tokenizers raises plain Exception for a damaged file
        raise InputError(f"{folder}: transformers cannot load this tokenizer ({_first_line(e)}); download the model again") from None
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: this tokenizer has no fast form (tokenizer.json), which Tunery needs; choose another model")
    return tokenizer


def context_length(folder: str | Path) -> int:
    """The most tokens that the model in `folder` takes, from config.json alone (no weights, no torch).

    `max_position_embeddings` is the whole length where rope scaling is llama3 or longrope (Phi-3 128k) or linear; for
    yarn and dynamic scaling it is the length before scaling (https://arxiv.org/abs/2309.00071, section 3).
    """
    file = Path(folder) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: this is not a model folder (it has no config.json); name the folder that holds it") from None
    except ValueError:
        raise InputError(f"{file}: this is not valid JSON; download the model again") from None
    config = {**config, **(config.get("text_config") or {})}
    keys = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
    length = next((config[k] for k in keys if isinstance(config.get(k), int)), None)
    if length is None:
        raise InputError(f"{file}: the context length is not stated (no max_position_embeddings); add it to config.json")
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        return int(length) - 2  # positions begin after the padding index, which is 1
    scaling: dict[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    factor = scaling.get("factor") or 1.0
    if kind == "yarn":
        length = max(length, math.floor(scaling.get("original_max_position_embeddings", length) * factor))
    elif kind == "dynamic":
        length = math.floor(length * factor)
    return int(length)


def count_parameters(model: Any) -> int:
    """The number of values in a module's parameters; tied ones count once."""
    return sum(p.numel() for p in model.parameters())


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no notices of transformers while the block runs; its settings are then as before."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [error.__class__.__name__])[0][:300]
