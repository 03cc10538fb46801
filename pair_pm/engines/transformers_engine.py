"""The in-process engine: a transformers causal LM that computes as little as the answers need.

Prompts are packed so that each shared prefix is computed once (`prefix_tree`, `tree_attention`), and the output head
runs at the last position of each prompt alone. A model whose layers cannot branch is fed padded batches instead.
"""

import logging
import math
import threading
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pair_pm.engines.prefix_tree import PrefixTree, plant_tree, split_by_tokens
from pair_pm.engines.tree_attention import KNOWN_ATTENTION, TREE_ATTENTION, AttendedTree
from pair_pm.errors import PromptTooLongError

logger = logging.getLogger(__name__)

# Two cores are as fast at a quarter of this. A GPU is not, and halves it where its memory says no.
_CPU_BATCH_TOKENS, _GPU_BATCH_TOKENS = 4096, 32768
_CAST_ROWS = 16384  # of the head at once, where it has to be cast
_BATCH_LOGITS = 2**28  # a gibibyte of float32: short branches of one prefix are many before they are many tokens
# How far the logits of a probe may lie apart, relative to their spread, to be called the same; in the types that round
# to 8 and 11 bits, layers add up to a hundredth.
_SAME_LOGITS = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}


class AnswerHead(nn.Module):
    """A model's output head, applied in float32 and where a prompt ends.

    There alone, because the answer needs no other position and a full row of logits is gigabytes with a large
    vocabulary. In float32, because bfloat16 logits near 16 lie on a grid of 0.125 and would tie where there is no tie.
    What the model does after its head, such as Gemma-2's cap, then happens in float32 as well.
    """

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self.ends: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits at `ends` (rows, columns), float32, shape (prompts, 1, vocabulary)."""
        rows, columns = self.ends
        hidden = hidden[rows.to(hidden.device), columns.to(hidden.device)].unsqueeze(1).float()
        weights = [self.weight] if self.weight.dtype == torch.float32 else self.weight.split(_CAST_ROWS)
        with torch.autocast(hidden.device.type, enabled=False):  # a caller's would round
            logits = torch.cat([functional.linear(hidden, weight.float()) for weight in weights], dim=-1)
        return logits if self.bias is None else logits + self.bias.float()


class TransformersEngine:
    """Scores prompts with a model in this process.

    Args:
        model: A causal LM in evaluation mode, on its device. Its head is replaced by an `AnswerHead`, and its attention
            by one that runs the model's own along the branches of a prefix tree.
        label_ids: The ids of "A" and "B".
        max_batch_tokens: Most tokens in a batch; a longer prompt makes a batch of its own. Default: what suits the
            device. Where memory runs out it is halved.
        share_prefixes: False: padded batches for a model whose layers can branch as well.

    Attributes:
        shares_prefixes: Whether it does.
        tokens_computed: How many went through the model so far, padding included.
    """

    def __init__(
        self, model, label_ids: Sequence[int], max_batch_tokens: int | None = None, share_prefixes: bool = True
    ):
        self.model = model
        self.max_prompt_tokens = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.tokens_computed = 0
        self._label_ids = torch.tensor(label_ids, device=model.device)
        default = _CPU_BATCH_TOKENS if model.device.type == "cpu" else _GPU_BATCH_TOKENS
        self.max_batch_tokens = max_batch_tokens or default
        self._head = AnswerHead(model.get_output_embeddings())
        model.set_output_embeddings(self._head)
        self._own_attention = model.config._attn_implementation
        self._rotary_switch = _find_rotary_switch(model.config.get_text_config())
        self._lock = threading.Lock()
        problem = self._start_sharing() if share_prefixes else None
        self.shares_prefixes = share_prefixes and problem is None
        if problem is not None:
            logger.warning("%s: %s; prompts are scored in padded batches", type(model).__name__, problem)

    def label_logprobs(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the natural-log probabilities of "A" and "B" as next token, float64, shape (prompts, 2).

        Raises:
            PromptTooLongError: the device's memory does not hold one prompt alone.
        """
        # Equal prompts are scored once: in different batches their last digits could differ, and equal responses
        # would not tie.
        distinct = {tuple(prompt) for prompt in prompts}
        with self._lock:  # a forward pass leaves what it is about with the head and the config
            logprobs = self._score({prompt for prompt in distinct if len(prompt) <= self._rotary_switch})
            logprobs |= self._score({prompt for prompt in distinct if len(prompt) > self._rotary_switch})
        return np.array([logprobs[tuple(prompt)] for prompt in prompts]).reshape(-1, 2)

    def _score(self, prompts: Collection[tuple[int, ...]]) -> dict[tuple[int, ...], np.ndarray]:
        logprobs: dict[tuple[int, ...], np.ndarray] = {}
        waiting = sorted(prompts, key=None if self.shares_prefixes else _by_length)
        while waiting:
            batch, scored = self._next_batch(waiting), None
            try:
                scored = self._score_batch(batch)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
            if scored is None:  # the error is gone by now, and what it held in memory with it
                self._halve(batch)
                continue
            logprobs.update(zip(batch, scored, strict=True))
            waiting = waiting[len(batch) :]
        return logprobs

    def _next_batch(self, waiting: Sequence[tuple[int, ...]]) -> Sequence[tuple[int, ...]]:
        most = max(1, _BATCH_LOGITS // self.model.config.get_text_config().vocab_size)
        if self.shares_prefixes:
            return next(split_by_tokens(waiting[:most], self.max_batch_tokens))
        return waiting[: min(most, max(1, self.max_batch_tokens // len(waiting[0])))]  # the first is the longest

    def _halve(self, batch: Sequence[Sequence[int]]) -> None:
        if len(batch) == 1:
            raise PromptTooLongError(
                f"prompt of {len(batch[0])} tokens: the memory of {self.model.device} does not hold what it takes; a "
                "shorter one, or a device with more memory, is required"
            )
        self.max_batch_tokens = max(1, min(self.max_batch_tokens, sum(map(len, batch))) // 2)
        logger.warning("out of memory: batches have at most %d tokens from here on", self.max_batch_tokens)
        torch.cuda.empty_cache()  # does nothing where there is none

    def _score_batch(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        if self.shares_prefixes:
            tree = plant_tree(prompts)
            logits = self._tree_logits(tree, AttendedTree(tree.branches, self._own_attention))
        else:
            logits = self._padded_logits(prompts)
        logprobs = logits[:, self._label_ids] - logits.logsumexp(-1, keepdim=True)
        return logprobs.double().cpu().numpy()

    @torch.inference_mode()
    def _tree_logits(self, tree: PrefixTree, attended: AttendedTree) -> torch.Tensor:
        device = self.model.device
        inputs = {
            "input_ids": torch.tensor([tree.tokens], device=device),
            "position_ids": torch.tensor([tree.positions], device=device),
            "prefix_tree": attended,
        }
        columns = torch.tensor([branch.stop - 1 for branch in tree.branches])
        return self._forward(inputs, torch.zeros_like(columns), columns)

    @torch.inference_mode()
    def _padded_logits(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        # Padding stands on the right, where a causal model cannot see it from the last real position: positions and
        # masks are those of each prompt alone. Its token is never looked at.
        input_ids = torch.zeros((len(prompts), int(lengths.max())), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            input_ids[row, : len(prompt)] = torch.as_tensor(prompt)
        mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
        device = self.model.device
        inputs = {"input_ids": input_ids.to(device), "attention_mask": mask.long().to(device)}
        return self._forward(inputs, torch.arange(len(prompts)), lengths - 1)

    def _forward(self, inputs: dict, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return the logits at the ends of the prompts, float32, shape (prompts, vocabulary)."""
        self._head.ends = rows, columns
        self.tokens_computed += inputs["input_ids"].numel()
        logits = self.model(**inputs, use_cache=False).logits
        assert logits.shape[:2] == (len(rows), 1), logits.shape
        return logits[:, 0].float()

    def _start_sharing(self) -> str | None:
        """Give the model an attention that branches and return None, or leave it as it is and return why.

        Layers that keep a state, windows that the attention is not told of, and positions that follow the packed
        sequence would give wrong numbers without a word. So a probe of a few tokens is scored both ways.
        """
        if self._own_attention not in KNOWN_ATTENTION:
            return f"its attention {self._own_attention} is not known to branch"
        probe = _make_probe(self.model.config.get_text_config().vocab_size)
        expected = self._padded_logits(probe)
        self.model.set_attn_implementation(TREE_ATTENTION)
        try:
            tree = plant_tree(probe)
            attended = AttendedTree(tree.branches, self._own_attention)
            most = _SAME_LOGITS.get(self.model.dtype, max(_SAME_LOGITS.values()))
            problem = _find_difference(self._tree_logits(tree, attended), expected, most) or _find_unknown_window(
                self.model.config.get_text_config(), attended.windows
            )
        except Exception as error:  # whatever a model's own code says to it, it cannot branch
            problem = f"its layers cannot branch ({type(error).__name__})"
        if problem is not None:
            self.model.set_attn_implementation(self._own_attention)
        self.tokens_computed = 0
        return problem


def _make_probe(vocabulary: int) -> list[tuple[int, ...]]:
    """Return prompts that share a beginning, in the order of their tokens; packed, most stand elsewhere than alone."""
    random = np.random.default_rng(0)
    shared, *tails = (random.integers(vocabulary, size=length).tolist() for length in (12, 9, 6, 6, 3, 1))
    return sorted((*shared, *tail) for tail in tails)


def _find_difference(found: torch.Tensor, expected: torch.Tensor, most: float) -> str | None:
    spread = (expected - expected.mean(dim=-1, keepdim=True)).norm(dim=-1)
    # The median, because rounding alone can send a token to another expert.
    difference = float(((found - expected).norm(dim=-1) / spread).median())
    if difference <= most:
        return None
    return f"its logits differ by {difference:.2g} of their spread where prefixes are shared"


def _find_unknown_window(config, windows: Sequence[int | None]) -> str | None:
    """Return what is wrong with the sliding windows that the layers asked for, which a short probe cannot show."""
    count, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    types = (
        getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"] * count
    )
    known = {"full_attention": None, "sliding_attention": window}
    if not set(types) <= set(known) or list(windows) != [known[type] for type in types]:
        return f"its layers are {', '.join(sorted(set(types)))}, and attend within {sorted(set(map(str, windows)))}"
    return None


def _by_length(prompt: tuple[int, ...]) -> tuple:
    return -len(prompt), prompt  # the longest first, so that memory runs out at once or never


def _find_rotary_switch(config) -> float:
    """Return the length beyond which the model's rotary frequencies are others; infinity where there is none.

    With "longrope" transformers takes them from the longest prompt of a batch, so that one beyond the length would
    change the numbers of all others. ("dynamic" does so too, but beyond the model's positions alone.)
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    lengths = [
        kind.get("original_max_position_embeddings") or config.original_max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    return min(lengths, default=math.inf)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # Of the caching allocator; of a driver's or library's own allocation; of the CPU's.
    words = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
