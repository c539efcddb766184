"""Examples come in from text files, folders of images and saved data sets; what is not understood says why."""

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from rdrop_analysis.data.examples import Data, named_tensors
from rdrop_analysis.data.padding import check_memory, padded_batches
from rdrop_analysis.data.tables import Table, as_data
from rdrop_analysis.datasets import load_data
from rdrop_analysis.errors import DataError, UsageError

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(6, 3)).round(4)
Y = [0, 1, 2, 0, 1, 2]


@pytest.fixture(autouse=True)
def no_progress_bars() -> None:
    """Data sets are saved here without a word."""
    datasets.disable_progress_bars()


def table(value: object, limit: int | None = None) -> dict[str, list[Any]]:
    """The columns of what is read as a table."""
    found = load_data(value, limit)
    assert isinstance(found, Table)
    return {name: list(values) for name, values in found.columns.items()}


def numbers(value: object, limit: int | None = None) -> tuple[Any, Tensor | None, Data]:
    """Inputs and labels of what is read as one piece of data."""
    found = load_data(value, limit)
    assert isinstance(found, Data)
    (piece,) = found.pieces
    return piece.inputs, piece.labels, found


def one_line(value: object, message: str, error: type[Exception] = DataError) -> None:
    """Check that loading fails with a message of one line."""
    with pytest.raises(error) as caught:
        load_data(value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---- csv and tsv


def test_texts_are_kept_as_they_stand(tmp_path: Path) -> None:
    content = '\ufefftext,label\n"a, ""b""\nc",1\nNA,0\nnull,2\n007,1\n1e5,0\n'
    found = table(written(tmp_path / "d.csv", content))
    assert found == {"text": ['a, "b"\nc', "NA", "null", "007", "1e5"], "label": [1, 0, 2, 1, 0]}
    tabs = written(tmp_path / "d.TSV", "Sentence\tCategory\na, b\tx\nc\ty\n")
    assert table(tabs) == {"Sentence": ["a, b", "c"], "Category": ["x", "y"]}


def test_labels_that_are_missing_do_not_make_the_others_fractions(tmp_path: Path) -> None:
    assert table(written(tmp_path / "d.csv", "text,label\na,1\nb,\nc\nd,2\n"))["label"] == [1, None, None, 2]
    assert table(written(tmp_path / "e.csv", "text,label\na,x\nb,\n"))["label"] == ["x", None]
    assert table(written(tmp_path / "f.csv", "text,score\na,0.5\nb,\n"))["score"] == [0.5, None]


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    broken = {".csv": "text,label\na,1\nb,2\n" + '"' * 300_001, ".jsonl": '{"text": "a"}\n{"text": "b"}\n{{{\n'}
    for suffix, content in broken.items():
        path = written(tmp_path / f"d{suffix}", content)
        assert table(path, 2)["text"] == ["a", "b"]
        one_line(path, "d.csv cannot be read as a table" if suffix == ".csv" else "line 3 is not JSON")


def test_a_table_of_numbers_is_features(tmp_path: Path) -> None:
    frame = pd.DataFrame(X, columns=["length", "width", "text size"])
    for name, column, dtype in (("label", Y, torch.int64), ("y", X[:, 0].tolist(), torch.float32)):
        frame.assign(**{name: column}).to_csv(tmp_path / "d.csv")
        inputs, labels, data = numbers(tmp_path / "d.csv")
        assert torch.equal(inputs, torch.tensor(X, dtype=torch.float32))
        assert labels is not None
        assert torch.equal(labels, torch.tensor(column, dtype=dtype))
        assert data.notes == {"columns_unused": "columns not used: Unnamed: 0"}
    frame.to_csv(tmp_path / "d.csv", index=False)
    inputs, labels, data = numbers(tmp_path / "d.csv", 4)
    assert torch.equal(inputs, torch.tensor(X[:4], dtype=torch.float32))
    assert labels is None
    assert data.notes == {}


def test_names_of_classes_of_a_table_of_numbers_are_those_of_the_whole_file(tmp_path: Path) -> None:
    frame = pd.DataFrame(X[:, :2], columns=["a", "b"]).assign(target=["z", "y", "x"] * 2)
    frame.to_csv(tmp_path / "d.csv", index=False)
    _, labels, data = numbers(tmp_path / "d.csv", 2)
    assert labels is not None
    assert labels.tolist() == [2, 1]
    assert data.class_names == ["x", "y", "z"]
    assert list(data.notes) == ["labels_numbered"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("text,label\n", "the data set is empty"),
        ("text,label\na,1,9\nb,1,3\n", "line 2 has 3 fields, the first line 2: put texts with commas in quotes"),
        ("text,label\na,1\nb,1,3\n", "line 3 has 3 fields, the first line 2"),
        ('text,label\n"a\nb",1\n\nc,1,3\n', "line 5 has 3 fields, the first line 2"),
        ('text,label\n"a,1\nb,2\n', "the quote that opens in line 2 does not close"),
        ('text,label\n"a\nb",1\n"' + "c,1\n" * 50_000, "the quote that opens in line 4 does not close"),
        (b"text,label\ncaf\xe9,1\n", "is not UTF-8 text (line 2): save it as UTF-8"),
        ("text,label\na\0b,1\n".encode("utf-16"), "it seems, UTF-16 text: save it as UTF-8"),
        ("text,label\na,1\n".encode("utf-16-be"), "it seems, UTF-16 text: save it as UTF-8"),
        (
            "good,1\nbad,0\n",
            "the first line must name the columns, as in text,label: cannot tell what",
        ),
        ("good,1,1\nbad,0,0\n", "has no header: the first line must name the columns"),
        ("text,label, text\na,1,b\n", "two columns are called text: keep one of them"),
        ("text,label,Text\na,1,b\n", "two columns are called text: keep one of them"),
        ("0.5,1.5,2\n0.25,1,0\n", "has no header"),
        ("what,why\na,b\n", "cannot tell what the columns hold (what, why): name the input text, sentence"),
        ("a,b,label\n1,2,0\n1,,1\n", "b is missing at line 3"),
        ("a,b,label\n1,2,0\n1,x,1\n", "cannot tell what the columns hold (a, b, label)"),
        ("a,b,label\n1,2,0\n1,3,\n", "line 3 has no label: write -100"),
        ("\x1b[31m,b\na,b\n", "cannot tell what the columns hold (\\x1b[31m, b)"),
    ],
)
def test_a_csv_that_cannot_be_used_says_why(tmp_path: Path, content: str | bytes, message: str) -> None:
    one_line(written(tmp_path / "d.csv", content), message)


