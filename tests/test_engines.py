"""Engines: however many processes draw a plan, and whatever becomes of them, one cache results."""

import os
import shutil
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthaug import Plan, SynthCache
from synthaug._cluster import ActorPool, Share, Worker, actor_pool
from synthaug._generate.actors import Drawer, Task
from synthaug._generate.parts import Part, draw_part, lay_out, left, parts_of
from synthaug._support.locks import claimed
from synthaug.caches import RayEngine, merge
from synthaug.errors import CacheError, EngineError, MismatchError
from tests.command_line import succeed
from tests.drawing import Killed, Noise, Shaped, fill, plan_of
from tests.fake_ray import Actor, FakeRay
from tests.tiny.class_conditional import tiny

ROWS = 300  # five parts
WITHDRAWN = 2  # a state of a row in the file


def a_plan() -> Plan:
    return plan_of((150, 0, 150))


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> bytes:
    """The file that one process makes."""
    return fill(Noise(), tmp_path_factory.mktemp("one") / "a.h5", a_plan()).path.read_bytes()


def draw(path: Path, synthesizer: Any = None, **changes: Any) -> SynthCache:
    return fill(synthesizer or Shaped(), path, a_plan(), **changes)


def kill() -> None:
    raise Killed


def damage(part: Part, row: int) -> None:
    raw = bytearray(part.path.read_bytes())
    image = SynthCache(part.path).read([row]).numpy().tobytes()
    raw[raw.index(image)] ^= 4
    part.path.write_bytes(raw)


# Shares


@pytest.mark.parametrize("rows", [1, 64, 65, 300, 5_000, 50_000, 1_281_167, 20_000_000])
def test_parts_are_whole_batches_in_order_and_neither_few_nor_many(rows):
    parts = parts_of(Path("a.h5"), rows)
    assert parts[0].start == 0
    assert all(before.stop == after.start for before, after in pairwise(parts))
    assert parts[-1].stop == rows
    assert all(len(part) % 64 == 0 for part in parts[:-1])
    assert min(rows / 64, 30) <= len(parts) <= 1024
    assert [p.path for p in parts] == sorted(p.path for p in parts)  # as a shell would list them


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_equal_and_together_everything(count):
    blocks = range(20)
    shares = [Share.parse(f"{i}/{count}").of(blocks) for i in range(1, count + 1)]
    assert sorted(block for share in shares for block in share) == list(blocks)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("order", [[1, 2, 3], [3, 1, 2]], ids=str)
def test_the_shards_of_a_job_array_make_the_file_that_one_process_makes(tmp_path, expected, order):
    path = tmp_path / "a.h5"
    for i in order:
        assert path.exists() == (i != order[0])
        cache = draw(path, Noise(), shard=f"{i}/3")
        assert cache.done.all() == (i == order[-1])
    assert path.read_bytes() == expected
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("base", [Noise, Shaped])
def test_ranks_that_draw_at_the_same_time_make_the_file_that_one_process_makes(
    tmp_path, expected, base: Any
):
    path, begun, drawing = tmp_path / "a.h5", threading.Barrier(3), threading.Barrier(3)

    class Meeting(base):
        met = False

        def draw(self, rows: Plan) -> torch.Tensor:
            if len(rows) == 30 and not self.met:  # not the one row that only gives the shape
                self.met = True
                drawing.wait(60)
            return super().draw(rows)

    def rank(i: int) -> SynthCache:
        begun.wait(60)
        return draw(path, Meeting(), shard=f"{i}/3", batch_size=30)

    with ThreadPoolExecutor(3) as threads:
        jobs = [threads.submit(rank, i) for i in (1, 2, 3)]
    assert any(job.result().done.all() for job in jobs)
    assert path.read_bytes() == expected


