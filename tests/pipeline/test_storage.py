"""Files that are there whole or not at all, on a disk and in a bucket."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from jobs import files_of

from prelabel.pipeline.storage import Storage, local_copy, open_url, reaching, read_file, read_input, writing
from prelabel.schemas.errors import JobError, UserError


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return f"{tmp_path}/out [1]" if request.param == "local" else "memory://out [1]"


class Flaky(MemoryFileSystem):
    """A bucket that answers its first calls with errors."""

    cachable = False

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
        self._fail()
        super().pipe_file(path, value, mode)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: object) -> bytes:
        self._fail()
        return bytes(super().cat_file(path, start, end))


def flaky(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> Storage:
    storage = Storage("memory://flaky")
    storage.fs = Flaky(*errors)
    for call in (Storage.put, read_file):
        monkeypatch.setattr(call.retry, "sleep", lambda seconds: None)
    return storage


def test_files_are_listed_read_replaced_and_deleted(url: str) -> None:
    storage = Storage(url)
    assert not storage.exists()
    assert storage.names("images") == []
    storage.put("images/b", b"1")
    storage.put("images/a", b"2")
    storage.put("images/b", b"3")
    assert storage.names("images") == ["a", "b"]
    assert storage.read("images/b") == b"3"
    assert storage.exists("images/b")
    storage.delete("images/b")
    storage.delete("images/b")
    assert files_of(url) == {"/images/a": b"2"}
    with pytest.raises(FileNotFoundError):
        storage.read("images/b")


def test_copy_in_another_process_is_the_same_folder(url: str) -> None:
    Storage(url).put("a", b"1")
    assert pickle.loads(pickle.dumps(Storage(url))).read("a") == b"1"


def test_failed_put_keeps_old_content_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(tmp_path))
    storage.put("images/part", b"old")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        storage.put("images/part", b"new")
    assert files_of(str(tmp_path)) == {"/images/part": b"old"}


def test_crash_inside_put_leaves_parts_alone(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.put("images/part", b"old")

    def killed(*_: object, **__: object) -> None:
        raise SystemExit  # as far as files go: neither the rename nor the clean-up is done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(SystemExit):
            storage.put("images/part", b"new")
    assert storage.names("images") == ["part"]
    assert len(files_of(str(tmp_path))) == 2
    storage.delete_temporary()
    assert files_of(str(tmp_path)) == {"/images/part": b"old"}


def test_put_whose_temporary_file_is_swept_away_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Storage.put.retry, "sleep", lambda seconds: Storage.delete_temporary(Storage(str(tmp_path))))
    replace, swept = os.replace, []

    def sweep_first(path: str, to: str) -> None:
        if not swept:
            swept.append(path)
            os.unlink(path)
        replace(path, to)

    monkeypatch.setattr(os, "replace", sweep_first)
    Storage(str(tmp_path)).put("images/part", b"rows")
    assert files_of(str(tmp_path)) == {"/images/part": b"rows"}
    assert swept


def test_create_that_fails_leaves_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_manifest").mkdir()
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        Storage(str(tmp_path)).create("_manifest/lock", b"mine")
    assert files_of(str(tmp_path)) == {}


def test_create_never_replaces(url: str) -> None:
    storage = Storage(url)
    assert storage.create("_manifest/lock", b"mine")
    assert not storage.create("_manifest/lock", b"yours")
    assert storage.read("_manifest/lock") == b"mine"


def test_one_of_two_creators_wins(tmp_path: Path) -> None:
    for name in map(str, range(20)):
        at_once, won = threading.Barrier(2), []

        def race(who: bytes, name: str = name, at_once: threading.Barrier = at_once, won: list = won) -> None:
            storage = Storage(str(tmp_path))
            at_once.wait()
            if storage.create(name, who):
                won.append(who)

        threads = [threading.Thread(target=race, args=(who,)) for who in (b"a", b"b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [(tmp_path / name).read_bytes()] == won


def test_create_that_was_reported_as_failed_but_done_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = flaky(monkeypatch)

    def reply_lost(path: str, value: bytes, mode: str) -> None:
        MemoryFileSystem.pipe_file(storage.fs, path, value, mode)
        raise TimeoutError("no reply")

    monkeypatch.setattr(storage.fs, "pipe_file", reply_lost)
    assert storage.create("lock", b"mine")
    storage.delete("lock")


def test_transient_failures_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down = OSError("503 SlowDown")
    storage = flaky(monkeypatch, slow_down, slow_down)
    storage.put("a", b"1")
    storage.fs.errors = [slow_down, TimeoutError()]
    assert storage.read("a") == b"1"
    assert storage.fs.errors == []


@pytest.mark.parametrize("error", [PermissionError("403"), OSError(errno.ENOSPC, "no space left on device")])
def test_final_failures_are_not_tried_again(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    storage = flaky(monkeypatch, error, AssertionError("tried again"))
    with pytest.raises(type(error)):
        storage.put("a", b"1")


def test_exceptions_of_a_library_s_own_are_failures_that_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = flaky(monkeypatch, CloudError(), CloudError())
    storage.put("a", b"1")
    storage.fs.errors = [CloudError()] * 100
    with pytest.raises(OSError, match="flaky/a: CloudError"):
        storage.read("a")


def test_failing_for_good_is_told_after_some_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = flaky(monkeypatch, *[OSError("503")] * 100)
    with pytest.raises(OSError, match="503"):
        storage.put("a", b"1")
    assert len(storage.fs.errors) == 95


def test_short_answer_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = flaky(monkeypatch)
    answers = [b"12", b"123"]
    monkeypatch.setattr(storage.fs, "cat_file", lambda path, start, end: answers.pop(0))
    assert read_file(storage.fs, "a", 1, 4) == b"123"


def test_streamed_file_appears_whole_or_not_at_all(url: str) -> None:
    with writing(f"{url}/labels.json") as out:
        out.write(b"old")
    with suppress(RuntimeError), writing(f"{url}/labels.json") as out:
        out.write(b"new")
        raise RuntimeError
    assert files_of(url) == {"/labels.json": b"old"}


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_is_one_line_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "labels.json").write_bytes(b"old")
    monkeypatch.setattr(os, call, no_space)
    with (
        pytest.raises(JobError, match=r"can't write .*labels.json: .*no space left"),
        writing(f"{tmp_path}/labels.json") as out,
    ):
        out.write(b"new")
    assert files_of(str(tmp_path)) == {"/labels.json": b"old"}


def test_disk_that_fills_up_while_streaming_is_one_line(url: str) -> None:
    with pytest.raises(JobError, match=r"can't write .*labels.json: .*no space left"), writing(f"{url}/labels.json"):
        no_space()
    for error in (JobError("a part is missing"), ValueError("a bug")):
        with pytest.raises(type(error)) as caught, writing(f"{url}/labels.json"):
            raise error
        assert caught.value is error
    assert files_of(url) == {}


def test_file_behind_a_link_is_replaced_and_not_the_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("folder/target")
    for text in (b"new", b"newer"):
        with writing(f"{tmp_path}/link") as out:
            out.write(text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder/target").read_bytes() == text


def test_pipe_or_folder_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "folder", "link"):
        with (
            pytest.raises(JobError, match=f"{name}: what is there is not a regular file"),
            writing(f"{tmp_path}/{name}"),
        ):
            pass
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_file_of_the_user_is_read_or_told_in_one_line(url: str, tmp_path: Path) -> None:
    Storage(url).put("truth.json", b"{}")
    assert read_input(f"{url}/truth.json", "--truth") == b"{}"
    for wrong in (f"{url}/absent.json", str(tmp_path), "memory://", "ftp://localhost:9/truth.json"):
        with pytest.raises(UserError, match=r"--truth .* can't be read: ") as caught:
            read_input(wrong, "--truth")
        assert "\n" not in str(caught.value)


def test_answer_of_a_file_systems_own_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise CloudError

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    monkeypatch.setattr(read_file.retry, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match=r"--truth memory://truth can't be read: /truth: CloudError; check"):
        read_input("memory://truth", "--truth")
    for error in (CloudError(), NotImplementedError()):
        with pytest.raises(JobError, match=f"can't write it: {type(error).__name__}; "), reaching("write it"):
            raise error
    with pytest.raises(TypeError), reaching("write it"):
        raise TypeError


class CloudError(Exception):
    """Has neither a text nor a known ancestor."""


def test_remote_weights_are_fetched_or_told_in_one_line(tmp_path: Path) -> None:
    assert local_copy(f"file://{tmp_path}/weights.pth") == f"{tmp_path}/weights.pth"
    with pytest.raises(UserError, match=r"--weights memory://weights.pth can't be seen by worker processes"):
        local_copy("memory://weights.pth")
    with pytest.raises(UserError, match=r"--weights ftp://localhost:9/weights.pth can't be read: .*refused"):
        local_copy("ftp://localhost:9/weights.pth")


def test_memory_is_refused_for_a_job_since_workers_do_not_see_it(tmp_path: Path) -> None:
    Storage(str(tmp_path)).check_shared()
    with pytest.raises(JobError, match="choose another --output"):
        Storage("memory://out").check_shared()


def test_place_that_takes_no_files_is_refused(tmp_path: Path) -> None:
    Storage(str(tmp_path / "new" / "folder")).check_writable()
    assert files_of(str(tmp_path)) == {}
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match="can't write to"):
        Storage(str(tmp_path / "file" / "labels")).check_writable()


def test_unknown_protocol_says_what_to_do() -> None:
    with pytest.raises(UserError, match="check the part before ://"):
        open_url("s4://bucket/labels")


def test_url_with_a_secret_is_refused_and_hidden() -> None:
    with pytest.raises(UserError, match="holds a secret") as refused:
        Storage("s3://someone:no-one-may-read-this@bucket/labels")
    assert "no-one-may-read-this" not in str(refused.value)
