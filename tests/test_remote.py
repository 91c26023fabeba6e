"""Caches in object stores: a real S3 server, and faults of stores, networks and disks."""

import errno
import os
import pickle
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest
import torch
from boto3.s3.transfer import TransferConfig
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from moto.server import ThreadedMotoServer
from PIL import Image
from s3fs import S3FileSystem
from torch import Tensor

from synthaug import Plan, SynthCache, caches, generate
from synthaug._cache import remote
from synthaug._cache.tombstones import content_keys
from synthaug._cli.call import Call
from synthaug._support.files import check_folder, check_outputs
from synthaug.errors import CacheError, MismatchError
from tests.command_line import succeed
from tests.drawing import SHAPE, Killed, Noise, fill, plan_of

URL = "memory://bucket/images.h5"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> SynthCache:
    path = tmp_path_factory.mktemp("remote") / "images.h5"
    return generate(Noise(), plan_of(), path, progress=False)


@pytest.fixture
def stored(local: SynthCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The cache in a store in memory; copies go to a folder of this test."""
    monkeypatch.setenv("SYNTHAUG_REMOTE_DIR", str(tmp_path / "copies"))
    caches.upload(local.path, URL)
    yield URL
    MemoryFileSystem.store.clear()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedMotoServer]:
    """A server of S3's protocol on this machine, with a bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    access = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_MAX_ATTEMPTS": "1",
        "SYNTHAUG_REMOTE_DIR": str(tmp_path_factory.mktemp("copies")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in access.items():
            patch.setenv(name, value)
        patch.setattr(S3FileSystem, "retries", 1)  # the store that is gone is asked once
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield server
        server.stop()


def copies(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*") if not p.name.endswith(".lock"))


def test_a_cache_in_an_s3_store_is_read_like_the_file(
    s3: ThreadedMotoServer, local: SynthCache
) -> None:
    url = "s3://bucket/folder/images.h5"
    caches.upload(local.path, url)
    cache = SynthCache(url, output_type="np")
    assert cache.url == url
    assert cache.read(range(len(local))).equal(local.read(range(len(local))))
    assert cache[3][1] == local[3][1]
    again = pickle.loads(pickle.dumps(cache))  # as in a worker
    assert again.path == cache.path
    with pytest.raises(CacheError, match=r"s3://bucket/none\.h5 does not exist"):
        SynthCache("s3://bucket/none.h5")


def test_an_object_that_changed_after_it_was_copied_is_refused(
    s3: ThreadedMotoServer, local: SynthCache, tmp_path: Path
) -> None:
    url, changed = "s3://bucket/changed.h5", tmp_path / "changed.h5"
    caches.upload(local.path, url)
    copy = SynthCache(url).path
    shutil.copy(local.path, changed)
    SynthCache(changed).withdraw([0])  # as many bytes: the store's own mark tells
    caches.upload(changed, url, overwrite=True)
    with pytest.raises(CacheError, match=r"has changed since .* Delete that file"):
        SynthCache(url)
    copy.unlink()
    assert not SynthCache(url).done[0]


def test_when_the_store_is_gone_a_copy_is_used_and_the_log_says_so(
    s3: ThreadedMotoServer, local: SynthCache, caplog: pytest.LogCaptureFixture
) -> None:
    url = "s3://bucket/gone.h5"
    caches.upload(local.path, url)
    cache = SynthCache(url)
    assert "does not answer" not in caplog.text
    server_address = os.environ["AWS_ENDPOINT_URL"]
    try:
        os.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"
        fsspec.filesystem("s3").clear_instance_cache()
        again = SynthCache(url)
        assert again.path == cache.path
        assert again.read(range(len(local))).equal(local.read(range(len(local))))
        assert f"{url} does not answer" in caplog.text
        assert f"The local copy of 20{time.gmtime().tm_year % 100}-" in caplog.text
        with pytest.raises(CacheError, match=r"cannot be reached: .* Check the name"):
            SynthCache("s3://bucket/second.h5")
    finally:
        os.environ["AWS_ENDPOINT_URL"] = server_address
        fsspec.filesystem("s3").clear_instance_cache()


def test_a_cache_is_drawn_into_a_store(
    stored: str, local: SynthCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = "memory://bucket/drawn.h5", tmp_path / "copies"
    with pytest.raises(Killed):
        fill(Noise(killed_at=5), url, batch_size=2)
    assert not fsspec.filesystem("memory").exists("/bucket/drawn.h5")
    (part,) = folder.glob("unfinished-*.h5")
    with pytest.raises(MismatchError, match=rf"(?s){part} was made .* was drawn for {url} before"):
        fill(Noise(), url, plan_of(seed=1))

    def gone(self: MemoryFileSystem, *_: Any, **__: Any) -> None:
        raise PermissionError("403")

    again = Noise()
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", gone)
        with pytest.raises(CacheError, match=f"{url} cannot be reached.* safe in {part}. Run the"):
            fill(again, url)
    assert len(again.drawn) < len(local)  # what the kill left was not drawn again
    last = Noise()
    with monkeypatch.context() as patch:  # a store that keeps something else
        patch.setattr(MemoryFileSystem, "put_file", lambda self, path, name: self.touch(name))
        with pytest.raises(CacheError, match=f"does not hold the bytes of .* safe in {part}"):
            fill(last, url)
    with pytest.raises(CacheError, match=f"{url} exists already, and is not {part}"):
        fill(last, url)
    fsspec.filesystem("memory").rm("/bucket/drawn.h5")
    cache = fill(last, url)
    assert (last.drawn, cache.url, part.exists()) == ([], url, False)
    assert fsspec.filesystem("memory").cat("/bucket/drawn.h5") == local.path.read_bytes()

    # Run again it finds all done, here and on another machine; other plans find it taken.
    for place in (folder, tmp_path / "elsewhere"):
        monkeypatch.setenv("SYNTHAUG_REMOTE_DIR", str(place))
        assert fill(last, url).done.all()
        with pytest.raises(MismatchError, match=f"{url} was made for something else"):
            fill(last, url, plan_of(seed=1))
    os.replace(cache.path, part)  # as a kill leaves it before the store's answer
    assert fill(last, url).done.all()
    assert last.drawn == []

    # Objects are not continued, nor replaced unasked.
    begun = tmp_path / "begun.h5"
    with pytest.raises(Killed):
        fill(Noise(killed_at=5), begun, batch_size=2)
    with pytest.raises(CacheError, match=f"{url} exists already, and is not {begun}"):
        caches.upload(begun, url)
    caches.upload(begun, url, overwrite=True)
    with pytest.raises(CacheError, match=f"{url} has changed since"):
        fill(last, url)
    monkeypatch.setenv("SYNTHAUG_REMOTE_DIR", str(tmp_path / "third"))
    with pytest.raises(CacheError, match=f"{url} holds a cache with rows that are still to be"):
        fill(last, url)

    def asked_to_stop(self: MemoryFileSystem, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MemoryFileSystem, "put_file", asked_to_stop)
    with pytest.raises(KeyboardInterrupt, match="only the upload is left"):
        fill(Noise(), "memory://bucket/stopped.h5")


def test_a_job_that_waited_for_the_same_url_draws_nothing(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()

    class Held(Noise):
        def draw(self, rows: Plan) -> Tensor:
            begun.set()
            go.wait(10)
            return super().draw(rows)

    url, second = "memory://bucket/twice.h5", Noise()
    jobs = [
        threading.Thread(target=fill, args=(Held(), url)),
        threading.Thread(target=fill, args=(second, url), kwargs={"wait": True}),
    ]
    jobs[0].start()
    begun.wait(10)
    jobs[1].start()
    time.sleep(0.2)  # until it waits
    go.set()
    for job in jobs:
        job.join()
    assert second.drawn == []
    assert SynthCache(url).done.all()

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    url = "memory://bucket/full.h5"
    with monkeypatch.context() as patch:
        patch.setattr(remote, "write_text", full)
        with pytest.raises(CacheError, match=f"{url} is whole in the store.*left on device. Make"):
            fill(Noise(), url)
    again = Noise()
    assert fill(again, url).done.all()
    assert again.drawn == []

    def absent(self: Path, *_: Any, **__: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")  # as in /proc

    monkeypatch.setenv("SYNTHAUG_REMOTE_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(Path, "mkdir", absent)
    with pytest.raises(CacheError, match=r"Cannot create .*none.* Choose another folder"):
        fill(Noise(), "memory://bucket/none.h5")


def test_what_s3_holds_is_compared_by_its_own_sums(
    s3: ThreadedMotoServer, local: SynthCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "s3://bucket/drawn.h5"
    monkeypatch.setattr(S3FileSystem, "open", None)  # nothing is read back
    assert fill(Noise(), url).read([0]).equal(local.read([0]))
    with pytest.raises(CacheError, match=r"s3://absent/drawn\.h5 cannot be reached"):
        fill(Noise(), "s3://absent/drawn.h5")
    large = tmp_path / "large"
    large.write_bytes(os.urandom(6 * 2**20))
    monkeypatch.setattr(remote, "_PART", 5 * 2**20)
    client = boto3.client("s3")
    parts = TransferConfig(multipart_threshold=1, multipart_chunksize=5 * 2**20, use_threads=False)
    client.upload_file(str(large), "bucket", "large", Config=parts)
    tag = client.head_object(Bucket="bucket", Key="large")["ETag"]
    assert tag.endswith('-2"')
    assert tag.strip('"') in remote._sums(large)


def test_processes_that_come_at_once_fetch_once(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    copy = remote._copy

    def counted(url: str, *rest: Any) -> None:
        fetched.append(url)
        copy(url, *rest)

    monkeypatch.setattr(remote, "_copy", counted)
    threads = [threading.Thread(target=SynthCache, args=(stored,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [stored]
    elsewhere = SynthCache(stored, local_dir=tmp_path / "elsewhere")
    assert elsewhere.path.parent == tmp_path / "elsewhere"
    # A name may be long, and a signature stays out of it.
    signed = f"memory://bucket/{'漢' * 200}.h5?X-Amz-Signature={'a' * 300}"
    caches.upload(elsewhere.path, signed)
    name = SynthCache(signed).path.name
    assert name.endswith("漢.h5")

    def no_answer(self: MemoryFileSystem, path: str) -> Any:
        raise FileNotFoundError(path) from ConnectionRefusedError()  # as over HTTP

    monkeypatch.setattr(MemoryFileSystem, "info", no_answer)
    assert SynthCache(stored).path.exists()
    with pytest.raises(CacheError, match="cannot be reached"):
        SynthCache(stored, local_dir=tmp_path / "third")


def test_a_copy_that_does_not_end_leaves_nothing(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(error: Exception) -> Any:
        def read(self: MemoryFile, size: int) -> bytes:
            raise error

        return read

    for error, text in (
        (OSError(errno.ENOSPC, "No space left on device"), "Free .* bytes, or choose another"),
        (ConnectionResetError("reset"), "cannot be reached: ConnectionResetError: reset"),
        (RuntimeError("403"), "cannot be reached: RuntimeError: 403"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFile, "read", failing(error))
            with pytest.raises(CacheError, match=text):
                SynthCache(stored)
        assert copies(tmp_path / "copies") == []
    with monkeypatch.context() as patch:  # a store that ends early
        patch.setattr(MemoryFile, "read", lambda self, size: b"")
        with pytest.raises(CacheError, match=r"changed while it was copied \(0 of"):
            SynthCache(stored)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
        with pytest.raises(CacheError, match="10 bytes are free"):
            SynthCache(stored)
    assert copies(tmp_path / "copies") == []
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"Cannot copy .* another folder with `local_dir`"):
        SynthCache(stored, local_dir=tmp_path / "file")

    def read_only(path: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(remote, "whole_file", read_only)
        with pytest.raises(CacheError, match=r"Permission denied\. .* another folder"):
            SynthCache(stored)

    # What is signed or named in a URL is kept nowhere.
    monkeypatch.setattr(remote, "_store", lambda _, store=remote._store: store(stored))
    SynthCache("https://me:secret@host/images.h5?signature=secret")
    kept = [p for p in (tmp_path / "copies").iterdir() if "lock" not in p.suffix]
    assert len(kept) == 2
    assert not any("secret" in p.name or b"secret" in p.read_bytes() for p in kept)
    monkeypatch.undo()
    monkeypatch.setenv("SYNTHAUG_REMOTE_DIR", str(tmp_path / "others"))

    # A copy without its note, or cut short, as a kill between two steps leaves it, is made anew.
    path = SynthCache(stored).path
    os.truncate(path, 100)
    assert SynthCache(stored).path.stat().st_size > 100
    (path.parent / f"{path.name}.json").unlink()
    assert SynthCache(stored).done.all()


def test_forgetting_in_a_copy_says_that_the_object_still_holds_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTHAUG_REMOTE_DIR", str(tmp_path / "copies"))
    real = torch.randint(0, 256, (1, *SHAPE), dtype=torch.uint8)
    kept: dict[str, Any] = {
        "sources": [[], [0], []],
        "source_keys": content_keys(real.numpy()),
        "parameters": {"strength": [0.5]},
    }
    plan = Plan.build([0, 2, 0], classes=("a", "b", "c"), settings={}, seed=0, **kept)
    original = fill(Noise(), tmp_path / "c.h5", plan)
    url = "memory://bucket/signed.h5"
    caches.upload(original.path, f"{url}?Signature=secret")
    monkeypatch.setattr(remote, "_store", lambda _, of=remote._store: of(f"{url}?Signature=secret"))
    copy = SynthCache(f"{url}?Signature=secret").path
    (tmp_path / "real" / "b").mkdir(parents=True)
    Image.fromarray(real[0].permute(1, 2, 0).numpy()).save(tmp_path / "real" / "b" / "0.png")
    (link := tmp_path / "link.h5").symlink_to(copy)
    told = f"is a copy of {url}, an object in a store, where nothing is erased: it still holds"
    for place in (copy, copy.parent, link):
        found = caches.forget([place], real)
        assert told in "\n".join(found.beyond)
        assert (
            f"upload({str(place if place != copy.parent else copy)!r}, {url!r}, overwrite"
            in str(found.beyond)
        )
        assert "secret" not in str(found.beyond)
        assert not SynthCache(copy).done.any()
    at_first = caches.forget([original.path], real)
    for other in (caches.forget([copy], [1]), at_first):
        assert "is a copy of" not in str(other.beyond)
    assert f"{original.path} was uploaded to {url}, or was to be" in str(at_first.beyond)
    assert "secret" not in str(at_first.beyond)
    assert "was uploaded to" not in str(caches.forget([original.path], [1]).beyond)
    source = f"folder:{tmp_path / 'real'}"
    assert told in succeed("cache", "forget", source, copy)
    assert told in succeed("cache", "forget", source, copy, "--json")
    (note := copy.with_name(f"{copy.name}.json")).unlink()
    os.mkfifo(note)
    assert "is a copy of" not in str(caches.forget([copy], real).beyond)
    MemoryFileSystem.store.clear()


def test_a_copy_is_not_written_and_urls_are_not_filled(stored: str, tmp_path: Path) -> None:
    cache = SynthCache(stored)
    for change in (
        lambda: cache.write([0], cache.read([0])),
        lambda: cache.withdraw([0]),
        lambda: cache.invalidate([0]),
    ):
        with pytest.raises(CacheError, match=r"is a copy of memory://.* Write the original"):
            change()
    with pytest.raises(ValueError, match="would change a copy only"):
        SynthCache(stored, on_corrupt="regenerate", synthesizer=Noise())
    new = "memory://bucket/new.h5"
    for write in (
        lambda: caches.export(cache, "memory://bucket/out", format="folder"),
        lambda: caches.merge([stored], new),
        lambda: caches.import_images([(cache[0][0], 0)], new),
        lambda: SynthCache.create(new, plan_of(), image_shape=(1, 2, 2), manifest={}),
    ):
        with pytest.raises(CacheError, match=r"memory://.* Give a local path"):
            write()
    with pytest.raises(ValueError, match=r"memory://.* Give a local path"):
        check_outputs("memory://bucket/report.html")
    with pytest.raises(ValueError, match=r"memory://.* Give a local path"):
        check_folder("memory://bucket/run")
    with pytest.raises(ValueError, match="parts of several processes meet in a folder"):
        generate(Noise(), plan_of(), new, shard="1/2")
    assert caches.merge([stored], tmp_path / "merged.h5").done.all()
    mounted = (tmp_path / "new" / "images.h5").as_uri()
    caches.upload(cache.path, mounted)
    assert SynthCache(mounted).url == mounted
    with pytest.raises(CacheError, match=r"`url` is 'images\.h5', expected one such as"):
        caches.upload(cache.path, "images.h5")
    (tmp_path / "no.h5").write_bytes(b"no cache")
    with pytest.raises(CacheError):
        caches.upload(tmp_path / "no.h5", stored)


def test_passwords_and_signatures_of_a_url_are_neither_shown_nor_kept(
    local: SynthCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level("INFO", "synthaug")
    monkeypatch.setenv("SYNTHAUG_REMOTE_DIR", str(tmp_path))
    url, told = "memory://me:hidden@bucket/x.h5?sig=hidden", list[str]()
    here, name = fsspec.core.url_to_fs(url)

    def says(kind: type[Exception], change: Any) -> None:
        with pytest.raises(kind) as caught:
            change()
        told.append(str(caught.value))

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(f"403 for {url}")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "info", refused)
        says(CacheError, lambda: SynthCache(url))  # the store's own message names it, too
    reason = "PermissionError: 403 for memory://bucket/x.h5"
    assert f"memory://bucket/x.h5 cannot be reached: {reason}. " in told[0]
    says(CacheError, lambda: SynthCache(url))
    cache = fill(Noise(), url)
    assert cache.url == url  # a worker opens it anew
    says(CacheError, lambda: cache.write([0], cache.read([0])))
    says(MismatchError, lambda: fill(Noise(), url, plan_of(seed=1)))
    says(CacheError, lambda: caches.export(cache, url, format="folder"))
    here.pipe(name, b"another")
    says(CacheError, lambda: SynthCache(url))
    says(CacheError, lambda: caches.upload(local.path, url))
    call = Call("generate", {"model": "m", "out": url, "seed": 3}, positional=("model", "out"))
    assert call.line == "synthaug generate m memory://bucket/x.h5 --seed 3"
    kept = [path.read_text() for path in tmp_path.glob("*.json")]
    assert len(kept) == 1
    assert "hidden" not in "\n".join([*told, *kept, caplog.text])
    MemoryFileSystem.store.clear()


def blind(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """The store says, once, that there is no such object: another job makes it just then."""
    seen: list[str] = []
    real = remote._object

    def asked(store: Any, name: str, url: str) -> Any:
        assert isinstance(store, kind)
        seen.append(url)
        return None if len(seen) == 1 else real(store, name, url)

    monkeypatch.setattr(remote, "_object", asked)


@pytest.mark.parametrize("parts", [1, 3])
def test_two_jobs_that_write_one_object_do_not_overwrite_each_other(
    s3: ThreadedMotoServer,
    local: SynthCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts: int,
) -> None:
    url, client = f"s3://bucket/raced-{parts}.h5", boto3.client("s3")
    path = local.path
    if parts > 1:  # which S3 takes from 5 MiB on
        shape, plan = (3, 128, 128), plan_of((70, 70, 80))
        empty = {"image_shape": shape, "manifest": {"recipe": Noise().recipe()}}
        path = SynthCache.create(tmp_path / "large.h5", plan, **empty).path  # type: ignore[arg-type]
        # Older s3fs has no such function, and sends these bytes at once.
        chunks = "s3fs.core.calculate_chunksize"
        monkeypatch.setattr(chunks, lambda *_, **__: 5 * 2**20, raising=False)
        assert path.stat().st_size > 2 * 5 * 2**20
    key = url.removeprefix("s3://bucket/")
    client.put_object(Bucket="bucket", Key=key, Body=b"of the other job")
    with monkeypatch.context() as patch:
        blind(patch, S3FileSystem)
        with pytest.raises(CacheError, match=f"{url} exists already, and is not .*Nothing was ov"):
            caches.upload(path, url)
    assert client.get_object(Bucket="bucket", Key=key)["Body"].read() == b"of the other job"
    assert "Uploads" not in client.list_multipart_uploads(Bucket="bucket")
    caches.upload(path, url, overwrite=True)
    with monkeypatch.context() as patch:  # the other job made the same: nothing is wrong
        blind(patch, S3FileSystem)
        caches.upload(path, url)


def test_two_jobs_that_write_one_file_by_url_do_not_overwrite_each_other(
    local: SynthCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "shared" / "images.h5"
    url = target.as_uri()
    target.parent.mkdir()
    target.write_bytes(b"of the other job")
    with monkeypatch.context() as patch:
        blind(patch, LocalFileSystem)
        with pytest.raises(CacheError, match=r"images.h5 exists already, and is not .*Nothing was"):
            caches.upload(local.path, url)
    assert target.read_bytes() == b"of the other job"
    caches.upload(local.path, url, overwrite=True)
    assert target.read_bytes() == local.path.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["images.h5"]
    with monkeypatch.context() as patch:  # the other job made the same: nothing is wrong
        blind(patch, LocalFileSystem)
        caches.upload(local.path, url)


def test_a_store_that_knows_no_conditions_is_written_without(
    local: SynthCache, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    real = MemoryFileSystem.put_file

    def put(self: Any, path: str, name: str, mode: str = "overwrite") -> None:
        given.append(mode)
        if mode == "create":
            raise OSError(errno.ENOSYS, "A header you provided implies functionality ...")
        real(self, path, name)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    caches.upload(local.path, "memory://bucket/other.h5")
    assert given == ["create", "overwrite"]
    assert SynthCache("memory://bucket/other.h5").done.all()
