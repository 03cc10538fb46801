"""Labelled pairs through a model into the table of predictions, resumed where a run was interrupted.

The results go into a journal as those of `score` do, in blocks that end at the same pairs in every run. The table is
made from pairs and results at the end: where the pairs come from, a hub name or rows of several completions, does not
matter to the journal, so it is used here without the file-to-file run that `score` builds on it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pair_pm.distraction import EDITS
from pair_pm.errors import DataError, OutputExistsError
from pair_pm.labelled_pairs import FIRST, LabelledPair, LabelledPairs
from pair_pm.predictions import COLUMNS, Origin, Predictions
from pair_pm.result_journal import ResultJournal
from pair_pm.resumable_output import work_ahead
from pair_pm.row_task import to_error
from pair_pm.run_identity import describe_answers, refuse_other_run
from pair_pm.score_file import ROWS_A_BLOCK
from pair_pm.scoring import Comparison, PairScorer


@dataclass(frozen=True)
class Comparand:
    """A pair to be compared, with its second response as it came or edited."""

    pair: LabelledPair
    edit: str = ""

    @property
    def second(self) -> str:
        """The second response as the model gets it."""
        return EDITS[self.edit].apply(self.pair.second) if self.edit else self.pair.second


def predict(
    scorer: PairScorer,
    labelled: LabelledPairs,
    origin: Origin,
    *,
    perturb: bool = False,
    journal: Path | None = None,
    resume: bool = False,
) -> Predictions:
    """Return what a model says of labelled pairs, with a progress bar on stderr.

    A pair that the model cannot compare, as it is too long, is left out and counted among the origin's `skipped`.

    Args:
        scorer: The model.
        labelled: The pairs.
        origin: What is known of model and data set beyond them.
        perturb: Compare the decided pairs with each edit of the second response too.
        journal: Where results are kept until the caller has written the table; None to keep them in memory.
        resume: Go on with a journal that is there.
    Raises:
        DataError: no pair can be compared.
        OutputExistsError: there is a journal and `resume` was not asked for, or it is of another run.
        CheckpointError: the model gives no finite number.
        UnwritableError: the disk is full; what was done is kept.
    """
    recipe = scorer.recipe
    # The table holds log-odds before temperature, so that it can be read with any.
    plain = PairScorer(scorer.engine, scorer.encoder, replace(recipe, temperature=1.0, order_offset=0.0))
    comparands = list(_list_comparands(labelled, perturb=perturb))
    if journal is None:
        results = [result for block in _compare(plain, comparands) for result in block]
    else:
        identity = {"model": dict(origin.options), "pairs": labelled.digest(), "perturb": perturb}
        results = _compare_into(journal, identity, plain, comparands, resume=resume)
    skipped = Counter(labelled.skipped)
    skipped.update(r["reason"] for c, r in zip(comparands, results, strict=True) if "error" in r and not c.edit)
    done = [(c, result) for c, result in zip(comparands, results, strict=True) if "error" not in result]
    if not any(not comparand.edit for comparand, _ in done):
        first = next(result["error"] for result in results if "error" in result)
        raise DataError(
            f"{labelled.name}: none of its {len(labelled.pairs)} pairs can be compared; one that can is required; the "
            f"first: {first}"
        )
    origin = replace(
        origin,
        temperature=recipe.temperature,
        order_offset=recipe.order_offset,
        dataset=labelled.name,
        dataset_format=labelled.format,
        dataset_digest=labelled.digest(),
        skipped=dict(skipped),
    )
    return Predictions(_make_columns(done), origin)


def _list_comparands(labelled: LabelledPairs, *, perturb: bool) -> Iterator[Comparand]:
    for edit in ("", *EDITS) if perturb else ("",):
        yield from (Comparand(pair, edit) for pair in labelled.pairs if not edit or pair.label == FIRST)


def _compare(scorer: PairScorer, comparands: Sequence[Comparand], done: int = 0) -> Iterator[list[dict]]:
    """Yield the results of blocks of comparands, from the one with index `done` on."""
    from tqdm import tqdm

    def work(block: Sequence[Comparand]) -> list[dict]:
        items = [(comparand.pair.messages, comparand.pair.first, comparand.second) for comparand in block]
        return [_to_result(verdict) for verdict in scorer.compare_each(items)]

    blocks = (comparands[start : start + ROWS_A_BLOCK] for start in range(done, len(comparands), ROWS_A_BLOCK))
    with tqdm(total=len(comparands), initial=done, unit=" pairs", disable=None) as progress:
        for block, results in work_ahead(work, scorer, blocks):
            yield results
            progress.update(len(block))


def _compare_into(
    path: Path, identity: Mapping, scorer: PairScorer, comparands: Sequence[Comparand], *, resume: bool
) -> list[dict]:
    if not resume and path.exists() and path.stat().st_size:
        raise OutputExistsError(
            f"{path}: left by an interrupted run; --resume is required to go on, --overwrite to start anew"
        )
    with ResultJournal(path) as journal:
        header = {**identity, **describe_answers(scorer)}
        if journal.header is None:
            journal.start(header)
        else:
            refuse_other_run(path, journal.header, header)
        for results in _compare(scorer, comparands, journal.rows):
            journal.append(results)
        return list(journal.results())


def _to_result(verdict) -> dict:
    if not isinstance(verdict, Comparison):
        return to_error(verdict)
    in_a, in_b = verdict.log_odds_of_a
    tokens_in_a, tokens_in_b = verdict.prompt_tokens
    return {
        "log_odds_first_in_a": in_a,
        "log_odds_first_in_b": in_b,
        "label_mass": verdict.label_mass,
        "prompt_tokens_first_in_a": tokens_in_a,
        "prompt_tokens_first_in_b": tokens_in_b,
    }


def _make_columns(done: Sequence[tuple[Comparand, Mapping]]) -> dict[str, np.ndarray]:
    of_pair = {
        "prob_chosen": lambda pair: pair.prob_first,
        "prompt": lambda pair: pair.messages[-1]["content"],
    }
    kinds = {"double": float, "int32": np.int32, "string": object}
    columns = {}
    for name, kind in COLUMNS.items():
        if name in done[0][1]:
            values = [result[name] for _, result in done]
        elif name in ("edit", "second"):
            values = [getattr(comparand, name) for comparand, _ in done]
        else:
            read = of_pair.get(name, lambda pair, name=name: getattr(pair, name))
            values = [read(comparand.pair) for comparand, _ in done]
        columns[name] = np.array(values, dtype=kinds[kind])
    return columns