def test_labels_are_of_one_kind_however_late_another_appears(tmp_path: Path) -> None:
    path = written(tmp_path / "d.csv", "text,label\n" + "good,1\n" * 300_000 + "bad,many\n")
    assert set(table(path)["label"]) == {"1", "many"}


def test_a_byte_that_is_wrong_late_in_a_file_is_found(tmp_path: Path) -> None:
    content = b"text,label\n" + b"good,1\n" * 300_000 + b"caf\xe9,1\n"
    one_line(written(tmp_path / "d.csv", content), "is not UTF-8 text (line 300002)")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ";"), (".csv", "\t"), (".csv", "|"), (".tsv", ",")])
def test_another_separator_is_seen_in_the_first_line_and_said(
    tmp_path: Path, suffix: str, separator: str, end: str
) -> None:
    lines = [["text", "label"], ["a: b", "1"], ["c. d", "0"]]
    path = written(tmp_path / f"d{suffix}", "".join(separator.join(line) + end for line in lines))
    found = load_data(path)
    assert isinstance(found, Table)
    assert table(path) == {"text": ["a: b", "c. d"], "label": [1, 0]}
    names = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
    assert found.notes == {"separator": f"fields are separated by {names[separator]}"}
    assert list(found.names("label", None).every()) == [1, 0]


