"""Attention over a prefix tree: each branch sees its own path, through whatever attention the model has.

transformers looks attention up by name, so a name of our own is registered. Behind it the model's own function runs
once a branch, on the branch's queries and the keys and values along its path: caps, sinks and kernels stay what they
are, no linear layer sees a token twice or a padding token ever, and nothing is kept between calls.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import AttentionInterface

from pair_pm.engines.prefix_tree import Branch

TREE_ATTENTION = "pair_pm_prefix_tree"
FLASH_ATTENTION = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
# What the masks below are made for.
KNOWN_ATTENTION = ("sdpa", "eager", *FLASH_ATTENTION)


@dataclass
class AttendedTree:
    """A tree on its way through the layers of a model.

    Attributes:
        branches: Of the tree.
        implementation: The model's own attention, as transformers names it.
        windows: The sliding windows that the layers asked for, None for a layer without one.
    """

    branches: Sequence[Branch]
    implementation: str
    windows: list[int | None] = field(default_factory=list)
    _masks: dict = field(default_factory=dict)

    def make_mask(self, branch: Branch, window: int | None, query: torch.Tensor) -> torch.Tensor | None:
        """Return which tokens of the path each token of the branch sees, None where the attention knows by itself."""
        length = branch.stop - branch.start
        is_windowed = window is not None and window < branch.depth + length
        if self.implementation in FLASH_ATTENTION:
            return None  # causal from the end of the path, and takes the window itself
        if self.implementation == "sdpa" and not branch.depth and not is_windowed:
            return None  # causal from the start, which is the same where the path is empty
        key = (branch.start, window if is_windowed else None, query.device)
        if key not in self._masks:
            seen = torch.ones(length, branch.depth + length, dtype=torch.bool, device=query.device)
            seen = seen.tril(branch.depth)
            if is_windowed:
                seen = seen.triu(branch.depth - window + 1)
            if self.implementation == "eager":  # adds its mask
                seen = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill(
                    ~seen, torch.finfo(query.dtype).min
                )
            self._masks[key] = seen[None, None]
        return self._masks[key]


@torch.compiler.disable  # compiled, its loop would be unrolled anew for every tree
def attend_along_paths(
    module,
    query,
    key,
    value,
    attention_mask,
    *,
    prefix_tree: AttendedTree,
    sliding_window: int | None = None,
    **options,
):
    """Return the attention of a packed tree, in the form of transformers' attention functions.

    Args:
        module: The model's attention layer.
        query: Shape (1, heads, tokens, head size); keys and values may have fewer heads.
        key: As query.
        value: As query.
        attention_mask: None: transformers makes no mask for an attention of this name.
        prefix_tree: What `model(…, prefix_tree=…)` was called with.
        sliding_window: Of this layer.
        options: What else the layer gives to its attention.

    Raises:
        ValueError: the model made a mask of its own, which knows nothing of branches.
    """
    if attention_mask is not None:
        raise ValueError("attention_mask: None is required")
    own = _find_own_attention(module, prefix_tree.implementation)
    prefix_tree.windows.append(sliding_window)
    options.pop("position_ids", None)  # of the whole packed sequence; flash attention would look for documents in it
    outputs = []
    module.config._attn_implementation = prefix_tree.implementation  # where flash attention looks its kernel up
    try:
        for branch in prefix_tree.branches:
            mask = prefix_tree.make_mask(branch, sliding_window, query)
            queries = query[:, :, branch.start : branch.stop]
            keys, values = (_gather(states, branch) for states in (key, value))
            outputs.append(own(module, queries, keys, values, mask, sliding_window=sliding_window, **options)[0])
    finally:
        module.config._attn_implementation = TREE_ATTENTION
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(TREE_ATTENTION, attend_along_paths)


def _gather(states: torch.Tensor, branch: Branch) -> torch.Tensor:
    own = states[:, :, branch.start : branch.stop]
    if not branch.path:
        return own
    return torch.cat([*(states[:, :, start:stop] for start, stop in branch.path), own], dim=2)


def _find_own_attention(module, implementation: str) -> Callable:
    # A model's file may hold an eager attention of its own, and a table that replaces others.
    source = sys.modules[type(module).__module__]
    return source.ALL_ATTENTION_FUNCTIONS.get_interface(
        implementation, getattr(source, "eager_attention_forward", None)
    )
