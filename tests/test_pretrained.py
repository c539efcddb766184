"""Hugging Face directories come back as transformers itself loads them, or not at all; nothing in them is run."""

import json
import logging
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from rdrop_analysis.checkpoints import LoadedCheckpoint, load_checkpoint
from rdrop_analysis.errors import CheckpointError, RDropAnalysisError, UnsafeFileError, UsageError
from rdrop_analysis.loading.architectures import class_names, task_of, uncovered
from rdrop_analysis.loading.quiet import offline, quietly

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**SMALL, "vocab_size": 30, "max_position_embeddings": 20}
BART = {
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "d_model": 16,
}
WAVES = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 8}
NAMES = {"id2label": {0: "no", 1: "yes", 2: "maybe"}, "label2id": {"no": 0, "yes": 1, "maybe": 2}}


def config(name: str, **settings: Any) -> Any:
    return getattr(transformers, name)(**settings)


MODELS: dict[str, tuple[Callable[[], Any], str | None, list[str] | None]] = {
    "BertForSequenceClassification": (
        lambda: config("BertConfig", **TEXT, **NAMES),
        "classification",
        ["no", "yes", "maybe"],
    ),
    "BertForPreTraining": (lambda: config("BertConfig", **TEXT), "tokens", None),
    "BertModel": (lambda: config("BertConfig", **TEXT), None, None),
    "RobertaForMaskedLM": (lambda: config("RobertaConfig", **TEXT), "tokens", None),
    "DistilBertForTokenClassification": (
        lambda: config("DistilBertConfig", dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=30, **NAMES),
        "tokens",
        ["no", "yes", "maybe"],
    ),
    "AlbertForMaskedLM": (lambda: config("AlbertConfig", embedding_size=8, **TEXT), "tokens", None),
    "GPT2LMHeadModel": (
        lambda: config("GPT2Config", n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=20),
        "causal-lm",
        None,
    ),
    "LlamaForCausalLM": (lambda: config("LlamaConfig", **TEXT), "causal-lm", None),
    "T5ForConditionalGeneration": (
        lambda: config("T5Config", d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=30),
        "seq2seq",
        None,
    ),
    "BartForConditionalGeneration": (
        lambda: config("BartConfig", vocab_size=30, max_position_embeddings=20, **BART),
        "seq2seq",
        None,
    ),
    "ViTForImageClassification": (
        lambda: config("ViTConfig", **SMALL, image_size=8, patch_size=4, num_labels=1),
        "regression",
        None,
    ),
    "ConvNextForImageClassification": (
        lambda: config("ConvNextConfig", hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], drop_path_rate=0.2),
        "classification",
        None,
    ),
    "Wav2Vec2ForSequenceClassification": (
        lambda: config("Wav2Vec2Config", **SMALL, **WAVES, num_conv_pos_embedding_groups=2),
        "classification",
        None,
    ),
}


def made(name: str, directory: Path, **saving: Any) -> Any:
    """A tiny model of this architecture with random weights, saved as transformers saves it."""
    with quietly():
        model = getattr(transformers, name)(MODELS[name][0]()).eval()
        model.save_pretrained(directory, **saving)
    return model


def same_weights(loaded: nn.Module, model: nn.Module) -> bool:
    state, expected = loaded.state_dict(), model.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


def one_line(path: Path, error: type[RDropAnalysisError], factory: Any = None) -> str:
    with pytest.raises(error) as caught:
        load_checkpoint(path, factory)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def read(directory: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(directory / "model.safetensors"))


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def bert_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bert")
    made("BertForSequenceClassification", directory)
    return directory


@pytest.fixture
def bert(bert_files: Path, tmp_path: Path) -> Path:
    """A directory of its own with a classifier in it."""
    return Path(shutil.copytree(bert_files, tmp_path / "bert"))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", ["safetensors", "shards", "bin"])
def test_popular_architectures_come_back_with_their_weights_and_task(tmp_path: Path, name: str, layout: str) -> None:
    model = made(name, tmp_path, **({"max_shard_size": "4KB"} if layout == "shards" else {}))
    if layout == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (layout == "shards")
    loaded = load_checkpoint(tmp_path)
    assert same_weights(loaded.model, model)
    assert (loaded.architecture, loaded.task, loaded.class_names) == (name, *MODELS[name][1:])
    assert (loaded.unsupported is None) == (name != "BertModel")
    assert loaded.source == tmp_path
    assert loaded.notes == {}
    assert not loaded.model.training


