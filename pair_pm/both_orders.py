"""Held-out A/B rows, each pair in both orders whatever the file holds: a test data set's `type: pair_pm.both_orders`.

    test_datasets:
      - path: ./data/pairs.eval.jsonl
        ds_type: json
        type: pair_pm.both_orders

Whether a verdict survives the swap, and whether the model prefers a slot, shows in both orders alone.
"""

from pair_pm.pair_rows import PairRows
from pair_pm.tokens import PromptEncoder


def load(tokenizer, cfg, ds_cfg) -> PairRows:
    """Return the strategy; axolotl calls this for each data set of this type."""
    sequence_len = cfg.eval_sequence_len or cfg.sequence_len
    return PairRows(PromptEncoder(tokenizer), ds_cfg["path"], sequence_len, in_both_orders=True)
