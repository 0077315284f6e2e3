"""How the next token is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from tunery.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy: always the likeliest token, and the other settings of chance mean nothing.

    `top_p`: draw from the fewest likeliest tokens that hold this share (1: all; Holtzman et al. 2019, "The Curious Case of Neural
    Text Degeneration"); `top_k`: from this many likeliest (0: all); `seed`: the same draws for the same engine and prompts, while
    two engines draw differently from one seed. Raises InputError for a value out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise InputError(
                f"temperature {self.temperature} is out of range; choose 0 (always the likeliest token) or a little more, such as 0.7"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p} is out of range; choose a share above 0 and up to 1")
        if self.top_k < 0:
            raise InputError(f"top_k {self.top_k} is out of range; choose a number of tokens, or 0 for all")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed {self.seed} is out of range; choose a whole number from 0 to 2147483647")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens {self.max_new_tokens} is out of range; choose 1 or more")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0
