"""Exact conversion of nested Python state to JSON and tensors, and JSON with a checksum."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

CHECKSUM = "checksum"


def dump(document: Mapping[str, Any]) -> str:
    """A document as JSON with a SHA-256 checksum of its ordered values, which ``verified`` checks.

    >>> import json
    >>> verified(json.loads(dump({"lr": 1e-3})))
    {'lr': 0.001}
    >>> verified(json.loads(dump({"lr": 1e-3}).replace("0.001", "0.002")))
    Traceback (most recent call last):
    ValueError: its values differ from their checksum
    """
    return json.dumps({**document, CHECKSUM: _checksum(document)}, indent=1, allow_nan=False)


def verified(document: Any) -> dict[str, Any]:
    """Verifies the checksum of parsed JSON, and returns the document without it.

    Raises:
        ValueError: if the checksum is missing or does not match the values.
    """
    if not isinstance(document, dict) or CHECKSUM not in document:
        raise ValueError("it has no checksum")
    values = {key: value for key, value in document.items() if key != CHECKSUM}
    if document[CHECKSUM] != _checksum(values):
        raise ValueError("its values differ from their checksum")
    return values


def _checksum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def pack(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """A nested state as a JSON-serialisable tree and the tensors that it refers to, each stored once.

    Tags represent tuples, dicts with keys other than str, NaN and infinities; floats round-trip exactly.

    Raises:
        TypeError: for values other than dict, list, tuple, None, bool, int, float, str and dense tensors; the message
            names the place.

    >>> tree, tensors = pack({"betas": (0.9, 0.999), 0: torch.zeros(2)})
    >>> tree
    {'$dict': [['betas', {'$tuple': [0.9, 0.999]}], [0, {'$tensor': 'state/0'}]]}
    >>> unpack(tree, tensors)
    {'betas': (0.9, 0.999), 0: tensor([0., 0.])}
    """
    packer = _Packer()
    return packer.pack(state, "state"), packer.tensors


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of ``pack``; shared tensors are shared again."""
    if isinstance(tree, list):
        return [unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    match list(tree.items()):
        case [("$tensor", name)]:
            return tensors[name]
        case [("$float", text)]:
            return float(text)
        case [("$tuple", items)]:
            return tuple(unpack(item, tensors) for item in items)
        case [("$dict", pairs)]:
            return {unpack(key, tensors): unpack(value, tensors) for key, value in pairs}
    return {key: unpack(value, tensors) for key, value in tree.items()}


class _Packer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.names: dict[tuple[Any, ...], str] = {}
        self.storages: set[int] = set()

    def pack(self, value: Any, where: str) -> Any:
        match value:
            case None | bool() | int() | str():
                return value
            case float():
                return value if math.isfinite(value) else {"$float": str(value)}
            case Tensor():
                return {"$tensor": self._name(value, where)}
            case list():
                return [self.pack(item, f"{where}/{i}") for i, item in enumerate(value)]
            case tuple() if type(value) in (tuple, torch.Size):
                return {"$tuple": [self.pack(item, f"{where}/{i}") for i, item in enumerate(value)]}
            case dict():
                return self._dict(value, where)
        raise TypeError(
            f"Cannot store a {type(value).__name__} at {where}: a checkpoint may contain only dict, list, tuple, None, "
            "bool, int, float, str and tensors. Convert it first."
        )

    def _dict(self, value: dict[Any, Any], where: str) -> Any:
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: self.pack(item, f"{where}/{key}") for key, item in value.items()}
        pairs = [[self.pack(key, f"{where} (key)"), self.pack(item, f"{where}/{key}")] for key, item in value.items()]
        return {"$dict": pairs}

    def _name(self, tensor: Tensor, where: str) -> str:
        if tensor.layout != torch.strided or tensor.is_meta:
            raise TypeError(
                f"Cannot store the {tensor.layout} tensor on {tensor.device} at {where}: only dense tensors with data "
                "can be stored. Convert it first."
            )
        storage = tensor.untyped_storage().data_ptr()
        view = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and view in self.names:
            return self.names[view]
        name = where
        while name in self.tensors:
            name += "'"
        stored = tensor.detach().cpu().contiguous()
        self.tensors[name] = stored.clone() if storage in self.storages else stored
        self.storages.add(storage)
        self.names[view] = name
        return name