def test_a_separator_in_quotes_or_in_texts_is_none(tmp_path: Path) -> None:
    for content in ("text\na;b\n", '"a;b",text\n1,a;b\n', "text,label\na;b,1;2\n"):
        found = load_data(written(tmp_path / "d.csv", content))
        assert isinstance(found, Table)
        assert list(found.columns["text"]) in (["a;b"], ["a"])
        assert found.notes == {}
    inputs, _, data = numbers(written(tmp_path / "e.csv", "a;b;\n1.5;2;\n"))
    assert inputs.tolist() == [[1.5, 2.0]]
    assert list(data.notes) == ["separator"]


def test_places_are_lines_of_the_file(tmp_path: Path) -> None:
    content = '\ufefftext,label\r\n"a\r\nb",1\r\n\r\n  \r\n"",2\r\nd,0\r\n'
    for name, value, places in (
        ("d.csv", content, ["line 2", "line 6", "line 7"]),
        ("d.jsonl", '{"text": "a"}\n\n{"text": "b"}\n', ["line 1", "line 3"]),
        ("d.json", '[{"text": "a"},\n\n{"text": "b"}]\n', ["example 0", "example 1"]),
        ("e.csv", "text,label\n" + "x" * 1_000_000 + ",1\ny,0\n", ["example 0", "example 1"]),
    ):
        path = written(tmp_path / name, value)
        for limit in (None, 2):
            found = load_data(path, limit)
            assert isinstance(found, Table)
            assert [found.place(index) for index in range(found.n_examples)] == places[:limit]
            assert found.only([1]).place(0) == found.only([0, 1]).head(2).place(1) == places[1]


def test_lines_of_a_file_that_has_gone_are_not_known(tmp_path: Path) -> None:
    path = written(tmp_path / "d.csv", "text,label\na,1\nb,0\n")
    found = load_data(path)
    path.unlink()
    assert isinstance(found, Table)
    assert found.place(1) == "example 1"


def test_a_frame_with_a_name_twice_is_refused() -> None:
    one_line(pd.DataFrame([["a", "b"]], columns=["text", "text"]), "two columns are called text")


# ---- json and lines of text


