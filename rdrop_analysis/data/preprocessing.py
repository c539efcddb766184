"""A checkpoint's own tokenizer and image processor, from the files beside its weights and no others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdrop_analysis.data.pictures import first_line, open_image
from rdrop_analysis.errors import DataError, UnsafeFileError, UsageError
from rdrop_analysis.loading.quiet import offline, quietly

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
UNBOUNDED = 10**9  # tokenizers that know no length say 10^30
POSITIONS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet", "longformer", "esm")
"""Model types that count positions from the padding id + 1, and so have fewer than they declare."""

Row = dict[str, list[int]]
"""Arguments of `forward` for one text."""

Owners = list[int | None]
"""For each token of a text the word that it is from, None for those that mark begin and end."""


@dataclass(frozen=True)
class Preprocessor:
    """What makes inputs of texts and images, as the checkpoint in `directory` was trained on them.

    Tokenizer and image processor are read when first used; no code in the directory is run, and nothing is
    fetched.
    """

    directory: Path

    @classmethod
    def from_directory(cls, path: Path) -> Preprocessor:
        """Return the preprocessor of a Hugging Face directory.

        Raises `UsageError` if transformers is not installed.
        """
        try:
            import transformers  # noqa: F401  # only whether it is there
        except ImportError as problem:
            raise UsageError(f"{path} needs transformers: pip install 'rdrop-analysis[hf]'") from problem
        return cls(path)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What `config.json` says; empty if there is none."""
        try:
            content = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as problem:
            raise DataError(f"{self.directory}: config.json cannot be read: save the model again") from problem
        return content if isinstance(content, Mapping) else {}

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer.

        Raises `DataError` if its files are not there, `UnsafeFileError` if it needs code of its own.
        """
        from transformers import AutoTokenizer

        if not any((self.directory / name).is_file() for name in TOKENIZER_FILES):
            raise DataError(
                f"{self.directory} has no tokenizer ({' or '.join(TOKENIZER_FILES)}): save it there with "
                "tokenizer.save_pretrained, or pass --data file.py:callable that returns input_ids"
            )
        return _load(AutoTokenizer, self.directory, "tokenizer")

    @cached_property
    def image_processor(self) -> Any:
        """The image processor, on Pillow and NumPy; raises as `tokenizer` does."""
        from transformers import AutoImageProcessor

        if not any((self.directory / name).is_file() for name in IMAGE_FILES):
            raise DataError(
                f"{self.directory} has no {IMAGE_FILES[0]}: save the image processor there with save_pretrained, "
                "or pass --data file.py:callable that returns pixel_values"
            )
        return _load(AutoImageProcessor, self.directory, "image processor", backend="pil")

    @cached_property
    def max_length(self) -> int | None:
        """The most tokens that tokenizer and model both take; None if neither knows a bound."""
        positions = next((self.config[name] for name in LENGTHS if isinstance(self.config.get(name), int)), UNBOUNDED)
        if self.config.get("model_type") in POSITIONS_FROM_PADDING:
            positions -= self.pad_id + 1
        shortest = min(positions, self.tokenizer.model_max_length)
        return int(shortest) if shortest < UNBOUNDED else None

    @cached_property
    def pad_id(self) -> int:
        """The id that fills up; where there is none any will do, as the attention mask hides it."""
        known = (self.tokenizer.pad_token_id, self.config.get("pad_token_id"), self.tokenizer.eos_token_id)
        return next((number for number in known if isinstance(number, int)), 0)

    @property
    def is_masked_lm(self) -> bool:
        """Whether the model was trained to fill in masked tokens."""
        kinds = self.config.get("architectures") or [""]
        return str(kinds[0]).endswith(("ForMaskedLM", "ForPreTraining")) and self.tokenizer.mask_token_id is not None

    def encode(self, texts: Sequence[str], second: Sequence[str] | None = None) -> tuple[list[Row], int]:
        """Return the arguments of `forward` for each text or pair of texts, and how many were cut to fit."""
        return self._rows(self.tokenizer, {"text": list(texts), "text_pair": second and list(second)})

    def encode_targets(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Return the ids of texts to be generated, and how many were cut to fit."""
        rows, cut = self._rows(self.tokenizer, {"text_target": list(texts)})
        return [row["input_ids"] for row in rows], cut

    def _rows(self, tokenizer: Any, texts: Mapping[str, Any]) -> tuple[list[Row], int]:
        with quietly(), offline():
            whole = tokenizer(**texts, return_attention_mask=True)
            cut = sum(len(ids) > (self.max_length or UNBOUNDED) for ids in whole["input_ids"])
            if cut:
                whole = tokenizer(**texts, return_attention_mask=True, truncation=True, max_length=self.max_length)
        return _by_example(whole), cut

    def encode_words(self, examples: Sequence[Sequence[str]]) -> tuple[list[Row], list[Owners]]:
        """Return the arguments of `forward` for each list of words, and for each token the word that it is from."""
        tokenizer = self.tokenizer
        if not tokenizer.is_fast:
            with quietly(), offline():
                pairs = [_encode_word_by_word(tokenizer, words, self.max_length) for words in examples]
            return [row for row, _ in pairs], [owners for _, owners in pairs]
        before = " " if _is_byte_level(tokenizer) else ""
        given = [[before + word for word in words] for words in examples]
        bounds = {"truncation": self.max_length is not None, "max_length": self.max_length}
        with quietly(), offline():
            encoded = tokenizer(given, is_split_into_words=True, return_attention_mask=True, **bounds)
        return _by_example(encoded), [encoded.word_ids(index) for index in range(len(given))]

    def pixels(self, images: Sequence[Path | Mapping[str, Any]]) -> Tensor:
        """Return images as the model takes them, [B, C, H, W]; an image is a file or the `bytes` of one."""
        process, mode = self.image_processor, "L" if self.config.get("num_channels") == 1 else "RGB"
        with quietly(), offline():
            opened = [open_image(image, mode) for image in images]
            try:
                processed = process(images=opened, input_data_format="channels_last", return_tensors="pt")
            except Exception as problem:  # what the many processors raise is not documented
                raise DataError(f"the image processor refuses the images: {first_line(problem)}") from problem
        return torch.as_tensor(processed["pixel_values"])


