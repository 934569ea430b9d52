"""`ant-hf generate`, `perplexity`, `evaluate`, `compare`, `inspect`, `demo`, `export`: what models can do."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ant_hf.cli.options import Model, Vendor, switch_libraries
from ant_hf.cli.tables import (
    board_table,
    comparison_lines,
    comparison_table,
    incomplete_line,
    perplexity_lines,
    results_table,
    verified_table,
)
from ant_hf.errors import AntError
from ant_hf.utils.console import progress_bar, quiet_libraries, remark, say, show, write
from ant_hf.utils.names import expand_home
from ant_hf.utils.provenance import install_command


def _model_folder(model: str) -> Path:
    """A model folder on this disk; a Hub id is downloaded into the Hub's cache."""
    switch_libraries()
    from ant_hf.model.loading import locate

    return locate(model)[1]


def generate(
    model: Model,
    prompt: Annotated[
        str | None, Option(help="Text to continue. Default: every line that is typed or piped in.")
    ] = None,
    temperature: Annotated[
        float | None,
        Option(min=0.0, help="Default of this and the next three: the model's own, else the public card's."),
    ] = None,
    top_p: Annotated[
        float | None, Option(min=0.01, max=1.0, help="Choose among tokens of this share of the probability.")
    ] = None,
    top_k: Annotated[int | None, Option(min=1, help="Choose among the K most probable tokens.")] = None,
    repetition_penalty: Annotated[
        float | None, Option(min=0.01, help="Above 1, tokens of the text become less likely; 1 for none.")
    ] = None,
    max_new_tokens: Annotated[int, Option(min=1, help="As many as the model's context has room for.")] = 64,
    greedy: Annotated[
        bool, Option("--greedy", help="Always take the most probable token, without sampling.")
    ] = False,
    num_samples: Annotated[
        int, Option(min=1, help="Continue N times, with the seeds from SEED to SEED + N - 1.")
    ] = 1,
    seed: Annotated[int, Option(help="Seed of the sampling: the same one gives the same text.")] = 0,
) -> None:
    """Continue a prompt, or each of the prompts that are typed (Ctrl-D ends) or piped in, one per line.

    The text goes to stdout as it is made; the settings are shown on stderr.
    """
    folder = _model_folder(model)
    from ant_hf.model import generation
    from ant_hf.model.causality import check_causal
    from ant_hf.model.loading import load_any

    with quiet_libraries():
        loaded, tokenizer = load_any(folder)
        check_causal(loaded)
    given = {
        "temperature": temperature or None,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
    }
    settings = {key: value for key, value in given.items() if value is not None}
    greedy = greedy or temperature == 0
    remark(generation.sampling(loaded, greedy, settings)[1])
    at_terminal = sys.stdin.isatty() and prompt is None
    for each in _prompts(prompt):
        for number in range(num_samples):
            if num_samples > 1:
                say(f"[seed {seed + number}]")
            try:
                generation.generate_sample(
                    loaded,
                    tokenizer,
                    each,
                    seed + number,
                    max_new_tokens=max_new_tokens,
                    greedy=greedy,
                    show=write,
                    **settings,
                )
            except AntError as error:
                if not at_terminal:
                    raise
                remark(f"error: {error}")
                break
            write("\n")


def _prompts(given: str | None) -> Iterator[str]:
    """The prompt of the command line, or each line of stdin that is not blank."""
    if given is not None:
        yield given
        return
    if at_terminal := sys.stdin.isatty():
        remark("Type a prompt and press Enter; Ctrl-D ends.")
    none = True
    while True:
        try:
            line = input("> " if at_terminal else "")
        except EOFError:
            break
        if line.strip():
            none = False
            yield line
    if none and not at_terminal:
        raise AntError("there is no prompt", hint="Pass one: --prompt 'In the beginning', or pipe lines in.")


def perplexity(
    model: Model,
    tokens: Annotated[
        Path | None, Option(help="Folder of packed tokens; its validation split is scored.")
    ] = None,
    text: Annotated[
        Path | None, Option(metavar="FILE", help="A UTF-8 text file (also .gz), or - for stdin.")
    ] = None,
    context: Annotated[
        int | None, Option(help="Tokens of context; default: the model's maximum, at most 2,048.")
    ] = None,
) -> None:
    """Score held-out text, or any text: token perplexity, bits per byte, byte perplexity."""
    if (tokens is None) == (text is None):
        raise AntError(
            "perplexity needs one text", hint="Pass --text FILE, or --tokens FOLDER of packed tokens."
        )
    folder = _model_folder(model)
    from ant_hf.model.scoring import score_file, score_folder

    start = ""
    with progress_bar("scoring tokens") as advance, quiet_libraries():
        if tokens is not None:
            scores, length = score_folder(folder, tokens, context, progress=advance)
        elif text is not None:
            scores, length, words = score_file(folder, text, context, progress=advance)
            start = f"; {words}"
    say(f"{scores.tokens:,} tokens, {scores.bytes:,} bytes, context {length} tokens, fp32{start}")
    uniform = _figure(scores.uniform_byte_perplexity, 2)
    say(f"byte perplexity   {_figure(scores.byte_perplexity)}   (uniform guess {uniform})")
    say(f"bits per byte     {_figure(scores.bits_per_byte)}")
    say(f"token perplexity  {_figure(scores.perplexity, 3)}   (only comparable under the same tokenizer)")


