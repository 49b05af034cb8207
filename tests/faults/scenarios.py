"""Faults by chance: each scenario is a job that something happens to; then it goes on, is proven and compared.

The same seed gives the same scenario, as far as the moment at which a process is killed can be given.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import psutil
from buckets import environment, now_and_then, proxy
from damage import damage, says_the_same, unit_of
from jobs import files_of
from made_up import go_on, without_ray
from simulated import told

from prelabel.pipeline import runner, writer
from prelabel.pipeline.dataset import open_dataset
from prelabel.pipeline.storage import Storage
from prelabel.pipeline.validate import validate
from prelabel.schemas.errors import PrelabelError

PIPELINE_TESTS = Path(__file__).parents[1] / "pipeline"
SECONDS_OF_A_UNIT = 0.05
RAY_MODEL = "python:tiny_models:channels"


class SkipError(Exception):
    """This machine has no way to make the fault."""


@dataclass
class Scene:
    """One scenario.

    Attributes:
        chance: decides
        folder: for whatever it writes; its output goes to `output`
        source: of images
        expected: the files of a job that was left alone
        port: of an S3 server
    """

    chance: random.Random
    folder: Path
    source: str
    expected: dict[str, Any]
    port: int
    output: str = ""

    def __post_init__(self) -> None:
        self.output = self.output or str(self.folder / "labels")

    def go_on(self) -> None:
        with without_ray():
            assert go_on(self.source, self.output, unit_images=1).is_complete

    def prove(self) -> None:
        """Nothing lost, nothing twice, no byte that differs."""
        found = validate(self.output)
        assert found.is_proven, list(found.lines(5))
        assert found.committed == found.units
        images = open_dataset(self.output).table("images").to_table()["image_id"].to_pylist()
        assert images == list(range(found.images)), "lost or doubled"
        different = {name for name, data in tables_of(self.output).items() if self.expected.get(name) != data}
        assert not different, f"different: {different}"
        assert tables_of(self.output).keys() == self.expected.keys()


def tables_of(url: str) -> dict[str, Any]:
    return {name: data for name, data in told(files_of(url)).items() if "/_manifest/" not in name}


# Processes without Ray


def process(scene: Scene, before: Callable[[], object] = int) -> int:
    """A process that works on the job; its exit code is the command's."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    with suppress(BaseException), open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            before()
            with without_ray(SECONDS_OF_A_UNIT):
                code = go_on(scene.source, scene.output, unit_images=1).exit_code
        except PrelabelError as error:
            code = error.exit_code
    os._exit(code)


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(scene: Scene, before: Callable[[], object] = int) -> None:
    pid = process(scene, before)
    time.sleep(scene.chance.uniform(0, 0.7))
    os.kill(pid, signal.SIGKILL)
    exit_code(pid)


def kill_drivers(scene: Scene) -> None:
    """kill -9 at random moments, again and again."""
    for _ in range(scene.chance.randint(1, 4)):
        killed(scene)


def fill_the_disk(scene: Scene) -> None:
    """A disk that has no space left, in the middle of whatever."""
    with small_disk(scene.folder / "disk", scene.chance.randint(5, 60) * 4096) as (disk, enlarge):
        scene.output = str(disk / "labels")
        code = exit_code(process(scene))
        assert code in (0, 2, 3), code
        enlarge()
        scene.go_on()
        scene.prove()
        kept = shutil.copytree(scene.output, scene.folder / "labels")
    scene.output = str(kept)


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[tuple[Path, Callable[[], object]]]:
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], capture_output=True)
    if mounted.returncode:
        raise SkipError("no tmpfs can be mounted here")
    try:
        yield place, lambda: subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
    finally:
        subprocess.run(["umount", place], check=True)


def limit_files(scene: Scene) -> None:
    """No file may grow beyond some size, as with a quota."""
    size = scene.chance.randint(200, 5_000)
    code = exit_code(process(scene, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))))
    assert code in (0, 2, 3), code


def start_two(scene: Scene) -> None:
    """Two runners at once: one works, one refuses."""
    _one_works(map(exit_code, [process(scene), process(scene)]))
    if scene.chance.random() < 0.5:
        shutil.rmtree(scene.output)
        killed(scene)
        _one_works(map(exit_code, [process(scene), process(scene)]))


