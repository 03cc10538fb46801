"""The in-process engine: a transformers causal LM, batched, with its head at the last real position only."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class AnswerHead(nn.Module):
    """A model's output head, applied in float32 and at one position a row.

    One position, because the answer needs no other and a full row of logits is gigabytes with a large vocabulary.
    In float32, because bfloat16 logits near 16 lie on a grid of 0.125 and would tie where there is no tie. What the
    model does after its head, such as Gemma-2's cap, then happens in float32 as well.
    """

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self.positions: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits at `positions`, float32, shape (rows, 1, vocabulary)."""
        rows = torch.arange(len(hidden), device=hidden.device)
        hidden = hidden[rows, self.positions.to(hidden.device)].unsqueeze(1)
        bias = None if self.bias is None else self.bias.float()
        return functional.linear(hidden.float(), self.weight.float(), bias)


class TransformersEngine:
    """Scores prompts with a model in this process.

    Args:
        model: A causal LM in evaluation mode, on its device. Its head is replaced by an `AnswerHead`.
        label_ids: The ids of "A" and "B".
        max_batch_tokens: Most tokens in a batch, padding included; a longer prompt makes a batch of its own.
    """

    def __init__(self, model, label_ids: Sequence[int], max_batch_tokens: int = 16384):
        self.model = model
        self.max_prompt_tokens = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._label_ids = torch.tensor(label_ids, device=model.device)
        self._max_batch_tokens = max_batch_tokens
        self._head = AnswerHead(model.get_output_embeddings())
        model.set_output_embeddings(self._head)

    def label_logprobs(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the natural-log probabilities of "A" and "B" as next token, float64, shape (prompts, 2)."""
        # Equal prompts are scored once: in different batches their last digits could differ, and equal responses
        # would not tie.
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        distinct = list(places)
        logprobs = np.empty((len(distinct), 2))
        for batch in self._batches(distinct):
            logprobs[batch] = self._score_batch([distinct[index] for index in batch])
        return logprobs[[places[tuple(prompt)] for prompt in prompts]]

    def _batches(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Yield indices of prompts of like length, the longest first, so that memory runs out at once or never."""
        batch: list[int] = []
        for index in sorted(range(len(prompts)), key=lambda index: -len(prompts[index])):
            if batch and (len(batch) + 1) * len(prompts[batch[0]]) > self._max_batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    @torch.inference_mode()
    def _score_batch(self, prompts: list[Sequence[int]]) -> np.ndarray:
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        # Padding stands on the right, where a causal model cannot see it from the last real position: positions and
        # masks are those of each prompt alone. Its token is never looked at.
        input_ids = torch.zeros((len(prompts), int(lengths.max())), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            input_ids[row, : len(prompt)] = torch.as_tensor(prompt)
        mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
        self._head.positions = lengths - 1
        device = self.model.device
        output = self.model(input_ids=input_ids.to(device), attention_mask=mask.long().to(device), use_cache=False)
        logprobs = output.logits[:, 0].float().log_softmax(-1)
        return logprobs[:, self._label_ids].double().cpu().numpy()
