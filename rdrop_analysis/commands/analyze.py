"""`rdrop-analyze CHECKPOINT...`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rdrop_analysis.commands.options import (
    FORMAT_HELP,
    AutoInt,
    Bytes,
    NameList,
    Rates,
    Shard,
    SubModelCount,
    delivery,
    first_named,
    group_and_over,
    model_and_data,
    output,
    task,
    trust,
    unit_shown,
    verbosity,
)
from rdrop_analysis.files import FORMATS


@click.command()
@click.argument("checkpoints", nargs=-1, metavar="CHECKPOINT...", type=click.Path(path_type=Path))
@model_and_data
@task
@click.option(
    "--probes",
    type=NameList(),
    help="Which probes to run: pairwise_kl, gap, calibration, jacobian, prediction, averaging, temperature; on"
    " request attribution, freedom, noise_floor, and sweep (with --dropout). Default: default, the former as far as"
    " they fit the data; default,attribution adds to them.",
)
@click.option(
    "--sub-models",
    type=SubModelCount(),
    default=32,
    show_default=True,
    help="How many to sample; auto takes as few as make the mean EPKL as sure as --tolerance asks.",
)
@click.option(
    "--tolerance",
    metavar="X",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="With --sub-models auto: how far the mean EPKL of these examples may be off, relative to it. Default: 0.05.",
)
@click.option(
    "--masks",
    type=click.Choice(["per-example", "shared"]),
    default="per-example",
    show_default=True,
    help="Masks drawn for each example, as in training, or one for all: fixed sub-networks.",
)
@click.option(
    "--batch-size", type=AutoInt(), default="auto", show_default=True, help="Examples at a time; auto goes by memory."
)
@click.option(
    "--memory",
    type=Bytes(),
    help="What sums over sub-models and gradients are kept within, about: bytes, or K, M, G or T of them (8G, 500M;"
    " powers of 1024), at least 64M. Default: what the machine has.",
)
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Use only the first N examples.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="All masks follow from it.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="What passes compute in: bf16 and fp16 as under torch.autocast. Default: the checkpoint's own.",
)
@click.option(
    "--strategy",
    type=click.Choice(["auto", "vmap", "fold", "loop"]),
    default="auto",
    show_default=True,
    help="How sub-models are run: auto takes what is fastest on the first batch and gives what one by one gives.",
)
@click.option(
    "--dropout",
    type=Rates(),
    help="Rates to sweep at inference: EPKL measured and predicted with every dropout at each of them.",
)
@click.option("--reference", metavar="NAME", help="Compared with. Default: the first of alpha 0, else the first.")
@group_and_over
@click.option(
    "--shard",
    type=Shard(),
    default="1/1",
    help="Measure only the I-th of N parts of the examples, as in a job array; then rdrop-analyze merge.",
)
@output("rdrop-report")
@click.option(
    "--format", "formats", type=NameList(FORMATS), default="html,png,json,csv", show_default=True, help=FORMAT_HELP
)
@unit_shown("nats")
@delivery
@trust
@verbosity
@click.pass_context
def analyze(ctx: click.Context, /, checkpoints: tuple[Path, ...], trust_code: bool, **given: Any) -> None:
    """Measure checkpoints on the same data and compare them.

    A checkpoint is a self-describing file of `rdrop-analyze train`, a Hugging Face directory, or
    weights with --model: a state dict (.pt, .pth, .bin, .safetensors), a Lightning .ckpt, an index
    of shards. Options that are not given are looked for in an rdrop.toml beside the checkpoint,
    then in [tool.rdrop-analysis] of ./pyproject.toml.

    A run that was interrupted or killed goes on where it stopped when the same command is given
    again, to the same numbers bit for bit. `torchrun --nproc-per-node N -m rdrop_analysis ...` shares
    it among N processes.
    """
    from rdrop_analysis.commands.running import run
    from rdrop_analysis.config import fill_from_files

    first = first_named(checkpoints, given["groups"])
    settings = fill_from_files(ctx, given, first, trust_code=trust_code)
    run(ctx, list(map(str, checkpoints)), settings, trust_code=trust_code)
