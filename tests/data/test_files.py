"""Atomic file writes, and early errors for paths that are not writable."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import file_limit

from gae.data.files import check_file, check_folder, whole, write_text


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a [b] 'c' ü.npz"
    for error in (RuntimeError("stop"), KeyboardInterrupt()):
        path.write_text("old")
        with pytest.raises(type(error)), whole(path) as temporary:
            assert temporary.suffix == ".npz" and temporary.parent == tmp_path
            temporary.write_text("half")
            raise error
        assert path.read_text() == "old" and os.listdir(tmp_path) == [path.name]
    with whole(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == [path.name]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "codes.npz"
    path.write_text("old")
    told = pytest.raises(OSError, match=r"Cannot write .*codes\.npz \(File too large\)")
    with file_limit(10_000), told as caught, whole(path) as temporary:
        np.savez(temporary, z=np.zeros(10_000))
    assert caught.value.errno and path.read_text() == "old" and os.listdir(tmp_path) == [path.name]


def test_links_are_followed_and_folders_made(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to(tmp_path / "new" / "real.txt")
    write_text(tmp_path / "link.txt", "name: \udcff, ±")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "new" / "real.txt").read_text(encoding="utf-8") == "name: \\udcff, ±"


def test_places_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npz").mkdir()
    check_file(tmp_path / "a" / "b" / "c.npz", ".png", ".npz")
    check_folder(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path)
    check_file(Path("c.npz"), ".npz")
    with pytest.raises(ValueError, match=r"must end in .png or .npz, got c.gif"):
        check_file(Path("c.gif"), ".png", ".npz")
    with pytest.raises(IsADirectoryError, match=r"folder.npz is a folder. Name a file"):
        check_file(tmp_path / "folder.npz", ".npz")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match="file is a file, so nothing can be written"):
            check_folder(path)
    monkeypatch.setattr(os, "access", lambda path, how: False)  # root may write everywhere
    with pytest.raises(PermissionError, match="is not writable, so nothing can be written to new/codes"):
        check_file(Path("new/codes/c.npz"), ".npz")
