"""The report of an evaluation as sentences and tables, with the places of its plots."""

from collections.abc import Iterator
from pathlib import PurePath

from pair_pm.benchmark_tables import show_reward_bench, show_reward_bench_2
from pair_pm.calibration_tables import show_calibration, show_temperature
from pair_pm.evaluation_report import Estimate, EvaluationReport, GroupReport, RowNote
from pair_pm.report_document import Document, Figure, Notes, Section, Table, clean, count, name_subset

ALL_PAIRS = "all pairs"
_LISTED = 10


def make_document(report: EvaluationReport) -> Document:
    """Return what there is to say; parts that were not asked for, or have no rows, are left out with a sentence."""
    origin, overall, notes = report.origin, report.overall, Notes()
    lead = [f"Model {clean(origin.model)} on {clean(origin.dataset)}: {_describe_rows(report)}"]
    if overall.accuracy.value is not None:
        lead.append(_hold_against_baselines(overall))
    lead.append(
        "Brackets hold 95% intervals, by a bootstrap that draws prompts. Every pair is compared in both orders, and "
        "the two probabilities are averaged."
    )
    makers = (
        *(show_reward_bench_2, show_reward_bench, _show_glance, _show_accuracy, _show_position, show_calibration),
        *(show_temperature, _show_length, _show_ties, _show_distraction, _show_off_format, _show_difference),
        _show_origin,
    )
    sections = [section for make in makers for section in make(report, notes)]
    return Document(f"Preference model report: {_shorten(origin.model)} on {_shorten(origin.dataset)}", lead, sections)


def _shorten(name: str) -> str:
    return clean(PurePath(name).name, 60) or "?"


def _describe_rows(report: EvaluationReport) -> str:
    overall = report.overall
    parts = [f"{count(overall.rows)} pairs of {count(overall.prompts)} prompts whose label names a winner"]
    if report.ties:
        parts.append(f"{count(report.ties.rows)} labelled ties, which are in no accuracy")
    skipped = sum(report.origin.skipped.values())
    if skipped:
        reasons = ", ".join(f"{clean(name)} {count(rows)}" for name, rows in sorted(report.origin.skipped.items()))
        parts.append(f"{count(skipped)} rows that were not compared ({reasons})")
    return "; ".join(parts) + "."


def _hold_against_baselines(overall: GroupReport) -> str:
    baselines = {"preferring the longer response": overall.longer_wins, "a bag of words": overall.bag_of_words}
    known = {name: estimate.value for name, estimate in baselines.items() if estimate.value is not None}
    found = f"It is right in {_plain(overall.accuracy)} of them"
    if not known:
        return found + "."
    name, best = max(known.items(), key=lambda item: item[1])
    apart = 100 * (overall.accuracy.value - best)
    if abs(apart) < 0.05:
        return f"{found}, just as {name} is: nothing here shows that it reads more than the surface."
    where = "more" if apart > 0 else "less"
    if apart < 0:
        doubt = ": nothing here shows that it reads more than the surface"
    else:
        is_sure = overall.accuracy.low is not None and overall.accuracy.low > best
        doubt = "" if is_sure else ", which is no more than chance may give"
    return f"{found}, {abs(apart):.1f} points {where} than {name} ({100 * best:.1f}%){doubt}."


def _plain(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}%"


def _show_glance(report: EvaluationReport, notes: Notes) -> Iterator[Section]:
    overall, fit, ways = report.overall, report.calibration, report.overall.position
    rows = [
        ["accuracy", notes.percent(overall.accuracy), "chance is 50%"],
        ["… of preferring the longer response", notes.percent(overall.longer_wins), "what length alone reaches"],
        ["… of a bag of words", notes.percent(overall.bag_of_words), "what words without the prompt reach"],
        ["verdicts that survive the swap", notes.percent(ways.consistency), "100% where the order does not matter"],
        ["preference for slot A", notes.signed(ways.order_bias), "log-odds; 0 is best"],
        ["verdicts for the longer response", notes.percent(report.length.prefers_longer),
         f"the labels' are {notes.percent(report.length.longer_is_better)}"],
        ["negative log-likelihood", notes.number(fit.nll), "nats; always saying 50% gives 0.693"],
        ["expected calibration error", notes.percent(fit.ece), "gap of confidence and accuracy; 0 is best"],
        ["probability of A and B together", notes.percent(report.off_format.label_mass), "the rest: other answers"],
    ]  # fmt: skip
    notes.take()  # they stand below the tables that follow
    yield Section("At a glance", [Table("The main numbers", ["", "value", "read it as"], rows)])


