"""A default exists once: what the shell and Python share has the same one in both."""

import inspect
from collections.abc import Iterator
from typing import Any

import synthaug
from synthaug import evaluation, synthesizers
from synthaug._cli import CACHE_COMMANDS, COMMANDS
from synthaug._cli.declared import defaults, row_parameters, settings
from synthaug._cli.parser import Argument, arguments
from synthaug._cli.training import METHODS as TRAININGS
from synthaug._cli.training import _config
from synthaug._cli.training_options import TrainOptions
from tests.called_by_commands import PYTHON, PYTHON_NAMES, DemoSettings

EVERY = {**COMMANDS, **{f"cache {name}": f for name, f in CACHE_COMMANDS.items()}}
IMAGES_NOT_NETWORK = "`--channels` is of the images; the width of a network is `--width`"
OF_TRAINING = "`--steps` is of the training, `--attack-steps` of the attack"
SAID_BY_THE_COMMAND = "required in Python; the command has a message of its own if it is missing"
DIFFERENT = {
    ("out", "demo"): "a report has a default name in the shell",
    ("channels", "LabeledConfig"): IMAGES_NOT_NETWORK,
    ("channels", "RestorerConfig"): IMAGES_NOT_NETWORK,
    ("width", "load_dataset"): IMAGES_NOT_NETWORK,
    ("channels", "ImproveConfig"): IMAGES_NOT_NETWORK,
    ("canaries", "CanaryConfig"): "None plants none",
    ("learning_rate", "TrainingConfig"): "None is that of the method: see the next test",
    ("precision", "LowDensity.fit"): "`--precision` is of the training, `dtype` of the base",
    ("base", "LowDensity.fit"): SAID_BY_THE_COMMAND,
    ("low_size", "StageConfig"): SAID_BY_THE_COMMAND,
    ("features", "score_hardness"): SAID_BY_THE_COMMAND,
    ("features", "score_quality"): SAID_BY_THE_COMMAND,
    ("certificates", "ContentCredentials"): SAID_BY_THE_COMMAND,
    ("real", "SourceMasks.__init__"): SAID_BY_THE_COMMAND,
    ("private_key", "ContentCredentials"): SAID_BY_THE_COMMAND,
    ("validation", "sweep"): SAID_BY_THE_COMMAND,
    ("degradation", "ColdDiffusion.fit"): "required in Python, where it is an object",
    ("num_cpus", "RayEngine"): "None is not given, so that other engines can refuse it",
    ("seeds", "check_labels"): "a number in the shell, the seeds in Python: see the next test",
    ("audit", "MixedDataset.__init__"): "required in Python: whether there was an audit is said",
    ("audit", "scaling_arms"): "required in Python: whether there was an audit is said",
    ("fraction", "MixedDataset.__init__"): "the mixed arm needs one; a mixture may have `ratio`",
    ("ratios", "scaling_arms"): "None is the four standard arms",
    ("forgotten", "import_images"): "None is no cache",
    ("test", "split_for_audit"): "to test with in the shell, for an audit in Python",
    ("steps", "AdversarialConfig"): OF_TRAINING,
    ("attack_steps", "ClassifierConfig"): OF_TRAINING,
    ("unit", "ClassifierGuidance"): "`--unit` is that of LowDensity, whose default is the same",
    ("augment", "Arm"): "an arm that is made alone says itself how it is augmented",
    ("pipeline", "FromPipeline.__init__"): "a switch in the shell, an object in Python",
    ("arguments", "FromPipeline.__init__"): "any names in Python",
    (
        "classes",
        "FromPipeline.__init__",
    ): "required in Python; the command asks for them if need be",
    ("negative_prompt", "ClassConditional.from_pretrained"): "None does not ask for the pipeline",
    ("negative_prompt", "DiffusionInversion.from_pretrained"): "None does not ask for the pipeline",
    ("padding", "StandardAugment"): "None is the standard augmentation of each image size",
}
"""Why a default differs between the shell and what it calls, by option and name there."""
SHELL_ONLY = {
    "accept", "allow_overlap", "arguments", "audit", "augmentations", "autoencoder", "balance",
    "cache", "classifier", "condition", "degradation_settings", "device", "dry_run", "estimate",
    "features", "features_dir", "fraction", "generator_license", "generator_steps", "labels",
    "link", "log_with", "method", "others", "out", "padding",
    "ratios", "recipe", "seed", "selection", "sheet", "source", "source_license", "trial",
    "trust_torchscript", "validation",
    *(one.name for one in row_parameters()), *(one.name for one in settings()),
}  # fmt: skip
"""Options without a parameter of the name in what is called: objects in Python, or texts."""


def shared() -> Iterator[tuple[str, Argument, str, Any]]:
    """All that commands share with Python: command, option, what it is of there, default there."""
    for command, function in EVERY.items():
        for argument in arguments(function):
            for called in PYTHON[command]:
                for name in {argument.name, PYTHON_NAMES.get(argument.name, argument.name)}:
                    parameter = inspect.signature(called).parameters.get(name)
                    if parameter is not None and not argument.positional:
                        yield command, argument, called.__qualname__, parameter.default


def test_every_command_says_what_it_calls():
    assert set(PYTHON) == set(EVERY)


def test_what_shell_and_python_share_has_one_default():
    differing = {
        (argument.name, called): (command, argument.default, default)
        for command, argument, called, default in shared()
        if argument.default != default
    }
    assert {key: value for key, value in differing.items() if key not in DIFFERENT} == {}
    assert set(DIFFERENT) == set(differing)  # no reason outlives its exception


def test_no_option_escapes_the_comparison():
    compared = {(command, argument.name) for command, argument, *_ in shared()}
    alone = {
        argument.name
        for command, function in EVERY.items()
        for argument in arguments(function)
        if not argument.positional and (command, argument.name) not in compared
    }
    assert alone <= SHELL_ONLY


def test_a_learning_rate_that_is_not_given_is_that_of_the_method():
    def chosen(kind: str, **options: Any) -> float:
        return _config(TrainOptions(**options), kind).learning_rate

    rate = synthaug.TrainingConfig().learning_rate
    for kind in TRAININGS:
        tuned = kind == "--method finetune"
        assert chosen(kind) == (synthesizers.FineTuningConfig().learning_rate if tuned else rate)
        assert chosen(kind, learning_rate=0.5) == 0.5
    adapted = synthesizers.FineTuningConfig(lora_rank=4).learning_rate
    assert chosen("--method finetune", lora_rank=4) == adapted != chosen("--method finetune")


def test_as_many_classifiers_check_labels_as_in_python():
    (seeds,) = (one for one in arguments(EVERY["evaluate labels"]) if one.name == "seeds")
    default = inspect.signature(evaluation.check_labels).parameters["seeds"].default
    assert tuple(range(seeds.default)) == default


def test_defaults_are_read_from_the_source_as_the_interpreter_has_them(tmp_path):
    read = vars(defaults("_audit.run:audit"))
    signature = inspect.signature(synthaug.audit).parameters
    assert read == {n: p.default for n, p in signature.items() if p.kind is p.KEYWORD_ONLY}
    assert vars(defaults("_demo:DemoSettings")) == {
        name: getattr(DemoSettings, name) for name in DemoSettings.__dataclass_fields__
    }
