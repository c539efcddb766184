"""Data come in as they are, in one order, from every place they may be; what cannot be used says why."""

import gzip
import io
import zipfile
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

from rdrop_analysis import datasets
from rdrop_analysis.data import builtin as builtin_data
from rdrop_analysis.data.batches import batch_from, joined
from rdrop_analysis.data.examples import Batch, Data, check_labels, with_whole_labels
from rdrop_analysis.datasets import load_data
from rdrop_analysis.errors import DataError, UnsafeFileError, UsageError

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(7, 3, generator=GENERATOR)
Y = torch.tensor([0, 1, 2, 0, 1, 2, -100])


def load(spec: object, limit: int | None = None) -> Data:
    """Return what is read, which has to be arrays."""
    data = load_data(spec, limit)
    assert isinstance(data, Data)
    return data


def content(data: Data) -> tuple[Any, Tensor | None]:
    """Return the inputs and labels of data that are in one piece."""
    (piece,) = data.pieces
    return piece.inputs, piece.labels


def equal(inputs: Any, expected: Any) -> bool:
    """Tell whether inputs have the same structure, types and values."""
    if isinstance(expected, Tensor):
        return isinstance(inputs, Tensor) and inputs.dtype == expected.dtype and torch.equal(inputs, expected)
    if isinstance(expected, dict):
        return inputs.keys() == expected.keys() and all(equal(inputs[name], expected[name]) for name in expected)
    return len(inputs) == len(expected) and all(map(equal, inputs, expected))


def one_line(spec: object, message: str, error: type[Exception] = DataError) -> None:
    """Check that loading fails with a message of one line."""
    with pytest.raises(error) as caught:
        load_data(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- from Python


@pytest.mark.parametrize(
    ("value", "inputs", "labels"),
    [
        ((X, Y), X, Y),
        ((X.numpy(), Y.numpy()), X, Y),
        ((X, Y.tolist()), X, Y),
        ((X, Y.to(torch.float32)), X, Y.to(torch.float32)),
        ((X, Y.to(torch.float64).numpy()), X, Y.to(torch.float32)),
        ((X, (Y / 2).tolist()), X, Y / 2),
        ((X, torch.full((7,), torch.inf).log().sin()), X, torch.full((7,), torch.nan)),
        ((X, Y > 0), X, (Y > 0).to(torch.int64)),
        ((X, torch.stack([Y > 0, Y < 1], dim=1).to(torch.float32)), X, torch.stack([Y > 0, Y < 1], dim=1).float()),
        ({"x": X, "label": Y}, X, Y),
        ({"ids": Y.abs().tolist(), "labels": Y.tolist()}, {"ids": Y.abs()}, Y),
        (BatchEncoding({"ids": X.numpy(), "mask": Y > 0, "labels": Y}), {"ids": X, "mask": Y > 0}, Y),
        ((X, None), X, None),
        (X, X, None),
        (X.numpy(), X, None),
        (((X, X + 1), Y), (X, X + 1), Y),
        (({"a": X, "b": Y.abs()}, Y), {"a": X, "b": Y.abs()}, Y),
        ({"inputs": X, "labels": Y}, X, Y),
        ({"x": X, "y": Y}, X, Y),
        ({"x": X}, X, None),
        ({"input_ids": Y.abs(), "labels": Y}, {"input_ids": Y.abs()}, Y),
        ({"x": X, "mask": Y > 0, "y": Y}, {"x": X, "mask": Y > 0}, Y),
        (UserDict({"a": X, "labels": Y}), {"a": X}, Y),
        ([(X[:4], Y[:4]), (X[4:], Y[4:])], X, Y),
        ([[X[:4], Y[:4]], [X[4:], Y[4:]]], X, Y),
        ([X[:4], X[4:5], X[5:]], X, None),
        ([{"a": X[:6], "y": Y[:6]}, {"a": X[6:], "y": Y[6:]}], {"a": X}, Y),
        ([(X, Y), (X[:0], Y[:0])], X, Y),
        (((X[i : i + 2], Y[i : i + 2]) for i in range(0, 7, 2)), X, Y),
        (DataLoader(TensorDataset(X, Y), batch_size=3), X, Y),
        (DataLoader(TensorDataset(X), batch_size=3), X, None),
        ((X, torch.stack([Y, Y], dim=1)), X, torch.stack([Y, Y], dim=1)),
        ((X.requires_grad_(False) * 1, Y), X, Y),
    ],
)
def test_every_form_of_data_is_understood(value: object, inputs: object, labels: Tensor | None) -> None:
    data = load(value)
    found_inputs, found_labels = content(data)
    assert equal(found_inputs, inputs)
    assert (found_labels is None) == (labels is None) == (not data.has_labels)
    if labels is not None and found_labels is not None:
        torch.testing.assert_close(found_labels, labels, rtol=0, atol=0, equal_nan=True)
    assert data.n_examples == 7
    assert data.source == "in memory"
    assert load(data) is data


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.zeros((2, 3)), torch.float32),
        (np.zeros((2, 3), dtype=np.float32), torch.float32),
        (np.zeros((2, 3), dtype=np.float16), torch.float16),
        (np.zeros((2, 3), dtype=">f8"), torch.float32),
        (np.zeros((2, 3), dtype=">i2"), torch.int64),
        (np.zeros((2, 3), dtype=np.uint8), torch.int64),
        (np.zeros((2, 3), dtype=np.uint32), torch.int64),
        (np.zeros((2, 3), dtype=bool), torch.bool),
        (np.zeros((4, 3))[::-2], torch.float32),
        (torch.zeros(2, 3, dtype=torch.float64), torch.float64),
        (torch.zeros(2, 3, dtype=torch.bfloat16), torch.bfloat16),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.int64),
        (torch.zeros(2, 3, dtype=torch.int32), torch.int64),
    ],
)
def test_types_are_converted_as_documented(array: object, dtype: torch.dtype) -> None:
    inputs, _ = content(load(array))
    assert inputs.dtype == dtype
    assert inputs.shape == (2, 3)


