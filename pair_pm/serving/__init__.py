"""The trained model behind HTTP: comparisons, rankings and rewards, for RL loops, evaluation pipelines and people."""
