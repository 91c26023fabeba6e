"""The trainer: a killed run that is resumed equals one that was not, and nothing bad is saved."""

import errno
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from synthaug import TrainingConfig
from synthaug._support.files import whole_file
from synthaug._support.stopping import Terminated, terminate
from synthaug._training import checkpoints
from synthaug._training.checkpoints import load_tensors, loading, reading, write_tensors
from synthaug._training.loop import Loss, TrainingResult, TrainingTask, batch_indices, train
from synthaug._training.recovery import sealed
from synthaug._training.trackers import log_picture
from synthaug.errors import CheckpointError, DataError, DivergedError, MismatchError, SynthaugError
from tests.trackers import Noted

NUM_EXAMPLES = 10
EVERY_STEP: dict[str, Any] = {"checkpoint_seconds": 0.0}
LEFT = {"checkpoint", "checkpoint-previous", "train.jsonl"}
FILES = [
    "digests.json",
    "ema.safetensors",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
]


def config_of(**changes: Any) -> TrainingConfig:
    defaults = {"steps": 12, "batch_size": 4, "learning_rate": 1e-2, "device": "cpu"}
    warmup = min(3, changes.get("steps", 12))
    return TrainingConfig(
        **{**defaults, "warmup_steps": warmup, "checkpoint_seconds": 1e9, **changes}
    )


def module_of() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.25), nn.Linear(4, 3))


class Killed(BaseException):
    """What a kill would do to Python: nothing catches it."""


def loss_of(*, killed_at: int | None = None, nan_at: int | None = None) -> Loss:
    """Denoises ten fixed vectors, with noise from torch's global generator."""
    data = torch.randn(NUM_EXAMPLES, 3, generator=torch.Generator().manual_seed(1))
    calls = 0

    def loss(module: nn.Module, indices: np.ndarray) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == killed_at:
            raise Killed
        x = data[indices]
        value = (module(x + torch.randn_like(x)).float() - x).square().mean()
        return value * math.nan if calls == nan_at else value

    return loss


def run(out: Path, loss: Loss | None = None, **changes: Any) -> tuple[nn.Module, TrainingResult]:
    module = module_of()
    names = ("identity", "on_checkpoint", "checkpoint_steps", "rate_factor")
    arguments = {"identity": "digits", **{k: changes.pop(k) for k in names if k in changes}}
    task = TrainingTask(
        module=module, loss=loss or loss_of(), num_examples=NUM_EXAMPLES, **arguments
    )
    return module, train(task, config_of(**changes), out, progress=False)


def contents(out: Path) -> dict[str, Any]:
    """All that a checkpoint holds."""
    folder = out / "checkpoint"
    return {
        "weights": load_file(folder / "model.safetensors"),
        "ema": load_file(folder / "ema.safetensors"),
        "optimizer": load_file(folder / "optimizer.safetensors"),
        "state": json.loads((folder / "state.json").read_text()),
    }


def assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert_equal(dict(enumerate(a)), dict(enumerate(b)))
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


# Trackers


def test_a_tracker_is_told_what_the_log_says_and_goes_on_with_the_steps(tmp_path):
    tracker = Noted()
    with pytest.raises(Killed):
        run(tmp_path, loss_of(killed_at=9), checkpoint_seconds=0, log_with=tracker)
    assert tracker.finished == 1
    run(tmp_path, log_with=tracker)
    steps = [step for step, _ in tracker.lines]
    assert steps == list(range(1, 13))
    assert tracker.settings["steps"] == 12
    assert {type(value) for value in tracker.settings.values()} <= {str, int, float, bool}
    log = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    for (_, values), line in zip(tracker.lines, log, strict=True):
        assert values["loss"] == line["loss"]
        assert values["learning_rate"] == line["learning_rate"]
        assert values["images_per_second"] > 0
    assert tracker.finished == 2