def test_values_survive_the_conversion_of_byte_order_and_strides() -> None:
    numbers = np.arange(12).reshape(4, 3)
    for array in (numbers.astype(">i4"), numbers.astype(">f8"), np.asfortranarray(numbers), numbers.astype("u1")):
        inputs, _ = content(load(array[::-1]))
        assert inputs.tolist() == numbers[::-1].tolist()


def test_later_changes_to_an_array_do_not_reach_the_data() -> None:
    array = np.zeros((2, 2), dtype=np.float32)
    data = load(array)
    array[:] = 1
    assert content(data)[0].sum() == 0


def test_a_read_only_array_makes_no_warning() -> None:
    array = np.zeros((2, 2), dtype=np.float32)
    array.setflags(write=False)
    assert load(array).n_examples == 2


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_data_loader_is_read_once_and_leaves_the_global_random_state_alone(shuffle: bool) -> None:
    state = torch.get_rng_state()
    data = load(DataLoader(TensorDataset(X, Y), batch_size=2, shuffle=shuffle))
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (torch.cat([batch.inputs for batch in data.batches(3)]) for _ in range(2))  # type: ignore[misc]  # tensors here
    assert torch.equal(first, second)
    assert torch.equal(first.sort(dim=0).values, X.sort(dim=0).values)


def test_data_loaders_of_mappings() -> None:
    examples = [{"ids": x, "labels": int(y)} for x, y in zip(X, Y, strict=True)]

    def encoded(batch: list[dict[str, Any]]) -> BatchEncoding:
        return BatchEncoding({"ids": torch.stack([e["ids"] for e in batch]), "label": [e["labels"] for e in batch]})

    for collate in (None, encoded, list):  # torch's own; Hugging Face's form; examples left as they are
        found, labels = content(load(DataLoader(examples, batch_size=2, collate_fn=collate)))  # type: ignore[arg-type]  # a list is a data set
        assert equal(found, {"ids": X})
        assert equal(labels, Y)


def test_examples_left_as_they_are_must_be_alike() -> None:
    for batch, message in (
        ([{"ids": X[0]}, {"mask": X[0]}], "do not all have the same names"),
        ([{"ids": X[0]}, {"ids": X[0, :2]}], "ids has several shapes in one batch: pad it"),
    ):
        one_line([batch], message)


def test_a_limit_stops_the_reading() -> None:
    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield X, Y

    data = load(endless(), limit=10)
    assert data.n_examples == 10
    assert torch.equal(content(data)[0], torch.cat([X, X[:3]]))
    assert load((X, Y), limit=100).n_examples == 7


