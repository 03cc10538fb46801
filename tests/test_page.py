"""The page at /, in a real headless Chromium, before a real server of a tiny model."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from conftest import make_small_tokenizer
from headless_browser import open_browser
from service_process import run_service
from service_thread import serve_in_thread
from tiny_models import save_tiny_checkpoint

from pair_pm import PairScorer
from pair_pm.ranking import METHODS
from pair_pm.recipe import Recipe, write_recipe
from pair_pm.serving.settings import Settings
from pair_pm.tokens import PromptEncoder

pytestmark = pytest.mark.usefixtures("no_progress_bars")

KEY = "a-key-that-opens-it"
PROMPT = "What is 2 + 2?"
RESPONSES = ["4.", "Who knows?", "Four, I think.", "2 + 2 is 4.", "22"]
# What would leave the quotes of a shell or of JSON, be expanded, act on a terminal, or not be seen in one.
AWKWARD = "it's \"so\": $HOME `id` $(id) !! !1 \\ \\n %s {a,b} * ~\n\ttab 'one' ''two'' \x1b[31m \x7f 学 \u202e é 🙂 #x"
HOSTILE = (
    "<img src=x onerror=\"alert(1); window.ran = 1\"><script>window.ran = 1; alert(2)</script><b>bold</b>"
    "</textarea></pre><iframe src='http://127.0.0.1:9/'></iframe><style>body { display: none }</style>&lt;i&gt;"
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("page") / "tiny-judge")
    write_recipe(folder, PromptEncoder(make_small_tokenizer()), Recipe(sequence_len=1024))
    return folder


@pytest.fixture(scope="module")
def service(checkpoint, tmp_path_factory):
    with run_service(checkpoint, tmp_path_factory.mktemp("log") / "log", "--max-responses", "6") as service:
        yield service


@pytest.fixture(scope="module")
def locked(checkpoint):
    """Where a service is that asks for a key."""
    settings = Settings("tiny-judge", api_key=KEY)
    with serve_in_thread(PairScorer.from_pretrained(str(checkpoint)), settings) as service:
        yield f"http://127.0.0.1:{service.port}"


@pytest.fixture(scope="module")
def open_page(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as open_page:
        yield open_page


@pytest.fixture
def page(open_page, service):
    """The page; at the end of a test it has asked nobody but the service, and nothing has gone wrong in it."""
    page = open_page(f"{service.url}/")
    page.wait_for("model.textContent == 'Model tiny-judge'")
    yield page
    assert_calm(page, service.url)


def assert_calm(page, url):
    assert [asked for asked in page.requests if not asked.startswith((f"{url}/", "data:"))] == []
    # A refusal is said in the console too.
    assert [text for text in page.complaints if not text.startswith("Failed to load resource")] == []


def write_request(page, responses, prompt=PROMPT):
    while page.evaluate("responses.children.length") < len(responses):
        page.click("#add-response")
    page.write(".turn textarea", prompt)
    for number, text in enumerate(responses, 1):
        page.write(f".response:nth-child({number}) textarea", text)


def send(page, sign=".card"):
    """Press the button, and wait for what comes of it."""
    page.evaluate("results.replaceChildren()")
    page.click("#send")
    page.wait_for(f"document.querySelector('{sign}')")


def read_numbers(page, selector):
    """Return the exact numbers behind what is shown."""
    return page.evaluate(f"[...document.querySelectorAll('{selector} data')].map(data => Number(data.value))")


def read_text(page, selector):
    return page.evaluate(f"document.querySelector({selector!r}).textContent")


def run_curl(page, key=""):
    """Return the answer to the curl line that the page shows, pasted into a bash that expands history."""
    environment = {**os.environ, "PAIR_PM_API_KEY": key}
    script = f"set -o history -o histexpand\n{read_text(page, 'pre')}\n"
    done = subprocess.run(
        ["bash"], input=script, env=environment, capture_output=True, encoding="utf-8", timeout=60, check=True
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_two_responses_are_compared_and_both_orders_stand_side_by_side(page, service):
    write_request(page, RESPONSES[:2])
    send(page, ".comparison")
    answer = httpx.post(f"{service.url}/v1/compare", json={"prompt": PROMPT, "responses": RESPONSES[:2]}).json()
    mean, in_a, in_b = (answer[name] for name in ("prob_first", "prob_first_in_a", "prob_first_in_b"))
    assert answer["winner"] != "tie"
    assert read_numbers(page, "h2") == [max(mean, 1 - mean)]
    winner = {"first": "Response 1", "second": "Response 2"}[answer["winner"]]
    assert read_text(page, ".card h2").startswith(f"{winner} is better: ")
    assert read_numbers(page, ".order") == [mean, 1 - mean, in_a, 1 - in_a, in_b, 1 - in_b]
    assert read_numbers(page, ".facts") == [answer[name] for name in ("position_gap", "label_mass", "tokens")]
    widths = page.evaluate(
        "[...document.querySelectorAll('.bar')].map(bar => "
        "bar.firstChild.getBoundingClientRect().width / bar.getBoundingClientRect().width)"
    )
    assert widths == pytest.approx([mean, in_a, in_b], abs=0.01)
    warnings = page.evaluate("[...document.querySelectorAll('.warning')].length")
    assert warnings == (not answer["is_position_consistent"])


def test_five_responses_are_ranked_and_the_two_best_compared_on_request(page, service):
    write_request(page, RESPONSES)
    assert sorted(page.evaluate("[...method.options].map(option => option.value)")) == sorted(METHODS)
    assert page.evaluate("[...method.options].every(option => option.text.startsWith(option.value))")
    for method in ("round_robin", "chordal"):
        page.evaluate(f"method.value = '{method}'")
        send(page, ".ranking")
        request = {"prompt": PROMPT, "responses": RESPONSES, "method": method}
        answer = httpx.post(f"{service.url}/v1/rank", json=request).json()
        shown = page.evaluate("[...document.querySelectorAll('.ranking .excerpt')].map(e => e.textContent)")
        assert shown == [RESPONSES[index] for index in answer["order"]]
        assert read_numbers(page, ".ranking") == [answer["strengths"][index] for index in answer["order"]]
        assert page.evaluate("document.querySelectorAll('.warning').length") == len(answer["cycles"])
        assert run_curl(page) == answer
    best = [RESPONSES[index] for index in answer["order"][:2]]
    page.click(".card > button")
    page.wait_for("document.querySelector('.comparison')")
    compared = httpx.post(f"{service.url}/v1/compare", json={"prompt": PROMPT, "responses": best}).json()
    assert read_numbers(page, ".comparison .order")[0] == compared["prob_first"]
    assert read_text(page, ".comparison .order-head span").startswith("Both orders")
    assert f"Response {answer['order'][0] + 1} first, as A" in read_text(page, ".comparison")
    assert page.evaluate("document.querySelectorAll('.ranking').length") == 1


def test_a_conversation_has_turns_with_roles_and_boxes_come_and_go(page):
    write_request(page, RESPONSES[:3])
    assert read_text(page, "#send") == "Rank"
    page.click(".response:nth-child(2) button")
    assert read_text(page, "#send") == "Compare"
    assert page.evaluate("document.activeElement.ariaLabel") == "Response 2"
    assert not page.evaluate("[...document.querySelectorAll('.box button')].some(button => button.offsetParent)")
    for _ in range(2):
        page.click("#add-turn")
        page.evaluate("document.execCommand('insertText', false, document.activeElement.ariaLabel)")
    page.press("Enter", 13, ctrl=True)
    page.wait_for("document.querySelector('.comparison')")
    sent = json.loads(re.search(r"-d '(.*)'$", read_text(page, "pre"))[1])
    assert sent["responses"] == [RESPONSES[0], RESPONSES[2]]
    assert sent["messages"] == [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": "Turn 2"},
        {"role": "user", "content": "Turn 3"},
    ]


@pytest.mark.parametrize(
    ("row", "turns", "responses"),
    [
        ({"prompt": "a", "responses": ["b", "c", "d"]}, [["user", "a"]], ["b", "c", "d"]),
        (
            [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
            [["system", "s"], ["user", "a"]],
            ["", ""],
        ),
        (
            {
                "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}],
            },
            [["user", "a"]],
            ["b", "c"],
        ),
        (
            {"messages": [{"role": "user", "content": "a"}], "response_a": "b", "response_b": "c"},
            [["user", "a"]],
            ["b", "c"],
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, [["user", "a"]], ["b", "c"]),
        ({"prompt": "a", "responses": [1, 2]}, [["user", ""]], ["", ""]),
        ([{"role": "tool", "content": "a"}], [["user", ""]], ["", ""]),
        (None, [["user", ""]], ["", ""]),
    ],
)
def test_rows_of_data_fill_the_boxes_and_anything_else_leaves_them_alone(page, row, turns, responses):
    page.click("summary")
    page.write("#json", json.dumps(row))
    page.click("#fill")
    shown = page.evaluate(
        "[...turns.children].map(turn => ['select', 'textarea'].map(e => turn.querySelector(e).value))"
    )
    assert shown == turns
    texts = page.evaluate("[...responses.children].map(box => box.querySelector('textarea').value)")
    assert texts == responses
    assert ("is required" in read_text(page, "#json-note")) == (turns == [["user", ""]])


def test_errors_of_the_service_are_shown_with_their_message_and_where(page, service):
    write_request(page, ["4."])  # the other stays empty
    send(page, ".alarm")
    answer = httpx.post(f"{service.url}/v1/compare", json={"prompt": PROMPT, "responses": ["4.", ""]})
    assert answer.status_code == 400
    assert read_text(page, ".message") == answer.json()["message"]
    write_request(page, ["a"] * 7)
    send(page, ".alarm")
    assert "--max-responses" in read_text(page, ".message")
    assert read_text(page, ".where") == "Where: responses"


def test_a_key_is_asked_for_and_kept_in_memory_alone(open_page, locked):
    page = open_page(f"{locked}/")
    page.wait_for("!document.getElementById('key-form').hidden")
    page.write("#key", "wrong" + KEY)
    page.click("#key-form button")
    page.wait_for("document.getElementById('key-note').textContent.startsWith('That is not the key')")
    write_request(page, [AWKWARD, "4."])
    page.click("#send")
    page.wait_for("document.activeElement.id == 'key'")
    page.write("#key", KEY)
    page.press("Enter", 13)  # the request that was refused is sent again
    page.wait_for("document.querySelector('.comparison')")
    assert page.evaluate("document.getElementById('key-form').hidden")
    assert read_text(page, "#model") == "Model tiny-judge"
    places = (
        "[location.href, document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage), "
        "document.documentElement.outerHTML, document.getElementById('key').value, String(history.state)]"
    )
    assert not any(KEY in text for text in page.evaluate(places))
    assert not any(KEY in url for url in page.requests)
    assert '"Authorization: Bearer $PAIR_PM_API_KEY"' in read_text(page, "pre")
    assert run_curl(page, KEY)["prob_first"] == read_numbers(page, ".order")[0]
    page.click("#forget-key")
    page.click("#send")
    page.wait_for("!document.getElementById('key-form').hidden")
    assert_calm(page, locked)
    page = open_page(f"{locked}/")
    page.wait_for("!document.getElementById('key-form').hidden")


def test_markup_and_script_in_texts_are_text(page):
    elements = "['img', 'iframe', 'b:not(.whisker b)', 'script', 'style'].map(e => document.querySelectorAll(e).length)"
    before = page.evaluate(elements)
    for responses in ([HOSTILE, "4."], [HOSTILE, "4.", HOSTILE]):
        write_request(page, responses, prompt=HOSTILE)
        send(page, ".comparison, .ranking")
        assert HOSTILE in page.evaluate("[...document.querySelectorAll('.excerpt')].map(e => e.textContent)")
        assert run_curl(page)["model"] == "tiny-judge"
    assert page.evaluate(elements) == before
    assert page.evaluate("typeof ran") == "undefined"


def test_the_policy_would_stop_what_got_in_nevertheless(open_page, service):
    answer = httpx.get(f"{service.url}/")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in answer.headers["content-security-policy"]
    page = open_page(f"{service.url}/")
    inject = "document.body.append(Object.assign(document.createElement('{}'), {}))"
    page.evaluate(inject.format("script", "{textContent: 'window.ran = 1'}"))
    page.evaluate(inject.format("style", "{textContent: 'body { display: none }'}"))
    page.evaluate(inject.format("img", "{src: 'http://127.0.0.1:9/a.png'}"))
    page.evaluate("fetch('http://127.0.0.1:9/').catch(() => window.refused = 1)")
    page.wait_for("window.refused")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<i id=markup></i>')")
    assert page.evaluate("typeof ran + getComputedStyle(document.body).display") == "undefinedblock"
    assert page.evaluate("document.getElementById('markup')") is None
    assert len(page.complaints) >= 4


def test_curl_lines_survive_any_text_and_any_length(page, service):
    write_request(page, [AWKWARD, "4."], prompt=AWKWARD)
    send(page, ".comparison")
    answer = run_curl(page)
    assert answer == httpx.post(
        f"{service.url}/v1/compare", json={"prompt": AWKWARD, "responses": [AWKWARD, "4."]}
    ).json()  # fmt: skip
    assert read_numbers(page, ".order")[::2] == [
        answer[name] for name in ("prob_first", "prob_first_in_a", "prob_first_in_b")
    ]
    page.click(".curl summary")
    page.click(".curl button")
    page.wait_for("document.querySelector('.curl button').textContent != 'Copy'")
    assert page.evaluate("getSelection().toString()") == read_text(page, "pre")
    write_request(page, ["it's 4", "5"], prompt="it's " * 40_000)  # no argument of a command may be as long
    send(page, ".alarm")
    assert run_curl(page)["message"] == read_text(page, ".message")


def test_waiting_shows_can_be_cancelled_and_leaves_the_page_usable(page, service):
    write_request(page, RESPONSES[:2])
    os.kill(service.process.pid, signal.SIGSTOP)
    try:
        page.click("#send")
        page.wait_for("!progress.hidden && document.getElementById('status').textContent == 'Comparing…'")
        assert not page.evaluate("[...document.querySelectorAll('button, textarea')].some(e => e.disabled)")
        page.click("#cancel")
        page.wait_for("progress.hidden && document.getElementById('status').textContent == 'Cancelled'")
        page.click("#send")
        page.wait_for("!progress.hidden")
        page.press("Escape", 27)
        page.wait_for("progress.hidden")
    finally:
        os.kill(service.process.pid, signal.SIGCONT)
    send(page, ".comparison")


def test_page_fits_a_phone_reads_in_light_and_dark_and_names_every_field(page):
    write_request(page, ["w" * 300, *RESPONSES])
    send(page, ".ranking")
    page.click(".card > button")
    page.wait_for("document.querySelector('.comparison')")
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    page.resize(360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        seen = page.photograph(".comparison .bar.tall").mean(axis=2)
        paper = page.photograph("header").mean(axis=2)[0, 0]
        assert (paper > 128) == (scheme == "light")
        # In grey the one side is plain and the other striped, whichever is longer.
        assert seen[2:-2].std(axis=0).max() > 20
    fields = "[...document.querySelectorAll('textarea, select, input, progress')]"
    assert page.evaluate(f"{fields}.filter(e => !e.ariaLabel && !e.labels.length).length") == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_every_example_of_the_api_document_is_answered(service):
    document = httpx.get(f"{service.url}/openapi.json").json()
    schemas = document["components"]["schemas"]
    asked = []
    for path, methods in document["paths"].items():
        if "post" not in methods or not path.startswith("/v1/"):
            continue
        reference = methods["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        for example in schemas[reference.rpartition("/")[2]]["examples"]:
            answer = httpx.post(f"{service.url}{path}", json=example)
            assert answer.status_code == 200, (path, example, answer.text)
            asked.append(path)
    assert {"/v1/compare", "/v1/compare/batch", "/v1/rank", "/v1/rewards"} <= set(asked)


def test_the_api_document_opens_without_another_host_and_its_example_runs_there(open_page, service):
    page = open_page(f"{service.url}/docs")
    operation = "[id$=compare_v1_compare_post]"
    page.wait_for(f"document.querySelector('{operation}')")
    page.click(f"{operation} .opblock-summary")
    page.wait_for(f"document.querySelector('{operation} .try-out__btn')")
    page.click(f"{operation} .try-out__btn")
    page.wait_for(f"document.querySelector('{operation} .execute')")
    page.click(f"{operation} .execute")
    page.wait_for(f"document.querySelector('{operation} .live-responses-table .response-col_status')")
    assert "200" in read_text(page, f"{operation} .live-responses-table tbody .response-col_status")
    assert_calm(page, service.url)


def test_the_api_document_has_a_field_for_the_key_where_one_is_needed(service, locked):
    for url, has_key in ((service.url, False), (locked, True)):
        document = httpx.get(f"{url}/openapi.json").json()
        assert ("security" in document["paths"]["/v1/compare"]["post"]) == has_key
        schemes = document["components"].get("securitySchemes", {}).values()
        assert [scheme["scheme"] for scheme in schemes] == ["bearer"] * has_key
