"""The HTTP API against the library itself: the same numbers, typed errors, limits, and what requests may cost."""

import json
import os
import re
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from conftest import make_small_tokenizer
from service_process import run_service
from service_thread import GatedEngine, serve_in_thread, wait_until
from tiny_models import save_tiny_checkpoint

from pair_pm import PairScorer
from pair_pm.errors import ConfigError, EngineError
from pair_pm.recipe import Recipe, write_recipe
from pair_pm.rewards import GroupReward
from pair_pm.serving.app import create_app
from pair_pm.serving.server import open_socket, run
from pair_pm.serving.settings import Limits, Settings
from pair_pm.tokens import PromptEncoder

KEY = "a-key-of-the-tests-only"
BODY = {"prompt": "What is 2 + 2?", "responses": ["4.", "Who knows."]}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Name a prime."},
]
CLOSE = {"abs": 1e-5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("service") / "judge")
    write_recipe(folder, PromptEncoder(make_small_tokenizer()), Recipe(sequence_len=300))
    return folder


@pytest.fixture(scope="module")
def scorer(checkpoint):
    return PairScorer.from_pretrained(str(checkpoint))


@pytest.fixture(scope="module")
def process(checkpoint, tmp_path_factory):
    """One real server process, with a key, for what needs no other settings."""
    log = tmp_path_factory.mktemp("service") / "log"
    options = ["--max-responses", "8", "--max-messages", "5", "--max-pairs", "4", "--max-body-bytes", "20000"]
    options += ["--max-request-tokens", "5000", "--allow-origin", "https://lab.example"]
    with run_service(checkpoint, log, *options, api_key=KEY) as process:
        yield process


@pytest.fixture(scope="module")
def client(process):
    with httpx.Client(base_url=process.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


@pytest.fixture
def gated(scorer):
    """A scorer whose engine the test holds up."""
    gated = PairScorer(GatedEngine(scorer.engine), scorer.encoder, scorer.recipe)
    yield gated
    gated.engine.gate.set()


def assert_problem(answer: httpx.Response, status: int, kind: str, says: str = "") -> None:
    assert (answer.status_code, answer.json()["type"]) == (status, kind), answer.text
    assert set(answer.json()) == {"type", "message", "where"}
    assert says in answer.text


# ---- the same numbers as the library --------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [{"prompt": "Name a prime."}, {"messages": MESSAGES}])
def test_comparison_is_the_scorers(client, scorer, context):
    answer = client.post("/v1/compare", json={**context, "responses": ["7", "9, of course"]}).json()
    expected = scorer.compare(context.get("prompt") or MESSAGES, "7", "9, of course").to_dict()
    assert answer.pop("model") == "judge"
    assert answer.pop("tokens") == sum(expected["prompt_tokens"])
    assert answer.pop("winner") == expected.pop("winner")
    for name, value in expected.items():
        assert answer[name] == pytest.approx(value, **CLOSE), name
    assert set(answer) == set(expected)


def test_batch_has_a_verdict_or_an_error_for_each_comparison(client, scorer):
    bad = {"prompt": "Empty?", "responses": ["", "no"]}
    long = {"prompt": "Long?", "responses": ["yes " * 300, "no"]}
    answer = client.post("/v1/compare/batch", json={"comparisons": [BODY, bad, long, BODY]}).json()
    first, empty, overlong, again = answer["results"]
    expected = scorer.compare(BODY["prompt"], *BODY["responses"])
    assert first == again
    assert first["prob_first"] == pytest.approx(expected.prob_first, **CLOSE)
    assert (empty["error"]["type"], empty["error"]["where"]) == ("invalid_data", "comparisons.1.responses.0")
    assert (overlong["error"]["type"], overlong["error"]["where"]) == ("prompt_too_long", "comparisons.2")
    assert answer["tokens"] == 2 * sum(expected.prompt_tokens)


@pytest.mark.parametrize(
    "options", [{}, {"method": "chordal", "budget": 20, "seed": 3}, {"method": "swiss", "orders": "both"}]
)
def test_ranking_is_the_scorers(client, scorer, options):
    responses = ["one", "two", "three", "four", "two"]
    answer = client.post("/v1/rank", json={"messages": MESSAGES, "responses": responses, **options}).json()
    expected = scorer.rank(MESSAGES, responses, **options)
    assert answer["order"] == expected.order
    assert answer["strengths"] == pytest.approx(expected.strengths, abs=1e-4)
    assert (answer["calls"], answer["comparisons"], answer["tokens"], answer["method"]) == (
        *(expected.calls, expected.comparisons, expected.tokens, expected.method),
    )
    assert len(answer["intervals"]) == 5


@pytest.mark.parametrize("method", ["circular", "knockout", "round_robin"])
def test_rewards_are_those_of_the_reward_function(client, scorer, method):
    groups = [
        {"prompt": "Name a prime.", "completions": ["7", "9", "", "eleven"]},
        {"messages": MESSAGES, "completions": ["2", "4", "2"]},
        {"prompt": "Alone?", "completions": ["yes"]},
    ]
    answer = client.post("/v1/rewards", json={"groups": groups, "method": method}).json()
    prompts = [group.get("prompt") or group["messages"] for group in groups for _ in group["completions"]]
    completions = [text for group in groups for text in group["completions"]]
    expected = GroupReward(scorer, method=method)(prompts, completions)
    assert [reward for group in answer["rewards"] for reward in group] == pytest.approx(expected, abs=1e-4)
    assert [len(group) for group in answer["rewards"]] == [4, 3, 1]
    assert answer["counts"]["unreadable_completions"] == answer["counts"]["lone_completions"] == 1


def test_two_groups_of_one_prompt_stay_two_groups(client):
    group = {"prompt": "Name a prime.", "completions": ["7", "9"]}
    both = client.post("/v1/rewards", json={"groups": [group, group]}).json()["rewards"]
    [alone] = client.post("/v1/rewards", json={"groups": [group]}).json()["rewards"]
    assert both == [pytest.approx(alone, **CLOSE)] * 2


def test_many_clients_at_once_get_their_own_verdicts(client, scorer, process):
    pairs = [(f"Question {number}?", f"answer {number}", "no " * (number % 7 + 1)) for number in range(60)]
    expected = [comparison.prob_first for comparison in scorer.compare_many(pairs)]

    def ask(pair) -> float:
        body = {"prompt": pair[0], "responses": pair[1:]}
        answer = httpx.post(f"{process.url}/v1/compare", json=body, headers=client.headers, timeout=60)
        return answer.json()["prob_first"]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, pairs)) == pytest.approx(expected, **CLOSE)


