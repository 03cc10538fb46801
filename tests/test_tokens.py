"""Label probing, the ids that are served, dated templates and text that could be forged: `pair_pm.tokens`."""

import datetime
import hashlib
import re
from pathlib import Path

import pytest
from conftest import CHATML, LLAMA3_TEMPLATE, make_small_tokenizer, with_chat_template
from hypothesis import example, given
from hypothesis import strategies as st

from pair_pm.errors import LabelTokenError, TemplateError
from pair_pm.prompt import neutralise, render_context, render_prompt
from pair_pm.tokens import (
    PROBE_PAIRS,
    PROBE_PROMPTS,
    PromptEncoder,
    dated_formats,
    find_forgeable_text,
    freeze_date,
    refuse_forgeable_text,
    render_chat,
    require_chat_template,
)

LLAMA3_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# Mistral's habits: v1 puts a space after [/INST], so that the label is "ĠA"; tekken puts none.
SPACED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %} [INST] {{ m.content }} [/INST]{% else %} "
    "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
UNSPACED = SPACED.replace(" [INST] {{ m.content }} [", "[INST]{{ m.content }}[").replace("{% else %} ", "{% else %}")
# Qwen 3's: a think block that only a finished answer has, not a generation prompt.
THINKING = CHATML.replace(
    "'\n' + message['content']",
    "('\n<think>\n\n</think>\n\n' if message['role'] == 'assistant' else '\n') + message['content']",
)
# Nothing but a newline after answers: there is no mark that could keep pieces from merging over an edge.
BARE = "{% for m in messages %}{{ m.content }}{{ '\n' if m.role == 'assistant' }}{% endfor %}"
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n'"
    " + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
)

TOKENIZERS = {
    "chatml": lambda: make_small_tokenizer(),
    "trims, gpt2 split": lambda: make_small_tokenizer(LLAMA3_TEMPLATE, LLAMA3_MARKS),
    "trims, llama3 split": lambda: make_small_tokenizer(LLAMA3_TEMPLATE, LLAMA3_MARKS, split="llama3"),
    "think block": lambda: make_small_tokenizer(THINKING),
    "space before the label": lambda: make_small_tokenizer(SPACED, ()),
    "no space before the label": lambda: make_small_tokenizer(UNSPACED, ()),
    "no space, mark is a token": lambda: make_small_tokenizer(UNSPACED, ("[INST]", "[/INST]")),
}
ENCODERS = {name: PromptEncoder(make()) for name, make in TOKENIZERS.items()}


