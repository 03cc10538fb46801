"""Train and serve pairwise preference models for RLHF.

from pair_pm import PairScorer

scorer = PairScorer.from_pretrained("path/or/hub-name")
scorer.compare("What is 2 + 2?", "4", "5").prob_first
"""

from pair_pm.scoring import Comparison, PairScorer

__all__ = ["Comparison", "PairScorer"]
__version__ = "0.1.0"