# ---- what it says of itself -----------------------------------------------------------------------------------------


def test_model_shows_its_card_and_the_limits(client, checkpoint):
    answer = client.get("/v1/model").json()
    card = json.loads((checkpoint / "pair_pm.json").read_text())
    card.pop("digest")
    assert answer["card"] == card
    assert answer["model"] == "judge"
    assert "transformers" in answer["versions"]
    assert answer["limits"]["responses"] == 8


def test_alive_ready_and_documented_without_a_key(process):
    assert httpx.get(f"{process.url}/health").json() == {"status": "alive"}
    assert httpx.get(f"{process.url}/ready").json() == {"status": "ready"}
    assert "swagger" in httpx.get(f"{process.url}/docs").text
    assert "/v1/compare" in httpx.get(f"{process.url}/openapi.json").json()["paths"]


def test_examples_of_the_document_work_when_pasted(client):
    document = client.get("/openapi.json").json()
    tried = 0
    for path, methods in document["paths"].items():
        if "post" not in methods:
            continue
        reference = methods["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        for example in document["components"]["schemas"][reference.rpartition("/")[2]]["examples"]:
            if path != "/get_reward":  # it needs a policy's template
                assert client.post(path, json=example).status_code == 200, path
                tried += 1
    assert tried >= 5


def test_metrics_count_pairs_batches_and_how_the_verdicts_lie(client):
    def read() -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    before = read()
    tokens = client.post("/v1/compare", json=BODY).json()["tokens"]
    client.post("/v1/rank", json={"prompt": "Q", "responses": ["a", "b", "c"]})
    ordered = client.post("/v1/rank", json={"prompt": "Q", "responses": ["a", "b"], "method": "circular"}).json()
    after = read()
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown['pair_pm_pairs_total{orders="both"}'] == 1 + 3
    assert grown['pair_pm_pairs_total{orders="one"}'] == ordered["comparisons"]
    assert grown["pair_pm_position_gap_count"] == 4
    assert grown["pair_pm_label_mass_count"] == 4 + ordered["comparisons"]
    assert grown["pair_pm_tokens_total"] > tokens
    assert 0 < grown["pair_pm_prefix_tokens_saved_total"] < grown["pair_pm_tokens_total"]
    assert grown['pair_pm_requests_total{path="/v1/rank",status="200"}'] == 2
    assert grown['pair_pm_request_seconds_count{path="/v1/compare"}'] == 1
    assert grown["pair_pm_batch_prompts_count"] >= 3
    assert after["pair_pm_queue_prompts"] == after["pair_pm_requests_under_way"] == 0


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "where"),
    [
        ("/v1/compare", {**BODY, "responses": ["4.", " "]}, 400, "invalid_data", "responses.1"),
        ("/v1/compare", {"messages": MESSAGES[:3], "responses": ["a", "b"]}, 400, "invalid_data", "messages"),
        ("/v1/rank", {"prompt": " ", "responses": ["a", "b"]}, 400, "invalid_data", "prompt"),
        ("/v1/rank", {"prompt": "Q", "responses": ["a", "b", ""]}, 400, "invalid_data", "responses.2"),
        ("/v1/compare", {**BODY, "responses": ["yes " * 300, "b"]}, 400, "prompt_too_long", ""),
        ("/v1/compare", {**BODY, "responses": ["a", "b", "c"]}, 422, "malformed", "responses"),
        ("/v1/compare", {**BODY, "responses": ["a", 7]}, 422, "malformed", "responses.1"),
        ("/v1/compare", {**BODY, "messages": MESSAGES}, 422, "malformed", ""),
        ("/v1/compare", {**BODY, "respnses": []}, 422, "malformed", "respnses"),
        ("/v1/compare", [], 422, "malformed", ""),
        ("/v1/compare/batch", {"comparisons": [BODY] * 5}, 413, "limit_exceeded", "comparisons"),
        ("/v1/rank", {"prompt": "Q", "responses": []}, 422, "malformed", "responses"),
        ("/v1/rank", {"prompt": "Q", "responses": list("abcdefghi")}, 413, "limit_exceeded", "responses"),
        ("/v1/rank", {"prompt": "Q", "responses": ["a", "b"], "method": "dice"}, 422, "malformed", "method"),
        ("/v1/rank", {"prompt": "Q", "responses": ["a", "b"], "budget": 9}, 400, "invalid_option", ""),
        ("/v1/rank", {"prompt": "Q", "responses": ["a", "b"], "budget": "9"}, 422, "malformed", "budget"),
        ("/v1/rank", {"prompt": "Q", "responses": ["words " * 15 + c for c in "abcdefgh"]}, 413, "limit_exceeded",
         "request"),
        ("/v1/compare", {"messages": MESSAGES * 2, "responses": ["a", "b"]}, 413, "limit_exceeded", "messages"),
        ("/v1/compare", {**BODY, "responses": ["a" * 30000, "b"]}, 413, "limit_exceeded", "body"),
        ("/v1/rewards", {"groups": [{"prompt": "Q", "completions": list("abcdefghi")}]}, 413, "limit_exceeded",
         "groups.0.completions"),
        ("/v1/nothing", {}, 404, "not_found", ""),
    ],
)  # fmt: skip
def test_bad_requests_are_named_typed_and_say_where(client, path, body, status, kind, where):
    answer = client.post(path, json=body)
    assert_problem(answer, status, kind)
    assert answer.json()["where"] == where


