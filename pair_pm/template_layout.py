"""What a chat template writes around the messages of a conversation, learnt by rendering contents that are known."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pair_pm.errors import TemplateError
from pair_pm.scoring import Message
from pair_pm.tokens import require_chat_template

# No template changes words such as these, and none holds them.
_SYSTEM = "probe5system"
_TURNS = ("probe5question", "probe5answer", "probe5second", "probe5reply", "probe5last")
_THOUGHT = "probe5thought"
_DATE = "probe5date{}x"
# What thoughts stand between, where a template leaves those of earlier turns out.
_THOUGHT_MARKS = (("<think>", "</think>"), ("<|channel>", "<channel|>"))


@dataclass(frozen=True)
class Layout:
    """What a template writes around messages.

    Attributes:
        opening: Before the first user message, BOS left out, where there is no system message.
        system: Before (BOS left out) and after a system message; None where it has no place of its own.
        to_assistant: Between a user message and the answer to it.
        to_user: Between an answer and the next user message.
        generation: After the last user message, to be answered.
        answer_prefix: What stands before a finished answer that `generation` ends without, such as a space.
        closing_marks: What may stand after a response: end of turn, EOS, padding.
        turn_marks: Special tokens between turns; EOS is none of them, which often is no more than that.
        thought_marks: What thoughts stand between that the template leaves out of earlier turns; None where it leaves
            none out.
        date_names: The pattern group that holds today's date, by the strftime format which the template asks for.
    """

    opening: re.Pattern
    system: tuple[re.Pattern, re.Pattern] | None
    to_assistant: str
    to_user: str
    generation: str
    answer_prefix: str
    closing_marks: tuple[str, ...]
    turn_marks: tuple[str, ...]
    thought_marks: tuple[str, str] | None
    date_names: Mapping[str, str]


def learn_layout(tokenizer) -> Layout:
    """Return the layout of a tokenizer's chat template.

    Raises:
        TemplateError: it has no chat template, or one that does not write every message of a conversation once, in
            order, and with marks between them.
    """
    require_chat_template(tokenizer)
    return _Learner(tokenizer).learn()


def render(
    tokenizer, messages: Sequence[Message], date_of: Callable[[str], str], add_generation_prompt: bool = True
) -> str:
    """Return the text of a conversation.

    Args:
        date_of: Gives the date that the template is to write for a strftime format.
    Raises:
        TemplateError: the template refuses it.
    """
    import jinja2

    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, strftime_now=date_of
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise TemplateError(
            f"chat template of {tokenizer.name_or_path}: it refuses a conversation with {error}; one that takes user "
            "and assistant messages in turn is required"
        ) from error


def strip_bos(tokenizer, text: str) -> str:
    """Return a text without the BOS that it may start with: pipelines differ in whether they keep it."""
    return text.removeprefix(tokenizer.bos_token or "")


class _Learner:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.date_names: dict[str, str] = {}

    def learn(self) -> Layout:
        short, long = (self._find_literals(_alternate(_TURNS[:turns])) for turns in (1, 5))
        if short is None or long is None or short != [long[0], long[-1]] or long[1:3] != long[3:5]:
            raise self._refuse("it does not write each message of a conversation once, in order, and all turns alike")
        opening, to_assistant, to_user, *_, generation = long
        if not (to_assistant.strip() and to_user.strip() and generation.strip()):
            raise self._refuse("it puts no mark between messages")
        *_, before_answer, closing = self._find_literals(_alternate(_TURNS[:2]), False) or [generation, ""]
        return Layout(
            opening=self._to_pattern(strip_bos(self.tokenizer, opening)),
            system=self._learn_system(),
            to_assistant=to_assistant,
            to_user=to_user,
            generation=generation,
            answer_prefix=before_answer[len(generation) :] if before_answer.startswith(generation) else "",
            closing_marks=self._find_closing_marks(closing),
            turn_marks=self._find_turn_marks(to_assistant + to_user),
            thought_marks=self._find_thought_marks(),
            date_names=self.date_names,
        )

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        def date_of(format: str) -> str:
            return self.date_names.setdefault(format, _DATE.format(len(self.date_names)))

        return render(self.tokenizer, messages, date_of, add_generation_prompt)

    def _find_literals(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[str] | None:
        """Return what stands before, between and after the contents; None where they do not stand once, in order."""
        text = self._render(messages, add_generation_prompt)
        literals = []
        for message in messages:
            literal, found, text = text.partition(message["content"])
            if not found or message["content"] in text:
                return None
            literals.append(literal)
        return [*literals, text]

    def _learn_system(self) -> tuple[re.Pattern, re.Pattern] | None:
        try:
            literals = self._find_literals([{"role": "system", "content": _SYSTEM}, *_alternate(_TURNS)])
        except TemplateError:  # Gemma refuses one
            return None
        if literals is None or not literals[1].strip():
            return None
        return self._to_pattern(strip_bos(self.tokenizer, literals[0])), self._to_pattern(literals[1])

    def _to_pattern(self, literal: str) -> re.Pattern:
        """Return a pattern for what the template writes, on whatever day."""
        pattern = re.escape(literal)
        for format, name in self.date_names.items():
            date = r"\w{1,12}".join(map(re.escape, re.split("%-?[A-Za-z]", format)))
            first, *others = pattern.split(name)
            if others:
                pattern = f"{first}(?P<{name}>{date}){f'(?P={name})'.join(others)}"
        return re.compile(pattern)

    def _find_closing_marks(self, closing: str) -> tuple[str, ...]:
        specials = [token for token in self._special_tokens() if token in closing]
        named = (closing.strip(), *specials, self.tokenizer.eos_token, self.tokenizer.pad_token)
        return tuple(sorted({mark for mark in named if mark}, key=len, reverse=True))

    def _find_turn_marks(self, separators: str) -> tuple[str, ...]:
        ends = (self.tokenizer.bos_token, self.tokenizer.eos_token)
        return tuple(token for token in self._special_tokens() if token in separators and token not in ends)

    def _find_thought_marks(self) -> tuple[str, str] | None:
        for opening, closing in _THOUGHT_MARKS:
            answer = f"{opening}\n{_THOUGHT}\n{closing}\n\n{_TURNS[1]}"
            text = self._render(_alternate([_TURNS[0], answer, _TURNS[2]]))
            if _TURNS[1] in text and _THOUGHT not in text:
                return opening, closing
        return None

    def _special_tokens(self) -> dict[str, None]:
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        return dict.fromkeys([*self.tokenizer.all_special_tokens, *added])

    def _refuse(self, found: str) -> TemplateError:
        return TemplateError(
            f"chat template of {self.tokenizer.name_or_path}: {found}; a template whose text can be taken apart again "
            "is required"
        )


def _alternate(contents: Sequence[str]) -> list[Message]:
    return [{"role": ("user", "assistant")[index % 2], "content": content} for index, content in enumerate(contents)]
