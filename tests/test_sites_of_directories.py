"""`rdrop-analyze sites DIRECTORY` needs no data: for a model of transformers, examples are made up."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_pretrained import MODELS, made

from rdrop_analysis.cli import main

WITHOUT_DROPOUT = {"ViTForImageClassification", "AlbertForMaskedLM"}  # all rates are 0 in their default configurations


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("LlamaForCausalLM", "BertModel")])
def test_the_dropout_of_a_directory_is_audited_without_data(tmp_path: Path, name: str) -> None:
    made(name, tmp_path)
    found = CliRunner().invoke(main, ["sites", str(tmp_path), "--json"])
    assert found.exit_code == 0, found.output
    sites = json.loads(found.stdout)["sites"]
    assert bool(sites) == (name not in WITHOUT_DROPOUT)
    if "Bert" in name:
        missed = {site["kind"] for site in sites if not site["found_by_patching"]}
        assert missed == {"attention dropout"}


def test_a_model_without_dropout_is_said_to_have_none(tmp_path: Path) -> None:
    made("LlamaForCausalLM", tmp_path)
    found = CliRunner().invoke(main, ["sites", str(tmp_path)])
    assert found.exit_code == 0
    assert "draws nothing" in found.output