def test_what_is_no_json_is_malformed(client):
    headers = {"Content-Type": "application/json"}
    for content in (b"", b"{", b"\xff\xfe", b'{"prompt": NaN}', b"[" * 10_000, b"1" * 6000, b'{"prompt": "\\ud800"}'):
        answer = client.post("/v1/compare", content=content, headers=headers)
        assert_problem(answer, 422, "malformed")
    lone = b'{"prompt": "\\ud800", "responses": ["a", "b"]}'
    assert_problem(client.post("/v1/compare", content=lone, headers=headers), 400, "invalid_data", "surrogate")
    plain = client.post("/v1/compare", content=json.dumps(BODY), headers={"Content-Type": "text/plain"})
    assert_problem(plain, 415, "not_json")
    assert_problem(client.put("/v1/compare", json=BODY), 405, "method_not_allowed")


def test_length_of_a_body_without_a_declared_one_is_limited_too(client):
    answer = client.post(
        "/v1/compare", content=iter([b"{", b" " * 20_000, b"}"]), headers={"Content-Type": "application/json"}
    )
    assert_problem(answer, 413, "limit_exceeded", "--max-body-bytes")


def test_log_tells_requests_but_not_what_they_say(client, process):
    client.post("/v1/compare", json={"prompt": "secret question", "responses": ["secret one", "secret two"]})
    client.post("/v1/compare", json={"prompt": "secret question", "responses": ["secret one", ""]})
    client.post("/v1/x%0AINFO%20forged")
    log = process.log.read_text()
    assert re.search(r'POST "/v1/compare" 200 \d+ ms', log)
    assert "secret one" not in log
    assert "secret question" not in log
    assert KEY not in log
    assert "\nINFO forged" not in log