def _groups(report: EvaluationReport) -> list[tuple[str, GroupReport]]:
    subsets = [] if list(report.subsets) == [""] else [(name_subset(s), group) for s, group in report.subsets.items()]
    return [(ALL_PAIRS, report.overall), *subsets]


def _show_accuracy(report: EvaluationReport, notes: Notes) -> Iterator[Section]:
    rows = [
        [name, count(group.rows), count(group.prompts), notes.percent(group.accuracy), notes.percent(group.longer_wins),
         notes.percent(group.bag_of_words), count(group.predicted_ties), notes.percent(group.close_calls)]
        for name, group in _groups(report)
    ]  # fmt: skip
    header = ["subset", "pairs", "prompts", "accuracy", "longer wins", "bag of words", "predicted ties", "close calls"]
    yield Section(
        "Accuracy",
        [
            Figure("accuracy", "Accuracy by subset", "Bars are 95% intervals; the dotted line is chance. A model that "
                   "only sees length, or only words, would stand where the triangles and squares are."),
            Table("Accuracy by subset, beside what the surface alone reaches", header, rows, notes.take()),
            "A predicted tie counts half. Longer wins: always the longer response. Bag of words: a logistic regression "
            "on the words of the two responses, cross-fitted by prompt. Close calls: pairs with a probability within "
            "0.05 of one half.",
        ],
    )  # fmt: skip


def _show_position(report: EvaluationReport, notes: Notes) -> Iterator[Section]:
    rows = []
    for name, group in _groups(report):
        ways = group.position
        shares = [notes.percent(e) for e in (ways.consistency, ways.accuracy_first_in_a, ways.accuracy_first_in_b)]
        rows.append(
            [name, *shares, notes.points(ways.swap_gain), notes.signed(ways.order_bias), notes.percent(ways.prob_a)]
        )
    header = ["subset", "survives the swap", "accuracy, better one in A", "accuracy, better one in B",
              "gained by the swap, points", "bias for A, log-odds", "answers A"]  # fmt: skip
    yield Section(
        "Position",
        [
            Figure("orders", "The two orders of each pair", "One mark a pair. Crosses, in the hatched quadrants, are "
                   "verdicts that change when the two responses are swapped: to the lower right A wins in either "
                   "order, to the upper left B does."),
            Table("What the order of the two responses does", header, rows, notes.take()),
            "Gained by the swap: accuracy of both orders averaged, less the mean accuracy of a single one. Bias: mean "
            "log-odds of A against B; 0, and half of the answers A, where no slot is preferred.",
        ],
    )  # fmt: skip


def _show_length(report: EvaluationReport, notes: Notes) -> Iterator[Section]:
    length = report.length
    if not report.overall.rows:
        yield Section("Length", ["No pair has a label that names a winner."])
        return
    shares = [
        [
            "accuracy where lengths are within a tenth",
            notes.percent(length.matched_accuracy),
            count(length.matched_accuracy.rows),
        ],
        ["verdicts for the longer response", notes.percent(length.prefers_longer), count(length.prefers_longer.rows)],
        ["labels for the longer response", notes.percent(length.longer_is_better), count(length.longer_is_better.rows)],
    ]
    parts: list = [Table("Verdicts and lengths", ["", "share", "pairs"], shares, notes.take())]
    rows = [
        [
            f"{_signed(bucket.low)} to {_signed(bucket.high)}",
            notes.percent(bucket.accuracy),
            count(bucket.accuracy.rows),
        ]
        for bucket in length.buckets
    ]
    parts += [
        Figure("length", "Accuracy against length difference", "A model that only counts characters is always wrong on "
               "the left, where the better response is the shorter one, and always right on the other side."),
        Table("Accuracy by how many characters longer the better response is", ["characters", "accuracy", "pairs"],
              rows, notes.take()),
    ]  # fmt: skip
    yield Section("Length", parts)


def _show_ties(report: EvaluationReport, notes: Notes) -> Iterator[Section]:
    ties = report.ties
    if ties is None:
        yield Section("Ties", ["No row is labelled a tie."])
        return
    rows = [
        ["mean distance of the probability from one half", notes.number(ties.distance)],
        ["… of pairs whose label names a winner", notes.number(ties.distance_of_others)],
        ["AUC of tie against winner by that distance", notes.number(ties.auc)],
    ]
    text = (
        "AUC: how likely a tie lies nearer to one half than a pair with a winner; 0.5 where nothing tells them apart."
    )
    yield Section("Ties", [Table(f"The {count(ties.rows)} labelled ties", ["", "value"], rows, notes.take()), text])


