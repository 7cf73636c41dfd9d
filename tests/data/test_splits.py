"""Rules for the test set: by fraction, column or file, and never one that was not stated."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gae.data import Dataset, load
from gae.data.loading import training_data
from gae.data.preparation import Preparation

N = 12
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
TEST = [1, 2, 7, 11]


@pytest.fixture
def x(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", X)
    return tmp_path / "x.npy"


def words() -> np.ndarray:
    return np.array(["test" if i in TEST else "train" for i in range(N)])


def is_split(data: Dataset) -> bool:
    train = [i for i in range(N) if i not in TEST]
    rows = data.train_rows.tolist() == train and data.test_rows.tolist() == TEST
    return rows and (data.train.numpy() == X[train]).all() and (data.test.numpy() == X[TEST]).all()


@pytest.mark.parametrize("text", ["\n".join(words()) + "\n", "7\n1\n11\n2\n", "\ufeff1\r\n2\r\n7\r\n11"])
def test_a_file_says_which_rows_are_test(x: Path, text: str) -> None:
    (x.parent / "rule").write_text(text, encoding="utf-8")
    data = load(x, split=f"file:{x.parent / 'rule'}")
    assert is_split(data) and data.split == f"file:{x.parent / 'rule'}"


@pytest.mark.parametrize("column", [words(), np.where(words() == "test", 3, np.arange(N) % 3), words() == "test"])
def test_a_column_says_which_rows_are_test(tmp_path: Path, column: np.ndarray) -> None:
    """The words, a fold, a truth value; the column is no feature."""
    np.savez(tmp_path / "a.npz", x=X, fold=column)
    value = {"U": "", "i": "=3", "b": "=True"}[column.dtype.kind]
    data = load(tmp_path / "a.npz", split=f"column:fold{value}")
    assert is_split(data) and data.split == f"column:fold{value}" and data.event_shape == (3,)


def test_a_fraction_is_the_rule_of_test_fraction(x: Path) -> None:
    by, plain = load(x, split="fraction:0.3"), load(x, test_fraction=0.3)
    assert by.hash == plain.hash and by.test_rows.tolist() == plain.test_rows.tolist()
    assert by.split == plain.split == "fraction:0.3" and load(x).split == "fraction:0.2"


def test_rows_of_text_are_its_lines(tmp_path: Path) -> None:
    """Numbers count blank lines, as the rows of results do; words stand for observations."""
    (tmp_path / "a.txt").write_text("ab\n\nba\nabb\n")
    (tmp_path / "rule").write_text("2\n")
    data = load(tmp_path / "a.txt", split=f"file:{tmp_path / 'rule'}")
    assert data.test_rows.tolist() == [2] and data.train_rows.tolist() == [0, 3]
    (tmp_path / "rule").write_text("train\ntest\ntrain\n")
    assert load(tmp_path / "a.txt", split=f"file:{tmp_path / 'rule'}").test_rows.tolist() == [2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("test\n" * 11, "has 11 lines, but the data have 12"),
        ("test\n" * 12, "all 12 observations are test observations"),
        ("train\n" * 12, "all 12 observations are training observations"),
        ("train\ntest\nvalid\n", r"must say train or test for each row, got 'valid' at row 2\. Or give the rows"),
        ("1\n2\n1\n", "has row 1, which is twice"),
        ("1\n12\n", "has row 12, which is not in the data: rows are 0 to 11"),
        (f"1\n{10**30}\n", "which is not in the data"),
        ("1\n-2\n", "must say train or test"),
        ("", "has 0 lines"),
    ],
)
def test_files_that_say_something_else(x: Path, text: str, said: str) -> None:
    (x.parent / "rule").write_text(text)
    with pytest.raises(ValueError, match=said):
        load(x, split=f"file:{x.parent / 'rule'}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "random"}, r"Unknown split 'random'\. Give fraction:0\.2, column:NAME"),
        ({"split": "file:"}, "Unknown split"),
        ({"split": "column:=3"}, "Unknown split"),
        ({"split": "fraction:1"}, "must lie strictly between 0 and 1, got 'fraction:1'"),
        ({"split": "fraction:half"}, "must lie strictly between 0 and 1"),
        ({"split": "column:fold"}, "The data have no column 'fold', by which column:fold would split them"),
        ({"split": "fraction:0.3", "test_fraction": 0.3}, "not both"),
    ],
)
def test_rules_that_cannot_be_followed(x: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load(x, **options)
    with pytest.raises(FileNotFoundError, match=r"No file .*nowhere"):
        load(x, split=f"file:{x.parent / 'nowhere'}")


def test_a_split_of_its_own_is_kept(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=X, x_test=X[:2])
    assert load(tmp_path / "a.npz").split == "predefined"
    with pytest.raises(ValueError, match="has a training and a test part of its own"):
        load(tmp_path / "a.npz", split="fraction:0.5")
    np.savez(tmp_path / "b.npz", x=X, fold=np.arange(4))
    with pytest.raises(ValueError, match=r"must have shape \(12,\), got \(4,\)"):
        load(tmp_path / "b.npz", split="column:fold=1")
    with pytest.raises(ValueError, match=r"must say train or test for each row, got '0' at row 0.*column:fold=VALUE"):
        np.savez(tmp_path / "c.npz", x=X, fold=np.arange(N))
        load(tmp_path / "c.npz", split="column:fold")


def test_data_for_a_model_follow_the_rule_of_its_data(x: Path, tmp_path: Path) -> None:
    """Otherwise its training data would be among the test data."""
    (tmp_path / "rule").write_text("1\n2\n7\n11\n")
    fitted = load(x, split=f"file:{tmp_path / 'rule'}").preparation
    like = Preparation.of(fitted.note())
    assert like == fitted and is_split(load(x, like=like))
    assert len(load(x, split="fraction:0.5", like=like).test) == 6
    np.savez(tmp_path / "own.npz", x_train=X, x_test=X[:2])
    assert load(tmp_path / "own.npz", like=like).split == "predefined"
    np.save(tmp_path / "less.npy", X[:9])
    with pytest.raises(ValueError, match="has row 11, which is not in the data"):
        load(tmp_path / "less.npy", like=like)


def people() -> pd.DataFrame:
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(part=words(), kind=np.arange(N) % 2)
    return frame.assign(fold=np.where(words() == "test", 3.0, np.nan))


@pytest.mark.parametrize("rule", ["column:part", "column:fold=3", "column:part=test"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ""])
def test_a_column_of_a_table_says_which_rows_are_test(tmp_path: Path, suffix: str, rule: str) -> None:
    """The column is not learnt; other data for the model may have it or not, and state another rule."""
    name = rule.partition(":")[2].partition("=")[0]
    table = people().drop(columns={"part", "fold"} - {name})
    source: Any = table if suffix == "" else tmp_path / f"people{suffix}"
    if suffix == ".csv":
        table.to_csv(source, index=False)
    elif suffix:
        table.to_parquet(source)
    data = load(source, labels="kind", split=rule)
    assert is_split(data) and data.split == rule and data.columns == ("a", "b", "c")
    assert data.train_labels is not None and f"left out: {name}" in data.notes
    like = Preparation.of(data.preparation.note())
    assert is_split(load(source, like=like)) and like == data.preparation
    assert load(table.drop(columns=name), like=like, split="fraction:0.5").event_shape == (3,)
    with pytest.raises(ValueError, match=f"have no column '{name}'"):
        load(table.drop(columns=name), like=like)
    assert load(table[:1], like=like).test.shape == (1, 3)  # one observation is the test set
    every = training_data(table.drop(columns="kind"), like)
    assert isinstance(every, Dataset) and every.train.shape == (N, 3) and every.split is None


def test_a_column_may_be_the_labels_or_learnt_by_the_model() -> None:
    """Labels are labels still, and a model keeps the columns that it has learnt."""
    table = people().drop(columns=["part", "fold"])
    data = load(table, labels="kind", split="column:kind=1")
    assert data.test_rows.tolist() == [1, 3, 5, 7, 9, 11] and data.test_labels.tolist() == 6 * [1]
    like = load(table).preparation
    again = load(table, like=like, split="column:kind=1")
    assert again.event_shape == (4,) and again.test[:, 3].tolist() == 6 * [1.0]
    with pytest.raises(ValueError, match="have no column 'nowhere'"):
        load(table, split="column:nowhere")


def test_a_column_of_obs_or_of_a_data_set_of_hugging_face() -> None:
    anndata, datasets = pytest.importorskip("anndata"), pytest.importorskip("datasets")
    observed = pd.DataFrame({"part": words()}, index=[str(i) for i in range(N)])
    assert is_split(load(anndata.AnnData(X, obs=observed), split="column:part"))
    table = datasets.Dataset.from_pandas(people().drop(columns=["kind", "fold"]))
    assert is_split(load(table, split="column:part"))
    features = datasets.Features({"x": datasets.Array2D((1, 3), "float32"), "part": datasets.Value("string")})
    arrays = datasets.Dataset.from_dict({"x": X[:, None].tolist(), "part": words().tolist()}, features=features)
    data = load(arrays, split="column:part")
    assert data.event_shape == (1, 3) and data.test_rows.tolist() == TEST
