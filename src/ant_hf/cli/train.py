"""`pretrain.py`, `train_tokenizer.py`, and `ant-hf train`, `new`, `tokenizer`, `pack`, `params`, `plots`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ant_hf.cli.options import (
    Config,
    Data,
    OutputDir,
    Set,
    read_recipe,
    switch_libraries,
    whole_number,
)
from ant_hf.errors import AntError, missing_file
from ant_hf.utils.console import say, show
from ant_hf.utils.provenance import install_command

ReportTo = Annotated[
    list[str] | None,
    Option(
        metavar="NAME",
        help="Send the metrics to tensorboard (the default, in the run's folder), trackio, wandb or "
        "another of Trainer's integrations. May be repeated; none for metrics.jsonl alone.",
    ),
]
Fresh = Annotated[bool, Option("--fresh", help="Remove the run in the output folder first.")]
DryRun = Annotated[
    bool,
    Option("--dry-run", help="Check text, folders and machine, and say how long it takes. Write nothing."),
]


def pretrain(
    config: Config,
    data: Data = None,
    output_dir: OutputDir = None,
    overrides: Set = None,
    report_to: ReportTo = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
) -> None:
    """Train a model from a recipe: tokenizer, packed tokens, training, export, check.

    The same command again continues from the newest checkpoint. On several GPUs:
    accelerate launch --quiet --num_processes N pretrain.py --config RECIPE.
    """
    from ant_hf.train import pretrain as runs
    from ant_hf.train.distributed import check_launch

    check_launch()
    recipe = read_recipe(config, data, output_dir, overrides, report_to=report_to or None)
    runs.dry_run(recipe, fresh) if dry_run else runs.pretrain(recipe, fresh)


def train(
    texts: Annotated[
        list[str] | None, Argument(metavar="[TEXT]...", help="More texts, as when the shell expands *.txt.")
    ] = None,
    config: Annotated[
        Path | None,
        Option("--config", "-c", help="Train by this recipe, instead of one that is chosen for the text."),
    ] = None,
    data: Data = None,
    base: Annotated[
        str | None,
        Option(
            "--from",
            metavar="MODEL",
            help="Start from this Llama, a folder or OWNER/NAME on the Hub, with the recipe finetune.",
        ),
    ] = None,
    output_dir: OutputDir = None,
    minutes: Annotated[
        float | None,
        Option(min=0.1, help="How long the whole run may take here, if no recipe is given. Default: 10."),
    ] = None,
    overrides: Set = None,
    report_to: ReportTo = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
) -> None:
    """Train on a text of your own: ant-hf train --data my.txt. Or from a recipe, with --config.

    Vocabulary, model, context and steps are chosen by the size of the text and the speed of this machine, and
    written as a recipe into the run's folder, runs/my, for you to edit. The same command again continues it.
    """
    data = [*(data or ()), *(texts or ())]
    if base is not None and config is not None:
        hint = "Leave --from out, and write: --set training.init_from=MODEL"
        raise AntError("--from and --config were both given", hint=hint)
    if base is not None and data:
        from ant_hf.train.own_text import folder_for

        config, output_dir = Path("finetune"), output_dir or f"{folder_for(data[0])}-finetuned"
        name = folder_for(output_dir).name
        overrides = [f"training.init_from={base}", f"name={name}", *(overrides or ())]
    if config is not None:
        if minutes is not None:
            raise AntError(
                f"--minutes and {'--from' if base else '--config'} were both given",
                hint="Leave --minutes out: a recipe has training.max_steps, which --set can change.",
            )
        pretrain(config, data, output_dir, overrides, report_to, fresh, dry_run)
        return
    if not data:
        raise AntError(
            "no text and no recipe were given",
            hint="Type: ant-hf train --data my.txt. Or: ant-hf train --config quickstart",
        )
    from ant_hf.train.own_text import own_recipe

    with own_recipe(data, output_dir, minutes, overrides or (), fresh, look_only=dry_run) as recipe:
        folder = None if dry_run else str(recipe.parent)
        pretrain(recipe, None, folder, overrides, report_to, fresh, dry_run)
        if not dry_run:
            say("change it", f"edit {recipe}, and run this again with --fresh")


def new(
    name: Annotated[str, Argument(help="Name of the recipe and of its architecture, for example my-20m.")],
    parameters: Annotated[
        str, Option("--parameters", "-p", metavar="N", help="Size of the model, for example 20M.")
    ],
    vocab: Annotated[int, Option(min=300, max=65536, help="Entries of the vocabulary.")] = 4096,
    context: Annotated[int, Option(min=16, max=8192, help="Tokens that the model reads at once.")] = 1024,
    tokens: Annotated[
        str | None,
        Option(metavar="N", help="Tokens to train on, for example 400M. Default: 20 for each parameter."),
    ] = None,
    hours: Annotated[
        float | None, Option(min=0.01, max=100_000, help="How long the run may take, instead of --tokens.")
    ] = None,
    device: Annotated[
        str | None,
        Option(help="GPU that --hours are for, for example t4: calculated. Default: this machine, measured."),
    ] = None,
    width: Annotated[
        int | None, Option(help="Width of the model, one of those in the table that this command shows.")
    ] = None,
    data: Data = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the files of that name.")] = False,
) -> None:
    """Make a recipe from a wish: ant-hf new my-20m --parameters 20M --tokens 400M.

    Chooses shape, batch, steps and learning rates, writes configs/llama_my-20m.json and
    configs/recipes/my-20m.yaml, and says what the run takes of time, memory and disk, as --dry-run does.
    """
    from ant_hf.train.new import Wish, new_recipe

    wish = Wish(
        name=name,
        parameters=whole_number("--parameters", parameters),
        vocabulary=vocab,
        context=context,
        tokens=whole_number("--tokens", tokens) if tokens is not None else None,
        hours=hours,
        device=device,
        width=width,
        data=data or [],
    )
    file = new_recipe(wish, overwrite)
    say("train it", f"accelerate launch --quiet pretrain.py --config {file}")
    say("", f"or: ant-hf train --config {file}")


def study(
    file: Annotated[
        Path, Argument(help="Study: a YAML file, or the name of one that comes with the package: first.")
    ],
    data: Data = None,
    overrides: Set = None,
    output_dir: Annotated[
        str | None, Option(help="Folder of the study and its runs. Default: runs/studies/NAME.")
    ] = None,
    scale: Annotated[
        float,
        Option(metavar="X", help="Train every run on X times as many tokens, for example 100 on a GPU."),
    ] = 1.0,
    data_dir: Annotated[
        Path | None,
        Option(help="Folder of evaluation sets as JSONL, if the study scores some. Default: the Hub."),
    ] = None,
    docs: Annotated[
        Path | None,
        Option(metavar="DIR", help="Also put page, plot and record here, for example docs/studies."),
    ] = None,
    dry_run: DryRun = False,
    tokens_per_second: Annotated[
        float | None,
        Option(min=1, help="With --dry-run: speed of the largest model, instead of timing a few steps here."),
    ] = None,
) -> None:
    """Answer a question by a set of runs: ant-hf study first.

    Trains and scores every run of the study file in a process of its own, one after the other, then writes
    study.json, a plot and a page. The same command again continues; finished runs are not trained again.
    """
    switch_libraries()
    if importlib.util.find_spec("scipy") is None or importlib.util.find_spec("lm_eval") is None:
        raise AntError("a study needs scipy and lm-eval", hint=install_command("eval"))
    from ant_hf.studies.study_file import Options, load_study

    loaded = load_study(file, Options(overrides or (), data or (), output_dir, scale))
    if dry_run:
        from ant_hf.studies.planning import plan_study

        plan_study(loaded, tokens_per_second)
        return
    from ant_hf.studies.study import run_study

    run_study(loaded, data_dir, docs)


def tokenizer(config: Config, data: Data = None, output_dir: OutputDir = None, overrides: Set = None) -> None:
    """Train the recipe's byte-level BPE tokenizer and measure how it fragments held-out text."""
    from ant_hf.data.tokenizer import make_tokenizer
    from ant_hf.model.base import architecture_of

    recipe = read_recipe(config, data, output_dir, overrides)
    architecture, _, base = architecture_of(recipe)
    make_tokenizer(recipe, architecture.max_position_embeddings, base.tokenizer if base else None)


