"""Nothing of a configuration is dropped without a word, whatever an importer forgets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.errors import InputError
from tunery.importers._reader import EMPTY, NOT_UNDERSTOOD, OFF, Reader, dotted


def reader(mapping: dict[str, Any]) -> Reader:
    return Reader(mapping, "a.yaml", Path())


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values, found in another way than the reader's own."""
    if isinstance(value, dict) and value:
        for key in value:
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        for n, inner in enumerate(value):
            yield from leaves(inner, (*path, n))
    else:
        yield path


KEYS = st.text(st.characters(min_codepoint=97, max_codepoint=102), min_size=1, max_size=2)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4), st.data())
def test_every_leaf_is_taken_or_listed(mapping: dict[str, Any], data: st.DataObject) -> None:
    root = reader(mapping)
    taken: set[tuple[Any, ...]] = set()
    left: dict[tuple[Any, ...], str] = {}

    def walk(part: Reader) -> None:
        for key, value in part.mapping.items():
            choice = data.draw(st.sampled_from(("take", "leave", "inside", "forget")))
            if choice == "inside" and isinstance(value, dict):
                walk(part.inside(key))
            elif choice == "take" and part.take(key) is not None:
                taken.add((*part.path, key))
            elif choice == "leave" and key in part:
                part.leave(key, "no counterpart because")
                left[(*part.path, key)] = "no counterpart because"

    walk(root)
    listed = {item.key: item.reason for item in root.left_over()}
    for leaf in leaves(mapping):
        over = [leaf[:n] for n in range(1, len(leaf) + 1)]
        if any(path in taken for path in over):
            assert not any(dotted(path) in listed for path in over)
        elif any(path in left for path in over):
            assert any(listed.get(dotted(path)) == "no counterpart because" for path in over)
        else:
            assert listed[dotted(leaf)] in (NOT_UNDERSTOOD, EMPTY)


def test_values_are_read_as_people_write_them() -> None:
    root = reader({"a": "2e-5", "b": "16", "c": "true", "d": "x, y", "e": 3, "f": ["x"], "g": None, "h": 0})
    assert (root.number("a"), root.integer("b"), root.flag("c"), root.texts("d")) == (2e-5, 16, True, ["x", "y"])
    assert (root.text("e"), root.texts("f"), root.number("g"), root.flag("h")) == ("3", ["x"], None, False)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("number", "fast"),
        ("number", True),
        ("number", "nan"),
        ("number", -1),
        ("number", [1]),
        ("integer", 1.5),
        ("integer", 10**400),
        ("flag", "maybe"),
        ("flag", 2),
        ("text", ["a"]),
        ("texts", [1]),
        ("inside", "a"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(kind: str, value: Any) -> None:
    with pytest.raises(InputError, match=r"^a\.yaml: outer\.key: "):
        getattr(reader({"outer": {"key": value}}).inside("outer"), kind)("key")


def test_known_keys_are_left_with_their_reason_and_switched_off_ones_are_needless() -> None:
    root = reader({"wandb_project": "p", "wandb_watch": None, "use_x": False, "use_y": True, "z": 1})
    root.leave_known({"wandb_*": "no counterpart because of W", "use_*": "no counterpart because of U"})
    assert {item.key: item.reason for item in root.left_over()} == {
        "wandb_project": "no counterpart because of W",
        "wandb_watch": EMPTY,
        "use_x": OFF,
        "use_y": "no counterpart because of U",
        "z": NOT_UNDERSTOOD,
    }


def test_a_key_that_was_read_and_then_left_is_listed() -> None:
    root = reader({"a": 4})
    assert root.integer("a") == 4
    root.leave("a", "no counterpart because")
    assert [item.key for item in root.left_over()] == ["a"]
