"""Chat template and tokenizer to token ids: where the label stands, and the ids that are fed before it.

One rule decides the position: a conversation is rendered with the answer "A" and again with "B"; the ids must share
a beginning, differ in exactly one token, and share the rest. That token is the label, and the ids before it are what
is served. No generation prompt, no `encode("A")` and no habit of a template has a say, because each of them is wrong
for some template: a think block that only one of the two renderings holds, a space that makes the label "▁A".
"""

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pair_pm.errors import LabelTokenError, TemplateError
from pair_pm.prompt import LABELS, neutralise, render_context, render_prompt

PROFILES = ("native", "rlhflow")

# Two pairs whose prompts share nothing before the format's own ending, to see what the template always puts there.
# Every card holds what they encode to: change them and every model trained before is refused.
PROBE_PAIRS = (
    ("What is the boiling point of water?", "100 degrees Celsius.", "I would rather not say"),
    ("Name a prime", "17", "Any number; take twelve!"),
)
PROBE_PROMPTS = tuple(
    render_prompt(render_context([{"role": "user", "content": question}]), one, other)
    for question, one, other in PROBE_PAIRS
)
# They differ in every part of a date, the weekday included: a template may show just one.
_CLOCKS = (datetime.datetime(2001, 2, 3, 4, 5, 6), datetime.datetime(2031, 11, 28, 23, 58, 59, 1))
_FROZEN_DATE = datetime.datetime(2024, 7, 26)  # the date that Llama-3.1 and 3.2 fall back to without a clock


@dataclass(frozen=True)
class LabelTokens:
    """What a chat template and tokenizer put around the label.

    Attributes:
        label_ids: The ids of "A" and "B".
        header_ids: The longest common tail of the ids before the label, over two probe prompts.
        closing_ids: The ids after the label.
        bos_count: How many BOS ids a prompt starts with.
    """

    label_ids: tuple[int, int]
    header_ids: tuple[int, ...]
    closing_ids: tuple[int, ...]
    bos_count: int