def test_a_tracker_that_cannot_begin_is_one_clear_error_before_any_step(tmp_path):
    class Unreachable(Noted):
        def store_init_configuration(self, values):
            raise RuntimeError("No route to host.")

    with pytest.raises(DataError, match=r"`log_with` is 'Unreachable'.* No route to host. Set it"):
        run(tmp_path, log_with=Unreachable())
    assert not (tmp_path / "train.jsonl").exists()


def test_a_tracker_that_takes_images_gets_the_sheet_of_samples(tmp_path):
    tracker, path = Noted(), tmp_path / "samples.png"
    log_picture(config_of(log_with=tracker), str(tmp_path), path, 12)
    assert tracker.pictures == []  # there is none
    Image.new("L", (5, 4)).save(path)
    log_picture(config_of(log_with=tracker), str(tmp_path), path, 12)
    assert tracker.pictures == [(12, (1, 4, 5, 3))]


def test_a_tracker_that_takes_no_pictures_is_not_opened_for_one(tmp_path, monkeypatch):
    class WithoutPictures(Noted):
        pass

    tracker = WithoutPictures()
    Image.new("L", (5, 4)).save(tmp_path / "samples.png")
    log_picture(config_of(log_with=tracker), str(tmp_path), tmp_path / "samples.png", 12)
    assert tracker.settings == {}
    assert tracker.finished == 0


def test_a_tracker_that_is_missing_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", list)
    with pytest.raises(
        ImportError, match=r"`log_with` is 'wandb'.*pip install 'synthaug\[wandb\]'"
    ):
        run(tmp_path / "run", log_with="wandb")
    with pytest.raises(ValueError, match=r"`log_with` must be one of 'tensorboard'.*got 'tensor'"):
        run(tmp_path / "run", log_with="tensor")
    assert not (tmp_path / "run").exists()


# Resuming


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, nn.Module, TrainingResult]:
    out = tmp_path_factory.mktemp("whole")
    return out, *run(out)


@pytest.mark.parametrize("kills", [(1,), (2,), (7,), (12,), (1, 1, 2, 3, 2)], ids=str)
def test_a_killed_run_that_is_resumed_equals_one_that_was_not(tmp_path, uninterrupted, kills):
    for killed_at in kills:
        with pytest.raises(Killed):
            run(tmp_path, loss_of(killed_at=killed_at), **EVERY_STEP)
    module, result = run(tmp_path, **EVERY_STEP)
    out, expected, expected_result = uninterrupted
    assert_equal(contents(tmp_path), contents(out))
    assert_equal(dict(module.state_dict()), dict(expected.state_dict()))
    assert result.loss_curve == expected_result.loss_curve
    assert result.step == 12


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Both signals as a command handles them, also where the tests run in the background."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: terminate}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_which_is_saved(
    tmp_path, uninterrupted, interruptible, number
):
    whole, calls = loss_of(), iter(range(1, 100))

    def interrupted(module: nn.Module, indices: np.ndarray) -> Tensor:
        if next(calls) == 5:
            signal.raise_signal(number)
        return whole(module, indices)

    with pytest.raises(KeyboardInterrupt) as stop:
        run(tmp_path, interrupted)
    assert str(stop.value) == f"Step 5 is saved in {tmp_path}."
    assert isinstance(stop.value, Terminated) == (number == signal.SIGTERM)
    run(tmp_path)
    assert_equal(contents(tmp_path), contents(uninterrupted[0]))


def test_a_second_signal_ends_the_run_at_once_and_promises_nothing(tmp_path, interruptible):
    def interrupted(module: nn.Module, indices: np.ndarray) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was held back")

    with pytest.raises(KeyboardInterrupt) as stop:
        run(tmp_path, interrupted)
    assert stop.value.args == ()
    assert not (tmp_path / "checkpoint").exists()


def test_a_handler_of_the_user_is_left_in_place(tmp_path, interruptible):
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    whole = loss_of()

    def interrupted(module: nn.Module, indices: np.ndarray) -> Tensor:
        signal.raise_signal(signal.SIGTERM)
        return whole(module, indices)

    assert run(tmp_path, interrupted)[1].step == 12
    assert seen == [signal.SIGTERM] * 12


