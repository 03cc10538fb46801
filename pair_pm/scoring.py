"""Which of two responses is better: both orders through an engine, averaged.

A model that prefers a slot shifts one order up and the other down, so the mean of the two probabilities is free of
it, and their gap shows how large it is.

Source: Dong et al., RLHF Workflow, arXiv:2405.07863.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pair_pm.engines import Engine
from pair_pm.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LabelTokenError,
    PairPMError,
    PromptTooLongError,
)
from pair_pm.preference import RowProblem, check_answered
from pair_pm.prompt import neutralise, render_context, render_prompt
from pair_pm.recipe import CARD_NAME, Recipe, read_recipe
from pair_pm.strengths import sigmoid
from pair_pm.tokens import PromptEncoder, refuse_forgeable_text

if TYPE_CHECKING:
    from pair_pm.ranking import Best, Ranking

logger = logging.getLogger(__name__)

TIE_TOLERANCE = 1e-6
_LOW_LABEL_MASS = 0.5

Message = dict[str, str]
Item = tuple[str | Sequence[Message], str, str]  # a conversation, or its one user message, and two responses
InputError = DataError | PromptTooLongError | LabelTokenError


@dataclass(frozen=True)
class Comparison:
    """The verdict on two responses.

    Attributes:
        prob_first_in_a: P(the first response wins) when it stands in slot A.
        prob_first_in_b: The same when it stands in slot B.
        prob_first: Their mean.
        position_gap: How far the two lie apart, 0 to 1.
        is_position_consistent: Whether both orders name the same winner, or both a tie.
        winner: "first", "second", or "tie" where |prob_first - 0.5| <= 1e-6.
        log_odds_of_a: Log-odds of "A" against "B" in each order, the first response in slot A first, after temperature.
        label_mass: How much probability "A" and "B" hold of the whole vocabulary, the smaller of the two orders'.
        prompt_tokens: Tokens fed, in slot order first-second and second-first.
    """

    prob_first_in_a: float
    prob_first_in_b: float
    prob_first: float
    position_gap: float
    is_position_consistent: bool
    winner: str
    log_odds_of_a: tuple[float, float]
    label_mass: float
    prompt_tokens: tuple[int, int]

    def to_dict(self) -> dict:
        """Return the fields as JSON can hold them."""
        return asdict(self)


@dataclass(frozen=True)
class OrderedComparison:
    """The verdict on two responses in one order alone: what the model likes about a slot is in it.

    Attributes:
        prob_a: P(the response in slot A wins).
        log_odds_of_a: Of "A" against "B", after the card's order offset and temperature.
        label_mass: How much probability "A" and "B" hold of the whole vocabulary.
        prompt_tokens: Tokens fed.
    """

    prob_a: float
    log_odds_of_a: float
    label_mass: float
    prompt_tokens: int


@dataclass(frozen=True)
class EncodedPrompt:
    """A comparison in one order, as text and as the ids to feed."""

    text: str
    ids: list[int]


EncodedPair = tuple[EncodedPrompt, EncodedPrompt]  # the first response in slot A, and in slot B


class PairScorer:
    """Compares responses with a pairwise preference model.

    Args:
        engine: Where the weights run.
        encoder: Of the model's own tokenizer and chat template.
        recipe: What the model's card says; without one, no length is known but the model's positions.
    """

    def __init__(self, engine: Engine, encoder: PromptEncoder, recipe: Recipe | None = None):
        self.engine = engine
        self.encoder = encoder
        self.recipe = recipe or Recipe()
        self._warned_of_label_mass = False

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        engine: Engine | str | None = None,
        engine_timeout_s: float | None = None,
        profile: str = "native",
        adapter: str | None = None,
        temperature: float | None = None,
        max_batch_tokens: int | None = None,
        accept_control_text: bool = False,
        **load_options,
    ) -> "PairScorer":
        """Return a scorer for a trained checkpoint.

        Args:
            name: Folder or hub name.
            engine: Where the weights run: in this process (default), on the vLLM servers at these addresses, separated
                by commas, or in an engine of your own.
            engine_timeout_s: How long no server may answer before an error; default: 600.
            profile: "native", or "rlhflow" for checkpoints of the published training, which saw no BOS.
            adapter: Folder or hub name of a PEFT adapter; its tokenizer and card are used where it has them.
            temperature: Instead of the card's.
            max_batch_tokens: Of the engine in this process; default: what suits the device.
            accept_control_text: Serve a model whose special tokens or turn marks content can forge.
            load_options: `device`, `dtype`, `attn_implementation` of `pair_pm.checkpoint.load_model`.
        Raises:
            MissingPathError, CheckpointError: there is no such checkpoint, or it is no causal LM.
            TemplateError: its chat template cannot carry the format safely.
            RecipeError: its card does not describe it.
            ConfigError: the temperature or batch size is out of range, the device is not there, or an option does not
                go with servers.
            EngineError: a server does not answer, or serves something else.
        """
        from pair_pm.checkpoint import find_file, load_config, load_model, load_tokenizer

        if temperature is not None and not (temperature > 0 and math.isfinite(temperature)):
            raise ConfigError(f"temperature {temperature}: a finite number above 0 is required")
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise ConfigError(f"max_batch_tokens {max_batch_tokens}: at least 1 is required")
        in_process = {**load_options, "max_batch_tokens": max_batch_tokens}
        if engine is None:
            load_config(name)  # a wrong kind of checkpoint is said first, in one line
        elif unused := sorted(option for option, value in in_process.items() if value is not None):
            raise ConfigError(f"{', '.join(unused)}: given with an engine; a model in this process is required")
        has_own_tokenizer = adapter is not None and find_file(adapter, "tokenizer_config.json") is not None
        encoder = PromptEncoder(load_tokenizer(adapter if has_own_tokenizer else name), profile)
        recipe = _find_recipe([adapter, name] if adapter else [name], encoder, find_file)
        if not accept_control_text:
            refuse_forgeable_text(encoder.tokenizer, recipe.accepted_control_text)
        if engine is None:
            from pair_pm.engines.transformers_engine import TransformersEngine

            model = load_model(name, adapter=adapter, **load_options)
            engine = TransformersEngine(model, encoder.labels.label_ids, max_batch_tokens)
        elif isinstance(engine, str):
            engine = _connect(engine, [adapter, name] if adapter else [name], encoder, recipe, engine_timeout_s)
        if temperature is not None:
            recipe = replace(recipe, temperature=temperature)
        return cls(engine, encoder, recipe)

    def compare(self, messages: str | Sequence[Message], first: str, second: str) -> Comparison:
        """Return which response to a conversation is better.

        Args:
            messages: The conversation up to the last user message, or that message alone.
            first: One response.
            second: The other.
        Raises:
            DataError: the conversation or a response cannot be rendered.
            PromptTooLongError: it exceeds the model's positions or the sequence length it was trained with.
            CheckpointError: the model gives no finite number.
        """
        return self.compare_many([(messages, first, second)])[0]

    def compare_many(self, items: Sequence[Item]) -> list[Comparison]:
        """Return the comparisons of several (messages, first, second), scored together; errors as `compare`."""
        return self._compare(_raise_first(self.encode_each(items)))

    def compare_each(self, items: Sequence[Item]) -> list[Comparison | InputError]:
        """Return for each (messages, first, second) its comparison, or the error that keeps it from having one.

        Raises:
            CheckpointError: the model gives no finite number.
        """
        results: list = self.encode_each(items)
        usable = [index for index, result in enumerate(results) if not isinstance(result, PairPMError)]
        for index, comparison in zip(usable, self._compare_each([results[index] for index in usable]), strict=True):
            results[index] = comparison
        return results

    def compare_in_order(self, items: Sequence[Item]) -> list[OrderedComparison]:
        """Return the verdicts on several (messages, response_a, response_b) in that order alone; errors as `compare`.

        Half the cost of `compare_many`, for methods that balance the slots themselves. What the model's card says that
        slot A has too many is taken off; where both orders are averaged, that cancels of itself.
        """
        prompts = _raise_first(self._encode([render_both_orders(*item)[0] for item in items]))
        return self._judge(prompts, self._ask(prompts), self.recipe.order_offset)

    def fits(self, messages: str | Sequence[Message], first: str, second: str) -> bool:
        """Return whether a comparison is within the model's positions and the length it was trained with.

        Raises:
            DataError: the conversation or a response cannot be rendered.
        """
        [encoded] = self.encode_each([(messages, first, second)])
        if isinstance(encoded, PairPMError) and not isinstance(encoded, PromptTooLongError):
            raise encoded
        return not isinstance(encoded, PromptTooLongError)

    def encode_each(self, items: Sequence[Item]) -> list[EncodedPair | InputError]:
        """Return for each (messages, first, second) its prompts, or the error that keeps it from having them."""
        results: list = [_render_or_problem(item) for item in items]
        rendered = [index for index, result in enumerate(results) if not isinstance(result, PairPMError)]
        encoded = self._encode([prompt for index in rendered for prompt in results[index]])
        for index, one, other in zip(rendered, encoded[::2], encoded[1::2], strict=True):
            problem = next((prompt for prompt in (one, other) if isinstance(prompt, PairPMError)), None)
            results[index] = problem or (one, other)
        return results

    def judge_pairs(self, pairs: Sequence[EncodedPair], logprobs: np.ndarray) -> list[Comparison]:
        """Return the comparisons that an engine's answer to encoded pairs makes.

        Args:
            pairs: Of `encode_each`.
            logprobs: Natural-log probabilities of "A" and "B", shape (2 * pairs, 2), both orders of a pair together.

        Raises:
            CheckpointError: one of them is no finite number.
        """
        orders = self._judge([prompt for pair in pairs for prompt in pair], logprobs)
        return [_merge_orders(*pair) for pair in zip(orders[::2], orders[1::2], strict=True)]

    def rank(
        self,
        messages: str | Sequence[Message],
        responses: Sequence[str],
        method: str = "round_robin",
        seed: int = 0,
        **options,
    ) -> "Ranking":
        """Return the responses to a conversation from best to worst; methods and options of `pair_pm.ranking`."""
        from pair_pm.ranking import rank

        return rank(self, messages, responses, method, seed, **options)

    def best_of_n(
        self,
        messages: str | Sequence[Message],
        responses: Sequence[str],
        method: str = "knockout",
        seed: int = 0,
        **options,
    ) -> "Best":
        """Return the best response: by knockout, one comparison less than there are, or by a method of `rank`."""
        from pair_pm.ranking import best_of_n

        return best_of_n(self, messages, responses, method, seed, **options)

    def _compare(self, pairs: Sequence[EncodedPair]) -> list[Comparison]:
        return self.judge_pairs(pairs, self._ask([prompt for pair in pairs for prompt in pair]))

    def _compare_each(self, pairs: Sequence[EncodedPair]) -> list[Comparison | PromptTooLongError]:
        """Return the comparisons, with the error in the place of a pair that the engine's memory does not hold."""
        try:
            return self._compare(pairs)
        except PromptTooLongError as error:
            if len(pairs) == 1:
                return [error]
            middle = len(pairs) // 2
            return self._compare_each(pairs[:middle]) + self._compare_each(pairs[middle:])

    def _ask(self, prompts: Sequence[EncodedPrompt]) -> np.ndarray:
        return self.engine.label_logprobs([prompt.ids for prompt in prompts]) if prompts else np.empty((0, 2))

    def _judge(
        self, prompts: Sequence[EncodedPrompt], logprobs: np.ndarray, order_offset: float = 0.0
    ) -> list[OrderedComparison]:
        _check_finite(logprobs, prompts)
        orders = [
            _judge_order(labels, len(prompt.ids), self.recipe.temperature, order_offset)
            for prompt, labels in zip(prompts, logprobs, strict=True)
        ]
        self._warn_of_label_mass(orders)
        return orders

    def _encode(self, texts: Sequence[str]) -> list[EncodedPrompt | PromptTooLongError | LabelTokenError]:
        try:
            encoded = self.encoder.encode(texts)
        except LabelTokenError as error:  # of one of them
            if len(texts) == 1:
                return [error]
            return [result for text in texts for result in self._encode([text])]
        return [
            self._find_excess(text, len(ids)) or EncodedPrompt(text, ids)
            for text, ids in zip(texts, encoded, strict=True)
        ]

    def _find_excess(self, prompt: str, tokens: int) -> PromptTooLongError | None:
        where = f"prompt {prompt[:60]!r}…"
        positions = self.engine.max_prompt_tokens
        if positions is not None and tokens > positions:
            return PromptTooLongError(
                f"{where}: {tokens} tokens; at most the model's {positions} positions are required"
            )
        answered = tokens + 1 + len(self.encoder.labels.closing_ids)
        if self.recipe.sequence_len is not None and answered > self.recipe.sequence_len:
            return PromptTooLongError(
                f"{where}: {answered} tokens with its answer; at most the {self.recipe.sequence_len} of sequence_len "
                f"in {CARD_NAME} are required, because longer ones were dropped in training"
            )
        return None

    def _warn_of_label_mass(self, orders: Sequence[OrderedComparison]) -> None:
        lowest = min((order.label_mass for order in orders), default=1.0)
        if lowest < _LOW_LABEL_MASS and not self._warned_of_label_mass:
            self._warned_of_label_mass = True
            logger.warning(
                "the labels A and B hold only %.3f of the probability: an untrained model, or not the format it was "
                "trained with",
                lowest,
            )


