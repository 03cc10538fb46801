"""One chunk of preference rows into A/B rows: the work that may run in several processes."""

import json
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

from pair_pm.decontamination import join_prompt, open_index
from pair_pm.preference import PreferencePair, RenderedPair, RowProblem, check_margin, is_held_out, render_pair
from pair_pm.preference_formats import parse_row
from pair_pm.preference_source import RowChunk
from pair_pm.prompt import render_prompt

_TO_JSON = json.JSONEncoder(ensure_ascii=False).encode
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ConversionOptions:
    """How rows become A/B rows; the same options and rows give the same bytes anywhere.

    Attributes:
        seed: Of the position draw and the evaluation split.
        ties: What becomes of rows labelled as ties: "drop" them, "keep" them with a target probability of 0.5, or keep
            them with the "votes" that they carry, 0.5 without.
        both_orders: Write each pair twice, in both orders, side by side.
        eval_fraction: Share of first user messages, 0 to 1, that is held out.
        min_margin: Least difference of the two scores in `margin_columns`.
        tokenizer: Name or folder of the tokenizer that `max_length` counts with.
        max_length: Most tokens that a whole training sequence may have.
        decontaminate_against: Names of evaluation data whose rows are not to be trained on; for the record.
        keep_rows: Keep each row as it came beside its pair, so that a later rejection can show it.
    """

    seed: int = 42
    ties: str = "drop"
    both_orders: bool = False
    eval_fraction: float = 0.0
    min_margin: float | None = None
    margin_columns: tuple[str, str] = ("chosen_score", "rejected_score")
    tokenizer: str | None = None
    max_length: int | None = None
    decontaminate_against: tuple[str, ...] = ()
    keep_rows: bool = False


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was dropped, where it stood and why."""

    number: int
    source: str
    problem: RowProblem
    row: object


@dataclass(frozen=True, slots=True)
class ConvertedPair:
    """A row that became a pair; `lines` is its A/B row as JSON text, or its two rows in both orders.

    Attributes:
        chars, tokens: Length of the prompt and, where a tokenizer counts, of the whole training sequence.
    """

    number: int
    source: str
    id: str
    subset: str
    lines: bytes
    chars: int
    tokens: int
    label: str
    prob_a: float
    digest: bytes
    verdict: int
    is_neutralised: bool
    is_held_out: bool
    row: object = None


@dataclass
class ConvertedChunk:
    """What one chunk gave, in input order."""

    rows: int = 0
    pairs: list[ConvertedPair] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Candidate:
    number: int
    source: str
    row: dict
    pair: PreferencePair
    orders: tuple[RenderedPair, ...]
    prompts: list[str]


def convert_chunk(
    chunk: RowChunk, format: str, default_source: str, options: ConversionOptions, evaluation_index: Path | None = None
) -> ConvertedChunk:
    """Return the A/B rows of a chunk, and why the other rows have none.

    Args:
        evaluation_index: Of the rows that are not to be trained on, where pair_pm.decontamination wrote it.
    """
    converted = ConvertedChunk(rows=len(chunk))
    candidates = []
    for number, row, problem in chunk.decode():
        source = default_source
        try:
            if problem:
                raise problem
            source = _read_source(row) or default_source
            candidates.append(_render_row(number, source, row, format, options))
        except RowProblem as found:
            converted.bad.append(BadRow(number, source, found, row))
    if evaluation_index is not None:
        candidates = _drop_contaminated(candidates, evaluation_index, converted)
    for candidate, tokens in zip(candidates, _count_tokens(candidates, options), strict=True):
        if options.max_length is not None and tokens > options.max_length:
            problem = RowProblem("too_long", f"{tokens} tokens with the label, over {options.max_length}")
            converted.bad.append(BadRow(candidate.number, candidate.source, problem, candidate.row))
        else:
            converted.pairs.append(_to_converted_pair(candidate, tokens, options))
    converted.bad.sort(key=lambda bad: bad.number)
    return converted


def _read_source(row: object) -> str | None:
    """Return the source that a row states, if it can name counts: a string that can be printed."""
    source = row.get("source") if isinstance(row, dict) else None
    # JSON can hold half a surrogate pair, which no file and no terminal takes.
    return source if isinstance(source, str) and not _SURROGATE.search(source) else None


def _render_row(number: int, source: str, row: object, format: str, options: ConversionOptions) -> _Candidate:
    pair = parse_row(row, format)
    if pair.is_tie and options.ties == "drop":
        raise RowProblem("tie", "the row is labelled a tie")
    if pair.is_tie and options.ties == "keep":
        pair = replace(pair, prob_chosen=0.5)
    if options.min_margin is not None:
        check_margin(row, options.margin_columns, options.min_margin)
    drawn = render_pair(pair, options.seed)
    orders = (drawn, drawn.swapped()) if options.both_orders else (drawn,)
    prompts = [render_prompt(order.context, order.response_a, order.response_b) for order in orders]
    return _Candidate(number, source, row, pair, orders, prompts)


def _drop_contaminated(candidates: list[_Candidate], index: Path, converted: ConvertedChunk) -> list[_Candidate]:
    pairs = [candidate.pair for candidate in candidates]
    texts = [(join_prompt(pair.messages), (pair.chosen, pair.rejected)) for pair in pairs]
    kept = []
    for candidate, problem in zip(candidates, open_index(index).find_problems(texts), strict=True):
        if problem:
            converted.bad.append(BadRow(candidate.number, candidate.source, problem, candidate.row))
        else:
            kept.append(candidate)
    return kept


def _count_tokens(candidates: list[_Candidate], options: ConversionOptions) -> list[int]:
    """Return the length of each pair's longest training sequence, 0 where no tokenizer was named."""
    if options.tokenizer is None:
        return [0] * len(candidates)
    lengths = iter(_load_encoder(options.tokenizer).training_lengths([p for c in candidates for p in c.prompts]))
    return [max(islice(lengths, len(candidate.prompts))) for candidate in candidates]


@lru_cache(maxsize=1)
def _load_encoder(tokenizer: str):
    from pair_pm.checkpoint import load_tokenizer
    from pair_pm.tokens import PromptEncoder

    return PromptEncoder(load_tokenizer(tokenizer))


def _to_converted_pair(candidate: _Candidate, tokens: int, options: ConversionOptions) -> ConvertedPair:
    drawn, pair = candidate.orders[0], candidate.pair
    lines = [
        _to_json(candidate, order, prompt) for order, prompt in zip(candidate.orders, candidate.prompts, strict=True)
    ]
    return ConvertedPair(
        number=candidate.number,
        source=candidate.source,
        id=pair.id,
        subset=pair.subset,
        lines="".join(lines).encode(),
        chars=len(candidate.prompts[0]),
        tokens=tokens,
        label=drawn.label,
        prob_a=drawn.prob_a,
        digest=drawn.digest,
        verdict=drawn.verdict,
        is_neutralised=drawn.is_neutralised,
        is_held_out=options.eval_fraction > 0 and is_held_out(pair, options.eval_fraction, options.seed),
        row=candidate.row if options.keep_rows else None,
    )


def _to_json(candidate: _Candidate, order: RenderedPair, prompt: str) -> str:
    # Every row has every column, empty where nothing is known: the `datasets` reader gives up a whole file in which
    # a column turns up late.
    row = {
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": order.label}],
        "prob_a": order.prob_a,
        "pair_id": order.digest.hex(),
        "id": candidate.pair.id,
        "source": candidate.source,
        "subset": candidate.pair.subset,
    }
    return _TO_JSON(row) + "\n"
