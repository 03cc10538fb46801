"""A policy's chat template read backwards: the messages that a rendered prompt holds, and the response after it.

    template = PolicyTemplate.from_pretrained("outputs/policy")
    messages, response = template.split(query, prompt)

RL trainers send text: the prompt as the policy's own template rendered it, and the query, which is what the tokens of
the prompt and of the response decode to. A reading of a prompt counts only if it renders to the same text again.

A text has one reading. Turns are told apart wherever the template's marks part them, so a message that forges a whole
turn is read as the policy read it. A system message that the template writes by itself is no message, and one that it
writes into the user's turn (Gemma 3, Mistral) is read as part of that turn. Contents are as the template trimmed them.
"""

from collections.abc import Mapping, Sequence

from pair_pm.errors import DataError, TemplateError
from pair_pm.scoring import Message
from pair_pm.template_layout import learn_layout, render, strip_bos


class PolicyTemplate:
    """Takes apart what an RL trainer sends for a response.

    Args:
        tokenizer: The policy's own transformers tokenizer, with its chat template.
        max_messages: Longest conversation; default: any. A template may take quadratic time for a long one.
    Raises:
        TemplateError: there is no chat template, or its text cannot be taken apart again.
    """

    def __init__(self, tokenizer, max_messages: int | None = None):
        self.tokenizer = tokenizer
        self.max_messages = max_messages
        self._layout = learn_layout(tokenizer)

    @classmethod
    def from_pretrained(cls, name: str, max_messages: int | None = None) -> "PolicyTemplate":
        """Return the template of a tokenizer's folder or hub name.

        Raises:
            MissingPathError: there is no such tokenizer.
            TemplateError: as for the class.
        """
        from pair_pm.checkpoint import load_tokenizer

        return cls(load_tokenizer(name), max_messages)

    def split(self, query: str, prompt: str) -> tuple[list[Message], str]:
        """Return the messages of a prompt, and the response with which the query goes on.

        The response comes without end of turn, EOS and padding after it. Where the template leaves thoughts out of
        earlier turns, it comes without its thought, and is empty if that never ends. A policy that ran on after its
        turn keeps all that it wrote: to hide that would be to reward it.

        Args:
            query: What the tokens of prompt and response decode to, special tokens included.
            prompt: As the template rendered it, ready for generation. BOS before it may be missing in either.
        Raises:
            DataError: no messages render to the prompt, they are too many, its turns cannot be told apart, or the query
                does not begin with it.
        """
        _check_unicode("prompt", prompt)
        _check_unicode("query", query)
        return self.read_prompt(prompt), self._read_response(self._cut_prompt(query, prompt))

    def read_prompt(self, prompt: str) -> list[Message]:
        """Return the messages of a prompt; errors as `split`."""
        text, generation = strip_bos(self.tokenizer, prompt), self._layout.generation
        if not text.endswith(generation):
            raise DataError(
                f"prompt: it does not end in {generation[-80:]!r}; a text that the policy's own chat template "
                "rendered for generation is required"
            )
        for messages, dates in self._find_readings(text, len(text) - len(generation)):
            self._check_count(messages)
            if self._renders_to(text, messages, dates):
                self._check_turn_marks(messages)
                return messages
        raise DataError(
            "prompt: no messages render to this text; a conversation that the policy's own chat template rendered is "
            "required, without tools"
        )

    def _find_readings(self, text: str, end: int) -> list[tuple[list[Message], Mapping[str, str]]]:
        """Return what a prompt may hold up to `end`, and the dates that stand in it.

        The reading whose opening says more comes first: one with a system message that the template writes by itself
        before one that takes it for a message, `[INST] <<SYS>>` before `[INST]`.
        """
        layout, readings = self._layout, []
        if opening := layout.opening.match(text, 0, end):
            readings.append((opening.end(), self._split_turns(text[opening.end() : end]), opening.groupdict()))
        before = layout.system and layout.system[0].match(text, 0, end)
        after = before and layout.system[1].search(text, before.end(), end)
        if after:
            system = {"role": "system", "content": text[before.end() : after.start()]}
            messages = [system, *self._split_turns(text[after.end() : end])]
            readings.append((before.end(), messages, before.groupdict() | after.groupdict()))
        readings.sort(key=lambda reading: reading[0], reverse=True)
        return [(messages, dates) for _, messages, dates in readings]

    def _split_turns(self, text: str) -> list[Message]:
        """Return user and assistant messages in turn, the user's last; a mark without its counterpart is content."""
        to_assistant, to_user = self._layout.to_assistant, self._layout.to_user
        messages, start = [], 0
        while (end := text.find(to_assistant, start)) >= 0:
            answer = end + len(to_assistant)
            answer_end = text.find(to_user, answer)
            if answer_end < 0:
                break
            messages.append({"role": "user", "content": text[start:end]})
            messages.append({"role": "assistant", "content": text[answer:answer_end]})
            start = answer_end + len(to_user)
        return [*messages, {"role": "user", "content": text[start:]}]

    def _renders_to(self, text: str, messages: Sequence[Message], dates: Mapping[str, str]) -> bool:
        names = self._layout.date_names
        try:
            rendered = render(self.tokenizer, messages, lambda format: dates.get(names.get(format), ""))
        except TemplateError:
            return False
        return strip_bos(self.tokenizer, rendered) == text

    def _check_count(self, messages: Sequence[Message]) -> None:
        if self.max_messages is not None and len(messages) > self.max_messages:
            raise DataError(f"prompt: {len(messages)} messages; at most {self.max_messages} are required")

    def _check_turn_marks(self, messages: Sequence[Message]) -> None:
        for index, message in enumerate(messages):
            for mark in self._layout.turn_marks:
                if mark in message["content"]:
                    raise DataError(
                        f"prompt: message {index + 1} holds the turn mark {mark!r}, as a turn of another role or out "
                        "of order does; user and assistant in turn, after an optional system message, are required"
                    )

    # ---- the response ---------------------------------------------------------------------------------------------

    def _cut_prompt(self, query: str, prompt: str) -> str:
        query = strip_bos(self.tokenizer, query[self._count_leading_pads(query) :])
        for spell in (str, self._decode_again):
            start = strip_bos(self.tokenizer, spell(prompt))
            if query.startswith(start):
                return query[len(start) :]
        raise DataError(
            f"query: it does not begin with its prompt ({len(prompt)} characters); prompt and response, decoded "
            "together with special tokens, are required; a trainer that cuts long prompts needs them filtered out first"
        )

    def _decode_again(self, prompt: str) -> str:
        """Return a prompt as its tokens decode, which can differ: normalised, or spaced after special tokens."""
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def _count_leading_pads(self, query: str) -> int:
        pad, start = self.tokenizer.pad_token, 0
        while pad and query.startswith(pad, start):
            start += len(pad)
        return start

    def _read_response(self, text: str) -> str:
        text = self._strip_closing(text)
        if self._layout.thought_marks is not None:
            opening, closing = self._layout.thought_marks
            if closing in text:
                return text.rpartition(closing)[2].lstrip()
            prompted = self._layout.generation
            if text.lstrip().startswith(opening) or prompted.rfind(opening) > prompted.rfind(closing):
                return ""
        return text.removeprefix(self._layout.answer_prefix)

    def _strip_closing(self, text: str) -> str:
        """Return the text before the marks at its end, with the white space that stands before the first of them."""
        kept = end = len(text)
        while True:
            while end and text[end - 1].isspace():
                end -= 1
            mark = next((mark for mark in self._layout.closing_marks if text.endswith(mark, 0, end)), None)
            if mark is None:
                return text[:kept]
            kept = end = end - len(mark)


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name}: a lone surrogate at character {error.start + 1}; valid Unicode is required") from None
