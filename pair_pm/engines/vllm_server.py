"""One vLLM server: what it is asked, what it may answer, and whether it serves the model that is meant.

Its OpenAI-compatible API takes token ids and returns the raw log-probabilities of chosen tokens. Ids, because a
string would get a second BOS; `logprob_token_ids`, because the most likely tokens may lack a label.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from pair_pm.errors import EngineError
from pair_pm.recipe import CARD_NAME, Recipe, are_of_same_weights
from pair_pm.tokens import PROBE_PROMPTS, PromptEncoder, render_chat

COMPLETIONS = "/v1/completions"
API_KEY_VARIABLE = "PAIR_PM_ENGINE_API_KEY"
_TRANSIENT = {408, 425, 429}
_SIGN_OF_LIFE_S = 4.0  # to connect, and to say what is served, which waits for no prompt
_IDLE_S = 2.0  # below the 5 s after which the server closes an idle connection, so that none is used as it closes
_LONGEST_EXCERPT = 300


class ServerFault(Exception):
    """What a server may recover from: no connection, no answer in time, or an answer that says it is overloaded."""


@dataclass(frozen=True)
class ExpectedModel:
    """What a server must serve, by the local folder and its card.

    Attributes:
        names: Folder or hub name of the adapter, where there is one, and of the model.
        label_ids: The ids of "A" and "B".
        probes: Whole conversations as text.
        probe_ids: What they encode to.
        probe_prompts: The ids before their labels.
        probe_logprobs: What the card says that the labels' log-probabilities are there, shape (probes, 2); None where
            it does not say.
        longest_prompt: Tokens of the longest prompt that it was trained for; None where nobody said.
    """

    names: tuple[str, ...]
    label_ids: tuple[int, int]
    probes: tuple[str, ...]
    probe_ids: tuple[list[int], ...]
    probe_prompts: tuple[list[int], ...]
    probe_logprobs: np.ndarray | None
    longest_prompt: int | None


def describe_model(names: Sequence[str], encoder: PromptEncoder, recipe: Recipe) -> ExpectedModel:
    """Return what a server of a local model must serve."""
    probes = tuple(render_chat(encoder.tokenizer, prompt, "A") for prompt in PROBE_PROMPTS)
    label = 1 + len(encoder.labels.closing_ids)
    return ExpectedModel(
        names=tuple(names),
        label_ids=encoder.labels.label_ids,
        probes=probes,
        probe_ids=tuple(encoder.tokenizer(list(probes), add_special_tokens=False)["input_ids"]),
        probe_prompts=tuple(encoder.encode(PROBE_PROMPTS)),
        probe_logprobs=None if recipe.probe_logprobs is None else np.array(recipe.probe_logprobs),
        longest_prompt=None if recipe.sequence_len is None else recipe.sequence_len - label,
    )


def ask_for_labels(model: str, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> dict:
    """Return the question to `COMPLETIONS` that the labels' log-probabilities after prompts are the answer to."""
    return {
        "model": model,
        "prompt": [list(prompt) for prompt in prompts],
        "max_tokens": 1,
        "temperature": 0,
        "repetition_penalty": 1,  # a model's generation_config.json may set another
        "logprobs": 1,
        "logprob_token_ids": list(label_ids),
        "return_tokens_as_token_ids": True,
    }


