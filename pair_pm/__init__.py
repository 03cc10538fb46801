"""Train and serve pairwise preference models for RLHF."""

__version__ = "0.1.0"
