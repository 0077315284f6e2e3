"""The ZeRO paper's formula, sums of rates, and the choice."""

import dataclasses
from collections import Counter

import pytest

from tunery.errors import InputError
from tunery.plan.choice import Candidate, recommend
from tunery.plan.fit import _settings, size
from tunery.plan.hardware import HARDWARE, hardware
from tunery.plan.memory import Memory, memory
from tunery.plan.rates import Rates
from tunery.plan.time import GENERATED_TOGETHER, evaluate_seconds, train_seconds
from tunery.plan.workload import Count, Height, Workload

PSI = 7_500_000_000
"""The model of the paper's figure 1."""
RATES = Rates(
    "made up",
    {
        kind: {"float32": 100.0, "bfloat16": 200.0}
        for kind in ("matrix", "tiles", "thin", "attention", "attention_backward", "moved", "streamed", "dequantised")
    },
    operation_seconds={"float32": 0.5, "bfloat16": 1.0},
    library_bytes=7,
    whole={"float32": 1.0, "bfloat16": 2.0},
    measured=False,
)


def work(**changes: object) -> Workload:
    small = Count(Counter({("matrix", "float32", 1000, 40): 2}), Counter({("matrix", "float32", 1000, 40): 1}), 100, 10)
    large = Count(Counter({("matrix", "float32", 3000, 40): 2}), Counter({("matrix", "float32", 1000, 40): 2}), 300, 30)
    plain = Workload(
        base_parameters=PSI,
        learned_parameters=PSI,
        base_bytes=4 * PSI,
        mapped_bytes=0,
        copied_bytes=0,
        largest_layer_bytes=0,
        counted=((10, small), (30, large)),
        height=Height(300, 5),
        several=True,
        batches=((10, 4.0), (20, 2.0)),
        steps=3,
        tokens=80,
        recast_bytes=0,
        test_rows=0,
        test_tokens=0,
        new_tokens=0,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def test_states_are_divided_as_the_paper_says() -> None:
    """Its table 1 with float32 throughout: 4 Ψ weights, 4 Ψ gradients, K = 8; stage 1, 2 and 3 over 64 processes."""
    psi, n = PSI, 64
    by_hand = {
        "none": 16 * psi,
        "ddp": 16 * psi,
        "zero1": 8 * psi + 8 * psi / n,
        "zero2": 4 * psi + 12 * psi / n,
        "zero3": 16 * psi / n,
        "fsdp": 16 * psi / n,
    }
    for stage, expected in by_hand.items():
        parts = memory(work(), stage, n, RATES).parts
        states = sum(parts[name] for name in ("weights", "adapter", "gradients", "optimiser"))
        assert states == pytest.approx(expected, rel=1e-9), stage
        assert (parts["activations"], parts["logits"], parts["libraries"]) == (300, 5, 7)


def test_an_adapter_has_the_only_gradients() -> None:
    found = memory(work(learned_parameters=1000, base_bytes=2 * PSI), "none", 1, RATES).parts
    assert (found["weights"], found["adapter"], found["gradients"], found["optimiser"]) == (2 * PSI, 4000, 4000, 8000)


def test_gradients_of_a_single_batch_come_while_activations_go() -> None:
    """The height has them in it, so only what is beyond them is added; and never less than all of them, which the optimiser sees."""
    one = {"several": False, "base_bytes": 0, "learned_parameters": 50}
    parts = memory(work(**one), "none", 1, RATES).parts
    assert parts["gradients"] + parts["activations"] + parts["logits"] == 305
    parts = memory(work(**{**one, "learned_parameters": 100}), "none", 1, RATES).parts
    assert (parts["gradients"], parts["activations"], parts["logits"]) == (400, 0, 0)


def test_what_the_allocator_keeps_and_what_is_mapped_from_the_file() -> None:
    loose = dataclasses.replace(RATES, allocator=0.5)
    quantised = work(learned_parameters=1, base_bytes=1000, mapped_bytes=4000)
    assert memory(quantised, "none", 1, loose).parts["allocator"] == 152
    assert memory(quantised, "none", 1, loose).parts["weights"] == 5000
    assert memory(quantised, "none", 1, loose, mapped=False).parts["weights"] == 1000


def test_seconds_are_operations_over_rates_and_a_line_between_lengths() -> None:
    small, large = 2 * (0.5 + 10), 2 * (0.5 + 30)
    step = PSI * 40 / 100
    expected = 4 * small + 2 * (small + large) / 2 + 3 * step
    assert train_seconds(work(), RATES, "float32") == pytest.approx(expected)
    assert train_seconds(work(), RATES, "bfloat16") == pytest.approx(2 * (expected - 3 * step) + 3 * step)


def test_processes_with_devices_share_the_batches_and_pay_for_the_link() -> None:
    alone, many = train_seconds(work(), RATES, "float32"), train_seconds(work(), RATES, "float32", "ddp", 4, link=1e30)
    step = 3 * PSI * 40 / 100
    assert many - step == pytest.approx((alone - step) / 4)
    slow = train_seconds(work(), RATES, "float32", "ddp", 4, link=1e9)
    assert slow - many == pytest.approx(3 * 2 * 4 * PSI * 3 / 4 / 1e9)


def test_answers_are_generated_together_as_planned() -> None:
    from tunery.infer._reading import ROWS

    assert GENERATED_TOGETHER == ROWS


def test_evaluation_is_forward_before_and_after() -> None:
    one = RATES.seconds(work().counted[-1][1].forward, "float32") / 30
    assert evaluate_seconds(work(test_rows=2, test_tokens=60), RATES, "float32") == pytest.approx(2 * 60 * one)


def candidate(method: str, gb: float, seconds: float = 1.0, sharding: str = "none", processes: int = 1) -> Candidate:
    return Candidate(method, sharding, processes, Memory({"weights": int(gb * 1e9)}, processes), seconds, 0.0, 1)


def test_lora_is_chosen_where_it_fits_and_qlora_where_it_does_not() -> None:
    every = [candidate("full", 16), candidate("lora", 5), candidate("qlora", 2), candidate("ia3", 4)]
    roomy = recommend(every, 20 * 10**9, shared=True)
    assert roomy.candidate is every[1]
    assert roomy.lines == ("method: lora", "sharding: none")
    tight = recommend(every, 3 * 10**9, shared=True)
    assert tight.candidate is every[2]
    assert "`lora` would need 5.00 GB of 3.00 GB" in tight.reasons
    none = recommend(every, 10**9, shared=True)
    assert none.candidate is None
    assert none.lines == ()
    assert "`qlora`" in none.reasons[0]


def test_devices_of_their_own_are_counted_one_by_one() -> None:
    every = [candidate("lora", 5, 8.0), candidate("lora", 4, 1.0, "zero3", 8)]
    assert recommend(every, 4 * 10**9, shared=False).lines == ("method: lora", "sharding: {stage: zero3, processes: 8}")
    assert recommend(every, 6 * 10**9, shared=True).candidate is every[0]


def test_hardware_is_found_by_name_and_the_nearest_is_named() -> None:
    assert hardware("A100-80GB") is HARDWARE["a100-80gb"]
    assert hardware("t4").dtype() == "float32"
    with pytest.raises(InputError, match="did you mean `a100-80gb`"):
        hardware("a100-80g")


@pytest.mark.parametrize(("text", "expected"), [("2GB", 2 * 10**9), ("1.5 GiB", 3 << 29), ("800m", 8 * 10**8), ("64", 64)])
def test_sizes_are_read(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "much", "2XB", "-1GB", "0GB", "GB", "I", "2IB"])
def test_nonsense_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="write it as 2GB"):
        size(text)


def test_settings_are_tried_from_the_fewest_changes_on() -> None:
    assert _settings(256) == [(False, 256), (True, 256), (True, 128), (True, 64)]