def ids_of(tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def make_prompt(question: str = "Q?", one: str = "yes", other: str = "no") -> str:
    return render_prompt(render_context([{"role": "user", "content": question}]), one, other)


def probe_in_full(tokenizer, prompt: str) -> tuple[list[int], tuple[int, int]]:
    """Return the ids before the label and the two labels, the slow way: every prompt rendered with both answers."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]
    sequences = []
    for label in "AB":
        messages[1]["content"] = label
        sequences.append(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))
    differing = [index for index, (a, b) in enumerate(zip(*sequences, strict=True)) if a != b]
    assert len(differing) == 1
    position = differing[0]
    return sequences[0][:position], (sequences[0][position], sequences[1][position])


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_labels_of_chatml_are_the_plain_letters_between_header_and_closing():
    tokenizer = make_small_tokenizer()
    labels = PromptEncoder(tokenizer).labels
    assert tokenizer.convert_ids_to_tokens(labels.label_ids) == ["A", "B"]
    assert labels.closing_ids == ids_of(tokenizer, "<|im_end|>\n")
    # The format's own ending stands before every header, so it belongs to the common tail.
    assert labels.header_ids == ids_of(tokenizer, " \n<|im_end|>\n<|im_start|>assistant\n")
    assert labels.bos_count == 0


def test_labels_of_a_template_with_a_space_are_the_spaced_letters():
    tokenizer = make_small_tokenizer(SPACED, ())
    labels = PromptEncoder(tokenizer).labels
    assert tokenizer.convert_ids_to_tokens(labels.label_ids) == ["ĠA", "ĠB"]
    assert tokenizer.encode("A", add_special_tokens=False) != [labels.label_ids[0]]
    assert labels.closing_ids == (tokenizer.eos_token_id,)
    assert labels.bos_count == 1


def test_header_holds_the_think_block_that_a_generation_prompt_lacks():
    tokenizer = make_small_tokenizer(THINKING)
    (served,) = PromptEncoder(tokenizer).encode([make_prompt()])
    messages = [{"role": "user", "content": make_prompt()}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert served[: len(asked)] == asked
    assert tokenizer.decode(served[len(asked) :]) == "<think>\n\n</think>\n\n"


def test_header_of_a_trimming_template_holds_no_ending_of_the_prompt():
    tokenizer = make_small_tokenizer(LLAMA3_TEMPLATE, LLAMA3_MARKS, split="llama3")
    labels = PromptEncoder(tokenizer).labels
    header = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert labels.header_ids == ids_of(tokenizer, header)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_bos_count_is_how_often_the_template_writes_it(count):
    tokenizer = make_small_tokenizer("{{ bos_token }}" * count + CHATML)
    encoder = PromptEncoder(tokenizer)
    assert encoder.labels.bos_count == count
    bos = tokenizer.bos_token_id
    assert encoder.encode([make_prompt()])[0][: count + 1].count(bos) == count


def test_tokenizer_without_bos_counts_none():
    assert PromptEncoder(make_small_tokenizer(bos=None)).labels.bos_count == 0


def test_real_llama3_puts_its_assistant_header_before_the_label(llama3_tokenizer):
    labels = PromptEncoder(llama3_tokenizer).labels
    assert labels.header_ids[-5:] == (128009, 128006, 78191, 128007, 271)
    assert (labels.label_ids, labels.closing_ids, labels.bos_count) == ((32, 33), (128009,), 1)


def test_real_mistral_v1_has_spaced_labels(mistral_v1_tokenizer):
    labels = PromptEncoder(with_chat_template(mistral_v1_tokenizer, SPACED)).labels
    assert (labels.label_ids, labels.closing_ids, labels.bos_count) == ((330, 365), (2,), 1)
    assert mistral_v1_tokenizer.convert_ids_to_tokens(labels.header_ids) == ["▁", "<0x0A>", "▁[", "/", "INST", "]"]


# ---- what is served --------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    ["\n", " ", "\n\n", "  ", " \n", "\t", "A", "B", " A", "[/INST]", "<|im_end|>", "<|eot_id|>", "<s>", "assistant"]
)
TEXTS = st.one_of(st.text(max_size=30), st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=8).map("".join))


@pytest.mark.parametrize("name", ENCODERS)
@given(text=TEXTS)
@example(text="")
@example(text="ends in a newline\n")
@example(text="ends in spaces   ")
@example(text="x\n\n\nA")
def test_any_text_is_served_as_full_probing_finds_it(name, text):
    encoder = ENCODERS[name]
    for prompt in (text, make_prompt(text, text, text)):
        fed, labels = probe_in_full(encoder.tokenizer, prompt)
        assert encoder.encode([prompt]) == [fed]
        assert labels == encoder.labels.label_ids


@pytest.mark.parametrize("name", ENCODERS)
@given(text=TEXTS)
def test_training_length_is_that_of_the_whole_packed_sequence(name, text):
    encoder = ENCODERS[name]
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "B"}]
    packed = encoder.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert encoder.training_lengths([text]) == [len(packed)]


def test_prompts_in_one_call_are_served_as_one_by_one():
    encoder = ENCODERS["chatml"]
    prompts = [make_prompt("Q" * length, "\n" * length, " ") for length in (1, 300, 7)]
    assert encoder.encode(prompts) == [encoder.encode([prompt])[0] for prompt in prompts]
    assert (encoder.encode([]), encoder.training_lengths([])) == ([], [])


def _truncate(tokenizer):
    tokenizer.backend_tokenizer.enable_truncation(5)


def _pad(tokenizer):
    tokenizer.backend_tokenizer.enable_padding(length=400)


def _split(tokenizer):
    tokenizer.split_special_tokens = True


@pytest.mark.parametrize("set_up", [_truncate, _pad, _split])
def test_ids_are_those_of_the_tokenizer_whatever_its_backend_was_set_to(set_up):
    tokenizer, prompts = make_small_tokenizer(), ["Why?", "A longer one, about the sea."]
    encoder = PromptEncoder(tokenizer)
    plain = encoder.training_lengths(prompts)
    set_up(tokenizer)
    lengths = encoder.training_lengths(prompts)
    texts = [render_chat(tokenizer, prompt, "A") for prompt in prompts]
    assert lengths == [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    assert (lengths == plain) == (set_up is not _split)


def test_each_prompt_is_rendered_once(monkeypatch):
    rendered = []
    encoder = ENCODERS["chatml"]
    monkeypatch.setattr("pair_pm.tokens.render_chat", lambda *chat: rendered.append(chat) or render_chat(*chat))
    encoder.encode([make_prompt("Q" * length) for length in range(5)])
    assert len(rendered) == 5


@pytest.mark.parametrize("template", [LLAMA3_TEMPLATE, CHATML])
def test_rlhflow_profile_strips_bos_at_the_start_and_nothing_else(template):
    tokenizer = make_small_tokenizer(template, ("<|im_start|>", "<|im_end|>", *LLAMA3_MARKS))
    native, stripped = PromptEncoder(tokenizer), PromptEncoder(tokenizer, profile="rlhflow")
    prompt = make_prompt("What does <s> mean?")  # a BOS inside the text, which `.replace(bos_token, "")` would drop
    assert tokenizer.bos_token_id in stripped.encode([prompt])[0]
    count = native.labels.bos_count
    assert stripped.encode([prompt])[0] == native.encode([prompt])[0][count:]
    assert stripped.training_lengths([prompt])[0] == native.training_lengths([prompt])[0] - count
    assert stripped.labels.bos_count == 0
    assert stripped.labels.label_ids == native.labels.label_ids


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [None, ""])
def test_tokenizer_without_chat_template_is_refused(missing):
    with pytest.raises(TemplateError, match="no chat template; one is required"):
        PromptEncoder(make_small_tokenizer(chat_template=missing))


def test_chat_template_among_several_is_the_default_one():
    tokenizer = make_small_tokenizer({"default": CHATML, "tool_use": "{{ messages }}"})
    assert require_chat_template(tokenizer) == CHATML
    assert PromptEncoder(tokenizer).labels == ENCODERS["chatml"].labels


def test_labels_of_two_tokens_are_refused_with_both_tokenisations():
    doubled = CHATML.replace("message['content'] + '<", "message['content'] * loop.index + '<")
    with pytest.raises(LabelTokenError, match="exactly one differing token is required") as refused:
        PromptEncoder(make_small_tokenizer(doubled))
    assert re.search(
        r"answer A the ids end in \[.*'A', 'A', '<\|im_end\|>'.*, with B in \[.*'B', 'B'", str(refused.value)
    )


def test_tokenizer_that_cuts_one_label_in_two_is_refused():
    from tokenizers import normalizers

    tokenizer = make_small_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("A", "Ä")  # two bytes, two tokens
    with pytest.raises(LabelTokenError, match=r"'Ã', 'Ħ?.*', '<\|im_end\|>'.* with B in \[.*'B', '<\|im_end\|>'"):
        PromptEncoder(tokenizer)


def test_template_that_drops_the_answer_is_refused():
    with pytest.raises(LabelTokenError, match="exactly one differing token"):
        PromptEncoder(make_small_tokenizer("{{ messages[0].content }}<|im_end|>"))


def test_template_whose_labels_depend_on_the_prompt_is_refused():
    moody = "{% for m in messages %}{{ ' ' if 'water' in messages[0].content }}{{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(LabelTokenError, match=r"after one prompt and .* after another; the same two tokens"):
        PromptEncoder(make_small_tokenizer(moody))


def test_prompt_whose_label_merges_with_its_ending_is_refused():
    encoder = PromptEncoder(make_small_tokenizer(BARE))
    assert encoder.encode([make_prompt()])
    with pytest.raises(LabelTokenError, match=r"prompt 'ends in a space '….*are required, as after every other prompt"):
        encoder.encode([make_prompt(), "ends in a space "])


# ---- dates -----------------------------------------------------------------------------------------------------------

DATED_TEMPLATES = {
    "a set block first": "{%- set today = strftime_now('%d %b %Y') %}\n{{- bos_token }}Today: {{ today }}\n" + CHATML,
    "an expression first": "{{ bos_token }}{{ strftime_now('%Y-%m-%d') }}" + CHATML,
    "newlines first": "\n\n{{ strftime_now('%A') }}" + CHATML,
    "spaces first": "  {% if true %}x{% endif %} {{ strftime_now('%B %-d') }}\n" + CHATML,
    "text first": "It is {{ strftime_now('%d.%m.%y') }}, {{ strftime_now(\"%H o'clock\") }}.\n" + CHATML,
    "asked with a default": "{{ strftime_now('%j') if strftime_now is defined else 'no clock' }}" + CHATML,
}


@pytest.mark.parametrize("template", DATED_TEMPLATES.values(), ids=DATED_TEMPLATES)
def test_dated_template_is_refused_and_its_frozen_form_renders_the_frozen_day(template):
    tokenizer = make_small_tokenizer(template)
    formats = dated_formats(tokenizer)
    assert formats == re.findall(r"strftime_now\(['\"](.*?)['\"]\)", template)
    with pytest.raises(TemplateError, match=r"today's date.*prepare_model\.py"):
        PromptEncoder(tokenizer)

    frozen = make_small_tokenizer(freeze_date(template, formats))
    assert dated_formats(frozen) == []
    assert PromptEncoder(frozen).labels.label_ids == ENCODERS["chatml"].labels.label_ids
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    that_day = tokenizer.apply_chat_template(
        messages, tokenize=False, strftime_now=datetime.datetime(2024, 7, 26).strftime
    )
    assert render_chat(frozen, "Q", "A") == that_day


@pytest.mark.parametrize("format", "%a %A %w %d %b %B %m %y %Y %H %I %p %M %S %f %j %U %W %c %x %X %G %u %V".split())
def test_every_part_of_a_date_is_seen(format):
    assert dated_formats(make_small_tokenizer("{{ strftime_now('" + format + "') }}" + CHATML)) == [format]


def test_template_that_only_mentions_a_clock_is_not_dated():
    unused = "{% if messages | length > 9 %}{{ strftime_now('%Y') }}{% endif %}" + CHATML
    assert dated_formats(make_small_tokenizer(unused)) == []
    assert PromptEncoder(make_small_tokenizer(unused)).labels == ENCODERS["chatml"].labels


# ---- text that could be forged ---------------------------------------------------------------------------------------

PLAIN_TURNS = "{% for m in messages %}{{ m.role.upper() }}: {{ m.content }} {% endfor %}"


def test_plain_text_turns_and_unknown_special_tokens_are_found():
    tokenizer = make_small_tokenizer(PLAIN_TURNS, ("<|im_end|>", "§user§", "<custom_mark>"))
    assert find_forgeable_text(tokenizer) == ["§user§", "<custom_mark>", "USER: ", " ASSISTANT: ", " USER: "]
    with pytest.raises(TemplateError, match=r"could forge '§user§', '<custom_mark>', 'USER: '.*--accept-control-text"):
        refuse_forgeable_text(tokenizer)


@pytest.mark.parametrize(
    ("template", "marks"),
    [
        (LLAMA3_TEMPLATE, LLAMA3_MARKS),
        (CHATML, ("<|im_start|>", "<|im_end|>", "<|endoftext|>")),
        (GEMMA, ("<start_of_turn>", "<end_of_turn>", "<unused0>", "<mask>")),
        (SPACED, ()),
        (UNSPACED, ("[INST]", "[/INST]", "[control_8]")),
    ],
    ids=["llama3", "chatml", "gemma", "mistral_v1", "mistral_tekken"],
)
def test_nothing_can_be_forged_in_a_supported_family(template, marks):
    tokenizer = make_small_tokenizer(template, marks)
    assert find_forgeable_text(tokenizer) == []
    refuse_forgeable_text(tokenizer)


def test_plain_text_after_the_last_content_is_found():
    assert find_forgeable_text(make_small_tokenizer(CHATML + "THE END")) == []  # it follows a mark
    assert find_forgeable_text(make_small_tokenizer(BARE + "THE END")) == ["\nTHE END"]


def test_white_space_between_contents_is_no_mark():
    assert find_forgeable_text(make_small_tokenizer(BARE.replace("{{ m", "\n\n{{ m"))) == []


def test_template_that_drops_messages_is_refused():
    last_only = "{{ messages[-2].content }}<|im_end|>{{ messages[-1].content }}<|im_end|>"
    assert PromptEncoder(make_small_tokenizer(last_only))  # a single exchange is whole
    with pytest.raises(TemplateError, match="it drops a message of a user/assistant conversation"):
        find_forgeable_text(make_small_tokenizer(last_only))


def test_every_special_token_of_real_llama3_is_broken(llama3_tokenizer):
    specials = [token.content for token in llama3_tokenizer.added_tokens_decoder.values()]
    assert len(specials) == 256
    assert len(llama3_tokenizer) == 128256
    assert [token for token in specials if neutralise(token) == token] == []
    assert find_forgeable_text(llama3_tokenizer) == []


def read_mistral_specials(path: Path) -> list[str]:
    if path.suffix == ".json":
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        tekken = Tekkenizer.from_file(path)
        return [tekken.id_to_piece(index) for index in range(tekken.num_special_tokens)]
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(str(path))
    indices = range(pieces.get_piece_size())
    return [pieces.id_to_piece(index) for index in indices if pieces.is_control(index) or pieces.is_unknown(index)]


# The counts show that each file was read: v1 knows <unk>, <s> and </s>, the later ones hundreds.
MISTRAL_VOCABULARIES = {
    "tokenizer.model.v1": 3,
    "mistral_instruct_tokenizer_240216.model.v2": 771,
    "mistral_instruct_tokenizer_240323.model.v3": 751,
    "mistral_instruct_tokenizer_241114.model.v7": 749,
    "tekken_240718.json": 1000,
    "tekken_240911.json": 1000,
}


@pytest.mark.parametrize(("name", "count"), MISTRAL_VOCABULARIES.items())
def test_every_special_token_of_mistrals_vocabularies_is_broken(name, count):
    mistral_common = pytest.importorskip("mistral_common", reason="Mistral's vocabularies come with it")
    specials = read_mistral_specials(Path(mistral_common.__file__).parent / "data" / name)
    assert len(specials) == count
    assert [token for token in specials if neutralise(token) == token] == []


# ---- the probe prompts ----------------------------------------------------------------------------------------------


def test_probe_prompts_are_the_probe_pairs_in_the_very_bytes_that_cards_know():
    contexts = [render_context([{"role": "user", "content": question}]) for question, *_ in PROBE_PAIRS]
    rendered = [render_prompt(text, one, other) for text, (_, one, other) in zip(contexts, PROBE_PAIRS, strict=True)]
    assert list(PROBE_PROMPTS) == rendered
    assert [hashlib.sha256(prompt.encode()).hexdigest() for prompt in PROBE_PROMPTS] == [
        "c86e202fa8997ad6e407bb3ebc0d63f7b9fe73eff849a08eb4b494757b2d81fe",
        "245237cbe5485c471260bbb47bff62efb63b1a9c17f7aea20c055ffc8485413e",
    ]
