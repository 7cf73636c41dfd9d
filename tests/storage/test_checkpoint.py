"""Checkpoints: exact, complete or absent, and never executed."""

import importlib.metadata
import json
import os
import pickle
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import file_limit
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gae.storage import checkpoint
from gae.storage.packing import dump, pack, unpack, verified

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
tensors = st.builds(
    lambda shape, dtype: torch.randint(0, 2, shape).to(dtype), st.lists(st.integers(0, 3), max_size=3), dtypes
)
states = st.recursive(
    scalars | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.sampled_from(["$tensor", "$tuple", "a/b"]), inner)
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)  # -0.0 is not 0.0, nan is nan


@given(states)
def test_packing_is_exact(state: Any) -> None:
    tree, found = pack(state)
    assert same(unpack(json.loads(json.dumps(tree, allow_nan=False)), found), state)


def test_packing_keeps_what_json_lacks(tmp_path: Path) -> None:
    state = {0: (1e-3, float("nan"), -0.0), "0": [float("-inf"), 0.1 + 0.2, 2**70], "$tuple": {"$tensor": 1}}
    checkpoint.save(tmp_path, 0, state)
    assert same(checkpoint.load(tmp_path).state, state)


def test_shared_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"all": base, "again": base, "column": base[:, 1], "turned": base.T, "point": base[1, 2], "none": base[:0]}
    path = checkpoint.save(tmp_path, 0, state)
    found = checkpoint.load(path).state
    assert same(found, state)
    assert found["all"] is found["again"]
    assert os.path.getsize(path / checkpoint.TENSORS) < 1000  # stored once
    assert same(unpack(*pack(base)), base)


def test_unstorable_is_named_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Cannot store a function at state/config/1/act"):
        checkpoint.save(tmp_path / "run", 0, {"config": [0, {"act": lambda: 0}]})
    with pytest.raises(TypeError, match="sparse"):
        checkpoint.save(tmp_path / "run", 0, torch.eye(2).to_sparse())
    assert not (tmp_path / "run").exists()


OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, lr=1e-2),
    "amsgrad, tensor lr": partial(torch.optim.AdamW, lr=torch.tensor(1e-2), amsgrad=True),
    "momentum": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-3, centered=True),
    "adagrad": torch.optim.Adagrad,
    "rprop": torch.optim.Rprop,
    "lbfgs": partial(torch.optim.LBFGS, history_size=3, max_iter=4),
    "wolfe": partial(torch.optim.LBFGS, max_iter=4, line_search_fn="strong_wolfe"),
}
if hasattr(torch.optim, "Adafactor"):  # from torch 2.5 on
    OPTIMIZERS["adafactor"] = torch.optim.Adafactor


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_continues_bit_for_bit(name: str, tmp_path: Path) -> None:
    x = torch.randn(20, 3)

    def course(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (model(x) - x.flip(1)).square().mean()
            loss.backward()
            return loss

        for _ in range(steps):
            optimizer.step(closure)

    model = nn.Linear(3, 3)
    optimizer = OPTIMIZERS[name](model.parameters())
    course(model, optimizer, 3)
    checkpoint.save(tmp_path, 3, {"module": dict(model.state_dict()), "optimizer": optimizer.state_dict()})
    course(model, optimizer, 3)

    fresh = nn.Linear(3, 3)
    again = OPTIMIZERS[name](fresh.parameters())
    state = checkpoint.load(tmp_path).state
    checkpoint.restore(fresh, state["module"])
    again.load_state_dict(state["optimizer"])
    course(fresh, again, 3)
    assert torch.equal(fresh.weight, model.weight) and torch.equal(fresh.bias, model.bias)
    assert same(pack(again.state_dict())[0], pack(optimizer.state_dict())[0])


def test_last_two_stay(tmp_path: Path) -> None:
    for step in (1, 2, 10, 11):
        checkpoint.save(tmp_path, step, {"step": step})
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-00000010", "checkpoint-00000011"]
    found = checkpoint.load(tmp_path)
    assert (found.step, found.state) == (11, {"step": 11})
    assert found.versions["torch"] == importlib.metadata.version("torch")


def test_good_checkpoints_are_never_overwritten(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, "five")
    for step in (4, 5):
        with pytest.raises(FileExistsError, match="checkpoint-00000005 exists and is good"):
            checkpoint.save(tmp_path, step, "other")
    assert checkpoint.load(tmp_path).state == "five"


def test_checkpoints_are_written_on_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There, a folder cannot be opened, and a file that is only read cannot be synced."""
    opened: dict[int, int] = {}
    synced = []

    def open_file(path: Path, flags: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        descriptor = os_open(path, flags)
        opened[descriptor] = flags
        return descriptor

    def sync(descriptor: int) -> None:
        if not opened[descriptor] & os.O_RDWR:
            raise OSError(9, "Bad file descriptor")
        synced.append(descriptor)

    os_open = os.open
    monkeypatch.setattr(checkpoint, "WINDOWS", True)
    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", sync)
    saved = checkpoint.save(tmp_path / "run", 1, {"x": torch.ones(2)})
    monkeypatch.undo()
    assert len(synced) == 2 and checkpoint.load(saved).state["x"].tolist() == [1.0, 1.0]


OPERATIONS = [(os, "fsync"), (os, "rename"), (Path, "mkdir"), (Path, "write_text"), (shutil, "rmtree")]


@pytest.mark.parametrize("where,operation", OPERATIONS, ids=[name for _, name in OPERATIONS])
@pytest.mark.parametrize("survives", range(5))
def test_failed_write_leaves_the_earlier(
    where: Any, operation: str, survives: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"weight": torch.full((9,), float(step))})
    real, calls = getattr(where, operation), [0]

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > survives:
            raise OSError("disk full")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(where, operation, failing)
        try:
            checkpoint.save(tmp_path, 3, {"weight": torch.full((9,), 3.0)})
        except OSError:
            assert checkpoint.load(tmp_path).step in (2, 3)
        else:
            assert calls[0] <= survives
    found = checkpoint.load(tmp_path)
    assert torch.equal(found.state["weight"], torch.full((9,), float(found.step)))
    checkpoint.save(tmp_path, 4, {"weight": torch.full((9,), 4.0)})
    assert checkpoint.load(tmp_path).step == 4
    assert len(list(tmp_path.iterdir())) == 2  # nothing is left of the failed write


def test_a_full_disk_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    """The tensors do not fit, or the values do not."""
    for state in ({"weight": torch.zeros(10_000)}, {"rows": list(range(10_000))}):
        with file_limit(20_000), pytest.raises(OSError, match=r"Cannot write .*00001 .*There is no earlier checkpoint"):
            checkpoint.save(tmp_path, 1, state)
    checkpoint.save(tmp_path, 1, "one")
    truncate(checkpoint.save(tmp_path, 2, "two") / checkpoint.STATE)
    for state in ({"weight": torch.zeros(10_000)}, {"rows": list(range(10_000))}):
        with file_limit(20_000), pytest.raises(OSError, match=r"too large.*The last good checkpoint is .*00001\. Free"):
            checkpoint.save(tmp_path, 3, state)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-00000001", "checkpoint-00000002"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated tensors": lambda path: truncate(path / checkpoint.TENSORS),
    "altered tensors": lambda path: flip(path / checkpoint.TENSORS),
    "no tensors": lambda path: (path / checkpoint.TENSORS).unlink(),
    "truncated state": lambda path: truncate(path / checkpoint.STATE),
    "empty state": lambda path: (path / checkpoint.STATE).write_bytes(b""),
    "binary state": lambda path: (path / checkpoint.STATE).write_bytes(b"\xff\xfe\x00"),
    "no state": lambda path: (path / checkpoint.STATE).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_newest_falls_back(damage: str, tmp_path: Path) -> None:
    first, second = (checkpoint.save(tmp_path, step, {"weight": torch.ones(step)}) for step in (1, 2))
    DAMAGE[damage](second)
    with pytest.raises(ValueError, match=r"checkpoint-00000002 is .* good one before it: .*checkpoint-00000001"):
        checkpoint.load(second)
    with pytest.warns(UserWarning, match=r"Using checkpoint-00000001, since .*checkpoint-00000002 is"):
        assert checkpoint.load(tmp_path).step == 1
    checkpoint.save(tmp_path, 2, {"weight": torch.ones(2)})  # the resumed run reaches this step again
    assert checkpoint.load(tmp_path).step == 2
    DAMAGE[damage](first)
    DAMAGE[damage](second)
    with pytest.raises(ValueError, match=r"(?s)No checkpoint in .*00000002 is .*00000001 is .*another folder"):
        checkpoint.load(tmp_path)


class Malicious:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    target, file = tmp_path / "executed", tmp_path / "model.pt"
    torch.save(Malicious(target), file)
    raw = tmp_path / "raw.pkl"
    raw.write_bytes(pickle.dumps(Malicious(target)))
    for path in (file, raw):
        with pytest.raises(ValueError, match="never opens"):
            checkpoint.load(path)
    disguised = checkpoint.save(tmp_path / "run", 1, {"weight": torch.ones(1)})
    for part in (checkpoint.TENSORS, checkpoint.STATE):
        shutil.copy(file, disguised / part)
        with pytest.raises(ValueError, match="damaged"):
            checkpoint.load(disguised)
    assert not target.exists()


def edit(path: Path, **changes: Any) -> None:
    """Other values, with their checksum."""
    state = path / checkpoint.STATE
    state.write_text(dump({**verified(json.loads(state.read_text())), **changes}))


def test_foreign_things_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        checkpoint.load(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes.txt is a file. Give a checkpoint"):
        checkpoint.load(tmp_path / "notes.txt")
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors is a safetensors file without the state.json"):
        checkpoint.load(tmp_path / "model.safetensors")
    path = checkpoint.save(tmp_path, 1, {"weight": torch.ones(1)})
    (tmp_path / "checkpoint-00000001" / checkpoint.STATE).write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(ValueError, match=r"not a checkpoint of gae: its state.json has format None"):
        checkpoint.load(tmp_path)
    shutil.rmtree(path)
    path = checkpoint.save(tmp_path, 1, {"weight": torch.ones(1)})
    for changes, message in [
        ({"version": 4}, r"format version 4, but this gae reads up to 3. Upgrade gae"),
        ({"format": "other"}, r"not a checkpoint of gae: its state.json has format 'other'"),
    ]:
        edit(path, **changes)
        for given_path in (path, tmp_path):
            with pytest.raises(ValueError, match=message):
                checkpoint.load(given_path)


def test_restore_checks_before_it_changes() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state: dict[str, Any] = {name: value + 1 for name, value in before.items()}
    del state["0.bias"]
    state.update({"0.weight": torch.ones(3, 5), "1.bias": torch.ones(2, dtype=torch.float64), "2.bias": torch.ones(1)})
    with pytest.raises(ValueError) as caught:
        checkpoint.restore(model, state, "run/checkpoint-00000001")
    message = str(caught.value)
    assert "0.bias: missing in run/checkpoint-00000001" in message
    assert "2.bias: not in the model" in message
    assert "0.weight: (3, 5) torch.float32 in run/checkpoint-00000001, (3, 2) torch.float32 in the model" in message
    assert "1.bias: (2,) torch.float64" in message
    assert "1.weight" not in message
    assert same(dict(model.state_dict()), before)


def as_first_version(path: Path) -> dict[str, Any]:
    """Rewrites a checkpoint in format version 1, without a checksum; returns its document."""
    document = {**verified(json.loads((path / checkpoint.STATE).read_text())), "version": 1}
    (path / checkpoint.STATE).write_text(json.dumps(document))
    return document


STATE = {"lr": 1e-3, "betas": (0.9, 0.999), 0: torch.arange(3.0), "rows": [{"epoch": 1, "loss": -12.5, "held": None}]}


def test_the_first_version_is_read_with_a_warning(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, STATE)
    document = as_first_version(path)
    with pytest.warns(UserWarning, match="format version 1, which has no checksum"):
        assert same(checkpoint.load(tmp_path).state, STATE)
    checkpoint.save(tmp_path, 2, STATE)
    assert same(checkpoint.load(tmp_path).state, STATE)  # no warning
    document["state"]["$dict"][2] = [0, {"$tensor": "elsewhere"}]
    (path / checkpoint.STATE).write_text(json.dumps(document))
    with (
        pytest.warns(UserWarning, match="format version 1"),
        pytest.raises(ValueError, match=r"is damaged: state\.json"),
    ):
        checkpoint.load(path)


def is_refused(path: Path) -> bool:
    """Whether it is rejected as damaged; otherwise its state must equal the saved one."""
    try:
        found = checkpoint.load(path).state
    except ValueError as error:
        assert f"{path.name} is damaged" in str(error)
        return True
    assert same(found, STATE)
    return False


def edits(document: Any) -> Iterator[Any]:
    """Copies of parsed JSON with one value changed, retyped, dropped, added or moved, at every place."""
    if isinstance(document, dict):
        for key, value in document.items():
            others = {name: other for name, other in document.items() if name != key}
            yield others
            yield {**others, f"{key}x": value}
            if len(others) and key != list(document)[-1]:
                yield {**others, key: value}
            yield from (
                {name: new if name == key else other for name, other in document.items()} for new in edits(value)
            )
    elif isinstance(document, list):
        for i, value in enumerate(document):
            yield document[:i] + document[i + 1 :]
            yield [*document[: i + 1], value, *document[i + 1 :]]
            yield from ([*document[:i], new, *document[i + 1 :]] for new in edits(value))
    elif isinstance(document, bool) or document is None:
        yield from (not document, 0, "None")
    elif isinstance(document, str):
        yield from (document + "0", document[1:], None)
    else:
        yield from (document + 1, -document - 0.5, str(document), float(document), [document])


def test_no_value_can_be_altered_unnoticed(tmp_path: Path) -> None:
    """Each altered value is rejected as damaged, including the version, the format and a checksum."""
    path = checkpoint.save(tmp_path, 7, STATE)
    file = path / checkpoint.STATE
    document = json.loads(file.read_text())
    refused = 0
    for new in edits(document):
        file.write_text(json.dumps(new))
        refused += is_refused(path)
    assert refused > 150


@pytest.mark.parametrize("seed", range(4))
def test_no_byte_can_be_altered_unnoticed(seed: int, tmp_path: Path) -> None:
    """Bytes that are flipped, deleted, inserted or cut off: the same state or none."""
    path = checkpoint.save(tmp_path, 7, STATE)
    file, drawn = path / checkpoint.STATE, random.Random(seed)
    content = file.read_bytes()
    refused = 0
    for _ in range(150):
        i, byte = drawn.randrange(len(content)), drawn.choice(b'0123456789-.eE"{}[],: nul\x00\xff')
        rest = {"flip": 1, "insert": 0, "delete": 1 + drawn.randrange(4), "cut": len(content)}
        how = drawn.choice(list(rest))
        new = bytes([byte]) if how in ("flip", "insert") else b""
        file.write_bytes(content[:i] + new + content[i + rest[how] :])
        refused += is_refused(path)
    assert refused > 75
