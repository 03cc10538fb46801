"""Rewards for OpenRLHF, asked for with the bytes that its client sends, from a real server."""

import asyncio

import httpx
import pytest
from conftest import CHATML, make_small_tokenizer
from openrlhf_client import OpenRLHFClient, make_query
from service_process import run_service
from tiny_models import save_tiny_checkpoint

from pair_pm import PairScorer
from pair_pm.reference_reward import LEAST_REWARD, reward_of_comparison

KEY = "a-key-of-the-tests-only"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Name a prime."},
]
REFERENCE = "7 is one."


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A policy's tokenizer, with another template than the judge's."""
    tokenizer = make_small_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|im_end|>"}
    )
    tokenizer.chat_template = CHATML
    folder = tmp_path_factory.mktemp("policy")
    tokenizer.save_pretrained(folder)
    return tokenizer, folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("judge") / "judge")


@pytest.fixture(scope="module")
def process(checkpoint, policy, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "log"
    options = ("--policy-template", str(policy[1]), "--max-messages", "8")
    with run_service(checkpoint, log, *options, api_key=KEY) as process:
        yield process


@pytest.fixture(scope="module")
def url(process):
    return process.url.replace("http://", f"http://openrlhf:{KEY}@") + "/get_reward"


def render(tokenizer, messages) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def ask(url: str, policy, response: str, label=REFERENCE, messages=MESSAGES) -> dict:
    """Return the tensors that a rollout worker makes of the answer for one sample."""
    tokenizer = policy[0]
    ids = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    client = OpenRLHFClient([url], tries=1)
    return asyncio.run(client.reward_sample(tokenizer, render(tokenizer, messages), ids, label))


def post(url: str, body: dict) -> httpx.Response:
    return httpx.post(url, json=body, timeout=60)


def test_reward_is_the_log_odds_of_beating_the_reference(url, policy, checkpoint):
    scorer = PairScorer.from_pretrained(str(checkpoint))
    for response in ("Nine.", "I would say 7, and 11 and 13."):
        expected = scorer.compare(MESSAGES, response, REFERENCE)
        answer = ask(url, policy, response)
        assert float(answer["rewards"]) == pytest.approx(reward_of_comparison(expected), abs=1e-4)
        assert float(answer["scores"]) == pytest.approx(expected.prob_first, abs=1e-5)
        assert float(answer["position_gap"]) == pytest.approx(expected.position_gap, abs=1e-5)


def test_reference_itself_is_a_tie_and_nothing_said_a_certain_loss(url, policy):
    assert float(ask(url, policy, REFERENCE)["rewards"]) == 0
    assert float(ask(url, policy, "")["rewards"]) == pytest.approx(LEAST_REWARD)


def test_empty_lists_that_the_client_sends_to_its_other_servers_are_answered(url, policy):
    tokenizer = policy[0]
    client = OpenRLHFClient([url, url, url], sends_empty_lists=True, tries=1)
    prompt = render(tokenizer, MESSAGES)
    query = make_query(tokenizer, prompt, tokenizer("Nine.", add_special_tokens=False)["input_ids"])
    first, *others = asyncio.run(client.fetch_rewards([query], [prompt], [REFERENCE]))
    assert len(first["rewards"]) == len(first["scores"]) == 1
    assert others == [{"rewards": [], "scores": [], "extra_logs": {"position_gap": [], "label_mass": []}}] * 2


def test_batch_of_queries_has_a_reward_each(url, policy):
    prompt = render(policy[0], MESSAGES)
    responses = ["Nine.", REFERENCE, "", "11"]
    body = {"query": [prompt + text for text in responses], "prompts": [prompt] * 4, "labels": [REFERENCE] * 4}
    together = post(url, body).json()["rewards"]
    alone = [
        post(url, {name: values[place : place + 1] for name, values in body.items()}).json()["rewards"][0]
        for place in range(4)
    ]
    assert together == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "status", "kind", "where", "says"),
    [
        ({"query": ["another text"]}, 422, "malformed", "query.0", "begin"),
        ({"prompts": ["never rendered"], "query": ["never rendered 7"]}, 422, "malformed", "query.0", "template"),
        ({"labels": []}, 400, "invalid_data", "labels.0", "reference answer"),
        ({"labels": [""]}, 400, "invalid_data", "labels.0", "/v1/rewards"),
        ({"labels": [7]}, 400, "invalid_data", "labels.0", "reference answer"),
        ({"prompts": []}, 422, "malformed", "prompts", "as many"),
        ({"labels": ["a", "b"]}, 422, "malformed", "labels", "as many"),
        ({"query": "a string"}, 422, "malformed", "query", "list"),
    ],
)
def test_what_cannot_be_read_is_refused_and_logged_without_its_text(
    process, url, policy, change, status, kind, where, says
):
    prompt = render(policy[0], MESSAGES)
    answer = post(url, {"query": [prompt + "7"], "prompts": [prompt], "labels": [REFERENCE], **change})
    assert (answer.status_code, answer.json()["type"], answer.json()["where"]) == (status, kind, where), answer.text
    assert says in answer.text
    log = process.log.read_text()
    assert "never rendered" not in log
    if where != "query":  # that one is no request of the client at all
        assert f"/get_reward: {status} {kind}, {where}" in log


def test_without_a_policy_the_way_is_said(checkpoint, tmp_path, policy):
    with run_service(checkpoint, tmp_path / "log") as process:
        body = {"query": ["a"], "prompts": ["a"], "labels": ["a"]}
        answer = post(f"{process.url}/get_reward", body)
        assert (answer.status_code, answer.json()["type"]) == (400, "invalid_option")
        assert "--policy-template" in answer.text
        assert post(f"{process.url}/get_reward", {"query": [], "prompts": [], "labels": []}).status_code == 200
