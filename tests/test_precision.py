"""Precision "auto": what it stands for on a machine, and that what was begun keeps its own."""

import json
import logging
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from synthaug import ClassifierConfig, OnTheFlyDataset, Plan, SynthCache, TrainingConfig, generate
from synthaug._generate.actors import Drawer
from synthaug._support.precision import (
    _slowdown,
    _warn_once,
    has_bfloat16,
    recorded_precision,
    resolve_precision,
)
from synthaug._training.loop import TrainingTask, train
from synthaug.errors import MismatchError
from synthaug.features import Pixel
from synthaug.sweeps import SweepConfig, sweep
from synthaug.synthesizers import Cascade, ClassConditional, ColdDiffusion, DiffusionInversion
from tests.classifiers import evaluate
from tests.command_line import fail, succeed
from tests.tiny import cascades, cold, inversions, low_density
from tests.tiny.class_conditional import tiny

pytestmark = pytest.mark.usefixtures("few_steps", "linear_classifiers")

CPU = torch.device("cpu")
QUERIES = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
Machine = Callable[[bool], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Goes to a machine that has bfloat16 in hardware, or to one that has not."""

    def go(bfloat16: bool) -> None:
        monkeypatch.setattr("synthaug._support.precision.has_bfloat16", lambda device: bfloat16)
        monkeypatch.setattr("synthaug._support.precision._WIDE", 1)  # our networks are tiny

    return go


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has torch's queries answer so; None takes a query away."""
    monkeypatch.setattr("synthaug._support.precision.has_bfloat16", has_bfloat16)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    def of(*answers: bool | None) -> None:
        for query, answer in zip(QUERIES, answers, strict=True):
            if answer is None:
                monkeypatch.delattr(torch.cpu, query, raising=False)
            else:
                monkeypatch.setattr(torch.cpu, query, lambda answer=answer: answer, raising=False)

    return of


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has not warned yet, where bfloat16 is 571 times as slow."""
    _warn_once.cache_clear()
    monkeypatch.setattr("synthaug._support.precision._slowdown", lambda kind: 571.4)
    yield
    _warn_once.cache_clear()


# What it stands for


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        ((False, False), "float32"),  # AVX2
        ((True, False), "bfloat16"),  # AVX-512 with bfloat16
        ((False, True), "bfloat16"),  # AMX
        ((True, None), "bfloat16"),
        ((None, False), "float32"),
        ((None, None), "float32"),
    ],
)
def test_a_processor_gets_bfloat16_if_torch_says_that_it_has_it(processor, answers, chosen):
    processor(*answers)
    assert resolve_precision("auto", CPU) == chosen


def test_a_limit_of_the_instructions_takes_bfloat16_away(monkeypatch, processor):
    processor(True, True)
    for limit in ("SSE41", "AVX2", "AVX2_VNNI_2", "avx512_core_vnni"):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert not has_bfloat16(CPU)
    for limit in ("AVX512_CORE_BF16", "avx512_core_amx", "AVX10_1_512_AMX_FP16", "ALL"):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert has_bfloat16(CPU)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not has_bfloat16(CPU)


def test_a_narrow_network_with_group_normalization_stays_in_float32_on_a_cpu(processor, caplog):
    processor(True, False)
    caplog.set_level(logging.INFO, "synthaug")

    def network(width: int, *more: torch.nn.Module) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), *more)

    chosen = {
        (width, len(more)): resolve_precision("auto", CPU, network=network(width, *more))
        for width in (32, 64)
        for more in ((), (torch.nn.GroupNorm(4, width),))
    }
    assert [key for key, found in chosen.items() if found == "float32"] == [(32, 1)]
    assert "where so narrow a network is slower" in caplog.messages[1]


@pytest.mark.parametrize(("native", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_gets_bfloat16_if_it_need_not_emulate_it(monkeypatch, processor, native, chosen):
    processor(not native, not native)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert resolve_precision("auto", torch.device("cuda:1")) == chosen


def test_other_devices_get_float32(processor):
    processor(True, True)
    assert resolve_precision("auto", torch.device("mps")) == "float32"


@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("begun", ["float32", "bfloat16"])
def test_what_was_begun_keeps_its_precision_unless_another_is_given(machine, here, begun):
    machine(here)
    assert resolve_precision("auto", CPU, begun=begun) == begun
    for given in ("float32", "bfloat16"):
        assert resolve_precision(given, CPU, begun=begun) == given


def test_the_choice_is_logged_with_its_reason(machine, caplog):
    caplog.set_level(logging.INFO, "synthaug")
    machine(True)
    resolve_precision("auto", CPU)
    resolve_precision("auto", CPU, begun="float32")
    resolve_precision("float32", CPU)
    assert caplog.messages == [
        "precision bfloat16: cpu has bfloat16 in hardware",
        "precision float32, as it was begun",
    ]


@pytest.mark.parametrize("wrong", ["float16", "bf16", "Auto", "", None])
def test_what_is_no_precision_is_refused_with_those_that_there_are(wrong):
    images = cascades.real()
    for ask in (
        lambda: resolve_precision(wrong, CPU),
        lambda: TrainingConfig(precision=wrong),
        lambda: evaluate({"a": images}, test=images, precision=wrong),
    ):
        with pytest.raises(ValueError, match="must be one of 'auto', 'float32', 'bfloat16', got"):
            ask()


# The warning


def test_bfloat16_where_it_is_emulated_warns_once_with_the_measured_ratio(machine, emulated):
    machine(False)
    with pytest.warns(UserWarning, match=r"emulates bfloat16: .* took 571 times as long"):
        resolve_precision("bfloat16", CPU)
    resolve_precision("bfloat16", CPU)  # a second warning would be an error


def test_there_is_no_warning_where_bfloat16_is_as_fast_or_is_not_used(
    machine, emulated, monkeypatch
):
    machine(False)
    resolve_precision("float32", CPU)
    resolve_precision("auto", CPU)
    machine(True)
    resolve_precision("bfloat16", CPU)
    machine(False)
    monkeypatch.setattr("synthaug._support.precision._slowdown", lambda kind: 0.9)
    resolve_precision("bfloat16", CPU)  # a processor that torch has no query for


def test_loading_in_bfloat16_warns_too(machine, emulated, tmp_path):
    tiny().save_pretrained(tmp_path)
    machine(False)
    with pytest.warns(UserWarning, match="emulates bfloat16"):
        ClassConditional.from_pretrained(tmp_path, dtype=torch.bfloat16)
    ClassConditional.from_pretrained(tmp_path, dtype="bfloat16")


def test_the_ratio_is_that_of_two_products_and_takes_a_moment(monkeypatch):
    clock = iter(np.arange(0, 1000, 0.25).tolist())
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert _slowdown("cpu") == 1.0  # by a clock for which every product takes as long
    monkeypatch.undo()
    assert _slowdown("cpu") > 0


# Loading


def dtypes(synthesizer: Any) -> set[torch.dtype]:
    """Of all networks that draw."""
    if isinstance(synthesizer, Cascade):
        models = [synthesizer.base.model, *(stage.model for stage in synthesizer.stages)]
        networks = [model.network for model in models]
        networks += [s.level_embedding for s in synthesizer.stages if s.level_embedding]
    elif isinstance(synthesizer, ColdDiffusion):
        networks = [synthesizer.network]
    else:
        networks = [getattr(synthesizer, "base", synthesizer).model.network]
    return {parameter.dtype for network in networks for parameter in network.parameters()}


MAKERS: dict[str, Callable[[], Any]] = {
    "ClassConditional": tiny,
    "Cascade": cascades.tiny_cascade,
    "ColdDiffusion": cold.tiny,
    "DiffusionInversion": inversions.learned,
    "LowDensity": low_density.steered,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Writes a synthesizer of a kind once; where it is, and how it is loaded."""

    @cache
    def saved(kind: str) -> tuple[Path, Any]:
        path, made = tmp_path_factory.mktemp(kind), MAKERS[kind]()
        made.save_pretrained(path)
        return path, type(made).from_pretrained

    return saved


@pytest.mark.parametrize("kind", MAKERS)
def test_every_synthesizer_loads_in_what_the_machine_has_and_records_that(machine, saved, kind):
    path, load = saved(kind)
    for native, name, other in ((False, "float32", "bfloat16"), (True, "bfloat16", "float32")):
        machine(native)
        found = load(path)
        assert dtypes(found) == {getattr(torch, name)}
        assert recorded_precision(found.recipe()["settings"]) == name
        for given in (other, getattr(torch, other)):
            assert dtypes(load(path, dtype=given)) == {getattr(torch, other)}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_was_chosen_can_change_and_what_was_given_stays(machine, saved, kind):
    path, load = saved(kind)
    machine(True)
    chosen = load(path)
    exact = chosen.in_precision("float32")
    assert exact.recipe() == load(path, dtype="float32").recipe()
    assert exact.in_precision("bfloat16").recipe() == chosen.recipe()
    given = load(path, dtype="bfloat16")
    assert given.in_precision("float32").recipe() == given.recipe()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_copy_of_a_checkpoint_has_all_digits_whatever_it_was_loaded_in(
    machine, saved, tmp_path, kind
):
    path, load = saved(kind)
    machine(True)
    load(path).save_pretrained(tmp_path)
    machine(False)
    assert load(tmp_path).recipe() == load(path).recipe()
    for file in tmp_path.rglob("*.safetensors"):
        assert all(tensor.dtype != torch.bfloat16 for tensor in load_file(file).values())


def test_a_cascade_is_put_together_from_all_digits(machine, tmp_path):
    cascade = cascades.tiny_cascade()
    cascade.save_pretrained(tmp_path / "a")
    machine(True)
    parts = [tmp_path / "a" / name for name in ("base", "stage_1")]
    succeed("cascade", tmp_path / "b", *parts)
    weights = load_file(tmp_path / "b/base/unet/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize("there", [False, True])
def test_another_generator_is_noticed_although_the_precision_differs(machine, tmp_path, there):
    base = inversions.generator()
    base.save_pretrained(tmp_path / "base")
    machine(there)
    inversion = DiffusionInversion.from_pretrained(tmp_path / "base")
    settings = inversions.config()
    inversion.fit(inversions.Real(), tmp_path / "out", config=settings)
    machine(not there)
    DiffusionInversion.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        next(base.model.network.requires_grad_(False).parameters()).add_(1)
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(MismatchError, match="The network in"):
        DiffusionInversion.from_pretrained(tmp_path / "out")


def test_networks_that_steer_start_from_all_digits_of_the_generator(machine, tmp_path):
    tiny(scheduler="ddpm").save_pretrained(tmp_path / "base")
    machine(True)
    loaded = ClassConditional.from_pretrained(tmp_path / "base")
    for base in (loaded, tmp_path / "base"):
        found = low_density.fitted(tmp_path / type(base).__name__, base)
        assert dtypes(found) == {torch.float32}


# Training


def fit(out: Path, steps: int, **changes: Any) -> Any:
    """Trains a line, and notes the dtype of its outputs."""
    seen = []

    def loss(module: nn.Module, indices: Any) -> torch.Tensor:
        found = module(torch.ones(len(indices), 2))
        seen.append(found.dtype)
        return found.float().square().mean()

    torch.manual_seed(0)
    config = TrainingConfig(steps=steps, batch_size=2, device="cpu", **changes)
    module = nn.Linear(2, 1)
    task = TrainingTask(module=module, loss=loss, num_examples=4, identity={})
    result = train(task, config, out, progress=False)
    assert set(seen) == {getattr(torch, result.precision)}
    state = json.loads((out / "checkpoint" / "state.json").read_text())
    assert state["settings"]["config"]["precision"] == result.precision
    return result.precision


@pytest.mark.parametrize(("there", "chosen"), [(False, "float32"), (True, "bfloat16")])
def test_a_training_that_is_resumed_elsewhere_keeps_its_precision(machine, tmp_path, there, chosen):
    machine(there)
    assert fit(tmp_path, 2) == chosen
    machine(not there)
    assert fit(tmp_path, 4) == chosen
    other = "float32" if there else "bfloat16"
    with pytest.raises(MismatchError, match=f"'{chosen}' there, '{other}' now"):
        fit(tmp_path, 6, precision=other)
    assert fit(tmp_path, 6, precision=chosen) == chosen


def test_an_explicit_precision_is_kept_by_a_later_auto(machine, tmp_path):
    machine(False)
    fit(tmp_path, 2, precision="bfloat16")
    assert fit(tmp_path, 4) == "bfloat16"


def test_the_command_of_a_checkpoint_names_the_precision_and_so_does_the_answer(machine, tmp_path):
    machine(True)
    size = ("--image-size", 8, "--width", 8, "--steps", 1, "--batch-size", 4)
    answer = json.loads(succeed("train", "digits", tmp_path / "run", *size, "--json"))
    assert answer["arguments"]["precision"] == "auto"
    assert answer["result"]["precision"] == "bfloat16"
    saved = json.loads((tmp_path / "run" / "synthaug.json").read_text())
    assert "--precision bfloat16" in saved["command"]


# Inversion


@pytest.mark.parametrize("there", [False, True])
def test_an_inversion_that_is_resumed_elsewhere_keeps_its_precision(machine, tmp_path, there):
    real, settings = inversions.Real(), inversions.config(block_size=2)
    inversions.generator().save_pretrained(tmp_path / "base")

    def invert(out: Path, **arguments: Any) -> Any:
        found = DiffusionInversion.from_pretrained(tmp_path / "base", **arguments)
        return found.fit(real, out, config=settings, progress=False)[0]

    machine(there)
    whole = invert(tmp_path / "a")
    invert(tmp_path / "b")
    (tmp_path / "b/embeddings/00001.safetensors").unlink()
    machine(not there)
    resumed = invert(tmp_path / "b")
    assert dtypes(resumed) == dtypes(whole)
    assert resumed.table.digest == whole.table.digest
    record = json.loads((tmp_path / "b" / "inversion.json").read_text())
    assert record["dtype"] == str(whole.model.denoiser.dtype)
    other = torch.float32 if there else torch.bfloat16
    with pytest.raises(MismatchError, match="dtype"):
        invert(tmp_path / "b", dtype=other)


def test_the_command_of_an_inversion_names_its_precision(machine, tmp_path, monkeypatch):
    blank = torch.zeros(1, 1, 8, 8)  # in emulated bfloat16 it would cost more than all else
    monkeypatch.setattr(
        DiffusionInversion, "draw", lambda _, rows: blank.repeat(len(rows), 1, 1, 1)
    )
    (tmp_path / "real" / "ant").mkdir(parents=True)
    for level in (0, 50, 100, 150):
        Image.new("L", (8, 8), level).save(tmp_path / "real" / "ant" / f"{level}.png")
    real, size = f"folder:{tmp_path / 'real'}", ("--width", 8, "--steps", 1, "--batch-size", 4)
    succeed("train", real, tmp_path / "base", "--condition", "tokens", *size)
    machine(True)
    rows = ("--updates", 1, "--num-tokens", 4)
    succeed("invert", tmp_path / "base", real, tmp_path / "out", *rows)
    machine(False)
    succeed("invert", tmp_path / "base", real, tmp_path / "out", *rows)
    record = json.loads((tmp_path / "out" / "inversion.json").read_text())
    assert "--precision bfloat16" in record["command"]
    assert record["dtype"] == "torch.bfloat16"


# Caches


def recorded(path: Path) -> str | None:
    return recorded_precision(SynthCache(path).manifest["recipe"]["settings"])


class Stopped(BaseException):
    """What a kill would do."""


def begin(load: Any, checkpoint: Path, cache: Path, monkeypatch: Any) -> None:
    """Draws three rows, and is killed."""
    synthesizer = load(checkpoint)
    drawn, draw = 0, type(synthesizer).draw

    def dying(self: Any, rows: Plan) -> Any:
        nonlocal drawn
        drawn += len(rows)
        if drawn > 3:
            raise Stopped
        return draw(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(type(synthesizer), "draw", dying)
        with pytest.raises(Stopped):
            generate(synthesizer, synthesizer.plan(per_class=1), cache, batch_size=1)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("kind", ["ClassConditional", "Cascade"])
def test_a_cache_that_is_continued_elsewhere_equals_one_that_was_not(
    machine, saved, tmp_path, monkeypatch, kind, there
):
    path, load = saved(kind)
    machine(there)
    first = load(path)
    whole = generate(first, first.plan(per_class=1), tmp_path / "whole.h5", batch_size=1)
    begin(load, path, tmp_path / "a.h5", monkeypatch)
    machine(not there)
    second = load(path)
    plan = second.plan(per_class=1)
    assert second.recipe() != first.recipe()
    done = generate(second, plan, tmp_path / "a.h5", batch_size=1)
    assert done.plan_digest == whole.plan_digest
    rows = np.arange(len(plan))
    assert torch.equal(done.read(rows), whole.read(rows))


def test_only_an_automatic_precision_and_the_same_rows_continue_a_cache(machine, saved, tmp_path):
    path, load = saved("ClassConditional")
    cache = tmp_path / "a.h5"
    machine(True)
    first = load(path)
    generate(first, first.plan(per_class=1, seed=1), cache, batch_size=1)
    machine(False)
    given = load(path, dtype="float32")
    with pytest.raises(MismatchError, match="dtype"):
        generate(given, given.plan(per_class=1, seed=1), cache)
    chosen = load(path)
    with pytest.raises(MismatchError, match="seed"):
        generate(chosen, chosen.plan(per_class=1, seed=2), cache)
    other = load(path, sampler={"num_inference_steps": 2})
    with pytest.raises(MismatchError, match="num_inference_steps"):
        generate(other, other.plan(per_class=1, seed=1), cache)
    assert generate(chosen, chosen.plan(per_class=1, seed=1), cache).done.all()


def test_a_plan_that_cannot_be_made_for_the_other_precision_says_what_to_do(
    machine, saved, tmp_path
):
    path, load = saved("DiffusionInversion")
    machine(True)
    first = load(path)
    generate(first, first.plan(counts={"ant": 1}), tmp_path / "a.h5")
    machine(False)
    second = load(path)
    with pytest.raises(MismatchError, match="Load the synthesizer with `dtype='bfloat16'`"):
        generate(second, second.plan(counts={"ant": 1}), tmp_path / "a.h5")


def test_the_command_line_continues_any_cache_and_records_what_was_chosen(machine, saved, tmp_path):
    cache, line = tmp_path / "a.h5", ("generate", saved("DiffusionInversion")[0], tmp_path / "a.h5")
    machine(True)
    succeed(*line, "--counts", '{"ant": 2}')
    manifest = SynthCache(cache).manifest
    assert recorded(cache) == "bfloat16"
    assert "--precision bfloat16" in manifest["command"]
    machine(False)
    succeed(*line, "--counts", '{"ant": 2}')
    assert "dtype" in fail(2, *line, "--counts", '{"ant": 2}', "--precision", "float32")


def test_a_shell_and_python_draw_alike(machine, saved, tmp_path):
    path, load = saved("ClassConditional")
    for native in (False, True):
        machine(native)
        cache = tmp_path / f"{native}.h5"
        succeed("generate", path, cache, "--per-class", 1)
        synthesizer = load(path)
        assert synthesizer.recipe() == SynthCache(cache).manifest["recipe"]
        assert synthesizer.plan(per_class=1).digest == SynthCache(cache).plan_digest


def test_rows_of_a_cache_that_are_damaged_or_drawn_on_the_fly_keep_its_precision(
    machine, saved, tmp_path
):
    path, load = saved("ClassConditional")
    machine(True)
    first = load(path)
    plan = first.plan(per_class=1)
    generate(first, plan, tmp_path / "a.h5")
    machine(False)
    second = load(path)
    opened = SynthCache(tmp_path / "a.h5", on_corrupt="regenerate", synthesizer=second)
    assert dtypes(opened.synthesizer) == {torch.bfloat16}
    flying = OnTheFlyDataset(second, second.plan(per_class=1), cache=tmp_path / "a.h5")
    assert dtypes(flying.synthesizer) == {torch.bfloat16}
    assert flying.cache is not None


def test_an_actor_draws_in_the_precision_of_the_job(machine, saved, monkeypatch):
    path, load = saved("ClassConditional")
    machine(False)
    recipe = load(path).recipe()
    machine(True)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(cloudpickle=pickle))
    drawer = Drawer()
    drawer.load(pickle.dumps(partial(load, path)), recipe)
    assert drawer.synthesizer.recipe() == recipe
    assert dtypes(drawer.synthesizer) == {torch.float32}


# Evaluation


@pytest.mark.parametrize(("there", "chosen"), [(False, "float32"), (True, "bfloat16")])
def test_an_evaluation_that_goes_on_elsewhere_keeps_its_runs_and_their_precision(
    machine, tmp_path, there, chosen
):
    images = cascades.real()
    train_set, test_set = images.subset(np.arange(8)), images.subset(np.arange(8, 16))

    def run(seeds: int, **changes: Any) -> Any:
        return evaluate(
            {"a": train_set},
            test=test_set,
            seeds=seeds,
            steps=2,
            batch_size=4,
            device="cpu",
            output_dir=tmp_path,
            progress=False,
            **changes,
        )

    machine(there)
    first = run(1)
    machine(not there)
    both = run(2)
    assert first.settings["precision"] == both.settings["precision"] == chosen
    assert both.runs[0] == first.runs[0]
    assert len(list(tmp_path.glob("*.json"))) == 2
    other = "float32" if there else "bfloat16"
    assert run(1, precision=other).settings["precision"] == other
    assert len(list(tmp_path.glob("*.json"))) == 3
    assert run(2).settings["precision"] == other  # this machine's own choice has runs by now


# Sweeps


@pytest.mark.parametrize(("there", "chosen"), [(False, "float32"), (True, "bfloat16")])
def test_a_sweep_that_goes_on_elsewhere_draws_nothing_again(machine, tmp_path, there, chosen):
    cascades.tiny_base().save_pretrained(tmp_path / "model")
    images = cascades.real(size=4, n=40)

    def run() -> Any:
        return sweep(
            ClassConditional.from_pretrained(tmp_path / "model"),
            real=images.subset(np.arange(20)),
            validation=images.subset(np.arange(20, 40)),
            output_dir=tmp_path / "sweep",
            grid={"scheduler": ["ddim"], "num_inference_steps": [1, 2]},
            guidance=[],
            features=Pixel(2),
            config=SweepConfig(
                per_class=5, k=1, classifiers=ClassifierConfig(steps=2, device="cpu")
            ),
            progress=False,
        )

    machine(there)
    first = run()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("*.h5")}
    assert {recorded(path) for path in files} == {chosen}
    machine(not there)
    second = run()
    assert second.coarse == first.coarse
    assert first.settings == second.settings == {"precision": chosen}
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "sweep").rglob("*.h5")}
