"""The calibration's cache: read while the machine is the same, made anew when it is not, when it is damaged, or when asked."""

import dataclasses
from pathlib import Path

import pytest

from tunery import machine
from tunery.plan import calibration
from tunery.plan.rates import Rates

KINDS = ("matrix", "tiles", "thin", "attention", "attention_backward", "moved", "streamed", "dequantised")
RATES = Rates(
    "m",
    {k: {"float32": 1.0, "bfloat16": 2.0} for k in KINDS},
    {"float32": 0.1, "bfloat16": 0.1},
    5,
    {"float32": 1.0, "bfloat16": 1.0},
    True,
    0.3,
)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names that were measured; each measurement differs from the one before."""
    made: list[str] = []

    def measure(name: str) -> Rates:
        made.append(name)
        return dataclasses.replace(RATES, name=name, library_bytes=len(made))

    monkeypatch.setattr(calibration, "_measure", measure)
    monkeypatch.setattr(calibration, "cache_folder", lambda: tmp_path)
    return made


def test_a_second_call_reads_what_the_first_measured(measured: list[str]) -> None:
    first = calibration.rates()
    assert calibration.rates() == first
    assert first.allocator == 0.3
    assert len(measured) == 1


def test_asking_again_measures_again_and_keeps_that(measured: list[str]) -> None:
    assert [calibration.rates().library_bytes, calibration.rates(again=True).library_bytes, calibration.rates().library_bytes] == [1, 2, 2]


def test_another_processor_is_measured_and_the_first_is_still_known(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calibration.rates()
    with monkeypatch.context() as other:
        other.setattr(machine, "cpu_name", lambda: "another processor")
        assert calibration.rates().name.startswith("another processor")
        other.setattr(machine, "cores", lambda: 99)
        calibration.rates()
    assert calibration.rates().library_bytes == 1
    assert len(measured) == 3


@pytest.mark.parametrize("text", ["", "{", "{}", '{"name": "old", "rate": {}}'])
def test_a_damaged_file_is_made_anew(measured: list[str], tmp_path: Path, text: str) -> None:
    calibration.rates()
    file = next((tmp_path / "calibration").iterdir())
    file.write_text(text, encoding="utf-8")
    assert calibration.rates().library_bytes == 2
    assert calibration.rates().library_bytes == 2


def test_code_that_changed_is_measured_anew(measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A change of any file that a step of the reference training runs through, or that measures, gives other figures."""
    room = Path(calibration.__file__).parents[1]
    other = tmp_path / "tunery"
    for name in calibration.MEASURED:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes((room / name).read_bytes())
    calibration.rates()
    monkeypatch.setattr(calibration, "__file__", str(other / "plan" / "calibration.py"))
    calibration.rates()
    assert len(measured) == 1, "the same code elsewhere is the same"
    for n, name in enumerate(calibration.MEASURED):
        with (other / name).open("a", encoding="utf-8") as file:
            file.write("# changed\n")
        calibration.rates()
        assert len(measured) == n + 2
