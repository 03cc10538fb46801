"""The reward of a response beside a reference answer: its log-odds of beating it.

For trainers that ask for one response at a time: what is measured against one reference has a common zero, which the
strengths within a group of responses (`pair_pm.group_rewards`) have not.
"""

import math

from pair_pm.scoring import Comparison
from pair_pm.strengths import clip_shares


def reward_of_share(prob_first: float) -> float:
    """Return the log-odds of a probability, finite for a certain one too: within 13.8 of 0.

    The probability is the mean over both orders, as everywhere, so the reward is the difference of the strengths that
    the response and the reference have as a group of two. The mean of both orders' log-odds would be another number,
    which the order that is surer of itself decides.
    """
    share = float(clip_shares([prob_first])[0])
    return math.log(share / (1 - share))


LEAST_REWARD = reward_of_share(0.0)


def known_reward(response: str, reference: str) -> float | None:
    """Return the reward that takes no comparison, None where it takes one.

    The same text, but for white space around it, has 0. One that says nothing has lost for certain: an error would
    stop a training run, and any better reward is one that a policy could prefer to a bad answer's.
    """
    if response.strip() == reference.strip():
        return 0.0
    return None if response.strip() else LEAST_REWARD


def reward_of_comparison(comparison: Comparison) -> float:
    """Return the reward of the first response of a comparison with the reference."""
    return reward_of_share(comparison.prob_first)
