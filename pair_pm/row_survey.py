"""What a split's rows are, in numbers: the token rows that are trained on, and the source rows that they come from."""

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pair_pm.prompt import split_context, split_prompt

_BATCH = 1000


@dataclass
class TokenRows:
    """Numbers of the token rows of a split, one for each row.

    Attributes:
        lengths: Tokens.
        loss_tokens: Tokens that bear loss.
        is_a: The first token that bears loss is the label "A".
        prob_a: The target.
        pairs: The pair's number.
    """

    lengths: np.ndarray
    loss_tokens: np.ndarray
    is_a: np.ndarray
    prob_a: np.ndarray
    pairs: Sequence[int]

    @property
    def soft(self) -> int:
        """How many targets lie strictly between 0 and 1, ties included."""
        return int(((self.prob_a > 0) & (self.prob_a < 1)).sum())

    @property
    def ties(self) -> int:
        """How many targets are 0.5."""
        return int((self.prob_a == 0.5).sum())


@dataclass
class SourceRows:
    """Numbers of the rows that a split is made of, in each order that is asked for.

    Attributes:
        read: How many.
        dropped_lengths: Tokens of each row whose pair is not among the token rows.
        dropped_pairs: The pairs of these rows.
        openings: Digests of what users say first.
    """

    read: int = 0
    dropped_lengths: list[int] = field(default_factory=list)
    dropped_pairs: list[int] = field(default_factory=list)
    openings: set[bytes] = field(default_factory=set)


def survey_token_rows(dataset, label_a: int) -> TokenRows:
    """Return the numbers of token rows.

    Args:
        dataset: As axolotl prepared it.
        label_a: Id of the label "A".
    Raises:
        ConfigError: the rows were not made by this project's strategies.
    """
    from pair_pm.live_numbers import pairs_of

    pairs = pairs_of(dataset)
    parts = [_survey_batch(batch, label_a) for batch in dataset.with_format("arrow").iter(_BATCH)]
    return TokenRows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)), pairs)


def _survey_batch(batch, label_a: int) -> tuple[np.ndarray, ...]:
    """Return lengths, loss tokens, whether the first of them is "A", and targets of an arrow table's rows."""
    lengths, labels = _flatten(batch["labels"])
    rows = np.repeat(np.arange(len(lengths)), lengths)[labels != -100]
    loss_tokens = np.bincount(rows, minlength=len(lengths))
    answers = labels[labels != -100]
    is_a = np.zeros(len(lengths), dtype=bool)
    with_loss, first = np.unique(rows, return_index=True)
    is_a[with_loss] = answers[first] == label_a
    return lengths, loss_tokens, is_a, _flatten(batch["prob_a"])[1]


def _flatten(column) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths of a column's lists, and their items one after the other."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(column).to_numpy()
    return lengths, pc.list_flatten(column).to_numpy()


def survey_source_rows(cfg, key: str, tokenizer, kept: Sequence[int]) -> SourceRows:
    """Return the numbers of the rows that a split was made of, whether it was made now or before.

    Args:
        cfg: A config that axolotl validated.
        key: "datasets" or "test_datasets".
        tokenizer: What is trained with.
        kept: Numbers of the pairs that are among the token rows.
    """
    from axolotl.utils.data.shared import datasets_with_name_generator
    from datasets.utils import tqdm

    found, kept = SourceRows(), frozenset(kept)
    for stanza in datasets_with_name_generator(cfg[key]):
        strategy = importlib.import_module(stanza["type"]).load(tokenizer, cfg, stanza)
        rows = _load_source(cfg, key, stanza)
        with tqdm(total=len(rows), desc="Counting source rows", unit=" rows") as progress:
            for batch in rows.iter(_BATCH):
                prompts = [prompt for prompt, _, _ in strategy.read(batch)]
                _count(found, prompts, strategy, kept)
                progress.update(len(batch["messages"]))
    return found


def _count(found: SourceRows, prompts: Sequence[str], strategy, kept: frozenset[int]) -> None:
    from pair_pm.pair_rows import number_pair

    found.read += len(prompts)
    dropped = [(prompt, pair) for prompt in prompts if (pair := number_pair(prompt)) not in kept]
    found.dropped_lengths += strategy.count_tokens([prompt for prompt, _ in dropped])
    found.dropped_pairs += [pair for _, pair in dropped]
    # Hashed as the split of process_pair_data.py hashes them: by the first user message without its edges.
    messages = (split_context(split_prompt(prompt)[0]) for prompt in prompts)
    openings = (next((turn["content"] for turn in turns if turn["role"] == "user"), "") for turns in messages)
    found.openings |= {hashlib.blake2b(opening.strip().encode(), digest_size=8).digest() for opening in openings}


def _load_source(cfg, key: str, stanza):
    """Return the rows of a data set as axolotl loads them: its split, and its share of the shards."""
    from axolotl.utils.data.shared import load_dataset_with_config
    from datasets import DatasetDict

    rows = load_dataset_with_config(stanza, cfg.hf_use_auth_token)
    if isinstance(rows, DatasetDict):
        rows = rows[stanza.split if stanza.split in rows else {"datasets": "train", "test_datasets": "test"}[key]]
    if stanza.shards:
        rows = rows.shuffle(seed=cfg.seed).shard(num_shards=stanza.shards, index=stanza.get("shards_idx", 0))
    return rows


def find_needed_lengths(rows: TokenRows, source: SourceRows) -> np.ndarray:
    """Return for each row, the dropped ones included, the tokens of the longest order of its pair."""
    from pair_pm.pair_rows import find_longest_order

    return find_longest_order(
        np.array([*rows.lengths, *source.dropped_lengths]), np.array([*rows.pairs, *source.dropped_pairs])
    )