def test_json_lines_and_lists(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b\n", "label": 0, "id": 7}]
    expected = {"text": ["a", "b\n"], "label": [1, 0], "id": [None, 7]}
    assert table(written(tmp_path / "d.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")) == expected
    assert table(written(tmp_path / "d.json", "\n " + json.dumps(rows, indent=1))) == expected
    assert table(written(tmp_path / "e.json", "\ufeff" + json.dumps(rows[0]))) == {"text": ["a"], "label": [1]}
    assert table(tmp_path / "d.json", 1) == {"text": ["a"], "label": [1]}


def test_arguments_of_forward_in_json_lines(tmp_path: Path) -> None:
    rows = [
        {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [1, -100, 2], "text": "a b c"},
        {"input_ids": [8], "attention_mask": [1], "labels": [0], "text": "d"},
    ]
    inputs, labels, data = numbers(written(tmp_path / "d.jsonl", "\n".join(map(json.dumps, rows))))
    assert {name: value.tolist() for name, value in inputs.items()} == {
        "input_ids": [[5, 6, 7], [8, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }
    assert labels is not None
    assert labels.tolist() == [[1, -100, 2], [0, -100, -100]]
    assert data.texts == ["a b c", "d"]
    lone = [{"inputs": row, "y": label} for row, label in zip(X.tolist(), Y, strict=True)]
    inputs, labels, _ = numbers(written(tmp_path / "e.jsonl", "\n".join(map(json.dumps, lone))))
    assert torch.equal(inputs, torch.tensor(X, dtype=torch.float32))
    assert labels is not None
    assert labels.tolist() == Y


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the data set is empty"),
        ('{"text": "a"}\n{"text": ', "line 2 is not JSON"),
        ('{"text": "a"}\n[1]\n', "line 2 is not an object"),
        ('[{"text": "a"}, 3]', "item 2 is not an object"),
        ("[" * 100_000, "is not JSON"),
        ('{"a":' * 100_000, "line 1 is not JSON"),
        (b'{"text": "caf\xe9"}', "is not UTF-8"),
        ('{"what": "a"}', "cannot tell what the columns hold (what)"),
        ('{"input_ids": [1, "a"]}', "input_ids is not made of numbers"),
        ('{"input_ids": [1, 2]}\n{"n": 1}', "input_ids is not made of numbers"),
        ('{"x": [1.0, NaN]}', "inputs is NaN at example 0"),
        ("{}\n{}", "the data set is empty"),
        ('{"x": [1], "label": 99999999999999999999}', "label 99999999999999999999 at line 1 is no class"),
        ('{"x": [99999999999999999999]}', "x is not made of numbers"),
        ('{"a": 1' + "0" * 400 + "}", "a has a number that is too large"),
    ],
)
def test_json_that_cannot_be_used_says_why(tmp_path: Path, content: str | bytes, message: str) -> None:
    one_line(written(tmp_path / "d.jsonl", content), message)


def test_lines_of_text_are_examples(tmp_path: Path) -> None:
    assert table(written(tmp_path / "d.txt", "one line\n\n  another \r\n")) == {"text": ["one line", "another"]}
    assert table(tmp_path / "d.txt", 1) == {"text": ["one line"]}
    one_line(written(tmp_path / "e.txt", "\n"), "the data set is empty")


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "d.json", "d.txt"])
def test_files_that_are_not_there_or_are_folders(tmp_path: Path, name: str) -> None:
    one_line(tmp_path / name, "there is no such file")
    (tmp_path / name).mkdir()
    one_line(tmp_path / name, "Is a directory")


# ---- from Python


def test_raw_examples_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"text": ["a", "b"], "label": [1, 0]}
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    frame = pd.DataFrame(rows)
    for value in (rows, frame, datasets.Dataset.from_list(rows), (["a", "b"], [1, 0]), (["a", "b"], np.array([1, 0]))):
        assert table(value) == expected
        assert table(value, 1) == {"text": ["a"], "label": [1]}
    assert table(["a", "b"]) == {"text": ["a", "b"]}
    one_line((["a", "b"], [1]), "there are 2 texts but 1 labels")
    monkeypatch.chdir(tmp_path)
    written(Path("mine.py"), "def texts():\n    return ['a', 'b'], [1, 0]\n")
    assert table("mine.py:texts") == expected
    assert load_data("mine.py:texts").source == "mine.py:texts"


# ---- folders of images


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)


def test_sub_folders_are_classes_and_take_turns(tmp_path: Path) -> None:
    pictures(tmp_path, "dog/2.png", "dog/1.png", "dog/deep/3.jpg", "cat/1.PNG", "cat/.hidden.png", ".git/a.png")
    written(tmp_path / "dog" / "notes.txt", "no image")
    (tmp_path / "empty").mkdir()
    found = table(tmp_path)
    assert [path.name for path in found["image"]] == ["1.PNG", "1.png", "2.png", "3.jpg"]
    assert found["label"] == ["cat", "dog", "dog", "dog"]
    limited = load_data(tmp_path, 1)
    assert isinstance(limited, Table)
    assert list(limited.names("label", None).every()) == ["cat", "dog"]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    pictures(tmp_path, "b.png", "a.jpg")
    assert [path.name for path in table(tmp_path)["image"]] == ["a.jpg", "b.png"]
    assert list(table(tmp_path)) == ["image"]


