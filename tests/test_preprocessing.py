"""Raw examples go through a checkpoint's own tokenizer and image processor, built and saved here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from rdrop_analysis.data.batches import batch_from
from rdrop_analysis.data.examples import Data, check_labels
from rdrop_analysis.data.preprocessing import Preprocessor
from rdrop_analysis.data.tables import Table, as_data
from rdrop_analysis.datasets import load_data
from rdrop_analysis.errors import DataError, UnsafeFileError, UsageError

SENTENCES = ["the cat sat on the mat", "a dog ran unbelievably fast", "birds sing", "the dog sat"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
fast_tokenizer: Any = PreTrainedTokenizerFast  # its class is unannotated
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def wordpiece() -> Any:
    """A tokenizer of words and their pieces, as BERT's."""
    words = [*SPECIAL, *sorted({word for sentence in SENTENCES for word in sentence.split()} - {"unbelievably"})]
    vocabulary = {token: number for number, token in enumerate([*words, "un", "##believ", "##ably"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    return fast_tokenizer(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in names.items()},
    )


def bert(folder: Path, kind: type[Any] = BertForSequenceClassification, **settings: Any) -> Path:
    """A BERT of random weights with its tokenizer, saved in a folder."""
    tokenizer = wordpiece()
    kind(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=12, **SIZES, **settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def columns_of(data: Data) -> dict[str, Tensor]:
    """The inputs and labels of data in one piece."""
    (piece,) = data.pieces
    assert isinstance(piece.inputs, dict)
    return piece.inputs if piece.labels is None else {**piece.inputs, "labels": piece.labels}


def prepared(folder: Path, value: Any, task: str | None = None, class_names: list[str] | None = None) -> Data:
    return as_data(load_data(value), folder, task, class_names)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("bert"), num_labels=3)


# ---- texts


def test_texts_are_what_the_tokenizer_makes_of_them_one_by_one(classifier: Path) -> None:
    tokenizer = wordpiece()
    data = prepared(classifier, (SENTENCES, [2, 0, 1, 0]), "classification", ["a", "b", "c"])
    columns = columns_of(data)
    for index, text in enumerate(SENTENCES):
        ids = tokenizer(text)["input_ids"]
        mask = columns["attention_mask"][index].bool()
        assert columns["input_ids"][index][mask].tolist() == ids
        assert mask.sum() == len(ids)
        assert (columns["input_ids"][index][~mask] == tokenizer.pad_token_id).all()
    assert columns["labels"].tolist() == [2, 0, 1, 0]
    assert (data.texts, data.class_names, data.n_examples) == (SENTENCES, ["a", "b", "c"], 4)
    model: Any = BertForSequenceClassification.from_pretrained(classifier)
    model.eval()
    alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in SENTENCES])
    assert torch.allclose(model(**columns).logits, alone, atol=1e-6)


