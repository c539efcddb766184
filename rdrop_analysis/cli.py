"""`rdrop-analyze`: the group of commands, and how errors become one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NoReturn

import click
from click_default_group import DefaultGroup

from rdrop_analysis.commands.analyze import analyze
from rdrop_analysis.commands.demo import demo
from rdrop_analysis.commands.inspect import inspect
from rdrop_analysis.commands.merge import merge
from rdrop_analysis.commands.report import report
from rdrop_analysis.commands.sites import sites
from rdrop_analysis.commands.train import train
from rdrop_analysis.errors import INTERRUPTED, UNEXPECTED, RDropAnalysisError
from rdrop_analysis.files import visible

EPILOG = """\b
Examples:
  rdrop-analyze demo
  rdrop-analyze baseline.pt rdrop.pt
  rdrop-analyze weights.pt --model net.py:Net --data test.npz
  rdrop-analyze sites weights.pt --model net.py:Net --data test.npz

\b
Exit codes: 0 done, 1 a --fail-if gate failed, 2 usage, 3 refused as unsafe, 4 a checkpoint or data
that cannot be read, or a result that cannot be written, 70 an unexpected error (please report it),
130 interrupted. What was finished is saved."""


class Group(DefaultGroup):  # type: ignore[misc] # click-default-group has no type information
    """Runs `analyze` where no command is named, and turns our errors into click's."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run; of the processes that torchrun starts only one prints."""
        from rdrop_analysis.workers import is_follower

        if not is_follower():
            return super().main(*args, **kwargs)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Invoke a command; `-v` shows where an error came from."""
        try:
            return super().invoke(ctx)
        except RDropAnalysisError as problem:
            _fail(ctx, str(problem), problem.exit_code)
        except BrokenPipeError:  # who reads the output has seen enough
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - stays open, so that closing it at exit succeeds
            ctx.exit(0)
        except OSError as problem:
            _fail(ctx, f"{problem.strerror or problem}: nothing more could be written", 4)
        except KeyboardInterrupt:
            _fail(ctx, "interrupted", INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as problem:  # a fault of ours must not read as a gate that failed, whose exit code is Python's
            from rdrop_analysis.workers import unexpected

            _fail(ctx, str(unexpected(problem)), UNEXPECTED)


def _fail(ctx: click.Context, message: str, exit_code: int) -> NoReturn:
    if ctx.meta.get("verbose"):
        click.echo(traceback.format_exc(), err=True, nl=False)
    raise _FailureError(visible(message), exit_code) from None


class _FailureError(click.ClickException):
    """An error of ours, as click shows errors: one line, and the exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc] # click declares it for the class


@click.group(
    cls=Group,
    default="analyze",
    default_if_no_args=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="rdrop-analysis", prog_name="rdrop-analyze")
def main() -> None:
    """Measure how far a dropout-trained PyTorch model is from the model that is deployed.

    Dropout trains a random sub-model at every step, and another model, with dropout off, is used.
    `rdrop-analyze CHECKPOINT...` measures the difference: the expected pairwise KL between
    sub-models (EPKL, what R-Drop bounds), the gap to eval mode, Jacobian complexity, and which
    dropout site causes it; and compares checkpoints with intervals. It writes an HTML report,
    figures, results.json and tables.

    `rdrop-analyze analyze --help` lists the options of the main job.
    """


for command in (analyze, demo, sites, inspect, merge, report, train):
    main.add_command(command)
