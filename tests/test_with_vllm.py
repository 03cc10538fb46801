"""Real vLLM servers of the quickstart's model on the CPU; `make test-vllm` runs these."""

import json
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import ROOT
from service_process import run_service
from test_readme import VLLM_FLAGS
from vllm_process import VLLMProcess

import evaluate_pair_rm
import serve_pair_rm
from pair_pm import PairScorer
from pair_pm.engines.vllm_server import API_KEY_VARIABLE
from pair_pm.errors import EngineError, PromptTooLongError
from pair_pm.labelled_source import read_labelled_pairs
from pair_pm.recipe import CARD_NAME, read_recipe, write_recipe

PYTHON = os.environ.get("PAIR_PM_VLLM_PYTHON")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="PAIR_PM_VLLM_PYTHON names no interpreter with vLLM; make test-vllm makes one"
)
QUICKSTART = ROOT / "examples/quickstart"
MODEL, BASE_MODEL = QUICKSTART / "run/model", QUICKSTART / "run/prepared"
HELD_OUT = QUICKSTART / "data/heldout.jsonl"
TOLERANCE = 1e-4  # in log-odds, both in float32


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Two servers of the trained model, and one of its base model with a key and a short length, started together."""
    folder = tmp_path_factory.mktemp("vllm")
    servers = [
        VLLMProcess(PYTHON, MODEL, folder / "one.log", "--max-model-len", "1024"),
        VLLMProcess(PYTHON, MODEL, folder / "two.log", "--max-model-len", "1024", "--served-model-name", "judge"),
        VLLMProcess(PYTHON, BASE_MODEL, folder / "base.log", "--max-model-len", "256", api_key="secret"),
    ]
    try:
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.kill()


@pytest.fixture(scope="module")
def items():
    pairs = read_labelled_pairs(str(HELD_OUT)).pairs
    return [(pair.messages, pair.first, pair.second) for pair in pairs]


@pytest.fixture(scope="module")
def in_process(items):
    """What the same weights answer in this process."""
    scorer = PairScorer.from_pretrained(str(MODEL))
    return scorer.compare_many(items)


def largest_difference(found, expected) -> float:
    odds = [np.array([comparison.log_odds_of_a for comparison in comparisons]) for comparisons in (found, expected)]
    assert odds[0].shape == odds[1].shape
    return float(np.abs(odds[0] - odds[1]).max())


def run_main(capsys, main, *arguments) -> dict:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_vllm_flags_that_the_readme_shows_exist():
    program = (
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "print(*make_arg_parser(FlexibleArgumentParser())._option_string_actions)"
    )
    done = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=True)
    assert {f"--{flag}" for flag in VLLM_FLAGS} - set(done.stdout.split()) == set()


def test_500_pairs_agree_with_the_engine_in_process(servers, items, in_process):
    scorer = PairScorer.from_pretrained(str(MODEL), engine=servers[0].url)
    assert len(items) >= 500
    assert largest_difference(scorer.compare_many(items[:500]), in_process[:500]) < TOLERANCE
    assert scorer.engine.max_prompt_tokens == 1023


def test_two_servers_share_the_work_and_agree(servers, items, in_process):
    urls = ",".join(server.url for server in servers[:2])
    before = [server.count("prompt_tokens_total") for server in servers[:2]]
    scorer = PairScorer.from_pretrained(str(MODEL), engine=urls)
    assert largest_difference(scorer.compare_many(items), in_process) < TOLERANCE
    shares = [server.count("prompt_tokens_total") - known for server, known in zip(servers, before, strict=False)]
    assert min(shares) > sum(shares) / 10


def test_service_before_two_servers_spreads_the_load_of_its_clients(servers, items, in_process, tmp_path):
    before = [server.count("request_success_total") for server in servers[:2]]
    urls = ",".join(server.url for server in servers[:2])
    with run_service(MODEL, tmp_path / "log", "--engine", urls) as service, ThreadPoolExecutor(32) as pool:

        def ask(item) -> tuple[float, float]:
            body = {"messages": item[0], "responses": item[1:]}
            answer = httpx.post(f"{service.url}/v1/compare", json=body, timeout=60)
            assert answer.status_code == 200, answer.text
            return answer.json()["log_odds_of_a"]

        found = np.array(list(pool.map(ask, items[:256])))
        expected = np.array([comparison.log_odds_of_a for comparison in in_process[:256]])
        assert np.abs(found - expected).max() < TOLERANCE
        shares = [server.count("request_success_total") - known for server, known in zip(servers, before, strict=False)]
        assert sum(shares) >= 2 * 256  # examinations add their own
        # How much each gets is the operating system's choice here: it may leave one of them without a core for seconds,
        # and then the other takes what comes. tests/test_fleet.py has the shares of servers that are equally fast.
        assert min(shares) > 0
        assert httpx.get(f"{service.url}/ready").status_code == 200


def test_too_long_a_prompt_is_refused_without_a_server(servers):
    scorer = PairScorer.from_pretrained(str(MODEL), engine=servers[0].url)
    with pytest.raises(PromptTooLongError):
        scorer.compare("long " * 2000, "one", "other")


def test_commands_print_what_they_print_in_process(servers, capsys):
    question = ["--prompt", "How do I learn to swim?", "--response-a", "Take lessons.", "--response-b", "Shut up."]
    printed = [
        run_main(capsys, serve_pair_rm.main, "compare", "--model", MODEL, *question, *engine)
        for engine in ((), ("--engine", servers[0].url))
    ]
    assert printed[0].keys() == printed[1].keys()
    assert printed[0]["log_odds_of_a"] == pytest.approx(printed[1]["log_odds_of_a"], abs=TOLERANCE)
    data = ["--dataset", HELD_OUT]
    metrics = run_main(
        capsys, evaluate_pair_rm.main, "--model", MODEL, *data, "--engine", f"{servers[0].url},{servers[1].url}"
    )
    assert metrics["accuracy"] > 0.95
    assert metrics["pairs"] == 600


def test_ranking_is_the_one_in_process(servers, items):
    messages = items[0][0]
    responses = [response for item in items[:3] for response in item[1:]]
    rankings = [
        PairScorer.from_pretrained(str(MODEL), engine=engine).rank(messages, responses)
        for engine in (None, servers[0].url)
    ]
    assert rankings[0].order == rankings[1].order
    assert rankings[0].strengths == pytest.approx(rankings[1].strengths, abs=1e-3)


def test_servers_of_another_model_too_short_or_locked_are_refused(servers, tmp_path, monkeypatch):
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    with pytest.raises(EngineError, match=API_KEY_VARIABLE):
        PairScorer.from_pretrained(str(MODEL), engine=servers[2].url)
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    with pytest.raises(EngineError, match="--max-model-len 511 or more"):
        PairScorer.from_pretrained(str(MODEL), engine=servers[2].url)
    # A card that asks for less, so that only the weights tell: tokenizer and chat template are the same.
    model = Path(shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*")))
    encoder = PairScorer.from_pretrained(str(model)).encoder
    recipe = read_recipe(model / CARD_NAME, encoder)
    write_recipe(model, encoder, replace(recipe, sequence_len=128))
    with pytest.raises(EngineError, match="serves another model: after probe prompts"):
        PairScorer.from_pretrained(str(model), engine=servers[2].url)


def test_rank_of_a_file_is_the_one_in_process(servers, items, tmp_path, capsys):
    rows = [
        {"messages": messages, "responses": [first, second, "Maybe.", f"No: {first}"]}
        for messages, first, second in items[:5]
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    orders = []
    for engine in ((), ("--engine", servers[0].url)):
        capsys.readouterr()
        arguments = ["rank", "--model", str(MODEL), "--input", str(tmp_path / "samples.jsonl"), *engine]
        assert serve_pair_rm.main(arguments) == 0
        orders.append([json.loads(line)["order"] for line in capsys.readouterr().out.splitlines()])
    assert len(orders[0]) == 5
    assert orders[0] == orders[1]


def test_score_with_a_server_killed_in_the_middle_loses_no_row_and_repeats_none(servers, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(QUICKSTART)
    from conversations import draw_row

    lines = [json.dumps(draw_row(random.Random(seed), held_out=True)) for seed in range(2000)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "serve_pair_rm.py", "score", "--model", str(MODEL), "--input", f"{tmp_path}/pairs.jsonl"]
    command += ["--output", f"{tmp_path}/scored.jsonl", "--engine", f"{servers[0].url},{servers[1].url}"]
    before = servers[1].count("prompt_tokens_total")
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while servers[1].count("prompt_tokens_total") < before + 5000:  # of about 150,000
        assert run.poll() is None, run.communicate()
    servers[1].kill()
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, err
    assert servers[1].url in err  # so it had been asked
    summary = json.loads(out)
    assert (summary["rows"], summary["scored"], summary["errors"]) == (2000, 2000, {})
    rows = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["chosen"] for row in rows] == [json.loads(line)["chosen"] for line in lines]
    scorer = PairScorer.from_pretrained(str(MODEL))
    pairs = read_labelled_pairs(str(tmp_path / "pairs.jsonl")).pairs
    expected = scorer.compare_many([(pair.messages, pair.first, pair.second) for pair in pairs])
    differences = np.array([row["log_odds_of_a"] for row in rows]) - [verdict.log_odds_of_a for verdict in expected]
    assert np.abs(differences).max() < TOLERANCE