def test_torchruns_ranks_take_their_share_from_the_environment(tmp_path, expected, monkeypatch):
    path, drawn = tmp_path / "a.h5", []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        synthesizer = Shaped()
        draw(path, synthesizer, engine="torchrun")
        drawn.append(set(synthesizer.drawn))
    assert path.read_bytes() == expected
    assert not drawn[0] & drawn[1]
    assert [len(seeds) for seeds in drawn] == [172, 128]


def test_on_the_command_line_torchruns_ranks_fill_one_cache_and_the_first_speaks(
    tmp_path, monkeypatch
):
    tiny().save_pretrained(tmp_path / "model")
    job = ["generate", tmp_path / "model", tmp_path / "a.h5", "--per-class", 20, "--device", "cpu"]
    job += ["--num-inference-steps", 1]
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        said.append(succeed(*job, "--engine", "torchrun"))
    assert said[0] == ""
    assert "80 done, 0 pending" in said[1]


@pytest.mark.parametrize(  # what is left to draw is the same to each of the later ways
    ("first", "then"),
    [(["1/3"], ["1/1"]), (["2/2"], ["2/2", "1/2"]), (["1/4", "4/4"], [None])],
    ids=str,
)
def test_a_job_goes_on_with_another_number_of_processes_and_draws_nothing_twice(
    tmp_path, expected, first, then
):
    path, drawn = tmp_path / "a.h5", []
    for shard in [*first, *then]:
        synthesizer = Shaped()
        draw(path, synthesizer, shard=shard)
        drawn += synthesizer.drawn
    assert path.read_bytes() == expected
    assert sorted(drawn) == sorted(a_plan()["seed"].tolist())


def test_a_killed_shard_goes_on_where_it_was_and_so_does_a_job_begun_without_shards(
    tmp_path, expected
):
    path = tmp_path / "a.h5"
    drawn: list[int] = []
    for shard, killed_at in ((None, 40), ("1/2", 54), ("1/2", None), ("2/2", None)):
        synthesizer = Shaped(killed_at=killed_at)
        try:
            draw(path, synthesizer, shard=shard, batch_size=10)
        except Killed:
            assert len(synthesizer.drawn) == killed_at
        drawn += synthesizer.drawn
    assert path.read_bytes() == expected
    assert sorted(drawn) == sorted(a_plan()["seed"].tolist())


def test_parts_can_be_merged_by_hand(tmp_path, expected):
    path = tmp_path / "a.h5"
    draw(path, shard="1/2")
    for part in parts_of(path, ROWS)[1::2]:
        lay_out(part, SynthCache(path))
        draw_part(Shaped(), part, np.arange(len(part)), batch_size=64)
    parts = sorted((tmp_path / "a.h5.parts").iterdir())
    assert merge(parts, tmp_path / "b.h5").path.read_bytes() == expected


def test_withdrawn_rows_and_damaged_rows_of_parts_are_what_they_are_in_one_file(tmp_path):
    path = tmp_path / "a.h5"
    draw(path, shard="1/2").withdraw([3, 70])
    part = parts_of(path, ROWS)[2]
    damage(part, 5)
    synthesizer = Shaped()
    draw(path, synthesizer, shard="1/2")
    assert synthesizer.drawn == [a_plan()["seed"][part.start + 5]]
    cache = draw(path, shard="2/2")
    assert np.flatnonzero(cache.state == WITHDRAWN).tolist() == [3, 70]
    assert cache.done.sum() == ROWS - 2
    assert not len(cache.verify())


def test_parts_of_another_plan_are_refused_before_anything_is_drawn(tmp_path):
    path = tmp_path / "a.h5"
    draw(path, shard="1/2")
    path.unlink()
    synthesizer = Shaped()
    for shard in ("1/2", "2/2"):
        with pytest.raises(MismatchError, match=r"rows-0000000000-0000000064.h5 was made for"):
            fill(synthesizer, path, plan_of((150, 0, 150), seed=1), shard=shard)
    assert synthesizer.drawn == []


