"""`ant-hf generate`, `perplexity`, `evaluate`, `inspect`, `demo`, `export`: what is done with one model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ant_hf.cli.options import Model, switch_libraries
from ant_hf.cli.tables import incomplete_line, perplexity_lines, results_table, verified_table
from ant_hf.errors import AntError
from ant_hf.utils.console import say, show


def _model_folder(model: str) -> Path:
    """A model folder on this disk; a Hub id is downloaded into the Hub's cache."""
    switch_libraries()
    from ant_hf.model.loading import locate

    return locate(model)[1]


def generate(
    model: Model,
    prompt: Annotated[str, Option(help="Text to continue.")] = "In the beginning",
    seed: Annotated[int, Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Continue a prompt with the public card's sampling settings."""
    folder = _model_folder(model)
    from ant_hf.model.generation import generate_sample
    from ant_hf.model.loading import load_any

    loaded, tokenizer = load_any(folder)
    say(generate_sample(loaded, tokenizer, prompt, seed))


def perplexity(
    model: Model,
    tokens: Annotated[Path, Option(help="Folder of packed tokens; its validation split is scored.")],
    context: Annotated[int | None, Option(help="Tokens of context; default: the model's maximum.")] = None,
) -> None:
    """Score held-out text: token perplexity, bits per byte, byte perplexity."""
    folder = _model_folder(model)
    from ant_hf.model.scoring import score_folder

    scores, context_tokens = score_folder(folder, tokens, context)
    say(f"{scores.tokens:,} tokens, {scores.bytes:,} bytes, context {context_tokens} tokens, fp32")
    uniform = scores.uniform_byte_perplexity
    say(f"byte perplexity   {scores.byte_perplexity:.4f}   (uniform guess {uniform:.2f})")
    say(f"bits per byte     {scores.bits_per_byte:.4f}")
    say(f"token perplexity  {scores.perplexity:.3f}   (only comparable under the same tokenizer)")


def evaluate(
    model: Model,
    tasks: Annotated[
        str | None,
        Option(
            help="Sets to run, separated by commas, for example arc_easy,wikitext,degeneration. "
            "Default: the public card's table, BLiMP, LAMBADA and degeneration."
        ),
    ] = None,
    limit: Annotated[int | None, Option(help="Only the first N documents a task: for trying.")] = None,
    batch_size: Annotated[
        int | None,
        Option(
            help="Full-length sequences a forward pass; shorter ones fill up to as many tokens. "
            "Default: 2 on a CPU, 64 on a GPU."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, Option(help="Take the documents from JSONL files in this folder, not the Hub.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        Option(help="Folder of the results. Default: the model's own; evaluations/NAME for a Hub id."),
    ] = None,
    dtype: Annotated[str, Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, Option(help="cpu or cuda. Default: the GPU if there is one.")] = None,
    fresh: Annotated[bool, Option("--fresh", help="Measure anew what is already there.")] = False,
) -> None:
    """Measure a model on the public card's benchmarks, perplexities and degeneration, by lm-eval.

    Writes results.json, lm_eval_results.json and samples.jsonl next to the model.

    Run again after an interruption, it goes on.
    """
    if data_dir is not None:
        switch_libraries("HF_DATASETS_OFFLINE", *(["HF_HUB_OFFLINE"] if Path(model).is_dir() else []))
    else:
        switch_libraries()
    if importlib.util.find_spec("lm_eval") is None:
        raise AntError("evaluation needs lm-eval", hint="pip install 'ant-hf[eval]'")
    from ant_hf.evaluation.evaluate import evaluate as measure
    from ant_hf.published import published_models

    results, path = measure(
        model,
        [name.strip() for name in (tasks or "").split(",") if name.strip()],
        data_dir=data_dir,
        output_dir=output_dir,
        limit=limit,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        fresh=fresh,
    )
    show(results_table(results, published_models()))
    if line := incomplete_line(results):
        say(line)
    for line in perplexity_lines(results):
        say(line)
    say(f"results: {path}")


def inspect(
    model: Model,
    other: Annotated[str | None, Argument(help="A second model to put beside it.")] = None,
    text: Annotated[
        str | None,
        Option(
            help="Text to read with the model, or a UTF-8 file of it. Default: the run's held-out text, "
            "if its tokens are there, else plain English."
        ),
    ] = None,
    position: Annotated[
        int | None,
        Option(help="Token of the text whose distribution is shown, 0 the first. Default: after the last."),
    ] = None,
    tokens: Annotated[
        Path | None,
        Option(help="Folder of the run's packed tokens, to count frequencies in, if it was moved."),
    ] = None,
    html: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Where the report goes. Default: inspection.html in the run's folder; for others, here.",
        ),
    ] = None,
    json: Annotated[
        Path | None, Option(metavar="FILE", help="Also write every figure to this JSON file.")
    ] = None,
) -> None:
    """Look inside any Llama-like model: weights, heads, embeddings, a text in fragments and their losses.

    Prints a summary and writes one HTML file that needs no network.
    """
    switch_libraries()
    from ant_hf.inspection.examination import compare, default_report
    from ant_hf.inspection.findings import as_json
    from ant_hf.inspection.report import render_report
    from ant_hf.inspection.terminal import print_inspection
    from ant_hf.utils.files import write_json, write_text

    inspections = compare(model, other, text, position, tokens)
    print_inspection(inspections)
    path = html or default_report(model, other)
    write_text(path, render_report(inspections))
    say(f"report      {path}")
    if json:
        write_json(json, {"models": [as_json(each) for each in inspections]})
        say(f"figures     {json}")


def demo(
    model: Model,
    other: Annotated[str | None, Argument(help="A second one, to compare side by side.")] = None,
    port: Annotated[
        int | None, Option(min=1, max=65535, help="Default: the first free one from 7860.")
    ] = None,
    share: Annotated[
        bool, Option("--share", help="Also give it a public address, through Gradio's servers.")
    ] = False,
) -> None:
    """Try a model on a page in the browser, on this computer only.

    Streams its text with the card's sampling, shows the surprise of every fragment, and warns of loops.
    """
    switch_libraries()
    if importlib.util.find_spec("gradio") is None:
        raise AntError("the demo needs Gradio", hint="pip install 'ant-hf[demo]'")
    from ant_hf.demo.serving import serve

    serve([model] if other is None else [model, other], port, share)


def export(
    model: Model,
    to: Annotated[str, Option(help="gguf (llama.cpp, Ollama, LM Studio) or onnx (ONNX Runtime).")],
    types: Annotated[
        list[str] | None,
        Option("--type", metavar="TYPE", help="GGUF: f32, f16, q8_0 or all (default). May be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        Option(
            help="Folder of the export, replaced as a whole. "
            "Default: gguf or onnx beside a run's final folder, else under exports/."
        ),
    ] = None,
    repo: Annotated[
        str | None, Option(metavar="OWNER/NAME", help="Hub repository it belongs to; names the files.")
    ] = None,
    license_id: Annotated[
        str | None, Option("--license", metavar="ID", help="Licence of the model, as the Hub spells it.")
    ] = None,
) -> None:
    """Write a model as GGUF or ONNX, and verify the files in the programs that will load them.

    A file that does not give the same tokens, outputs and likelihoods is not kept; verified.json has the
    figures.
    """
    from ant_hf.export.exporting import export as export_model

    folder, record = export_model(model, to, types or (), output, repo, license_id)
    show(verified_table(record))
    for line in record["notes"]:
        say(f"note        {line}")
    say(f"export      {folder}")
