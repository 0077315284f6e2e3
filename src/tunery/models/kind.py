"""What a model folder holds, by its config alone: a decoder, which predicts the next token, or an encoder, which sees both sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from tunery.errors import InputError

Kind = Literal["decoder", "encoder"]


def model_kind(folder: str | Path) -> Kind:
    """`decoder` or `encoder`, from config.json: no weights are read. Raises InputError for a model that is both in one (T5, BART).

    The class that the folder was saved from decides; where that names none (a bare `BertModel`), its family does: an encoder is what
    transformers can put a masked-word head on.
    """
    file = Path(folder) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{folder}: this is not a model folder (it has no config.json); name the folder that holds it") from None
    except ValueError:
        raise InputError(f"{file}: this is not valid JSON; download the model again") from None
    family = config.get("model_type", "")
    if config.get("is_encoder_decoder"):
        raise InputError(
            f"{folder}: this model ({family}) has an encoder and a decoder in one, which Tunery does not train; choose a decoder or an encoder"
        )
    classes = config.get("architectures") or []
    if config.get("is_decoder") or any("CausalLM" in name or "LMHeadModel" in name for name in classes):
        return "decoder"
    if any("MaskedLM" in name for name in classes):
        return "encoder"

    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return "encoder" if family in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "decoder"
