from __future__ import annotations

import pytest

from tunery import export
from tunery.errors import InputError


def test_every_exporter_is_found_by_name_and_nothing_else_is_one() -> None:
    assert export.names() == ["adapter", "gguf", "merged", "onnx"]
    for name in export.names():
        assert export.get(name).SUMMARY
        export.get(name).Options()


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean `merged`"):
        export.get("merge")
    with pytest.raises(InputError, match="known: adapter, gguf, merged, onnx"):
        export.get("proof")
