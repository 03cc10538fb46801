"""Train and serve pairwise preference models for RLHF.

from pair_pm import PairScorer

scorer = PairScorer.from_pretrained("path/or/hub-name")
scorer.compare("What is 2 + 2?", "4", "5").prob_first
"""

__all__ = ["Comparison", "PairScorer"]
__version__ = "0.1.0"


def __getattr__(name: str):
    """Import the two public names when they are first asked for: scripts and workers import the package for less."""
    if name in __all__:
        from pair_pm import scoring

        return getattr(scoring, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