def test_two_processes_never_write_to_one_part(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    whole = draw(path, shard="1/2")
    part = parts_of(path, ROWS)[1]
    lay_out(part, whole)
    with claimed(part.path):
        monkeypatch.setattr("synthaug._generate.parts._PATIENCE", 0)
        with pytest.raises(CacheError, match=r"0000000128.h5 is being written by process .* once"):
            draw_part(Shaped(), part, np.arange(len(part)), batch_size=64)
    assert draw_part(Shaped(), part, np.arange(len(part)), batch_size=64)[0] == len(part)


def test_parts_that_a_kill_left_behind_a_complete_cache_are_removed(tmp_path, expected):
    path, folder = tmp_path / "a.h5", tmp_path / "a.h5.parts"
    draw(path, shard="1/2")
    shutil.copytree(folder, tmp_path / "kept")
    draw(path, shard="2/2")
    (tmp_path / "kept").rename(folder)
    synthesizer = Shaped()
    assert draw(path, synthesizer, shard="1/2").path.read_bytes() == expected
    assert not synthesizer.drawn
    assert not folder.exists()


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "1/0", "a/b", "-1/3", "1/3/5", "1.0/3", ""])
def test_a_shard_is_counted_from_1(tmp_path, shard):
    with pytest.raises(ValueError, match=r"1/3, 2/3 and 3/3"):
        draw(tmp_path / "a.h5", shard=shard)
    assert not list(tmp_path.iterdir())


def test_engines_without_what_they_need_are_refused(tmp_path, monkeypatch):
    for rank, size in ((None, None), ("0", None), ("2", "2"), ("-1", "2"), ("x", "2")):
        for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=r"needs RANK and WORLD_SIZE.*torchrun"):
            draw(tmp_path / "a.h5", engine="torchrun")
    with pytest.raises(ValueError, match="must be one of 'local', 'torchrun', 'ray'"):
        draw(tmp_path / "a.h5", engine="spark")
    with pytest.raises(ValueError, match="`shard` is for processes that are started by hand"):
        draw(tmp_path / "a.h5", engine="torchrun", shard="1/2")
    for wrong in ({"actors": 0}, {"tries": 0}, {"num_gpus": -1}, {"num_cpus": -0.5}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be at least"):
            RayEngine(**wrong)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"synthaug\[ray\]"):
        draw(tmp_path / "a.h5", engine="ray")
    assert not list(tmp_path.iterdir())


# Memory


@pytest.mark.parametrize(  # which errors these are is shown in test_accelerators
    ("error", "shard"), [(MemoryError, None), (torch.OutOfMemoryError, "1/1")]
)
def test_a_batch_that_does_not_fit_into_memory_is_halved(tmp_path, expected, error, shard):
    sizes = []

    class Large(Shaped):
        def draw(self, rows: Plan) -> torch.Tensor:
            sizes.append(len(rows))
            if len(rows) > 20:
                raise error
            return super().draw(rows)

    assert draw(tmp_path / "a.h5", Large(), shard=shard).path.read_bytes() == expected
    assert sizes[:3] == [64, 32, 16]
    assert set(sizes[3:-1]) == {16}  # and stays so


def test_an_image_that_does_not_fit_into_memory_is_an_error(tmp_path):
    class Larger(Shaped):
        def draw(self, rows: Plan) -> torch.Tensor:
            raise MemoryError

    with pytest.raises(MemoryError):
        draw(tmp_path / "a.h5", Larger())


# Actors that are lost


def lose(task: Task, *, poisoned: set[int], tries: int) -> list[int]:
    """Runs a task whose actor is lost whenever it draws a poisoned row; sizes of all batches."""
    sizes = []
    while len(rows := task.pending()):
        batch = rows[: task.batch_size]
        sizes.append(len(batch))
        if poisoned & set(batch.tolist()):
            task.lost(tries)
        else:
            draw_part(Shaped(), task.part, batch, batch_size=64)
        assert len(sizes) < 100
    return sizes