# ---- Data


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_batches_cover_the_data_in_order(batch_size: int) -> None:
    batches = list(load(({"a": X, "b": X + 1}, Y)).batches(batch_size))
    assert [batch.start for batch in batches] == list(range(0, 7, batch_size))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert torch.equal(torch.cat([batch.inputs["b"] for batch in batches]), X + 1)  # type: ignore[index,call-overload]  # dicts here
    assert torch.equal(torch.cat([batch.labels for batch in batches if batch.labels is not None]), Y)


def test_batches_of_several_shapes_stay_apart_and_are_cut() -> None:
    short, long = torch.ones(3, 4, dtype=torch.int64), torch.ones(2, 6, dtype=torch.int64)
    data = load([{"ids": short, "labels": Y[:3]}, {"ids": long, "labels": Y[3:5]}])
    assert data.n_examples == 5
    shapes = [(batch.start, tuple(batch.inputs["ids"].shape)) for batch in data.batches(2)]  # type: ignore[index,call-overload]  # dicts here
    assert shapes == [(0, (2, 4)), (2, (1, 4)), (3, (2, 6))]
    assert data.example_input(4)["ids"].shape == (6,)  # type: ignore[index,call-overload]  # a dict here
    assert [len(piece) for piece in data.head(4).pieces] == [3, 1]
    assert [len(piece) for piece in data.head(3).pieces] == [3]


def test_the_fingerprint_depends_on_the_data_alone() -> None:
    whole = load((X, Y))
    assert whole.fingerprint == load([(X[:2], Y[:2]), (X[2:], Y[2:])]).fingerprint
    assert whole.fingerprint.startswith("sha256:")
    others = [
        (X + 1e-6, Y),
        (X.double(), Y),
        (X.reshape(7, 3, 1), Y),
        (X, Y.roll(1)),
        (X, None),
        ({"a": X}, Y),
        (X[:6], Y[:6]),
    ]
    assert len({whole.fingerprint, *(load(other).fingerprint for other in others)}) == len(others) + 1
    assert load((X.bfloat16(), Y)).fingerprint == load((X.bfloat16().clone(), Y)).fingerprint
    assert load((torch.zeros(3, 0), Y[:3])).fingerprint != load((torch.zeros(3, 0), Y[1:4])).fingerprint


def test_the_fingerprint_of_inputs_does_not_depend_on_labels() -> None:
    one = load((X, Y)).inputs_fingerprint
    assert one == load((X, Y.roll(1))).inputs_fingerprint == load(X).inputs_fingerprint == load(X).fingerprint
    assert one == load([(X[:2], Y[:2]), (X[2:], Y[2:])]).inputs_fingerprint
    assert len({one, *(load((other, Y)).inputs_fingerprint for other in (X + 1e-6, X.double(), {"a": X}))}) == 4


def test_head_and_example_input() -> None:
    data = Data("here", (Batch((X, X * 2), Y, 0),), texts=list("abcdefg"), image_shape=(3, 1))
    head = data.head(2)
    assert (head.n_examples, head.texts, head.image_shape, head.source) == (2, ["a", "b"], (3, 1), "here")
    assert data.head(100).n_examples == 7
    assert equal(data.example_input(3), (X[3], X[3] * 2))
    for index in (7, -1):
        with pytest.raises(IndexError, match=f"example {index} of 7"):
            data.example_input(index)
    with pytest.raises(DataError, match="at least 1, not 0"):
        data.head(0)
    with pytest.raises(DataError, match="at least 1, not 0"):
        next(data.batches(0))


def test_labels_out_of_range_are_named() -> None:
    check_labels(load((X, Y)), 3)
    check_labels(load(X), 1)
    with pytest.raises(DataError, match=r"^in memory: label 2 at example 2 is out of range for 2 classes$"):
        check_labels(load((X, Y)), 2)
    ragged = load([(X, Y), (torch.zeros(2, 4), torch.tensor([0, 12]))])
    with pytest.raises(DataError, match=r"^in memory: label 12 at example 8 is out of range for 10 classes$"):
        check_labels(ragged, 10)
    tokens = load((X, torch.stack([Y, Y + 100 * (Y == 2)], dim=1)))
    with pytest.raises(DataError, match=r"^in memory: label 102 at example 2 "):
        check_labels(tokens, 10)