def test_the_loss_curve_is_whole_when_a_kill_falls_between_two_of_its_points(tmp_path):
    # 2,000 steps make a point every 10 steps.
    for name, kills in (("whole", [24]), ("in parts", [6, 18])):
        for steps in kills:
            with pytest.raises(Killed):
                run(tmp_path / name, loss_of(killed_at=steps + 1), steps=2_000, **EVERY_STEP)
    whole, parts = (contents(tmp_path / name)["state"] for name in ("whole", "in parts"))
    assert whole == parts
    assert [step for step, _ in whole["loss_curve"]] == [10, 20]


def test_frozen_weights_are_neither_trained_nor_kept_and_a_resumed_run_finds_them(tmp_path):
    def half_frozen(out: Path, **loss: int) -> dict[str, Tensor]:
        module: Any = module_of()
        module[0].requires_grad_(False)
        task = TrainingTask(
            module=module, loss=loss_of(**loss), num_examples=NUM_EXAMPLES, identity="half"
        )
        train(task, config_of(**EVERY_STEP), out, progress=False)
        return dict(module.state_dict())

    whole = half_frozen(tmp_path / "whole")
    assert contents(tmp_path / "whole")["weights"].keys() == {"3.weight", "3.bias"}
    for name, weight in module_of().state_dict().items():
        assert torch.equal(whole[name], weight) == name.startswith("0.")
    with pytest.raises(Killed):
        half_frozen(tmp_path / "parts", killed_at=6)
    assert_equal(half_frozen(tmp_path / "parts"), whole)


def test_what_a_kill_kept_from_being_made_of_a_chosen_step_is_made_by_the_next_run(tmp_path):
    seen: list[int] = []

    def killed(_: nn.Module, step: int) -> None:
        if step == 5:
            raise Killed

    def options(on_checkpoint: Any) -> dict[str, Any]:
        return {"on_checkpoint": on_checkpoint, "checkpoint_steps": (5, 7)}

    with pytest.raises(Killed):
        run(tmp_path, **options(killed))
    run(tmp_path, **options(lambda _, step: seen.append(step)))
    assert seen == [5, 7, 12]


def test_the_steps_taken_since_the_checkpoint_are_taken_again(tmp_path):
    # A checkpoint after step 3 only, a kill in step 8.
    with pytest.raises(Killed):
        run(tmp_path, loss_of(killed_at=4), **EVERY_STEP)
    with pytest.raises(Killed):
        run(tmp_path, loss_of(killed_at=5))
    assert contents(tmp_path)["state"]["step"] == 3
    out = tmp_path / "whole"
    expected, _ = run(out)
    module, _ = run(tmp_path)
    assert_equal(dict(module.state_dict()), dict(expected.state_dict()))