class PromptEncoder:
    """Turns prompts into the very ids that stand before the label in training.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        profile: "native", or "rlhflow" for checkpoints of the published training, which saw no BOS.

    Raises:
        LabelTokenError: the labels are not one differing token.
        TemplateError: there is no chat template, or it puts today's date into the prompt.
    """

    def __init__(self, tokenizer, profile: str = "native"):
        assert profile in PROFILES, profile
        require_chat_template(tokenizer)
        if dated_formats(tokenizer):
            raise TemplateError(
                f"chat template of {tokenizer.name_or_path}: it puts today's date into the prompt; a prompt that is "
                "the same every day is required; run prepare_model.py, which freezes the date"
            )
        self.tokenizer = tokenizer
        self.profile = profile
        self.labels = self._probe_labels()

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the ids to feed for each prompt, up to and without the label."""
        sequences = self._encode_with_a(prompts)
        return [ids[: self._find_label(prompt, ids)] for prompt, ids in zip(prompts, sequences, strict=True)]

    def encode_answered(self, prompts: Sequence[str], labels: Sequence[str]) -> list[tuple[list[int], int]]:
        """Return each prompt's whole training sequence, and the position of the label in it."""
        answered = []
        for prompt, label, ids in zip(prompts, labels, self._encode_with_a(prompts), strict=True):
            position = self._find_label(prompt, ids)
            answered.append(
                ([*ids[:position], self.labels.label_ids[LABELS.index(label)], *ids[position + 1 :]], position)
            )
        return answered

    def training_lengths(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt's whole training sequence has, label and closing included."""
        return [len(ids) for ids in self._encode_with_a(prompts)]

    def _encode_with_a(self, prompts: Sequence[str]) -> list[list[int]]:
        return self._encode_with(prompts, LABELS[0])

    def _encode_with(self, prompts: Sequence[str], label: str) -> list[list[int]]:
        texts = [render_chat(self.tokenizer, prompt, label) for prompt in prompts]
        if not texts:
            return []
        sequences = self._tokenize(texts)
        return [self._strip_bos(ids) for ids in sequences] if self.profile == "rlhflow" else sequences

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        # The template has written BOS already: adding special tokens again would double it.
        if not self._is_plain():
            return self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        # The same ids at two thirds of the time: without offsets, masks and copies of each.
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _is_plain(self) -> bool:
        """Return whether the tokenizer's library would be called with nothing set, as transformers calls it."""
        tokenizer = self.tokenizer
        if not tokenizer.is_fast or tokenizer.split_special_tokens:
            return False
        backend = tokenizer.backend_tokenizer
        return backend.truncation is None and backend.padding is None and not backend.encode_special_tokens

    def _strip_bos(self, ids: list[int]) -> list[int]:
        return ids[_count_leading(ids, self.tokenizer.bos_token_id) :]

    def _find_label(self, prompt: str, ids: list[int]) -> int:
        """Return the label's position: where it was probed, or found anew for the rare prompt where it is not there."""
        labels = self.labels
        position = len(ids) - len(labels.closing_ids) - 1
        tail = [*labels.header_ids, labels.label_ids[0], *labels.closing_ids]
        if ids[position - len(labels.header_ids) :] == tail:
            return position
        position, label_ids = self._locate_label(prompt)
        if label_ids != labels.label_ids:
            raise LabelTokenError(
                f"prompt {prompt[:60]!r}…: its labels are the tokens {label_ids}; {labels.label_ids} are required, "
                "as after every other prompt"
            )
        return position

    def _probe_labels(self) -> LabelTokens:
        found = [self._locate_label(prompt) for prompt in PROBE_PROMPTS]
        if found[0][1] != found[1][1]:
            raise LabelTokenError(
                f"chat template of {self.tokenizer.name_or_path}: the labels are {found[0][1]} after one prompt and "
                f"{found[1][1]} after another; the same two tokens are required after each"
            )
        sequences = self._encode_with_a(PROBE_PROMPTS)
        before = [ids[:position] for ids, (position, _) in zip(sequences, found, strict=True)]
        return LabelTokens(
            label_ids=found[0][1],
            header_ids=tuple(before[0][len(before[0]) - common_length(before[0][::-1], before[1][::-1]) :]),
            closing_ids=tuple(sequences[0][found[0][0] + 1 :]),
            bos_count=_count_leading(before[0], self.tokenizer.bos_token_id),
        )

    def _locate_label(self, prompt: str) -> tuple[int, tuple[int, int]]:
        with_a, with_b = (self._encode_with([prompt], label)[0] for label in LABELS)
        position = common_length(with_a, with_b)
        if len(with_a) == len(with_b) and position < len(with_a) and with_a[position + 1 :] == with_b[position + 1 :]:
            return position, (with_a[position], with_b[position])
        shown = [self.tokenizer.convert_ids_to_tokens(ids[max(0, position - 4) :]) for ids in (with_a, with_b)]
        raise LabelTokenError(
            f"chat template of {self.tokenizer.name_or_path}: with the answer A the ids end in {shown[0]}, with B in "
            f"{shown[1]}; exactly one differing token is required"
        )


def render_chat(tokenizer, prompt: str, label: str) -> str:
    """Return the text of the two-message training conversation, as the tokenizer's own chat template writes it."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": label}]
    return tokenizer.apply_chat_template(messages, tokenize=False)


def require_chat_template(tokenizer) -> str:
    """Return the tokenizer's chat template source.

    Raises:
        TemplateError: it has none.
    """
    if not tokenizer.chat_template:
        raise TemplateError(
            f"tokenizer of {tokenizer.name_or_path}: no chat template; one is required; "
            "give prepare_model.py one with --chat-template FILE"
        )
    return tokenizer.get_chat_template()


# ---- dates ----------------------------------------------------------------------------------------------------------


def dated_formats(tokenizer) -> list[str]:
    """Return the strftime formats through which today's date reaches a prompt, [] where it does not."""
    asked: dict[str, None] = {}

    def rendered_at(clock: datetime.datetime) -> str:
        def strftime_now(format: str) -> str:
            asked[format] = None
            return clock.strftime(format)

        messages = [{"role": "user", "content": PROBE_PROMPTS[0]}, {"role": "assistant", "content": LABELS[0]}]
        return tokenizer.apply_chat_template(messages, tokenize=False, strftime_now=strftime_now)

    first, second = (rendered_at(clock) for clock in _CLOCKS)
    return list(asked) if first != second else []


def freeze_date(template: str, formats: Sequence[str]) -> str:
    """Return the template with its clock stopped: each strftime format it asks for yields one fixed date."""
    dates = ", ".join(f"{format!r}: {_FROZEN_DATE.strftime(format)!r}" for format in formats)
    # A macro of the same name shadows the function that transformers offers. Jinja drops the newline after a block.
    return f"{{%- macro strftime_now(format) %}}{{{{ {{{dates}}}[format] }}}}{{%- endmacro %}}\n{template}"


# ---- control text ---------------------------------------------------------------------------------------------------


def find_forgeable_text(tokenizer) -> list[str]:
    """Return the special tokens and template literals that content could still spell after `neutralise`.

    A special token is safe when `neutralise` breaks it. A literal that the template puts before, between or after
    contents is safe when it holds something that `neutralise` breaks; one of white space alone is no mark.
    """
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    special_tokens = dict.fromkeys([*tokenizer.all_special_tokens, *added])
    return [
        text for text in [*special_tokens, *_template_literals(tokenizer)] if text.strip() == neutralise(text).strip()
    ]


def _template_literals(tokenizer) -> list[str]:
    contents = ["first5question", "first5answer", "second5question", "second5answer"]
    roles = ["user", "assistant"] * 2
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    literals: dict[str, None] = {}
    for content in contents:
        literal, found, text = text.partition(content)
        if not found:
            raise TemplateError(
                f"chat template of {tokenizer.name_or_path}: it drops a message of a user/assistant conversation; "
                "every message is required in the prompt"
            )
        literals[literal] = None
    literals[text] = None
    return [literal for literal in literals if literal.strip()]


def refuse_forgeable_text(tokenizer, accepted: Collection[str] = ()) -> None:
    """Refuse a tokenizer whose special tokens or template literals content could spell, but for the accepted ones.

    Raises:
        TemplateError: with the list of them.
    """
    forgeable = [text for text in find_forgeable_text(tokenizer) if text not in accepted]
    if forgeable:
        raise TemplateError(
            f"tokenizer of {tokenizer.name_or_path}: content could forge {', '.join(map(repr, forgeable))}; every "
            "special token and turn mark is required to be in the neutralised set; accept it with "
            "--accept-control-text (in a training config: accept_control_text: true), and the model's card records it"
        )


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many ids two sequences start with in common."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


def _count_leading(ids: Sequence[int], token_id: int | None) -> int:
    count = 0
    while count < len(ids) and ids[count] == token_id:
        count += 1
    return count
