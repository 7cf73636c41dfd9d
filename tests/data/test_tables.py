"""Tables from files and frames to numbers, by pandas and scikit-learn; columns and categories belong to the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.preprocessing import OneHotEncoder

import gae
from gae.data import Dataset, load
from gae.data.preparation import Preparation

N = 40


def people() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": draw.integers(20, 70, N),
            "height": draw.normal(1.7, 0.1, N),
            "colour": draw.choice(["red", "blue", "green"], N),
            "smokes": draw.random(N) > 0.5,
            "kind": draw.choice(["b", "a"], N),
        }
    )


def expected(frame: pd.DataFrame) -> np.ndarray:
    encoder = make_column_transformer(
        ("passthrough", ["age", "height"]), (OneHotEncoder(sparse_output=False), ["colour", "smokes"])
    )
    return np.asarray(encoder.fit_transform(frame), dtype=np.float32)


def as_csv(frame: pd.DataFrame, folder: Path) -> Path:
    frame.to_csv(folder / "people.csv", index=False)
    return folder / "people.csv"


def as_tsv(frame: pd.DataFrame, folder: Path) -> Path:
    frame.to_csv(folder / "people.tsv", index=False, sep="\t")
    return folder / "people.tsv"


def as_parquet(frame: pd.DataFrame, folder: Path) -> Path:
    frame.to_parquet(folder / "people.parquet")
    return folder / "people.parquet"


FORMS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "csv": as_csv,
    "tsv": as_tsv,
    "parquet": as_parquet,
    "pandas": lambda frame, folder: frame,
    "categorical": lambda frame, folder: frame.astype({"colour": "category", "kind": "category"}),
    "nullable": lambda frame, folder: frame.convert_dtypes(),
    "polars": lambda frame, folder: pl.from_pandas(frame),
    "lazy": lambda frame, folder: pl.from_pandas(frame).lazy(),
    "polars categories": lambda frame, folder: pl.from_pandas(frame).cast({"colour": pl.Categorical}),
    "Enum": lambda frame, folder: pl.from_pandas(frame).cast({"colour": pl.Enum(["blue", "green", "red"])}),
}


@pytest.mark.parametrize("form", FORMS)
def test_numbers_and_categories(form: str, tmp_path: Path) -> None:
    frame = people()
    data = load(FORMS[form](frame, tmp_path), labels="kind")
    rows = data.rows()
    np.testing.assert_array_equal(rows.x.numpy(), expected(frame))
    assert rows.labels.tolist() == (frame["kind"] == "b").astype(int).tolist() and data.classes == ("a", "b")
    categories = ("colour=blue", "colour=green", "colour=red", "smokes=False", "smokes=True")
    assert data.columns == ("age", "height", *categories)
    assert "one-hot columns: colour (3), smokes (2)" in repr(data)


def test_a_table_without_a_header_loses_no_row(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(12, 3))
    np.savetxt(tmp_path / "x.csv", x, delimiter=",")
    data = load(tmp_path / "x.csv")
    np.testing.assert_array_equal(data.rows().x.numpy(), x.astype(np.float32))
    assert data.columns == ("0", "1", "2")


def test_columns_are_matched_by_name(tmp_path: Path) -> None:
    """Other columns order, one category only, and no labels."""
    frame = people()
    trained = load(frame, labels="kind")
    record = Preparation.of(trained.preparation.note())
    assert record == trained.preparation
    new = frame[frame["colour"] == "green"][["smokes", "colour", "height", "age"]]
    rows = load(as_csv(new, tmp_path), like=record).rows()
    np.testing.assert_array_equal(rows.x.numpy(), expected(frame)[frame["colour"] == "green"])
    assert rows.labels is None
    labelled = load(frame[frame["kind"] == "b"], like=record)
    assert set(labelled.rows().labels.tolist()) == {1} and labelled.classes == ("a", "b")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns="height"), r"lacks 'height'; the model takes the columns 'age', 'height', 'colour'"),
        (lambda f: f.assign(weight=1.0), r"also has 'weight'; the model takes"),
        (lambda f: f.rename(columns={"age": "Age"}), r"lacks 'age' and also has 'Age'"),
        (lambda f: f.assign(colour="pink"), r"'colour' has the categories 'pink', .* Known: 'blue', 'green', 'red'"),
        (lambda f: f.assign(kind="c"), r"'kind' has the classes 'c', .* Known: 'a', 'b'"),
        (lambda f: f.assign(height="tall"), r"'height' of The table holds 'tall', but numbers in the model's data"),
    ],
)
def test_a_table_of_another_kind_is_refused(change: Callable[[pd.DataFrame], pd.DataFrame], said: str) -> None:
    like = load(people(), labels="kind").preparation
    with pytest.raises(ValueError, match=said):
        load(change(people()), like=like)


def test_categories_that_look_like_numbers(tmp_path: Path) -> None:
    frame = people().assign(colour=pd.Categorical(np.arange(N) % 3 + 1000000))
    like = load(frame, drop=["kind"]).preparation
    assert like.table is not None and like.table.columns[2].categories == ("1000000", "1000001", "1000002")
    rows = load(as_csv(frame, tmp_path), like=like).rows()  # where they are read as integers
    np.testing.assert_array_equal(rows.x[:, 2:5].numpy(), np.eye(3)[np.arange(N) % 3])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"row": np.arange(1, N + 1)}, r"'row' of The table counts the rows from 1 to 40"),
        ({"user_id": np.random.default_rng(0).permutation(N)}, r"'user_id' of The table is different in every row"),
        ({"name": [f"n{i}" for i in range(N)]}, r"'name' of The table has 40 different values in 40 rows"),
    ],
)
def test_identifiers_are_left_out_on_request_only(change: dict[str, Any], said: str) -> None:
    frame, (name,) = people().assign(**change), change
    with pytest.raises(ValueError, match=rf"{said}.*drop=\['{name}'\] \(--drop '{name}'\)"):
        load(frame, labels="kind")
    trained = load(frame, labels="kind", drop=[name])
    assert trained.columns == load(people(), labels="kind").columns and trained.preparation.table is not None
    assert load(frame, like=trained.preparation).hash == trained.hash  # the model remembers what it left out
    if name == "row":
        assert "row" in (load(frame.astype({"row": float}), labels="kind").columns or ())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda age: age.where(age.index != 3, "?"), r"13 different numbers as text, and '\?', so that"),
        (lambda age: age.str.replace(".", ","), r"13 different numbers as text, and '20,5'"),
    ],
    ids=["a word", "decimal commas"],
)
def test_numbers_are_no_categories(change: Callable[[pd.Series], pd.Series], said: str, tmp_path: Path) -> None:
    ages = pd.Series((np.arange(N) % 13 + 20.5).astype(str))
    with pytest.raises(ValueError, match=rf"'years' of .*people\.csv has {said}"):
        load(as_csv(people().assign(years=change(ages)), tmp_path))
    assert "years" in (load(as_csv(people().assign(years=ages), tmp_path)).columns or ())
    few = load(people().assign(children=np.resize(["0", "1", "2", "3+"], N)))
    assert "children=3+" in (few.columns or ())


def bad(text: str, name: str = "a.csv") -> Callable[[Path], Any]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return write


@pytest.mark.parametrize(
    ("source", "options", "error", "said"),
    [
        (lambda p: people(), {"labels": "sort"}, ValueError, r"no column 'sort'\. Its columns: 'age', 'height'"),
        (lambda p: people(), {"drop": ["sort"]}, ValueError, r"no column 'sort'"),
        (lambda p: people(), {"labels": "height"}, TypeError, r"'height' holds float64, but labels are integers or"),
        (lambda p: people(), {"labels": "kind", "drop": ["kind"]}, ValueError, "cannot be both"),
        (lambda p: people()[["kind"]], {"labels": "kind"}, ValueError, "no column left to learn from"),
        (lambda p: people().assign(born=pd.Timestamp("2001")), {}, TypeError, r"'born' holds datetime64.*leave it out"),
        (lambda p: people().assign(parts=[[1]] * N), {}, TypeError, r"'parts' holds list"),
        (lambda p: people().assign(age=[np.nan, *[1.0] * (N - 1)]), {}, ValueError, r"nan at index \(0, 0\).*: 'age'"),
        (lambda p: people().assign(colour=[None, *"r" * (N - 1)]), {}, ValueError, r"nan.*'colour=r'"),
        (lambda p: people().assign(kind=[None, *"r" * (N - 1)]), {"labels": "kind"}, ValueError, "no value in row 0"),
        (lambda p: people().assign(age=2**62 + np.arange(N) // 2), {}, ValueError, r"cannot hold feature 'age'"),
        (lambda p: people().assign(age=1.7e9 + np.arange(N) / 9), {}, ValueError, r"cannot hold feature 'age'"),
        (bad("a,b\n1,2\n1,2,3\n"), {}, ValueError, r"Cannot read a table from .*a\.csv: .*line 3, saw 3"),
        (bad("a,b\n1,2,3\n1,2,3\n"), {}, ValueError, r"Cannot read a table from .*a\.csv: Length of header"),
        (bad("a,a\n1,2\n"), {}, ValueError, r"several columns named 'a'"),
        (bad("a;b\n1,5;2\n"), {}, ValueError, r"not separated by commas: its first line is 'a;b'"),
        (bad("\n"), {}, ValueError, "is empty"),
        (bad("PAR1", "a.parquet"), {}, ValueError, r"Cannot read a table from .*a\.parquet"),
        (lambda p: p / "b.csv", {}, FileNotFoundError, r"No file .*b\.csv"),
        (lambda p: np.zeros((5, 2)), {"labels": "y"}, ValueError, "labels='y' is for tables with column names only"),
        (lambda p: "digits", {"drop": ["y"]}, ValueError, r"drop=\('y',\) is for tables with column names only"),
        (lambda p: [[1.0]], {}, TypeError, "Data must be an array, a tensor.*got list"),
    ],
)
def test_wrong_tables(
    tmp_path: Path, source: Callable[[Path], Any], options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        load(source(tmp_path), **options)


def test_an_array_for_a_model_of_a_table() -> None:
    trained = load(people(), labels="kind")
    with pytest.warns(UserWarning, match="has no column names: its features are taken in the order of the model's"):
        assert torch.equal(load(trained.train.numpy(), like=trained.preparation).rows().x, trained.train)
    with pytest.raises(ValueError, match=r"has the columns 'colour', 'smokes'.*without column names"):
        load(people(), labels="kind", like=load(np.random.default_rng(0).normal(size=(N, 4))).preparation)


def test_fit_takes_a_frame_and_owns_its_columns(tmp_path: Path) -> None:
    frame = people().drop(columns="kind")
    model, other = gae.ppca((7,), latent=2), gae.ppca((7,), latent=2)
    gae.fit(model, frame, progress=False)
    x = torch.from_numpy(expected(people()))
    gae.fit(other, x, progress=False)
    torch.testing.assert_close(model.log_evidence(x).log_p, other.log_evidence(x).log_p)
    again = gae.load(model.save(tmp_path / "model"))
    assert again.preparation == model.preparation and again.preparation is not None
    assert torch.equal(load(frame[frame.columns[::-1]], like=again.preparation).rows().x, x)
    with pytest.raises(ValueError, match="lacks 'age'"):
        gae.fit(model, frame.drop(columns="age"), progress=False)


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match=r"A table needs pandas: pip install 'gae\[tables\]'"):
        load(bad("a\n1\n")(tmp_path))


def test_notes_are_those_of_the_data_set() -> None:
    assert isinstance(load(people(), labels="kind"), Dataset)
    assert load(people(), drop="kind").preparation == load(people(), drop=["kind"]).preparation
    assert load(people(), drop=["kind"]).notes == ("one-hot columns: colour (3), smokes (2)", "left out: kind")
