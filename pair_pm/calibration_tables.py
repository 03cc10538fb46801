"""How far the probabilities can be trusted, and what a fitted temperature does to that, as tables."""

from collections.abc import Iterator

from pair_pm.evaluation_report import CalibrationReport, EvaluationReport
from pair_pm.report_document import Figure, Notes, Section, Table, clean, count


def show_calibration(report: EvaluationReport, notes: Notes) -> Iterator[Section]:
    """Yield the section on calibration."""
    parts: list = []
    if report.calibration.rows:
        columns = [("as it is", report.calibration)]
        fit = report.temperature_fit
        if fit and fit.before and fit.after:
            columns += [("judged part, before", fit.before), ("judged part, after", fit.after)]
            shown = "On the prompts that the temperature was not fitted on, before and after."
        else:
            shown = "There is no fitted temperature, so no after."
        parts += [
            Figure("reliability", "Reliability", "Each mark is a bin of about as many pairs, with its 95% interval; on "
                   f"the diagonal a probability says how often the verdict is right. {shown}"),
            _tabulate_calibration(columns, notes),
            f"{report.calibration.bins}.",
            Figure("probabilities", "Probabilities of the better response", "Plain bars, right of one half, are right "
                   "verdicts; hatched ones wrong; the line, where there is one, labelled ties."),
        ]  # fmt: skip
    yield Section(
        "Calibration", parts or ["No pair has a label that names a winner: there is nothing to hold against."]
    )


def show_temperature(report: EvaluationReport, notes: Notes) -> Iterator[Section]:
    """Yield the section on what was fitted, and how it did on the other prompts."""
    fit = report.temperature_fit
    if fit is None:
        yield Section("Temperature", ["None was fitted; --fit-temperature does."])
        return
    parts: list = [
        f"Fitted on {count(fit.fitted_on)} pairs, judged on the {count(fit.judged_on)} pairs of the other prompts."
    ]
    if fit.temperature is None:
        parts.append(f"No temperature was found; {fit.reason}.")
    else:
        rows = [
            ["in use", f"{report.origin.temperature:.3f}", f"{report.origin.order_offset:.3f}".replace("-", "−")],
            ["fitted", f"{fit.temperature:.3f}", f"{fit.order_offset:.3f}".replace("-", "−")],
            [
                "change of the loss there, nats",
                notes.signed(fit.nll_change, 4),
                notes.signed(fit.single_order_nll_change, 4),
            ],
            ["is it no worse?", "yes" if fit.is_not_worse else "no", "yes" if fit.offset_is_not_worse else "no"],
        ]
        header = ["", "temperature", "order offset, log-odds"]
        parts.append(Table("What was fitted, and what it does to the other prompts", header, rows, notes.take()))
        parts.append(
            "A change below 0 is an improvement; the loss is against the votes where rows carry them. The offset is "
            "used only where a single order is scored."
        )
        parts.append(f"Saved to {clean(fit.saved_to)}." if fit.saved_to else "Not saved to the model's card.")
    yield Section("Temperature", parts)


def _tabulate_calibration(columns: list[tuple[str, CalibrationReport]], notes: Notes) -> Table:
    reports = [found for _, found in columns]
    rows = [
        ["pairs", *(count(found.rows) for found in reports)],
        ["negative log-likelihood, nats", *(notes.number(found.nll) for found in reports)],
        ["Brier score", *(notes.number(found.brier) for found in reports)],
        ["expected calibration error", *(notes.percent(found.ece) for found in reports)],
        ["debiased calibration error", *(notes.percent(found.debiased_error) for found in reports)],
    ]
    if any(found.vote_nll.value is not None for found in reports):
        rows += [
            ["cross-entropy against votes, nats", *(notes.number(found.vote_nll) for found in reports)],
            ["… of the best possible model", *(notes.number(found.vote_entropy) for found in reports)],
        ]
    known = notes.take()
    if len(rows) == 5:
        known.append("No row carries shares of votes, so there is no likelihood against them.")
    return Table("How far the probabilities can be trusted", ["", *(name for name, _ in columns)], rows, known)