def test_labels_that_start_at_one_are_recognised() -> None:
    hint = ": labels start at 1, subtract 1"
    for labels, n_classes, said in ((Y + 1, 3, True), (Y, 2, False), (Y + 1, 2, False), (Y + 2, 4, False)):
        given = labels.masked_fill(Y == -100, -100)
        with pytest.raises(DataError) as caught:
            check_labels(load((X, given)), n_classes)
        assert str(caught.value).endswith(hint) == said


# ---- what is refused


def nan_at(row: int) -> Tensor:
    inputs = X.clone()
    inputs[row, 1] = torch.nan
    return inputs


class NoIteration:
    """A value that is no data."""


def failing() -> Iterator[Tensor]:
    yield X
    raise RuntimeError("disk gone\nreally")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "the data set is empty"),
        ((X[:0], Y[:0]), "the data set is empty"),
        (X[:0], "the data set is empty"),
        ((X, Y[:5]), "there are 7 inputs but 5 labels"),
        (((X, X[:3]), Y), "the inputs differ in the number of examples: inputs[0] has 7, inputs[1] has 3"),
        ({"a": X, "b": X[:1]}, "a has 7, b has 1"),
        (((), Y), "there are none"),
        (({}, Y), "there are none"),
        ({"labels": Y}, "there are no inputs"),
        ({"x": X, "y": Y, "labels": Y}, "both labels and y"),
        (nan_at(4), "inputs is NaN at example 4"),
        ([X, {"ids": X}], "do not all have the same inputs"),
        ([X, nan_at(2)], "inputs is NaN at example 9"),
        ((X, X[:, 0].masked_fill(Y == 2, torch.inf)), "label inf at example 2"),
        ((X, Y.masked_fill(Y == 2, -1)), "label -1 at example 2: labels are 0, 1, ... or -100"),
        ((X, [[0, 1], [0]] * 3 + [[1]]), "labels are lists of several lengths"),
        ([(X, Y), (X, Y.float())], "the labels are integers in some batches and floating-point in others"),
        ({"ids": [[1, 2], [3]]}, "ids must be a tensor or an array, not list: pad it"),
        ({"ids": [X, X]}, "ids must be a tensor or an array, not list"),
        ({"x": X, "labels": Y, "y": Y}, "there are both labels and y"),
        (["text", 3], "inputs must be a tensor or an array, not str"),
        ((X, torch.zeros(7, 2, 2)), "labels have 3 dimensions"),
        ((X, torch.tensor(3)), "labels is a single number"),
        ((X, ["cat"] * 7), "labels holds <U3, not numbers"),
        (torch.tensor(1.0), "inputs is a single number"),
        (np.array(["a", "b"]), "inputs holds <U1, not numbers"),
        (np.array([None, 1]), "inputs holds object, not numbers"),
        (X.to(torch.complex64), "inputs is complex"),
        ((X, Y, Y), "a batch of 3 parts"),
        ([X, (X, Y)], "some batches have labels and some have none"),
        ([1, 2], "inputs must be a tensor or an array, not int"),
        (3, "a int is not data"),
        (None, "a NoneType is not data"),
        (NoIteration(), "a NoIteration is not data"),
        (failing(), "reading it failed: RuntimeError: disk gone"),
    ],
)
def test_what_cannot_be_used_says_why(value: object, message: str) -> None:
    one_line(value, message)


# ---- files


def save_npz(path: Path, arrays: dict[str, Tensor]) -> None:
    np.savez(path, **{name: tensor.numpy() for name, tensor in arrays.items()})  # type: ignore[arg-type]  # allow_pickle is no name here


FILE_KINDS: dict[str, Callable[[Path, dict[str, Tensor]], None]] = {
    ".npz": save_npz,
    ".pt": lambda path, arrays: torch.save(arrays, path),
    ".safetensors": lambda path, arrays: safetensors.torch.save_file(arrays, path),
}


@pytest.mark.parametrize("suffix", FILE_KINDS)
@pytest.mark.parametrize(
    ("arrays", "inputs"),
    [
        ({"inputs": X, "labels": Y}, X),
        ({"x": X, "y": Y}, X),
        ({"ids": Y.abs(), "mask": Y > 0, "labels": Y}, {"ids": Y.abs(), "mask": Y > 0}),
    ],
)
def test_files_hold_inputs_and_labels(tmp_path: Path, suffix: str, arrays: dict[str, Tensor], inputs: Any) -> None:
    path = tmp_path / f"data{suffix}"
    FILE_KINDS[suffix](path, arrays)
    for spec in (path, str(path)):
        data = load(spec)
        found, labels = content(data)
        assert equal(found, inputs)
        assert equal(labels, Y)
        assert data.source == str(path)
    assert load(path, limit=2).n_examples == 2
    assert data.fingerprint == load((inputs, Y)).fingerprint


