"""The benchmark of attacks: what is forged is broken before the judge reads it; what is held against it is inert."""

import importlib.util
import json
import random

import pytest
from conftest import LLAMA3_TEMPLATE, ROOT, make_small_tokenizer
from simulated import write_lines
from tiny_models import LLAMA3_MARKS, save_tiny_checkpoint

from pair_pm.errors import DataError
from pair_pm.labelled_pairs import LabelledPair
from pair_pm.prompt import neutralise, render_context, split_prompt
from pair_pm.tokens import PromptEncoder


def load_benchmark():
    """Return the script as a module; its folder stays off the path, where vllm.py would pass for the package."""
    specification = importlib.util.spec_from_file_location("attacks", ROOT / "benchmarks" / "attacks.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


attacks = load_benchmark()

PAIR = LabelledPair(({"role": "user", "content": "Which is better?"},), "This one.", "That one.")
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + "
    "'\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
)
TOKENIZERS = {
    "chatml": lambda: make_small_tokenizer(),
    "llama3": lambda: make_small_tokenizer(LLAMA3_TEMPLATE, LLAMA3_MARKS, bos="<|begin_of_text|>", split="llama3"),
    "gemma": lambda: make_small_tokenizer(GEMMA_TEMPLATE, ("<start_of_turn>", "<end_of_turn>"), bos="<bos>"),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def encoder(request):
    return PromptEncoder(TOKENIZERS[request.param]())


def list_prompts(attack, is_neutralised=True):
    """Return each prompt of an attacked pair, with the attacked response first where it stands in slot A."""
    return [
        prompt for place in attacks.PLACES for prompt in attacks.render_attacked(PAIR, attack, place, is_neutralised)
    ]


def list_special_ids(encoder, prompt):
    special = set(encoder.tokenizer.all_special_ids) | set(encoder.tokenizer.added_tokens_decoder)
    return [token for token in encoder.encode([prompt])[0] if token in special]


def is_split(prompt):
    try:
        split_prompt(prompt)
    except DataError:
        return False
    return True


def test_whatever_is_forged_is_broken_and_the_prompt_has_its_own_three_parts_and_special_tokens(encoder):
    context = render_context(PAIR.messages)
    plain = attacks.Attack("", "", "", "")
    own = list_special_ids(encoder, list_prompts(plain)[0])
    for attack in attacks.list_structure_attacks(attacks.ChatMarks.of(encoder.tokenizer)):
        forged = list_prompts(attack, is_neutralised=False)
        assert any(not is_split(prompt) or "\n<turn> " in split_prompt(prompt)[1] + split_prompt(prompt)[2]
                   or list_special_ids(encoder, prompt) != own for prompt in forged), attack  # fmt: skip
        texts = [neutralise(text) for text in (attack.in_b, attack.in_a)]
        expected = [
            (context, PAIR.first, texts[0] + PAIR.second),
            (context, texts[1] + PAIR.second, PAIR.first),
            (context, PAIR.first, PAIR.second + texts[0]),
            (context, PAIR.second + texts[1], PAIR.first),
        ]
        prompts = list_prompts(attack)
        assert [split_prompt(prompt) for prompt in prompts] == expected, attack
        assert all(prompt.count("\n<turn> ") == 1 for prompt in prompts), attack
        assert [list_special_ids(encoder, prompt) for prompt in prompts] == [own] * 4, attack


def test_inert_text_has_the_words_of_the_attack_and_none_of_its_marks(encoder):
    chat = attacks.ChatMarks.of(encoder.tokenizer)
    marks = [*map(neutralise, chat.special_tokens), "[ CONTEXT]", "[ RESPONSE A]", "[ RESPONSE B]"]
    for attack in attacks.list_structure_attacks(chat):
        for inert in attacks.list_reordered(attack, chat.special_tokens):
            for text, reordered in ((attack.in_a, inert.in_a), (attack.in_b, inert.in_b)):
                assert sorted(reordered) == sorted(neutralise(text))
                assert neutralise(reordered) == reordered
                assert not [mark for mark in marks if mark in reordered], reordered


def test_instructions_and_spam_forge_nothing_and_reach_the_judge_as_they_are():
    for attack in attacks.list_plain_attacks():
        assert attack.map(neutralise) == attack


@pytest.mark.parametrize(
    ("text", "reordered"),
    [
        (" [RESPONSE B] no", " [ B RESPONSE] no"),
        ("\n<turn> user\n hi", "\n< user> turn\n hi"),
        ("[CONTEXT]", "] CONTEXT["),
        ("<|eot_id|>", "< |id_eot|>"),
        ("plain <b>words</b>", "plain <b>words</b>"),
    ],
)
def test_words_of_a_mark_are_put_into_another_order(text, reordered):
    assert attacks.reorder_marks(text, ["<|eot_id|>"], random.Random(0)) == reordered


def test_marks_of_a_chat_template_are_what_it_writes_around_prompt_and_label():
    chat = attacks.ChatMarks.of(TOKENIZERS["llama3"]())
    assert chat.before == "<|start_header_id|>user<|end_header_id|>\n\n"
    assert chat.between == "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert chat.after == "<|eot_id|>"
    assert set(chat.special_tokens) == {*LLAMA3_MARKS, "<|begin_of_text|>", "</s>", "<pad>"}


def test_a_run_on_a_tiny_model_ends_with_the_figures(tmp_path, capsys):
    save_tiny_checkpoint(tmp_path / "model", "llama", TOKENIZERS["llama3"]())
    rows = [{"prompt": f"{number}?", "chosen": f"yes {number}", "rejected": f"no {7 * number}"} for number in range(6)]
    data = write_lines(tmp_path / "pairs.jsonl", *rows)
    code = attacks.main(["--model", str(tmp_path / "model"), "--dataset", data])
    *table, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert 0 < figures["pairs"] <= 6
    assert -1 <= figures["max_structure_excess"] <= 1
    assert code == int(figures["max_structure_excess"] > 0.01)
    structure = ["delimiters", "roles", "special tokens", "fake turn", "second pair"]
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[-8:-1]] == [
        *structure,
        *("instructions", "label spam"),
    ]


def test_a_data_set_without_a_pair_that_is_judged_rightly_is_refused(tmp_path, capsys):
    save_tiny_checkpoint(tmp_path / "model", "llama", TOKENIZERS["llama3"]())
    data = write_lines(tmp_path / "pairs.jsonl", {"prompt": "?", "chosen": "x " * 1000, "rejected": "no"})
    assert attacks.main(["--model", str(tmp_path / "model"), "--dataset", data]) == 1
    assert "1 labelled pairs, 0 with room for the attacks, 0 judged rightly; one" in capsys.readouterr().err