def test_log_shows_prompts_where_that_was_asked_for(scorer, caplog):
    with serve_in_thread(scorer, Settings("judge", log_prompts=True)) as served, caplog.at_level("INFO", "pair_pm"):
        served.client.post("/v1/compare", json=BODY)
    assert "What is 2 + 2?" in caplog.text


# ---- who may ask ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/model", "/metrics", "/v1/compare", "/v1/rank", "/v1/rewards", "/get_reward"])
def test_without_the_key_nothing_is_answered(process, path):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": "Basic ???"}):
        ask = httpx.get if path in ("/v1/model", "/metrics") else httpx.post
        assert_problem(ask(process.url + path, headers=headers), 401, "unauthorized")


def test_key_may_be_a_basic_password_for_clients_that_know_urls_alone(process):
    url = process.url.replace("http://", f"http://trainer:{KEY}@")
    assert httpx.post(f"{url}/v1/compare", json=BODY, timeout=60).status_code == 200


def test_key_is_not_in_the_process_list(process):
    shown = subprocess.run(["ps", "-o", "args=", "-p", str(process.process.pid)], capture_output=True, text=True)
    assert "serve_pair_rm.py" in shown.stdout
    assert KEY not in shown.stdout


def test_pages_of_named_origins_alone_may_ask(client):
    def allowed(origin: str) -> str | None:
        answer = client.post("/v1/compare", json=BODY, headers={"Origin": origin})
        return answer.headers.get("access-control-allow-origin")

    assert allowed("https://lab.example") == "https://lab.example"
    assert allowed("https://other.example") is None
    asks = {"Origin": "https://lab.example", "Access-Control-Request-Method": "POST"}
    asks["Access-Control-Request-Headers"] = "authorization,content-type"
    assert httpx.options(f"{client.base_url}/v1/compare", headers=asks).status_code == 200


def test_with_a_key_a_proxy_may_pass_its_own_name_on(client):
    assert client.post("/v1/compare", json=BODY, headers={"Host": "judge.example"}).status_code == 200


def test_page_of_another_name_that_points_here_is_refused(scorer):
    with serve_in_thread(scorer, Settings("judge")) as served:
        assert served.client.post("/v1/compare", json=BODY).status_code == 200
        rebound = served.client.post("/v1/compare", json=BODY, headers={"Host": "evil.example"})
        assert_problem(rebound, 421, "unknown_host")
        assert served.client.post("/v1/compare", json=BODY, headers={"Origin": "http://x"}).headers.get(
            "access-control-allow-origin"
        ) is None  # fmt: skip


# ---- many at once ---------------------------------------------------------------------------------------------------


def post_in_thread(served, path: str, body: dict) -> threading.Thread:
    """Send a request from a thread; its `answer` is there when it ends."""

    def post() -> None:
        thread.answer = httpx.post(f"http://127.0.0.1:{served.port}{path}", json=body, timeout=60)

    thread = threading.Thread(target=post)
    thread.start()
    return thread


