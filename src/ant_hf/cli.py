"""The `ant-hf` command and the two entry scripts: parse, call the library, print. No logic.

The library is imported inside the commands, so that `--help` answers without loading torch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ant_hf import demo_commands, export_commands, inspection_commands, release_commands
from ant_hf.errors import AntError, RunStopped

if TYPE_CHECKING:
    from ant_hf.recipe import Recipe


def _typer(help_text: str | None = None) -> typer.Typer:
    return typer.Typer(
        help=help_text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )


app = _typer("Train, check and publish tiny Llama language models with stock Transformers.")
for commands in (release_commands, inspection_commands, demo_commands, export_commands):
    commands.add_to(app)
pretrain_app = _typer()
tokenizer_app = _typer()

Config = Annotated[
    Path, typer.Option("--config", "-c", help="Recipe, for example configs/recipes/quickstart.yaml.")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Train on local text instead of the recipe's corpus: a file, a folder or a quoted glob "
        "(txt, jsonl, parquet, each also .gz)."
    ),
]
OutputDir = Annotated[str | None, typer.Option(help="Folder of the run, instead of the recipe's.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the recipe, for example training.max_steps=100. May be repeated.",
    ),
]
Model = Annotated[str, typer.Argument(help="Model folder or Hub id, for example GODELEV/Ant-10M.")]


def run(command: typer.Typer) -> None:
    """Run a command line; a mistake of the user's ends in one message and exit code 2.

    So does what the system refuses (a full disk, a missing right). 75: stopped, to be continued.
    """
    try:
        command()
    except AntError as error:
        rank = os.environ.get("RANK", "0")
        who = "" if rank == "0" else f" (process {rank})"
        sys.stderr.write(f"error{who}: {error}\n")
        sys.exit(2)
    except RunStopped as stopped:
        # It has been said already, before the launcher could end this process.
        sys.exit(stopped.exit_code)
    except OSError as error:
        if error.errno is None:
            raise
        sys.stderr.write(f"error: {error.strerror}: {error.filename or 'no file named'}\n")
        sys.exit(2)


def main() -> None:
    """Entry point of `ant-hf`."""
    run(app)


def _recipe(config: Path, data: str | None, output_dir: str | None, overrides: list[str] | None) -> Recipe:
    from ant_hf.recipe import load_recipe

    changes = list(overrides or [])
    # Values are YAML, where a bare *.txt is an alias and 2026 a number; quoted, a path is a path.
    if data is not None:
        changes += ["corpus.source=files", f"corpus.path={json.dumps(data)}"]
    if output_dir is not None:
        changes.append(f"output_dir={json.dumps(output_dir)}")
    return load_recipe(config, changes)


@pretrain_app.command()
def pretrain(
    config: Config,
    data: Data = None,
    output_dir: OutputDir = None,
    overrides: Set = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Send the metrics to tensorboard (the default, in the run's folder), trackio, wandb or "
            "another of Trainer's integrations. May be repeated; none for metrics.jsonl alone.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove the run in the output folder first.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan and run one step on random tokens; write nothing."),
    ] = False,
) -> None:
    """Train a model from a recipe: tokenizer, packed tokens, training, export, check.

    Run again with the same recipe, it continues from the newest checkpoint. On several processes:
    accelerate launch --num_processes N pretrain.py --config RECIPE.
    """
    from ant_hf.processes import start_missing_processes

    start_missing_processes()
    from ant_hf.pretraining import pretrain as run_recipe

    reporting = [f"training.report_to={json.dumps(report_to)}"] if report_to else []
    recipe = _recipe(config, data, output_dir, [*(overrides or []), *reporting])
    run_recipe(recipe, fresh=fresh, dry_run=dry_run)


@tokenizer_app.command()
@app.command("tokenizer")
def tokenizer(config: Config, data: Data = None, output_dir: OutputDir = None, overrides: Set = None) -> None:
    """Train the recipe's byte-level BPE tokenizer and measure how it fragments held-out text."""
    from ant_hf.architecture import load_config
    from ant_hf.preparation import make_tokenizer

    recipe = _recipe(config, data, output_dir, overrides)
    make_tokenizer(recipe, load_config(recipe.architecture).max_position_embeddings)


@app.command("pack")
def pack(
    config: Config,
    data: Data = None,
    output_dir: OutputDir = None,
    overrides: Set = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Encode file by file in N processes with datatrove: the same tokens, and an interrupted "
            "command goes on with the files that are left. Default: one pass over the corpus on all cores.",
        ),
    ] = None,
) -> None:
    """Pack the recipe's corpus into token shards, with its tokenizer (trained first if missing)."""
    from ant_hf.architecture import load_config
    from ant_hf.preparation import make_tokenizer, make_tokens

    if workers:
        from ant_hf.cluster import pack_with_workers
    recipe = _recipe(config, data, output_dir, overrides)
    make_tokenizer(recipe, load_config(recipe.architecture).max_position_embeddings)
    if workers:
        pack_with_workers(recipe, workers)
    make_tokens(recipe)