def _show_distraction(report: EvaluationReport, notes: Notes) -> Iterator[Section]:
    if not report.distraction:
        yield Section("Distraction", ["Not asked for; --perturb dresses up the worse responses and counts what flips."])
        return
    rows = [
        [
            edit.edit,
            edit.does,
            count(edit.right),
            count(edit.flipped),
            notes.percent(edit.flip_rate),
            notes.signed(edit.shift, 3),
        ]
        for edit in report.distraction
    ]
    header = ["edit", "what it does to the worse response", "right before", "flipped", "share", "shift, log-odds"]
    parts = [
        Table("Right verdicts that an edit without content flips", header, rows, notes.take()),
        "Shift: mean change of the better response's log-odds; below 0 where the edit is liked.",
    ]
    yield Section("Distraction", parts)


def _show_off_format(report: EvaluationReport, notes: Notes) -> Iterator[Section]:
    found = report.off_format
    if found.lowest is None:
        yield Section("Answers off the format", ["There is no row."])
        return
    rows = [
        ["mean", notes.percent(found.label_mass)],
        ["1 pair of 100 has less than", f"{100 * found.percentile_1:.1f}%"],
        ["least", f"{100 * found.lowest:.1f}%"],
        ["pairs below one half", count(found.rows_below_half)],
    ]
    parts: list = [Table("Probability of the labels A and B together", ["", "value"], rows, notes.take())]
    if found.listed:
        parts.append(_list_rows("The lowest", found.listed, {"label_mass": "probability"}))
    yield Section("Answers off the format", parts)


def _show_difference(report: EvaluationReport, notes: Notes) -> Iterator[Section]:
    found = report.difference
    if found is None:
        return
    rows = [
        ["accuracy", notes.percent(found.accuracy), notes.percent(found.accuracy_of_other),
         notes.points(found.accuracy_difference) + " points"],
        ["survives the swap", "", "", notes.points(found.consistency_difference) + " points"],
        ["negative log-likelihood", "", "", notes.signed(found.nll_difference, 3) + " nats"],
    ]  # fmt: skip
    parts: list = [
        f"On {count(found.rows)} pairs that both compared"
        + (f"; {count(found.unmatched)} were compared by one alone." if found.unmatched else "."),
        Table(f"Against {clean(found.model)}", ["", "this model", "the other", "difference"], rows, notes.take()),
    ]
    if list(found.subsets) != [""]:
        rows = [[name_subset(name), notes.points(difference)] for name, difference in found.subsets.items()]
        parts.append(Table("Difference of accuracy by subset", ["subset", "points"], rows, notes.take()))
    if found.disagreements:
        numbers = {"prob_first": "this model", "prob_first_of_other": "the other"}
        parts.append(
            _list_rows("Where the probability of the better response differs most", found.disagreements, numbers)
        )
    yield Section("Against another model", parts)


def _list_rows(caption: str, listed: list[RowNote], numbers: dict[str, str]) -> Table:
    rows = [
        [clean(note.id, 40) or f"row {note.row}", *(f"{100 * note.numbers[name]:.1f}%" for name in numbers),
         clean(note.prompt, 160), clean(note.first, 160), clean(note.second, 160)]
        for note in listed[:_LISTED]
    ]  # fmt: skip
    more = [f"{count(len(listed) - _LISTED)} more are in report.json."] if len(listed) > _LISTED else []
    return Table(caption, ["row", *numbers.values(), "prompt", "better response", "other response"], rows, more)


def _show_origin(report: EvaluationReport, _: Notes) -> Iterator[Section]:
    origin = report.origin
    rows = [
        ["command", report.command],
        ["model", origin.model],
        ["digest of its card", origin.card_digest or ""],
        *(
            [name.replace("_", " "), str(value)]
            for name, value in origin.options.items()
            if name != "model" and value is not None
        ),
        ["temperature in use", f"{origin.temperature:g}"],
        ["data", origin.dataset],
        ["digest of the data", origin.dataset_digest],
        ["seed; resamples", f"{report.seed}; {count(report.resamples)}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in origin.versions.items())],
    ]
    rows = [[clean(name), clean(value, 1000)] for name, value in rows if value]
    yield Section("How this was made", [Table("Where the numbers come from", ["", ""], rows)])


def _signed(characters: int) -> str:
    return f"{characters:+,}".replace("-", "−") if characters else "0"