@pytest.mark.parametrize("moment", ["before the swap", "between the renames", "after the swap"])
def test_a_kill_in_the_middle_of_saving_leaves_one_checkpoint_whole(
    tmp_path, uninterrupted, monkeypatch, moment
):
    rename, renames = Path.rename, 0

    def killing_rename(self: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if moment == "before the swap" and renames == 4:
            raise Killed
        if moment == "between the renames" and renames == 5:
            raise Killed
        moved = rename(self, target)
        if moment == "after the swap" and renames == 5:
            raise Killed
        return moved

    # The first checkpoint renames once, each later one twice: number 4 begins the third swap.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killing_rename)
        with pytest.raises(Killed):
            run(tmp_path, **EVERY_STEP)
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert ("checkpoint" in folders) == (moment != "between the renames")
    taken: list[int] = []
    module, _ = run(tmp_path, counting(taken))
    assert len(taken) == (9 if moment == "after the swap" else 10)
    assert_equal(contents(tmp_path), contents(uninterrupted[0]))
    assert_equal(dict(module.state_dict()), dict(uninterrupted[1].state_dict()))
    assert {path.name for path in tmp_path.iterdir()} <= LEFT


def counting(taken: list[int]) -> Loss:
    inner = loss_of()

    def loss(module: nn.Module, indices: np.ndarray) -> Tensor:
        taken.append(len(indices))
        return inner(module, indices)

    return loss


def test_a_finished_run_takes_no_step_again_and_leaves_the_same_average(tmp_path, uninterrupted):
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    taken: list[int] = []
    module, result = run(tmp_path, counting(taken))
    assert not taken
    assert_equal(dict(module.state_dict()), dict(uninterrupted[1].state_dict()))
    assert result.loss_curve == uninterrupted[2].loss_curve


def test_a_run_can_be_resumed_with_more_steps(tmp_path, uninterrupted):
    run(tmp_path, steps=5)
    module, result = run(tmp_path, steps=12)
    assert_equal(dict(module.state_dict()), dict(uninterrupted[1].state_dict()))
    assert_equal(contents(tmp_path), contents(uninterrupted[0]))
    assert [step for step, _ in result.loss_curve] == list(range(1, 13))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_runs_of_both_precisions_follow_each_other_in_one_process(tmp_path, precision):
    seen = []

    def loss(module: nn.Module, indices: np.ndarray) -> Tensor:
        prediction = module(torch.ones(len(indices), 3))
        seen.append(prediction.dtype)
        return prediction.float().square().mean()

    module, _ = run(tmp_path, loss, precision=precision, steps=2)
    assert set(seen) == {getattr(torch, precision)}
    assert module(torch.ones(1, 3)).dtype == torch.float32  # autocast ended with the training
    assert {p.dtype for p in module.parameters()} == {torch.float32}


# What is refused


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"identity": {"data": "new"}}, "extra: 'digits' there, {'data': 'new'} now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"learning_rate": 2e-2}, "learning_rate: 0.01 there, 0.02 now"),
        ({"batch_size": 2}, "batch_size: 4 there, 2 now"),
        ({"ema_decay": 0.5}, "ema_decay: 0.9995 there, 0.5 now"),
        ({"precision": "bfloat16"}, "precision: 'float32' there, 'bfloat16' now"),
        ({"weight_decay": 0.1}, "weight_decay: 0 there, 0.1 now"),
        ({"max_grad_norm": 2.0}, "max_grad_norm: 1 there, 2 now"),
        ({"warmup_steps": 4}, "warmup_steps: 3 there, 4 now"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_run_is_refused_by_what_differs_and_left_as_it_is(
    tmp_path, uninterrupted, changes, difference
):
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    found = re.escape(f"belongs to another run:\n  {difference}\nUse another output directory")
    with pytest.raises(MismatchError, match=found):
        run(tmp_path, **changes)
    assert_equal(contents(tmp_path), contents(uninterrupted[0]))


@pytest.mark.parametrize(
    "changes", [{"steps": 12, "decay_steps": 5}, {"checkpoint_seconds": 1.0}, {"device": None}]
)
def test_what_only_says_how_long_or_where_to_run_does_not_bind_a_checkpoint(changes):
    assert config_of(**changes).binding("digits") == config_of().binding("digits")


def test_an_output_directory_that_is_a_file_is_named_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="file is a file, expected a folder"):
            run(place)
    assert (tmp_path / "file").read_text() == "mine"


def damage_file(path: Path, damage: str) -> None:
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
        return
    damaged = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "garbage": b"x" * 99,
        "bit": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
    }
    path.write_bytes(damaged[damage])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "gone", "bit"])