def test_the_model_gives_the_same_outputs(bert: Path) -> None:
    with quietly():
        theirs = transformers.BertForSequenceClassification.from_pretrained(bert, local_files_only=True).eval()
    ids = torch.randint(30, (3, 7))
    ours = load_checkpoint(bert).model
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_type_is_that_of_the_file_whatever_the_description_says(bert: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in load_file(bert / "model.safetensors").items()}
    save_file(state, bert / "model.safetensors")
    assert {parameter.dtype for parameter in load_checkpoint(bert).model.parameters()} == {dtype}


def test_weights_named_without_their_directory_find_the_description_beside_them(bert: Path) -> None:
    whole, alone = load_checkpoint(bert), load_checkpoint(bert / "model.safetensors")
    assert same_weights(whole.model, alone.model)
    assert alone.path == bert / "model.safetensors"
    assert alone.source == bert
    assert whole.sha256 == alone.sha256


def test_the_hash_changes_with_the_weights_and_with_the_description(bert: Path) -> None:
    hashes = {load_checkpoint(bert).sha256}
    edit_config(bert, attention_probs_dropout_prob=0.3)
    hashes.add(load_checkpoint(bert).sha256)
    state = load_file(bert / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in state.items()}, bert / "model.safetensors")
    hashes.add(load_checkpoint(bert).sha256)
    assert len(hashes) == 3


def test_names_of_years_ago_are_understood(bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in state.items()
    }
    assert old.keys() != state.keys()
    loaded = load_checkpoint(bert)
    (bert / "model.safetensors").unlink()
    torch.save(old, bert / "pytorch_model.bin")
    assert same_weights(load_checkpoint(bert).model, loaded.model)