def test_nothing_reaches_the_terminal(classifier: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = vit(tmp_path / "vit")
    pictures(tmp_path / "d", cat=1)
    capfd.readouterr()
    prepared(classifier, ["the cat " * 20])
    prepared(classifier, TAGGED, "tokens", ["O", "B-X"])
    prepared(folder, tmp_path / "d")
    assert capfd.readouterr() == ("", "")


def test_pairs_of_texts_have_types(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("premise,hypothesis,label\nthe cat sat,a dog ran,1\nbirds,the mat,0\n")
    data = prepared(classifier, tmp_path / "d.csv", "classification")
    expected = wordpiece()(["the cat sat", "birds"], ["a dog ran", "the mat"], padding=True, return_tensors="pt")
    columns = columns_of(data)
    assert all(torch.equal(columns[name], expected[name]) for name in expected)
    assert columns["token_type_ids"].max() == 1
    assert data.texts == ["the cat sat | a dog ran", "birds | the mat"]


def test_pieces_of_256_are_padded_for_themselves_and_keep_the_order(classifier: Path) -> None:
    texts = ["birds"] * 256 + ["the cat sat"] * 3
    data = prepared(classifier, (texts, list(range(3)) * 86 + [0]), "classification")
    assert [len(piece) for piece in data.pieces] == [256, 3]
    short, long = (piece.inputs["input_ids"].shape[1] for piece in data.pieces)  # type: ignore[index,call-overload]  # dicts here
    assert short < long
    assert data.texts == texts
    assert torch.cat([piece.labels for piece in data.pieces if piece.labels is not None]).tolist()[:4] == [0, 1, 2, 0]


def test_long_texts_are_cut_to_what_the_model_takes_and_that_is_said(classifier: Path) -> None:
    data = prepared(classifier, ["the cat sat on the mat " * 5, "birds"])
    assert columns_of(data)["input_ids"].shape == (2, 12)
    assert data.notes["texts_cut"].startswith("1 text longer than 12 tokens, and cut")
    assert "texts_cut" not in prepared(classifier, ["birds"]).notes


def test_the_length_of_models_that_count_from_the_padding(tmp_path: Path) -> None:
    folder = bert(tmp_path)
    for settings, length in (
        ({"model_type": "roberta", "max_position_embeddings": 14}, 13),
        ({"model_type": "gpt2", "n_positions": 9}, 9),
        ({"model_type": "t5"}, None),
    ):
        (folder / "config.json").write_text(json.dumps(settings))
        assert Preprocessor.from_directory(folder).max_length == length


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [(["joy", "Anger", "joy"], [1, 0, 1]), ([1, 0, -100], [1, 0, -100]), ([1.0, 0.0, 1.0], [1, 0, 1])],
)
def test_labels_become_the_checkpoints_classes(classifier: Path, labels: list[Any], numbers: list[int]) -> None:
    data = prepared(classifier, (SENTENCES[:3], labels), "classification", ["anger", "joy", "other"])
    assert columns_of(data)["labels"].tolist() == numbers
    assert data.class_names == ["anger", "joy", "other"]


def test_regression_and_several_labels(classifier: Path) -> None:
    targets = columns_of(prepared(classifier, (SENTENCES[:3], [1, 2.5, None]), "regression"))["labels"]
    assert targets.dtype == torch.float32
    assert targets[:2].tolist() == [1.0, 2.5]
    assert targets[2].isnan()
    rows = [{"text": text, "labels": names} for text, names in zip(SENTENCES, ([], ["b"], ["a", "c"]), strict=False)]
    data = prepared(classifier, rows, "multi-label", ["a", "b", "c"])
    assert columns_of(data)["labels"].tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize(
    "content",
    [
        'text,label\nbirds,[]\nthe dog,"b"\nthe cat,"a, C"\n',
        "text,labels\nbirds,[]\nthe dog,['b']\nthe cat,a;c\n",
        "text,label\nbirds,[]\nthe dog,1\nthe cat,0|2\n",
        "text,A,b,c\nbirds,0,0,0\nthe dog,0,1,0\nthe cat,1,0,1\n",
    ],
)
def test_several_labels_in_a_csv(classifier: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "d.csv").write_text(content)
    data = prepared(classifier, tmp_path / "d.csv", "multi-label", ["a", "b", "c"])
    labels = columns_of(data)["labels"]
    assert labels.is_floating_point()
    assert labels.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert data.notes == {}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,label\nbirds,2\nthe dog,0\nthe cat,1\n", [[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
        ("text,labels\nbirds,c\nthe dog,A\nthe cat,b\n", [[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    ],
)
def test_one_class_an_example_of_several_labels_is_said(
    classifier: Path, tmp_path: Path, content: str, expected: list[list[int]]
) -> None:
    (tmp_path / "d.csv").write_text(content)
    data = prepared(classifier, tmp_path / "d.csv", "multi-label", ["a", "b", "c"])
    assert columns_of(data)["labels"].tolist() == expected
    assert data.notes == {
        "labels_as_flags": "labels are one class an example: that one is read as yes, the others as no"
    }


def test_a_zero_or_one_for_more_than_two_labels_is_refused(classifier: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,label\nbirds,1\nthe dog,0\nthe cat,1\n")
    for limit in (None, 2):
        with pytest.raises(DataError, match=r"one 0 or 1 an example, for 3 classes: .* a;b, or one column a class"):
            as_data(load_data(path, limit), classifier, "multi-label", ["a", "b", "c"])
    two = prepared(classifier, path, "multi-label", ["a", "b"])
    assert columns_of(two)["labels"].tolist() == [[0, 1], [1, 0], [0, 1]]
    assert list(two.notes) == ["labels_as_flags"]
    one = prepared(classifier, path, "multi-label", ["a"])
    assert columns_of(one)["labels"].tolist() == [[1], [0], [1]]
    assert one.notes == {}
    for later, notes in (("a bird,2", ["labels_as_flags"]), ("a bird,0;2", [])):  # beyond the limit
        path.write_text(f"text,label\nbirds,1\nthe dog,0\n{later}\n")
        limited = as_data(load_data(path, 2), classifier, "multi-label", ["a", "b", "c"])
        assert columns_of(limited)["labels"].tolist() == [[0, 1, 0], [1, 0, 0]]
        assert list(limited.notes) == notes


def test_lists_of_one_label_are_taken_at_their_word(classifier: Path) -> None:
    for labels in ([[1], [0]], ["[1]", "[0]"], [["b"], ["a"]]):
        rows = [{"text": text, "labels": given} for text, given in zip(SENTENCES, labels, strict=False)]
        data = prepared(classifier, rows, "multi-label", ["a", "b", "c"])
        assert columns_of(data)["labels"].tolist() == [[0, 1, 0], [1, 0, 0]]
        assert data.notes == {}


def test_hidden_labels_of_several_are_none(classifier: Path) -> None:
    data = prepared(classifier, (SENTENCES, [-1] * 4), "multi-label", ["a", "b", "c"])
    assert not data.has_labels


def test_examples_without_a_text_are_left_out_and_that_is_said(classifier: Path, tmp_path: Path) -> None:
    lines = ["the cat sat,2", ",1", "birds,1", '" ",0', "a dog,0", *[",1"] * 5]
    (tmp_path / "d.csv").write_text("text,label\n" + "\n".join(lines))
    data = prepared(classifier, tmp_path / "d.csv", "classification", ["a", "b", "c"])
    assert data.texts == ["the cat sat", "birds", "a dog"]
    assert columns_of(data)["labels"].tolist() == [2, 1, 0]
    assert data.notes == {"texts_left_out": "7 examples with an empty text left out: lines 3, 5, 7, 8, 9, ..."}
    with pytest.raises(DataError, match=r"d\.csv: label 2 at line 2 is out of range for 2 classes"):
        check_labels(data, 2)
    with pytest.raises(DataError, match=r"d\.csv: label 1 at line 4 is out of range for 1 classes"):
        check_labels(replace(data, pieces=(batch_from((torch.ones(2, 1), torch.tensor([0, 1])), 0),)), 1)
    (tmp_path / "d.csv").write_text("text,label\na,x\n,y\nb,z\n")
    with pytest.raises(DataError, match=r"d\.csv: label 'z' at line 4 is none of the classes"):
        prepared(classifier, tmp_path / "d.csv", "classification", ["x", "y"])


def test_pairs_and_words_without_anything_are_left_out(classifier: Path) -> None:
    rows = [{"premise": "the cat", "hypothesis": hypothesis} for hypothesis in ("birds", None, "a dog")]
    assert prepared(classifier, rows).texts == ["the cat | birds", "the cat | a dog"]
    data = prepared(classifier, [{"tokens": [], "ner_tags": []}, *TAGGED], "tokens", ["O", "B-X"])
    assert columns_of(data)["labels"].shape[0] == 2
    assert data.notes == {"texts_left_out": "1 example with an empty text left out: example 0"}


def test_named_numbers_follow_the_checkpoints_names(classifier: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": SENTENCES, "label": [0, 1, 1, 0]}, features=features)
    for names, numbers, notes in (
        (["POS", "NEG"], [1, 0, 0, 1], []),
        (["good", "bad"], [0, 1, 1, 0], ["labels_by_number"]),
        (None, [0, 1, 1, 0], []),
    ):
        found = prepared(classifier, data, "classification", names)
        assert columns_of(found)["labels"].tolist() == numbers
        assert list(found.notes) == notes
        assert found.class_names == (names or ["neg", "pos"])


def test_hidden_labels_are_none(classifier: Path) -> None:
    data = prepared(classifier, (SENTENCES, [-1] * 4), "classification", ["a", "b", "c"])
    assert not data.has_labels
    assert "all labels are -1" in data.notes["labels_hidden"]


# ---- words


TAGGED = [
    {"tokens": ["the", "unbelievably", "sat"], "ner_tags": ["O", "B-X", "O"]},
    {"tokens": ["birds"], "ner_tags": ["B-X"]},
]


def test_tags_are_on_the_first_token_of_each_word(classifier: Path) -> None:
    columns = columns_of(prepared(classifier, TAGGED, "tokens", ["O", "B-X"]))
    tokens = [wordpiece().convert_ids_to_tokens(row.tolist()) for row in columns["input_ids"]]
    for row, labels in zip(tokens, columns["labels"].tolist(), strict=True):
        starts = [not token.startswith("##") and token not in SPECIAL for token in row]
        assert [label != -100 for label in labels] == starts
    assert [[x for x in row if x != -100] for row in columns["labels"].tolist()] == [[0, 1, 0], [1]]
    assert any(token.startswith("##") for token in tokens[0])
    BertForTokenClassification.from_pretrained(bert_tagger(classifier))(**columns).loss.backward()


def bert_tagger(folder: Path) -> Path:
    """The folder of a tagger of two classes, beside a classifier's."""
    return bert(folder / "tagger", BertForTokenClassification, num_labels=2)


def test_tags_in_a_csv_are_separated_by_spaces(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("words,tags\nthe unbelievably sat,O B-X O\nbirds,B-X\n")
    found = columns_of(prepared(classifier, tmp_path / "d.csv", "tokens", ["O", "B-X"]))
    expected = columns_of(prepared(classifier, TAGGED, "tokens", ["O", "B-X"]))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    (tmp_path / "d.tsv").write_text("text\ttags\nthe unbelievably sat\t0 1 0\nbirds\t1\n")
    assert torch.equal(columns_of(prepared(classifier, tmp_path / "d.tsv", "tokens"))["labels"], expected["labels"])


def test_words_beyond_the_length_lose_their_tags_and_that_is_said(classifier: Path) -> None:
    rows = [{"tokens": ["the"] * 15, "tags": [1] * 15}]
    data = prepared(classifier, rows, "tokens")
    assert columns_of(data)["labels"].tolist() == [[-100, *[1] * 10, -100]]
    assert data.notes["words_cut"].startswith("5 words")


def test_a_tokenizer_in_python_tags_like_one_in_rust(tmp_path: Path) -> None:
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "n_positions": 6}))
    rows = [{"tokens": ["ab", "c"], "tags": [1, 2]}, {"tokens": ["abcd", "efg", "h"], "tags": [1, 2, 3]}]
    data = prepared(tmp_path, rows, "tokens")
    columns = columns_of(data)
    assert not Preprocessor.from_directory(tmp_path).tokenizer.is_fast
    assert columns["labels"].tolist() == [[1, -100, 2, -100, -100, -100], [1, -100, -100, -100, 2, -100]]
    assert columns["attention_mask"].sum(1).tolist() == [4, 6]
    assert data.notes["words_cut"].startswith("1 word without")


def byte_level(folder: Path) -> Path:
    """A GPT-2 of random weights, whose tokenizer knows no padding and no space before a first word."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "d")]
    tokens = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast_tokenizer(tokenizer_object=tokenizer, eos_token=tokens[0], add_prefix_space=False).save_pretrained(folder)
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2, **ends)).save_pretrained(
        folder
    )
    return folder


def test_words_are_read_as_if_a_space_stood_before_them(tmp_path: Path) -> None:
    preprocessor = Preprocessor.from_directory(byte_level(tmp_path))
    (row,), (owners,) = preprocessor.encode_words([["the", "dog"]])
    assert row["input_ids"] == preprocessor.tokenizer(" the dog")["input_ids"]
    assert owners[0] == 0
    assert owners[-1] == 1


# ---- language models


def test_a_causal_model_predicts_its_input_and_no_padding(tmp_path: Path) -> None:
    data = prepared(byte_level(tmp_path), (SENTENCES, [0, 1, 0, 1]), "causal-lm")
    columns = columns_of(data)
    mask = columns["attention_mask"].bool()
    assert torch.equal(columns["labels"], columns["input_ids"].masked_fill(~mask, -100))
    assert not mask.all()
    assert mask[:, 0].all()
    assert data.class_names is None
    loss = GPT2LMHeadModel.from_pretrained(tmp_path)(**columns).loss
    assert loss.isfinite()


def test_a_masked_model_predicts_a_fixed_share_of_each_text(tmp_path: Path) -> None:
    folder = bert(tmp_path, BertForMaskedLM)
    columns = columns_of(prepared(folder, SENTENCES, "tokens"))
    again = columns_of(prepared(folder, SENTENCES, "tokens"))
    first = columns_of(prepared(folder, SENTENCES[:2], "tokens"))
    assert all(torch.equal(columns[name], again[name]) for name in columns)
    width = first["labels"].shape[1]
    assert torch.equal(columns["labels"][:2, :width], first["labels"])
    tokenizer = wordpiece()
    for text, ids, labels in zip(SENTENCES, columns["input_ids"], columns["labels"], strict=True):
        original = tokenizer(text)["input_ids"]
        chosen = labels != -100
        assert (chosen == (ids == tokenizer.mask_token_id)).all()
        assert chosen.sum() == max(1, round(0.15 * (len(original) - 2)))
        restored = torch.where(chosen, labels, ids)[: len(original)]
        assert restored.tolist() == original
    assert "masked" in prepared(folder, SENTENCES, "tokens").notes["tokens_masked"]


def test_a_tagger_without_tags_has_no_labels(tmp_path: Path) -> None:
    folder = bert(tmp_path, BertForTokenClassification)
    assert not prepared(folder, SENTENCES, "tokens").has_labels
    assert not prepared(folder, [{"tokens": ["the", "cat"], "n": 1}], "tokens").has_labels


@pytest.mark.parametrize("task", ["seq2seq", None])
def test_targets_are_the_labels_of_a_sequence_to_sequence_model(tmp_path: Path, task: str | None) -> None:
    tokenizer = wordpiece()
    tokenizer.save_pretrained(tmp_path)
    sizes: dict[str, Any] = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    sizes |= {"decoder_start_token_id": 0, "tie_word_embeddings": True}
    T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    (tmp_path / "d.jsonl").write_text(
        '{"document": "the cat sat on the mat", "summary": "cat sat"}\n'
        '{"document": "birds sing", "summary": "a dog ran"}\n'
    )
    data = prepared(tmp_path, tmp_path / "d.jsonl", task)
    columns = columns_of(data)
    for labels, text in zip(columns["labels"], ("cat sat", "a dog ran"), strict=True):
        assert labels[labels != -100].tolist() == tokenizer(text)["input_ids"]
    assert data.texts == ["the cat sat on the mat | cat sat", "birds sing | a dog ran"]


# ---- images


def pictures(folder: Path, **classes: int) -> list[Path]:
    """Folders of random pictures, so many a class."""
    generator, paths = np.random.default_rng(0), []
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, size=(20 + number, 30, 3), dtype=np.uint8)
            paths.append(folder / name / f"{number}.png")
            Image.fromarray(pixels).save(paths[-1])
    return paths


def vit(folder: Path, channels: int = 3) -> Path:
    """A ViT of random weights with its image processor."""
    ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=channels, **SIZES)).save_pretrained(
        folder
    )
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 8, "width": 8},
        "image_mean": [0.5] * channels,
        "image_std": [0.25] * channels,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_images_are_resized_and_normalised_as_the_checkpoint_says(tmp_path: Path) -> None:
    paths = pictures(tmp_path / "d", cat=2, dog=1)
    data = prepared(vit(tmp_path / "vit"), tmp_path / "d", "classification", ["dog", "cat"])
    columns = columns_of(data)
    resized = [np.asarray(Image.open(path).resize((8, 8), Image.Resampling.BILINEAR)) for path in paths]
    expected = torch.tensor(np.stack(resized)).permute(0, 3, 1, 2) / 255
    assert torch.allclose(columns["pixel_values"], ((expected - 0.5) / 0.25)[[0, 2, 1]], atol=1e-5)
    assert columns["labels"].tolist() == [1, 0, 1]
    assert data.texts is None
    ViTForImageClassification.from_pretrained(tmp_path / "vit")(**columns)


def test_a_csv_may_name_images_beside_it(tmp_path: Path) -> None:
    pictures(tmp_path / "d", cat=2)
    (tmp_path / "d" / "list.csv").write_text("image,label\ncat/1.png,1\ncat/0.png,0\n")
    data = prepared(vit(tmp_path / "vit"), tmp_path / "d" / "list.csv", "classification")
    expected = columns_of(prepared(tmp_path / "vit", tmp_path / "d"))["pixel_values"]
    assert torch.equal(columns_of(data)["pixel_values"], expected.flip(0))
    assert columns_of(data)["labels"].tolist() == [1, 0]


def test_a_data_set_of_images(tmp_path: Path) -> None:
    (path,) = pictures(tmp_path / "d", cat=1)
    folder = vit(tmp_path / "vit")
    expected = columns_of(prepared(folder, tmp_path / "d"))["pixel_values"]
    with Image.open(path) as image:
        stored = datasets.Dataset.from_dict({"image": [image], "label": [1]})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    named = datasets.Dataset.from_dict({"image": [str(path)], "label": [1]}, features=features)
    for data in (stored, named):
        assert torch.equal(columns_of(prepared(folder, data, "classification"))["pixel_values"], expected)


def test_colour_follows_the_model(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    Image.new("L", (9, 9), 255).save(tmp_path / "d" / "a.png")
    Image.new("RGBA", (9, 9), (255, 255, 255, 0)).save(tmp_path / "d" / "b.png")
    Image.new("P", (9, 9)).save(tmp_path / "d" / "c.gif")
    for channels in (1, 3):
        folder = vit(tmp_path / str(channels), channels)
        pixels = columns_of(prepared(folder, tmp_path / "d"))["pixel_values"]
        assert pixels.shape == (3, channels, 8, 8)
        assert torch.allclose(pixels[:2], torch.tensor(2.0))


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit")
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / "a.png"
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png cannot be opened as an image: UnidentifiedImageError"):
        prepared(folder, tmp_path / "d")
    Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        prepared(folder, tmp_path / "d")
    Image.new("RGB", (50, 50)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="cannot be opened"):
        prepared(folder, tmp_path / "d")


# ---- what is not there


def test_raw_examples_need_a_directory() -> None:
    with pytest.raises(UsageError, match=r"in memory holds raw examples.* pass the Hugging Face directory"):
        as_data(load_data(SENTENCES), None, None, None)
    data = load_data((torch.ones(2, 2), torch.tensor([0, 1])))
    assert as_data(data, None, None, None) is data
    assert as_data(data, None, None, ["a", "b"]).class_names == ["a", "b"]


def test_a_vocabulary_alone_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nC\nO\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match=r"no tokenizer .*file.py:callable that returns input_ids"):
        prepared(tmp_path, ["CO"])
    (tmp_path / "i.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no preprocessor_config\.json.*pixel_values"):
        prepared(tmp_path, [{"image": tmp_path / "i.png", "label": 1}])


def test_a_tokenizer_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mine"}')
    (tmp_path / "mine.py").write_text("raise SystemExit('code was run')")
    settings = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsafeFileError, match="its tokenizer needs code of its own, which is never run"):
        prepared(tmp_path, SENTENCES)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "mine.Mine"}})
    )
    with pytest.raises(UnsafeFileError, match="its image processor needs code of its own"):
        prepared(tmp_path, pictures_in(tmp_path / "d"))


def pictures_in(folder: Path) -> Path:
    pictures(folder, a=1)
    return folder


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_damaged_descriptions_are_data_errors(tmp_path: Path, name: str) -> None:
    folder = bert(tmp_path)
    whole = (folder / name).read_text()
    for content in (whole[: len(whole) // 2], "[" * 100_000, "[]", "\x00"):
        (folder / name).write_text(content)
        if (name, content) != ("config.json", "[]"):  # says nothing, and need not
            with pytest.raises(DataError) as caught:
                prepared(folder, SENTENCES)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        ([{"text": "the cat", "label": 1}, {"text": "birds", "n": 2}], None, "example 1 has no label"),
        ([{"text": "", "label": 1}, {"text": " ", "label": 2}], None, "text is empty at every example"),
        ([{"text": ""}, {"text": "a", "label": 1}, {"text": "b", "n": 2}], None, "example 2 has no label"),
        ([{"tokens": ["a", ""], "tags": ["x", "y"]}], "tokens", "tokens at example 0 is empty"),
        ([{"text": 3, "label": 1}], None, "text at example 0 is a int, not text"),
        ([{"text": "a", "label": "joy"}], "classification", "label 'joy' at example 0 is none of the classes: x, y"),
        ([{"text": "a", "label": 0.5}], "classification", "label 0.5 at example 0 is no class"),
        ([{"text": "a", "label": "much"}], "regression", "label 'much' at example 0 is not a number"),
        ([{"text": "a", "labels": [0, 2]}], "multi-label", "label 2 at example 0 is out of range for 2 classes"),
        ([{"text": "a", "labels": [0]}, {"text": "b", "labels": 1}], None, "example 1 has a single label where"),
        ([{"text": "a", "label": 1}], "seq2seq", "name its column target"),
        ([{"text": "a", "content": "b"}], None, "text and content could each be the text"),
        ([{"tokens": ["a", "b"], "tags": ["x"]}], "tokens", "example 0 has 2 words but 1 labels in tags"),
        ([{"tokens": ["a"], "tags": ["z"]}], "tokens", "label 'z' at example 0 is none of the classes"),
        ([{"tokens": [], "tags": ["x"], "n": 1}], "tokens", "tokens is empty at every example"),
        ([{"tokens": ["a", 3], "tags": ["x", "y"]}], "tokens", "tokens at example 0 is a int, not text"),
        ([{"text": "a\ud83d", "label": 1}], None, "text at example 0 has half a character"),
        ([{"text": "a", "label": [1.5]}, {"text": "b", "label": [1, 2]}], "regression", "targets are lists of several"),
        ([{"tokens": ["a"], "label": 3}], "tokens", "label at example 0 is no list of words"),
        ([{"tokens": ["a"], "ner_tags": ["x"], "pos_tags": ["y"], "n": 1}], "tokens", "ner_tags and pos_tags could"),
    ],
)
def test_examples_that_cannot_be_used_say_which(
    classifier: Path, rows: list[dict[str, Any]], task: str | None, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        prepared(classifier, rows, task, ["x", "y"])
    assert message in str(caught.value)
    assert str(caught.value).startswith("in memory: ")


def test_a_table_knows_its_size_and_its_head() -> None:
    table = load_data((SENTENCES, ["b", "a", "c", "a"]))
    assert isinstance(table, Table)
    assert (table.n_examples, table.head(2).n_examples, table.source) == (4, 2, "in memory")
    with pytest.raises(DataError, match="at least 1, not 0"):
        table.head(0)


def test_a_limit_does_not_change_the_numbers_of_classes(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,label\nbirds,c\nthe cat,b\na dog,a\n")
    (tmp_path / "d.jsonl").write_text("".join(f'{{"text": "birds", "label": "{name}"}}\n' for name in "cba"))
    for spec in (tmp_path / "d.csv", tmp_path / "d.jsonl"):
        data = as_data(load_data(spec, 2), classifier, None, None)
        assert columns_of(data)["labels"].tolist() == [2, 1]
        assert data.class_names == ["a", "b", "c"]
        assert "numbered by the alphabet (a, b, c)" in data.notes["labels_numbered"]