def test_a_damaged_checkpoint_is_a_clear_error(tmp_path, uninterrupted, name, damage):
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    damage_file(tmp_path / "checkpoint" / name, damage)
    with pytest.raises(CheckpointError, match=r"checkpoint cannot be read \(.*Delete it to start"):
        run(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    tmp_path, uninterrupted, caplog, name
):
    with pytest.raises(Killed):
        run(tmp_path, loss_of(killed_at=6), **EVERY_STEP)
    damage_file(tmp_path / "checkpoint" / name, "bit")
    taken: list[int] = []
    module, _ = run(tmp_path, counting(taken))
    assert len(taken) == 8  # the fifth step too
    assert_equal(contents(tmp_path), contents(uninterrupted[0]))
    assert_equal(dict(module.state_dict()), dict(uninterrupted[1].state_dict()))
    (warning,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    for text in ("checkpoint cannot be read", "checkpoint-damaged", "checkpoint-previous"):
        assert text in warning
    assert {path.name for path in tmp_path.iterdir()} == {*LEFT, "checkpoint-damaged"}


def test_two_damaged_checkpoints_are_an_error_and_stay_as_they_are(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, loss_of(killed_at=6), **EVERY_STEP)
    damage_file(tmp_path / "checkpoint" / "ema.safetensors", "bit")
    damage_file(tmp_path / "checkpoint-previous" / "state.json", "cut")
    message = r"ema\.safetensors is not the file.*checkpoint-previous cannot.*state\.json is not"
    with pytest.raises(CheckpointError, match=message):
        run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == LEFT


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "5"},
        {"step": -1},
        {"step": True},
        {"ema_step": None},
        {"loss_curve": 5},
        {"loss_curve": [[1]]},
        {"recent": [[]]},
        {"recent": None},
    ],
    ids=str,
)
def test_a_state_that_was_written_wrong_is_a_clear_error(tmp_path, uninterrupted, changes):
    state = contents(uninterrupted[0])["state"]
    shutil.copytree(uninterrupted[0] / "checkpoint", tmp_path / "other")
    with sealed(tmp_path / "checkpoint") as new:
        for name in set(FILES) - {"digests.json", "state.json"}:
            shutil.copy(tmp_path / "other" / name, new)
        (new / "state.json").write_text(json.dumps({**state, **changes}))
    with pytest.raises(CheckpointError, match=r"checkpoint cannot be read \(.*Delete it to start"):
        run(tmp_path)


@pytest.mark.parametrize("text", ["[]", "5", "[" * 100_000, "\xff", "{}"])
def test_a_state_that_is_no_object_is_a_clear_error(tmp_path, text):
    with sealed(tmp_path / "checkpoint") as new:
        (new / "state.json").write_text(text, encoding="latin-1")
    with pytest.raises(SynthaugError, match="checkpoint"):
        run(tmp_path)


def test_a_damaged_log_is_a_clear_error(tmp_path, uninterrupted):
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(CheckpointError, match=r"train\.jsonl cannot be read .* only the log is"):
        run(tmp_path)


def test_a_process_that_finds_another_checkpoint_than_the_first_one_says_so(
    tmp_path, uninterrupted, monkeypatch
):
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    answers = iter([None, 7])

    def broadcast(values: list[Any]) -> list[Any]:
        answer = next(answers)
        if answer is not None:
            values[0] = answer
        return values

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", broadcast)
    with pytest.raises(CheckpointError, match=r"the checkpoint of step 12 .* that of step 7"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"learning_rate": 0}, "`learning_rate` must be positive, got 0"),
        ({"learning_rate": math.nan}, "`learning_rate` must be a number, got nan"),
        ({"max_grad_norm": 0}, "`max_grad_norm` must be positive"),
        ({"warmup_steps": -1}, "`warmup_steps` must not be negative"),
        ({"warmup_steps": 13}, "`warmup_steps` must be from 0 to `steps`=12, got 13"),
        ({"decay_steps": 13}, "`decay_steps` must be from 0 to `steps`=12, got 13"),
        ({"decay_steps": -1}, "`decay_steps` must not be negative"),
        ({"weight_decay": -0.1}, "`weight_decay` must not be negative"),
        ({"checkpoint_seconds": -1}, "`checkpoint_seconds` must not be negative"),
        ({"ema_decay": 1}, r"`ema_decay` must be in \[0, 1\), got 1"),
        ({"precision": "float16"}, "`precision` must be one of .*, got 'float16'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(**changes)


def test_an_unknown_device_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="`device` is 'abacus', which torch cannot use here"):
        run(tmp_path / "out", device="abacus")
    assert not (tmp_path / "out").exists()


