"""Checkpoints that cannot run code: tensors in safetensors, all else in JSON, written so that a kill loses nothing."""

import hashlib
import json
import os
import platform
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gae.data.files import unwritten
from gae.storage.conversion import upgraded
from gae.storage.packing import CHECKSUM, dump, pack, unpack, verified

FORMAT, VERSION = "gae-checkpoint", 3
FIRST_KEYS = {"format", "version", "step", "versions", "sha256", "state"}  # of version 1, which had no checksum
TENSORS, STATE = "tensors.safetensors", "state.json"
PACKAGES = ("gae", "torch", "pyro-ppl", "lightning-fabric", "safetensors", "numpy")
NAME = re.compile(r"checkpoint-(\d{8,})")

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, read and verified; its tensors are on the CPU."""

    path: Path
    step: int
    versions: dict[str, str]  # of the libraries that wrote it
    state: Any


class _Damaged(ValueError):
    """Ours, but incomplete or altered: an earlier checkpoint may serve instead."""


def save(folder: PathLike, step: int, state: Any, keep: int = 2) -> Path:
    """Writes ``folder/checkpoint-<step>``, and returns its path.

    Files are written to a temporary directory, synced to disk, then renamed: a kill at any moment leaves the earlier
    checkpoints as they were. Afterwards only the last ``keep`` good ones stay.

    Args:
        folder: the run's folder, made if missing.
        step: its number in the run.
        state: nested dict, list, tuple, None, bool, int, float, str and tensors.
        keep: how many good checkpoints stay, this one included.

    Raises:
        TypeError: for a state that holds anything else; nothing is written.
        FileExistsError: if the folder has a good checkpoint of this step or a later one.
        OSError: where it cannot be written, such as on a full disk; it names the last good checkpoint, which stays.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = save(folder, 7, {"weight": torch.ones(2), "lr": 1e-3})
    ...     load(folder).state
    {'weight': tensor([1., 1.]), 'lr': 0.001}
    """
    packed, folder = pack(state), Path(folder)
    target = folder / f"checkpoint-{step:08d}"
    _make_way(folder, step)
    try:
        for stale in folder.glob(".checkpoint-*"):
            shutil.rmtree(stale)
        _write_whole(target, folder / f".{target.name}", step, *packed)
    except OSError as error:
        good = next((path for path in reversed(checkpoints(folder)) if _is_good(path)), None)
        last = "There is no earlier checkpoint" if good is None else f"The last good checkpoint is {good}"
        raise unwritten(target, error, f"{last}. Make room or mend the folder, then resume.") from error
    _prune(folder, keep)
    return target


def write(path: PathLike, state: Any) -> Path:
    """Writes one checkpoint as a folder of its own, whole or not at all, and returns its path.

    Raises:
        TypeError: as ``save`` does.
        FileExistsError: if there is anything at the path but an empty folder.
        OSError: where it cannot be written.
    """
    packed, path = pack(state), Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists. Save in another folder, or remove it first.")
    temporary = path.parent / f".unfinished-{path.name}"
    try:
        if temporary.exists():
            shutil.rmtree(temporary)
        if path.exists():
            path.rmdir()
        _write_whole(path, temporary, 0, *packed)
    except OSError as error:
        raise unwritten(path, error, "Make room, or save in another folder.") from error
    return path


def _write_whole(target: Path, temporary: Path, step: int, tree: Any, tensors: dict[str, Tensor]) -> None:
    head = {"format": FORMAT, "version": VERSION, "step": step, "versions": _versions()}
    try:
        _write(temporary, head, tree, tensors)
        os.rename(temporary, target)
        _sync(target.parent)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load(path: PathLike) -> Checkpoint:
    """Reads a checkpoint, or the newest good one of a run's folder. Never executes what it reads.

    Where the newest is damaged, a warning says so and the one before is taken.

    Raises:
        FileNotFoundError: for a path that does not exist, or a folder without checkpoints.
        ValueError: for what is not a checkpoint of ours, one from a newer version, or a folder with damaged ones only.

    Warns:
        UserWarning: for a damaged one that was passed over, and for one of format version 1, which kept no checksum of
            its values.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Give a checkpoint-<step> directory or a run's folder.")
    if path.is_file():
        raise ValueError(f"{path} is {_foreign(path)}. Give a checkpoint-<step> directory or a run's folder.")
    if NAME.fullmatch(path.name) or any((path / part).exists() for part in (STATE, TENSORS)):
        try:
            return _read(path)
        except _Damaged as error:
            raise ValueError(f"{error}. {_earlier(path)}") from None
    found = checkpoints(path)
    if not found:
        raise FileNotFoundError(f"{path} holds no checkpoint-<step> directory, so there is nothing to load.")
    return _newest_good(path, found)