def _figure(value: float, decimals: int = 4) -> str:
    if math.isinf(value):
        return "beyond 1e304"
    return f"{value:.{decimals}f}" if value < 1e9 else f"{value:.3g}"


def evaluate(
    model: Model,
    tasks: Annotated[
        str | None,
        Option(
            help="Sets to run, separated by commas, for example arc_easy,wikitext,degeneration. "
            "Default: the public card's table, BLiMP, LAMBADA and degeneration."
        ),
    ] = None,
    board: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Measure what a public board counts, tiny-ml or open-slm, and show the model among the "
            "board's rows, with a plot. Sets that are measured already are not measured again.",
        ),
    ] = None,
    limit: Annotated[
        int | None, Option(help="Only the first N documents per task (of MMLU: per subject), to try it out.")
    ] = None,
    batch_size: Annotated[
        int | None,
        Option(
            help="Full-length sequences per forward pass; of shorter ones, as many as give the same tokens. "
            "Default: 2 on a CPU, 64 on a GPU."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, Option(help="Take the documents from JSONL files in this folder, not the Hub.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        Option(
            help="Folder of the results. Default: the model's own; evaluations/NAME for a Hub id or a "
            "checkpoint."
        ),
    ] = None,
    dtype: Annotated[
        str,
        Option(
            help="float32, bfloat16 or float16. In 16 bits, a set is still scored in float32 if rounding "
            "would move its score by more than a third of the standard error, or if it is small."
        ),
    ] = "float32",
    device: Annotated[str | None, Option(help="cpu or cuda. Default: the GPU if there is one.")] = None,
    fresh: Annotated[
        bool,
        Option(
            "--fresh",
            help="Measure the sets again. Results of another model or other conditions are replaced.",
        ),
    ] = False,
) -> None:
    """Measure a model on the public card's benchmarks, perplexities and degeneration, by lm-eval.

    Writes results.json, lm_eval_results.json and samples.jsonl next to the model.

    After an interruption, the same command continues.
    """
    if board is not None and tasks is None and not fresh:
        from ant_hf.evaluation.boards import load_board, recorded_results

        folder = output_dir or Path(model)
        if results := recorded_results(load_board(board), folder):
            _show_board(board, results, folder)
            return
    _switch_libraries([model], data_dir)
    if importlib.util.find_spec("lm_eval") is None:
        raise AntError("evaluation needs lm-eval", hint=install_command("eval"))
    from ant_hf.evaluation.evaluate import evaluate as measure
    from ant_hf.published import published_models

    results, path = measure(
        model,
        _names(tasks),
        board=board,
        data_dir=data_dir,
        output_dir=output_dir,
        limit=limit,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        fresh=fresh,
    )
    if board:
        _show_board(board, results, path.parent)
    else:
        show(results_table(results, published_models()))
        for line in filter(None, [incomplete_line(results), *perplexity_lines(results)]):
            say(line)
    say("results", path)


def _show_board(name: str, results: dict[str, Any], folder: Path) -> None:
    """The board with our row in it, that row to paste, and the plot: beside the results, or here."""
    from ant_hf.evaluation.boards import board_rows, counted_line, load_board, markdown_row, own_name
    from ant_hf.utils.names import RELEASE
    from ant_hf.utils.plots import plot_board

    board = load_board(name)
    rows = board_rows(board, results, own_name(results, folder))
    show(board_table(board, rows))
    for line in filter(None, [incomplete_line(results), counted_line(board, results), *board.notes]):
        say(line)
    row = markdown_row(board, rows)
    say(f"To paste:\n{row}" if row else "There is no row to paste: it needs all documents of every set.")
    # A release holds what its record names and nothing else.
    place = Path() if (folder / RELEASE).is_file() else folder
    say("plot", plot_board(rows, board.title, board.score, place / f"board-{name}.png"))


