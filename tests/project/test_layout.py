"""The shape of the code base: packages are layers, imports go one way, nothing heavy at import."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

SOURCE = ROOT / "src" / "ant_hf"
# Each row may import from the rows above it, and each name of a row from itself.
LAYERS = [
    ["errors"],
    ["utils"],
    ["published"],
    ["recipe", "hub"],
    ["data"],
    ["model"],
    ["train", "evaluation", "inspection"],
    ["card", "studies"],
    ["export"],
    ["demo"],
    ["release"],
    ["cli"],
    ["__main__"],
]
FLOOR = {name: floor for floor, names in enumerate(LAYERS) for name in names}


def wrong_imports(source):
    """`module imports other` for every import that goes up or sideways in the table."""
    wrong = []
    for path in sorted(source.rglob("*.py")):
        own = path.relative_to(source).with_suffix("").parts[0]
        # The public names of the package, each imported when it is asked for.
        if own == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
            others = {name.split(".")[1] for name in names if name.startswith("ant_hf.")}
            wrong += [
                f"{path.relative_to(source)} imports {other}"
                for other in others - {own}
                if FLOOR[other] >= FLOOR[own]
            ]
    return wrong


def test_the_table_names_every_package():
    found = {
        path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert found - {"__init__"} == set(FLOOR)


def test_imports_go_one_way():
    assert wrong_imports(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data/corpus.py", "from ant_hf.model.loading import load_any"),
        ("utils/files.py", "def f():\n    from ant_hf.recipe import Recipe"),
        ("inspection/measures.py", "import ant_hf.evaluation.results"),
        ("errors.py", "from ant_hf import hub"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, file, line):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(line + "\n")
    assert len(wrong_imports(tmp_path)) == 1


def test_the_hallway_is_short():
    assert len([path for path in SOURCE.iterdir() if path.name != "__pycache__"]) <= 20


def test_command_line_starts_without_torch():
    script = "import sys, ant_hf.cli.main; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_entry_scripts_are_thin_and_do_nothing_at_import():
    for name in ("pretrain.py", "train_tokenizer.py"):
        text = (ROOT / name).read_text()
        assert text.count("\n") < 60
        script = f"import runpy; runpy.run_path({name!r}, run_name='imported')"
        result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_cards_and_figures_need_no_torch():
    names = "ant_hf.card.rendering, ant_hf.card.claims, ant_hf.utils.plots, ant_hf.card.audit"
    script = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