def test_a_pt_file_may_hold_a_pair_or_batches(tmp_path: Path) -> None:
    for value in ((X, Y), [(X[:3], Y[:3]), (X[3:], Y[3:])]):
        torch.save(value, tmp_path / "d.pt")
        found, labels = content(load(tmp_path / "d.pt"))
        assert equal((found, labels), (X, Y))


@pytest.mark.parametrize("suffix", FILE_KINDS)
def test_a_file_cut_anywhere_is_a_data_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    FILE_KINDS[suffix](path, {"inputs": X, "labels": Y})
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 29), len(whole) - 1}:
        path.write_bytes(whole[:length])
        one_line(path, str(path))


@pytest.mark.parametrize("suffix", FILE_KINDS)
def test_files_that_are_not_there_or_not_data(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    one_line(path, "there is no such file")
    path.write_bytes(np.random.default_rng(0).bytes(3000))
    one_line(path, str(path))
    path.unlink()
    path.mkdir()
    one_line(path, "is a directory")


def test_an_npz_of_python_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", inputs=np.array([{"a": 1}, None], dtype=object))
    one_line(tmp_path / "d.npz", "inputs holds Python objects")


def test_an_npz_array_cannot_claim_more_than_it_has(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(12345, dtype=np.uint8))
    claimed = buffer.getvalue().replace(b"(12345,)", b"(99999,)")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("inputs.npy", claimed)
    one_line(tmp_path / "d.npz", "inputs declares more bytes than it has")


def test_a_pt_file_that_needs_code_is_refused(tmp_path: Path) -> None:
    torch.save(TensorDataset(X, Y), tmp_path / "d.pt")
    one_line(tmp_path / "d.pt", "torch.utils.data.dataset.TensorDataset", UnsafeFileError)


# ---- names and callables


def test_a_callable_may_return_anything_that_data_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import torch\n"
        "from rdrop_analysis.data.examples import Batch, Data\n"
        "def pair():\n    return torch.ones(3, 2), torch.arange(3)\n"
        "def batches():\n    for i in range(3):\n        yield torch.ones(1, 2), torch.tensor([i])\n"
        "def data():\n    return Data('x', (Batch(torch.ones(3, 2), torch.arange(3), 0),), texts=['a', 'b', 'c'])\n"
        "def nothing():\n    return None\n"
    )
    pair, batches, data = (load(f"mine.py:{name}") for name in ("pair", "batches", "data"))
    assert pair.fingerprint == batches.fingerprint == data.fingerprint
    assert (pair.source, data.source, data.texts) == ("mine.py:pair", "mine.py:data", ["a", "b", "c"])
    one_line("mine.py:nothing", "mine.py:nothing: a NoneType is not data")
    one_line("mine.py:absent", "there is no absent", UsageError)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean digits?"),
        ("cifar", "known are digits, digits:train, fashion-mnist, fashion-mnist:train"),
        ("digits:validation", "did you mean digits:train?"),
        (
            "table.xlsx",
            "a .npz, .pt or .safetensors file, a .csv, .tsv, .jsonl, .json, .txt or .parquet file, a folder",
        ),
        ("table.csv", "there is no such file"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(spec: str, message: str) -> None:
    one_line(spec, message)


def test_digits_are_split_once_and_for_all() -> None:
    test, train = load("digits"), load("digits:train")
    assert (test.n_examples, train.n_examples) == (450, 1347)
    inputs, labels = content(test)
    assert inputs.shape == (450, 64)
    assert (inputs.min(), inputs.max()) == (0, 1)
    assert inputs.dtype == torch.float32
    assert labels is not None
    assert labels.bincount().min() >= 40  # stratified: a tenth of 450 is 45
    assert (test.source, train.source) == ("digits", "digits:train")
    assert test.image_shape == (8, 8)
    assert test.class_names == list("0123456789")
    assert load("digits").fingerprint == test.fingerprint != train.fingerprint
    rows = {tuple(row) for row in inputs.tolist()} & {tuple(row) for row in content(train)[0].tolist()}
    assert rows == set()  # no picture is in both parts


# ---- Fashion-MNIST


def write_idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with five pictures in the place of Fashion-MNIST's test split."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, size=(5, 28, 28))
    write_idx(folder / "t10k-images-idx3-ubyte.gz", pixels)
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.arange(5))
    monkeypatch.setenv("RDROP_DATA_DIR", str(tmp_path))
    return folder