def test_splits_of_a_folder(tmp_path: Path) -> None:
    pictures(tmp_path, "train/cat/1.png", "val/cat/2.png", "val/dog/3.png")
    assert table(tmp_path)["label"] == ["cat", "dog"]
    assert [path.name for path in table(f"{tmp_path}:train")["image"]] == ["1.png"]
    one_line(f"{tmp_path}:test", "has no folder 'test': there are train, val")


def test_a_folder_without_images(tmp_path: Path) -> None:
    one_line(tmp_path, "holds no images")
    one_line(tmp_path / "none", "a folder that is there")


# ---- data sets saved by `datasets`


def saved(folder: Path, value: Any) -> Path:
    value.save_to_disk(folder)
    return folder


def test_a_saved_data_set_of_texts_keeps_its_names(tmp_path: Path) -> None:
    features = datasets.Features(
        {"Text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos", "none"])}
    )
    data = datasets.Dataset.from_dict({"Text": ["a", "b", "c"], "label": [1, 0, 1]}, features=features)
    found = load_data(saved(tmp_path / "d", data))
    assert isinstance(found, Table)
    assert (list(found.columns["Text"]), list(found.columns["label"])) == (["a", "b", "c"], [1, 0, 1])
    assert found.own_names == {"label": ["neg", "pos", "none"]}
    assert table(tmp_path / "d", 2)["Text"] == ["a", "b"]
    one_line(f"{tmp_path / 'd'}:test", "has no splits: leave out :test")


