"""The scores of RewardBench and RewardBench 2 as tables."""

from collections.abc import Iterator

from pair_pm.benchmark_rows import SECTIONS
from pair_pm.evaluation_report import Estimate, EvaluationReport
from pair_pm.report_document import Notes, Section, Table, count, name_subset


def show_reward_bench_2(report: EvaluationReport, notes: Notes) -> Iterator[Section]:
    """Yield the benchmark's section, none for other data."""
    found = report.reward_bench_2
    if found is None:
        return
    rows = [[name_subset(name), notes.percent(score), count(score.rows)] for name, score in found.subsets.items()]
    rows.append(["score: mean of the six", notes.percent(found.score), count(found.score.rows)])
    parts: list = [Table("Score by subset", ["subset", "score", "rows"], rows, notes.take())]
    if found.ties:
        made_of = {
            "a reference's right answer is above the wrong ones": found.ties.reference_accuracy,
            "all right answers are above all wrong ones": found.ties.tied_accuracy,
            "by more than the right ones lie apart": found.ties.prefers_right,
            "and the reference's by more than that, too": found.ties.prefers_right_in_both,
        }
        shares = [
            [name, notes.percent(Estimate(value, reason="no row to take it from"))] for name, value in made_of.items()
        ]
        parts.append(Table("What the score of Ties is made of", ["rows where", "share"], shares, notes.take()))
    parts.append(
        f"It took {count(found.comparisons)} comparisons in both orders: {count(found.calls)} prompts, "
        f"{count(found.tokens)} tokens."
        + (
            f" {count(found.incomplete)} rows are left out: not all their pairs could be compared."
            if found.incomplete
            else ""
        )
    )
    yield Section("RewardBench 2", parts)


def show_reward_bench(report: EvaluationReport, notes: Notes) -> Iterator[Section]:
    """Yield the benchmark's section, none for other data."""
    found = report.reward_bench
    if found is None:
        return
    rows = [[name, notes.percent(score), count(score.rows), count(len(SECTIONS.get(name, ())))]
            for name, score in found.sections.items()]  # fmt: skip
    rows.append(["score: mean of the sections", notes.percent(found.score), count(found.score.rows), ""])
    parts: list = [Table("Score by section", ["section", "score", "pairs", "subsets in it"], rows, notes.take())]
    if found.other_rows:
        parts.append(
            f"{count(found.other_rows)} pairs are of subsets that the benchmark does not have, and in no section."
        )
    yield Section("RewardBench", parts)
