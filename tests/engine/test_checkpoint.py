"""Checkpoints: nothing is half there, what is damaged is known, what fails is told and tried again."""

import os
import pickle
import random
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import checkpoint
from engine.checkpoint import Checkpoints, load_checkpoint, newest_checkpoint, remove_remains, save_checkpoint
from engine.run import Run
from engine.weights import read_weights
from pipelines.errors import InputError

MUTATIONS = 200


def state(number: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    tensors = {name: torch.rand(40, 3, generator=generator) for name in ("a", "b")}
    return {"model": tensors, "labels": ["cat"], "progress": {"epoch": number}, "list": [torch.tensor(number)]}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.create()
    return run


def test_what_is_saved_is_the_moment_of_saving(run: Run) -> None:
    """Training goes on with the tensors while they are written."""
    checkpoints, content = Checkpoints(run), state(1)
    for number in (1, 2):
        content["progress"]["epoch"] = number
        content["model"]["a"].fill_(number)
        checkpoints.save({**content, "progress": dict(content["progress"])}, run.last)
        content["model"]["a"].fill_(-1)
    checkpoints.finish()
    for path, number in ((run.last, 2), (run.previous, 1)):
        saved = load_checkpoint(path)
        assert saved["progress"]["epoch"] == number
        assert (saved["model"]["a"] == number).all()


def test_training_waits_for_the_copy_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is held until save has returned; only the next save of the file waits for it."""
    may_write, order = threading.Event(), []
    write = checkpoint.save_checkpoint

    def held(path: Path, *rest: Any) -> None:
        assert may_write.wait(60)
        write(path, *rest)
        order.append(f"written {path.name}")

    monkeypatch.setattr(checkpoint, "save_checkpoint", held)
    checkpoints = Checkpoints(run)
    checkpoints.save(state(1), run.last)
    checkpoints.save(state(1), run.best)
    order.append("free")
    may_write.set()
    checkpoints.save(state(2), run.last)
    order.append("free")
    checkpoints.finish()
    assert order.index("free") == 0
    assert order.index("written last.pt") < order.index("free", 1)
    assert load_checkpoint(run.last)["progress"]["epoch"] == 2


def test_a_write_that_fails_is_told_each_time_and_made_up_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """last.pt never says more than best.pt holds: it is not written before it."""
    checkpoints = Checkpoints(run)
    checkpoints.save(state(1), run.best)
    checkpoints.save(state(1), run.last)
    checkpoints.finish()
    before = [path.read_bytes() for path in (run.best, run.last)]

    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        checkpoints.save(state(2), run.best)
        for number in (2, 3):
            checkpoints.save(state(number), run.last)
        with pytest.raises(InputError, match=r"best.pt: cannot be written: is the disk full\?"):
            checkpoints.finish()
    assert capsys.readouterr().out.count("best.pt: cannot be written: is the disk full?; training goes on") == 3
    assert [path.read_bytes() for path in (run.best, run.last)] == before
    assert not list(run.last.parent.glob(".*"))
    checkpoints.save(state(4), run.last)
    checkpoints.finish()
    assert load_checkpoint(run.best)["progress"]["epoch"] == 2
    assert load_checkpoint(run.last)["progress"]["epoch"] == 4


def test_the_one_before_stays(run: Run) -> None:
    """As a file of its own, which damage to the newest does not reach."""
    for number in range(3):
        save_checkpoint(run.last, state(number), run.previous)
    assert [load_checkpoint(path)["progress"]["epoch"] for path in (run.last, run.previous)] == [2, 1]
    assert not run.last.samefile(run.previous)
    assert sorted(path.name for path in run.last.parent.iterdir()) == ["last.pt", "previous.pt"]


def damage(content: bytes, chance: random.Random) -> bytes:
    """The file with a bit flipped, a stretch zeroed, overwritten or doubled, or its end cut off."""
    place, length = chance.randrange(len(content)), chance.choice((1, 16, 512))
    kind = chance.choice(("flip", "zero", "noise", "cut", "double", "append"))
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    if kind == "cut":
        return content[:place]
    if kind == "append":
        return content + chance.randbytes(length)
    middle = {"zero": bytes(length), "noise": chance.randbytes(length), "double": content[place : place + length] * 2}
    return content[:place] + middle[kind] + content[place + length :]


def test_a_damaged_checkpoint_is_known_or_whole(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever happens to its bytes: the same state comes out of it, or the one before is taken, with a line."""
    save_checkpoint(run.last, state(1), run.previous)
    save_checkpoint(run.last, state(2), run.previous)
    newest, before = run.last.read_bytes(), run.previous.read_bytes()
    chance, known = random.Random(7), 0
    for _ in range(MUTATIONS):
        run.last.write_bytes(damage(newest, chance))
        run.previous.write_bytes(before)
        found, said = newest_checkpoint(run), capsys.readouterr().out
        assert found is not None
        number = found["progress"]["epoch"]
        assert same(found, state(number))
        assert said.count("\n") == (number == 1)
        if number == 1:
            known += 1
            assert "last.pt: not a usable checkpoint" in said
            assert "the one before it, previous.pt, is taken" in said
            assert run.last.read_bytes() == before
            assert not run.previous.exists()
            assert run.last.with_name("damaged.pt").exists()
    assert known > MUTATIONS / 2


def test_torch_alone_would_not_know(run: Run) -> None:
    """Why the checksums are looked at: a flipped bit of a weight loads without a word."""
    save_checkpoint(run.last, state(1))
    content = bytearray(run.last.read_bytes())
    with zipfile.ZipFile(run.last) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data/0"))
    stored = state(1)["model"]["a"].numpy().tobytes()
    content[content.index(stored) + 5] ^= 1
    run.last.write_bytes(content)
    assert not same(torch.load(run.last, weights_only=True), state(1))
    with pytest.raises(InputError, match=rf"damaged: {name} does not fit its checksum"):
        load_checkpoint(run.last)


def test_two_damaged_checkpoints_are_told(run: Run) -> None:
    for path in (run.last, run.previous):
        path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"previous.pt: not a usable checkpoint"):
        newest_checkpoint(run)


def test_killed_between_two_renames(run: Run) -> None:
    """There is a moment without last.pt."""
    save_checkpoint(run.previous, state(1))
    (run.last.parent / ".last.pt.123.tmp").write_bytes(b"half")
    (run.folder / ".metrics.jsonl.123.tmp").write_bytes(b"half")
    remove_remains(run)
    assert same(newest_checkpoint(run), state(1))
    assert sorted(path.name for path in run.last.parent.iterdir()) == ["last.pt"]
    assert not list(run.folder.glob(".*"))


class Bomb:
    """Unpickled, it runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_a_pickle_that_runs_code_is_refused(run: Run, tmp_path: Path, form: str) -> None:
    """In a checkpoint, and in weights to start from."""
    marker, bomb = tmp_path / "ran", run.last
    content = {"model": {"a": torch.zeros(1)}, "labels": Bomb(marker)}
    if form == "bare":
        bomb.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, bomb, _use_new_zipfile_serialization=form == "zip")
    for read in (load_checkpoint, read_weights, lambda path: newest_checkpoint(run)):
        with pytest.raises(InputError, match=r"refused: it holds code beside tensors and plain values|Error") as error:
            read(bomb)
        assert "\n" not in str(error.value)
    assert not marker.exists()
