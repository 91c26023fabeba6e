"""What holds for every command: names, configuration files, JSON, logs, and what is recorded."""

import contextlib
import inspect
import json
import logging
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import shtab
import yaml

from synthaug._cli import CACHE_COMMANDS, COMMANDS, build_parser
from synthaug._cli import app as _main
from synthaug._cli.app import COMMON
from synthaug._cli.call import Call, Result
from synthaug._cli.generation import PlanOptions
from synthaug._cli.idle import _IDLE, refuse_idle
from synthaug._cli.options import ExtractorOptions
from synthaug._cli.parser import SHARED, arguments
from synthaug._cli.training import EVERY as EVERY_TRAINING
from synthaug._cli.training import METHODS
from synthaug._cli.training_options import PARTS
from tests.command_line import PAGE, documented, fail, run, spy, succeed

ROOT = Path(__file__).parents[1]
EVERY = {**COMMANDS, **{f"cache {name}": f for name, f in CACHE_COMMANDS.items()}}


def refusal(*given: Any) -> str:
    """The message about arguments that do not parse."""
    outcome = run(*given)
    found = re.fullmatch(r"synthaug: error: (.*)\n\(See `synthaug .*--help`.\)\n", outcome.err)
    assert outcome.code == 2
    assert outcome.out == ""
    assert found, outcome.err
    return found[1]


@pytest.fixture
def given(monkeypatch) -> dict[str, Any]:
    """What `train` was called with."""
    values: dict[str, Any] = {}
    monkeypatch.setitem(COMMANDS, "train", spy(COMMANDS["train"], values))
    return values


# Names


def plain_types(kind: Any) -> set[Any]:
    """What a single value of the type is, without choices and None."""
    if get_origin(kind) in (Union, types.UnionType, list, tuple, Sequence):
        return set().union(*map(plain_types, {*get_args(kind)} - {...}))
    python_only = get_origin(kind) is Callable
    return set() if python_only or get_origin(kind) is Literal or kind is types.NoneType else {kind}


def test_one_name_means_one_kind_of_value_in_all_commands():
    found: dict[str, set[Any]] = {}
    for function in EVERY.values():
        for argument in arguments(function):
            found.setdefault(argument.name, set()).update(plain_types(argument.type))
    # `split --test 0.2` makes the test images that all other commands take; `select --keep 0.25` is
    # a share, `--keep 500` a number.
    assert {name: kinds for name, kinds in found.items() if len(kinds) > 1} == {
        "test": {float, str},
        "keep": {float, int},
    }


def test_what_several_commands_share_has_one_default():
    found: dict[str, set[Any]] = {}
    for function in EVERY.values():
        for argument in arguments(function):
            if argument.name in ("seed", "device", "precision", "seeds", "model", "force"):
                found.setdefault(argument.name, set()).add(argument.default)
    assert {name: len(defaults) for name, defaults in found.items()} == dict.fromkeys(found, 1)


def test_every_part_of_the_training_options_is_taken_by_some_method():
    taken = {part for _, parts in METHODS.values() for part in parts}
    assert taken | set(EVERY_TRAINING) == set(PARTS)