def test_fashion_mnist_is_read_from_idx_files(clothes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("fashion-mnist")
    inputs, labels = content(data)
    pixels = np.random.default_rng(0).integers(0, 256, size=(5, 1, 28, 28))
    assert torch.equal((inputs * 255).round().to(torch.int64), torch.tensor(pixels))
    assert equal(labels, torch.arange(5))
    assert data.image_shape == (28, 28)
    assert data.class_names is not None
    assert len(data.class_names) == 10
    monkeypatch.setenv("RDROP_DATA_DIR", str(clothes))
    assert load("fashion-mnist").fingerprint == data.fingerprint
    assert builtin_data.fashion_mnist("test", clothes).fingerprint == data.fingerprint


def test_fashion_mnist_that_is_not_there_says_how_to_get_it(clothes: Path) -> None:
    one_line("fashion-mnist:train", "install the Debian package dataset-fashion-mnist, or set RDROP_DATA_DIR")


def test_damaged_idx_files_are_data_errors(clothes: Path) -> None:
    images, labels = (clothes / f"t10k-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1"))
    write_idx(labels, np.arange(4))
    one_line("fashion-mnist", "5 images and 4 labels")
    write_idx(labels, np.zeros((5, 1)))
    one_line("fashion-mnist", "is not a whole idx file")
    labels.unlink()
    one_line("fashion-mnist", "missing or damaged")
    whole = images.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 4):
        images.write_bytes(whole[:length])
        one_line("fashion-mnist", str(images))
    images.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    one_line("fashion-mnist", "is not a whole idx file")


@pytest.mark.skipif(
    not (builtin_data.SYSTEM_DATA / "fashion-mnist").is_dir(), reason="needs the package dataset-fashion-mnist"
)
def test_the_real_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RDROP_DATA_DIR", raising=False)
    data = load("fashion-mnist")
    inputs, labels = content(data)
    assert inputs.shape == (10_000, 1, 28, 28)
    assert labels is not None
    assert labels.bincount().tolist() == [1000] * 10


def test_a_small_archive_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limit at a megabyte here, so that nobody has to write a gigabyte."""
    monkeypatch.setattr(datasets, "MAX_UNPACKED", 2**20)
    path = tmp_path / "zeros.npz"
    np.savez_compressed(path, inputs=np.zeros((1000, 1000)))
    with pytest.raises(DataError, match="unpacks to 0 GiB: save it again"):
        load_data(path)
    np.savez(path, inputs=np.zeros((1000, 1000)))
    assert load_data(path).n_examples == 1000


# ---- the parts


def test_whole_targets_may_be_classes() -> None:
    data = Data("here", (Batch(X, Y.float(), 0),))
    assert equal(content(with_whole_labels(data))[1], Y)
    assert with_whole_labels(Data("here", (Batch(X, Y, 0), Batch(X, None, 7)))).pieces[0].labels is Y
    for wrong, said in ((0.5, "0.5"), (-1.0, "-1.0"), (torch.nan, "nan")):
        labels = Y.float().index_fill(0, torch.tensor([3]), wrong)
        with pytest.raises(DataError, match=f"label {said} at example 3 is no class: classes are 0, 1"):
            with_whole_labels(Data("here", (Batch(X, labels, 0),)))


def test_targets_are_not_checked_as_classes() -> None:
    check_labels(Data("here", (Batch(X, X[:, 0] * 100, 0),)), 2)


def test_a_batch_keeps_its_start_and_joining_counts_on() -> None:
    parts = [batch_from((X[:3], Y[:3]), 0), batch_from((X[3:], Y[3:]), 3)]
    assert [part.start for part in parts] == [0, 3]
    (whole,) = joined(parts)
    assert (whole.start, len(whole)) == (0, 7)
    assert joined([]) == ()
