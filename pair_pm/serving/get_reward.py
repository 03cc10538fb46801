"""`POST /get_reward`, in the shape of OpenRLHF's client of remote reward models.

The client sends what the policy's tokens decode to, one sample a request: `query` (prompt and response), `prompts` and
`labels`, and reads `rewards`, `scores` and `extra_logs`. One sample has no rivals, so its reward is measured against a
reference answer, its label. The client tries any failure again and does not show what was wrong, so the log says it.

Source: github.com/OpenRLHF/OpenRLHF, openrlhf/utils/agent.py.
"""

import logging
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from pair_pm.errors import DataError, LabelTokenError, PairPMError, PromptTooLongError
from pair_pm.policy_template import PolicyTemplate
from pair_pm.reference_reward import known_reward, reward_of_comparison
from pair_pm.scoring import Comparison, Item
from pair_pm.serving.problems import Problem, describe_error, exceed
from pair_pm.serving.service import Service

logger = logging.getLogger(__name__)


class GetRewardRequest(BaseModel):
    """Samples of a policy; one without any, as some clients send it, has empty rewards."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "query": ["<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n4.<|im_end|>\n"],
                    "prompts": ["<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"],
                    "labels": ["2 + 2 is 4."],
                }
            ]
        },
    )
    query: Annotated[
        list[str], Field(fail_fast=True, description="prompt and response, as the policy's tokens decode to")
    ]
    prompts: Annotated[list[str], Field(fail_fast=True, description="rendered by the policy's chat template")] = []
    labels: Annotated[list[Any], Field(description="a reference answer for each query")] = []


class GetRewardAnswer(BaseModel):
    """For each query the log-odds of beating its reference, the probability of it, and what else may be logged."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


async def reward_queries(service: Service, template: PolicyTemplate | None, body: GetRewardRequest) -> dict:
    """Return the answer to a request, as JSON can hold it.

    Raises:
        Problem: a query cannot be read, has no reference, or cannot be compared; the log says why, and no text of it.
    """
    try:
        items = await service.read(_read_samples, template, body, service.settings.limits.pairs)
        known = [known_reward(response, reference) for _, response, reference in items]
        unknown = [place for place, reward in enumerate(known) if reward is None]
        comparisons = dict(zip(unknown, await service.compare_each([items[place] for place in unknown]), strict=True))
        for place, comparison in comparisons.items():
            if isinstance(comparison, PairPMError):
                raise describe_error(comparison, f"query.{place}") from comparison
    except Problem as problem:
        quotes_prompt = isinstance(problem.__cause__, PromptTooLongError | LabelTokenError)
        said = "" if quotes_prompt else f": {problem.message}"
        logger.warning("/get_reward: %d %s, %s%s", problem.status, problem.type, problem.where or "request", said)
        raise
    return _answer([comparisons.get(place, reward) for place, reward in enumerate(known)])


def _answer(outcomes: list[Comparison | float]) -> dict:
    """Return the answer; a reward that took no comparison is that of a tie or of a certain loss."""
    rows = [
        (reward_of_comparison(outcome), outcome.prob_first, outcome.position_gap, outcome.label_mass)
        if isinstance(outcome, Comparison)
        else (outcome, 0.5 if outcome == 0 else 0.0, 0.0, 1.0)
        for outcome in outcomes
    ]
    rewards, scores, gaps, masses = zip(*rows, strict=True) if rows else ((), (), (), ())
    return {"rewards": rewards, "scores": scores, "extra_logs": {"position_gap": gaps, "label_mass": masses}}


def _read_samples(template: PolicyTemplate | None, body: GetRewardRequest, most: int) -> list[Item]:
    """Return the conversation, the response and the reference of each query."""
    counts = [len(body.query), len(body.prompts), len(body.labels)]
    if not any(counts):
        return []
    if counts[0] > most:
        raise exceed("query", counts[0], most, "--max-pairs")
    if counts[1] != counts[0] or counts[2] not in (0, counts[0]):
        raise Problem(
            422, "malformed", f"{counts[0]} queries, {counts[1]} prompts and {counts[2]} labels; as many of each are "
            "required", "prompts" if counts[1] != counts[0] else "labels",
        )  # fmt: skip
    if template is None:
        raise Problem(
            400, "invalid_option", "the service knows no policy; its tokenizer is required to read rendered prompts; "
            "start it with --policy-template", "query",
        )  # fmt: skip
    return [_read_sample(template, body, place) for place in range(counts[0])]


def _read_sample(template: PolicyTemplate, body: GetRewardRequest, place: int) -> Item:
    label = body.labels[place] if body.labels else None
    if not isinstance(label, str) or not label.strip():
        raise Problem(
            400, "invalid_data", "no reference answer; one is required, because a single response has nothing else to "
            "be better than; name the data's column with --data.label_key, or send whole groups to /v1/rewards",
            f"labels.{place}",
        )  # fmt: skip
    try:
        return *template.split(body.query[place], body.prompts[place]), label
    except DataError as error:
        raise Problem(422, "malformed", str(error), f"query.{place}") from error
