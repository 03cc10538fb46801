"""Text of the quickstart: short conversations whose preferred answer shows only in what is said.

The chosen response gives advice on the matter that the user asks about. The rejected one is rude, empty talk, or
advice on another matter (`KINDS`). Advice is drawn the same way whether it wins or loses, so no word marks a winner:
whether it is off topic shows only next to the question. Which of the two is longer is a coin toss.

    python -c "import random, conversations; print(conversations.draw_row(random.Random(0), held_out=False))"
"""

import random
from typing import NamedTuple

# Off topic is the kind that takes reading the question, so it gets the most rows.
KINDS = {"off_topic": 0.6, "rude": 0.2, "empty": 0.2}


class Topic(NamedTuple):
    """Words of one field: what is worked on, what is done to it, and with what."""

    things: tuple[str, ...]
    verbs: tuple[str, ...]
    means: tuple[str, ...]


class Question(NamedTuple):
    """What a user asks first, and what an answer has to be about."""

    text: str
    topic: Topic
    thing: str


def _topic(things: str, verbs: str, means: str) -> Topic:
    return Topic(tuple(things.split()), tuple(verbs.split()), tuple(means.split()))


TOPICS = (
    _topic("rose fern tulip cactus", "plant prune feed", "soil compost sunlight water"),
    _topic("soup curry stew omelette", "cook season fry", "butter pepper onions cream"),
    _topic("guitar violin flute trumpet", "play tune practise", "scales chords rhythm notes"),
    _topic("scarf jumper skirt curtain", "knit sew mend", "wool thread needles buttons"),
)

QUESTIONS = (
    "I have {means}, {more_means} and a {thing}. How do I {verb} the {thing}?",
    "Can I {verb} my {thing} with {means}, or does a {thing} need {more_means}?",
    "My {thing} needs {means} and {more_means}. How do I {verb} the {thing}?",
    "Should I {verb} a {thing} with {means} or {more_means}? It is my first {thing}.",
    "How do I {verb} a {thing}? I have {means} and {more_means} for the {thing}.",
    "Please help me {verb} my {thing}. The {thing} came with {means} and {more_means}.",
    "I bought {means} and {more_means} for my {thing}. How do I {verb} the {thing}?",
    "We {verb} a {thing} with {means}. Is {more_means} better for the {thing}?",
)
# The last two questions are asked by held-out users only, and so is every eighth pair of thing and verb.
HELD_OUT_QUESTIONS = 2
HELD_OUT_EVERY = 8

SYSTEM_MESSAGES = ("You are a helpful assistant.", "Answer in a friendly way.", "Keep your answers short.")
FOLLOW_UPS = (
    "Thanks. How do I {verb} the {thing} with {means}?",
    "Good. What about {means} and {more_means}?",
    "Fine, and the {means} for the {thing}?",
)

ADVICE = (
    "First {verb} the {thing} with {means} and {more_means}.",
    "Keep {means} and {more_means} near the {thing}.",
    "Get {means}, then {verb} the {thing} with {more_means}.",
    "Use {means} and {more_means} to {verb} the {thing}.",
    "The {thing} needs {means}, and {more_means} later.",
    "You can {verb} the {thing}: {means} first, then {more_means}.",
)
RUDE = (
    "Only a fool would ask about a {thing}.",
    "That is a stupid thing to ask, as always.",
    "Stop wasting my time with {means}, you clown.",
    "You are far too lazy to deserve a {thing}.",
    "Nobody wants to hear you whine about {means}.",
    "Shut up and leave me alone, idiot.",
    "Your {thing} is as ugly as your question.",
    "I despise people who {verb} a {thing}.",
)
EMPTY = (
    "There are many things one could say about a {thing}.",
    "It depends on this and that, as it often does.",
    "A {thing} is what it is, more or less.",
    "Some say yes and some say no to {means}.",
    "In general such matters are quite general.",
    "It might be one way or it might be another.",
    "Everything about {means} has some kind of reason.",
    "Who can really say what it means to {verb}.",
)


def draw_row(rng: random.Random, held_out: bool) -> dict:
    """Return one row in the standard format, without its id."""
    kind = rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
    question = draw_question(rng, held_out)
    context = draw_context(rng, question)
    chosen, rejected = draw_responses(rng, question, kind)
    return {
        "source": "quickstart",
        "subset": kind,
        "chosen": [*context, _message("assistant", chosen)],
        "rejected": [*context, _message("assistant", rejected)],
    }


def draw_question(rng: random.Random, held_out: bool) -> Question:
    """Return a question; the text of a held-out one never comes up among the others."""
    while True:
        topic = rng.choice(TOPICS)
        thing, verb = rng.randrange(len(topic.things)), rng.randrange(len(topic.verbs))
        question = rng.randrange(len(QUESTIONS))
        is_new_pair = (thing * len(topic.verbs) + verb) % HELD_OUT_EVERY == 0
        is_new_question = question >= len(QUESTIONS) - HELD_OUT_QUESTIONS
        if held_out == (is_new_pair or is_new_question):
            break
    words = _draw_words(rng, topic) | {"thing": topic.things[thing], "verb": topic.verbs[verb]}
    return Question(QUESTIONS[question].format(**words), topic, topic.things[thing])


def draw_context(rng: random.Random, question: Question) -> list[dict]:
    """Return the messages before the answer: at times a system message, at times an earlier exchange."""
    messages = [_message("user", question.text)]
    if rng.random() < 0.1:
        messages.insert(0, _message("system", rng.choice(SYSTEM_MESSAGES)))
    if rng.random() < 0.15:
        messages.append(_message("assistant", _draw_text(rng, ADVICE, question.topic, question.thing, 1)))
        messages.append(_message("user", _draw_text(rng, FOLLOW_UPS, question.topic, question.thing, 1)))
    return messages


def draw_responses(rng: random.Random, question: Question, kind: str) -> tuple[str, str]:
    """Return the chosen and the rejected response; half of the time the chosen one has more letters and more words."""
    chosen_is_longer = rng.random() < 0.5
    while True:
        chosen = _draw_text(rng, ADVICE, question.topic, question.thing, rng.randint(1, 2))
        rejected = _draw_rejected(rng, question, kind)
        longer, shorter = (chosen, rejected) if chosen_is_longer else (rejected, chosen)
        if len(longer) > len(shorter) and len(longer.split()) > len(shorter.split()):
            return chosen, rejected


def _draw_rejected(rng: random.Random, question: Question, kind: str) -> str:
    count = rng.randint(1, 2)
    if kind != "off_topic":
        return _draw_text(rng, RUDE if kind == "rude" else EMPTY, question.topic, question.thing, count)
    other = rng.choice([topic for topic in TOPICS if topic is not question.topic])
    return _draw_text(rng, ADVICE, other, rng.choice(other.things), count)


def _draw_text(rng: random.Random, templates: tuple[str, ...], topic: Topic, thing: str, sentences: int) -> str:
    """Return that many different templates filled with words of the topic."""
    drawn = rng.sample(templates, sentences)
    return " ".join(template.format(**_draw_words(rng, topic) | {"thing": thing}) for template in drawn)


def _draw_words(rng: random.Random, topic: Topic) -> dict[str, str]:
    means, more_means = rng.sample(topic.means, 2)
    return {"verb": rng.choice(topic.verbs), "means": means, "more_means": more_means}


def _message(role: str, content: str) -> dict:
    return {"role": role, "content": content}
