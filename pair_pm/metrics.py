"""The one definition of each number that is taken from labelled comparisons, in training and in reports alike.

Arrays in, numbers out. The first response of a comparison is the one that is labelled the better.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pair_pm.scoring import TIE_TOLERANCE
from pair_pm.strengths import sigmoid


@dataclass(frozen=True)
class Verdicts:
    """What a model says of pairs, both orders of each.

    Attributes:
        log_odds: Of "A" against "B", after temperature, shape (rows, 2): the order with the first response in slot A,
            then the other.
        label_mass: Probability that "A" and "B" hold together, the smaller of the two orders', shape (rows,).
        targets: How likely people, or a teacher, prefer the first response, shape (rows,).
    """

    log_odds: np.ndarray
    label_mass: np.ndarray
    targets: np.ndarray

    @cached_property
    def prob_first_in_each(self) -> np.ndarray:
        """P(the first response wins) in each order, shape (rows, 2)."""
        return sigmoid(self.log_odds * [1, -1])

    @cached_property
    def prob_first(self) -> np.ndarray:
        """Their mean, shape (rows,)."""
        return self.prob_first_in_each.mean(axis=1)

    @cached_property
    def log_probs(self) -> np.ndarray:
        """Natural logarithms of P(the first wins) and P(the second wins), exact where one is next to 0; (rows, 2)."""
        signed = self.log_odds * [1, -1]
        return np.stack([_log_mean_sigmoid(signed), _log_mean_sigmoid(-signed)], axis=1)

    @property
    def right(self) -> np.ndarray:
        """1 where the verdict is for the first response, 0.5 where it is a tie, 0 elsewhere, shape (rows,)."""
        return _worth(self.prob_first)

    @property
    def right_in_each(self) -> np.ndarray:
        """The same of each order alone, shape (rows, 2)."""
        return _worth(self.prob_first_in_each)

    @property
    def is_consistent(self) -> np.ndarray:
        """Whether both orders name the same winner, or both a tie, shape (rows,)."""
        in_a, in_b = self.right_in_each.T
        return in_a == in_b

    @property
    def answers_a(self) -> np.ndarray:
        """1 where an order is answered "A", 0 where "B", 0.5 where neither is likelier, shape (rows, 2)."""
        return (np.sign(self.log_odds) + 1) / 2

    @property
    def single_order_losses(self) -> np.ndarray:
        """Cross-entropy of each order's labels against the target, in nats, renormalised over the two; (rows, 2)."""
        # Against the target t of each order: -t log s(d) - (1 - t) log s(-d) = log(1 + exp d) - t d.
        targets = np.stack([self.targets, 1 - self.targets], axis=1)
        return np.logaddexp(0, self.log_odds) - targets * self.log_odds

    def losses(self, targets: np.ndarray | float = 1.0) -> np.ndarray:
        """Return the cross-entropy of the averaged probability against targets, in nats, shape (rows,)."""
        return -(targets * self.log_probs[:, 0] + (1 - targets) * self.log_probs[:, 1])


@dataclass(frozen=True)
class Metrics:
    """What comparisons whose label names a winner say of the model; all but the counts None where there are none.

    Attributes:
        pairs: Rows that were compared.
        accuracy: Share of verdicts for the better response; a predicted tie counts 0.5.
        predicted_ties: How many those were.
        position_consistency: Share of verdicts that survive the swap of the two responses.
        label_loss: Mean cross-entropy of the two labels of each order against the votes, in nats; chance is ln 2.
        prob_a: Share of the prompts that are answered "A"; 0.5 where no slot is preferred.
        order_bias: Mean log-odds of "A" against "B"; 0 where no slot is preferred.
        label_mass: Mean of the comparisons' label mass.
        lowest_label_mass: The least probability that "A" and "B" held together.
    """

    pairs: int
    accuracy: float | None = None
    predicted_ties: int = 0
    position_consistency: float | None = None
    label_loss: float | None = None
    prob_a: float | None = None
    order_bias: float | None = None
    label_mass: float | None = None
    lowest_label_mass: float | None = None


def compute_metrics(verdicts: Verdicts) -> Metrics:
    """Return the metrics of comparisons."""
    rows = len(verdicts.label_mass)
    if not rows:
        return Metrics(pairs=0)
    return Metrics(
        pairs=rows,
        accuracy=float(verdicts.right.mean()),
        predicted_ties=int((verdicts.right == 0.5).sum()),
        position_consistency=float(verdicts.is_consistent.mean()),
        label_loss=float(verdicts.single_order_losses.mean()),
        prob_a=float(verdicts.answers_a.mean()),
        order_bias=float(verdicts.log_odds.mean()),
        label_mass=float(verdicts.label_mass.mean()),
        lowest_label_mass=float(verdicts.label_mass.min()),
    )


def _worth(prob_first: np.ndarray) -> np.ndarray:
    distance = prob_first - 0.5
    return np.where(np.abs(distance) <= TIE_TOLERANCE, 0.5, (distance > 0).astype(float))


def _log_mean_sigmoid(log_odds: np.ndarray) -> np.ndarray:
    """Return the logarithm of the mean over the last axis of the sigmoids, exact also where they underflow."""
    return np.logaddexp.reduce(-np.logaddexp(0, -log_odds), axis=-1) - np.log(log_odds.shape[-1])
