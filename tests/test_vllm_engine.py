"""The engine for vLLM servers, against a small HTTP server that answers in vLLM's form and fails on demand."""

import argparse
import json
import logging
import threading
import time

import numpy as np
import pytest
from conftest import make_small_tokenizer
from vllm_stand_in import StandIn, make_logprobs, run_stand_ins

import serve_pair_rm
from pair_pm import PairScorer
from pair_pm.command_line import add_model_arguments, identify_model
from pair_pm.engines import fleet, vllm_engine
from pair_pm.engines.vllm_engine import VLLMEngine
from pair_pm.engines.vllm_server import API_KEY_VARIABLE, describe_model
from pair_pm.errors import ConfigError, EngineError, PromptTooLongError
from pair_pm.recipe import Recipe, write_recipe
from pair_pm.tokens import PROBE_PROMPTS, PromptEncoder

# 200 different prompts in groups that share a beginning, and one of them twice.
PROMPTS = [[group, 5, 5, member] for member in range(10) for group in range(20)]
PROMPTS.append(PROMPTS[3])


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(make_small_tokenizer())


@pytest.fixture(scope="module")
def card(encoder) -> Recipe:
    """What the card of the weights "trained" says."""
    return Recipe(probe_logprobs=tuple(tuple(make_logprobs(ids)) for ids in encoder.encode(PROBE_PROMPTS)))


@pytest.fixture
def stand_in(encoder):
    with run_stand_ins(1, encoder.tokenizer) as [stand_in]:
        yield stand_in


@pytest.fixture
def pair(encoder):
    """Two servers, slow enough that both have requests under way."""
    with run_stand_ins(2, encoder.tokenizer, delay_s=0.01) as pair:
        yield pair


@pytest.fixture(autouse=True)
def short_rests(monkeypatch):
    monkeypatch.setattr(fleet, "_SHORTEST_REST_S", 0.05)
    monkeypatch.setattr(fleet, "_LONGEST_REST_S", 0.1)
    monkeypatch.setattr(vllm_engine, "PROMPTS_A_REQUEST", 10)


def connect(
    encoder, *stand_ins, recipe: Recipe | None = None, name: str = "judge", adapter="", **options
) -> VLLMEngine:
    urls = ",".join(stand_in.url for stand_in in stand_ins)
    names = [adapter, name] if adapter else [name]
    return VLLMEngine(urls, describe_model(names, encoder, recipe or Recipe()), **options)


def assert_answers(engine: VLLMEngine, prompts=PROMPTS) -> None:
    """Check that each prompt has the very numbers that the weights "trained" give it."""
    expected = np.array([make_logprobs(prompt) for prompt in prompts])
    np.testing.assert_array_equal(engine.label_logprobs(prompts), expected)


def sent(*stand_ins: StandIn) -> list[tuple[int, ...]]:
    """Return the prompts that servers answered, without those of the checks."""
    batches = [batch for stand_in in stand_ins for batch in stand_in.answered if len(batch[0]) == 4]
    return [tuple(prompt) for batch in batches for prompt in batch]


# ---- what is sent and what comes back -------------------------------------------------------------------------------


def test_each_prompt_gets_its_numbers_and_equal_ones_are_sent_once(encoder, stand_in):
    assert_answers(connect(encoder, stand_in))
    assert sorted(sent(stand_in)) == sorted(set(map(tuple, PROMPTS)))


def test_question_is_the_one_that_returns_both_labels(encoder, stand_in):
    connect(encoder, stand_in).label_logprobs([[1, 2, 3]])
    assert stand_in.questions[-1] == {
        "model": "judge",
        "prompt": [[1, 2, 3]],
        "max_tokens": 1,
        "temperature": 0,
        "repetition_penalty": 1,
        "logprobs": 1,
        "logprob_token_ids": list(encoder.labels.label_ids),
        "return_tokens_as_token_ids": True,
    }


def test_prompts_that_share_a_beginning_go_together(encoder, stand_in):
    connect(encoder, stand_in).label_logprobs(PROMPTS)
    for batch in stand_in.answered[1:]:
        assert len({prompt[0] for prompt in batch}) == 1


