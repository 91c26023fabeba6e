"""What a synthesizer declares reaches plan, validation, command line, sweep, papers and pages."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from synthaug._cli.declared import drawing_options, row_parameters
from synthaug._cli.generation import PlanOptions
from synthaug.synthesizers import METHODS, Method, RowParameter, SamplerConfig, register
from synthaug.synthesizers._registry import parameter_table
from synthaug.synthesizers._sampler import SAMPLER_SETTINGS
from tests import processes
from tests.tiny.cascades import tiny_cascade
from tests.tiny.class_conditional import tiny

pytestmark = pytest.mark.usefixtures("few_steps")

ROOT = Path(__file__).parents[1]

CLOUDS = '''
"""A synthesizer in one file: everything that others know of it stands in METHOD."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthaug._training.loop import TrainingResult
from tests.images import randn
from synthaug.synthesizers import (
    AbstractSynthesizer, Method, Paper, RowParameter, Setting, register, streams
)

PAPER = Paper("howard1803modification", "On the Modifications of Clouds", "Howard, Luke", 1803,
              "Philosophical Magazine", "0000.00000")
METHOD = Method(
    name="Clouds", module=__name__, title="Clouds", has_sampler=False, papers=(PAPER,),
    trainings=("clouds",),
    row_parameters=(
        RowParameter(name="cover", help="Fraction of the sky.", default=0.5, high=1, sweep=(0.2,)),
    ),
    settings=(Setting(name="drops", type=int, help="Drops in each cloud."),),
)


@dataclass(frozen=True)
class Clouds(AbstractSynthesizer):
    drops: int = 3
    row_parameters = METHOD.row_parameters
    classes = ("cirrus", "cumulus")
    image_shape = (1, 4, 4)

    def draw(self, rows):
        return randn(streams(rows["seed"]), self.image_shape).clamp(-1, 1)

    def recipe(self):
        return {"synthesizer": METHOD.name, "settings": {"drops": self.drops}}

    def evaluations(self, rows):
        return np.ones(len(rows), np.int64)

    @classmethod
    def fit(cls, real, output_dir, *, config):
        Path(output_dir).mkdir()
        (Path(output_dir) / "synthaug.json").write_text(json.dumps({"synthesizer": METHOD.name}))
        return cls(), TrainingResult(step=config.steps)

    @classmethod
    def from_pretrained(cls, path, *, classes, dtype, device, **settings):
        return cls(**settings)