def render_both_orders(messages: str | Sequence[Message], first: str, second: str) -> tuple[str, str]:
    """Return the prompts with the first response in slot A and in slot B.

    Raises:
        DataError: a message or response is not what the format holds.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence):
        raise DataError(f"comparison: not_messages: {type(messages).__name__}; text or a list of messages is required")
    for name, response in (("first", first), ("second", second)):
        try:
            check_answered(f"the {name} conversation", [*messages, {"role": "assistant", "content": response}])
        except RowProblem as problem:
            raise DataError(
                f"comparison: {problem}; an optional system message, user and assistant in turn up to a user message, "
                "and two responses that are not empty are required"
            ) from problem
    context = render_context([{"role": m["role"], "content": neutralise(m["content"])} for m in messages])
    first, second = neutralise(first), neutralise(second)
    return render_prompt(context, first, second), render_prompt(context, second, first)


def can_be_rendered(messages: str | Sequence[Message], response: str) -> bool:
    """Return whether a response to a conversation is what the format holds."""
    try:
        render_both_orders(messages, response, response)
    except DataError:
        return False
    return True


def compare_logprobs(
    logprobs: np.ndarray, prompt_tokens: tuple[int, int] = (0, 0), temperature: float = 1.0
) -> Comparison:
    """Return the comparison that the labels' log-probabilities in both orders make.

    Log-odds are divided by the temperature in each order, then the two probabilities are averaged.

    Args:
        logprobs: Natural-log probabilities of "A" and "B", shape (2, 2), the order with the first response in slot A
            first.
        prompt_tokens: To be carried along.
        temperature: Above 0.
    """
    assert logprobs.shape == (2, 2), logprobs.shape
    first_in_a, first_in_b = (
        _judge_order(order, tokens, temperature) for order, tokens in zip(logprobs, prompt_tokens, strict=True)
    )
    return _merge_orders(first_in_a, first_in_b)


def _check_finite(logprobs: np.ndarray, prompts: Sequence[EncodedPrompt]) -> None:
    defective = np.flatnonzero(~np.isfinite(logprobs).all(axis=1))
    if defective.size:
        index = int(defective[0])
        raise CheckpointError(
            f"prompt {prompts[index].text[:60]!r}…: the model gives the labels the log-probabilities "
            f"{logprobs[index].tolist()}; finite ones are required; its weights are damaged, or its numbers are "
            "beyond this dtype"
        )


def _judge_order(
    logprobs: np.ndarray, prompt_tokens: int, temperature: float, order_offset: float = 0.0
) -> OrderedComparison:
    log_odds_of_a = (float(logprobs[0] - logprobs[1]) - order_offset) / temperature
    return OrderedComparison(float(sigmoid(log_odds_of_a)), log_odds_of_a, float(np.exp(logprobs).sum()), prompt_tokens)


def _merge_orders(first_in_a: OrderedComparison, first_in_b: OrderedComparison) -> Comparison:
    in_a, in_b = first_in_a.prob_a, float(sigmoid(-first_in_b.log_odds_of_a))
    prob_first = (in_a + in_b) / 2
    return Comparison(
        prob_first_in_a=in_a,
        prob_first_in_b=in_b,
        prob_first=prob_first,
        position_gap=abs(in_a - in_b),
        is_position_consistent=_name_winner(in_a) == _name_winner(in_b),
        winner=_name_winner(prob_first),
        log_odds_of_a=(first_in_a.log_odds_of_a, first_in_b.log_odds_of_a),
        label_mass=min(first_in_a.label_mass, first_in_b.label_mass),
        prompt_tokens=(first_in_a.prompt_tokens, first_in_b.prompt_tokens),
    )


def _render_or_problem(item: Item) -> tuple[str, str] | DataError:
    try:
        return render_both_orders(*item)
    except DataError as problem:
        return problem


def _raise_first(results: list) -> list:
    """Return the results, none of which may be an error."""
    for result in results:
        if isinstance(result, PairPMError):
            raise result
    return results


def _name_winner(prob_first: float) -> str:
    if abs(prob_first - 0.5) <= TIE_TOLERANCE:
        return "tie"
    return "first" if prob_first > 0.5 else "second"


def _connect(urls: str, names: Sequence[str], encoder: PromptEncoder, recipe: Recipe, timeout_s: float | None):
    from pair_pm.engines.vllm_engine import DEFAULT_TIMEOUT_S, VLLMEngine
    from pair_pm.engines.vllm_server import describe_model

    timeout_s = DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s
    return VLLMEngine(urls, describe_model(names, encoder, recipe), timeout_s)


def _find_recipe(names: Sequence[str], encoder: PromptEncoder, find_file) -> Recipe:
    for name in names:
        path = find_file(name, CARD_NAME)
        if path is not None:
            recipe = read_recipe(path, encoder)
            # What the base gave the probes says nothing of the adapter on it.
            return recipe if name == names[0] else replace(recipe, probe_logprobs=None)
    logger.warning("%s: no %s, so nothing says how it was trained; labels were found by probing", names[0], CARD_NAME)
    return Recipe()
