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
from dataclasses import dataclass

import numpy as np

from pair_pm.contest import Contest, run_in_lockstep
from pair_pm.errors import ConfigError, DataError, PromptTooLongError
from pair_pm.ranking import METHODS as RANKING_METHODS
from pair_pm.ranking import rank_many
from pair_pm.ranking_methods import knockout
from pair_pm.scoring import Item, Message, OrderedComparison, PairScorer, compare_logprobs, render_both_orders
from pair_pm.strengths import clip_shares, fit_strengths

logger = logging.getLogger(__name__)

METHODS = (*RANKING_METHODS, "knockout")
DEFAULT_METHOD = "circular"
ON_OVERLONG = ("error", "neutral", "trim_context")
COUNTED = ("overlong_comparisons", "trimmed_comparisons", "unreadable_completions", "lone_completions")
ENVIRONMENT = {
    "model": "PAIR_PM_REWARD_MODEL",
    "engine": "PAIR_PM_REWARD_ENGINE",
    "method": "PAIR_PM_REWARD_METHOD",
    "on_overlong": "PAIR_PM_REWARD_ON_OVERLONG",
}

# How far an empty completion stands below the worst that says something: as if it had lost to it with P = 0.73. A
# certain loss would be 14, and drown the differences between the others where a trainer divides by the deviation.
_UNREADABLE_MARGIN = 1.0
_TIE = compare_logprobs(np.log(np.full((2, 2), 0.5)))
_TIE_IN_ORDER = OrderedComparison(prob_a=0.5, log_odds_of_a=0.0, label_mass=1.0, prompt_tokens=0)

Prompt = str | Sequence[Message]
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
        groups = _form_groups(prompts, completions)
        comparer = _LenientComparer(self.scorer, self.on_overlong)
        compared = [group for group in groups if group.candidates]
        rewards = [0.0] * len(completions)
        for group, strengths in zip(compared, _find_strengths(comparer, compared, self.method, self.seed), strict=True):
            for place, reward in zip(group.places, _center(group, strengths), strict=True):
                rewards[place] = reward
        comparer.counts["unreadable_completions"] = sum(group.count_unreadable() for group in groups)
        comparer.counts["lone_completions"] = sum(len(group.places) == 1 for group in groups)
        self._report(comparer.counts, log_metric)
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


# ---- groups ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """The completions of one prompt.

    Attributes:
        messages: The prompt.
        places: Their indices in the batch.
        texts: What they say.
        candidates: Each text that can be rendered, once.
    """

    messages: Prompt
    places: list[int]
    texts: list[str]
    candidates: list[str]

    def count_unreadable(self) -> int:
        """Return how many completions are empty or cannot be rendered for another reason."""
        return sum(text not in self.candidates for text in self.texts)


def _form_groups(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[_Group]:
    if len(prompts) != len(completions):
        raise DataError(f"rewards: {len(prompts)} prompts and {len(completions)} completions; as many are required")
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        key = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
        places.setdefault(key, []).append(place)
    return [
        _make_group(prompts[members[0]], members, [_read_text(completions[place]) for place in members])
        for members in places.values()
    ]


def _make_group(messages: Prompt, places: list[int], texts: list[str]) -> _Group:
    try:
        render_both_orders(messages, "A response.", "A response.")
    except DataError as problem:
        raise DataError(f"prompt {str(messages)[:60]!r}…: {problem}") from problem
    return _Group(messages, places, texts, [text for text in dict.fromkeys(texts) if _is_readable(messages, text)])


def _read_text(completion: Completion) -> str:
    """Return the response: a string, or what the last message says, which may be nothing (a call of a tool)."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    return content if isinstance(content, str) else ""


def _is_readable(messages: Prompt, text: str) -> bool:
    try:
        render_both_orders(messages, text, text)
    except DataError:
        return False
    return True


def _find_strengths(
    comparer: "_LenientComparer", groups: Sequence[_Group], method: str, seed: int
) -> list[Sequence[float]]:
    """Return for each group the Bradley-Terry log-strengths of its candidates."""
    if method != "knockout":
        contestants = [(group.messages, group.candidates) for group in groups]
        return [ranking.strengths for ranking in rank_many(comparer, contestants, method, seed, resamples=0)]
    contests = [
        Contest(knockout(len(group.candidates), seed), group.messages, group.candidates, in_both_orders=True)
        for group in groups
    ]
    run_in_lockstep(comparer, contests)
    # The matches are a tree with the winner at its root: each strength is a sum of log-odds on the way there.
    return [fit_strengths(len(one.responses), one.pairs, clip_shares(one.shares)).tolist() for one in contests]


def _center(group: _Group, strengths: Sequence[float]) -> list[float]:
    """Return the rewards of a group's completions, mean 0 over all of them, from the strengths of its candidates."""
    known = dict(zip(group.candidates, strengths, strict=True))
    least = min(known.values()) - _UNREADABLE_MARGIN
    rewards = [known.get(text, least) for text in group.texts]
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


# ---- comparisons that are too long ----------------------------------------------------------------------------------


class _LenientComparer:
    """A scorer to which a comparison that is too long need not be an error.

    Attributes:
        counts: Comparisons that were ties for their length, and that were made on a trimmed context.
    """

    def __init__(self, scorer: PairScorer, on_overlong: str):
        self.scorer = scorer
        self.on_overlong = on_overlong
        self.counts: Counter[str] = Counter()

    def compare_many(self, items: Sequence[Item]) -> list:
        """Return the comparisons in both orders."""
        return self._compare(self.scorer.compare_many, items, _TIE)

    def compare_in_order(self, items: Sequence[Item]) -> list:
        """Return the comparisons in the order given alone."""
        return self._compare(self.scorer.compare_in_order, items, _TIE_IN_ORDER)

    def _compare(self, compare: Callable, items: Sequence[Item], tie) -> list:
        try:
            return compare(items)
        except PromptTooLongError:
            if self.on_overlong == "error":
                raise
        fitted = [self._fit(*item) for item in items]
        verdicts = iter(self._compare_fitted(compare, [item for item in fitted if item], tie))
        return [next(verdicts) if item else tie for item in fitted]

    def _compare_fitted(self, compare: Callable, items: Sequence[Item], tie) -> list:
        """Return the verdicts; a comparison that the engine's memory does not hold is a tie."""
        try:
            return compare(items)
        except PromptTooLongError:
            if len(items) == 1:
                self.counts["overlong_comparisons"] += 1
                return [tie]
        middle = len(items) // 2
        return [
            *self._compare_fitted(compare, items[:middle], tie),
            *self._compare_fitted(compare, items[middle:], tie),
        ]

    def _fit(self, messages: Prompt, first: str, second: str) -> Item | None:
        """Return the comparison as it can be made, if at all."""
        contexts = [messages, *(_trim(messages) if self.on_overlong == "trim_context" else ())]
        for context in contexts:
            if self.scorer.fits(context, first, second):
                self.counts["trimmed_comparisons"] += context is not messages
                return context, first, second
        self.counts["overlong_comparisons"] += 1
        return None


def _trim(messages: Prompt) -> Iterator[Prompt]:
    """Yield a conversation with ever more of its oldest turns left out, the system message last."""
    if isinstance(messages, str):
        return
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = list(messages[len(system) :])
    for start in range(2, len(turns), 2):
        yield [*system, *turns[start:]]
    if system:
        yield turns[-1:]
