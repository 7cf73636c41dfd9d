"""Checkpoints that cannot execute code: tensors in safetensors, everything else in JSON, written atomically."""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gae.data.environment import versions
from gae.data.files import unwritten
from gae.storage.conversion import upgraded
from gae.storage.packing import CHECKSUM, dump, pack, unpack, verified

FORMAT, VERSION = "gae-checkpoint", 3
WINDOWS = os.name == "nt"
FIRST_KEYS = {"format", "version", "step", "versions", "sha256", "state"}  # of version 1, without a checksum
TENSORS, STATE = "tensors.safetensors", "state.json"
PACKAGES = ("gae", "torch", "pyro-ppl", "lightning-fabric", "safetensors", "numpy")
NAME = re.compile(r"checkpoint-(\d{8,})")

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified; its tensors are on the CPU."""

    path: Path
    step: int
    versions: dict[str, str]  # of the libraries that wrote it
    state: Any


class _Damaged(ValueError):
    """Raised for an incomplete or altered checkpoint of gae, which an earlier one can replace."""


def save(folder: PathLike, step: int, state: Any, keep: int = 2) -> Path:
    """Writes ``folder/checkpoint-<step>`` and returns its path.

    Files are written to a temporary directory, synced to disk, then renamed: a kill at any moment leaves earlier
    checkpoints intact. Afterwards all but the last ``keep`` good checkpoints are deleted.

    Args:
        folder: the run's folder, created if missing.
        step: the number of the step in the run.
        state: nested dict, list, tuple, None, bool, int, float, str and tensors.
        keep: number of good checkpoints to keep, including this one.

    Raises:
        TypeError: for a state with values of other types; nothing is written.
        FileExistsError: if the folder has a good checkpoint of this step or a later one.
        OSError: if the checkpoint cannot be written, such as on a full disk; the message names the last good
            checkpoint, which is kept.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = save(folder, 7, {"weight": torch.ones(2), "lr": 1e-3})
    ...     load(folder).state
    {'weight': tensor([1., 1.]), 'lr': 0.001}
    """
    packed, folder = pack(state), Path(folder)
    target = folder / f"checkpoint-{step:08d}"
    _delete_damaged(folder, step)
    try:
        for stale in folder.glob(".checkpoint-*"):
            shutil.rmtree(stale)
        _write_atomic(target, folder / f".{target.name}", step, *packed)
    except OSError as error:
        good = next((path for path in reversed(checkpoints(folder)) if _is_good(path)), None)
        last = "There is no earlier checkpoint" if good is None else f"The last good checkpoint is {good}"
        raise unwritten(target, error, f"{last}. Free disk space or repair the folder, then resume.") from error
    _prune(folder, keep)
    return target


def write(path: PathLike, state: Any) -> Path:
    """Atomically writes a single checkpoint as the folder ``path``, and returns the path.

    Raises:
        TypeError: as ``save`` does.
        FileExistsError: if the path exists and is not an empty folder.
        OSError: if the checkpoint cannot be written.
    """
    packed, path = pack(state), Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists. Save to another folder, or remove it first.")
    temporary = path.parent / f".unfinished-{path.name}"
    try:
        if temporary.exists():
            shutil.rmtree(temporary)
        if path.exists():
            path.rmdir()
        _write_atomic(path, temporary, 0, *packed)
    except OSError as error:
        raise unwritten(path, error, "Free disk space, or save to another folder.") from error
    return path


def _write_atomic(target: Path, temporary: Path, step: int, tree: Any, tensors: dict[str, Tensor]) -> None:
    head = {"format": FORMAT, "version": VERSION, "step": step, "versions": _versions()}
    try:
        _write(temporary, head, tree, tensors)
        os.rename(temporary, target)
        _sync(target.parent)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load(path: PathLike) -> Checkpoint:
    """Reads a checkpoint, or the newest good one of a run's folder, without executing code from it.

    Raises:
        FileNotFoundError: for a path that does not exist, or a folder without checkpoints.
        ValueError: for a checkpoint that gae did not write, one of a newer version, or a folder with only damaged
            checkpoints.

    Warns:
        UserWarning: for a damaged checkpoint that is skipped for an earlier one, and for format version 1, which has no
            checksum of its values.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Give a checkpoint-<step> directory or a run's folder, as `gae fit` prints it."
        )
    if path.is_file():
        raise ValueError(f"{path} is {_foreign(path)}. Give a checkpoint-<step> directory or a run's folder.")
    if NAME.fullmatch(path.name) or any((path / part).exists() for part in (STATE, TENSORS)):
        try:
            return _read(path)
        except _Damaged as error:
            raise ValueError(f"{error}. {_earlier(path)}") from None
    candidates = checkpoints(path)
    if not candidates:
        raise FileNotFoundError(f"{path} holds no checkpoint-<step> directory, so there is nothing to load.")
    return _newest_good(path, candidates)


