"""Options that have no effect beside others: given all the same, they are refused.

An option that belongs to another method is refused where methods are chosen, and one that a
checkpoint cannot follow where it is loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from synthaug._cli.call import Call
from synthaug._cli.parser import option

Arguments: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class _Idle:
    """Options of some commands that do nothing in a certain case."""

    commands: tuple[str, ...]
    options: tuple[str, ...]
    case: Callable[[Arguments], bool]
    """Whether they do nothing beside these arguments."""
    why: str
    """The case, to go on after "has no effect"."""


_DISTANCES = ("support", "distinct", "k-center", "facility-location", "mmd")
"""Rules of `select` that measure distances."""


def _without(name: str) -> Callable[[Arguments], bool]:
    return lambda arguments: arguments[name] is None


def _runs_no_program(arguments: Arguments) -> bool:
    """Whether no network is named that `--trust-torchscript` is about."""
    named = [arguments.get(name) for name in ("features", "classifier")]
    return not any("torchscript:" in str(one) for one in named)


def _judges_nothing(arguments: Arguments) -> bool:
    """Whether no rule of `select` asks a classifier, and distances have features of their own."""
    rules = str(arguments["rules"])
    measured = arguments["features"] is not None or rules == "none"
    return measured and "label" not in rules and "useful" not in rules


_IDLE = (
    _Idle(
        ("evaluate", "improve"),
        ("step_size", "attack_steps", "test_steps", "restarts", "attack_mode", "ema_decay"),
        _without("adversarial"),
        "without `--adversarial`",
    ),
    _Idle(
        ("evaluate",),
        ("fraction",),
        lambda arguments: arguments["share"] is not None or arguments["ratios"] is not None,
        "with `--share` or `--ratios`, which say how many synthetic images there are",
    ),
    _Idle(
        ("improve",),
        ("generator_steps", "width"),
        lambda arguments: arguments["checkpoint"] is not None or arguments["cache"] is not None,
        "with `--checkpoint` or `--cache`: no generator is trained",
    ),
    _Idle(("improve",), ("classes",), _without("checkpoint"), "without `--checkpoint`"),
    _Idle(
        ("train",), ("canary_doses", "canary_seed"), _without("canaries"), "without `--canaries`"
    ),
    _Idle(
        ("plan",),
        ("batch_size", "devices"),
        lambda arguments: not arguments["estimate"],
        "without `--estimate`",
    ),
    _Idle(
        ("invert",),
        ("start_std",),
        lambda arguments: arguments["start"] in ("encoder", "prompt"),
        "with `--start encoder` or `--start prompt`, which start without noise",
    ),
    _Idle(
        ("select",),
        ("runs", "folds", "model", "steps", "batch_size", "learning_rate", "weight_decay"),
        _judges_nothing,
        "with these `--rules`: no classifier is trained",
    ),
    _Idle(
        ("select",),
        ("features",),
        lambda arguments: not any(rule in str(arguments["rules"]) for rule in _DISTANCES),
        "with these `--rules`: none of them measures distances",
    ),
    _Idle(("audit",), ("deduplicate",), _without("holdout"), "without `--holdout`"),
    _Idle(
        (
            "audit",
            "select",
            "sweep",
            "train",
            "evaluate density",
            "evaluate quality",
            "plan",
            "generate",
        ),
        ("trust_torchscript",),
        _runs_no_program,
        "without a network given as `torchscript:FILE`",
    ),
)


def refuse_idle(call: Call, usual: Arguments) -> None:
    """Refuses options that have no effect beside the others, unless they are at their defaults.

    The line that a report records states all options, and must be accepted again.

    Args:
        call: The command and its arguments.
        usual: The defaults of the command.

    Raises:
        ValueError: Naming the option and the case.
    """
    for one in _IDLE:
        if call.command not in one.commands or not one.case(call.arguments):
            continue
        for name in one.options:
            if name in usual and call.arguments[name] != usual[name]:
                raise ValueError(f"`{option(name)}` has no effect {one.why}. Leave it out.")
