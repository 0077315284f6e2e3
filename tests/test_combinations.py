"""The combination table: derived from what the parts declare, refused where a recipe is checked, shown as it is."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import write_job
from pairwise import cover, pairs_of
from rich.console import Console
from tiny import tiny_model

from tunery import combinations, methods, resolve
from tunery.combinations import document, table, walked
from tunery.combinations.options import described
from tunery.errors import InputError
from tunery.methods import lora
from tunery.models.kind import model_kind
from tunery.progress import Quiet
from tunery.recipe import Options, from_mapping
from tunery.refusal import AXES, Refusal

ROOT = Path(__file__).parents[1]


def choice(**changes: str) -> dict[str, str]:
    """A cell that works, but for the changes."""
    return {
        "task": "chat",
        "method": "lora",
        "sharding": "none",
        "precision": "fp32",
        "device": "cpu",
        "export": "adapter",
        "model": "decoder",
        **changes,
    }


@pytest.fixture
def fresh() -> Iterator[None]:
    """The table is worked out once; a test that changes a part works it out anew, and leaves nothing behind."""

    def clear() -> None:
        for known in (combinations.values, combinations.rules, table.table, table.as_data, walked.walked):
            known.cache_clear()

    clear()
    yield
    clear()


def command(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = "from tunery.cli.main import run; run()"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False)


def test_what_parts_refuse_is_about_choices_that_exist_and_says_why() -> None:
    for rule in combinations.rules():
        for axis, names in rule.when.items():
            assert names, rule
            assert set(names) <= set(combinations.values()[axis]), rule
        assert len(rule.when) > 1, f"{rule}: refuses a part altogether"
        assert rule.refusal.reason
        assert rule.refusal.source


def test_every_refusal_names_a_choice_that_works() -> None:
    """What a refusal says to use instead mends at least one of the cells that it alone refuses, and every refused cell has some answer."""
    helped: set[int] = set()
    for cell in combinations.cells():
        rule = combinations.refusal_of(cell)
        if rule is None:
            continue
        if combinations.refusal_of({**cell, **combinations.changed_by(rule.refusal.instead)}) is None:
            helped.add(id(rule))
        instead = combinations.nearest(cell, rule)
        assert instead is not None, cell
        changed = [c for line in instead.split("` and `") for c in combinations.changed_by(line).items()]
        assert combinations.refusal_of({**cell, **dict(changed)}) is None, (cell, instead)
    met = {id(combinations.refusal_of(cell)) for cell in combinations.cells()} - {id(None)}
    useless = [rule for rule in combinations.rules() if id(rule) in met - helped]
    assert not useless


def test_what_follows_from_a_parts_nature_is_refused_without_being_written_down() -> None:
    for name in methods.names():
        refused = [e for e in combinations.ONE_MODEL if combinations.refusal_of(choice(method=name, export=e))]
        if not methods.get(name).MERGES:
            assert refused == list(combinations.ONE_MODEL), name
        else:
            assert "merged" not in refused, name
        assert bool(combinations.refusal_of(choice(method=name))) is (methods.get(name).SAVES == "weights"), name
    rule = combinations.refusal_of(choice(model="encoder"))
    assert rule is not None
    assert (rule.axis, rule.part) == ("task", "chat")


@pytest.mark.usefixtures("fresh")
def test_a_new_refusal_of_a_part_is_in_the_table_and_stops_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert combinations.refusal_of(choice(export="onnx", precision="bf16")) is None
    mine = Refusal({"export": ("onnx",), "precision": ("bf16",)}, "the moon is full", "our almanac", "train: {precision: fp32}")
    monkeypatch.setattr(lora, "REFUSES", (mine,), raising=False)
    for known in (combinations.rules, table.table, table.as_data):
        known.cache_clear()
    assert combinations.refusal_of(choice(export="onnx", precision="fp32")) is None
    with pytest.raises(InputError) as e:
        combinations.require(choice(export="onnx", precision="bf16"), "job.yaml")
    assert str(e.value) == (
        "job.yaml: `method: lora` does not go together with `precision: bf16` and `export: onnx`: the moon is full (our almanac); "
        "use `train: {precision: fp32}`"
    )
    note = next(n for n in table.table().notes if n.reason == "the moon is full")
    assert note.number in table.table().entries["method", "lora", "export", "onnx"].rules
    # A cell on a GPU is refused as well, but a row of another method is not.
    assert note.number not in table.table().entries["method", "dora", "export", "onnx"].rules


def test_an_answer_that_is_refused_itself_is_replaced_by_the_nearest_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    here = combinations.Rule(
        "method", "lora", {"method": ("lora",), "export": ("onnx",)}, Refusal({"export": ("onnx",)}, "a", "b", "export: onnx")
    )
    monkeypatch.setattr(combinations, "rules", lambda: (here,))
    assert combinations.nearest(choice(export="onnx"), here) == "export: adapter"
    whole = combinations.Rule("task", "chat", {"task": ("chat",), "model": ("encoder",)}, here.refusal)
    monkeypatch.setattr(combinations, "rules", lambda: (whole,))
    assert combinations.nearest(choice(model="encoder"), whole) == "task: classify"
    always = combinations.Rule("task", "chat", {"model": ("encoder",)}, here.refusal)
    monkeypatch.setattr(combinations, "rules", lambda: (always,))
    assert combinations.nearest(choice(model="encoder"), always) is None


def test_check_refuses_in_one_sentence_before_a_weight_is_read(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = write_job(tmp_path, tiny_llama, method="prefix", export=["adapter", "merged"])
    (tmp_path / "train.jsonl").write_text("this is no row")
    for verb in ("check", "train"):
        done = command(verb, recipe, cwd=tmp_path)
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert "`method: prefix` does not go together with `export: merged`" in line
        assert line.endswith("use `export: [adapter]`")
    assert not (tmp_path / "runs").exists()


def test_a_decoders_task_on_an_encoder_names_one_that_fits(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "bert", "bert")
    recipe = from_mapping({"model": str(model), "data": {"train": "train.jsonl"}, "task": "chat"})
    with pytest.raises(InputError, match=r"`task: chat` does not go together with an encoder.*use `task: classify`$"):
        resolve.resolve(recipe, Quiet())
    words = from_mapping({"model": str(model), "data": {"train": "train.jsonl"}, "task": {"name": "classify", "as": "words"}})
    with pytest.raises(InputError, match=r"`task: \{name: classify, as: words\}` does not go together with an encoder"):
        resolve.resolve(words, Quiet())


def test_a_method_that_trains_the_base_exports_merged_and_says_so(tiny_llama: Path) -> None:
    said: list[str] = []

    class Told(Quiet):
        def say(self, message: str) -> None:
            said.append(message)

    plain: dict[str, Any] = {"model": str(tiny_llama), "data": {"train": "train.jsonl"}, "method": "full"}
    found = resolve.resolve(from_mapping(plain), Told())
    assert [name for name, _ in found.exports] == ["merged"]
    assert [e.name for e in found.recipe.export] == ["merged"]
    assert any("`merged` in place of `adapter`" in line for line in said)
    assert "leaves no adapter" in found.reasons["export"]
    both = resolve.resolve(from_mapping({**plain, "export": ["adapter", "merged"]}), Quiet())
    assert [name for name, _ in both.exports] == ["merged"]
    other = resolve.resolve(from_mapping({**plain, "method": "lora"}), Quiet())
    assert [name for name, _ in other.exports] == ["adapter"]
    assert "export" not in other.reasons


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "decoder"),
        ({"model_type": "llama"}, "decoder"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "encoder"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "encoder"),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True}, "decoder"),
        ({"model_type": "modernbert"}, "encoder"),
    ],
)
def test_the_kind_of_a_model_is_in_its_config(tmp_path: Path, config: dict[str, Any], kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_kind(tmp_path) == kind


def test_a_model_of_both_kinds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    with pytest.raises(InputError, match="encoder and a decoder in one"):
        model_kind(tmp_path)


def test_only_a_cell_that_was_walked_on_every_architecture_is_a_yes() -> None:
    cell = choice()
    llama, phi3 = (walked.key_of(cell, name) for name in ("llama", "phi3"))
    assert walked.status_of(cell, {}) == ("untested", "")
    assert walked.status_of(cell, {llama: {"adapter": "1.2.0"}}) == ("untested", "")
    assert walked.status_of(cell, {llama: {"adapter": "1.10.0"}, phi3: {"adapter": "1.9.0"}}) == ("yes", "1.9.0")
    assert walked.status_of(cell, {llama: {"adapter": "1.0.0"}, phi3: {"onnx": "1.0.0"}}) == ("untested", "")
    assert walked.status_of(cell, {llama: {"adapter": "1.0.0"}, phi3: {"adapter": "failed: no"}}) == ("fails", "no")
    assert walked.status_of(choice(device="cuda"), {llama: {"adapter": "1.0.0"}, phi3: {"adapter": "1.0.0"}}) == ("untested", "")


@pytest.mark.usefixtures("fresh")
def test_an_entry_counts_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = [c for c in combinations.cells(device="cpu", method="lora", task="text") if combinations.refusal_of(c) is None]
    runs: dict[str, dict[str, str]] = {}

    def pass_(cells: list[dict[str, str]], word: str = "9.9.9") -> str:
        for cell in cells:
            for architecture in walked.ARCHITECTURES[cell["model"]]:
                runs.setdefault(walked.key_of(cell, architecture), {})[cell["export"]] = word
        monkeypatch.setattr(table, "walked", lambda: runs)
        table.table.cache_clear()
        return table.table().entries["method", "lora", "task", "text"].text

    assert pass_([]) == "untested"
    assert pass_(allowed[:1]) == f"1/{len(allowed)}"
    assert pass_(allowed) == "yes"
    assert table.table().entries["method", "lora", "device", "cuda"].text == "untested"
    assert table.table().entries["method", "dora", "task", "text"].text == "untested"
    assert pass_(allowed[:1], "failed: it broke") == f"fails 1/{len(allowed)}"
    prompt = table.table().entries["method", "prompt", "export", "merged"]
    assert prompt.text == "no"
    assert prompt.rules


def test_the_commands_output_is_the_table(tmp_path: Path) -> None:
    plain = command("methods")
    assert (plain.returncode, plain.stdout) == (0, table.in_full())
    as_json = command("methods", "--json")
    data = json.loads(as_json.stdout)
    assert as_json.returncode == 0
    assert [m["name"] for m in data["methods"]] == methods.names()
    assert data["axes"] == {axis: list(combinations.values()[axis]) for axis in AXES}
    assert data["table"]["method"]["prompt"]["export"]["merged"]["status"] == "no"
    wrong = command("methods", "lorra")
    assert wrong.returncode == 2
    assert "did you mean `lora`?" in wrong.stderr


@pytest.mark.parametrize("name", methods.names())
def test_one_method_is_shown_whole(name: str) -> None:
    text = table.of_method(name)
    method = methods.get(name)
    assert f"{method.LEARNING_RATE[0]:g}, {method.LEARNING_RATE[1]}" in text
    for option in table.one_method(name)["options"]:
        assert f"| `{option['name']}` | `{option['default']}` |" in text
        assert option["description"], f"methods/{name}.py: {option['name']} does not say what it is and why its default"
    for axis in table.TABLES["method"]:
        assert all(f"{value}: " in text for value in combinations.values()[axis])


def test_an_options_meaning_is_read_from_where_it_is_declared() -> None:
    class Base(Options):
        width: int = 3
        """How wide; three,
        as everybody says."""

    class Own(Base):
        targets: tuple[str, ...] = ("a",)
        must: int

    assert described(Own) == [
        {"name": "width", "default": 3, "description": "How wide; three, as everybody says."},
        {"name": "targets", "default": ["a"], "description": ""},
        {"name": "must", "default": "required", "description": ""},
    ]


def test_every_word_of_the_table_is_explained_where_it_is_read() -> None:
    legend = table.legend()
    explained = [line.split("`")[1] for line in legend.splitlines() if line.startswith("- `")]
    entries = table.table().entries.values()
    used = {re.sub(r"\d+", "#", entry.text) for entry in entries} | {
        re.sub(r"\d+", "#", f"{entry.text} (4)") for entry in entries if entry.rules
    }
    known = {re.sub(r"\d+", "#", word) for word in (*explained, "yes (4)", "untested (4)", "3/8 (4)", "fails 2/8 (4)")}
    assert {"yes", "untested", "no (4)", "fails 2/8", "3/8"} == set(explained)
    assert used - {"no"} <= known, "`no` alone has no reason"
    assert "`yes (4)`: some recipes" in legend
    # On a terminal, when piped, for one method, and in the documents.
    for text in (table.in_full(), table.of_method("lora"), document.document()):
        assert legend in text
    assert "`untested`" in document.readme_section()


def test_a_terminal_shows_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunery.cli import methods_view

    out = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=out, width=200, force_terminal=True, color_system=None))
    methods_view.show(table.of_method("prefix"))
    shown = out.getvalue()
    assert "virtual_tokens" in shown
    assert "no (" in shown
    assert "│" in shown
    assert "| `" not in shown


@pytest.mark.parametrize(
    ("cell", "style"), [("yes", "green"), ("no (3)", "red"), ("12/40 (1)", "yellow"), ("fails 1/4", "bold red"), ("lora", "")]
)
def test_colours(cell: str, style: str) -> None:
    from tunery.cli.methods_view import _style

    assert _style(cell) == style


def test_the_documents_are_what_the_code_says() -> None:
    mend = f"write it again: {document.COMMAND}"
    assert (ROOT / "docs" / "combinations.md").read_text(encoding="utf-8") == document.document(), mend
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert document.with_section(readme, document.readme_section()) == readme, mend


def test_a_cover_holds_every_pair_and_is_smaller_than_the_table() -> None:
    allowed = [c for c in combinations.cells(device="cpu", sharding="none") if combinations.refusal_of(c) is None]
    chosen = cover(allowed)
    assert set().union(*map(pairs_of, chosen)) == set().union(*map(pairs_of, allowed))
    assert len(chosen) < len(allowed) / 4
    assert chosen == cover(allowed)
