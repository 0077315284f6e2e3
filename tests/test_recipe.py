"""The recipe as written: every refusal names the file, the line, the key and the mend."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tunery.errors import InputError
from tunery.recipe import Recipe, from_mapping, read

PLAIN = {"model": "smollm2-135m", "data": {"train": "train.jsonl"}}

WHOLE = """\
model: smollm2-135m
task: chat
data: {train: train.jsonl, valid: 0.05, test: test.jsonl}
method: {name: lora, rank: 16, alpha: 32, dropout: 0.0, targets: all-linear}
train: {epochs: 2, max_steps: null, tokens_per_step: 4096, rows_per_step: null, max_length: 1024, learning_rate: 2e-4,
        schedule: cosine, warmup: 0.03, weight_decay: 0.0, clip: 1.0, optimizer: adamw, precision: auto, gradient_checkpointing: auto,
        validate_every: null, early_stopping: null, checkpoint_every: 200, init_from: null, seed: 0}
sharding: none
evaluate: {metrics: [exact_match], limit: 400}
export: [adapter, merged, onnx]
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_whole_form_is_read(tmp_path: Path) -> None:
    recipe = read(written(tmp_path, WHOLE))
    assert recipe.train.learning_rate == 2e-4  # YAML 1.1 reads 2e-4 as text
    assert recipe.data.valid == 0.05
    assert recipe.method.options["rank"] == 16
    assert [e.name for e in recipe.export] == ["adapter", "merged", "onnx"]


@pytest.mark.parametrize(
    ("line", "by", "message"),
    [
        ("task: chat", "tasks: chat", "recipe.yaml:2: unknown key `tasks`; did you mean `task`?"),
        ("train: {epochs", "train: {epoch", "recipe.yaml:5: unknown key `train.epoch`; did you mean `epochs`?"),
        ("data: {train", "data: {trian", "recipe.yaml:3: unknown key `data.trian`; did you mean `train`?"),
        ("model: smollm2-135m\n", "", "recipe.yaml: the key `model` is missing; add it"),
        ("epochs: 2", "epochs: none", "recipe.yaml:5: `train.epochs`: input should be a valid number"),
        ("epochs: 2", "epochs: -1", "recipe.yaml:5: `train.epochs`: input should be greater than 0"),
        ("rows_per_step: null", "rows_per_step: 8", "recipe.yaml:5: train: tokens_per_step and rows_per_step both set"),
        ("schedule: cosine", "schedule: cosin", "recipe.yaml:6: `train.schedule`: input should be 'cosine', 'linear' or 'constant'"),
        ("seed: 0}", "seed: 0", "this is not valid YAML"),
    ],
)
def test_refusals(tmp_path: Path, line: str, by: str, message: str) -> None:
    assert line in WHOLE
    with pytest.raises(InputError) as e:
        read(written(tmp_path, WHOLE.replace(line, by)))
    assert message in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["", "- a\n", "hello", "a: [", "\x00", "model: {a: b}\ndata: 3\n", "? {a: 1}\n: 2\n", "data: &a [*a]\n"])
def test_what_is_no_recipe_is_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as e:
        read(written(tmp_path, text))
    assert "recipe.yaml" in str(e.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such recipe"):
        read(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(InputError, match="UTF-8"):
        read(tmp_path / "bytes.yaml")


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=3", ("train", "epochs"), 3.0),
        ("train.learning_rate=1e-3", ("train", "learning_rate"), 1e-3),
        ("model=other", ("model",), "other"),
        ("data.valid=0.1", ("data", "valid"), 0.1),
        ("evaluate.metrics=[accuracy]", ("evaluate", "metrics"), ("accuracy",)),
        ("train.max_length=null", ("train", "max_length"), None),
    ],
)
def test_overrides(override: str, path: tuple[str, ...], value: Any) -> None:
    found: Any = from_mapping(PLAIN, [override])
    for key in path:
        found = getattr(found, key)
    assert found == value


def test_overrides_of_a_choice_by_name() -> None:
    recipe = from_mapping({**PLAIN, "method": "lora"}, ["method.rank=4"])
    assert recipe.method.name == "lora"
    assert recipe.method.options == {"rank": 4}


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train.epoch=3", "model.name=3", "train.epochs=["])
def test_wrong_overrides(override: str) -> None:
    with pytest.raises(InputError):
        from_mapping(PLAIN, [override])


@pytest.mark.parametrize(
    ("export", "found"),
    [
        ("onnx", [("onnx", {})]),
        ({"onnx": "int4"}, [("onnx", {"precision": "int4"})]),
        (["adapter", {"onnx": "int4"}], [("adapter", {}), ("onnx", {"precision": "int4"})]),
        ([], []),
    ],
)
def test_export_forms(export: Any, found: list[tuple[str, dict[str, str]]]) -> None:
    recipe = from_mapping({**PLAIN, "export": export})
    assert [(e.name, e.options) for e in recipe.export] == found


def test_without_export_there_is_the_adapter() -> None:
    assert [e.name for e in from_mapping(PLAIN).export] == ["adapter"]


def test_as_written_gives_the_recipe_again(tmp_path: Path) -> None:
    for plain in (
        PLAIN,
        yaml.safe_load(WHOLE),
        {**PLAIN, "export": {"onnx": "int8"}, "data": {"train": ["a", {"path": "b", "weight": 2}]}},
    ):
        recipe = from_mapping(plain)
        again = yaml.safe_load(yaml.safe_dump(recipe.as_written()))
        assert from_mapping(again) == recipe


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
keys = st.sampled_from(["model", "data", "train", "method", "sharding", "export", "evaluate", "task", "name", "path", "weight"]) | st.text(
    max_size=5
)
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12)


@given(st.dictionaries(keys, anything, max_size=6))
def test_any_mapping_is_a_recipe_or_one_sentence(plain: dict[str, Any]) -> None:
    try:
        recipe = from_mapping(plain)
    except InputError:
        return
    assert isinstance(recipe, Recipe)
