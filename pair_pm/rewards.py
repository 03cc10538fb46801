"""Rewards for online RL: the completions of one prompt, compared with each other by a preference model.

    GRPOTrainer(model=…, reward_funcs=GroupReward("outputs/gemma-2b-it"), …)        in TRL
    reward_funcs: ["pair_pm.rewards.group_reward"]    in axolotl, with PAIR_PM_REWARD_MODEL in the environment

A completion's reward is its Bradley-Terry log-strength among the completions of its prompt, mean 0 in each group. That
is what group-relative trainers (GRPO, RLOO) use of a reward, and all that a pairwise judge knows: strengths of two
groups have no common zero.
"""

import functools
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pair_pm.errors import ConfigError, DataError
from pair_pm.group_rewards import COUNTED, DEFAULT_METHOD, METHODS, ON_OVERLONG, Prompt, reward_groups
from pair_pm.scoring import Message, PairScorer

logger = logging.getLogger(__name__)

ENVIRONMENT = {
    "model": "PAIR_PM_REWARD_MODEL",
    "engine": "PAIR_PM_REWARD_ENGINE",
    "method": "PAIR_PM_REWARD_METHOD",
    "on_overlong": "PAIR_PM_REWARD_ON_OVERLONG",
}

Completion = str | Sequence[Message]


class GroupReward:
    """A reward function over the groups of a batch, in the shape that TRL and axolotl call.

    The model is loaded at the first call, once a process. What is None is read from the environment (`ENVIRONMENT`).

    Args:
        model: Folder or hub name of a trained preference model, or a scorer that is there already.
        engine: Where its weights run, as `PairScorer.from_pretrained` takes it; default: in this process.
        method: Of `pair_pm.ranking.rank_many`: "circular" (default; each completion meets its neighbours on a ring, so
            that the cost grows with the group's size), "knockout" (fewest comparisons), "round_robin" (all), ….
        on_overlong: What becomes of a comparison that is too long for the model. "error" (default) raises. "neutral"
            counts it as a tie. "trim_context" leaves out the oldest turns of its context until it fits, the system
            message last, never the last user message or a response; where that is not enough, it is a tie.
        seed: Of the comparisons' schedule.
        load_options: More of `PairScorer.from_pretrained`: `profile`, `adapter`, `temperature`, `device`, `dtype`, ….
    Attributes:
        counts: Of all calls, by the names in `COUNTED`: comparisons that were ties for their length, and that were made
            on a trimmed context; completions that were empty or cannot be rendered for another reason, and that were
            the only ones of their prompt.
    Raises:
        ConfigError: no model is named, or there is no such method or `on_overlong`.
    """

    __name__ = "group_reward"  # what trainers log it as

    def __init__(
        self,
        model: str | PairScorer | None = None,
        *,
        engine: str | None = None,
        method: str | None = None,
        on_overlong: str | None = None,
        seed: int = 0,
        **load_options,
    ):
        self.model = model or _read_variable("model")
        if not self.model:
            raise ConfigError(f"reward model: none is named; an argument or {ENVIRONMENT['model']} is required")
        self.engine = engine or _read_variable("engine")
        self.method = _choose("method", method, METHODS, DEFAULT_METHOD)
        self.on_overlong = _choose("on_overlong", on_overlong, ON_OVERLONG, ON_OVERLONG[0])
        self.seed = seed
        self.load_options = load_options
        self.counts: Counter[str] = Counter()

    @functools.cached_property
    def scorer(self) -> PairScorer:
        """The scorer; the first use loads it."""
        if isinstance(self.model, PairScorer):
            return self.model
        with _without_zero_3():
            return PairScorer.from_pretrained(self.model, engine=self.engine, **self.load_options)

    def __getstate__(self) -> dict:
        """Leave the loaded model behind: a trainer's reward processes load their own."""
        return {name: value for name, value in vars(self).items() if name != "scorer"}

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        log_metric: Callable[[str, float], None] | None = None,
        **columns,
    ) -> list[float]:
        """Return a reward for each completion.

        Equal prompts form a group, wherever they stand. Equal completions of a group are compared as one and get the
        same. An empty completion gets 1 less than the worst of its group, and a completion without rivals 0.

        Args:
            prompts: A string or a conversation for each completion.
            completions: Strings, or messages of which the last one is the response.
            log_metric: TRL's; takes the counts of this call.
            columns: Whatever else a trainer passes along; not used.
        Raises:
            DataError: a prompt is no conversation that ends in a user message, or the two lists differ in length.
            PromptTooLongError: a comparison is too long, and `on_overlong` is "error".
        """
        places = _find_groups(prompts, completions)
        groups = [(prompts[own[0]], [_read_text(completions[place]) for place in own]) for own in places]
        by_group, counts = reward_groups(self.scorer, groups, self.method, self.on_overlong, self.seed)
        rewards = [0.0] * len(completions)
        for own, group in zip(places, by_group, strict=True):
            for place, reward in zip(own, group, strict=True):
                rewards[place] = reward
        self._report(counts, log_metric)
        return rewards

    def _report(self, counts: Counter[str], log_metric: Callable[[str, float], None] | None) -> None:
        for name in COUNTED:
            if counts[name] and not self.counts[name]:
                logger.warning("rewards: %d %s, from now on counted", counts[name], name.replace("_", " "))
            # Zeros too: the ranks of a run gather each metric, and wait for one that logs it not.
            if log_metric is not None:
                log_metric(f"{self.__name__}/{name}", counts[name])
        self.counts += counts


def group_reward(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    *,
    model: str | None = None,
    engine: str | None = None,
    method: str | None = None,
    on_overlong: str | None = None,
    **columns,
) -> list[float]:
    """Return a reward for each completion, by a `GroupReward` of these arguments that is kept for the next call.

    What is not given comes from the environment, so that the name of this function is enough for a config.
    """
    given = {"model": model, "engine": engine, "method": method, "on_overlong": on_overlong}
    # Trainers pass the data set's columns by name, as lists: one that is called "model" names no judge.
    named = {name: None if isinstance(value, list) else value for name, value in given.items()}
    return _share_reward(*(value or _read_variable(name) for name, value in named.items()))(
        prompts, completions, **columns
    )


@functools.cache
def _share_reward(model, engine, method, on_overlong) -> GroupReward:
    return GroupReward(model, engine=engine, method=method, on_overlong=on_overlong)


@contextmanager
def _without_zero_3() -> Iterator[None]:
    """Let models be loaded whole: once a run uses ZeRO-3, transformers shards every model that it loads."""
    from transformers.integrations import deepspeed

    reference = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = reference


def _read_variable(name: str) -> str | None:
    return os.environ.get(ENVIRONMENT[name]) or None


def _choose(name: str, value: str | None, choices: Sequence[str], default: str) -> str:
    value = value or _read_variable(name) or default
    if value not in choices:
        raise ConfigError(f"{name} {value!r}: one of {', '.join(choices)} is required")
    return value


def _find_groups(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[list[int]]:
    """Return the places in the batch of each prompt's completions."""
    if len(prompts) != len(completions):
        raise DataError(f"rewards: {len(prompts)} prompts and {len(completions)} completions; as many are required")
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        key = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
        places.setdefault(key, []).append(place)
    return list(places.values())


def _read_text(completion: Completion) -> str:
    """Return the response: a string, or what the last message says, which may be nothing (a call of a tool)."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    return content if isinstance(content, str) else ""