@pytest.mark.parametrize(
    ("poisoned", "sizes"),
    [
        (set[int](), [8] * 8),
        ({3}, [8, 8, 1, 1, 1, 1, 1, 1] + [8] * 7 + [4]),
        ({0, 1}, [8, 8, 1, 1, 1, 8, 8, 1, 1, 1] + [8] * 7 + [6]),
        ({63}, [8] * 9 + [1] * 10),
    ],
    ids=str,
)
def test_rows_that_end_every_actor_are_given_up_after_some_tries_and_all_others_are_drawn(
    tmp_path, poisoned, sizes
):
    whole = SynthCache.create(
        tmp_path / "a.h5", a_plan(), image_shape=Shaped.image_shape, manifest={"recipe": {}}
    )
    part = parts_of(whole.path, ROWS)[0]
    lay_out(part, whole)
    task = Task(part, whole, batch_size=8)
    assert lose(task, poisoned=poisoned, tries=3) == sizes
    assert set(task.given_up) == poisoned
    assert set(left(part, whole).tolist()) == poisoned


def test_an_actor_draws_damaged_rows_of_a_complete_part_anew(tmp_path):
    whole = draw(tmp_path / "a.h5", shard="1/2")
    part = parts_of(whole.path, ROWS)[2]
    damage(part, 5)
    task, drawer, synthesizer = Task(part, whole, 64), Drawer(), Shaped()
    drawer.synthesizer = synthesizer
    assert drawer.draw(part, task.wanted, 64, check=True)[0] == 0
    assert synthesizer.drawn == [a_plan()["seed"][part.start + 5]]


# All of a job on Ray, but for Ray


@pytest.mark.parametrize("seed", range(3))
def test_whichever_actors_are_lost_every_row_is_drawn_and_none_is_lost_or_done_twice(
    tmp_path, expected, monkeypatch, seed
):
    monkeypatch.setitem(sys.modules, "ray", FakeRay(seed))
    monkeypatch.setattr("synthaug._generate.actors._SECONDS", 0)  # a batch per call
    chance = np.random.default_rng(seed)

    class Frail(Shaped):
        def draw(self, rows: Plan) -> torch.Tensor:
            if chance.random() < 0.2:
                raise Killed
            return super().draw(rows)

    synthesizer = Frail()
    cache = draw(tmp_path / "a.h5", synthesizer, engine=RayEngine(tries=99), batch_size=16)
    assert cache.path.read_bytes() == expected
    assert sorted(synthesizer.drawn) == sorted(a_plan()["seed"].tolist())


def test_what_a_killed_driver_left_is_finished_and_what_was_damaged_since_drawn_anew(
    tmp_path, expected, monkeypatch
):
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    path = tmp_path / "a.h5"
    draw(path, shard="1/2")
    part = parts_of(path, ROWS)[2]
    damage(part, 5)
    synthesizer = Shaped()
    assert draw(path, synthesizer, engine="ray").path.read_bytes() == expected
    assert part.start + 5 in [a_plan()["seed"].tolist().index(seed) for seed in synthesizer.drawn]
    assert len(synthesizer.drawn) == 128 + 1


class Poisoned(Shaped):
    """One row ends the process that draws it; another does not fit into memory."""

    def draw(self, rows: Plan) -> torch.Tensor:
        if 100 in rows["variant"][rows["label"] == 0]:
            raise Killed
        if 70 in rows["variant"][rows["label"] == 2]:
            raise MemoryError
        return super().draw(rows)


def test_all_rows_are_drawn_but_those_that_end_every_actor_and_the_job_can_go_on(
    tmp_path, expected, monkeypatch
):
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    path, plan = tmp_path / "a.h5", a_plan()
    with pytest.raises(EngineError, match=r"Row 100 ended .*'variant': 100.* So did 1 more"):
        draw(path, Poisoned(), engine=RayEngine(actors=2, tries=1), batch_size=1)
    again = Shaped()
    assert draw(path, again).path.read_bytes() == expected
    assert again.drawn == [plan["seed"][100], plan["seed"][220]]