def _one_works(codes: Iterable[int]) -> None:
    """The other refuses, or comes when all is done."""
    found = sorted(codes)
    assert found in ([0, 2], [0, 0]), found


def move_the_clock(scene: Scene) -> None:
    """Each process believes in another time, a day or ten years off, and files have any age."""

    def move() -> None:
        off = timedelta(seconds=scene.chance.choice((-1, 1)) * scene.chance.uniform(1e3, 3e8))
        clock = SimpleNamespace(now=lambda zone: datetime.now(zone) + off)
        real = time.time
        patch.object(time, "time", lambda: real() + off.total_seconds()).start()
        patch.object(writer, "datetime", clock).start()
        patch.object(runner, "datetime", clock).start()

    for _ in range(scene.chance.randint(1, 3)):
        killed(scene, move)
        for path in Path(scene.output).rglob("*"):
            if path.is_file() and scene.chance.random() < 0.3:
                os.utime(path, (scene.chance.uniform(0, 4e9),) * 2)
    exit_code(process(scene, move))


# Damage


def damage_units(scene: Scene) -> None:
    """Parts and commits that are cut off, flipped or gone: named, taken back and worked again."""
    exit_code(process(scene))
    files = _files(scene, "images", "annotations", "_manifest/commits")
    damaged = {path: path.read_bytes() for path in scene.chance.sample(files, scene.chance.randint(1, 5))}
    for path in damaged:
        damage(path, scene.chance)
    gone = {unit_of(path) for path in damaged if path.suffix == ".json" and not path.exists()}  # as if never committed
    unchanged = {path for path, data in damaged.items() if path.exists() and says_the_same(path, data)}
    found = validate(scene.output, fix=True)
    named = {one.unit for one in found.violations.kept} | set(found.fixed)
    for path in damaged.keys() - unchanged:
        assert unit_of(path) in named | gone, f"{path} is not named"


def damage_the_plan(scene: Scene) -> None:
    """A plan or job.json that is not what was written is named or refused; put back, the job goes on."""
    killed(scene)
    if not Path(scene.output, "_manifest/job.json").exists():
        return
    path = scene.chance.choice([*_files(scene, "_manifest/units"), Path(scene.output, "_manifest/job.json")])
    data = path.read_bytes()
    damage(path, scene.chance)
    if path.exists() and path.suffix == ".json":
        path.write_bytes(data[: len(data) // 2])
    with suppress(PrelabelError):  # refused, in a line
        assert not validate(scene.output).is_proven, f"{path} is not named"
    path.write_bytes(data)


def _files(scene: Scene, *folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in Path(scene.output, folder).glob("*") if path.is_file())


# Buckets


def fail_the_bucket(scene: Scene) -> None:
    """A bucket that answers 503, cuts bodies off, loses replies; or one that denies from some moment on."""
    scene.output = f"s3://soak-{scene.chance.getrandbits(40):x}"
    with proxy(scene.port) as server, patch.dict(os.environ, environment(server.url)), _hasty_bucket(scene.output):
        denies = scene.chance.random() < 0.3
        first = scene.chance.randint(0, 60)
        if denies:
            server.choose = lambda method, path: "deny" if server.faults.total() > first else ""
        else:
            server.choose = now_and_then(scene.chance.getrandbits(32), 0.15, ("503", "reset", "lost"))
        with suppress(PrelabelError), without_ray():
            go_on(scene.source, scene.output, unit_images=1)
        server.choose = lambda method, path: ""
        scene.go_on()
        scene.prove()
        for name, data in files_of(scene.output).items():
            Storage(str(scene.folder / "labels")).put(name.lstrip("/"), data)
    scene.output = str(scene.folder / "labels")


@contextmanager
def _hasty_bucket(url: str) -> Iterator[None]:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    hasty = SimpleNamespace(sleep=lambda seconds: None)
    with patch("tenacity.nap.time", hasty), patch.object(s3fs.S3FileSystem, "retries", 2):
        s3fs.S3FileSystem().mkdir(url)
        yield
    s3fs.S3FileSystem.clear_instance_cache()


# Whole jobs on Ray, by the command itself


def command(scene: Scene, *arguments: str) -> subprocess.Popen[bytes]:
    code = "from prelabel.pipeline.cli import main; main()"
    environ = os.environ | {"RAY_worker_niceness": "0"}
    said = open(scene.folder / f"said-{time.monotonic_ns()}.txt", "wb")  # noqa: SIM115
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=said, stderr=said, cwd=PIPELINE_TESTS, env=environ
    )


def run_command(scene: Scene) -> subprocess.Popen[bytes]:
    if Path(scene.output, "_manifest/job.json").exists():
        return command(scene, "resume", scene.output)
    return command(scene, "run", scene.source, "-o", scene.output, "-m", RAY_MODEL, "--unit-images", "1")


def on_ray(find: Callable[[psutil.Process], list[psutil.Process]]) -> Callable[[Scene], None]:
    def play(scene: Scene) -> None:
        for most in (6.0, 2.0, 0.0):  # seconds: a fast machine may be done before
            if _kill_one(scene, find, scene.chance.uniform(0, most)):
                break
            shutil.rmtree(scene.output, ignore_errors=True)
        else:
            raise AssertionError("the job was done each time before anything could be killed")
        assert run_until_done(scene) == 0

    return play


def _kill_one(scene: Scene, find: Callable[[psutil.Process], list[psutil.Process]], seconds: float) -> bool:
    """Kills one of those that are found so long after the plan; False where the job was done before."""
    running = run_command(scene)
    driver = psutil.Process(running.pid)
    family: list[psutil.Process] = []
    killed = False

    def is_over() -> bool:
        return running.poll() is not None

    try:
        _wait_for(lambda: Path(scene.output, "_manifest/job.json").exists() or is_over())
        time.sleep(seconds)
        with suppress(psutil.NoSuchProcess):
            _wait_for(lambda: is_over() or bool(find(driver)))
            family = driver.children(recursive=True)
            if not is_over() and (victims := find(driver)):
                scene.chance.choice(victims).kill()
                killed = True
        running.wait(240)
    except subprocess.TimeoutExpired:
        raise AssertionError("hangs") from None
    finally:
        _end(running, family)
    assert killed or running.returncode == 0, running.returncode
    return killed


def _wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)