def test_training_on_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`num_examples` must be at least 1"):
        TrainingTask(module=module_of(), loss=loss_of(), num_examples=0, identity=1)


def test_asking_for_fewer_steps_than_were_taken_is_refused(tmp_path, uninterrupted):
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"`steps` is 5, but the run in .* has already taken 12"):
        run(tmp_path, steps=5)


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    import safetensors.torch

    save, calls = safetensors.torch.save_file, 0

    def full(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:  # the second of three files of the third checkpoint
            raise SafetensorError("No space left on device")
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(
            CheckpointError, match=r"No space left.*free there.*of step 2, is intact"
        ):
            run(tmp_path, **EVERY_STEP)
    assert contents(tmp_path)["state"]["step"] == 2
    assert {path.name for path in tmp_path.iterdir()} == LEFT


def test_a_disk_that_is_full_when_a_run_goes_on_does_not_say_that_nothing_was_trained(
    tmp_path, monkeypatch
):
    with pytest.raises(Killed):
        run(tmp_path, loss_of(killed_at=6), **EVERY_STEP)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("synthaug._training.loop.write_text", full)
        with pytest.raises(CheckpointError, match=r"No space left.*of step 5, is intact"):
            run(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr("synthaug._training.loop._forget_later_lines", lambda *_: None)
    with pytest.raises(CheckpointError, match=r"train\.jsonl could not be.*No space left.*intact"):
        run(tmp_path)


# Divergence


@pytest.mark.parametrize("steps", [12, 4000])
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint(tmp_path, steps):
    with pytest.raises(Killed):
        run(tmp_path, loss_of(killed_at=4), steps=steps, **EVERY_STEP)
    before = contents(tmp_path)
    with pytest.raises(DivergedError, match=r"loss of step 5 is nan. .* of step 3, is intact in "):
        run(tmp_path, loss_of(nan_at=2), steps=steps)
    assert_equal(contents(tmp_path), before)


def test_a_loss_that_is_not_finite_is_met_before_the_next_checkpoint(tmp_path):
    with pytest.raises(DivergedError, match=r"loss of step 3 is nan. .* of step 2, is intact"):
        run(tmp_path, loss_of(nan_at=3), steps=4000, **EVERY_STEP)
    assert contents(tmp_path)["state"]["step"] == 2


def test_a_run_that_diverges_before_its_first_checkpoint_says_so(tmp_path):
    with pytest.raises(DivergedError, match="No checkpoint had been written yet"):
        run(tmp_path, loss_of(nan_at=1))


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path):
    inner, calls = loss_of(), 0

    def loss(module: nn.Module, indices: np.ndarray) -> Tensor:
        nonlocal calls
        calls += 1
        value = inner(module, indices)
        if calls == 3:  # the loss itself stays finite
            value.register_hook(lambda gradient: gradient * math.inf)
        return value

    with pytest.raises(DivergedError, match=r"The weight 0.weight is no longer finite. .* step 2"):
        run(tmp_path, loss, **EVERY_STEP)
    saved = contents(tmp_path)
    assert saved["state"]["step"] == 2
    assert all(torch.isfinite(w).all() for w in saved["weights"].values())


# Moving average, learning rate, order of the data, seeds


def test_the_moving_average_is_the_documented_one(tmp_path):
    decay, trajectory = 0.3, []

    def loss(module: nn.Module, indices: np.ndarray) -> Tensor:
        trajectory.append([p.detach().clone() for p in module.parameters()])
        return loss_(module, indices)

    loss_ = loss_of()
    module, _ = run(tmp_path, loss, ema_decay=decay)
    weights = contents(tmp_path)["weights"]
    trajectory.append([weights[name] for name, _ in module.named_parameters()])
    average = [p.double() for p in trajectory[1]]  # step 0 copies
    for step in range(1, 12):
        beta = min(decay, (1 + step) / (10 + step))
        average = [
            beta * a + (1 - beta) * p for a, p in zip(average, trajectory[step + 1], strict=True)
        ]
    assert min(decay, 2 / 11) < decay < 12 / 21  # both arms of the minimum were taken
    for expected, parameter in zip(average, module.parameters(), strict=True):
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(trajectory[-1][0], next(module.parameters()))


def test_a_checkpoint_is_reported_with_the_average_and_training_goes_on_with_the_weights(tmp_path):
    reported: dict[int, tuple[bool, list[Tensor]]] = {}

    def report(module: nn.Module, step: int) -> None:
        reported[step] = module.training, [p.detach().clone() for p in module.parameters()]

    module, _ = run(tmp_path, on_checkpoint=report, warmup_steps=1, **EVERY_STEP)
    assert list(reported) == list(range(1, 13))
    assert not any(training for training, _ in reported.values())
    assert not module.training
    assert_equal(list(module.state_dict().values()), reported[12][1])
    for step in (1, 5):  # a run of that many steps ends in that average
        other, _ = run(tmp_path / str(step), steps=step, warmup_steps=1)
        assert_equal(list(other.state_dict().values()), reported[step][1])


def test_the_learning_rate_rises_stays_and_falls_linearly():
    config = config_of(steps=10, learning_rate=1.0, warmup_steps=4, decay_steps=5)
    rates = [config.learning_rate_at(step) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    constant = config_of(steps=10, learning_rate=1.0, warmup_steps=0, decay_steps=0)
    assert [constant.learning_rate_at(step) for step in (0, 5, 9)] == [1, 1, 1]


@pytest.mark.parametrize(("steps", "warmup"), [(60, 6), (1000, 100), (5000, 200), (5, 1)])
def test_the_learning_rate_reaches_its_peak_in_short_and_in_long_runs(steps, warmup):
    rates = [TrainingConfig(steps=steps).learning_rate_at(i) for i in range(warmup)]
    peak = TrainingConfig.learning_rate
    assert rates == pytest.approx([peak * (i + 1) / warmup for i in range(warmup)])
    assert TrainingConfig(steps=steps).learning_rate_at(steps - 1) == peak


def test_the_optimizer_uses_the_learning_rate_of_each_step(tmp_path):
    # The gradient has one sign and one size: Adam's first steps move by the learning rate.
    moved = []

    def loss(module: nn.Module, indices: np.ndarray) -> Tensor:
        del indices
        weight = next(module.parameters())
        moved.append(float(weight.detach()[0, 0]))
        return weight.sum()

    config = {"steps": 6, "warmup_steps": 3, "decay_steps": 2, "learning_rate": 0.1}
    run(tmp_path, loss, **config)
    rates = [config_of(**config).learning_rate_at(step) for step in range(5)]
    assert -np.diff(moved) == pytest.approx(rates, rel=1e-4)
    log = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in log[:5]] == rates


def test_a_parameter_with_a_factor_moves_by_that_much_in_the_first_step(tmp_path):
    # Adam's first step is the learning rate, whatever the size of the gradient.
    before = module_of().state_dict()
    after = run(
        tmp_path,
        steps=1,
        warmup_steps=0,
        ema_decay=0.0,
        rate_factor=lambda name: 5.0 if name == "3.bias" else 1.0,
    )[0].state_dict()
    for name, factor in (("3.bias", 5), ("3.weight", 1), ("0.bias", 1)):
        moved = (after[name] - before[name]).abs().max()
        torch.testing.assert_close(moved, torch.tensor(factor * 1e-2), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("step", [3, 7])
def test_a_resumed_run_with_factors_equals_one_that_was_not(tmp_path, step):
    def factors(name: str) -> float:
        return 5.0 if name.endswith("bias") else 1.0

    whole, _ = run(tmp_path / "whole", rate_factor=factors)
    with pytest.raises(Killed):
        run(tmp_path / "b", loss_of(killed_at=step), rate_factor=factors, **EVERY_STEP)
    resumed, _ = run(tmp_path / "b", rate_factor=factors)
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name


@pytest.mark.parametrize(("batch_size", "num_examples"), [(1, 7), (3, 7), (7, 7), (8, 4), (5, 2)])
def test_every_example_comes_once_per_epoch_and_epochs_join_inside_a_batch(
    batch_size, num_examples
):
    steps = 4 * num_examples
    order = np.concatenate(
        [batch_indices(5, step, batch_size, num_examples) for step in range(steps)]
    )
    epochs = order[: len(order) // num_examples * num_examples].reshape(-1, num_examples)
    assert (np.sort(epochs, axis=1) == np.arange(num_examples)).all()
    if num_examples == 7:
        assert len(np.unique(epochs, axis=0)) > 1  # shuffled anew


def test_the_order_of_the_data_follows_from_the_seed():
    orders = {tuple(batch_indices(seed, 0, 20, 20)) for seed in range(5)}
    assert len(orders) == 5
    assert tuple(batch_indices(3, 0, 20, 20)) in orders


def test_the_seed_decides_data_order_and_noise_and_each_step_has_noise_of_its_own(tmp_path):
    def noises(name: str, seed: int) -> list[float]:
        drawn = []

        def loss(module: nn.Module, indices: np.ndarray) -> Tensor:
            drawn.append(float(torch.rand(())))
            return module(torch.ones(len(indices), 3)).square().mean()

        torch.manual_seed(1234 + seed)  # what the caller did before has no influence
        run(tmp_path / name, loss, seed=seed)
        return drawn

    first, again, other = noises("a", 0), noises("b", 0), noises("c", 1)
    assert first == again
    assert len({*first, *other}) == 24


def test_gradients_are_clipped_to_the_largest_norm(tmp_path):
    norms = []

    def loss(module: nn.Module, indices: np.ndarray) -> Tensor:
        return 1e3 * module(torch.ones(len(indices), 3)).sum()

    original = torch.optim.AdamW.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        run(tmp_path, loss, max_grad_norm=0.5)
    assert norms == pytest.approx([0.5] * 12, rel=1e-3)


def test_the_log_has_a_line_for_each_point_of_the_curve(uninterrupted):
    out, _, result = uninterrupted
    log = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in log] == result.loss_curve
    assert result.examples_per_second > 0


def test_steps_that_a_kill_undid_are_not_logged_twice(tmp_path, uninterrupted):
    with pytest.raises(Killed):  # no checkpoint yet, but lines in the log
        run(tmp_path, loss_of(killed_at=7))
    with open(tmp_path / "train.jsonl", "a") as log:
        log.write('{"step": 7, "lo')
    run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == uninterrupted[2].loss_curve


def test_two_that_write_one_file_of_tensors_are_in_nobodys_way(tmp_path):
    path, umask = tmp_path / "a.safetensors", os.umask(0o022)
    try:
        with whole_file(path) as first:
            write_tensors(first, {"x": torch.zeros(3)})
            with whole_file(path) as second:
                write_tensors(second, {"x": torch.ones(3)})
    finally:
        os.umask(umask)
    assert torch.equal(load_tensors(path)["x"], torch.zeros(3))
    assert path.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_is_no_fault_of_a_checkpoint_is_not_said_to_be(tmp_path):
    @loading
    def load(cls, path, *, device="cpu"):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        load(object, tmp_path)
    anything: Any = load
    with pytest.raises(TypeError, match="too many positional"):
        anything(object, tmp_path, "more")


def test_a_missing_package_is_named_and_not_taken_for_damage(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: None)
    for name, kind, message in (
        ("transformers", ImportError, r"needs transformers\. .* 'synthaug\[text\]'"),
        ("transformers.models.nothing", ImportError, "needs transformers"),
        ("nothing", CheckpointError, r"cannot be read \(ModuleNotFoundError: .* Copy it again"),
    ):
        with pytest.raises(kind, match=message), reading(Path("ckpt"), "Copy it again."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
