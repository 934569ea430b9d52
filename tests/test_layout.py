"""The shape of the code base: imports go one way, pieces stay small, nothing heavy at import."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

SOURCE = ROOT / "src" / "ant_hf"
# In the order a reader walks; a module may import from the lines above it only.
ORDER = [
    "errors", "artefacts", "disk", "metrics", "shipped", "published", "claims", "audit", "processes",
    "report", "reporting", "recipe_yaml", "recipe_problems", "recipe", "locks", "machines", "plots",
    "readers", "sources", "decontamination", "corpus", "fragmentation", "tokenizer", "tokens", "encoding",
    "packing", "parts",
    "dataset",
    "architecture", "attention", "precision", "arguments", "micro_batch",
    "plan", "optimizers", "losses", "stopping", "callbacks", "guards", "resume",
    "checkpoints", "evaluation.statistics", "evaluation.perplexity", "training", "preparation",
    "run_folder", "run_record",
    "release.checks", "release.files", "hub.client", "hub.training",
    "run_setup", "dry_run", "pretraining", "cluster",
    "offline", "evaluation.benchmarks", "evaluation.arithmark", "evaluation.definitions",
    "evaluation.layout", "evaluation.likelihoods", "evaluation.language_model", "evaluation.degeneration",
    "evaluation.subject", "evaluation.records", "evaluation.results",
    "evaluation.harness", "evaluation.evaluate", "evaluation.table",
    "card.markdown", "card.inputs", "card.benchmarks", "card.takeaways", "card.energy", "card.metadata",
    "card.facts", "card.rendering", "card.reading",
    "release.texts", "release.loading", "release.scoring", "release.loops",
    "release.gate", "release.held_out", "release.exports", "release.assembling", "release.verifying",
    "inspection.vocabulary", "inspection.colours", "inspection.fragments", "inspection.weights",
    "inspection.heads", "inspection.embeddings", "inspection.activations", "inspection.texts",
    "inspection.examination", "inspection.findings", "inspection.figures", "inspection.record",
    "inspection.report", "inspection.terminal", "inspection.comparison",
    "demo.sampling", "demo.fragments_view", "demo.page", "demo.look", "demo.launching",
    "demo.serving", "demo.space",
    "export.texts", "export.gguf_vocabulary", "export.gguf_tensors", "export.gguf_file", "export.ollama",
    "export.llama_cpp", "export.greedy", "export.gguf_checks", "export.onnx_graph", "export.exporting",
    "export.table",
    "hub.preflight", "hub.publishing", "hub.fetching",
    "release_commands", "inspection_commands", "demo_commands", "export_commands", "cli",
]  # fmt: skip


def modules():
    return {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts): path
        for path in SOURCE.rglob("*.py")
        if path.name != "__init__.py"
    }


def test_the_table_names_every_module():
    assert sorted(ORDER) == sorted(modules())


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_one_way(name):
    imported = {
        module.removeprefix("ant_hf.")
        for node in ast.walk(ast.parse(modules()[name].read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ant_hf")
        # `from ant_hf.package import module` names the module last.
        for module in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        if module.removeprefix("ant_hf.") in ORDER
    }
    later = {other for other in imported if ORDER.index(other) >= ORDER.index(name)}
    assert not later


@pytest.mark.parametrize("name", ORDER)
def test_modules_and_functions_stay_small(name):
    text = modules()[name].read_text()
    assert text.count("\n") <= 310
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 62, node.name


def test_command_line_starts_without_torch():
    script = "import sys, ant_hf.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_entry_scripts_are_thin_and_do_nothing_at_import():
    for name in ("pretrain.py", "train_tokenizer.py"):
        text = (ROOT / name).read_text()
        assert text.count("\n") < 60
        script = f"import runpy; runpy.run_path({name!r}, run_name='imported')"
        result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_cards_and_figures_need_no_torch():
    names = "ant_hf.card.rendering, ant_hf.card.reading, ant_hf.plots, ant_hf.audit"
    script = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