def compare(
    models: Annotated[
        list[str],
        Argument(
            help="Two or more: model folders, checkpoints, Hub ids, or folders with a results.json. The "
            "first is compared with each of the others."
        ),
    ],
    tasks: Annotated[
        str | None,
        Option(help="Sets to compare, separated by commas. Default: all that one of them was measured on."),
    ] = None,
    data_dir: Annotated[
        Path | None, Option(help="Folder of JSONL documents, for sets that must be measured first.")
    ] = None,
    limit: Annotated[
        int | None, Option(help="Measure missing sets on their first N documents per task, to try it out.")
    ] = None,
    output_dir: Annotated[
        Path | None, Option(help="Folder of the comparison. Default: comparisons/A-vs-B.")
    ] = None,
    for_card: Annotated[
        bool,
        Option("--for-card", help="Also put comparison.json beside the first model, for ant-hf card."),
    ] = False,
    yes: Annotated[bool, Option("--yes", help="Measure what is missing without asking.")] = False,
) -> None:
    """Which model is better? Set by set, on the same documents, with a verdict in words.

    Uses what ant-hf evaluate has measured. Writes a page, figures, and comparison.json.
    """
    _switch_libraries(models, data_dir)
    if importlib.util.find_spec("scipy") is None:
        raise AntError("a comparison needs scipy", hint=install_command("eval"))
    from ant_hf.evaluation.comparison import compare as compare_models

    values, folder = compare_models(
        models,
        _names(tasks),
        data_dir=data_dir,
        output_dir=output_dir,
        limit=limit,
        yes=yes,
        ask=_ask if sys.stdin.isatty() and sys.stderr.isatty() else None,
        for_card=for_card,
    )
    for pair in values["pairs"]:
        show(comparison_table(pair))
    for line in comparison_lines(values):
        say(line)
    say("comparison", folder)


def _switch_libraries(models: list[str], data_dir: Path | None) -> None:
    """The Hub is not asked for documents that are here, nor for anything if the models are here too."""
    offline = ["HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"] if data_dir is not None else []
    are_here = all(Path(expand_home(model)).is_dir() for model in models)
    switch_libraries(*(offline if are_here else offline[:1]))


def _names(tasks: str | None) -> list[str]:
    return [name.strip() for name in (tasks or "").split(",") if name.strip()]


def _ask(missing: str) -> bool:
    question = f"{missing}. Measure it first? It can take minutes per set"
    return typer.confirm(question, default=True, err=True)


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
            help="Where the report goes. Default: inspection.html in the run's folder; here for other "
            "models, and where that folder is read-only.",
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
    from ant_hf.utils.files import check_output_file, write_json, write_text

    path = html or default_report(model, other)
    for file, option in ((path, "--html"), (json, "--json")):
        if file:
            check_output_file(file, option)
    inspections = compare(model, other, text, position, tokens)
    print_inspection(inspections)
    write_text(path, render_report(inspections))
    say("report", f"{path}: open it in a browser; it explains every figure")
    if json:
        write_json(json, {"models": [as_json(each) for each in inspections]})
        say("figures", json)


def demo(
    model: Model,
    other: Annotated[str | None, Argument(help="A second one, to compare side by side.")] = None,
    port: Annotated[
        int | None, Option(min=1, max=65535, help="Port of the page. Default: the first free one from 7860.")
    ] = None,
    share: Annotated[
        bool, Option("--share", help="Also give the page a public address, through Gradio's servers.")
    ] = False,
    static: Annotated[
        bool,
        Option(
            "--static",
            help="Write a folder that any web server serves; the browser runs the model.",
        ),
    ] = False,
    output: Annotated[
        Path | None, Option("--output", "-o", help="With --static: the folder. Default: site.")
    ] = None,
    dtypes: Annotated[
        list[str] | None,
        Option(
            "--dtype",
            metavar="TYPE",
            help="With --static: q8 for processors, fp16 or fp32 for graphics cards too. May be repeated. "
            "Default: q8 and fp16.",
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        Option("--prompt", metavar="TEXT", help="With --static: an example on the page. May be repeated."),
    ] = None,
    vendor: Vendor = None,
) -> None:
    """Try a model on a page in the browser, on this computer only; or write such a page for everyone.

    Streams its text with the card's sampling, shows the surprise of every fragment, and warns of loops.
    """
    switch_libraries()
    models = [model] if other is None else [model, other]
    if static:
        if port or share:
            raise AntError(
                "--static writes a folder and does not serve it", hint="Leave out --port and --share."
            )
        from ant_hf.demo.site import SiteOptions, make_site

        options = SiteOptions(tuple(dict.fromkeys(dtypes or SiteOptions.dtypes)), vendor, prompts or ())
        folder = make_site(models, output or Path("site"), options)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        say("site", f"{folder}, {size / 1e6:.0f} MB")
        say("try it", f"python -m http.server --bind 127.0.0.1 --directory {folder} 8000")
        return
    if output or dtypes or prompts or vendor:
        raise AntError(
            "--output, --dtype, --prompt and --vendor need --static",
            hint="Add --static to write the folder of a static page.",
        )
    if importlib.util.find_spec("gradio") is None:
        raise AntError("the demo needs Gradio", hint=install_command("demo"))
    from ant_hf.demo.serving import serve

    serve(models, port, share)


def export(
    model: Model,
    to: Annotated[
        str,
        Option(help="gguf (llama.cpp, Ollama, LM Studio) or onnx (transformers.js, ONNX Runtime)."),
    ],
    types: Annotated[
        list[str] | None,
        Option(
            "--type",
            metavar="TYPE",
            help="GGUF: f32, f16, q8_0, q5_1, q5_0, q4_1, q4_0 or all; default: all but those with q5. "
            "ONNX: fp32, fp16, q8 or all (default). May be repeated.",
        ),
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
        say("note", line)
    say("export", folder)