def _end(running: subprocess.Popen[bytes], family: list[psutil.Process]) -> None:
    """Ends what this scenario started, and nothing else."""
    for one in [*family, psutil.Process(running.pid)] if running.poll() is None else family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    running.wait()


def run_until_done(scene: Scene) -> int:
    for _ in range(2):
        running = run_command(scene)
        if (code := running.wait(240)) == 0:
            break
    return code


def _the_driver(driver: psutil.Process) -> list[psutil.Process]:
    return [driver]


def _named(*words: str) -> Callable[[psutil.Process], list[psutil.Process]]:
    def find(driver: psutil.Process) -> list[psutil.Process]:
        found = []
        for one in driver.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any(word in " ".join(one.cmdline()) for word in words):
                    found.append(one)
        return found

    return find


def start_two_commands(scene: Scene) -> None:
    """`prelabel run` twice at once."""
    both = [run_command(scene), run_command(scene)]
    _one_works(one.wait(240) for one in both)


LIGHT: dict[str, Callable[[Scene], None]] = {
    "driver killed": kill_drivers,
    "disk full": fill_the_disk,
    "file size limited": limit_files,
    "two runners": start_two,
    "clock moved": move_the_clock,
    "units damaged": damage_units,
    "plan damaged": damage_the_plan,
    "bucket fails": fail_the_bucket,
}
"""Without Ray: seconds each."""
HEAVY: dict[str, Callable[[Scene], None]] = {
    "Ray: driver killed": on_ray(_the_driver),
    "Ray: actor killed": on_ray(_named("MapWorker", "MapBatches")),
    "Ray: task killed": on_ray(_named("ray::Read", "ray::Write", "ray::_Units", "ray::_Blocks", "ray::IDLE")),
    "Ray: raylet killed": on_ray(_named("raylet/raylet")),
    "Ray: two commands": start_two_commands,
}
"""With the real command on Ray: half a minute each."""
KINDS = LIGHT | HEAVY


def play(kind: str, scene: Scene) -> None:
    KINDS[kind](scene)
    if kind in LIGHT:
        scene.go_on()
    scene.prove()
