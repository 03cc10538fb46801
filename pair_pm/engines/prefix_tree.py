"""Prompts packed into one sequence, with each prefix that they share in it once.

In the order of their tokens, each prompt shares its longest prefix with the one before it, so that packing only what
each adds to its predecessor is the prefix tree. Both orders of a pair share the conversation; in a ranking all
comparisons share it, and those with one response in slot A share that as well.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pair_pm.tokens import common_length

# A shorter prefix costs more to look up in every layer than to compute again.
_LEAST_SHARED = 4


@dataclass(frozen=True)
class Branch:
    """What one prompt adds to those before it.

    Attributes:
        start: Where its own tokens start in the packed sequence.
        stop: Where they end; the prompt's last token is the one before.
        depth: How many of its tokens stand elsewhere.
        path: Where these stand: ranges (start, stop) of the packed sequence, in the order of the prompt.
    """

    start: int
    stop: int
    depth: int
    path: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PrefixTree:
    """Prompts, packed.

    Attributes:
        tokens: The packed sequence.
        positions: Of each token in its prompt.
        branches: One for each prompt.
    """

    tokens: list[int]
    positions: list[int]
    branches: list[Branch]


def plant_tree(prompts: Sequence[Sequence[int]]) -> PrefixTree:
    """Return the tree of prompts that differ from each other and stand in the order of their tokens."""
    tree = PrefixTree([], [], [])
    before: Sequence[int] = ()
    whole: tuple[tuple[int, int], ...] = ()  # where all of the prompt before stands
    for prompt in prompts:
        depth = _shared_length(before, prompt)
        path = _cut_path(whole, depth)
        start = len(tree.tokens)
        tree.tokens.extend(prompt[depth:])
        tree.positions.extend(range(depth, len(prompt)))
        tree.branches.append(Branch(start, len(tree.tokens), depth, path))
        before, whole = prompt, (*path, (start, len(tree.tokens)))
    return tree


def split_by_tokens(prompts: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[Sequence[int]]]:
    """Yield runs of prompts whose trees hold at most so many tokens; a longer prompt makes a run of its own.

    Args:
        prompts: As `plant_tree` takes them.
        max_tokens: Of a tree.
    """
    run: list[Sequence[int]] = []
    tokens = 0
    for prompt in prompts:
        added = len(prompt) - _shared_length(run[-1] if run else (), prompt)
        if run and tokens + added > max_tokens:
            yield run
            run, tokens, added = [], 0, len(prompt)
        run.append(prompt)
        tokens += added
    if run:
        yield run


def count_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens the tree of prompts holds, taken as `plant_tree` takes them."""
    return sum(
        len(prompt) - _shared_length(before, prompt) for before, prompt in zip([(), *prompts], prompts, strict=False)
    )


def _shared_length(before: Sequence[int], prompt: Sequence[int]) -> int:
    shared = common_length(before, prompt)
    return shared if shared >= _LEAST_SHARED else 0


def _cut_path(path: Sequence[tuple[int, int]], length: int) -> tuple[tuple[int, int], ...]:
    """Return the first `length` tokens of a path."""
    kept = []
    for start, stop in path:
        if length <= 0:
            break
        kept.append((start, min(stop, start + length)))
        length -= stop - start
    return tuple(kept)