def test_no_prompts_ask_nothing(encoder, stand_in):
    engine = connect(encoder, stand_in)
    asked = len(stand_in.questions)
    assert engine.label_logprobs([]).shape == (0, 2)
    assert len(stand_in.questions) == asked


def test_requests_under_way_are_bounded(encoder, stand_in):
    together = threading.Barrier(8)
    stand_in.fault = lambda number: together.wait(60) and None if 1 <= number <= 8 else None
    connect(encoder, stand_in).label_logprobs(PROMPTS)
    assert stand_in.busiest == 8


def test_longest_prompt_leaves_room_for_the_answer_on_every_server(encoder, pair):
    pair[1].models = [{**pair[1].models[0], "max_model_len": 300}]
    assert connect(encoder, *pair).max_prompt_tokens == 299


def test_all_servers_share_the_work(encoder, pair):
    assert_answers(connect(encoder, *pair))
    assert all(sent(stand_in) for stand_in in pair)
    assert sorted(sent(*pair)) == sorted(set(map(tuple, PROMPTS)))


def test_calls_from_several_threads_get_their_own_answers(encoder, pair):
    engine, failures = connect(encoder, *pair), []

    def call(prompts) -> None:
        try:
            assert_answers(engine, prompts)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=call, args=(PROMPTS[start::3],)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert max(stand_in.busiest for stand_in in pair) <= 8  # of all calls together


# ---- servers that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [500, 503, 429, "drop", "cut", "garble"])
def test_failed_requests_are_sent_again_and_nothing_is_lost_or_answered_twice(encoder, pair, fault, caplog):
    engine = connect(encoder, *pair)
    pair[0].fault = lambda number: fault if number in (2, 3, 7) else None
    with caplog.at_level(logging.WARNING, "pair_pm"):
        assert_answers(engine)
    assert sorted(sent(*pair)) == sorted(set(map(tuple, PROMPTS)))
    assert any(pair[0].url in message for message in caplog.messages)


def test_only_server_is_waited_for_while_it_fails(encoder, stand_in):
    engine = connect(encoder, stand_in)
    stand_in.fault = lambda number: 503 if 3 <= number < 16 else None
    assert_answers(engine)
    assert sorted(sent(stand_in)) == sorted(set(map(tuple, PROMPTS)))


def test_server_that_is_killed_in_the_middle_leaves_its_share_to_the_other(encoder, pair):
    engine = connect(encoder, *pair)
    pair[0].fault = lambda number: threading.Thread(target=pair[0].kill).start() if number == 4 else None
    assert_answers(engine)
    assert_answers(engine, PROMPTS[:20])  # the next call knows that it is gone


def test_answers_that_have_come_do_not_wait_for_an_examination_that_hangs(encoder, pair):
    engine = connect(encoder, *pair)
    is_examined, call_returned, was_in_time = threading.Event(), threading.Event(), []

    def fail_then_hang(number):
        if number == 1:
            return 503
        if len(pair[0].questions[number]["prompt"][0]) != 4:  # the probes
            is_examined.set()
            was_in_time.append(call_returned.wait(20))
        else:
            is_examined.wait(20)
        return None

    pair[0].fault = fail_then_hang
    assert_answers(engine)
    call_returned.set()
    assert is_examined.is_set()
    assert False not in was_in_time


def test_server_that_comes_back_is_asked_again(encoder, stand_in):
    engine = connect(encoder, stand_in)
    port = stand_in.port
    stand_in.kill()
    restarted: list[StandIn] = []
    threading.Timer(0.3, lambda: restarted.append(StandIn(encoder.tokenizer, port))).start()
    assert_answers(engine)
    restarted[0].kill()


def test_server_that_comes_back_with_another_model_is_not_asked(encoder, pair, monkeypatch):
    monkeypatch.setattr(fleet, "_UNSEEN_S", 0.2)
    engine = connect(encoder, *pair)
    port = pair[0].port
    pair[0].kill()
    other = StandIn(encoder.tokenizer, port, weights="other")
    time.sleep(0.3)  # it was away while nobody asked it
    try:
        assert_answers(engine)
        assert_answers(engine)
        assert sent(other) == []
        assert other.answered  # it was looked at
    finally:
        other.kill()