def test_requests_that_wait_together_share_a_batch_and_its_prefixes(gated):
    with serve_in_thread(gated, Settings("judge")) as served:
        gated.engine.gate.clear()
        first = post_in_thread(served, "/v1/compare", BODY)
        wait_until(lambda: gated.engine.calls)
        others = [
            post_in_thread(served, "/v1/compare", {"messages": MESSAGES, "responses": [f"answer {n}", "no"]})
            for n in range(6)
        ]
        wait_until(lambda: served.service.measures.registry.get_sample_value("pair_pm_queue_prompts") == 12)
        gated.engine.gate.set()
        for thread in (first, *others):
            thread.join(30)
            assert thread.answer.status_code == 200
    assert [len(call) for call in gated.engine.calls] == [2, 12]


def test_more_requests_than_allowed_are_told_when_to_come_back(gated):
    with serve_in_thread(gated, Settings("judge", limits=Limits(requests=2))) as served:
        gated.engine.gate.clear()
        taken = [post_in_thread(served, "/v1/compare", BODY) for _ in range(2)]
        wait_until(lambda: served.service.under_way == 2)
        refused = served.client.post("/v1/compare", json=BODY)
        assert_problem(refused, 429, "too_many_requests", "--max-requests")
        assert int(refused.headers["Retry-After"]) >= 1
        assert served.client.get("/health").status_code == 200
        gated.engine.gate.set()
        for thread in taken:
            thread.join(30)
            assert thread.answer.status_code == 200
        assert served.client.post("/v1/compare", json=BODY).status_code == 200


@pytest.mark.parametrize("path", ["/v1/compare", "/v1/rank"])
def test_request_ends_at_its_deadline_and_leaves_nothing_behind(gated, path):
    with serve_in_thread(gated, Settings("judge", limits=Limits(request_timeout_s=0.3))) as served:
        gated.engine.gate.clear()
        held = post_in_thread(served, path, BODY)
        wait_until(lambda: gated.engine.calls)
        late = served.client.post(path, json={**BODY, "prompt": "Too late?"})
        assert_problem(late, 504, "deadline_exceeded")
        held.join(30)
        gated.engine.gate.set()
        wait_until(lambda: served.service.under_way == 0)
        assert served.client.post(path, json=BODY).status_code == 200
    late_ids = gated.encode_each([("Too late?", *BODY["responses"])])[0][0].ids
    assert tuple(late_ids) not in [prompt for call in gated.engine.calls for prompt in call]


@pytest.mark.parametrize("path", ["/v1/compare", "/v1/compare/batch", "/v1/rank", "/v1/rewards"])
def test_client_that_hangs_up_stops_costing(gated, path):
    with serve_in_thread(gated, Settings("judge")) as served:
        gated.engine.gate.clear()
        held = post_in_thread(served, "/v1/compare", BODY)
        wait_until(lambda: gated.engine.calls)
        texts = [f"response {number}" for number in range(20)]
        gone = {
            "/v1/compare": {"prompt": "Gone?", "responses": texts[:2]},
            "/v1/compare/batch": {"comparisons": [{"prompt": "Gone?", "responses": texts[:2]}]},
            "/v1/rank": {"prompt": "Gone?", "responses": texts},
            "/v1/rewards": {"groups": [{"prompt": "Gone?", "completions": texts}]},
        }[path]
        content = json.dumps(gone).encode()
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            value = served.service.measures.registry.get_sample_value
            wait_until(lambda: value("pair_pm_queue_prompts") > 0)
        wait_until(lambda: value("pair_pm_hang_ups_total") == 1)
        gated.engine.gate.set()
        held.join(30)
        served.client.post("/v1/compare", json=BODY)
        assert value("pair_pm_queue_prompts") == 0
    prompts = [prompt for call in gated.engine.calls for prompt in call]
    assert len(prompts) == 4  # the held pair and the last one


def test_long_ranking_does_not_starve_a_comparison(gated):
    gated.engine.max_batch_tokens = 2000
    with serve_in_thread(gated, Settings("judge")) as served:
        gated.engine.gate.clear()
        texts = [f"a response of several words, number {number}" for number in range(40)]
        ranking = post_in_thread(served, "/v1/rank", {"prompt": "Which?", "responses": texts, "resamples": 0})
        wait_until(lambda: gated.engine.calls)
        comparison = post_in_thread(served, "/v1/compare", BODY)
        depth = served.service.measures.registry.get_sample_value
        waiting = depth("pair_pm_queue_prompts")
        wait_until(lambda: depth("pair_pm_queue_prompts") == waiting + 2)
        gated.engine.gate.set()
        comparison.join(30)
        ranking.join(60)
        assert comparison.answer.status_code == ranking.answer.status_code == 200
    ids = tuple(gated.encode_each([(BODY["prompt"], *BODY["responses"])])[0][0].ids)
    assert [ids in call for call in gated.engine.calls].index(True) == 1
    assert len(gated.engine.calls) > 5


