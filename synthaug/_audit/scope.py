"""The three ways to ask whether a generator keeps its training images, and what each can say."""

from typing import Literal, NamedTuple

Way = Literal["distances", "membership", "canaries"]


class Scope(NamedTuple):
    """The question that one test asks, and the reach of its answer."""

    question: str
    how: str
    """What to run."""
    means: str
    """What a pass means."""
    means_not: str
    """What a pass does not mean."""


SCOPES: dict[Way, Scope] = {
    "distances": Scope(
        "Do synthetic images look like training images?",
        "synthaug audit",
        "None of these images is a copy of the kinds that the report says it would have noticed.",
        "Other images of the same model may be copies, and its weights may still tell who was "
        "trained on.",
    ),
    "membership": Scope(
        "Does the model restore training images better than images that it never saw?",
        "synthaug evaluate membership",
        "Whoever tries this attack, with the model in hand, learns no more about membership than "
        "the interval allows.",
        "Stronger attacks may learn more, and it says nothing about single images that were "
        "trained on often.",
    ),
    "canaries": Scope(
        "Do marks that only training images bear come back in synthetic ones?",
        "synthaug train --canaries, synthaug evaluate canaries",
        "Images repeated as often as the canaries were do not come back in this many images more "
        "often than the intervals allow.",
        "Canaries are few and unlike other images; those of another model, or more images of this "
        "one, may show more.",
    ),
}


def scope_sentence(done: Way) -> str:
    """Says in one line which of the three ways was taken, and how to take the others."""
    others = [f"{way} (`{scope.how}`)" for way, scope in SCOPES.items() if way != done]
    return f"This looks at {done} only, and not at {' or '.join(others)}."


def scope_table(done: Way) -> list[list[str]]:
    """The three ways as a table of text, header first."""
    rows = [["", "done here", "question", "a pass means", "a pass does not mean"]]
    for way, scope in SCOPES.items():
        answer = "yes" if way == done else f"no: {scope.how}"
        rows.append([way, answer, scope.question, scope.means, scope.means_not])
    return rows