def checkpoints(folder: PathLike) -> list[Path]:
    """The checkpoint directories of a run's folder, oldest first, good or not; empty where there are none."""
    named = [path for path in Path(folder).glob("checkpoint-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(named, key=_step)


def restore(module: nn.Module, state: Mapping[str, Any], source: str = "the checkpoint") -> None:
    """Loads a ``state_dict`` into a module, after checking that every name, shape and dtype agrees.

    The first dimension is free of those entries that a part of the module lists in ``sized_by_data``, because only data
    tell it; such a part takes the size of what it loads.

    Raises:
        ValueError: listing missing, unexpected and mismatched entries; the module is left as it was.

    >>> restore(nn.Linear(2, 3), nn.Linear(2, 4).state_dict())
    Traceback (most recent call last):
    ValueError: the checkpoint does not fit Linear, which is left as it was:
      weight: (4, 2) torch.float32 in the checkpoint, (3, 2) torch.float32 in the model
      bias: (4,) torch.float32 in the checkpoint, (3,) torch.float32 in the model
    Build the model with the same options as the one that was saved.
    """
    own = module.state_dict()
    problems = [f"{name}: missing in {source}" for name in own if name not in state]
    problems += [f"{name}: not in the model" for name in state if name not in own]
    free = {f"{path}.{name}".lstrip(".") for path, part in module.named_modules() for name in _sized_by_data(part)}
    for name in own:
        kind = _kind_of_one if name in free else _kind
        if name in state and (stored := kind(state[name])) != (wanted := kind(own[name])):
            problems.append(f"{name}: {stored} in {source}, {wanted} in the model")
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(
            f"{source} does not fit {type(module).__name__}, which is left as it was:\n  {lines}\n"
            "Build the model with the same options as the one that was saved."
        )
    module.load_state_dict(state)


def _newest_good(folder: Path, found: list[Path]) -> Checkpoint:
    problems: list[str] = []
    for path in reversed(found):
        try:
            good = _read(path)
        except _Damaged as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"Taking {good.path.name}, since {'; '.join(problems)}.", stacklevel=3)
        return good
    lines = "\n  ".join(problems)
    raise ValueError(f"No checkpoint in {folder} can be read:\n  {lines}\nStart again in another folder.")


def _earlier(path: Path) -> str:
    """Names the good checkpoint before a damaged one."""
    before = [other for other in checkpoints(path.parent) if NAME.fullmatch(path.name) and _step(other) < _step(path)]
    good = next((other for other in reversed(before) if _is_good(other)), None)
    return "There is no good one before it." if good is None else f"The good one before it is {good}: give that."


def _write(path: Path, head: dict[str, Any], tree: Any, tensors: dict[str, Tensor]) -> None:
    """A checkpoint's files, synced to disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir()
    try:
        save_file(tensors, path / TENSORS)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    document = {**head, "sha256": _digest(path / TENSORS), "state": tree}
    (path / STATE).write_text(dump(document), encoding="utf-8")
    for part in (path / TENSORS, path / STATE, path):
        _sync(part)


def _read(path: Path) -> Checkpoint:
    from safetensors.torch import load_file

    document = _verify(path)
    if document["version"] == 1:
        warnings.warn(
            f"{path} has format version 1, which kept no checksum of {STATE}: damage to its values would go unnoticed.",
            stacklevel=3,
        )
    # Copies, because mapped memory keeps the file open and is less aligned than torch's own, which may change rounding
    tensors = {name: tensor.clone() for name, tensor in load_file(path / TENSORS).items()}
    try:
        state = unpack(document["state"], tensors)
        state = upgraded(state) if document["version"] < VERSION else state
        return Checkpoint(path, document["step"], document["versions"], state)
    except (KeyError, TypeError, ValueError) as error:  # possible in version 1 only
        raise _Damaged(f"{path} is damaged: {STATE} is altered ({error!r})") from None


def _verify(path: Path) -> dict[str, Any]:
    """The document of a checkpoint whose values and tensors are complete."""
    document = _document(path)
    if document.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no checkpoint of gae: its {STATE} says format {document.get('format')!r}, not {FORMAT!r}."
        )
    if not isinstance(document.get("version"), int) or document["version"] > VERSION:
        raise ValueError(
            f"{path} has format version {document.get('version')}, but this gae reads up to {VERSION}. Upgrade gae."
        )
    if not (path / TENSORS).is_file():
        raise _Damaged(f"{path} is damaged: it has no {TENSORS}")
    if _digest(path / TENSORS) != document.get("sha256"):
        raise _Damaged(f"{path} is damaged: {TENSORS} is truncated or altered (its SHA-256 differs)")
    return document


def _document(path: Path) -> dict[str, Any]:
    """The values of ``state.json``, as they were written; those of another program's as they are.

    A checkpoint of version 1 has no checksum, and is known by having its entries and no others.
    """
    if not (path / STATE).is_file():
        raise _Damaged(f"{path} is no complete checkpoint: it has no {STATE}")
    try:
        document = json.loads((path / STATE).read_text(encoding="utf-8"))
        foreign = isinstance(document, dict) and CHECKSUM not in document and document.get("format") != FORMAT
        first = isinstance(document, dict) and document.keys() == FIRST_KEYS and document["version"] == 1
        return document if foreign or first else verified(document)
    except (OSError, ValueError, RecursionError) as error:
        raise _Damaged(f"{path} is damaged: {STATE} is truncated or altered ({error})") from None


def _is_good(path: Path) -> bool:
    """Whether it is complete. Raises ValueError for what is not ours."""
    try:
        _verify(path)
    except _Damaged:
        return False
    return True


def _make_way(folder: Path, step: int) -> None:
    """Clears damaged checkpoints of this step and later, which a resumed run has passed over."""
    for path in checkpoints(folder):
        if _step(path) >= step:
            if _is_good(path):
                raise FileExistsError(f"{path} exists and is good. Save a later step, or in another folder.")
            shutil.rmtree(path)


def _prune(folder: Path, keep: int) -> None:
    good = 0
    for path in reversed(checkpoints(folder)):
        if good < keep and _is_good(path):
            good += 1
        else:
            shutil.rmtree(path)


def _foreign(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(4)
    if path.suffix == ".safetensors":
        return f"a safetensors file without our {STATE}"
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "a pickle or zip archive such as torch.save writes; gae never opens these, since they can run code"
    return "a file"


def _kind(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _kind_of_one(value: Any) -> str:
    return f"(any, *{tuple(value.shape[1:])}) {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _sized_by_data(part: nn.Module) -> tuple[str, ...]:
    return getattr(part, "sized_by_data", ())


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from the source tree
            continue
    return found
