"""Networks from references and files: what is read, and what is refused."""

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from own import networks, written
from torch import nn

from gae.adapters import ExportedNetwork, load_weights, read_network


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return written(tmp_path, monkeypatch)


def exported(module: nn.Module, path: Path, *codes: torch.Tensor, **options: Any) -> Path:
    torch.export.save(torch.export.export(module, codes, **options), path)
    return path


def dynamic(module: nn.Module, path: Path, width: int = 2) -> Path:
    return exported(module, path, torch.zeros(3, width), dynamic_shapes=({0: torch.export.Dim("N")},))


def test_a_function_a_class_and_a_network_of_the_working_directory() -> None:
    path = list(sys.path)
    kinds = [type(read_network(f"own_models:{name}")) for name in ("decoder", "Point", "instance")]
    assert kinds[0] is kinds[2] is nn.Sequential and kinds[1].__name__ == "Point"
    assert sys.path == path and not read_network("own_models:training").training


@pytest.mark.parametrize(
    "reference, error, said",
    [
        ("own_models", ValueError, "module:function or a .pt2 file"),
        ("no_such_module:decoder", ValueError, "no module 'no_such_module' in the working directory"),
        ("own_models:decodr", ValueError, "has no 'decodr'"),
        ("own_models:number", TypeError, "is a int"),
        ("own_models:of_codes", TypeError, r"needs arguments \(z\)"),
        ("own_models:nothing", TypeError, "returned a NoneType"),
        ("absent.pt2", FileNotFoundError, "absent.pt2 does not exist"),
        ("images.pt2", ValueError, "is not a file of torch.export"),
    ],
)
def test_other_references_are_refused(reference: str, error: type[Exception], said: str, tmp_path: Path) -> None:
    (tmp_path / "images.pt2").write_bytes((tmp_path / "images.npy").read_bytes())
    with pytest.raises(error, match=said):
        read_network(reference)


def test_an_import_that_fails_inside_the_module_keeps_its_error(tmp_path: Path) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        read_network("needs_more:decoder")


def test_an_exported_network_is_the_network(own: dict[str, Any], tmp_path: Path) -> None:
    network = read_network(str(dynamic(own["decoder"], tmp_path / "decoder.pt2")))
    assert isinstance(network, ExportedNetwork) and network.inputs == (2,)
    z = torch.randn(5, 2)
    assert torch.equal(network(z), own["decoder"](z))
    other, _ = networks(seed=1)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    load_weights({"decoder": network}, tmp_path / "other.pt")
    assert torch.equal(network(z), other(z))


class Payload:
    """An object that a pickle would call."""

    def __reduce__(self) -> Any:
        return (print, ("executed",))


def test_an_exported_file_with_objects_is_refused(
    own: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, objects = dynamic(own["decoder"], tmp_path / "decoder.pt2"), io.BytesIO()
    torch.save(Payload(), objects)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    inputs = next(name for name in records if name.endswith(".pt"))
    config = next(name for name in records if name.endswith("weights_config.json"))
    entry = json.loads(records[config])
    next(iter(entry["config"].values()))["use_pickle"] = True
    for name, content in ((inputs, objects.getvalue()), (config, json.dumps(entry).encode())):
        with zipfile.ZipFile(path, "w") as archive:
            for record, held in {**records, name: content}.items():
                archive.writestr(record, held)
        with pytest.raises(ValueError, match="objects other than tensors"):
            read_network(str(path))
    assert not capsys.readouterr().out


def test_a_state_dict_goes_to_the_decoder_or_to_both(own: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    z, x = torch.randn(3, 2), torch.rand(3, 1, 4, 4)
    save_file(own["decoder"].state_dict(), tmp_path / "decoder.safetensors")
    torch.save({"state_dict": torch.load(tmp_path / "both.pt", weights_only=True)}, tmp_path / "lightning.ckpt")
    for file in ("decoder.safetensors", "both.pt", "lightning.ckpt"):
        decoder, encoder = read_network("own_models:decoder"), read_network("own_models:Encoder", "encoder")
        load_weights({"decoder": decoder} | ({} if "decoder" in file else {"encoder": encoder}), tmp_path / file)
        assert torch.equal(decoder(z), own["decoder"](z))
        if "decoder" not in file:
            assert torch.equal(encoder(x).loc, own["encoder"](x).loc)


@pytest.mark.parametrize(
    "state, said",
    [
        ({"0.weight": torch.zeros(6, 2)}, "missing: 0.bias, 2.bias, 2.weight"),
        ({"decoder.0.weight": torch.zeros(6, 2), "decoder.extra": torch.zeros(1)}, "unknown: extra"),
        ([torch.zeros(2)], "holds a list"),
        ({"0.weight": 3}, "not a state_dict of tensors"),
        (nn.Linear(2, 3), "is no state_dict of tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused(state: Any, said: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=said):
        load_weights({"decoder": read_network("own_models:decoder")}, tmp_path / "weights.pt")


def test_weights_of_another_shape_are_refused(own: dict[str, Any], tmp_path: Path) -> None:
    torch.save({name: value[:1] for name, value in own["decoder"].state_dict().items()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"0.weight is \(1, 2\) in the file, \(6, 2\) in the network"):
        load_weights({"decoder": read_network("own_models:decoder")}, tmp_path / "w.pt")
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        load_weights({"decoder": own["decoder"]}, tmp_path / "absent.pt")
