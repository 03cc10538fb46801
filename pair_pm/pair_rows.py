"""A/B rows into the token rows that axolotl trains on: a data set's `type: pair_pm.pair_rows`.

    datasets:
      - path: ./data/pairs.jsonl
        ds_type: json
        type: pair_pm.pair_rows

The ids come from the encoder that serves, so what is served is what was trained on. Exactly one token of a row bears
loss, the label. Two columns ride along: `prob_a`, its target, and `pair`, a number that both orders of a pair share.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from axolotl.prompt_tokenizers import DatasetWrappingStrategy

from pair_pm.errors import DataError
from pair_pm.preference import digest_pair
from pair_pm.prompt import LABELS, render_prompt, split_prompt
from pair_pm.tokens import PromptEncoder

logger = logging.getLogger("axolotl.pair_pm")

MANY_DROPPED = 0.05


class PairRows(DatasetWrappingStrategy):
    """The strategy by which axolotl turns a data set into token rows.

    Args:
        encoder: Of the tokenizer that is trained with.
        path: The data set's name, for errors.
        sequence_len: Most tokens of a row; a pair of which one order is longer is dropped.
        in_both_orders: Give each row in the order of the file and in the other one.
    """

    def __init__(self, encoder: PromptEncoder, path: str, sequence_len: int, in_both_orders: bool = False):
        self._encoder = encoder
        self._path = path
        self._sequence_len = sequence_len
        self._in_both_orders = in_both_orders

    def wrap_dataset(self, dataset, process_count: int | None = None, keep_in_memory: bool | None = False, **kwargs):
        """Return the token rows of a data set, without the pairs that are too long.

        Raises:
            DataError: a row is not what process_pair_data.py writes, or no row fits.
        """
        rows = dataset.map(
            self.tokenize,
            batched=True,
            num_proc=process_count,
            keep_in_memory=bool(keep_in_memory),
            remove_columns=dataset.column_names,
            desc="Tokenizing pairs",
        )
        return self._drop_long_pairs(rows)

    def _drop_long_pairs(self, rows):
        lengths = np.array([len(ids) for ids in rows.with_format("arrow")["input_ids"]])
        pairs = np.array(rows["pair"]).reshape(-1)
        needed = find_longest_order(lengths, pairs)
        is_long = needed > self._sequence_len
        if is_long.all():
            longest = f", the longest of {lengths.max()} tokens" if len(lengths) else ""
            raise DataError(
                f"{self._path}: none of its {len(rows)} rows fits into sequence_len {self._sequence_len}{longest}; "
                "rows to train on are required; raise sequence_len"
            )
        if share := is_long.mean():
            level = logging.WARNING if share > MANY_DROPPED else logging.INFO
            logger.log(level, describe_dropped(self._path, needed, int(is_long.sum()), self._sequence_len))
        return rows.select(np.flatnonzero(~is_long))

    def tokenize(self, rows: Mapping[str, Sequence]) -> dict[str, list]:
        """Return the token rows of a batch of A/B rows."""
        parsed = self.read(rows)
        prompts, labels, targets = zip(*parsed, strict=True) if parsed else ((), (), ())
        columns: dict[str, list] = {"input_ids": [], "labels": [], "attention_mask": []}
        for ids, position in self._encoder.encode_answered(prompts, labels):
            columns["input_ids"].append(ids)
            columns["labels"].append([-100] * position + [ids[position]] + [-100] * (len(ids) - position - 1))
            columns["attention_mask"].append([1] * len(ids))
        # Lists of one number: axolotl joins the columns of rows that it packs into one.
        columns["prob_a"] = [[prob_a] for prob_a in targets]
        columns["pair"] = [[number_pair(prompt)] for prompt in prompts]
        return columns

    def read(self, rows: Mapping[str, Sequence]) -> list[tuple[str, str, float]]:
        """Return prompt, label and target of a batch of A/B rows, in each order that is asked for."""
        if "messages" not in rows:
            raise DataError(
                f"{self._path}: the columns are {', '.join(rows)}; messages is required, as process_pair_data.py writes"
            )
        probabilities = rows.get("prob_a") or [None] * len(rows["messages"])
        return [
            order
            for messages, prob_a in zip(rows["messages"], probabilities, strict=True)
            for order in self._read_row(messages, prob_a)
        ]

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens the row of each prompt has."""
        return self._encoder.training_lengths(prompts)

    def _read_row(self, messages: object, prob_a: float | None) -> list[tuple[str, str, float]]:
        """Return prompt, label and target of a row, and of its other order where that is asked for."""
        try:
            (question, prompt), (answer, label) = ((message["role"], message["content"]) for message in messages)
            is_answered = (question, answer) == ("user", "assistant") and label in LABELS
        except (TypeError, KeyError, ValueError):
            is_answered = False
        if not is_answered:
            raise DataError(
                f"{self._path}: a row has the messages {str(messages)[:80]}…; a user message with the prompt and an "
                'assistant message "A" or "B" are required'
            )
        prob_a = float(label == "A") if prob_a is None else prob_a
        if not 0 <= prob_a <= 1:
            raise DataError(f"{self._path}: prompt {prompt[:60]!r}…: prob_a is {prob_a}; 0 to 1 is required")
        orders = [(prompt, label, prob_a)]
        if self._in_both_orders:
            context, response_a, response_b = split_prompt(prompt)
            orders.append((render_prompt(context, response_b, response_a), "BA"[LABELS.index(label)], 1 - prob_a))
        return orders


def find_longest_order(lengths: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return for each row how many tokens the longest row of its pair has, which decides whether both are kept."""
    numbers, places = np.unique(pairs, return_inverse=True)
    longest = np.zeros(len(numbers), dtype=lengths.dtype)
    np.maximum.at(longest, places, lengths)
    return longest[places]


def describe_dropped(where: str, needed: np.ndarray, dropped: int, sequence_len: int) -> str:
    """Return how many rows are too long, and what would keep them.

    Args:
        where: Whose rows they are.
        needed: For each row, the dropped ones included, what `find_longest_order` gives.
        dropped: How many of them are dropped.
        sequence_len: What they were to fit into.
    """
    rows = len(needed)
    return (
        f"{where}: {dropped:,} of {rows:,} rows ({dropped / rows:.1%}) are dropped, because they or their "
        f"other order are longer than sequence_len {sequence_len}; a sequence_len of {find_enough(needed)} keeps 95%"
    )


def find_enough(needed: np.ndarray) -> int:
    """Return the sequence_len that keeps 95% of the rows."""
    return int(np.quantile(needed, 1 - MANY_DROPPED, method="higher"))


def number_pair(prompt: str) -> int:
    """Return 63 bits of the pair's identity, which is the same in both orders; the identity itself is no tensor."""
    context, *responses = split_prompt(prompt)
    return int.from_bytes(digest_pair(context, *sorted(responses))[:8], "little") >> 1


def load(tokenizer, cfg, ds_cfg) -> PairRows:
    """Return the strategy; axolotl calls this for each data set of this type."""
    return PairRows(PromptEncoder(tokenizer), ds_cfg["path"], cfg.sequence_len)