def pack(
    config: Config,
    data: Data = None,
    output_dir: OutputDir = None,
    overrides: Set = None,
    workers: Annotated[
        int | None,
        Option(
            min=1,
            help="Encode file by file in N processes: the same tokens, and an interrupted "
            "command continues with the files that are left. Default: one pass over the corpus on all cores.",
        ),
    ] = None,
) -> None:
    """Pack the recipe's corpus into token shards, with its tokenizer (trained first if missing)."""
    from ant_hf.data.packing import make_tokens
    from ant_hf.data.packing_tasks import pack_with_workers
    from ant_hf.data.tokenizer import make_tokenizer
    from ant_hf.model.base import architecture_of

    recipe = read_recipe(config, data, output_dir, overrides)
    architecture, _, base = architecture_of(recipe)
    make_tokenizer(recipe, architecture.max_position_embeddings, base.tokenizer if base else None)
    pack_with_workers(recipe, workers) if workers else make_tokens(recipe)


def params(
    config: Annotated[
        str, Argument(help="LlamaConfig JSON, model folder, Hub id, or the name of one here: ant10m, ant5m.")
    ] = "ant10m",
) -> None:
    """Count a model's parameters by component, and show the published number beside the sum.

    Of a model on the Hub, only config.json is fetched.
    """
    from ant_hf.model.architecture import ledger_table, load_architecture, model_architecture
    from ant_hf.model.loading import locate
    from ant_hf.published import published_counterpart
    from ant_hf.utils.names import CONFIG

    path = Path(config)
    is_model = path.is_dir() or ("/" in config and path.suffix != ".json" and not path.is_file())
    # A JSON is to be trained here, and must be what this package trains; a folder may hold anyone's model.
    found = model_architecture(locate(config, [CONFIG])[1]) if is_model else load_architecture(config)
    values, ledger = found
    show(ledger_table(ledger, published_counterpart(values)))


def plots(run_dir: Annotated[Path, Argument(help="Folder of a run, for example runs/quickstart.")]) -> None:
    """Draw a run's figures again from its metrics.jsonl."""
    from ant_hf.utils.metrics import read_metrics
    from ant_hf.utils.names import METRICS, PLOTS
    from ant_hf.utils.plots import plot_run

    rows = read_metrics(run_dir / METRICS)
    if not rows:
        raise missing_file(run_dir / METRICS, "metrics of a run", "Pass the folder of a run.")
    for path in plot_run(rows, run_dir / PLOTS, run_dir.name):
        say(str(path))