@pytest.mark.parametrize("command", [*EVERY, "cache", ""])
def test_the_help_of_a_command_fits_two_screens_and_leads_to_all_options(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = succeed(*command.split(), "--help")
    assert text.count("\n") <= 48
    if command in COMMON:
        everything = succeed(*command.split(), "--help-all")
        assert f"synthaug {command} --help-all" in text
        shown, every = (
            set(re.findall(r"^  (--[\w-]+)", t, re.MULTILINE)) for t in (text, everything)
        )
        assert shown < every
    assert set(COMMON) <= set(EVERY)


@pytest.mark.parametrize("command", EVERY)
def test_every_command_takes_what_all_take(command):
    text = succeed(*command.split(), "--help-all")
    for name in SHARED:
        assert f"--{name.replace('_', '-')}" in text
    assert "_" not in "".join(re.findall(r"^ +(--[\w-]+)", text, re.MULTILINE))


REQUIRED = {"select": ["--real", "digits"], "cache export": ["--format", "folder"]}
"""Options that a command cannot do without."""
WRITES = [
    (command, argument)
    for command, function in EVERY.items()
    for argument in arguments(function)
    if argument.name in ("out", "sheet", "features_dir")
]
GOES_ON = ("demo", "improve", "train", "invert", "cascade")
"""Commands that write into a folder that may be there."""


@pytest.mark.parametrize("place", ["file/x", "link/x", "n" * 300, "n" * 250, "folder"])
@pytest.mark.parametrize(("command", "argument"), WRITES)
def test_no_command_begins_whose_result_has_no_place(
    command, argument, place, monkeypatch, tmp_path
):
    monkeypatch.setattr(_main, "bound", lambda *_: pytest.fail("It began."))
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("link").symlink_to("nowhere")
    for ending in ("", ".html", ".json"):
        Path(f"folder{ending}").mkdir()
    if place == "folder" and (command in GOES_ON or argument.name == "features_dir"):
        place = "file"
    positional = [one.name for one in arguments(EVERY[command]) if one.positional]
    words = [place if name == argument.name else "other" for name in positional]
    option = [] if argument.positional else [f"--{argument.name.replace('_', '-')}", place]
    message = fail(2, *command.split(), *words, *option, *REQUIRED.get(command, ()))
    assert message.endswith(("Choose another name.", "Choose a shorter one."))


def test_flags_may_stand_before_and_after_the_command(given):
    for line in ("-q train digits o", "train digits o -q", "train -q digits o --json"):
        succeed(*line.split())
        assert given["data"] == "digits"


def test_a_switch_can_be_turned_off_again(given, tmp_path):
    (tmp_path / "c.yaml").write_text("data: digits\nout: o\nhorizontal_flip: true\n")
    succeed("train", "--config", tmp_path / "c.yaml")
    assert given["options"].horizontal_flip is True
    succeed("train", "--config", tmp_path / "c.yaml", "--no-horizontal-flip")
    assert given["options"].horizontal_flip is False


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "missing: a command. Commands: demo, improve, split, "),
        ("cache", "missing: a command. Commands: info, verify, "),
        ("trian digits o", "there is no command 'trian'. Did you mean train? Commands: demo, "),
        ("cache exprt", "there is no command 'exprt'. Did you mean export? Commands: info, "),
        ("train digits o --stepz 3", "there is no option --stepz. Did you mean --steps?"),
        ("train digits o --step 3", "there is no option --step. Did you mean --steps?"),
        ("split folder:a o --tets 0.2", "there is no option --tets. Did you mean --test?"),
        ("train digits o p", "Unexpected argument: p."),
        ("train digits", "missing: out."),
        ("evaluate quality", "missing: synthetic, real."),
        ("train digits o --width x", "--width is x, expected a whole number."),
        ("train digits o --low-size x", "--low-size is x, expected a whole number."),
        ("plan run --strength x", "--strength is x, expected a number or several numbers with "),
        ("plan run --counts 3", "--counts is 3, expected a JSON object."),
        ("plan run --algorithm best", "--algorithm is best, expected improved or naive or direct."),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(line, message):
    assert refusal(*line.split()).startswith(message)


IDLE = [
    ("evaluate r s.h5 t --attack-steps 3", "--attack-steps", "without `--adversarial`"),
    ("improve d o --ema-decay 0.5", "--ema-decay", "without `--adversarial`"),
    ("evaluate r s.h5 t --fraction 0.2 --share 0.3", "--fraction", "with `--share` or"),
    ("improve d o --width 8 --cache c.h5", "--width", "with `--checkpoint` or `--cache`"),
    ("improve d o --classes a,b", "--classes", "without `--checkpoint`"),
    ("train d o --canary-seed 3", "--canary-seed", "without `--canaries`"),
    ("plan run --devices 3", "--devices", "without `--estimate`"),
    ("invert c d o --start prompt --start-std 1", "--start-std", "with `--start encoder` or"),
    ("select c.h5 --real d --rules none --features pixels", "--features", "with these"),
    ("select c.h5 --real d --rules mmd --features pixels --folds 3", "--folds", "with these"),
    ("select c.h5 --real d --rules label --features pixels", "--features", "with these"),
    ("audit c.h5 d --deduplicate", "--deduplicate", "without `--holdout`"),
    ("generate r c.h5 --trust-torchscript", "--trust-torchscript", "without a network given"),
]


@pytest.mark.parametrize(("line", "option", "why"), IDLE)
def test_an_option_without_effect_is_refused_unless_it_is_at_its_default(line, option, why):
    request = _main.understand(line.split())
    usual = {one.name: one.default for one in arguments(request.function)}
    with pytest.raises(ValueError, match=f"`{option}` has no effect {re.escape(why)}"):
        refuse_idle(request.call, usual)
    name = option[2:].replace("-", "_")
    refuse_idle(request.call.having(**{name: usual[name]}), usual)


def test_the_command_line_refuses_options_without_effect():
    assert "`--deduplicate` has no effect" in fail(2, "audit", "c.h5", "d", "--deduplicate")


def test_options_without_effect_are_options_of_their_commands():
    for one in _IDLE:
        for command in one.commands:
            assert {*one.options} <= {argument.name for argument in arguments(EVERY[command])}


