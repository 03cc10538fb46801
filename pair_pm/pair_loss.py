"""The loss of a pairwise judge, on the logits of the labels alone.

A row bears loss at one position, where the model answers "A" or "B". Its target is a distribution over the two labels,
(p, 1 - p), so that votes, ties, smoothing and a teacher's probabilities are all the same thing; the cross-entropy runs
over the whole vocabulary, which also keeps the probability on the two labels. At p = 0 or 1 it is the stock loss.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

IGNORED = -100  # the label of a position that bears no loss


@dataclass
class Targets:
    """What a batch's rows are trained towards, in the order in which their labels stand in the batch.

    No tensor of the batch itself, because the trainer casts a batch's floating tensors to bfloat16 under DeepSpeed.

    Attributes:
        prob_a: Target probability of "A", 0 to 1, float32, shape (rows,).
        pair: Number of each row's pair, the same for both of its orders, int64, shape (rows,).
    """

    prob_a: torch.Tensor
    pair: torch.Tensor

    def to(self, device: torch.device) -> "Targets":
        """Return the same on a device."""
        return Targets(self.prob_a.to(device), self.pair.to(device))


@dataclass
class PairLoss:
    """The loss of a micro-batch, and what there is to report of it.

    Attributes:
        rows: Cross-entropy of each row, shape (rows,).
        symmetry: Sum over the batch's pairs of (d_AB + d_BA)², d the log-odds of A against B.
        pairs: How many pairs have both orders in the batch.
        logprobs: Natural-log probabilities of "A" and "B", float32, without gradient, shape (rows, 2).
    """

    rows: torch.Tensor
    symmetry: torch.Tensor
    pairs: int
    logprobs: torch.Tensor


def find_label_positions(labels: torch.Tensor) -> torch.Tensor:
    """Return where a batch's labels are predicted, one place before each, as flat indices, row by row.

    Args:
        labels: Token ids, -100 where no loss is borne, shape (batch, length).
    """
    assert labels.ndim == 2, labels.shape
    bears_loss = functional.pad(labels[:, 1:] != IGNORED, (0, 1), value=False)
    return bears_loss.flatten().nonzero().squeeze(1)


def compute_pair_loss(
    logits: torch.Tensor, label_ids: torch.Tensor, targets: Targets, smoothing: float = 0.0
) -> PairLoss:
    """Return the loss of the rows of a micro-batch.

    Args:
        logits: At the positions that predict the labels, shape (rows, vocabulary).
        label_ids: The ids of "A" and "B", shape (2,).
        targets: Of these rows.
        smoothing: Share of each target that is spread evenly over the two labels, 0 to 1.
    """
    logprobs = logits.float().log_softmax(-1)[:, label_ids]
    prob_a = targets.prob_a * (1 - smoothing) + smoothing / 2
    rows = -(prob_a * logprobs[:, 0] + (1 - prob_a) * logprobs[:, 1])
    sums = _sum_over_orders(logprobs[:, 0] - logprobs[:, 1], targets.pair)
    return PairLoss(rows, sums.square().sum(), len(sums), logprobs.detach())


def _sum_over_orders(log_odds: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
    """Return d_AB + d_BA of each pair that has both orders here; 0 where the verdict does not depend on the order."""
    order = pair.argsort(stable=True)
    pair, log_odds = pair[order], log_odds[order]
    first = (pair[1:] == pair[:-1]).nonzero().squeeze(1)
    return log_odds[first] + log_odds[first + 1]


class LabelOnlyHead:
    """Has a model's output head compute the logits of chosen positions alone.

    A forward hook on the head takes those positions out of the hidden states, whatever wraps the model (DDP, DeepSpeed,
    FSDP, an adapter, also one on the head itself), and what the model does to its logits afterwards stays as it is.

    Args:
        model: A causal LM.
    """

    def __init__(self, model: nn.Module):
        head = model.get_output_embeddings()
        self.is_supported = head is not None
        self._positions: torch.Tensor | None = None
        if head is not None:
            head.register_forward_pre_hook(self._take_positions)

    @contextmanager
    def at(self, positions: torch.Tensor) -> Iterator[None]:
        """Within it, a forward pass gives logits of shape (1, positions, vocabulary).

        Args:
            positions: Flat indices into (batch, length).
        """
        self._positions = positions
        try:
            yield
        finally:
            self._positions = None

    def _take_positions(self, head: nn.Module, arguments: tuple) -> tuple | None:
        if self._positions is None:
            return None
        hidden = arguments[0]
        # A model that is spread over several devices has its head on another one than its embedding.
        positions = self._positions.to(hidden.device)
        return hidden.reshape(1, -1, hidden.shape[-1])[:, positions], *arguments[1:]
