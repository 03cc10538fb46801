"""What requests and answers look like: the source of their validation and of the OpenAPI document.

A body is refused for its first fault. Pydantic would list all: of one body of four megabytes those are millions, which
take gigabytes of memory, and minutes in which nobody else is answered.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pair_pm.group_rewards import DEFAULT_METHOD, ON_OVERLONG
from pair_pm.group_rewards import METHODS as REWARD_METHODS
from pair_pm.ranking import METHODS, ORDERS
from pair_pm.scoring import Comparison

_PROMPT = "What is 2 + 2?"
_RESPONSES = ["2 + 2 is 4.", "Who knows?"]
_MESSAGES = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4."},
    {"role": "user", "content": "And doubled?"},
]


class Shape(BaseModel):
    """A part of a request: unknown names and other types are refused, never guessed at."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_one_unknown_name(cls, found: Any) -> Any:
        if not isinstance(found, dict) or len(found) <= len(cls.model_fields):
            return found
        unknown = next(name for name in found if name not in cls.model_fields)
        return {name: found[name] for name in (*cls.model_fields, unknown) if name in found}


class ChatMessage(Shape):
    """One message."""

    role: Literal["system", "user", "assistant"]
    content: str


class Conversation(Shape):
    """What is responded to: `prompt`, one user message, or `messages`, up to the last user message."""

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _require_one(self) -> "Conversation":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages is required, not both")
        return self

    def to_context(self) -> str | list[dict[str, str]]:
        """Return it as the scorer takes it."""
        if self.prompt is not None:
            return self.prompt
        return [{"role": message.role, "content": message.content} for message in self.messages]


class CompareRequest(Conversation):
    """Two responses to a conversation."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": _PROMPT, "responses": _RESPONSES},
                {"messages": _MESSAGES, "responses": ["8.", "I do not know."]},
            ]
        }
    )
    responses: Annotated[list[str], Field(min_length=2, max_length=2, fail_fast=True)]


class BatchRequest(Shape):
    """Many comparisons."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "comparisons": [
                        {"prompt": _PROMPT, "responses": _RESPONSES},
                        {"prompt": "Name a prime.", "responses": ["9", "7"]},
                    ]
                }
            ]
        }
    )
    comparisons: Annotated[list[CompareRequest], Field(min_length=1, fail_fast=True)]


class RankRequest(Conversation):
    """Responses to a conversation, to be ranked."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": _PROMPT, "responses": [*_RESPONSES, "Four."], "method": "chordal"}]}
    )
    responses: Annotated[list[str], Field(min_length=1, fail_fast=True)]
    method: Literal[METHODS] = "round_robin"
    budget: Annotated[int | None, Field(ge=1, le=10**6, description="most prompts; not for round_robin")] = None
    orders: Annotated[
        Literal[ORDERS] | None, Field(description="of a pair; default: both for round_robin, one for the others")
    ] = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    resamples: Annotated[int, Field(ge=0, le=1000, description="of the intervals' bootstrap; 0 for none")] = 200


class RewardGroup(Conversation):
    """The completions of one prompt."""

    completions: Annotated[list[str], Field(min_length=1, fail_fast=True)]


class RewardsRequest(Shape):
    """Groups of completions, for a trainer of group-relative policies."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"groups": [{"prompt": _PROMPT, "completions": [*_RESPONSES, "Four."]}]}]}
    )
    groups: Annotated[list[RewardGroup], Field(min_length=1, fail_fast=True)]
    method: Literal[REWARD_METHODS] = DEFAULT_METHOD
    on_overlong: Literal[ON_OVERLONG] = ON_OVERLONG[0]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


# ---- answers, for the document alone: they are made by the library, not checked again -------------------------------


Number = TypeVar("Number")
# Not a tuple, whose `prefixItems` readers of OpenAPI documents stumble over.
Two = Annotated[list[Number], Field(min_length=2, max_length=2)]


class ProblemAnswer(BaseModel):
    """Why there is no result."""

    type: str
    message: str
    where: str


class ComparisonAnswer(BaseModel):
    """The verdict on two responses."""

    model_config = ConfigDict(protected_namespaces=())
    winner: Literal["first", "second", "tie"]
    prob_first: float
    prob_first_in_a: float
    prob_first_in_b: float
    position_gap: float
    is_position_consistent: bool
    log_odds_of_a: Two[float]
    label_mass: float
    prompt_tokens: Two[int]


class CompareAnswer(ComparisonAnswer):
    """The verdict on two responses, with what it cost and who gave it."""

    tokens: int
    model: str


class FailedComparison(BaseModel):
    """A comparison that could not be made, in the place of its verdict."""

    error: ProblemAnswer


class BatchAnswer(BaseModel):
    """The verdicts in the order of the request; one that cannot be compared does not keep the others from theirs."""

    results: list[ComparisonAnswer | FailedComparison]
    tokens: int
    model: str


class RankAnswer(BaseModel):
    """Responses by their index in the request, the best first; strengths by index, and what was spent."""

    order: list[int]
    strengths: list[float]
    intervals: list[Two[float]]
    cycles: list[list[int]]
    comparisons: int
    calls: int
    tokens: int
    method: str
    model: str


class RewardsAnswer(BaseModel):
    """A reward for each completion of each group, mean 0 in the group."""

    rewards: list[list[float]]
    counts: dict[str, int]
    method: str
    tokens: int
    model: str


class ModelAnswer(BaseModel):
    """The model, its recipe card, and what a request may ask for; its longest prompt is null where it has no limit."""

    model: str
    card: dict[str, dict]
    versions: dict[str, str]
    engine: Literal["remote", "in process"]
    max_prompt_tokens: int | None
    limits: dict[str, float]


class StatusAnswer(BaseModel):
    """The service is what was asked."""

    status: Literal["alive", "ready"]


assert set(ComparisonAnswer.model_fields) == set(Comparison.__dataclass_fields__)
