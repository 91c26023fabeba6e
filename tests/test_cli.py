"""The command line: what is pasted works, and what goes wrong is said in a line."""

import argparse
import errno
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from synthaug import AuditReport, SynthCache, TrainingConfig
from synthaug._audit.matching import Matcher
from synthaug._cli import CACHE_COMMANDS, COMMANDS, build_parser, main
from synthaug._cli import app as _main
from synthaug._cli.audit import _next as next_step
from synthaug._cli.call import Call, Result
from synthaug._cli.options import FileOptions, ImageOptions
from synthaug._cli.training import METHODS as TRAININGS
from synthaug._cli.training import TrainingRequest, _duration, _warn_of_few_steps
from synthaug._cli.training_options import TrainOptions
from synthaug.errors import CacheError
from synthaug.features import TorchModule
from synthaug.selection import ImageSelection
from synthaug.synthesizers import ClassConditional, DiffusionInversion, SamplerConfig
from synthaug.synthesizers.inversion import _fit as _inversion_fit
from tests.called_by_commands import PYTHON_NAMES
from tests.command_line import answer, check_answer, fail, run, spy, succeed

pytestmark = pytest.mark.usefixtures("few_steps", "short_audits")

PATHS = [(name,) for name in COMMANDS] + [("cache", name) for name in CACHE_COMMANDS]
CLASSES = ("cat", "dog", "emu")


# Help and arguments


def examples(path: tuple[str, ...]) -> list[str]:
    """The lines in a command's help that can be pasted."""
    text = succeed(*" ".join(path).split(), "--help")
    name = " ".join(path)
    return re.findall(rf"^ *(synthaug {name}\b.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_the_help_of_each_command_has_lines_that_can_be_pasted(path):
    assert examples(path)
    for line in examples(path):
        assert _main.understand(shlex.split(line)[1:]).call.command == " ".join(path)


@pytest.mark.parametrize("path", [*PATHS, ("cache",), ()], ids=" ".join)
def test_the_help_explains_every_argument(path):
    parser: Any = build_parser()
    for name in " ".join(path).replace("evaluate ", "evaluate-").split():
        (commands,) = (action for action in parser._actions if action.nargs == argparse.PARSER)
        parser = commands.choices[name]
    for action in parser._actions:
        if action.nargs == argparse.PARSER:  # the list of commands, each with its own line
            continue
        assert action.help, f"{' '.join(path)} {action.dest} has no help"


def test_the_page_about_training_shows_what_all_methods_take_and_that_of_one_what_it_takes():
    def shown(*words: str) -> set[str]:
        return set(re.findall(r"^  (--[a-z-]+)", succeed("train", *words, "--help"), re.MULTILINE))

    common, cold, tuned = shown(), shown("--method", "cold"), shown("--method=finetune")
    assert {"--method", "--steps", "--image-size"} <= common <= cold & tuned
    assert cold - common >= {"--degradation", "--width"}
    assert tuned - common >= {"--lora-rank", "--label-dropout"}
    assert not {"--degradation", "--lora-rank", "--label-dropout"} & common
    assert "train --method METHOD --help" in succeed("train", "--help")


def test_a_terminal_is_told_once_that_a_large_module_is_being_loaded(tmp_path, monkeypatch):
    (tmp_path / "large.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    for at_terminal, quiet, said in ((False, False, ""), (True, True, ""), (True, False, "large")):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda answer=at_terminal: answer)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.delitem(sys.modules, "large", raising=False)
        with _main._announced("large", quiet=quiet):
            importlib.import_module("large")
        assert stream.getvalue() == (f"synthaug: loading {said} ...\n" if said else "")
        assert sys.meta_path == finders


def test_the_overview_names_every_command_and_what_it_does():
    text = succeed("--help")
    for name, function in COMMANDS.items():
        assert re.search(rf"^ *{name}( |$)", text, re.MULTILINE)
        assert " ".join(str(function.__doc__).split("\n")[0].split()) in " ".join(text.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--per-class", "3", "--guidance-scale", "1.5"],
        ["--per_class", "3", "--guidance_scale", "1.5"],
        ["--per-class=3", "--guidance-scale=1.5"],
    ],
)
def test_dashes_and_underscores_mean_the_same(arguments, monkeypatch):
    given: dict[str, Any] = {}
    monkeypatch.setitem(COMMANDS, "generate", spy(COMMANDS["generate"], given))
    succeed("generate", "run-1", "a-b.h5", *arguments, "--counts", '{"big-dog": 2}')
    options = given["options"]
    assert (given["checkpoint"], given["out"]) == ("run-1", "a-b.h5")
    assert (options.per_class, options.guidance_scale) == (3, 1.5)
    assert options.counts == {"big-dog": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("[1.0, 1.5]", [1.0, 1.5]), ("1,1.5e-1", [1.0, 0.15]), ("2", 2), ("[0]", [0])],
)
def test_a_number_or_a_list_of_them_is_taken_for_row_parameters(text, value, monkeypatch):
    given: dict[str, Any] = {}
    monkeypatch.setitem(COMMANDS, "plan", spy(COMMANDS["plan"], given))
    succeed("plan", "run", "--strength", text, "--estimate")
    assert given["options"].strength == value
    assert given["estimate"] is True


@pytest.mark.parametrize("text", ["30", "[30]"])
def test_a_single_number_is_a_list_where_nothing_else_is_taken(text, monkeypatch):
    given: dict[str, Any] = {}
    monkeypatch.setitem(COMMANDS, "invert", spy(COMMANDS["invert"], given))
    succeed("invert", "run", "digits", "out", "--snapshots", text)
    assert given["learning"].snapshots == (30,)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["cache"],
        ["paint"],
        ["train"],
        ["train", "digits"],
        ["train", "digits", "out", "--steps", "many"],
        ["train", "digits", "out", "--stepz", "3"],
        ["train", "digits", "out", "--precision", "float8"],
        ["generate", "run", "a.h5", "--counts", "[1]"],
    ],
    ids=" ".join,
)
def test_arguments_that_cannot_be_parsed_exit_with_2_before_anything_is_loaded(arguments):
    outcome = run(*arguments)
    assert outcome.code == 2
    assert "error:" in outcome.err
    assert "Traceback" not in outcome.err


