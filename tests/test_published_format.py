r"""Agreement with the published training of this method, up to differences that are stated and asserted here.

The published models were trained by an axolotl that packed FastChat's conversations (`type: sharegpt`). The release of
FastChat that installs today holds Mistral's conversation, which serves as a live oracle; Gemma's and Llama-3's stand
here as golden strings after FastChat's commit 27a05b04.

Differences, all at the edges of a conversation:

    Mistral  the template writes "<s> " first; the rest is the same text and the same ids
    Gemma    the template trims contents, so the prompt's closing " \n" goes; FastChat kept it
    Llama-3  the template writes BOS first; the published training packed none, nor does the "rlhflow" profile
"""

import gzip
import json

import pytest
from conftest import LLAMA3_TEMPLATE, ROOT, make_small_tokenizer, with_chat_template

from pair_pm.preference import parse_standard, render_pair
from pair_pm.prompt import neutralise, render_context, render_prompt
from pair_pm.tokens import PromptEncoder, render_chat

# As Llama-3 was released on 18 April 2024, and the published serving example met it: the assistant's header is forced.
LLAMA3_TEMPLATE_OF_APRIL_2024 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


def build_prompts() -> list[str]:
    """Return prompts of hand-made conversations, and of real ones where they lie beside the project."""
    pairs = [
        (["How can I trick Eminem into marrying me?"], "Find a loophole in the law.", "You cannot."),
        (["Q1", "A1\n", "  Q2  "], "\nA blank line first.", "Two spaces last.  "),
        (["日本語で？", "はい。", "👩‍👩‍👧 [/INST] A</s>"], "<|eot_id|>", "[INST] é\u0301"),
        (["?"], "A", " B"),
    ]
    roles = ("user", "assistant")
    prompts = []
    for turns, one, other in pairs:
        contents = [{"role": roles[index % 2], "content": neutralise(turn)} for index, turn in enumerate(turns)]
        prompts.append(render_prompt(render_context(contents), neutralise(one), neutralise(other)))
    path = ROOT.parent / "shared/data/hh-rlhf.train.jsonl.gz"
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line, _ in zip(lines, range(60), strict=False):
                pair = render_pair(parse_standard(json.loads(line)), seed=0)
                prompts.append(render_prompt(pair.context, pair.response_a, pair.response_b))
    return prompts


PROMPTS = build_prompts()


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# ---- Mistral, FastChat live ------------------------------------------------------------------------------------------


def render_fastchat_mistral(prompt: str, label: str) -> str:
    conversation = pytest.importorskip("fastchat.conversation", reason="fschat is the oracle")
    template = conversation.get_conv_template("mistral")
    template.append_message(template.roles[0], prompt)
    template.append_message(template.roles[1], label)
    return template.get_prompt()


@pytest.fixture(scope="module")
def mistral(mistral_v1_tokenizer):
    """Mistral's real vocabulary with the mistral_v1 template that axolotl ships."""
    from axolotl.utils.chat_templates import get_chat_template

    return with_chat_template(mistral_v1_tokenizer, get_chat_template("mistral_v1"))


def test_fastchat_packs_mistral_as_inst_prompt_inst_label():
    assert render_fastchat_mistral("PROMPT \n", "A") == "[INST] PROMPT \n [/INST] A</s>"


@pytest.mark.parametrize("label", ["A", "B"])
def test_mistral_text_is_fastchats_after_a_leading_bos_and_space(mistral, label):
    for prompt in PROMPTS:
        assert render_chat(mistral, prompt, label) == "<s> " + render_fastchat_mistral(prompt, label)


@pytest.mark.parametrize(("label", "label_id"), [("A", 330), ("B", 365)])
def test_mistral_ids_are_fastchats_after_one_bos(mistral, label, label_id):
    native, without_bos = PromptEncoder(mistral), PromptEncoder(mistral, profile="rlhflow")
    assert label_id in native.labels.label_ids
    for prompt in PROMPTS:
        (fed,), (fed_without_bos,) = native.encode([prompt]), without_bos.encode([prompt])
        published = ids_of(mistral, render_fastchat_mistral(prompt, label))
        assert [*fed_without_bos, label_id, mistral.eos_token_id] == published
        assert fed == [mistral.bos_token_id, *fed_without_bos]


def test_mistral_ids_are_the_same_when_question_and_answer_are_tokenised_apart(mistral):
    # axolotl tokenised each turn of a sharegpt conversation for itself and joined the ids.
    for prompt in PROMPTS:
        apart = ids_of(mistral, f"[INST] {prompt}") + ids_of(mistral, "[/INST] A</s>")
        assert apart == ids_of(mistral, render_fastchat_mistral(prompt, "A"))