@pytest.mark.parametrize(
    ("changes", "cpus", "message"),
    [
        ({}, 0, r"Ray cannot schedule an actor. Each needs 1 CPU \(the cluster has 0, free 0\)"),
        ({"load": lambda: Shaped(other=1)}, 3, "loaded another synthesizer, with the recipe"),
        ({"load": lambda: int("x")}, 3, "could not load the synthesizer: ValueError: invalid"),
        ({"load": kill}, 3, "5 actors died one after the other before they were ready"),
    ],
    ids=["no room", "another synthesizer", "an error", "a kill"],
)
def test_actors_that_do_not_get_ready_end_the_job_and_say_why(
    tmp_path, monkeypatch, changes, cpus, message
):
    monkeypatch.setitem(sys.modules, "ray", FakeRay(cpus=cpus))
    monkeypatch.setattr("synthaug._cluster.ray._PATIENCE", 0)
    with pytest.raises(EngineError, match=message):
        draw(tmp_path / "a.h5", engine=RayEngine(**changes))


def test_of_idle_actors_new_ones_are_asked_first_and_then_the_fastest():
    workers = [Worker(Actor("an actor"), speed) for speed in (1.0, float("inf"), 2.0)]
    pool = ActorPool(FakeRay(), lambda: None, 3)
    pool._idle += workers
    asked = []

    def call(actor: Actor, item: str) -> Any:
        asked.append([worker.actor for worker in workers].index(actor))
        return actor.upper.remote()

    assert len(list(pool.run(deque("abc"), call))) == 3
    assert asked == [1, 2, 0]


@pytest.mark.parametrize("seed", range(3))
def test_whichever_call_ends_first_results_are_in_the_order_of_the_items(monkeypatch, seed):
    monkeypatch.setitem(sys.modules, "ray", FakeRay(seed))

    class Negation:
        def load(self) -> None:
            pass

        def negate(self, number: int) -> int:
            return -number

    with actor_pool(RayEngine(), Negation) as pool:
        results = pool.map(range(9), lambda actor, number: actor.negate.remote(number))
    assert results == [-number for number in range(9)]


# Ray. Each actor is a process that imports torch, so there are few of these.


@pytest.mark.xdist_group("ray")
def test_as_many_actors_as_there_is_room_for_make_the_file_that_one_process_makes(
    ray, tmp_path, expected
):
    cache = draw(tmp_path / "a.h5", engine="ray")
    assert cache.path.read_bytes() == expected
    assert list(tmp_path.iterdir()) == [cache.path]


@pytest.mark.xdist_group("ray")
def test_a_pool_repeats_the_work_of_lost_actors_but_not_for_ever(ray, tmp_path):
    class Squares:
        def load(self) -> None:
            pass

        def work(self, number: int) -> int:
            before = (tmp_path / str(number)).exists()
            (tmp_path / str(number)).touch()
            if number == 9:
                raise MemoryError
            if number < 0 or (number % 2 == 0 and not before):
                os._exit(1)
            return number**2

    def squares(numbers: list[int]) -> list[int]:
        with actor_pool(RayEngine(actors=2), Squares) as pool:
            return pool.map(numbers, lambda actor, n: actor.work.remote(n), tries=2)

    assert squares([1, 2, 3, 5, 7]) == [1, 4, 9, 25, 49]
    with pytest.raises(EngineError, match="2 actors were lost with the same work"):
        squares([-2])
    with pytest.raises(MemoryError):
        squares([9])


def test_a_synthesizer_that_cannot_travel_is_refused_before_anything_is_made(tmp_path):
    pytest.importorskip("ray")

    class Open(Shaped):
        lock = threading.Lock()

    with pytest.raises(ValueError, match=r"Open cannot be pickled .*load=lambda: Open"):
        draw(tmp_path / "a.h5", Open(), engine="ray")
    assert not list(tmp_path.iterdir())