def test_busy_engine_is_ready_and_one_that_never_answered_is_not(gated, monkeypatch):
    monkeypatch.setattr("pair_pm.serving.service._PROBE_TIMEOUT_S", 0.2)
    monkeypatch.setattr("pair_pm.serving.service._PROBE_KEPT_S", 0.0)
    with serve_in_thread(gated, Settings("judge")) as served:
        gated.engine.gate.clear()
        assert_problem(served.client.get("/ready"), 503, "engine_unavailable")
        gated.engine.gate.set()
        assert served.client.post("/v1/compare", json=BODY).status_code == 200
        gated.engine.gate.clear()
        held = post_in_thread(served, "/v1/compare", BODY)
        wait_until(lambda: served.service.under_way == 1)
        assert served.client.get("/ready").status_code == 200
        gated.engine.gate.set()
        held.join(30)


def test_address_that_another_took_while_the_model_was_loaded_is_an_error(scorer):
    with open_socket("127.0.0.1", 0, has_key=False) as other:
        listener = open_socket("127.0.0.1", other.getsockname()[1], has_key=False)  # neither listens yet
        other.listen()
        with listener, pytest.raises(ConfigError, match=r"in use.*; an address that is free is required"):
            run(create_app(scorer, Settings("judge")), listener, 1.0, lambda: None)


def answer_with(scorer: PairScorer, change) -> PairScorer:
    """Return a scorer whose engine answers what a function makes of its answer."""

    class Changed(GatedEngine):
        def label_logprobs(self, prompts):
            return change(super().label_logprobs(prompts))

    return PairScorer(Changed(scorer.engine), scorer.encoder, scorer.recipe)


def test_damaged_weights_are_no_verdict(scorer):
    damaged = answer_with(scorer, lambda logprobs: logprobs * float("nan"))
    with serve_in_thread(damaged, Settings("judge")) as served:
        assert_problem(served.client.post("/v1/compare", json=BODY), 503, "engine_unavailable", "finite")
        assert_problem(served.client.get("/ready"), 503, "engine_unavailable")


def test_defect_is_a_typed_500_without_traceback_or_text_in_the_log(scorer, caplog):
    text = "what a client said"

    def fail(logprobs):
        raise RuntimeError(text)

    with serve_in_thread(answer_with(scorer, fail), Settings("judge")) as served, caplog.at_level("INFO", "pair_pm"):
        answer = served.client.post("/v1/compare", json=BODY)
        assert_problem(answer, 500, "internal")
        assert "Traceback" not in answer.text
    assert "RuntimeError" in caplog.text
    assert text not in caplog.text


def test_what_a_server_of_the_weights_refuses_is_for_the_log_alone(scorer, caplog):
    said = "http://weights:8000: answered /v1/completions with 400; 200 is required"

    def refuse(logprobs):
        raise EngineError(said)

    with serve_in_thread(answer_with(scorer, refuse), Settings("judge")) as served, caplog.at_level("INFO", "pair_pm"):
        answer = served.client.post("/v1/compare", json=BODY)
    assert_problem(answer, 503, "engine_unavailable")
    assert "weights:8000" not in answer.text
    assert said in caplog.text


def test_temperature_of_the_card_is_used(scorer):
    warm = PairScorer(scorer.engine, scorer.encoder, replace(scorer.recipe, temperature=3.0))
    with serve_in_thread(warm, Settings("judge")) as served:
        answer = served.client.post("/v1/compare", json=BODY).json()
    expected = warm.compare(BODY["prompt"], *BODY["responses"])
    assert answer["log_odds_of_a"] == pytest.approx(list(expected.log_odds_of_a), **CLOSE)
    assert os.environ.get("PAIR_PM_API_KEY") is None
