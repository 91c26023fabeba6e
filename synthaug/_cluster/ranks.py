"""One process among several that somebody else started, none of which talks to another."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """This process's part of a job."""

    index: int
    """From 0."""
    count: int
    """Number of processes."""

    @classmethod
    def parse(cls, text: str) -> "Share":
        """From "1/3", "2/3" or "3/3": counted from 1, as test runners do and job arrays may.
        Anything else is a ValueError."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        index, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= index <= count:
            raise ValueError(
                f"`shard` is {text!r}; write i/n, with i from 1 to n: 1/3, 2/3 and 3/3."
            )
        return cls(index - 1, count)

    @classmethod
    def of_this_rank(cls) -> "Share":
        """From RANK and WORLD_SIZE, which torchrun and `accelerate launch` set; a ValueError if
        they are not set, or contradict each other."""
        rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            raise ValueError(
                f"`engine='torchrun'` needs RANK and WORLD_SIZE in the environment, found RANK "
                f"{rank!r} and WORLD_SIZE {size!r}. Start with `torchrun --nproc-per-node 2 "
                "--no-python synthaug ...`, or say which part to draw with `shard`."
            )
        return cls(int(rank), int(size))

    def of(self, blocks: Sequence[T]) -> list[T]:
        """Every `count`-th block: equal shares, which together are all blocks."""
        return list(blocks[self.index :: self.count])