class VLLMServer:
    """Asks one server; safe to use from several threads.

    Args:
        url: Its address, with or without the closing /v1.
        expected: What it must serve.
        request_timeout_s: How long an answer may take that the model computes.
    """

    def __init__(self, url: str, expected: ExpectedModel, request_timeout_s: float):
        self.url = url.rstrip("/").removesuffix("/v1")
        self.max_prompt_tokens = 0
        self._expected = expected
        self._model = ""
        key = os.environ.get(API_KEY_VARIABLE)
        self._sign_of_life_s = min(_SIGN_OF_LIFE_S, request_timeout_s)
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(request_timeout_s, connect=_SIGN_OF_LIFE_S),
            limits=httpx.Limits(keepalive_expiry=_IDLE_S),
        )

    def check(self) -> np.ndarray:
        """Find the model that is served, refuse another one, and return the labels' log-probabilities at the probes.

        Raises:
            ServerFault: it does not answer now.
            EngineError: it serves another model or too short prompts, or is too old.
        """
        card = self._choose_model(self._ask("GET", "/v1/models", timeout_s=self._sign_of_life_s))
        self._model = card["id"]
        self._check_length(card["max_model_len"])
        self._check_tokenizer()
        found = self.label_logprobs(self._expected.probe_prompts)
        if self._expected.probe_logprobs is not None:
            self.compare_probes(found, self._expected.probe_logprobs, f"the {CARD_NAME} of {self._expected.names[0]}")
        return found

    def label_logprobs(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the natural-log probabilities of "A" and "B" as next token, float64, shape (prompts, 2).

        Raises:
            ServerFault: it does not answer now.
            EngineError: it answers something else.
        """
        answer = self._ask("POST", COMPLETIONS, ask_for_labels(self._model, prompts, self._expected.label_ids))
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            tables = [choice["logprobs"]["top_logprobs"][0] for choice in choices]
        except (KeyError, TypeError, IndexError) as error:
            raise self._refuse(f"answered without log-probabilities ({excerpt(answer)})", "a vLLM server is") from error
        if [choice["index"] for choice in choices] != list(range(len(prompts))):
            raise self._refuse(f"gave {len(choices)} answers to {len(prompts)} prompts", "one for each is")
        return self._read_labels(tables)

    def compare_probes(self, found: np.ndarray, known: np.ndarray, source: str) -> None:
        """Refuse a server whose probe log-probabilities are not those of the same weights.

        Raises:
            EngineError: with both.
        """
        if not are_of_same_weights(found.ravel(), known.ravel()):
            raise self._refuse(
                f"serves another model: after probe prompts it gives A and B the log-probabilities "
                f"{found.round(3).tolist()}, and {source} says {known.round(3).tolist()}",
                f"the model of {self._expected.names[0]} is",
            )

    def _choose_model(self, answer: dict) -> dict:
        try:
            cards = answer["data"]
            served = {card["id"]: card.get("root") for card in cards}
            lengths = [card["max_model_len"] for card in cards if card.get("max_model_len")]
        except (KeyError, TypeError) as error:
            raise self._refuse(f"lists its models as {excerpt(answer)}", "a vLLM server is") from error
        if not lengths:
            raise self._refuse("does not say its max_model_len", "a vLLM server is")
        own, *bases = [
            [model for model, root in served.items() if model == name or (root and _is_same_path(root, name))]
            for name in self._expected.names
        ]
        named = [*own, *(model for models in bases for model in models)]
        # A base can be the adapter merged into it, under the old name; only the weights tell.
        if named and not own and self._expected.probe_logprobs is None:
            raise self._refuse(
                f"serves {named[0]}, which is what the adapter {self._expected.names[0]} belongs to, and the adapter "
                "neither by its name nor by its folder",
                f"the adapter, or a {CARD_NAME} whose probe_logprobs tell that it is merged in, is",
                "start it with --enable-lora --lora-modules NAME=FOLDER",
            )
        if not named and len(set(served.values())) > 1:  # one model may have several names
            raise self._refuse(
                f"serves {', '.join(served)}, none of them by the name or folder {' or '.join(self._expected.names)}",
                "one model alone, or one of that name, is",
            )
        return {"id": (named or list(served))[0], "max_model_len": min(lengths)}

    def _check_length(self, max_model_len: int) -> None:
        self.max_prompt_tokens = max_model_len - 1  # the rest is the one token that it generates
        longest = self._expected.longest_prompt
        if longest is not None and self.max_prompt_tokens < longest:
            raise self._refuse(
                f"has a max_model_len of {max_model_len}",
                f"{longest + 1} is, for the longest prompt that {CARD_NAME} allows and its answer",
                f"start it with --max-model-len {longest + 1} or more",
            )

    def _check_tokenizer(self) -> None:
        for text, ids in zip(self._expected.probes, self._expected.probe_ids, strict=True):
            question = {"model": self._model, "prompt": text, "add_special_tokens": False}
            answer = self._ask("POST", "/tokenize", question, may_lack=True, timeout_s=self._sign_of_life_s)
            if answer is not None and answer.get("tokens") != ids:
                raise self._refuse(
                    f"serves another model: a probe conversation is the tokens {excerpt(answer.get('tokens'))} to it, "
                    f"and {excerpt(ids)} here",
                    f"the tokenizer of {self._expected.names[0]} is",
                )

    def _read_labels(self, tables: list[dict]) -> np.ndarray:
        keys = [f"token_id:{label}" for label in self._expected.label_ids]
        for table in tables:
            if not all(key in table for key in keys):
                raise self._refuse(
                    f"answered with the log-probabilities of {', '.join(table)}",
                    f"those of {' and '.join(keys)} are",
                    "it is too old to know logprob_token_ids: update vLLM (0.32.0 knows them)",
                )
        logprobs = np.array([[table[key] for key in keys] for table in tables], dtype=float).reshape(-1, 2)
        if not np.all(np.exp(logprobs).sum(axis=1) < 1.001):
            raise self._refuse(
                f"gave A and B the log-probabilities {logprobs.max(axis=0).tolist()}, more than all there is",
                "raw log-probabilities are",
                "start it without --logprobs-mode",
            )
        return logprobs

    def _ask(
        self,
        method: str,
        path: str,
        question: dict | None = None,
        may_lack: bool = False,
        timeout_s: float | None = None,
    ) -> dict | None:
        """Return an answer; None where the server, or what stands before it, need not have this path and does not."""
        timeout = httpx.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s
        try:
            answer = self._client.request(method, self.url + path, json=question, timeout=timeout)
        except httpx.RequestError as error:  # no connection, or an answer that is cut off or cannot be decoded
            raise ServerFault(f"{self.url}{path}: {str(error) or type(error).__name__}") from error
        status = answer.status_code
        if may_lack and status in (404, 405, 501):
            return None
        if status in _TRANSIENT or status >= 500:
            raise ServerFault(f"{self.url}{path}: answered {status} {excerpt(answer.text)}")
        if status in (401, 403):
            raise self._refuse(
                f"answered {status}", "an API key that it takes is", f"set {API_KEY_VARIABLE} in the environment"
            )
        if status != 200:
            raise self._refuse(f"answered {path} with {status} {excerpt(answer.text)}", "200 is")
        try:
            return answer.json()
        except ValueError as error:
            raise self._refuse(f"answered {path} with {excerpt(answer.text)}", "JSON of a vLLM server is") from error

    def _refuse(self, found: str, required: str, advice: str = "") -> EngineError:
        return EngineError(f"{self.url}: {found}; {required} required{'; ' + advice if advice else ''}")


def _is_same_path(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def excerpt(found: object) -> str:
    """Return the beginning of something that a server said."""
    text = " ".join(str(found).split())
    return text if len(text) <= _LONGEST_EXCERPT else text[:_LONGEST_EXCERPT] + "…"