def test_slow_answer_is_asked_of_another_server(encoder, pair):
    engine = connect(encoder, *pair, timeout_s=1.0)  # so that 0.2 s is slow
    pair[0].fault = lambda number: "hang" if number >= 1 else None
    assert_answers(engine)


def test_silence_of_all_servers_is_an_error_that_says_what_each_answered(encoder, pair):
    engine = connect(encoder, *pair, timeout_s=0.5)
    for stand_in in pair:
        stand_in.fault = lambda number: 500
    with pytest.raises(EngineError) as error:
        engine.label_logprobs(PROMPTS)
    for said in (*(stand_in.url for stand_in in pair), "answered 500", "EngineCore died", "--engine-timeout-s"):
        assert said in str(error.value)


def test_server_that_is_not_up_at_the_start_joins_when_it_is(encoder, pair, caplog):
    port = pair[0].port
    pair[0].kill()
    urls = f"http://127.0.0.1:{port},{pair[1].url}"
    engine = VLLMEngine(urls, describe_model(["judge"], encoder, Recipe()))
    assert f"127.0.0.1:{port}" in caplog.text
    late = StandIn(encoder.tokenizer, port)
    try:
        while not sent(late):
            assert_answers(engine)
    finally:
        late.kill()


# ---- servers that do not fit ----------------------------------------------------------------------------------------


def refuse(encoder, *stand_ins, **options) -> str:
    with pytest.raises(EngineError) as error:
        connect(encoder, *stand_ins, **options)
    assert sent(*stand_ins) == []
    assert "required" in str(error.value)
    return str(error.value)


def test_no_server_at_all_is_said_at_once(encoder, stand_in):
    stand_in.kill()
    message = refuse(encoder, stand_in)
    assert stand_in.url in message
    assert "/health" in message


def test_server_too_old_to_return_both_labels_is_refused(encoder, stand_in):
    stand_in.knows_logprob_token_ids = False
    message = refuse(encoder, stand_in)
    assert "too old" in message
    assert f"token_id:{encoder.labels.label_ids[1]}" in message


def test_other_weights_than_the_cards_are_refused(encoder, stand_in, card):
    connect(encoder, stand_in, recipe=card)
    stand_in.weights = "other"
    assert "serves another model" in refuse(encoder, stand_in, recipe=card)


def test_servers_with_different_weights_are_refused_without_a_card(encoder, pair):
    pair[1].weights = "other"
    message = refuse(encoder, *pair)
    assert "serves another model" in message
    assert all(stand_in.url in message for stand_in in pair)


def test_rounding_of_the_same_weights_is_accepted(encoder, stand_in, card):
    moved = tuple(tuple(1.04 * logprob for logprob in pair) for pair in card.probe_logprobs)
    connect(encoder, stand_in, recipe=Recipe(probe_logprobs=moved))


def test_another_tokenizer_is_refused(encoder, stand_in):
    stand_in.tokenizer = make_small_tokenizer(special_tokens=("<|im_end|>", "<|im_start|>"))
    assert "serves another model: a probe conversation" in refuse(encoder, stand_in)


def test_server_without_a_tokenizer_is_known_by_its_weights(encoder, stand_in, card):
    stand_in.tokenizer, stand_in.weights = None, "other"
    assert "serves another model" in refuse(encoder, stand_in, recipe=card)
    stand_in.weights = "trained"
    assert_answers(connect(encoder, stand_in, recipe=card))


def test_server_too_short_for_the_longest_trained_prompt_is_refused(encoder, stand_in):
    # The label takes one token of the sequence and the closing "<|im_end|>\n" two; the server's answer takes one.
    closing = len(encoder.labels.closing_ids)
    connect(encoder, stand_in, recipe=Recipe(sequence_len=1024 + closing))
    message = refuse(encoder, stand_in, recipe=Recipe(sequence_len=1025 + closing))
    assert "max_model_len of 1024" in message
    assert "--max-model-len 1025" in message


