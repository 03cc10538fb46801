"""The service as a process: how it starts, and how requests fare when it ends, dies, or loses its engine."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from conftest import ROOT, make_small_tokenizer
from service_process import run_service
from tiny_models import save_tiny_checkpoint
from vllm_stand_in import StandIn

import serve_pair_rm
from pair_pm import PairScorer
from pair_pm.engines.vllm_engine import REQUESTS_AT_ONCE
from pair_pm.recipe import Recipe, write_recipe
from pair_pm.tokens import PromptEncoder

KEY = "a-key-of-the-tests-only"
BODY = {"prompt": "What is 2 + 2?", "responses": ["4.", "Who knows."]}
# Some seconds of work: 4,032 prompts.
LONG = {"prompt": "Which?", "responses": [f"{'many words ' * 12}{n}" for n in range(64)], "resamples": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("server") / "judge")
    write_recipe(folder, PromptEncoder(make_small_tokenizer()), Recipe(sequence_len=300))
    return folder


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def fails_to_start(capsys, *options) -> str:
    """Return what is said on stderr, in one line, before any model is loaded."""
    assert serve_pair_rm.main(["serve", "--model", "no-such-folder", *map(str, options)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    return line


def post_in_thread(url: str, body: dict) -> threading.Thread:
    def post() -> None:
        thread.answer = httpx.post(url, json=body, timeout=120)

    thread = threading.Thread(target=post)
    thread.start()
    return thread


def wait_for_work(url: str) -> None:
    """Wait until a request is under way."""
    for _ in range(2000):
        if "pair_pm_requests_under_way 1.0" in httpx.get(f"{url}/metrics").text:
            return
        time.sleep(0.005)
    raise AssertionError("no request is under way")


def ask_with_retries(url: str, deadline_s: float = 90) -> dict:
    """Return the answer to `BODY`, as a client gets it that does what the README says."""
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        try:
            answer = httpx.post(f"{url}/v1/compare", json=BODY, timeout=30)
        except httpx.TransportError:
            time.sleep(0.2)
            continue
        if answer.status_code == 200:
            return answer.json()
        assert answer.status_code in (429, 503, 504), answer.text
        time.sleep(min(0.2, float(answer.headers.get("Retry-After", 1))))
    raise AssertionError("no answer")


# ---- how it starts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "some-machine"])
def test_address_that_others_reach_needs_a_key(capsys, monkeypatch, host):
    monkeypatch.delenv("PAIR_PM_API_KEY", raising=False)
    said = fails_to_start(capsys, "--host", host)
    assert f"--host {host}" in said
    assert "PAIR_PM_API_KEY" in said
    assert "--api-key-file" in said


def test_key_that_is_none_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PAIR_PM_API_KEY", "short")
    assert "at least 16" in fails_to_start(capsys)
    monkeypatch.delenv("PAIR_PM_API_KEY")
    assert "no such file" in fails_to_start(capsys, "--api-key-file", tmp_path / "none")
    for content in ("", "short\n", "sixteen characters ü"):
        (tmp_path / "key").write_text(content)
        assert "at least 16" in fails_to_start(capsys, "--api-key-file", tmp_path / "key")


def test_port_in_use_is_known_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Address already in use" in fails_to_start(capsys, "--port", taken.getsockname()[1])


def test_flags_that_make_no_sense_are_refused_in_under_a_second():
    for flags in (
        ["--max-pairs", "0"],
        ["--request-timeout-s", "nan"],
        ["--batch-window-ms", "-1"],
        ["--port", "70000"],
    ):
        done = subprocess.run(
            [sys.executable, str(ROOT / "serve_pair_rm.py"), "serve", "--model", "x", *flags],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert flags[0] in done.stderr


def test_key_of_a_file_opens_an_address_for_others(checkpoint, tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\nnot this\n")
    options = ("--host", "0.0.0.0", "--api-key-file", str(tmp_path / "key"))
    with run_service(checkpoint, tmp_path / "log", *options) as process:
        url = process.url.replace("0.0.0.0", "127.0.0.1")
        headers = {"Authorization": f"Bearer {KEY}", "Host": "judge.example"}
        assert httpx.post(f"{url}/v1/compare", json=BODY).status_code == 401
        assert httpx.post(f"{url}/v1/compare", json=BODY, headers=headers, timeout=60).status_code == 200


# ---- how it ends ----------------------------------------------------------------------------------------------------


def test_sigterm_finishes_what_was_taken_and_refuses_what_comes(checkpoint, tmp_path):
    with run_service(checkpoint, tmp_path / "log", "--max-request-tokens", "9000000") as service:
        ranking = post_in_thread(f"{service.url}/v1/rank", LONG)
        wait_for_work(service.url)
        service.process.send_signal(signal.SIGTERM)
        refused = []
        while service.process.poll() is None and ranking.is_alive():
            try:
                refused.append(httpx.post(f"{service.url}/v1/compare", json=BODY, timeout=10))
            except httpx.TransportError:
                break
            time.sleep(0.02)
        ranking.join(60)
        assert service.process.wait(30) == 0
    assert ranking.answer.status_code == 200
    assert len(ranking.answer.json()["order"]) == 64
    late = [answer for answer in refused if answer.status_code != 200]  # the signal may take a moment to arrive
    assert late
    assert {(answer.status_code, answer.json()["type"]) for answer in late} == {(503, "draining")}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in late)


def test_what_is_not_done_when_the_drain_ends_is_told_so(checkpoint, tmp_path):
    options = ("--max-request-tokens", "9000000", "--drain-timeout-s", "3")
    with run_service(checkpoint, tmp_path / "log", *options) as service:
        rankings = [post_in_thread(f"{service.url}/v1/rank", {**LONG, "seed": seed}) for seed in range(6)]
        time.sleep(0.5)
        started = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0
        took_s = time.monotonic() - started
        for ranking in rankings:
            ranking.join(30)
    answers = [ranking.answer for ranking in rankings]
    unfinished = [answer for answer in answers if answer.status_code != 200]
    assert unfinished
    assert {(answer.status_code, answer.json()["type"]) for answer in unfinished} == {(503, "draining")}
    assert took_s < 3 + 5  # the interpreter's own end, on a machine that may be busy


def test_work_for_clients_that_left_does_not_break_the_exit(checkpoint, tmp_path):
    options = ("--max-request-tokens", "9000000", "--max-batch-tokens", "9000000", "--request-timeout-s", "1")
    with run_service(checkpoint, tmp_path / "log", *options) as service:
        late = httpx.post(f"{service.url}/v1/rank", json=LONG, timeout=60)
        assert late.json()["type"] == "deadline_exceeded"
        service.process.send_signal(signal.SIGTERM)  # while its only batch, of seconds, is computed
        assert service.process.wait(30) == 0
    assert "terminate" not in service.log.read_text()


def test_servers_that_never_answer_do_not_hold_the_exit(checkpoint, tmp_path):
    server = StandIn(make_small_tokenizer())
    options = ("--engine", server.url, "--request-timeout-s", "1", "--drain-timeout-s", "3")
    with run_service(checkpoint, tmp_path / "log", *options) as service:
        server.fault = lambda number: "hang"
        assert httpx.post(f"{service.url}/v1/compare", json=BODY, timeout=60).status_code == 504
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0
    server.kill()


def test_client_that_hangs_up_has_nothing_more_sent_to_the_servers(checkpoint, tmp_path):
    server = StandIn(make_small_tokenizer())
    with run_service(checkpoint, tmp_path / "log", "--engine", server.url) as service:
        server.delay_s = 1.0
        comparisons = [{**BODY, "responses": [f"{number}.", "No."]} for number in range(1000)]  # over 60 requests
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{service.url}/v1/compare/batch", json={"comparisons": comparisons}, timeout=2.5)
        time.sleep(1.0)
        asked = len(server.questions)
        time.sleep(2.5)
        assert (server.busiest, len(server.questions)) == (REQUESTS_AT_ONCE, asked)
    server.kill()


def test_client_that_retries_sees_no_wrong_answer_when_the_service_is_killed(checkpoint, tmp_path):
    port = find_free_port()
    expected = PairScorer.from_pretrained(str(checkpoint)).compare(BODY["prompt"], *BODY["responses"]).prob_first
    url = f"http://127.0.0.1:{port}"
    answers: list[dict] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(ask_with_retries(url))

    with run_service(checkpoint, tmp_path / "first", "--port", str(port)) as service:
        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        while len(answers) < 20:
            time.sleep(0.01)
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait()
    before = len(answers)
    with run_service(checkpoint, tmp_path / "second", "--port", str(port)):
        while len(answers) < before + 20:
            time.sleep(0.01)
        stop.set()
        for client in clients:
            client.join(60)
    assert [answer["prob_first"] for answer in answers] == pytest.approx([expected] * len(answers), abs=1e-5)


# ---- without its engine ---------------------------------------------------------------------------------------------


def test_loss_of_the_servers_of_the_weights_is_503_until_they_are_back(checkpoint, tmp_path):
    tokenizer = make_small_tokenizer()
    server = StandIn(tokenizer)
    with run_service(checkpoint, tmp_path / "log", "--engine", server.url) as service:
        before = httpx.post(f"{service.url}/v1/compare", json=BODY, timeout=60).json()
        assert httpx.get(f"{service.url}/ready").status_code == 200
        server.kill()
        time.sleep(2.5)  # what was asked a moment ago is believed for so long
        for _ in range(3):
            started = time.monotonic()
            away = httpx.post(f"{service.url}/v1/compare", json=BODY, timeout=60)
            assert (away.status_code, away.json()["type"]) == (503, "engine_unavailable"), away.text
            assert int(away.headers["Retry-After"]) >= 1
            assert server.url not in away.text
            assert time.monotonic() - started < 15
        assert httpx.get(f"{service.url}/ready", timeout=30).status_code == 503
        assert httpx.get(f"{service.url}/health").status_code == 200
        server = StandIn(tokenizer, port=server.port)
        after = ask_with_retries(service.url)
        assert after == before
        assert httpx.get(f"{service.url}/ready", timeout=30).status_code == 200
    server.kill()
