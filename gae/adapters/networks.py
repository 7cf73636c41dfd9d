"""Networks of your own: from ``module:function`` or a ``torch.export`` file, with parameters from a file beside it."""

import inspect
import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from gae.storage.recipe import CALL, Call, Part
from gae.storage.references import imported, working_directory

EXPORTED = ".pt2"
NAMED = 3  # keys that an error names


def read_network(reference: str, part: str = "decoder") -> nn.Module:
    """A network in evaluation mode, by ``module:function`` or from a ``torch.export`` file.

    Nothing is executed except the import of the module and, if the name is not an ``nn.Module`` itself, one call of it
    without arguments. A file that holds anything besides a graph and tensors is refused.

    Args:
        reference: ``"module:name"``, looked up in the working directory and then on the path: a network, or a function
            or class that makes one when called without arguments. Or the path of a ``.pt2`` file.
        part: what the network is, for messages.

    Raises:
        ValueError: for a reference of another form, or a module, name or file that does not exist or is damaged.
        TypeError: if the name is neither a network nor a function without required arguments that returns one.

    >>> read_network("torch.nn:Identity")
    Identity()
    """
    network = _exported(Path(reference)) if reference.endswith(EXPORTED) else _made(reference, part)
    return network.eval()


def _made(reference: str, part: str) -> nn.Module:
    module, separator, name = reference.partition(":")
    if not (separator and module and name):
        raise ValueError(
            f"The {part} must be module:function or a {EXPORTED} file of torch.export, got {reference!r}. For "
            f"build() in my_model.py of the working directory, give my_model:build."
        )
    with working_directory():
        value = imported(reference)
        if isinstance(value, nn.Module):
            return value
        _need_no_arguments(value, reference, part)
        network = value()
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"{reference} returned {_kind(network)}. It must return the {part} itself, a torch.nn.Module, when called "
            "without arguments."
        )
    vars(network).setdefault(CALL, Call(value))  # a checkpoint makes it again
    return network


def _need_no_arguments(value: Any, reference: str, part: str) -> None:
    if not callable(value):
        raise TypeError(
            f"{reference} is {_kind(value)}. Name a torch.nn.Module, or a function that returns one when called "
            "without arguments."
        )
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:  # a builtin
        return
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in optional]
    if needed:
        raise TypeError(
            f"{reference} needs arguments ({', '.join(needed)}). Name a function without required arguments that "
            f"returns the {part}, a torch.nn.Module: the weights must be parameters, which a function of codes has not."
        )


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