def test_api_key_comes_from_the_environment(encoder, stand_in, monkeypatch):
    stand_in.api_key = "secret"
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    assert API_KEY_VARIABLE in refuse(encoder, stand_in)
    monkeypatch.setenv(API_KEY_VARIABLE, "wrong")
    assert "wrong" not in refuse(encoder, stand_in)
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    assert_answers(connect(encoder, stand_in))


def test_of_several_served_models_the_named_one_is_asked(encoder, stand_in, tmp_path):
    base, adapter = {"id": "base", "root": "/models/base", "max_model_len": 512}, tmp_path / "adapter"
    stand_in.models = [base, {"id": "lora", "root": str(adapter), "parent": "base", "max_model_len": None}]
    message = refuse(encoder, stand_in)
    assert "base, lora" in message
    for name, model in (("lora", "lora"), (f"{adapter}/../adapter", "lora"), ("/models/base", "base")):
        assert connect(encoder, stand_in, name=name).max_prompt_tokens == 511
        assert stand_in.questions[-1]["model"] == model


def test_adapter_that_is_not_served_is_not_replaced_by_its_base(encoder, stand_in, card):
    message = refuse(encoder, stand_in, adapter="outputs/my-lora")
    assert "serves judge, which is what the adapter outputs/my-lora belongs to" in message
    assert "--lora-modules" in message
    # Merged into the base it goes by the base's name, and the card knows its weights.
    connect(encoder, stand_in, adapter="outputs/my-lora", recipe=card)
    stand_in.weights = "base"
    assert "serves another model" in refuse(encoder, stand_in, adapter="outputs/my-lora", recipe=card)
    stand_in.models = [*stand_in.models, {"id": "my-lora", "root": "outputs/my-lora", "max_model_len": None}]
    connect(encoder, stand_in, adapter="outputs/my-lora")
    assert stand_in.questions[-1]["model"] == "my-lora"


def test_several_names_of_one_model_are_one_model(encoder, stand_in):
    stand_in.models = [{**stand_in.models[0], "id": name} for name in ("one", "other")]
    connect(encoder, stand_in, name="elsewhere")
    assert stand_in.questions[-1]["model"] == "one"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"models": [{"id": "gpt", "root": None}]}, "max_model_len"),
        ({"models": "none"}, "lists its models as"),
        ({"fault": lambda number: 400}, "400"),
    ],
)
def test_server_of_another_kind_is_refused(encoder, stand_in, changes, says):
    vars(stand_in).update(changes)
    assert says in refuse(encoder, stand_in)


def test_logits_instead_of_log_probabilities_are_refused(encoder, stand_in, monkeypatch):
    monkeypatch.setattr("vllm_stand_in.make_logprobs", lambda prompt, weights: [3.5, 1.25])
    assert "--logprobs-mode" in refuse(encoder, stand_in)


def test_request_that_is_refused_ends_the_call(encoder, pair):
    engine = connect(encoder, *pair)
    pair[1].fault = lambda number: 400
    with pytest.raises(EngineError, match="400"):
        engine.label_logprobs(PROMPTS)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "", "ftp://host", "http://", "http://[", "http://a:x", "http://a:1,,http://b:2"]
)
def test_what_is_no_address_is_refused(encoder, url):
    with pytest.raises(ConfigError, match="http://host:port is required"):
        VLLMEngine(url, describe_model(["judge"], encoder, Recipe()))


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_timeout_must_be_a_time(encoder, timeout_s):
    with pytest.raises(ConfigError, match="above 0 is required"):
        VLLMEngine("http://127.0.0.1:1", describe_model(["judge"], encoder, Recipe()), timeout_s)


# ---- through the scorer and the scripts -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(encoder, card, tmp_path_factory):
    """A model's folder as a client has it: tokenizer, template and card, no weights."""
    folder = tmp_path_factory.mktemp("client")
    encoder.tokenizer.save_pretrained(folder)
    write_recipe(folder, encoder, Recipe(probe_logprobs=card.probe_logprobs, sequence_len=200, temperature=2.0))
    return folder