def test_a_missing_weight_is_an_error_not_a_random_number(bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    save_file({name: tensor for name, tensor in state.items() if "classifier" not in name}, bert / "model.safetensors")
    message = one_line(bert, CheckpointError)
    assert "2 missing (classifier.bias, classifier.weight); they would be drawn at random" in message


def test_a_weight_of_another_shape_is_an_error(bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    save_file(state | {"classifier.bias": torch.zeros(7)}, bert / "model.safetensors")
    assert "1 of another shape (classifier.bias)" in one_line(bert, CheckpointError)


def test_what_the_model_has_no_place_for_is_noted(bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    save_file(state | {"cls.bias": torch.zeros(7)}, bert / "model.safetensors")
    assert load_checkpoint(bert).notes == {"weights_unused": "1 tensors in the file are not the model's: cls.bias"}


def test_nothing_is_said_and_nothing_is_left_behind(
    bert: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import logging as talk

    state = load_file(bert / "model.safetensors")
    save_file(state | {"cls.bias": torch.zeros(7)}, bert / "model.safetensors")

    def settings() -> tuple[object, ...]:
        return (
            talk.get_verbosity(),
            talk.is_progress_bar_enabled(),
            logging.getLogger().level,
            torch.get_default_dtype(),
        )

    said: list[logging.LogRecord] = []
    listener = logging.Handler()
    monkeypatch.setattr(listener, "emit", said.append)
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [listener])
    before = settings()
    random_state = torch.get_rng_state()
    load_checkpoint(bert)
    assert capfd.readouterr() == ("", "")
    assert said == []
    assert settings() == before
    assert torch.equal(torch.get_rng_state(), random_state)


def test_no_server_is_asked(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    edit_config(bert, _name_or_path="somebody/else", _attn_implementation="kernels-community/flash")
    assert load_checkpoint(bert).model.config._attn_implementation in ("eager", "sdpa")


def test_a_request_is_refused_before_it_is_made() -> None:
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    with offline(), pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
        huggingface_hub.HfApi().model_info("somebody/else")
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE


def test_code_in_the_directory_is_not_run(bert: Path, tmp_path: Path) -> None:
    (bert / "modeling_mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'created')!r})\n")
    own = {"AutoModel": "modeling_mine.Mine", "AutoConfig": "modeling_mine.MineConfig"}
    edit_config(bert, auto_map=own)
    loaded = load_checkpoint(bert)
    assert loaded.architecture == "BertForSequenceClassification"
    assert "names code of its own" in loaded.notes["remote_code_ignored"]
    edit_config(bert, architectures=["Mine"], model_type="mine")
    message = one_line(bert, UnsafeFileError)
    assert "needs code that came with it for Mine, which is not run" in message
    assert not (tmp_path / "created").exists()


class RunsCode:
    """Unpickling this would create a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_among_the_weights_is_refused(bert: Path, tmp_path: Path) -> None:
    (bert / "model.safetensors").unlink()
    torch.save({"bert.weight": torch.zeros(1), "x": RunsCode(tmp_path / "created")}, bert / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match=r"posix\.mkdir"):
        load_checkpoint(bert)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, 'names no class: add "architectures"'),
        ({"architectures": "BertModel"}, "names no class"),
        ({"architectures": ["os.system"]}, "names no class"),
        ({"architectures": ["NoSuchModel"]}, "names NoSuchModel, which transformers 5"),
        ({"architectures": ["pipeline"]}, "names pipeline, which transformers"),
        ({"architectures": ["BertTokenizer"]}, "names BertTokenizer, which transformers"),
        (
            {"hidden_size": "wide"},
            "field 'hidden_size': TypeError: Field 'hidden_size' expected int, got str",
        ),
        ({"hidden_act": "boom\n\x1b[31m"}, "transformers cannot build BertForSequenceClassification"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, too many for 41 weights"),
        ({"num_hidden_layers": 9999}, "num_hidden_layers is 9999, too many"),
        ({"vision": {"depths": [2, 10**7]}}, "depths is 10000000, too many"),
        ({"num_labels": 10**9}, "num_labels is 1000000000, too many"),
        ({"vocab_size": 10**9}, "the weights have"),
        ({"intermediate_size": 10**9}, "the weights have"),
        ({"num_hidden_layers": 3}, "16 missing"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1, which leaves no layer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, which leaves no layer"),
        ({"vision": {"depths": [2, 0]}}, "depths is 0, which leaves no layer"),
        ({"num_hidden_layers": 1}, "describes 1 of bert.encoder.layer, the weights have more (bert.encoder.layer.1."),
    ],
)
def test_a_description_is_not_believed(bert: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(bert, **changes)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(bert)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("GPT2LMHeadModel", {"n_layer": 1}),
        ("LlamaForCausalLM", {"num_hidden_layers": 1}),
        ("DistilBertForTokenClassification", {"n_layers": 1}),
        ("BertModel", {"num_hidden_layers": 1}),
        ("ConvNextForImageClassification", {"depths": [1, 1, 1, 1]}),
        ("Wav2Vec2ForSequenceClassification", {"num_hidden_layers": 1}),
    ],
)
def test_layers_that_the_description_leaves_out_are_an_error(
    tmp_path: Path, name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "depths" in changes:
        deeper = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 2, 1, 1]}
        monkeypatch.setitem(MODELS, name, (lambda: config("ConvNextConfig", **deeper), None, None))
    made(name, tmp_path)
    load_checkpoint(tmp_path)
    edit_config(tmp_path, **changes)
    message = one_line(tmp_path, CheckpointError)
    assert "describes 1 of " in message
    assert "correct the number of layers, or pass --model" in message


@pytest.mark.parametrize("outer", ["bert.", ""])
def test_layers_left_out_are_seen_with_and_without_the_prefix_of_the_base_model(tmp_path: Path, outer: str) -> None:
    made("BertModel", tmp_path)
    save_file({outer + name: tensor for name, tensor in read(tmp_path).items()}, tmp_path / "model.safetensors")
    load_checkpoint(tmp_path)
    edit_config(tmp_path, num_hidden_layers=1)
    assert "describes 1 of " in one_line(tmp_path, CheckpointError)


@pytest.mark.parametrize(
    ("name", "harmless"),
    [
        ("GPT2LMHeadModel", ["transformer.h.1.attn.bias", "transformer.h.0.attn.masked_bias"]),
        ("BertModel", ["bert.embeddings.position_ids", "cls.predictions.bias", "qa_outputs.3.weight"]),
        ("BertForSequenceClassification", ["cls.seq_relationship.bias", "other.encoder.layer.7.weight"]),
    ],
)
def test_heads_and_buffers_that_are_left_over_are_no_layers(tmp_path: Path, name: str, harmless: list[str]) -> None:
    model = made(name, tmp_path)
    extra = {key: torch.zeros(3) for key in harmless}
    save_file(read(tmp_path) | extra, tmp_path / "model.safetensors")
    assert same_weights(load_checkpoint(tmp_path).model, model)


@pytest.mark.parametrize("name", ["BertForQuestionAnswering", "BertForMultipleChoice", "BertForNextSentencePrediction"])
def test_a_head_that_no_task_covers_is_loaded_and_said(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, name, (lambda: config("BertConfig", **TEXT), None, None))
    model = made(name, tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert same_weights(loaded.model, model)
    assert loaded.task is None
    head = name.removeprefix("BertFor")
    assert loaded.unsupported is not None
    assert loaded.unsupported.startswith(f"{tmp_path} is a model for {head}, which no task covers yet: name the --task")
    assert load_checkpoint(tmp_path, lambda: model).unsupported is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds a JSON list, not an object"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"model_type": "bert", "model_type": "gpt2"}', "the key model_type stands in it twice"),
        ("\xff", "is not JSON"),
    ],
)
def test_a_description_that_is_no_json_object(bert: Path, text: str, message: str) -> None:
    (bert / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(bert)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "without weights: there is no model.safetensors"),
        (["tf_model.h5"], "with weights of another framework (tf_model.h5)"),
        (["adapter_config.json", "adapter_model.safetensors"], "with an adapter, not a model"),
        ([".metadata", "__0_0.distcp"], "of a distributed checkpoint"),
        (["a.pt", "b.pt"], "of several files: name one of a.pt, b.pt"),
    ],
)
def test_a_directory_without_weights_says_what_is_there(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    assert message in one_line(tmp_path, CheckpointError)


def test_a_directory_with_a_state_dict_alone_needs_a_factory(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    torch.save(model.state_dict(), tmp_path / "epoch3.pt")
    torch.save({}, tmp_path / "optimizer.pt")
    assert "pass --model" in one_line(tmp_path, UsageError)
    assert same_weights(load_checkpoint(tmp_path, lambda: nn.Linear(3, 2)).model, model)


def test_the_users_factory_is_given_the_weights_of_the_directory(bert: Path) -> None:
    def factory() -> nn.Module:
        return transformers.BertForSequenceClassification(MODELS["BertForSequenceClassification"][0]())

    loaded = load_checkpoint(bert, factory)
    assert same_weights(loaded.model, load_checkpoint(bert).model)
    assert loaded.source == bert


def test_without_transformers_the_extra_is_named(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    monkeypatch.setitem(__import__("sys").modules, "transformers.utils", None)
    with pytest.raises(UsageError, match=r"pip install 'rdrop-analysis\[hf\]'"):
        load_checkpoint(bert)


@pytest.mark.parametrize(
    ("name", "settings", "task"),
    [
        ("XForSequenceClassification", {"problem_type": "multi_label_classification"}, "multi-label"),
        ("XForSequenceClassification", {"problem_type": "regression", "id2label": {"0": "a", "1": "b"}}, "regression"),
        ("XForSequenceClassification", {"id2label": {"0": "LABEL_0"}}, "regression"),
        ("XForAudioClassification", {}, "classification"),
        ("XForCausalLM", {}, "causal-lm"),
        ("XForConditionalGeneration", {"is_encoder_decoder": True}, "seq2seq"),
        ("XForConditionalGeneration", {"is_encoder_decoder": False}, None),
        ("XForQuestionAnswering", {}, None),
        ("MarianMTModel", {"is_encoder_decoder": True}, "seq2seq"),
    ],
)
def test_the_task_is_read_off_the_name(name: str, settings: dict[str, Any], task: str | None) -> None:
    assert task_of(name, settings) == task


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("RoFormerForQuestionAnswering", "for QuestionAnswering, which no task covers yet"),
        ("DetrForObjectDetection", "for ObjectDetection, which no task covers yet"),
        ("Wav2Vec2ForCTC", "for CTC, which no task covers yet"),
        ("LlavaForConditionalGeneration", "for ConditionalGeneration, which no task covers yet"),
        ("RoFormerModel", "without a head, whose outputs are features"),
        ("RoFormerForTokenClassification", None),
        ("MarianMTModel", None),
        ("GPT2LMHeadModel", None),
        ("ForMe", None),
    ],
)
def test_heads_that_no_task_covers_are_known_by_the_name(name: str, use: str | None) -> None:
    assert uncovered(name, {}) == use


def test_class_names_are_taken_only_where_somebody_gave_them() -> None:
    assert class_names("XForImageClassification", {"id2label": {"1": "b", "0": "a"}}) == ["a", "b"]
    assert class_names("XForImageClassification", {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}) is None
    assert class_names("XForImageClassification", {"id2label": {"0": "a", "2": "b"}}) is None
    assert class_names("XForImageClassification", {"id2label": {"0": "a", "1": 3}}) is None
    assert class_names("XForMaskedLM", {"id2label": {"0": "a", "1": "b"}}) is None


def test_what_is_loaded_can_be_told_from_a_plain_state_dict(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "m.pt")
    loaded: LoadedCheckpoint = load_checkpoint(tmp_path / "m.pt", lambda: nn.Linear(2, 2))
    assert (loaded.source, loaded.task, loaded.class_names, loaded.notes) == (None, None, None, {})
