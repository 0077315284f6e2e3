"""Files of any content end in a mapping or in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunery.errors import InputError
from tunery.importers import read
from tunery.importers._file import LARGEST, load

BAD = {
    "no file": (None, "there is no such file"),
    "empty": (b"", "the file is empty"),
    "only comments": (b"# nothing\n---\n", "the file is empty"),
    "a list": (b"- a\n- b\n", "this is a list"),
    "text": (b"just words\n", "this is text"),
    "not yaml": (b"a: [1\nb: 2\n", "not valid YAML"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", "is not UTF-8"),
    "nul": (b"a: \x00\n", "not valid YAML"),
    "twice": (b"a: 1\nb: 2\na: 3\n", "a.yaml:3: not valid YAML (the key `a` is there twice)"),
    "twice inside": (b"x:\n  a: 1\n  a: 3\n", "the key `a` is there twice"),
    "code": (b"a: !!python/object/apply:os.system ['echo']\n", "not valid YAML"),
    "unhashable key": (b"{[1]: 2}\n", "not valid YAML"),
    "long number": (b"a: " + b"1" * 5000 + b"\n", "not valid YAML"),
    "no date": (b"a: 2001-99-99\n", "not valid YAML"),
    "alias of itself": (b"a: &a [*a]\n", "more than"),
    "nested": (b"a: " + b"[" * 3000, "nested too deep"),
    "two documents": (b"a: 1\n---\nb: 2\n", "several documents"),
    "too large": (b"a: " + b"x" * LARGEST, "larger than 1 MiB"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_configuration_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    file = tmp_path / "a.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as e:
        load(file)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_aliases_that_stand_for_billions_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match="more than 20000 values"):
        load(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"a": 1, "a": 2}', "the key `a` is there twice"),
        ("{" * 100_000, "nested too deep|not valid JSON"),
        ('{"a": 1' + "0" * 5000 + "}", "4300"),
    ],
)
def test_broken_json_too(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "a.json")


def test_json_yaml_and_merged_keys_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a": {"b": [1, None]}}))
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfbase: &base {b: 1, c: 2}\na: {<<: *base, c: 3}\n1: x\nday: 2024-01-02\n")
    assert load(tmp_path / "a.json") == {"a": {"b": [1, None]}}
    assert load(tmp_path / "a.yaml") == {"base": {"b": 1, "c": 2}, "a": {"b": 1, "c": 3}, "1": "x", "day": "2024-01-02"}


def test_kubernetes_objects_are_kept_apart_and_helm_placeholders_are_text(tmp_path: Path) -> None:
    claim = "apiVersion: v1\nkind: Claim\n"
    (tmp_path / "a.yaml").write_text(
        f"{claim}---\n{claim}---\napiVersion: v1\nkind: Job\nmetadata:\n  namespace: {{{{ .Release.Name }}}}\n"
    )
    found = load(tmp_path / "a.yaml")
    assert list(found) == ["Claim", "Claim 2", "Job"]
    assert found["Job"]["metadata"] == {"namespace": "{{ .Release.Name }}"}


def refusal(file: Path, tool: str | None = None) -> str | None:
    """What is said against the file; None when it becomes a recipe."""
    try:
        read(file, tool)
    except InputError as e:
        return str(e)
    return None


WORDS = (
    "model_name_or_path",
    "stage",
    "base_model",
    "training_file",
    "passes",
    "training_config",
    "dataset_name",
    "learning_rate",
    "datasets",
    "rl",
)
PIECES = st.sampled_from(
    [*WORDS, ":", " ", "\n", "- ", "{", "}", "[", "]", '"', "'", "&a", "*a", "!!", "|", "%", "---", "1e-4", "null", "\t"]
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.lists(PIECES, max_size=25).map(lambda pieces: "".join(pieces).encode()))
def test_any_bytes_end_in_a_recipe_or_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    said = refusal(file)
    assert said is None or (said.startswith(str(file)) and "\n" not in said)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["axolotl", "kaito", "llamafactory", "llamafactory_v1", "olive", "openai", "trl"]),
    st.dictionaries(
        st.sampled_from(
            [*WORDS, "method", "fsdp", "deepspeed", "Workspace", "kind", "input_model", "data_configs", "type", "adapter", "loss_type"]
        ),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.sampled_from(["lora", "LoRA", "qlora", "dpo", "no", "x/y", "zero3.json", "1"]),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from(["path", "type", "a", "config", "training_args", "dpo"]), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=6,
    ),
)
def test_any_values_under_a_tools_own_keys_end_in_a_recipe_or_in_one_sentence(
    tmp_path: Path, tool: str, mapping: dict[str, object]
) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(mapping))
    said = refusal(file, tool)
    assert said is None or (said.startswith(str(file)) and "\n" not in said)