def checkpoints(folder: PathLike) -> list[Path]:
    """The checkpoint directories of a run's folder, oldest first, including damaged ones; may be empty."""
    named = [path for path in Path(folder).glob("checkpoint-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(named, key=_step)


def restore(module: nn.Module, state: Mapping[str, Any], source: str = "the checkpoint") -> None:
    """Loads a ``state_dict`` into a module, after checking that every name, shape and dtype agrees.

    Entries that a submodule lists in ``sized_by_data`` may have any first dimension, because it depends on the data;
    such a submodule adopts the size of the loaded entry.

    Raises:
        ValueError: lists missing, unexpected and mismatched entries; the module is unchanged.

    >>> restore(nn.Linear(2, 3), nn.Linear(2, 4).state_dict())
    Traceback (most recent call last):
    ValueError: the checkpoint does not fit Linear, which is unchanged:
      weight: (4, 2) torch.float32 in the checkpoint, (3, 2) torch.float32 in the model
      bias: (4,) torch.float32 in the checkpoint, (3,) torch.float32 in the model
    Build the model with the same options as the one that was saved.
    """
    current = module.state_dict()
    problems = [f"{name}: missing in {source}" for name in current if name not in state]
    problems += [f"{name}: not in the model" for name in state if name not in current]
    free = {f"{path}.{name}".lstrip(".") for path, part in module.named_modules() for name in _sized_by_data(part)}
    for name in current:
        signature = _row_signature if name in free else _signature
        if name in state and (stored := signature(state[name])) != (expected := signature(current[name])):
            problems.append(f"{name}: {stored} in {source}, {expected} in the model")
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(
            f"{source} does not fit {type(module).__name__}, which is unchanged:\n  {lines}\n"
            "Build the model with the same options as the one that was saved."
        )
    module.load_state_dict(state)


def _newest_good(folder: Path, candidates: list[Path]) -> Checkpoint:
    problems: list[str] = []
    for path in reversed(candidates):
        try:
            good = _read(path)
        except _Damaged as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"Using {good.path.name}, since {'; '.join(problems)}.", stacklevel=3)
        return good
    lines = "\n  ".join(problems)
    raise ValueError(f"No checkpoint in {folder} can be read:\n  {lines}\nStart again in another folder.")


def _earlier(path: Path) -> str:
    """Advice that names the last good checkpoint before a damaged one."""
    before = [other for other in checkpoints(path.parent) if NAME.fullmatch(path.name) and _step(other) < _step(path)]
    good = next((other for other in reversed(before) if _is_good(other)), None)
    return "There is no earlier good one." if good is None else f"Use the last good one before it: {good}."


def _write(path: Path, head: dict[str, Any], tree: Any, tensors: dict[str, Tensor]) -> None:
    """Writes a checkpoint's files and syncs them to disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir()
    try:
        save_file(tensors, path / TENSORS)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    document = {**head, "sha256": _digest(path / TENSORS), "state": tree}
    (path / STATE).write_text(dump(document), encoding="utf-8", newline="\n")
    for part in (path / TENSORS, path / STATE, path):
        _sync(part)


def _read(path: Path) -> Checkpoint:
    from safetensors.torch import load_file

    document = _verify(path)
    if document["version"] == 1:
        warnings.warn(
            f"{path} has format version 1, which has no checksum of {STATE}: damage to its values would go unnoticed.",
            stacklevel=3,
        )
    # Copies, because mapped memory keeps the file open and is less aligned than torch's, which may change rounding
    tensors = {name: tensor.clone() for name, tensor in load_file(path / TENSORS).items()}
    try:
        state = unpack(document["state"], tensors)
        state = upgraded(state) if document["version"] < VERSION else state
        return Checkpoint(path, document["step"], document["versions"], state)
    except (KeyError, TypeError, ValueError) as error:  # possible in version 1 only
        raise _Damaged(f"{path} is damaged: {STATE} is altered ({error!r})") from None


def _verify(path: Path) -> dict[str, Any]:
    """The document of a checkpoint, after verification of its values and tensors."""
    document = _document(path)
    if document.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a checkpoint of gae: its {STATE} has format {document.get('format')!r}, not {FORMAT!r}."
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
    """The values of ``state.json``, verified unless they are those of another program.

    A checkpoint of version 1, without a checksum, is recognised by its exact set of keys.
    """
    if not (path / STATE).is_file():
        raise _Damaged(f"{path} is not a complete checkpoint: it has no {STATE}")
    try:
        document = json.loads((path / STATE).read_text(encoding="utf-8"))
        foreign = isinstance(document, dict) and CHECKSUM not in document and document.get("format") != FORMAT
        first = isinstance(document, dict) and document.keys() == FIRST_KEYS and document["version"] == 1
        return document if foreign or first else verified(document)
    except (OSError, ValueError, RecursionError) as error:
        raise _Damaged(f"{path} is damaged: {STATE} is truncated or altered ({error})") from None


def _is_good(path: Path) -> bool:
    """Whether a checkpoint is complete. Raises ValueError if gae did not write it."""
    try:
        _verify(path)
    except _Damaged:
        return False
    return True


def _delete_damaged(folder: Path, step: int) -> None:
    """Deletes damaged checkpoints of this step and later, which a resumed run has skipped."""
    for path in checkpoints(folder):
        if _step(path) >= step:
            if _is_good(path):
                raise FileExistsError(f"{path} exists and is good. Save a later step, or to another folder.")
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
        return f"a safetensors file without the {STATE} of a checkpoint"
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "a pickle or zip archive, as torch.save writes; gae never opens these, since they can execute code"
    return "a file"


def _signature(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _row_signature(value: Any) -> str:
    return f"(any, *{tuple(value.shape[1:])}) {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _sized_by_data(part: nn.Module) -> tuple[str, ...]:
    return getattr(part, "sized_by_data", ())


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk; Windows has no such call for folders, and needs write access."""
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _versions() -> dict[str, str]:
    return {package: version for package, version in versions(PACKAGES).items() if version is not None}