class ExportedNetwork(Part, nn.Module):
    """The network of a ``torch.export`` file, in the mode in which it was exported.

    Args:
        content: the bytes of the file, so that a checkpoint of the network holds its graph.
        source: the name of the file, for messages.

    Raises:
        ValueError: for bytes that are no such file, or hold anything besides a graph and tensors.
    """

    def __init__(self, content: UInt8[Tensor, " N"], source: str = "The exported network"):
        super().__init__()
        self.content, self.source = content, source
        self.program, self.inputs = _program(content.numpy().tobytes(), source)

    def contents(self) -> Mapping[str, Any]:
        return {"content": self.content, **dict(self.named_parameters()), **dict(self.named_buffers())}

    def train(self, mode: bool = True) -> "ExportedNetwork":
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Any:
        return self.program(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ExportedNetwork":
        again = memo[id(self)] = type(self).__new__(type(self))
        with _without_notices():
            vars(again).update(deepcopy(vars(self), memo))
        return again


@contextmanager
def _without_notices() -> Iterator[None]:
    """torch's own pytrees warn of themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _exported(path: Path) -> ExportedNetwork:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Write it with `torch.export.save`.")
    return ExportedNetwork(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8), str(path))


def _program(content: bytes, source: str) -> tuple[nn.Module, tuple[int, ...] | None]:
    """The network in an exported file, and the shape of one input; None if it is not the same for all."""
    _refuse_objects(content, source)
    with _without_notices():
        try:
            program = torch.export.load(io.BytesIO(content))
        except (RuntimeError, ValueError, KeyError, AssertionError) as error:
            raise ValueError(
                f"{source} cannot be read by this torch, {torch.__version__} ({_first_line(error)}). Export it again."
            ) from error
        users = program.graph_signature.user_inputs
        shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in users and "val" in node.meta]
        if len(users) != 1 or len(shapes) != 1:
            raise ValueError(f"{source} takes {len(users)} inputs. Export a network of one input, a batch of codes.")
        (shape,) = shapes
        fixed = all(isinstance(size, int) for size in shape[1:])
        return program.module(), tuple(shape[1:]) if fixed else None


def _refuse_objects(content: bytes, source: str) -> None:
    """Raises ValueError for an archive with pickled objects, which could run code when they are loaded."""
    try:
        with ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                if name.endswith("_config.json"):
                    entries = json.loads(archive.read(name)).get("config", {}).values()
                    objects = [e for e in entries if e.get("use_pickle") or "obj" in str(e.get("path_name"))]
                elif name.endswith(".pt"):
                    objects = [] if _is_tensors(archive.read(name)) else [name]
                else:
                    objects = [name] if "/aotinductor/" in name else []
                if objects:
                    raise ValueError(
                        f"{source} holds objects other than tensors ({name}), which could run code. Export a network "
                        "without them, or give it as module:function with --weights."
                    )
    except (BadZipFile, UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise ValueError(
            f"{source} is not a file of torch.export ({error}). Write it with `torch.export.save`."
        ) from None


def _is_tensors(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # whatever bytes may cause
        return False
    return True


def load_weights(networks: Mapping[str, nn.Module], path: str | os.PathLike[str]) -> None:
    """Loads a state_dict into networks, named ``"decoder"`` and ``"encoder"``, with nothing missing or left over.

    A file whose names are those of the decoder is that of the decoder alone. Otherwise the names that begin with
    ``decoder.`` and ``encoder.``, as in the state_dict of a whole autoencoder, go to each.

    Args:
        networks: networks by their prefix in the file, the decoder first.
        path: safetensors, or a state_dict written by ``torch.save``, of which only tensors are read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no state_dict, or whose names or shapes do not fit.
    """
    state, source = _state(Path(path)), str(path)
    prefix, first = next(iter(networks.items()))
    own = {f"{name}." for name in networks}
    if state.keys() == first.state_dict().keys() or not any(key.startswith(tuple(own)) for key in state):
        _load(first, state, f"{source} and the {prefix}")
        return
    for part, network in networks.items():
        start = f"{part}."
        chosen = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
        _load(network, chosen, f"the names in {source} that begin with {start!r}, and the {part},")


def _load(network: nn.Module, state: Mapping[str, Tensor], both: str) -> None:
    target = network.program if isinstance(network, ExportedNetwork) else network
    wanted = target.state_dict()
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        parts = [f"missing: {_listed(missing)}"] * bool(missing) + [f"unknown: {_listed(unknown)}"] * bool(unknown)
        raise ValueError(f"The parameters of {both} differ; {'; '.join(parts)}.")
    other = [name for name, value in wanted.items() if value.shape != state[name].shape]
    if other:
        shapes = f"{tuple(state[other[0]].shape)} in the file, {tuple(wanted[other[0]].shape)} in the network"
        raise ValueError(f"The parameters of {both} differ in shape: {other[0]} is {shapes}.")
    target.load_state_dict(dict(state))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of weights {path}.")
    try:
        state = _read(path)
    except Exception as error:  # whatever bytes may cause
        raise ValueError(
            f"{path} is no state_dict of tensors ({_first_line(error)}). Write it with "
            "`torch.save(decoder.state_dict(), path)` or safetensors."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):  # of Lightning
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds {_kind(state)}, not a state_dict of tensors. Save `decoder.state_dict()`.")
    return state


def _read(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True)
    from safetensors.torch import load_file

    return load_file(path)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