def test_what_goes_by_position_may_stand_between_options(given):
    succeed("train", "--steps", 3, "digits", "--low-size", 8, "o", "--seed", 1)
    assert (given["data"], given["out"], given["options"].seed) == ("digits", "o", 1)


# Configuration files


def test_a_printed_configuration_repeats_the_call(given, tmp_path):
    line = "train digits runs/a --steps 7 --horizontal-flip --blur-std-range 0.1,0.2"
    succeed(*line.split())
    direct = dict(given)
    config = tmp_path / "train.yaml"
    config.write_text(succeed(*line.split(), "--print-config"))
    given.clear()
    succeed("train", "--config", config)
    assert given == direct
    assert given["options"].blur_std_range == (0.1, 0.2)
    for order in (["--config", config, "--steps", 9], ["--steps", 9, "--config", config]):
        succeed("train", *order)
        assert given["options"].steps == 9


@pytest.mark.parametrize("command", EVERY)
def test_every_example_line_has_a_configuration_that_gives_the_same_call(command, tmp_path):
    text = inspect.getdoc(EVERY[command])
    name = command
    line, *_ = re.findall(rf"^(synthaug {name}\b.*)$", text or "", re.MULTILINE)
    first = succeed(*shlex.split(line)[1:], "--print-config")
    assert first.startswith(f"# synthaug {name} --config ")
    config = tmp_path / "config.yaml"
    config.write_text(first)
    assert succeed(*name.split(), "--config", config, "--print-config") == first


@pytest.mark.parametrize(
    ("command", "text", "message"),
    [
        ("train", "stepz: 3", "FILE: there is no argument 'stepz'. Did you mean steps?"),
        ("train", "job: {steps: 3}", "FILE: there is no argument 'job'."),
        ("train", "1: seed", "FILE: there is no argument '1'."),
        ("cache info", "shet: a.png", "FILE: there is no argument 'shet'. Did you mean sheet?"),
        ("train", "[1, 2]", "FILE must hold names and values, such as `seed: 1`."),
        ("train", "", "FILE must hold names and values, such as `seed: 1`."),
        ("train", "steps: many", "--steps is many, expected a whole number."),
        ("train", "steps: 1.5", "--steps is 1.5, expected a whole number."),
        ("train", "steps: true", "--steps is True, expected a whole number."),
        (
            "train",
            "precision: float8",
            "--precision is float8, expected auto or float32 or bfloat16.",
        ),
    ],
)
def test_a_configuration_is_held_to_the_same_rules(tmp_path, command, text, message):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    found = refusal(
        *command.split(), *(["digits", "o"] if command == "train" else []), "--config", config
    )
    assert found.replace(str(config), "FILE") == message


def test_a_configuration_without_a_name_takes_no_other_argument_for_one():
    assert refusal("train", "digits", "o", "--config").startswith("argument --config: expected")


def test_a_configuration_may_leave_out_dots_and_has_lists_and_nothing(given, tmp_path):
    lines = ("learning_rate: 1e-4", "snapshots: [1, 2]", "blur-std-range: [0, 1]", "device: null")
    (tmp_path / "c.yaml").write_text("\n".join(lines))  # 1e-4 is text in YAML 1.1
    succeed("train", "digits", "o", "--config", tmp_path / "c.yaml")
    options = given["options"]
    assert (options.learning_rate, options.snapshots) == (1e-4, (1, 2))
    assert (options.blur_std_range, options.device) == ((0.0, 1.0), None)


def test_a_configuration_that_is_missing_is_named(tmp_path):
    assert "nowhere.yaml" in refusal("train", "--config", tmp_path / "nowhere.yaml")


# Results


def test_the_page_has_the_result_of_every_command():
    assert set(documented()) == set(EVERY)


def test_the_line_that_is_recorded_repeats_the_call(given):
    line = "train 'my digits' o --steps 3 --blur-std-range 0.1,0.2 --degradation-settings"
    succeed(*shlex.split(line), '{"a": 1}')
    first = dict(given)
    succeed(*shlex.split(given["call"].line)[1:])
    assert given == first
    call = Call("cache merge", {"out": "a", "caches": ["b", "c d"]}, {"out", "caches"})
    assert call.line == "synthaug cache merge a b 'c d'"


def test_features_are_kept_until_the_report_that_needs_them_is_written(tmp_path):
    out = tmp_path / "density"
    with (
        contextlib.suppress(KeyboardInterrupt),
        ExtractorOptions().kept(str(out)) as folder,
    ):
        Path(folder).mkdir()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["density.unfinished"]
    with ExtractorOptions().kept(str(out)) as folder:
        assert Path(folder).exists()
    assert not list(tmp_path.iterdir())
    with ExtractorOptions(features_dir="mine").kept(str(out)) as folder:
        assert folder == "mine"