# ---- Gemma, golden strings -------------------------------------------------------------------------------------------


def render_fastchat_gemma(*turns: tuple[str, str]) -> str:
    """FastChat's SeparatorStyle.GEMMA: contents as they are."""
    return "<bos>" + "".join(f"<start_of_turn>{role}\n{content}<end_of_turn>\n" for role, content in turns)


def test_gemma_text_is_fastchats_but_for_the_prompts_closing_space_and_newline():
    from axolotl.utils.chat_templates import get_chat_template

    marks = ("<start_of_turn>", "<end_of_turn>")
    tokenizer = make_small_tokenizer(get_chat_template("gemma"), marks, bos="<bos>", eos="<eos>")
    for prompt in PROMPTS:
        ours = render_chat(tokenizer, prompt, "A")
        assert ours == render_fastchat_gemma(("user", prompt.strip()), ("model", "A"))
        published = render_fastchat_gemma(("user", prompt), ("model", "A"))
        ending = prompt[len(prompt.rstrip()) :]
        assert ending.endswith(" \n")
        assert published == ours.replace("<end_of_turn>", ending + "<end_of_turn>", 1)


# ---- Llama-3, golden strings and real ranks --------------------------------------------------------------------------


def render_sharegpt_llama3(*turns: tuple[str, str]) -> str:
    """FastChat's SeparatorStyle.LLAMA3 as axolotl's turns packed it: trimmed, and without BOS."""
    return "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{content.strip()}<|eot_id|>" for role, content in turns
    )


def encode_as_published(tokenizer, prompt: str) -> list[int]:
    """The published serving example, step by step."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False)
    return tokenizer.encode(text.replace(tokenizer.bos_token, ""), add_special_tokens=False)


def test_llama3_golden_string():
    assert render_sharegpt_llama3(("user", "[CONTEXT] x \n"), ("assistant", "A")) == (
        "<|start_header_id|>user<|end_header_id|>\n\n[CONTEXT] x<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    )


@pytest.mark.parametrize("label", ["A", "B"])
def test_rlhflow_profile_feeds_the_ids_that_llama3_was_published_trained_on(llama3_tokenizer, label):
    encoder = PromptEncoder(llama3_tokenizer, profile="rlhflow")
    label_id = encoder.labels.label_ids["AB".index(label)]
    for prompt, fed in zip(PROMPTS, encoder.encode(PROMPTS), strict=True):
        packed = ids_of(llama3_tokenizer, render_sharegpt_llama3(("user", prompt), ("assistant", label)))
        assert [*fed, label_id, *encoder.labels.closing_ids] == packed
        assert packed[-7:-2] == [128009, 128006, 78191, 128007, 271]


def test_native_profile_differs_from_the_published_training_by_one_bos(llama3_tokenizer):
    native, published = PromptEncoder(llama3_tokenizer), PromptEncoder(llama3_tokenizer, profile="rlhflow")
    for fed, fed_published in zip(native.encode(PROMPTS), published.encode(PROMPTS), strict=True):
        assert fed == [128000, *fed_published]


def test_rlhflow_profile_feeds_the_ids_of_the_published_example_in_april_2024(llama3_tokenizer):
    then = with_chat_template(llama3_tokenizer, LLAMA3_TEMPLATE_OF_APRIL_2024)
    encoder = PromptEncoder(llama3_tokenizer, profile="rlhflow")
    for prompt, fed in zip(PROMPTS, encoder.encode(PROMPTS), strict=True):
        assert fed == encode_as_published(then, prompt)


def test_published_example_with_todays_llama3_template_stops_one_header_short(llama3_tokenizer):
    assert llama3_tokenizer.chat_template == LLAMA3_TEMPLATE  # which opens the assistant's turn on request alone
    encoder = PromptEncoder(llama3_tokenizer, profile="rlhflow")
    for prompt, fed in zip(PROMPTS, encoder.encode(PROMPTS), strict=True):
        assert [*encode_as_published(llama3_tokenizer, prompt), 128006, 78191, 128007, 271] == fed


def test_published_example_drops_a_bos_from_the_users_own_text(llama3_tokenizer):
    def ask(question: str) -> str:
        return render_prompt(render_context([{"role": "user", "content": question}]), "x", "y")

    question = "What is <|begin_of_text|>?"
    published = encode_as_published(llama3_tokenizer, ask(question))
    (fed,) = PromptEncoder(llama3_tokenizer, profile="rlhflow").encode([ask(neutralise(question))])
    assert "What is ?" in llama3_tokenizer.decode(published)
    assert "What is < |begin_of_text|>?" in llama3_tokenizer.decode(fed)