# The whole job


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Three classes of 8 x 8 images in folders, and a model that was trained on them a little."""
    root = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("holdout", 8), ("test", 6)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 120, (8, 8), np.uint8)
                image[2 * label : 2 * label + 3] += 120
                Image.fromarray(image).save(folder / f"{i}.png")
    train = ["train", f"folder:{root / 'train'}", root / "run", "--batch-size", 8, "--width", 8]
    text = succeed(*train, "--steps", 3, "--device", "cpu")
    assert text.startswith("3 steps, loss ")
    assert (root / "run" / "model_index.json").exists()
    with Image.open(root / "run" / "samples.png") as picture:
        assert picture.width > 8 * 8
    return root


DRAW = ("--num-inference-steps", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def cache(work) -> Path:
    path = work / "cats.h5"
    text = succeed("generate", work / "run", path, "--per-class", 5, *DRAW)
    assert "15 done" in text
    assert "0 pending" in text
    return path


def test_the_shards_of_a_job_make_the_images_of_one_process(work, cache, tmp_path):
    job = ["generate", work / "run", tmp_path / "a.h5", "--per-class", 5, *DRAW]
    text = succeed(*job, "--shard", "2/2")  # all rows are in the first part
    assert "15 pending" in text
    assert "This share is drawn." in text
    assert "15 done" in succeed(*job, "--shard", "1/2")
    rows = range(15)
    assert torch.equal(SynthCache(tmp_path / "a.h5").read(rows), SynthCache(cache).read(rows))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "a.png"]
    assert "1/3, 2/3 and 3/3" in fail(2, *job, "--shard", "0/2")
    assert fail(2, *job, "--num-gpus", "0.5") == "`--num-gpus` needs `--engine ray`."
    assert "needs RANK and WORLD_SIZE" in fail(2, *job, "--engine", "torchrun")


def test_training_goes_on_from_a_checkpoint(work, tmp_path):
    run_dir = shutil.copytree(work / "run", tmp_path / "run")  # others use what is there
    train = ["train", f"folder:{work / 'train'}", run_dir, "--batch-size", 8, "--width", 8]
    assert succeed(*train, "--steps", 4, "--device", "cpu").startswith("4 steps")
    message = fail(2, *train, "--steps", 5, "--device", "cpu", "--seed", 1)
    assert "belongs to another run:\n  seed: 0 there, 1 now\n" in message


def test_a_plan_is_shown_with_its_cost(work):
    text = succeed(
        "plan", work / "run", "--counts", '{"cat": 2, "emu": 3}', *DRAW,
        "--guidance-scale", "[1.0, 2.0]", "--estimate",
    )  # fmt: skip
    assert "5 rows, 3 classes, parameters: guidance_scale" in text
    # Of cat one row each, of emu two rows at 1 and one at 2: guidance costs twice. Of the bytes,
    # 16 a row are room for withdrawals.
    assert "5 images, 665 bytes, 14 network evaluations, under a minute" in text
    *_, next_line = text.splitlines()
    assert next_line.startswith(f"Next: synthaug generate {work / 'run'} CACHE.h5 ")
    assert "--guidance-scale '[1.0, 2.0]'" in next_line
    assert [line.split() for line in text.splitlines()[-4:-1]] == [
        ["cat:", "2"],
        ["dog:", "0"],
        ["emu:", "3"],
    ]


def test_generating_again_changes_nothing_and_the_picture_shows_each_class(work, cache):
    before = cache.read_bytes()
    text = succeed("generate", work / "run", cache, "--per-class", 5, *DRAW, "--batch-size", 4)
    assert cache.read_bytes() == before
    picture = cache.with_suffix(".png")
    assert f"Samples: {picture}" in text
    with Image.open(picture) as shown:
        assert shown.size == (2 + 8 * (8 * 8 + 2), 2 + 3 * (8 * 8 + 2))
    opened = SynthCache(cache)
    assert opened.classes == CLASSES
    assert opened.plan.quota.tolist() == [5, 5, 5]


def test_caches_are_drawn_into_a_store_and_read_from_it(work, tmp_path, monkeypatch):
    monkeypatch.setenv("SYNTHAUG_REMOTE_DIR", str(tmp_path))
    url = "memory://bucket/cli.h5"
    text = succeed("generate", work / "run", url, "--per-class", 1, *DRAW)
    sheet = f"cache info {url} --sheet"
    assert f"Samples: synthaug {sheet} OUT.png" in text
    succeed(*sheet.split(), tmp_path / "samples.png")
    assert (tmp_path / "samples.png").exists()
    assert ImageOptions().synthetic(url, FileOptions()).url == url
    assert "Give a local path" in run("cache", "merge", "memory://bucket/all.h5", url).err


def test_guidance_of_zero_is_a_value_and_not_the_absence_of_one(work):
    path = work / "zero.h5"
    succeed("generate", work / "run", path, "--per-class", 1, "--guidance-scale", 0, *DRAW)
    assert SynthCache(path).plan["guidance_scale"].tolist() == [0, 0, 0]


def test_a_checkpoint_with_a_mix_of_its_own_takes_another_scheduler_and_no_mix(work):
    own = ClassConditional.from_pretrained(
        work / "run",
        device="cpu",
        sampler=SamplerConfig(scheduler="ddpm", log_variance_mix=0.3),
    )
    own.save_pretrained(work / "mixed")

    def digest(*options: Any) -> str:
        """Differs if settings do."""
        plan = ("plan", work / "mixed", "--per-class", 1, *DRAW)
        return str(answer(*plan, *options)["result"]["digest"])

    choices = ((), ("--log-variance-mix", "none"), ("--scheduler", "ddim"))
    assert len({digest(*options) for options in choices}) == 3


def test_a_published_recipe_gives_options_that_were_not_stated(work):
    source = f"folder:{work / 'train'}"
    line = ["plan", work / "run", "--recipe", "real-guidance", "--guidance-scale", 2, *DRAW]
    text = succeed(*line, "--source", source, "--fill-to", 14)
    assert "6 rows, 3 classes, parameters: " in text  # 12 of each class are there
    assert "He et al. 2023. Is Synthetic Data from Generative Models Ready" in text
    assert "--recipe real-guidance" in text.splitlines()[-1]
    assert "360 rows" in succeed(*line, "--source", source)
    assert "`--strength` needs `--source`" in fail(2, *line)
    other = ["--recipe", "azizi", "--scheduler", "ddim", "--per-class", 1]  # no variance to mix
    assert "guidance_scale" in succeed("plan", work / "run", *other, *DRAW)
    message = fail(2, "plan", work / "run", "--recipe", "diff-mix")
    assert message.startswith("`--recipe` must be one of 'real-guidance', 'da-fusion', 'azizi', ")
    assert "`--fill-to` adds to the real images" in fail(
        2, "plan", work / "run", "--fill-to", "largest"
    )


def test_variants_of_real_images_start_from_the_source(work):
    path = work / "variants.h5"
    source, others = (f"folder:{work / name}" for name in ("train", "test"))
    line = ["generate", work / "run", path, "--ratio", 0.5, *DRAW]
    text = succeed(*line, "--source", source, "--strength", "[0.5, 1]")
    assert f"Next: synthaug audit {path} {source} --holdout" in text  # the generator's own images
    assert "--strength" not in text
    line[2] = work / "counted.h5"
    text = succeed(*line, "--source", others)
    assert "no image starts from one. For variants of them, give `--strength`" in text
    assert f"Next: synthaug audit {line[2]} TRAIN --holdout" in text
    plan = SynthCache(path).plan
    assert plan.quota.tolist() == [6, 6, 6]
    assert (plan["source"] >= 0).all()
    assert set(plan["strength"]) == {0.5, 1.0}


def test_withdrawn_rows_do_not_stop_the_command(work):
    path = work / "withdrawn.h5"
    generate = ["generate", work / "run", path, "--per-class", 2, *DRAW]
    succeed(*generate)
    SynthCache(path).withdraw([0, 2, 3])
    assert "3 withdrawn" in succeed(*generate)
    SynthCache(path).withdraw([1, 4, 5])
    assert "Samples" not in succeed(*generate)


def test_audit_and_evaluation_follow_each_other(work, cache):
    report = work / "audit"
    audit = [
        "audit", cache, f"folder:{work / 'train'}", "--holdout", f"folder:{work / 'holdout'}",
        "--out", report,
    ]  # fmt: skip
    outcome = run(*audit)
    record = json.loads(report.with_suffix(".json").read_text())
    assert outcome.code == record["exit_code"]
    assert outcome.code in (0, 1, 3)
    assert outcome.out.startswith(f"Verdict: {record['verdict']}. ")
    line = outcome.out.splitlines()[-1]
    train = f"folder:{work / 'train'}"
    mixes = f"synthaug evaluate {train} {cache} TEST --audit {report}.json"
    assert (mixes in line) == (record["verdict"] != "inconclusive")
    assert (f"synthaug audit {cache} {train} --holdout" in line) == (mixes not in line)
    assert "<html" in report.with_suffix(".html").read_text()

    copies = run("audit", f"folder:{work / 'train'}", *audit[2:-1], work / "copies")
    assert copies.code == 1
    assert copies.out.startswith(
        "Verdict: fail. 36 of 36 images equal a training image pixel by pixel. They are"
    )
    last = copies.out.splitlines()[-1]
    assert last.startswith(
        f"Look at {work / 'copies'}.html first. Then remove the 36 withheld images"
    )
    theirs = f"their files are `withheld_files` in {work / 'copies'}.json."
    assert f"from folder:{work / 'train'}: {theirs} Keep that report" in last
    named = json.loads((work / "copies.json").read_text())
    files = sorted(
        path.relative_to(work / "train").as_posix() for path in (work / "train").glob("*/*")
    )
    assert [entry["file"] for entry in named["withheld_files"]] == files
    assert [entry["train_file"] for entry in named["withheld_files"]] == files
    assert sorted(pair["file"] for pair in named["pairs"]) == files
    assert all(pair["file"] == pair["train_file"] for pair in named["pairs"])
    page = (work / "copies.html").read_text()
    assert all(page.count(f"<code>{file}</code>") >= 4 for file in files), "pairs and list"
    failed = AuditReport.from_json(work / "copies.json")
    for write in (failed.to_json, failed.to_html):
        redacted = write(work / "redacted", redact=True).read_text()
        assert not any(file in redacted for file in files)

    out = work / "evaluation"
    text = succeed(
        "evaluate", f"folder:{work / 'train'}", cache, f"folder:{work / 'test'}",
        "--audit", report.with_suffix(".json"), "--steps", 3, "--batch-size", 8, "--seeds", 2,
        "--out", out,
    )  # fmt: skip
    for arm in ("real", "real, augmented", "real + synthetic", "synthetic only"):
        assert arm in text
    assert "3 optimizer steps of each classifier are too few to compare anything" in text
    assert "Most accurate" not in text
    assert text.endswith(f"Next: synthaug cite {cache}\n")
    assert out.with_suffix(".json").exists()
    assert "<html" in out.with_suffix(".html").read_text()
    text = succeed(
        "cache", "export", cache, work / "passed",
        "--format", "folder", "--audit", report.with_suffix(".json"),
    )  # fmt: skip
    passed = AuditReport.from_json(report.with_suffix(".json")).passed.sum()
    assert text.startswith(f"{passed} images")
    succeed("generate", work / "run", work / "other.h5", "--per-class", 1, *DRAW)
    message = fail(
        2, "evaluate", f"folder:{work / 'train'}", work / "other.h5", f"folder:{work / 'test'}",
        "--audit", report.with_suffix(".json"), "--out", work / "other",
    )  # fmt: skip
    assert message.startswith("The report judges another cache")


def test_labels_are_checked_images_selected_and_an_autoencoder_has_an_arm(work, cache, caplog):
    from diffusers import AutoencoderKL

    train, test = f"folder:{work / 'train'}", f"folder:{work / 'test'}"
    vae = AutoencoderKL(1, 1, block_out_channels=(8,), norm_num_groups=4, latent_channels=1)
    vae.save_pretrained(work / "vae")
    once = ("--steps", 1, "--seeds", 1, "--device", "cpu", "--out")
    check_answer("evaluate labels", cache, train, "--percentile", 50, *once, work / "labels")
    assert "To train on the real images: 1 classifier, 1 step each." in caplog.text
    withheld = json.loads((work / "labels.json").read_text())["withheld"]
    assert len(withheld) == 3 * (5 // 2)  # of every class half, rounded down
    select = ("select", cache, "--real", train, "--keep", 4, "--features", "pixels:2")
    out = ("--steps", 1, "--device", "cpu", "--out", work / "chosen")
    planned = succeed(*select, "--rules", "label,mmd", *out, "--dry-run")
    assert planned.startswith("Rules: label, mmd. Classifiers: 2.\nclass  images  to keep\ncat")
    assert not list(work.glob("chosen*"))
    check_answer("select", *select[1:-2], "--rules", "none", *out[2:])
    chosen = ImageSelection.from_json(work / "chosen.json")
    assert chosen.counts["kept"].tolist() == [4, 4, 4]
    assert "Taken by number" in (work / "chosen.html").read_text()
    by = ("--selection", work / "chosen.json")
    text = succeed(
        "evaluate", train, cache, test, "--labels", work / "labels.json", *by,
        "--autoencoder", work / "vae", "--batch-size", 4, *once, work / "ceiling",
    )  # fmt: skip
    assert "real, decoded" in text
    served = chosen.passed.copy()
    served[withheld] = False
    assert f"{15 - served.sum()} withheld" in (work / "ceiling.json").read_text()
    export = ("cache", "export", cache, work / "chosen", "--format", "folder")
    assert succeed(*export, *by).startswith("12 images")
    other = work / "single.h5"
    succeed("generate", work / "run", other, "--per-class", 1, *DRAW)
    message = fail(2, "cache", "export", other, work / "one", *export[4:], *by)
    assert message.startswith(f"{work / 'chosen.json'} judges another cache:\n")
    assert message.endswith("\nMake it anew for this cache, or leave it out.")
    assert "exactly one of `--threshold` and `--percentile`" in fail(
        2, "evaluate", "labels", cache, train
    )


def test_a_killed_audit_computes_no_features_twice_and_leaves_none_behind(work, cache, monkeypatch):
    torch.jit.script(torch.nn.Flatten()).save(work / "flat.pt")
    audit = [
        "audit", cache, f"folder:{work / 'train'}", "--holdout", f"folder:{work / 'holdout'}",
        "--features", f"torchscript:{work / 'flat.pt'}", "--trust-torchscript", "--k", 3,
    ]  # fmt: skip
    shown: list[int] = []
    extractor = TorchModule.__call__

    def counted(self: TorchModule, pixels: torch.Tensor) -> Any:
        shown.append(len(pixels))
        return extractor(self, pixels)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TorchModule, "__call__", counted)
    whole = run(*audit, "--out", work / "whole")
    together = sum(shown)
    shown.clear()
    with monkeypatch.context() as patched:
        patched.setattr(Matcher, "match", killed)
        stopped = run(*audit, "--out", work / "killed")
    assert stopped.code == 130
    assert (
        f"kept in {work / 'killed'}.unfinished. Run the same command again to resume."
        in stopped.err
    )
    assert run(*audit, "--out", work / "killed").code == whole.code
    assert sum(shown) == together
    assert not list(work.glob("*.unfinished"))
    (work / "file").touch()
    assert "is a file" in fail(2, *audit, "--out", work / "file" / "audit")


def test_outputs_that_cannot_be_written_are_refused_before_any_work(tmp_path, monkeypatch):
    def no_work(*_: Any, **__: Any) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(SynthCache, "__init__", no_work)
    monkeypatch.setattr(ClassConditional, "from_pretrained", no_work)
    access = os.access
    locked = tmp_path / "locked"
    locked.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked and access(path, mode))
    remote = tmp_path / "remote"  # of a server that gives root no rights, and says that it does
    remote.mkdir()
    begun = tempfile.TemporaryFile

    def begin(dir: Path) -> Any:
        if dir == remote:
            raise OSError(errno.EACCES, "Permission denied")
        return begun(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", begin)
    (tmp_path / "taken.html").mkdir()
    (tmp_path / "taken.json").mkdir()
    real = "folder:nowhere"
    for line in (
        ["audit", "c.h5", real],
        ["evaluate", real, "c.h5", real],
        ["evaluate", "density", "c.h5", real, "--features", "pixels"],
        ["evaluate", "labels", "c.h5", real, "--threshold", "0.5"],
        ["evaluate", "quality", "c.h5", real, "--features", "pixels"],
        ["sweep", "checkpoint", real, "--validation", real],
    ):
        assert "is a folder, expected a file" in fail(2, *line, "--out", tmp_path / "taken")
        for folder in (locked, remote):
            assert f"folder {folder}: it is read-only" in fail(2, *line, "--out", folder / "new")
    assert "it is read-only" in fail(2, "train", real, locked / "run")
    assert "it is read-only" in fail(2, "generate", "checkpoint", locked / "c.h5")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("audit c.h5 folder:d --out results/", "`--out` is 'results/', expected a name to write"),
        ("split folder:d ''", "is '', expected a name to write"),
        ("generate run cache.png", "cache.png is the name of the picture of samples"),
        ("generate run sub/../c.h5 --source c.h5", "c.h5 would be replaced by what is written"),
        ("evaluate folder:d c.h5 t --audit a.json --out a", "a.json would be replaced"),
        ("train folder:d link/run", "link/run lies in folder:d, where what is written would be"),
        ("generate run d/cat/c.h5 --source folder:d", "d/cat/c.h5 lies in folder:d"),
    ],
)
def test_outputs_that_would_harm_what_is_read_are_refused(tmp_path, monkeypatch, line, problem):
    monkeypatch.chdir(tmp_path)
    for folder in ("d/cat", "sub"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("c.h5", "a.json"):
        (tmp_path / file).touch()
    (tmp_path / "link").symlink_to("d")
    assert problem in fail(2, *shlex.split(line))


def test_a_home_folder_is_meant_in_names_of_outputs_as_in_those_of_inputs(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    call = _main.understand(["audit", "~/c.h5", "folder:~/d", "--out=~/audits/a"]).call
    assert call.arguments["out"] == f"{tmp_path}/audits/a"


def test_streams_that_the_parent_closed_are_opened(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as ended:
        main(["cite", "nowhere.h5"])
    sys.stderr.close()
    assert ended.value.code == 4


def test_results_name_options_as_the_shell_has_them(monkeypatch, capsys):
    def cite(cache: str, *, per_class: int = 1) -> Result:
        """Say it.

        Args:
            cache: The cache.
            per_class: How many.
        """
        return Result(record={}, text="So be it: `per_class=3`.")

    monkeypatch.setitem(COMMANDS, "cite", cite)
    with pytest.raises(SystemExit):
        main(["cite", "c.h5"])
    assert capsys.readouterr().out == "So be it: `--per-class 3`.\n"


def test_a_split_tells_of_names_that_other_systems_do_not_take(tmp_path, monkeypatch):
    rng, names = np.random.default_rng(0), ("cat/1.png", "Cat/1.png", "aux/2.png")
    for name in names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "photos" / name)
    line = ("split", f"folder:{tmp_path / 'photos'}", tmp_path / "parts")
    outcome = run(*line)
    assert "3 of 3 files cannot be copied to every system" in outcome.err
    assert "Rename them if the folders will travel" in outcome.err
    shutil.rmtree(tmp_path / "parts")
    # A disk that takes both names for one file.
    exists = os.path.exists
    monkeypatch.setattr(
        os.path, "lexists", lambda path: exists(path) or f"{path}".endswith("1.png")
    )
    assert "and another file have one name on this disk" in fail(2, *line)
    assert not (tmp_path / "parts").exists()


def test_a_split_names_classes_that_cannot_be_tested_and_what_follows(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("many", 8), ("one", 1)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    text = succeed("split", f"folder:{tmp_path / 'photos'}", tmp_path / "parts")
    assert "Class one: no image to test with" in text
    assert "give other images of it, or leave it out" in text


def test_a_cache_can_be_looked_at_and_verified(work, cache):
    text = succeed("cache", "info", cache)
    assert "Synthesizer: ClassConditional" in text
    assert "Number of datapoints: 15" in text
    succeed("cache", "info", cache, "--sheet", work / "sheet.png")
    assert (work / "sheet.png").exists()
    line = f"Next: synthaug audit {cache} TRAIN --holdout HOLDOUT\n"
    assert text.endswith(line)
    assert succeed("cache", "verify", cache) == f"Every row is intact.\n{line}"
    damaged = work / "damaged.h5"
    content = bytearray(cache.read_bytes())
    with h5py.File(cache) as file:
        content[file["images"].id.get_offset() + 7 * 64] ^= 1
    damaged.write_bytes(content)
    outcome = run("cache", "verify", damaged)
    assert outcome.code == 4
    assert outcome.out.startswith("1 damaged row: 7.")
    succeed("generate", work / "run", damaged, "--per-class", 5, *DRAW)
    assert damaged.read_bytes() == cache.read_bytes()


def test_features_in_files_are_audited_and_the_report_says_how_to_repeat_it(work):
    rng = np.random.default_rng(0)
    for name, count in (("synthetic", 20), ("train", 200), ("holdout", 100)):
        np.save(work / f"{name}.npy", rng.normal(size=(count, 6)).astype(np.float32))
    files = [work / f"{name}.npy" for name in ("synthetic", "train", "holdout")]
    out = work / "of-features"
    outcome = run("audit", *files[:2], "--holdout", files[2], "--k", 3, "--out", out)
    assert outcome.code in (0, 1, 3), outcome.err
    shown = out.with_suffix(".html").read_text()
    assert f"synthaug audit {files[0]} {files[1]} --holdout {files[2]}" in shown


def test_a_restorer_is_trained_and_restores_real_images(work):
    train, run_dir = f"folder:{work / 'train'}", work / "cold"
    text = succeed(
        "train", train, run_dir, "--method", "cold", "--degradation", "blur", "--steps", 2,
        "--batch-size", 8, "--width", 8, "--device", "cpu",
    )  # fmt: skip
    assert text.startswith("2 steps, loss ")
    assert (run_dir / "samples.png").exists()
    generate = ["generate", run_dir, work / "restored.h5", "--ratio", 0.25, "--device", "cpu"]
    text = succeed(*generate, "--source", train, "--severity", "[0.2, 0.4]", "--num-steps", 5)
    assert "9 done" in text
    assert set(SynthCache(work / "restored.h5").plan["severity"]) == {0.2, 0.4}
    exported = succeed("cache", "export", work / "restored.h5", work / "x", "--format", "folder")
    assert exported.startswith("9 images")
    assert exported.endswith(f"Next: synthaug cite {work / 'restored.h5'}\n")
    refused = fail(2, *generate[:2], work / "no.h5", *generate[3:], "--eta", 1)
    assert f"no --eta for {run_dir}, which is drawn by ColdDiffusion. It knows: --sev" in refused


def test_an_option_of_another_synthesizer_is_refused_with_the_near_one_before_torch_is_loaded(
    work, monkeypatch
):
    monkeypatch.setitem(sys.modules, "synthaug.synthesizers._kinds", None)  # it imports torch
    asked = "generate", work / "run", work / "no.h5", "--per-class", 1, "--num-steps", 3
    assert "Did you mean --num-inference-steps? It knows: --guidance-scale" in fail(2, *asked)


def test_animorphosis_is_trained_and_drawn_with_the_same_other_images(work):
    train, others = f"folder:{work / 'train'}", f"folder:{work / 'holdout'}"
    fit = [
        "train", train, work / "morph", "--method", "cold", "--degradation", "animorphosis",
        "--steps", 1, "--batch-size", 4, "--width", 8, "--device", "cpu",
    ]  # fmt: skip
    assert "`--others`" in fail(2, *fit)
    assert f"--others {others}" in succeed(*fit, "--others", others)
    draw = ["generate", work / "morph", work / "morphed.h5", "--ratio", 0.1, "--num-steps", 2]
    draw += ["--device", "cpu", "--source", train]
    assert "passed as `degradation`" in fail(4, *draw).replace("pass it as", "passed as")
    assert "Give that one" in fail(2, *draw, "--others", train)
    assert "4 done" in succeed(*draw, "--others", others, "--output", "prediction")
    assert "was trained with another degradation" in fail(
        2, "generate", work / "run", work / "no.h5", "--per-class", 1, "--others", others
    )


def test_images_are_inverted_and_varied(work, monkeypatch):
    train, generator, inverted = f"folder:{work / 'train'}", work / "tokens", work / "inverted"
    text = succeed(
        "train", train, generator, "--condition", "tokens", "--token-width", 8, "--num-tokens", 2,
        "--steps", 2, "--batch-size", 8, "--width", 8, "--device", "cpu",
    )  # fmt: skip
    assert "Next: synthaug invert" in text
    given = ["train", train, work / "o", "--steps", 2, "--degradation", "snow"]
    assert "`--degradation` has no meaning with --condition labels" in fail(2, *given)
    assert "`--num-tokens` has no meaning with --condition labels" in fail(
        2, *given[:-2], "--num-tokens", 2
    )
    assert "`--width` has no meaning with --method hardness" in fail(
        2, *given[:-2], "--method", "hardness", "--width", 8
    )
    given = [*given, "--method", "cold", "--condition", "tokens"]
    assert "`--condition` has no meaning with --method cold" in fail(2, *given)
    message = fail(2, "generate", generator, work / "no.h5", "--per-class", 1, *DRAW)
    assert "Learn them with `synthaug invert`" in message
    shutil.copytree(work / "train", work / "odd")
    Image.new("RGB", (20, 16)).save(work / "odd" / "cat" / "0.png")  # is brought to 8 x 8, gray
    real = f"folder:{work / 'odd'}"
    text = succeed("invert", generator, real, inverted, "--updates", 2, "--device", "cpu")
    assert "36 embeddings" in text
    assert (inverted / "variants.png").exists()
    check_answer("invert", generator, real, inverted, "--updates", 2, "--device", "cpu")
    record = json.loads((inverted / "inversion.json").read_text())
    assert record["command"].startswith(f"synthaug invert {generator} {real} {inverted} ")
    monkeypatch.setattr(DiffusionInversion, "draw", None)  # is refused before any work
    monkeypatch.setattr(_inversion_fit, "run_pass", None)
    message = fail(2, "invert", generator, real, inverted, "--updates", 3, "--device", "cpu")
    assert "  updates: 2 there, 3 now\n" in message
    monkeypatch.undo()
    text = succeed(
        "generate", inverted, work / "v.h5", "--ratio", 0.5, "--noise", 0.2, "--cross-class",
        "--unconditional", "class_mean", "--spherical", "--no-relative-noise", *DRAW,
    )  # fmt: skip
    assert "18 done" in text
    variants = SynthCache(work / "v.h5")
    assert (variants.plan["partner_label"] != variants.plan["label"]).all()
    settings = variants.manifest["recipe"]["settings"]
    assert (settings["unconditional"], settings["spherical"]) == ("class_mean", True)
    assert settings["relative_noise"] is False
    plan = SynthCache(work / "v.h5").plan
    assert (plan["source"] >= 0).all()
    assert set(plan["noise"]) == {0.2}
    given = ["generate", inverted, work / "no.h5", "--ratio", 1, "--source", train]
    assert "a DiffusionInversion has its real images" in fail(2, *given)


def test_caches_are_merged_exported_imported_and_forgotten(work):
    source, parts = f"folder:{work / 'train'}", [work / "one.h5", work / "two.h5"]
    for seed, part in enumerate(parts):
        succeed("generate", work / "run", part, "--ratio", 0.25, "--source", source,
                "--strength", 0.5, "--seed", seed, *DRAW)  # fmt: skip
    text = succeed("cache", "merge", work / "both.h5", *parts)
    assert "18 done" in text
    assert "Reports of the parts do not hold for the whole: audit it.\nNext: synthaug audit" in text
    succeed("cache", "export", work / "both.h5", work / "folder", "--format", "folder")
    assert len(list((work / "folder" / "dog").glob("*.png"))) == 6
    text = succeed("cache", "import", f"folder:{work / 'folder'}", work / "back.h5", "--name", "us")
    assert "18 done" in text
    text = succeed("cache", "forget", source, *parts)
    assert "\nNext: synthaug cache verify " in text
    assert text.count("9 of 9 rows were made from these images; withdrawn.") == 2
    assert not SynthCache(parts[0]).done.any()
    (work / "all" / "deep").mkdir(parents=True)
    succeed("generate", work / "run", work / "all" / "deep" / "v.h5", "--ratio", 0.25,
            "--source", source, "--strength", 0.5, *DRAW)  # fmt: skip
    text = succeed("cache", "forget", source, work / "all")
    assert "v.h5: 9 of 9 rows were made from these images; withdrawn." in text
    assert f"Next: synthaug cache verify {work / 'all' / 'deep' / 'v.h5'}" in text
    text = succeed("cache", "forget", source, work / "folder")
    assert "folder: 18 files of images or features deleted." in text
    message = fail(2, "cache", "forget", source, work / "run")
    assert "No cache or export lies in" in message


def test_folders_without_classes_are_audited_and_the_larger_hold_out_has_a_number(work, tmp_path):
    for name in ("theirs", "ours", "held"):
        (tmp_path / name).mkdir()
    images = sorted((work / "train").rglob("*.png"))
    for k, file in enumerate(images):
        shutil.copy(file, tmp_path / ("theirs", "ours", "held")[k % 3] / f"{k}.png")
    theirs, ours, held = (f"folder:{tmp_path / name}" for name in ("theirs", "ours", "held"))
    outcome = run("audit", theirs, ours, "--holdout", held, "--out", tmp_path / "audit")
    assert outcome.code == 3, outcome.err
    record = json.loads((tmp_path / "audit.json").read_text())
    assert record["settings"]["synthetic_rows"] == (len(images) + 2) // 3
    (needed,) = re.findall(r"Hold out at least (\d+)", outcome.out)
    assert f"--holdout HOLDOUT_OF_{needed}" in outcome.out.splitlines()[-1]
    assert "no subfolders" in fail(4, "train", ours, tmp_path / "run", "--steps", 1)
    of_classes = f"folder:{work / 'train'}"
    outcome = run("audit", theirs, ours, "--holdout", of_classes, "--out", tmp_path / "mixed")
    assert "classes" not in outcome.out  # of a folder that has none, none can be missing


def test_a_folder_without_its_kind_is_answered_with_what_was_meant(work):
    message = fail(2, "audit", work / "train", f"folder:{work / 'train'}")
    assert message.endswith(f"Did you mean folder:{work / 'train'}?")


def test_a_report_to_a_store_is_refused_whatever_its_ending(work, cache):
    for out in ("s3://bucket/a", "s3://bucket/a.html"):
        assert "is a URL" in fail(2, "audit", cache, f"folder:{work / 'train'}", "--out", out)


def test_a_report_is_not_begun_whose_place_is_a_device(work, cache):
    (work / "device.html").symlink_to("/dev/null")
    given = ["audit", cache, f"folder:{work / 'train'}", "--out", work / "device"]
    assert "device.html is a device, expected the name of a file" in fail(2, *given)


def test_a_cache_named_twice_is_not_merged(work, cache):
    assert f"{cache} is named twice" in fail(2, "cache", "merge", work / "m.h5", cache, cache)
    assert f"{cache} would be replaced" in fail(2, "cache", "merge", cache, cache)


@pytest.mark.filterwarnings("default")
def test_a_compressed_cache_is_pointed_out_in_a_line_but_not_where_it_is_made_plain(work, cache):
    small = work / "small.h5"
    succeed("cache", "export", cache, small, "--format", "hdf5")
    shown = run("cache", "info", small).err
    assert re.fullmatch(r"synthaug: .*small\.h5 is a compressed copy: [^\n]*\n", shown)
    assert "compressed" not in run("cache", "merge", work / "plain.h5", small).err
    assert (SynthCache(work / "plain.h5").read([3]) == SynthCache(cache).read([3])).all()


def test_folders_of_outputs_are_made(work, cache):
    new = work / "deep" / "deeper"
    succeed("generate", work / "run", new / "a" / "c.h5", "--per-class", 1, *DRAW)
    succeed("cache", "info", cache, "--sheet", new / "b" / "sheet.png")
    for format in ("folder", "hdf5"):
        succeed("cache", "export", cache, new / "c" / format / "x", "--format", format)
    run("audit", cache, f"folder:{work / 'train'}", "--out", new / "d" / "audit")
    assert (new / "d" / "audit.html").exists()


def test_real_images_are_brought_to_the_shape_of_the_cache(work, cache):
    for split in ("train", "test"):
        for path in sorted((work / split).rglob("*.png")):
            big = work / f"big-{split}" / path.parent.name / path.name
            big.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).convert("RGB").resize((20, 16)).save(big)
    train, test = f"folder:{work / 'big-train'}", f"folder:{work / 'big-test'}"
    out = work / "resized"
    assert run("audit", cache, train, "--holdout", test, "--out", out).code in (0, 1, 3)
    evaluate = ["evaluate", train, cache, test, "--steps", 2, "--batch-size", 4, "--seeds", 1]
    succeed(*evaluate, "--device", "cpu", "--out", out)
    succeed("generate", work / "run", work / "big.h5", "--ratio", 0.25, "--source", train,
            "--strength", 0.5, *DRAW)  # fmt: skip
    message = fail(2, "audit", cache, train, "--image-size", 8)
    assert "`--image-size` and `--channels` are for folders" in message


def test_a_result_as_json_has_the_documented_keys_and_nothing_beside_it(work, cache):
    train, test = f"folder:{work / 'train'}", f"folder:{work / 'test'}"
    files, made, run_dir, out = work / "json-files", work / "json.h5", work / "run", work / "json"
    features = ("--features", "pixels:2", "--holdout", test, "--out")
    once = ("--steps", 1, "--batch-size", 4, "--width", 8, "--device", "cpu")
    check_answer("train", train, work / "json-run", *once)
    check_answer("plan", run_dir, "--per-class", 1, *DRAW)
    check_answer("generate", run_dir, made, "--per-class", 1, *DRAW)
    check_answer("cite", made)
    check_answer("cache info", made)
    check_answer("cache verify", made)
    check_answer("cache merge", work / "json-merged.h5", made)
    check_answer("cache export", made, files, "--format", "folder")
    check_answer("cache import", f"folder:{files}", work / "json-back.h5")
    check_answer("cache forget", f"folder:{files}", work / "json-back.h5", files)
    check_answer("audit", cache, train, *features, out)
    assert run("audit", cache, train, "--out", work / "alone").code == 3  # there is no hold-out
    check_answer("evaluate density", cache, train, *features, work / "json-density")
    sets = (train, f"folder:{work / 'holdout'}", "--random-split", "--levels", 1)
    check_answer("evaluate membership", run_dir, *sets, "--out", work / "json-membership")
    check_answer("evaluate quality", cache, train, *features, work / "json-quality", "--force")
    shown = succeed("evaluate", "quality", cache, train, *features, work / "q", "--force")
    assert f"Next: synthaug evaluate TRAIN {cache} TEST" in shown  # REAL may be the test images
    runs = ("--seeds", 1, "--seed", 2, "--out", work / "json-arms")
    check_answer("evaluate", train, cache, test, *once[:4], *runs)

    for name, command in (
        ("json", "audit"),
        ("json-density", "evaluate density"),
        ("json-membership", "evaluate membership"),
        ("json-quality", "evaluate quality"),
        ("json-arms", "evaluate"),
    ):
        record = json.loads((work / f"{name}.json").read_text())
        assert record["settings"]["command"].startswith(f"synthaug {command} ")
    assert {one["seed"] for one in record["runs"]} == {2}
    assert SynthCache(made).manifest["command"].startswith(f"synthaug generate {run_dir} {made} ")
    stored = json.loads((work / "json-run" / "synthaug.json").read_text())["command"]
    assert "--width 8" in stored
    assert "--token-width" not in stored  # it has no meaning for this method


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--per-class", 2, "--ratio", 1],
            "one of `--per-class`, `--ratio`, `--counts` and `--fill-to`",
        ),
        ([], "exactly one of"),
        (["--per-class", 0], "`--per-class` must be at least 1, got 0"),
        (["--counts", '{"cow": 1}'], "names 'cow', which is not a class"),
        (["--ratio", 1], "`--ratio` is a multiple of the number of real images"),
        (["--per-class", 1, "--strength", 0.5], "`--strength` needs `--source`"),
        (["--per-class", 1, "--source", "digit"], "Got the data set 'digit', expected"),
        (["--per-class", 1, "--num-inference-steps", 0], "`--num-inference-steps` must be at"),
        (["--per-class", 1, "--scheduler", "tea"], "`--scheduler` is 'tea'. Known are ddpm"),
        (["--per-class", 1, "--guidance-scale", -1], "`--guidance-scale` must not be negative"),
        (["--per-class", 1, "--eta", 7], "`--eta` must be in [0, 1], got 7"),
        (["--per-class", 1, "--image-size", 9], "must be a multiple of 2"),
        (["--per-class", 1, "--classes", "cat,cat"], "`--classes` holds a name twice: cat, cat"),
        (["--per-class", 1, "--device", "abacus"], "`--device` is 'abacus', which torch cannot"),
    ],
    ids=str,
)
def test_input_that_does_not_fit_exits_with_2_and_writes_nothing(work, arguments, message):
    out = work / "never.h5"
    given = ["generate", work / "run", out, "--device", "cpu", *arguments]
    assert message in fail(2, *given)
    assert not out.exists()


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("set aside with `deduplicate=True`.", "set aside with `--deduplicate`."),
        ("Use `image_size=8` and `channels=3`.", "Use `--image-size 8` and `--channels 3`."),
        ("unaudited (`holdout=None`)", "unaudited (no `--holdout`)"),
        ("`train` and `holdout`", "`train` and `--holdout`"),  # what is given by position stays
        ("`steps` of `fdr.py`", "`steps` of `fdr.py`"),  # no options of this command
    ],
)
def test_messages_name_arguments_as_the_command_line_does(message, shown):
    assert _main._as_options(message, _main._options(COMMANDS["audit"])) == shown


@pytest.mark.filterwarnings("default")
def test_a_librarys_warning_keeps_the_names_of_its_own_arguments(capsys):
    code = "import warnings; warnings.warn('Use `dtype` instead.')"
    with _main._heard({"precision"}, verbose=False, quiet=False):
        exec(code, {"__name__": "diffusers.utils"})
        exec(code, {"__name__": "synthaug.synthesizers"})
    said = ["synthaug: Use `dtype` instead.", "synthaug: Use `--precision` instead."]
    assert capsys.readouterr().err.splitlines() == said


def test_a_librarys_error_keeps_the_names_of_its_own_arguments(capsys):
    request = _main.understand(["train", "DATA", "OUT"])
    for module, name in (("diffusers.utils", "steps"), ("synthaug.synthesizers", "--steps")):
        with pytest.raises(SystemExit), _main._exit_codes(request):
            exec("raise ValueError('`steps` is 0.')", {"__name__": module})
        assert capsys.readouterr().err.startswith(f"synthaug: error: `{name}` is 0.")


EVALUATE = "evaluate DATA CACHE DATA --out OUT"
NAMED_OTHERWISE = {
    "--width 0": "train DATA OUT",
    "--canaries 0": "train DATA OUT",
    "--canary-doses 0,1": "train DATA OUT --canaries 1",
    "--canary-seed -1": "train DATA OUT --canaries 1",
    "--attack-steps 0": f"{EVALUATE} --adversarial 0.1",
    "--adversarial 7": EVALUATE,
    "--balance best": EVALUATE,
    "--augmentations best": EVALUATE,
    "--seeds 0": EVALUATE,
    "--generator-steps 0": "improve DATA OUT",
    "--classifier-scale nan": "plan RUN --per-class 1 --trust-torchscript --classifier PROGRAM",
    "--test 2": "split DATA OUT",
}
"""Options that are called otherwise in Python, with a wrong value, and a line that takes them."""


def test_an_error_names_the_option_whatever_python_calls_it(work, cache):
    program = work / "classifier.pt"
    three = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((1, 3)), torch.nn.Flatten())
    torch.jit.script(three).save(program)
    places = {
        "DATA": f"folder:{work / 'train'}",
        "OUT": str(work / "never"),
        "CACHE": str(cache),
        "RUN": str(work / "run"),
        "PROGRAM": f"torchscript:{program}",
    }
    for wrong, line in NAMED_OTHERWISE.items():
        message = fail(2, *(places.get(word, word) for word in f"{line} {wrong}".split()))
        assert message.startswith(f"`{wrong.split()[0]}` must"), message
    assert not (work / "never").exists()
    # In no message of this kind: the command line has choices, words, or a certificate first.
    unsaid = {"key_algorithm", "precision", "ray_address"}
    named = {wrong.split()[0][2:].replace("-", "_") for wrong in NAMED_OTHERWISE}
    assert {*PYTHON_NAMES} - unsaid <= named


def test_images_that_can_be_read_but_do_not_fit_exit_with_2_and_name_the_option(work):
    mixed = {"sizes": ("L", (9, 8)), "modes": ("RGB", (8, 9))}
    for name, (mode, size) in mixed.items():
        folder = work / name / "cat"
        folder.mkdir(parents=True)
        Image.new("L", (8, 9)).save(folder / "a.png")
        Image.new(mode, size).save(folder / "b.png")
        option = "--image-size 8" if name == "sizes" else "--channels 3"
        for command in ("train", "cache import"):
            message = fail(2, *command.split(), f"folder:{folder.parent}", work / "never")
            assert f"`{option}`" in message
        succeed("cache", "import", f"folder:{folder.parent}", work / f"{name}.h5", *option.split())
    assert not (work / "never").exists()


def test_a_cache_of_another_plan_exits_with_2(work, cache):
    message = fail(2, "generate", work / "run", cache, "--per-class", 6, *DRAW)
    assert "plan rows: 15 in the file, 18 given" in message


def test_what_is_missing_or_unreadable_exits_with_4(work, cache):
    text = work / "text.h5"
    text.write_text("no cache")
    (work / "empty").mkdir()
    broken = work / "broken" / "cat"
    broken.mkdir(parents=True)
    (broken / "1.png").write_bytes((work / "train" / "cat" / "1.png").read_bytes()[:40])
    train, test = f"folder:{work / 'train'}", f"folder:{work / 'test'}"
    for arguments, names in [
        (["plan", work / "no", "--per-class", 1], "no"),
        (["plan", text, "--per-class", 1], "text.h5"),
        (["plan", work / "empty", "--per-class", 1], "empty"),
        (["train", f"folder:{work / 'no'}", work / "o"], "no"),
        (["train", f"folder:{work / 'empty'}", work / "o"], "empty"),
        (["train", f"folder:{work / 'broken'}", work / "o"], "1.png"),
        (["generate", work / "run", text, "--per-class", 1, *DRAW], "text.h5"),
        (["audit", work / "no.h5", train], "no.h5"),
        (["audit", cache, f"folder:{work / 'no'}"], "no"),
        (["evaluate", train, work / "no.h5", test], "no.h5"),
        (["evaluate", train, cache, test, "--audit", work / "no.json"], "no.json"),
        (["evaluate", train, cache, test, "--audit", text], "text.h5"),
        (["cache", "info", work / "no.h5"], "no.h5"),
        (["cache", "verify", text], "text.h5"),
    ]:
        message = fail(4, *arguments)
        assert names in message
        assert "\n" not in message
    message = fail(2, "generate", work / "run", text / "a.h5", "--per-class", 1, *DRAW)
    assert "text.h5 is a file, expected a folder to write to" in message
    assert not (work / "o").exists()


def test_an_error_that_nobody_foresaw_keeps_its_traceback_and_does_not_look_like_copies(
    monkeypatch,
):
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(COMMANDS, "demo", broken)
    outcome = run("demo")
    assert outcome.code == 70
    assert "ZeroDivisionError" in outcome.err


def test_the_traceback_of_an_error_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("SYNTHAUG_TRACEBACK", "1")
    with pytest.raises(CacheError):
        main(["cache", "info", os.devnull + "/none"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("kept", ["Step 7 is saved in runs.", ""])
def test_an_interrupted_command_says_what_is_kept(monkeypatch, number, code, kept):
    def interrupted() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except KeyboardInterrupt as stop:
            stop.args = (kept,) if kept else ()
            raise

    monkeypatch.setitem(COMMANDS, "demo", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs with `&` ignore it
    outcome = run("demo")
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGINT, interrupt)
    assert outcome.code == code
    said = f"{kept} Run the same command again to resume." if kept else "Nothing was saved."
    assert outcome.err == f"synthaug: stopped. {said}\n"


@pytest.mark.parametrize(("words", "code"), [(["demo", "--help"], 0), (["demo"], 3)])
def test_a_reader_that_has_read_enough_is_no_error(monkeypatch, words, code):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setitem(COMMANDS, "demo", lambda: Result(record={}, text="long " * 9999, code=3))
    with open(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as end:
            main(words)
    assert end.value.code == code


@pytest.mark.parametrize(("steps", "warned"), [(60, True), (300, False)])
def test_so_few_steps_that_only_noise_comes_are_warned_of(caplog, steps, warned):
    kinds = [*TRAININGS, "--method registered"]
    for kind in kinds:
        _warn_of_few_steps(kind, TrainingConfig(steps=steps))
    new = set(TRAININGS) - {f"--method {name}" for name in ("finetune", "hardness", "distill")}
    assert caplog.text.count("expect noise") == warned * len(new)


def test_a_trial_is_small_says_so_and_names_the_whole_command(work, tmp_path, monkeypatch):
    data, out = f"folder:{work / 'train'}", tmp_path / "run"
    config = TrainingConfig.trial()
    assert config.steps * config.batch_size < TrainingConfig.steps
    assert config.learning_rate_at(config.steps // 5) == config.learning_rate  # warm by then
    given = ["train", data, out, "--trial", "--steps", 2, "--seed", 3]
    text = succeed(*given, "--device", "cpu")
    assert re.search("That was a trial: .* The real job takes about .* on this device.\n", text)
    assert text.endswith(f"Next: synthaug train {data} {out} --seed 3 --device cpu\n")
    monkeypatch.setattr("synthaug._cli.training._duration", lambda *_: "")  # it takes seconds
    assert f"Checkpoint: {out}-trial.\n" in succeed(*given, "--device", "cpu")
    assert f"Checkpoint: {out}-trial-2.\n" in succeed(*given[:-1], 4, "--device", "cpu")
    assert not out.exists()
    network = UNet2DModel.from_pretrained(tmp_path / "run-trial" / "unet")
    assert min(network.config.block_out_channels) == 16
    assert (tmp_path / "run-trial" / "samples.png").exists()
    assert "`--trial` is for networks that begin anew" in fail(
        2, *given, "--method", "finetune", "--base", out
    )


def test_what_is_stated_for_a_trial_stays_even_if_it_is_the_default(monkeypatch, work, tmp_path):
    configs = []

    def noted(job: Any) -> Any:
        configs.append((job.config, job.options.width))
        raise ValueError("enough")

    monkeypatch.setitem(
        TRAININGS, "--condition labels", (noted, TRAININGS["--condition labels"][1])
    )
    given = ["train", f"folder:{work / 'train'}", tmp_path / "run", "--trial"]
    usual = TrainingConfig()
    fail(2, *given, "--batch-size", usual.batch_size, "--steps", usual.steps, "--width", 64)
    fail(2, *given, "--decay-steps", usual.steps // 5, "--warmup-steps", 1000)
    # A configuration file may hold all arguments: what equals its default there is not stated.
    (tmp_path / "given.yaml").write_text(f"batch_size: {usual.batch_size}\nlearning_rate: 0.1\n")
    fail(2, *given, "--config", tmp_path / "given.yaml")
    (whole, width), (quick, _), (from_file, _) = configs
    assert (whole.batch_size, whole.steps, width) == (usual.batch_size, usual.steps, 64)
    assert (quick.steps, quick.decay_steps, quick.warmup_steps) == (400, 80, 40)
    assert (from_file.batch_size, from_file.learning_rate) == (16, 0.1)


def test_an_option_of_another_method_is_refused_even_if_it_is_the_default(tmp_path):
    given = ["train", "digits", tmp_path / "run", "--method", "cold", "--label-dropout", "0.1"]
    given += ["--steps", 1]
    assert "`--label-dropout` has no meaning with --method cold" in fail(2, *given)


def test_the_time_of_the_real_job_is_that_of_all_its_steps_and_images(monkeypatch):
    now = [0.0]

    def taken(job: Any) -> Any:
        assert job.config.batch_size == 4  # 4 x 32 x 32 pixels
        now[0] += 5 + 0.5 * job.config.steps

    monkeypatch.setattr("synthaug._cli.training.time.monotonic", lambda: now[0])
    monkeypatch.setenv("SYNTHAUG_PROGRESS", "off")
    config = TrainingConfig(steps=1000, batch_size=8)
    real = SimpleNamespace(image_shape=(3, 32, 32))
    job = TrainingRequest(real=real, data="", out="", options=TrainOptions(), config=config)
    assert _duration(taken, job) == " The real job takes about 17 minutes on this device."


def test_the_images_of_a_trial_are_small_unless_a_size_is_stated(tmp_path, monkeypatch, caplog):
    for i in range(2):
        (tmp_path / "data" / "ab"[i]).mkdir(parents=True)
        Image.new("RGB", (40, 60), (i, 0, 0)).save(tmp_path / "data" / "ab"[i] / "0.png")
    shapes = []

    def noted(job: Any) -> Any:
        shapes.append(job.real.image_shape)
        raise ValueError("enough")

    monkeypatch.setitem(
        TRAININGS, "--condition labels", (noted, TRAININGS["--condition labels"][1])
    )
    given = ["train", f"folder:{tmp_path / 'data'}", tmp_path / "run", "--trial"]
    fail(2, *given)
    assert "as given" not in caplog.text
    fail(2, *given, "--image-size", 32)
    assert shapes == [(3, 24, 16), (3, 32, 32)]
    assert "It uses `--image-size` as given, which is more than a trial needs" in caplog.text


def test_the_version_is_printed():
    assert re.search(r"\d+\.\d+", succeed("--version"))


@pytest.mark.parametrize(
    ("code", "line", "message"),
    [
        (
            2,
            "train digits out --lora-rank 4",
            "--method diffusion. It belongs to --method finetune.",
        ),
        (2, "train digits out --config nope.yaml", "--config nope.yaml does not exist."),
        (
            4,
            "evaluate quality digits:train digits:train --features torchscript:no.pt "
            "--holdout digits:test",
            "`--features torchscript:no.pt`: `path` no.pt does not exist.",
        ),
    ],
)
def test_messages_name_the_option_that_helps(code, line, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run(*line.split())
    assert outcome.code == code
    assert message in outcome.err


def test_a_folder_whose_audit_passes_with_images_withheld_is_not_imported_as_it_is():
    call = Call("audit", {"synthetic": "folder:syn", "train": "t", "redact": False})
    report = SimpleNamespace(verdict="pass", withheld=[3], withheld_files=[{"file": "a.png"}])
    line = next_step(report, call, "audit")
    assert line == (
        "Look at audit.html first. Then remove the 1 withheld image from folder:syn: their files "
        "are `withheld_files` in audit.json. Keep that report: a later audit of the folder cannot "
        "know what was removed."
    )
    assert "cache import" in next_step(SimpleNamespace(verdict="pass", withheld=[]), call, "audit")


@pytest.mark.parametrize(
    ("loaded", "given", "policy"),
    [
        (False, {}, "PASSIVE"),
        (True, {}, None),  # too late
        (False, {"GOMP_SPINCOUNT": "5"}, None),
        (False, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
    ],
)
def test_waiting_threads_sleep_unless_something_else_is_asked_for(
    loaded, given, policy, monkeypatch
):
    monkeypatch.setattr("os.environ", dict(given))
    if not loaded:
        monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ.get("OMP_WAIT_POLICY") == policy