register(METHOD)
'''

DRIVER = """
import json, sys
import clouds
from synthaug.sweeps import default_grid
from synthaug.synthesizers._registry import parameter_table
from tests.command_line import run

lines = json.loads(sys.argv[1])
found = {name: vars(run(*line)) for name, line in lines.items()}
found["table"], found["grid"] = parameter_table(), default_grid(clouds.Clouds())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def clouds(tmp_path_factory) -> dict[str, Any]:
    """What a process prints in which the file was imported, and nothing else was done."""
    folder = tmp_path_factory.mktemp("clouds")
    (folder / "clouds.py").write_text(CLOUDS)
    (folder / "model").mkdir()
    (folder / "model" / "synthaug.json").write_text('{"synthesizer": "Clouds"}')
    draw = ["model", "c.h5", "--per-class", "2", "--cover", "0.2,0.9", "--drops", "7"]
    lines = {
        "help": ["plan", "--help-all"],
        "plan": ["plan", "model", "--per-class", "2", "--json"],
        "refused": ["plan", "model", "--per-class", "2", "--cover", "1.5", "--noise", "1"],
        "setting": ["plan", "model", "--per-class", "2", "--eta", "1"],
        "generate": ["generate", *draw],
        "info": ["cache", "info", "c.h5", "--json"],
        "cite": ["cite", "c.h5"],
        "sweep": ["sweep", "--help-all"],
        "train": ["train", "digits", "trained", "--method", "clouds", "--steps", "7"],
        "trained": ["plan", "trained", "--per-class", "2", "--json"],
        "foreign": ["train", "digits", "o", "--method", "clouds", "--width", "8"],
    }
    done = processes.run(DRIVER, json.dumps(lines), cwd=folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.xdist_group("forkserver")
def test_a_synthesizer_in_one_file_is_planned_drawn_and_described_by_the_command_line(clouds):
    for name in ("help", "sweep"):
        assert re.search(r"--cover FLOAT,...\s+Fraction of the sky.", clouds[name]["out"]), name
    assert re.search(r"Clouds:\n  --cover", clouds["help"]["out"])
    assert re.search(r"--drops INT\s+Drops in each cloud.", clouds["help"]["out"])
    assert "By default 0.2." in clouds["sweep"]["out"]
    planned = json.loads(clouds["plan"]["out"])["result"]
    assert planned["classes"] == {"cirrus": 2, "cumulus": 2}
    assert "4 done" in clouds["generate"]["out"], clouds["generate"]["err"]
    recipe = json.loads(clouds["info"]["out"])["result"]["manifest"]["recipe"]
    assert recipe == {"synthesizer": "Clouds", "settings": {"drops": 7}}


@pytest.mark.xdist_group("forkserver")
def test_all_that_is_wrong_with_its_parameters_is_said_at_once(clouds):
    assert clouds["refused"]["code"] == clouds["setting"]["code"] == 2
    message = clouds["refused"]["err"]
    assert "`--cover` must be in [0, 1], got 1.5" in message
    assert "There is no --noise for model, which is drawn by Clouds." in message


@pytest.mark.xdist_group("forkserver")
def test_it_is_trained(clouds):
    assert clouds["train"]["out"].startswith("7 steps. Checkpoint: trained."), clouds["train"]
    assert json.loads(clouds["trained"]["out"])["result"]["classes"]["cirrus"] == 2
    assert "`--width` has no meaning with --method clouds" in clouds["foreign"]["err"]


@pytest.mark.xdist_group("forkserver")
def test_it_is_swept_cited_and_listed(clouds):
    assert clouds["grid"] == {"cover": [0.2]}
    assert clouds["cite"]["out"].startswith("Howard 1803. On the Modifications of Clouds.")
    assert "| `Clouds` | `cover` | in [0, 1] | 0.5 | Fraction of the sky. |" in clouds["table"]


def test_a_name_is_registered_once():
    register(METHODS["Cascade"])
    other = dataclasses.replace(METHODS["Cascade"], title="Other cascades")
    with pytest.raises(ValueError, match="A synthesizer called 'Cascade' exists already"):
        register(other)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_every_class_declares_what_its_registration_says(method: Method):
    kind = method.load()
    assert kind.__name__ == method.name
    assert kind.row_parameters is method.row_parameters
    fields = {field.name: field for field in dataclasses.fields(kind)}
    assert {setting.name for setting in method.settings} <= fields.keys()
    for parameter in method.row_parameters:
        assert parameter.default is None or parameter.problem(parameter.default) is None
        assert all(parameter.problem(value) is None for value in parameter.sweep)
        assert parameter.help.endswith(".")


def test_the_options_of_plan_and_generate_are_what_is_declared():
    made = {field.name for part in drawing_options() for field in dataclasses.fields(part)}
    declared = {parameter.name for parameter in row_parameters()}
    declared |= {s.name for method in METHODS.values() for s in method.settings}
    assert made == declared | {setting.name for setting in SAMPLER_SETTINGS}
    options: Any = PlanOptions
    assert made <= {field.name for field in dataclasses.fields(options)}


def test_the_settings_of_a_sampler_have_the_help_of_its_docstring():
    assert [s.name for s in SAMPLER_SETTINGS] == [f.name for f in dataclasses.fields(SamplerConfig)]
    assert all(setting.help.endswith(".") for setting in SAMPLER_SETTINGS)
    assert {s.name for s in SAMPLER_SETTINGS if s.optional} == {"scheduler", "log_variance_mix"}


def test_the_page_shows_all_row_parameters():
    assert parameter_table() in (ROOT / "docs" / "choosing.md").read_text()


@pytest.mark.parametrize(
    ("changes", "value", "message"),
    [
        ({}, -1, "`x` must not be negative, got -1."),
        ({}, [0.5, float("nan")], "`x` must not be negative, got [0.5, nan]."),
        ({}, "much", "`x` must be a number or a list of numbers, got 'much'."),
        ({}, [], "`x` must be a number or a list of numbers, got []."),
        ({}, "2", "`x` must be a number or a list of numbers, got '2'."),
        ({}, True, "`x` must be a number or a list of numbers, got True."),
        ({}, None, "`x` must be a number or a list of numbers, got None."),
        ({"high": 1}, 1.5, "`x` must be in [0, 1], got 1.5."),
        ({"high": 1, "low_included": False}, 0, "`x` must be in (0, 1], got 0."),
        ({"low": 1}, 0.5, "`x` must be at least 1, got 0.5."),
        ({"type": int}, 0.5, "`x` must be a whole number at least 0, got 0.5."),
        ({"type": int, "choices": (10, 20)}, [10, 15], "`x` must be one of 10, 20, got [10, 15]."),
        ({"type": bool}, 2, "`x` must be True or False, got 2."),
        ({"type": bool}, [True, False], "`x` must be True or False, got [True, False]."),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named_with_the_range(changes, value, message):
    assert RowParameter(name="x", help="X.", **changes).problem(value) == message


def test_all_problems_of_a_plan_are_in_one_error_and_the_closest_name_is_suggested():
    with pytest.raises(ValueError, match="did you mean 'guidance_scale'") as caught:
        tiny().plan(per_class=1, guidance=2, strength=0.5, guidance_scale=-1)
    known = "known: guidance_scale."
    assert str(caught.value).splitlines() == [
        f"Unknown row parameter 'guidance' (did you mean 'guidance_scale'?); {known}",
        f"Unknown row parameter 'strength' (`strength` needs `with_sources`); {known}",
        "`guidance_scale` must not be negative, got -1.",
    ]


def test_settings_change_in_all_models_and_unknown_ones_are_refused():
    assert tiny().with_settings(eta=0.5).sampler == SamplerConfig(num_inference_steps=4, eta=0.5)
    cascade = tiny_cascade().with_settings(num_inference_steps=2, truncated=True)
    assert cascade.truncated
    assert {chain.sampler.num_inference_steps for chain in cascade._chains} == {2}
    with pytest.raises(ValueError, match="Unknown setting 'etta'"):
        tiny().with_settings(etta=0.5)