def _load(kind: Any, directory: Path, what: str, **options: Any) -> Any:
    """Load a tokenizer or processor from a directory."""
    try:
        with quietly(), offline():
            return kind.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False, **options)
    except Exception as problem:  # what transformers raises on files that do not fit is not documented
        if "trust_remote_code" in str(problem):
            raise UnsafeFileError(
                f"{directory}: its {what} needs code of its own, which is never run: "
                "pass --data file.py:callable that returns what the model takes"
            ) from problem
        raise DataError(f"{directory}: its {what} cannot be loaded: {first_line(problem)}") from problem


def _by_example(encoded: Mapping[str, list[list[int]]]) -> list[Row]:
    """Return the arguments of each example from each argument's examples."""
    return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


def _is_byte_level(tokenizer: Any) -> bool:
    """Tell whether the space before a word is part of its tokens, as GPT-2 and RoBERTa have it."""
    return "ByteLevel" in repr(tokenizer.backend_tokenizer.pre_tokenizer)


def _encode_word_by_word(tokenizer: Any, words: Sequence[str], max_length: int | None) -> tuple[Row, Owners]:
    """Do for a tokenizer in Python what those in Rust do by themselves."""
    ids, owners = [], []
    for number, word in enumerate(words):
        parts = tokenizer(word, add_special_tokens=False)["input_ids"]
        ids += parts
        owners += [number] * len(parts)
    room = None if max_length is None else max_length - tokenizer.num_special_tokens_to_add()
    ids, owners = ids[:room], owners[:room]
    given = iter(owners)
    special = tokenizer.get_special_tokens_mask(ids)
    row = {"input_ids": tokenizer.build_inputs_with_special_tokens(ids), "attention_mask": [1] * len(special)}
    return row, [None if mark else next(given) for mark in special]