def test_a_mix_is_switched_off_by_name_and_left_alone_without():
    settings = ("scheduler", "log_variance_mix")
    options: Any = PlanOptions  # its options are declared elsewhere
    assert options(log_variance_mix="none").given(*settings) == {"log_variance_mix": None}
    assert options(scheduler="ddim").given(*settings) == {"scheduler": "ddim"}


def test_an_error_leaves_standard_output_empty(tmp_path):
    outcome = run("cache", "info", tmp_path / "none.h5", "--json")
    assert (outcome.code, outcome.out) == (4, "")
    assert "none.h5" in outcome.err


def test_what_a_command_prints_on_the_way_does_not_disturb_its_json(monkeypatch):
    def talks() -> Result:
        """Talks."""
        print("half way")
        return Result(record={"a": 1, "b": math.nan}, text="a is 1", code=3)

    monkeypatch.setitem(COMMANDS, "demo", talks)
    outcome = run("demo", "--json")
    assert json.loads(outcome.out)["result"] == {"a": 1, "b": None}
    assert outcome.err == "half way\n"
    assert outcome.code == json.loads(outcome.out)["exit_code"] == 3
    assert run("demo").out == "half way\na is 1\n"
    monkeypatch.setenv("RANK", "1")  # one process of several speaks
    assert run("demo").out == "half way\n"


# Logs


@pytest.mark.parametrize(
    ("option", "heard"),
    [
        ([], ["synthaug: careful", "synthaug: beware"]),
        (["-q"], ["synthaug: careful", "synthaug: beware"]),
        (["-v"], ["synthaug: synthaug demo", "synthaug: decided", "synthaug: careful"]),
    ],
)
def test_verbose_tells_what_is_decided_and_all_settings(monkeypatch, option, heard):
    bars: dict[str, str | None] = {}

    def logs() -> Result:
        """Logs."""
        logging.getLogger("synthaug").info("decided")
        logging.getLogger("synthaug._plan").warning("careful")
        warnings.warn("beware", stacklevel=1)
        bars.update({name: os.environ.get(name) for name in _main._QUIET})
        return Result(record={})

    for name in _main._QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(COMMANDS, "demo", logs)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        lines = run("demo", *option).err.splitlines()
    assert lines[: len(heard)] == heard
    assert bars == (_main._QUIET if option == ["-q"] else dict.fromkeys(_main._QUIET))
    assert not set(_main._QUIET) & set(os.environ)
    assert not logging.getLogger("synthaug").handlers


# The page


def test_the_page_names_every_exit_code_and_environment_variable():
    sources = "".join(path.read_text() for path in (ROOT / "synthaug").rglob("*.py"))
    variables = set(re.findall(r"\bSYNTHAUG_[A-Z_]+\b", sources))
    text = PAGE.read_text()
    for name in variables:
        assert f"`{name}`" in text
    for code in re.findall(r"\b(\d+)\b", str(_main.__doc__)):
        if code != "1":
            assert re.search(rf"^\| {code} \|", text, re.MULTILINE), code


def test_arguments_are_checked_before_anything_heavy_is_loaded():
    code = "from synthaug._cli import build_parser; build_parser(); import sys; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    loaded = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert not {"torch", "numpy", "PIL", "h5py"} & set(loaded.split())


def test_the_package_can_be_run_as_a_module(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["synthaug", "--version"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("synthaug", run_name="__main__")
    assert stop.value.code == 0


def test_the_configuration_shown_on_the_page_is_one_that_the_command_takes(given, tmp_path):
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "c.yaml").write_text(block)
    succeed("train", "--config", tmp_path / "c.yaml")
    plain = yaml.safe_load(block)
    assert given["data"] == plain["data"]
    assert given["options"].steps == plain["steps"]


def test_training_options_that_have_no_meaning_are_refused_before_anything_is_read():
    line = ["train", "folder:/nowhere", "o", "--num-tokens", 3]
    assert fail(2, *line).startswith("`--num-tokens` has no meaning with --condition labels")


def test_shells_can_complete_commands_and_options(tmp_path):
    script = tmp_path / "synthaug.bash"
    script.write_text(shtab.complete(build_parser(), "bash"))
    for typed, expected in (("gen", "generate"), ("generate x y --per", "--per-class")):
        words = " ".join(["synthaug", typed])
        asked = f"COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}; _shtab_synthaug"
        printed = subprocess.run(
            ["bash", "-c", f"source {script}; {asked}; echo ${{COMPREPLY[*]}}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert printed.stdout.split() == [expected]
