"""What ranks send each other: values of a closed list of types, signed, and read without running anything."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
import pickle
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers.errors import raises
from helpers.runs import settings_of, small_run

from laborllm_dist.batching.training_plan import TrainingPlan, plan_training
from laborllm_dist.checkpoint.manifest import CheckpointManifest, SavedFile, SavedOptimizerShard
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed import channel, secret
from laborllm_dist.distributed.channel import Channel, wait_for
from laborllm_dist.distributed.context import DistributedContext
from laborllm_dist.distributed.secret import share_secret
from laborllm_dist.distributed.serialization import MessageError, from_text, to_text
from laborllm_dist.errors import PeerFailedError, RunError
from laborllm_dist.store.build import prepare_store
from laborllm_dist.training.state import INITIAL_STATE, TrainerState


@dataclasses.dataclass(frozen=True, slots=True)
class Inner:
    path: Path
    numbers: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Outer:
    inner: Inner | None
    facts: Mapping[str, Any]
    units: tuple[tuple[int, ...], ...]


VALUES = [
    (None, None),
    (None, int | None),
    (7, int | None),
    (2**70, int),
    (True, bool),
    (0.1 + 0.2, float),
    (3, float),
    (-math.inf, float),
    ("ü\n\udcff", str),
    (b"\0\xff", bytes),
    (Path("runs/ü"), Path),
    ("fp64", Literal["bf16", "fp64"]),
    ([1, 2], list[int]),
    ((1, "a", None), tuple[int, str, None]),
    ((), tuple[int, ...]),
    ({"a": (1.5,)}, dict[str, tuple[float, ...]]),
    ({"a": [1, {"b": None}]}, Any),
]


@pytest.mark.parametrize(("value", "kind"), VALUES, ids=lambda each: str(each)[:20])
def test_a_value_comes_back_as_it_was(value: object, kind: Any) -> None:
    text = to_text(value, kind)
    back = from_text(text, kind)
    assert text.isascii()
    assert (back, type(back)) == (value, type(value))


@pytest.mark.parametrize("dtype", [np.bool_, np.int32, np.int64, np.float32, np.float64])
def test_an_array_comes_back_bit_by_bit_and_may_be_written_to(dtype: type[np.generic]) -> None:
    for array in (np.arange(12).reshape(3, 4).astype(dtype).T, np.empty((0, 3), dtype)):
        kind = npt.NDArray[dtype]
        back = from_text(to_text(array, kind), kind)
        assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
        back[:] = 0


def test_dataclasses_come_back_with_all_they_hold() -> None:
    value = Outer(Inner(Path("a"), np.array([1, 2])), {"weights": "w", "count": 2}, ((1, 2), ()))
    back = from_text(to_text(value, Outer), Outer)
    assert isinstance(back.inner, Inner)
    assert (back.inner.path, back.inner.numbers.tolist()) == (Path("a"), [1, 2])
    assert (back.facts, back.units) == (value.facts, value.units)


def test_settings_come_back_equal(tmp_path: Path) -> None:
    settings = settings_of(small_run(tmp_path))
    assert from_text(to_text(settings, RunSettings), RunSettings) == settings


class Free:
    pass


@dataclasses.dataclass
class Changeable:
    a: int


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (Free(), Free, "is no type that ranks send each other"),
        (Changeable(1), Changeable, "is no type that ranks send each other"),
        ({1, 2}, set[int], "is no type that ranks send each other"),
        (print, Any, "builtin_function_or_method is no plain JSON value; state its type"),
        ((1, 2), Any, "tuple is no plain JSON value"),
        ([Path("a")], Any, r"value\[0\]: .*Path is no plain JSON value"),
        (np.int64(1), int, "int64 where int is stated"),
        (True, int, "bool where int is stated"),
        (1, bool, "int where bool is stated"),
        ("a", Literal["b"], "str where"),
        (True, Literal[1], "bool where"),
        (1, int | str | None, "is no type that ranks send each other"),
        ({1: 2}, dict[int, int], "is no type that ranks send each other"),
        (np.array(["a"], dtype=object), npt.NDArray[np.object_], "is no type that ranks send each other"),
        (np.array([1.0]), npt.NDArray[np.int64], "ndarray where an array of int64 is stated"),
        ((1,), tuple[int, int], "1 members where"),
        (Inner(Path("a"), np.array([1])), Outer, "Inner where Outer is stated"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_what_is_not_of_the_stated_type_is_not_sent(value: object, kind: Any, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        to_text(value, kind)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("no JSON", int),
        ('"1"', int),
        ("[1]", tuple[int, int]),
        ('{"path": "a"}', Inner),
        ('{"path": "a", "numbers": [1]}', Inner),
        ('{"dtype": "|O", "shape": [1], "base64": ""}', npt.NDArray[np.int64]),
        ('{"dtype": "<i8", "shape": [2], "base64": "AAAAAAAAAAA="}', npt.NDArray[np.int64]),
        ('{"dtype": "<i8", "shape": [-1], "base64": ""}', npt.NDArray[np.int64]),
        ('"%"', bytes),
        ("3", Literal["a"]),
    ],
)
def test_a_text_of_another_type_is_refused(text: str, kind: Any) -> None:
    with pytest.raises(MessageError):
        from_text(text, kind)


def run_at_once(*works: Any) -> list[Any]:
    """Run functions in threads, as ranks do; return what each returned or raised."""
    outcomes: list[Any] = [None] * len(works)

    def run(number: int) -> None:
        try:
            outcomes[number] = works[number]()
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return outcomes


def some_ranks(world_size: int, store: Any = None) -> list[DistributedContext]:
    store = torch.distributed.HashStore() if store is None else store
    return [
        DistributedContext(rank, world_size, 0, torch.device("cpu"), Channel(store, b"secret"))
        for rank in range(world_size)
    ]


def test_every_rank_gets_what_rank_0_answers_and_what_all_say() -> None:
    def work(ranks: DistributedContext) -> Any:
        first = ranks.run_on_main(lambda: (Path("a"), np.arange(3)), tuple[Path, npt.NDArray[np.int64]])
        everyones = [ranks.share(f"rank {ranks.rank} in {number}") for number in range(3)]
        ranks.leave()
        return first[0], first[1].tolist(), everyones

    ranks = some_ranks(3)
    expected = (Path("a"), [0, 1, 2], [[f"rank {rank} in {number}" for rank in range(3)] for number in range(3)])
    assert run_at_once(*(lambda each=each: work(each) for each in ranks)) == [expected] * 3


def test_messages_that_all_have_read_are_removed() -> None:
    store, keys = torch.distributed.HashStore(), []
    ranks = some_ranks(2, store)

    def work(each: DistributedContext) -> None:
        each.run_on_main(lambda: "x" * 10)
        for _ in range(5):
            each.share(1)
            keys.append(store.num_keys())

    run_at_once(*(lambda rank=rank: work(rank) for rank in ranks))
    assert max(keys) <= 6


def test_a_long_text_goes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "PIECE_LETTERS", 10)
    store = torch.distributed.HashStore()
    own, text = Channel(store, b"secret"), "".join(map(str, range(40)))
    own.send("key", text)
    assert own.receive("key") == text
    store.set("key/piece/1", "y" * 10)
    with raises("foreign-message/unsigned-message", "key"):
        own.receive("key")
    own.forget(["key"])
    assert not store.check(["key"]) and not store.check(["key/piece/0"])


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("signed_by", [None, b"another secret"])
def test_an_answer_that_another_process_puts_in_the_store_is_refused_and_runs_nothing(
    signed_by: bytes | None, tmp_path: Path
) -> None:
    store = torch.distributed.HashStore()
    poison = base64.b64encode(pickle.dumps(Bomb(tmp_path / "ran"))).decode()
    for key in ("laborllm_dist/0", "laborllm_dist/on_first/0", "laborllm_dist/on_first/0/piece/0"):
        if signed_by is None:
            store.set(key, f"{'0' * 64} text done {poison}")
        else:
            Channel(store, signed_by).send(key, f"done {json.dumps(poison)}")
    other = some_ranks(2, store)[1]
    with raises("foreign-message/unsigned-message"):
        other.run_on_main(lambda: "never done here")
    assert not (tmp_path / "ran").exists()


def test_a_message_under_another_key_is_refused() -> None:
    store = torch.distributed.HashStore()
    own = Channel(store, b"secret")
    own.send("a", "delete")
    store.set("b", store.get("a"))
    with raises("foreign-message/unsigned-message", "(b)"):
        own.receive("b")


def test_a_refusal_of_rank_0_and_an_answer_of_a_wrong_type_reach_the_others() -> None:
    def refuse() -> str:
        raise RunError("no run")

    for work, kind, raised in ((refuse, str, RunError), (lambda: {1, 2}, Any, MessageError)):
        first, other = some_ranks(2)
        outcomes = run_at_once(
            lambda first=first, work=work, kind=kind: first.run_on_main(work, kind),
            lambda other=other, work=work, kind=kind: other.run_on_main(work, kind),
        )
        assert [type(outcome) for outcome in outcomes] == [raised, PeerFailedError]


def test_waiting_for_a_key_ends_with_the_key_or_the_time() -> None:
    store = torch.distributed.HashStore()
    started = time.monotonic()
    assert not wait_for(store, "key", seconds=0.2)
    assert 0.2 <= time.monotonic() - started < 1
    later = threading.Timer(0.3, lambda: store.set("key", ""))
    later.start()
    assert wait_for(store, "key")
    assert 0.4 < time.monotonic() - started < 2


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    folders = [tmp_path / "tmp" / "own", tmp_path / "cache" / "own"]
    monkeypatch.setattr(secret, "_folders", lambda: folders)
    monkeypatch.delenv(secret.VARIABLE, raising=False)
    monkeypatch.setattr(secret, "SHARED_FOLDER_SECONDS", 0.2)
    monkeypatch.setattr(secret, "MEETING_SECONDS", 0.5)
    return folders


class Listening:
    """A store that remembers all that went through it."""

    def __init__(self) -> None:
        self.store, self.values = torch.distributed.HashStore(), b""

    def set(self, key: str, value: str) -> None:
        self.values += value.encode() + b"\n"
        self.store.set(key, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def shared(store: Any, world_size: int) -> list[Any]:
    return run_at_once(
        *(lambda rank=rank: share_secret(store, rank=rank, world_size=world_size) for rank in range(world_size))
    )


def test_a_secret_goes_through_a_file_of_this_user_alone(own_folders: list[Path]) -> None:
    store = Listening()
    secrets = shared(store, 3)
    assert len(set(secrets)) == 1 and len(secrets[0]) == 64
    assert secrets[0] not in store.values
    assert [folder.stat().st_mode & 0o777 for folder in own_folders] == [0o700, 0o700]
    assert [list(folder.iterdir()) for folder in own_folders] == [[], []]  # removed once it is read


def test_the_environment_s_secret_goes_before_and_through_nothing(
    own_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(secret.VARIABLE, "0123456789")
    store, later = Listening(), Listening()
    first, other = shared(store, 2)
    assert first == other
    assert b"0123456789" not in store.values and first not in store.values
    assert shared(later, 2)[0] != first  # messages of one run are no good in the next
    assert not any(folder.exists() for folder in own_folders)


def test_without_a_folder_in_common_the_secret_goes_through_the_store_and_that_is_said(
    own_folders: list[Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(secret, "_find", lambda name: None)
    first, other = shared(Listening(), 2)
    assert first == other and len(first) == 64
    assert capfd.readouterr().err.startswith("ranks: not all can read a file of rank 0's in ")


def test_a_rank_that_has_read_the_secret_takes_no_other_from_the_store(
    own_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secret, "_find", lambda name: b"of rank 0's file")
    store = torch.distributed.HashStore()
    store.set(secret.KEY, json.dumps({"from": "file", "name": "0" * 32}))
    store.set(f"{secret.KEY}/all", json.dumps({"secret": "of another process"}))
    with raises("foreign-message/foreign-secret", "1"):
        share_secret(store, rank=1, world_size=2)
    for handed in (None, "of rank 0's file"):  # the latter where another rank has found no file
        store.set(f"{secret.KEY}/all", json.dumps({"secret": handed}))
        assert share_secret(store, rank=1, world_size=2) == b"of rank 0's file"


@pytest.mark.parametrize("kind", ["link", "open to others", "of another user"])
def test_a_file_that_others_may_have_written_is_no_secret(
    kind: str, own_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_folders[0].mkdir(parents=True)
    path = own_folders[0] / ("0" * 32)
    path.write_text("known")
    path.chmod(0o600)
    assert secret._find(path.name) == b"known"
    if kind == "link":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))
    elif kind == "open to others":
        path.chmod(0o640)
    else:
        own_id = os.geteuid()
        monkeypatch.setattr(secret.os, "geteuid", lambda: own_id + 1)
    assert secret._find(path.name) is None


@pytest.mark.parametrize("answer", ["0" * 64, "", "\N{SNOWMAN}"])
def test_a_process_that_answers_for_a_rank_is_refused(answer: str, own_folders: list[Path]) -> None:
    store = torch.distributed.HashStore()
    store.set(f"{secret.KEY}/1", answer)
    with raises("foreign-message/wrong-secret", "1"):
        share_secret(store, rank=0, world_size=2)


def test_a_rank_of_the_same_host_that_does_not_find_the_file_is_no_rank(
    own_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    store = torch.distributed.HashStore()
    store.set(f"{secret.KEY}/1", "none")
    with raises("foreign-message/secret-file-not-read"):
        share_secret(store, rank=0, world_size=2)
    assert not store.check([f"{secret.KEY}/all"])  # it was not handed out


def test_a_rank_without_the_environment_s_secret_is_refused(
    own_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(secret.VARIABLE, "0123456789")
    store = torch.distributed.HashStore()
    store.set(f"{secret.KEY}/1", "none")
    with raises("rendezvous/secret-missing-on-ranks", secret.VARIABLE):
        share_secret(store, rank=0, world_size=2)
    monkeypatch.delenv(secret.VARIABLE)
    store.set(f"{secret.KEY}/all", json.dumps({"secret": None}))
    with raises("rendezvous/secret-missing-on-ranks", secret.VARIABLE, "1"):
        share_secret(store, rank=1, world_size=2)


def test_a_rank_that_does_not_answer_ends_the_start(own_folders: list[Path]) -> None:
    with raises("rendezvous/no-answer-from-rank", "1"):
        share_secret(torch.distributed.HashStore(), rank=0, world_size=2)
    with raises("rendezvous/no-answer-from-rank", "rank 0 has not handed out the secret of this run", "1"):
        share_secret(torch.distributed.HashStore(), rank=1, world_size=2)


def test_what_a_training_sends_comes_back(tmp_path: Path) -> None:
    settings = settings_of(small_run(tmp_path))
    plan = plan_training(prepare_store(settings), settings, world_size=2)
    back = from_text(to_text(plan, TrainingPlan), TrainingPlan)
    assert back.num_steps == plan.num_steps > 1
    for step in range(plan.num_steps):
        one, other = back.step(step), plan.step(step)
        assert one.careers.tolist() == other.careers.tolist()
        assert (one.packing, one.assignment, one.num_targets) == (other.packing, other.assignment, other.num_targets)
    state = INITIAL_STATE.after_step(0.1 + 0.2, 7, 5).after_validation(1.5).after_skip()
    assert from_text(to_text(state, TrainerState), TrainerState) == state
    fragment = SavedOptimizerShard("model.w", (2, 3), 1, 4, block_offset=0)
    manifest = CheckpointManifest(3, "run", 2, 3, {"step": 3, "left_out": []}, {"a": SavedFile(9, "ff", (fragment,))})
    kind = tuple[Path, CheckpointManifest] | None
    assert from_text(to_text((tmp_path, manifest), kind), kind) == (tmp_path, manifest)
    assert from_text(to_text(None, kind), kind) is None