def test_a_saved_data_set_of_numbers_is_data(tmp_path: Path) -> None:
    ids = [[5, 6, 7], [8], [9, 10]]
    columns = {
        "input_ids": ids,
        "attention_mask": [[1] * len(row) for row in ids],
        "label": [1, 0, 1],
        "idx": [0, 1, 2],
    }
    inputs, labels, data = numbers(saved(tmp_path / "d", datasets.Dataset.from_dict(columns)))
    assert inputs["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0], [9, 10, 0]]
    assert inputs["attention_mask"].sum(1).tolist() == [3, 1, 2]
    assert labels is not None
    assert labels.tolist() == [1, 0, 1]
    assert data.notes == {"columns_unused": "columns not used: idx"}
    pixels = GENERATOR.normal(size=(4, 3, 2, 2)).astype(np.float32)
    features = datasets.Features({"pixel_values": datasets.Array3D((3, 2, 2), "float32")})
    inputs, labels, _ = numbers(
        saved(tmp_path / "e", datasets.Dataset.from_dict({"pixel_values": pixels}, features=features))
    )
    assert torch.equal(inputs["pixel_values"], torch.tensor(pixels))
    assert labels is None


def test_a_saved_data_set_of_images_is_not_opened_yet(tmp_path: Path) -> None:
    images = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    found = table(saved(tmp_path / "d", datasets.Dataset.from_dict({"image": images, "label": [0, 1]})))
    assert all(image["bytes"].startswith(b"\x89PNG") for image in found["image"])


def test_a_parquet_file_keeps_the_names_of_classes(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    path = tmp_path / "d.parquet"
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(path)
    found = load_data(path)
    assert isinstance(found, Table)
    assert found.own_names == {"label": ["neg", "pos"]}
    assert table(path, 1) == {"text": ["a"], "label": [1]}
    pd.DataFrame({"text": ["a"], "label": ["x"]}).to_parquet(path)
    assert table(path) == {"text": ["a"], "label": ["x"]}
    path.write_bytes(path.read_bytes()[:-9])
    one_line(path, f"cannot read {path}")
    one_line(tmp_path / "e.parquet", "there is no such file")


def test_splits_of_a_saved_data_set(tmp_path: Path) -> None:
    parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test", "validation")}
    folder = saved(tmp_path / "d", datasets.DatasetDict(parts))
    assert table(folder)["text"] == ["test"]
    assert table(f"{folder}:train")["text"] == ["train"]
    one_line(f"{folder}:dev", "has no split 'dev': name one of train, test, validation, as in ")
    del parts["test"]
    assert table(saved(tmp_path / "e", datasets.DatasetDict(parts)))["text"] == ["validation"]
    del parts["validation"]
    one_line(saved(tmp_path / "f", datasets.DatasetDict(parts)), "has no test or validation split: name one of train")


def test_a_damaged_data_set_and_one_that_would_run_code(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d", datasets.Dataset.from_dict({"text": ["a"]}))
    (arrow,) = folder.glob("*.arrow")
    whole = arrow.read_bytes()
    for content in (b"", whole[: len(whole) // 2], pickle.dumps(print)):
        arrow.write_bytes(content)
        one_line(folder, f"cannot read the data set in {folder}")
    arrow.unlink()
    one_line(folder, "cannot read the data set")
    arrow.write_bytes(whole)
    written(folder / "d.py", "raise SystemExit('code was run')")
    assert table(folder)["text"] == ["a"]
    written(folder / "state.json", "{")
    one_line(folder, "cannot read the data set")


def test_without_datasets_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "d", datasets.Dataset.from_dict({"text": ["a"]}))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    one_line(folder, "pip install 'rdrop-analysis[hf]'", UsageError)


# ---- the checkpoint's order of classes


def test_numbers_with_names_follow_the_checkpoint(tmp_path: Path) -> None:
    features = datasets.Features(
        {"x": datasets.List(datasets.Value("float32")), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    data = datasets.Dataset.from_dict({"x": X.tolist(), "label": Y}, features=features)
    found = load_data(saved(tmp_path / "d", data))
    prepared = as_data(found, None, None, ["C", "x", "A", "B"])
    labels = prepared.pieces[0].labels
    assert labels is not None
    assert labels.tolist() == [[2, 3, 0][label] for label in Y]
    assert (prepared.class_names, prepared.notes) == (["C", "x", "A", "B"], {})
    other = as_data(found, None, None, ["one", "two", "three"])
    assert other.pieces[0].labels is not None
    assert other.pieces[0].labels.tolist() == Y
    assert "classes are matched by number" in other.notes["labels_by_number"]


# ---- padding


def test_without_a_mask_nothing_is_padded() -> None:
    rows = [{"input_ids": [1] * length, "labels": length} for length in (2, 2, 3, 2)]
    pieces = padded_batches(rows)
    shapes = [(piece.start, *named_tensors(piece.inputs)["input_ids"].shape) for piece in pieces]
    assert shapes == [(0, 2, 2), (2, 1, 3), (3, 1, 2)]
    assert [label for piece in pieces if piece.labels is not None for label in piece.labels] == [2, 2, 3, 2]


def test_targets_a_token_are_padded_with_what_is_not_known() -> None:
    rows = [{"input_ids": [1, 2], "attention_mask": [1, 1], "labels": [0.5, 1.5]}]
    rows.append({"input_ids": [3], "attention_mask": [1], "labels": [2.5]})
    (piece,) = padded_batches(rows, pad_id=9)
    assert named_tensors(piece.inputs)["input_ids"].tolist() == [[1, 2], [3, 9]]
    assert piece.labels is not None
    assert piece.labels.nan_to_num(-1).tolist() == [[0.5, 1.5], [2.5, -1]]


def test_inputs_that_do_not_fit_into_memory_are_refused() -> None:
    check_memory(2**20)
    with pytest.raises(DataError, match=r"the inputs take 1048576 GiB of \d+: use fewer with --limit"):
        check_memory(2**50)


def test_shapes_that_padding_cannot_mend() -> None:
    rows = [{"pixel_values": np.zeros((3, side, side)), "attention_mask": [1]} for side in (4, 5)]
    with pytest.raises(DataError, match=r"pixel_values has several shapes: \[3, 4, 4\] and others"):
        padded_batches(rows)
