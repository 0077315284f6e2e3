from __future__ import annotations

import pytest

from tunery.errors import InputError
from tunery.metrics import choose, find_labels, get, names


def test_labels_are_found_sorted_and_normalised() -> None:
    assert find_labels(["b", " a\n", "b", "a"] * 5) == ("a", "b")


@pytest.mark.parametrize(
    "references",
    [
        [],
        ["yes", "no"] * 9,  # 18 rows: too few to tell
        ["yes"] * 50,  # one answer is nothing to tell apart
        [f"sentence {i}" for i in range(20)],  # twenty different texts in twenty rows
        [f"label {i}" for i in range(21)] * 20,
        ["I do not know"] * 80 + [f"sentence {i}" for i in range(15)],  # repeats, but the rest is free text
        ["yes"] * 30 + [""] * 30,
    ],
)
def test_free_text_has_no_labels(references: list[str]) -> None:
    assert find_labels(references) is None


def test_a_rare_class_does_not_hide_the_labels() -> None:
    assert find_labels(["sport"] * 300 + ["news"] * 99 + ["obituary"]) == ("news", "obituary", "sport")


def test_twenty_labels_in_a_hundred_rows_are_still_labels() -> None:
    assert len(find_labels([f"label {i}" for i in range(20)] * 5) or ()) == 20


def test_choice_follows_the_answers() -> None:
    assert choose(["yes", "no"] * 20) == ("accuracy", "macro_f1", "exact_match")
    assert choose([f"{i} apples" for i in range(50)]) == ("exact_match", "token_f1", "chrf", "rouge_l")
    assert choose([f"It was answer {i} " + "and then some more words " * 4 for i in range(50)])[0] == "chrf"
    assert choose([chr(0x4E00 + i) * 3 for i in range(50)]) == ("exact_match", "token_f1", "chrf")
    assert set(choose(["yes", "no"] * 20) + choose(["x"])) <= set(names())


def test_every_name_of_the_report_is_a_metric() -> None:
    expected = "loss bits_per_byte perplexity exact_match accuracy macro_f1 token_f1 chrf bleu rouge_l"
    assert set(names()) >= set(expected.split())
    for name in names():
        assert get(name).name == name
        assert get(name).title


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no metric `acuracy`; did you mean `accuracy`\?"):
        get("acuracy")
    with pytest.raises(InputError, match="known: accuracy, bits_per_byte"):
        get("zzzzzz")