def test_scorer_needs_no_weights_beside_the_tokenizer(folder, stand_in, encoder):
    scorer = PairScorer.from_pretrained(str(folder), engine=stand_in.url)
    comparison = scorer.compare("What is 2 + 2?", "4.", "Who knows.")
    sent = [prompt for batch in stand_in.answered[1:] for prompt in batch]
    odds = sorted(-np.diff(make_logprobs(prompt))[0] / 2 for prompt in sent)  # the card's temperature is 2
    assert sorted(comparison.log_odds_of_a) == pytest.approx(odds)
    with pytest.raises(PromptTooLongError):
        scorer.compare("long " * 200, "4.", "Who knows.")
    assert scorer.rank("What is 2 + 2?", ["4.", "Who knows.", "5."]).comparisons == 3


def test_scorer_of_servers_takes_no_option_of_a_model_in_process(folder, stand_in):
    with pytest.raises(ConfigError, match="device, dtype: given with an engine"):
        PairScorer.from_pretrained(str(folder), engine=stand_in.url, dtype="float32", device="cpu")


def test_compare_on_the_command_line_asks_the_servers(folder, pair, capsys):
    urls = ",".join(stand_in.url for stand_in in pair)
    arguments = ["compare", "--model", str(folder), "--engine", urls, "--engine-timeout-s", "30"]
    arguments += ["--prompt", "What is 2 + 2?", "--response-a", "4.", "--response-b", "5."]
    assert serve_pair_rm.main(arguments) == 0
    assert '"winner"' in capsys.readouterr().out
    for stand_in in pair:
        stand_in.weights = "other"
    assert serve_pair_rm.main(arguments) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "serves another model" in err


def test_score_on_servers_writes_each_row_once_in_order_with_blocks_under_way_together(
    folder, pair, tmp_path, monkeypatch
):
    monkeypatch.setattr("pair_pm.score_file.ROWS_A_BLOCK", 5)
    rows = [{"prompt": f"Question {n}", "response_a": "a" * (1 + n % 7), "response_b": "b"} for n in range(33)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    urls, output = ",".join(stand_in.url for stand_in in pair), tmp_path / "out.jsonl"
    pair[0].fault = lambda number: 503 if number in (4, 9) else None
    arguments = ["score", "--model", str(folder), "--input", str(tmp_path / "in.jsonl"), "--output", str(output)]
    assert serve_pair_rm.main([*arguments, "--engine", urls]) == 0
    scored = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prompt"] for row in scored] == [row["prompt"] for row in rows]
    scorer = PairScorer.from_pretrained(str(folder), engine=urls)
    expected = scorer.compare_many([tuple(row.values()) for row in rows])
    assert [row["log_odds_of_a"] for row in scored] == [list(verdict.log_odds_of_a) for verdict in expected]


def test_run_goes_on_at_another_address(folder, pair, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pair_pm.score_file.ROWS_A_BLOCK", 5)
    rows = [{"prompt": f"Question {n}", "response_a": "yes", "response_b": "no"} for n in range(30)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    pair[0].fault = lambda number: (
        400 if number >= 6 else None
    )  # the checks, the fixed pairs and two blocks come before
    for stand_in, code in zip(pair, (1, 0), strict=True):
        arguments = ["score", "--model", str(folder), *files, "--engine", stand_in.url, "--resume"]
        assert serve_pair_rm.main(arguments) == code
    assert json.loads(capsys.readouterr().out)["resumed_at"] > 0


def test_what_a_resumed_run_must_repeat_of_a_model_is_not_where_it_runs():
    def identify(*options: str) -> dict:
        parser = argparse.ArgumentParser()
        add_model_arguments(parser)
        return identify_model(parser.parse_args(["--model", "judge", *options]))

    servers = ("--engine", "http://a:1,http://b:1", "--engine-timeout-s", "5")
    assert identify() == identify(*servers) == identify("--device", "cuda:1")
    for options in (
        ("--dtype", "bfloat16"),
        ("--adapter", "lora"),
        ("--temperature", "2"),
        ("--max-batch-tokens", "9"),
    ):
        assert identify(*options) != identify()