@app.command("params")
def params(
    config: Annotated[Path, typer.Argument(help="LlamaConfig JSON or model folder.")] = Path(
        "configs/llama_ant10m.json"
    ),
) -> None:
    """Count parameters by component on the model itself, beside the published figure."""
    from ant_hf.architecture import load_config, parameter_ledger
    from ant_hf.published import published_counterpart
    from ant_hf.report import ledger_table, show

    values = load_config(config)
    ledger = parameter_ledger(values)
    show(ledger_table(list(ledger.rows), ledger.total, ledger.equation(), published_counterpart(values)))


def _model_folder(model: str) -> Path:
    """A model folder on this disk; a Hub id is downloaded into the Hub's cache."""
    from ant_hf.offline import choose_network

    if not Path(model).is_dir():
        choose_network(model, None)
    from ant_hf.evaluation.subject import locate

    return locate(model)[1]


@app.command("generate")
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "In the beginning",
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Continue a prompt with the public card's sampling settings."""
    folder = _model_folder(model)
    from ant_hf.checkpoints import generate_sample, load_any
    from ant_hf.report import say

    loaded, tokenizer = load_any(folder)
    say(generate_sample(loaded, tokenizer, prompt, seed))


@app.command("perplexity")
def perplexity(
    model: Model,
    tokens: Annotated[Path, typer.Option(help="Folder of packed tokens; its validation split is scored.")],
    context: Annotated[
        int | None, typer.Option(help="Tokens of context; default: the model's maximum.")
    ] = None,
) -> None:
    """Score held-out text: token perplexity, bits per byte, byte perplexity."""
    folder = _model_folder(model)
    from ant_hf.evaluation.perplexity import score_folder
    from ant_hf.report import say

    scores, context_tokens, uniform = score_folder(folder, tokens, context)
    say(f"{scores.tokens:,} tokens, {scores.bytes:,} bytes, context {context_tokens} tokens, fp32")
    say(f"byte perplexity   {scores.byte_perplexity:.4f}   (uniform guess {uniform:.2f})")
    say(f"bits per byte     {scores.bits_per_byte:.4f}")
    say(f"token perplexity  {scores.perplexity:.3f}   (only comparable under the same tokenizer)")


@app.command("evaluate")
def evaluate(
    model: Model,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Sets to run, separated by commas, for example arc_easy,wikitext,degeneration. "
            "Default: the public card's table, BLiMP, LAMBADA and degeneration."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N documents a task: for trying.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Full-length sequences a forward pass; shorter ones fill up to as many tokens. "
            "Default: 2 on a CPU, 64 on a GPU."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Take the documents from JSONL files in this folder, not the Hub.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the results. Default: the model's own; evaluations/NAME for a Hub id."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: the GPU if there is one.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure anew what is already there.")] = False,
) -> None:
    """Measure a model on the public card's benchmarks, perplexities and degeneration, by lm-eval.

    Writes results.json, lm_eval_results.json and samples.jsonl next to the model.

    Run again after an interruption, it goes on.
    """
    from ant_hf.offline import choose_network

    choose_network(model, data_dir)
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise AntError("evaluation needs lm-eval", hint="pip install 'ant-hf[eval]'") from None
    from ant_hf.evaluation.evaluate import Settings
    from ant_hf.evaluation.evaluate import evaluate as measure
    from ant_hf.evaluation.table import incomplete_line, perplexity_lines, results_table
    from ant_hf.published import published_models
    from ant_hf.report import say, show

    names = tuple(name.strip() for name in (tasks or "").split(",") if name.strip())
    settings = Settings(model, names, limit, batch_size, data_dir, output_dir, dtype, device, fresh)
    results, path = measure(settings)
    show(results_table(results, published_models()))
    if line := incomplete_line(results):
        say(line)
    for line in perplexity_lines(results):
        say(line)
    say(f"results: {path}")


@app.command("plots")
def plots(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run, for example runs/quickstart.")],
) -> None:
    """Draw a run's figures anew from its metrics.jsonl."""
    from ant_hf.errors import missing_file
    from ant_hf.metrics import read_metrics
    from ant_hf.plots import plot_run
    from ant_hf.report import say

    rows = read_metrics(run_dir / "metrics.jsonl")
    if not rows:
        raise missing_file(run_dir / "metrics.jsonl", "metrics of a run", "Pass the folder of a run.")
    for path in plot_run(rows, run_dir / "plots", run_dir.name):
        say(str(path))
