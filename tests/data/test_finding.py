"""Which files a name stands for, and that nothing is left out in silence."""

import os

import pytest

from ant_hf.data.sources import LocalFiles
from ant_hf.data.tokenizer import make_tokenizer
from ant_hf.errors import AntError

ROWS = '[{"text": "one"}, {"text": "two"}]'


def put(folder, **files):
    """Files by name, with underscores for slashes and `dot` for the dot of a suffix."""
    for name, text in files.items():
        path = folder / name.replace("_", "/").replace("dot", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(*patterns):
    return [file.name for file in LocalFiles.find([str(pattern) for pattern in patterns]).files]


def test_folder_and_glob_find_files_in_order(tmp_path):
    put(tmp_path, bdottxt="two", adotJSONL='{"text": "one"}', notesdotmd="the readme of a download")
    assert names(tmp_path) == ["a.JSONL", "b.txt"]
    assert names(tmp_path / "*.txt") == ["b.txt"]
    assert names(tmp_path / "*.txt", tmp_path / "a.JSONL", tmp_path / "b.txt") == ["a.JSONL", "b.txt"]


def test_markdown_is_text_where_nothing_else_is_or_where_it_is_named(tmp_path):
    put(tmp_path, notes_adotmd="one", notes_bdotmd="two", ydottxt="three")
    assert names(tmp_path / "notes") == ["a.md", "b.md"]
    assert names(tmp_path) == ["y.txt"]
    assert names(tmp_path, tmp_path / "notes" / "b.md") == ["b.md", "y.txt"]
    put(tmp_path, dothiddendottxt="four")
    hidden = tmp_path / ".hidden.txt"
    assert names(hidden, tmp_path) == names(tmp_path, hidden) == [".hidden.txt", "y.txt"]


def test_linked_folders_and_files_are_followed_without_an_end(tmp_path):
    put(tmp_path, outside_adottxt="one", outside_deep_bdottxt="two", inside_cdottxt="three")
    links = {
        "inside/there": "outside",
        "inside/up": ".",
        "outside/deep/round": "outside",
        "inside/d.txt": "inside/c.txt",
    }
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    assert sorted(names(tmp_path / "inside")) == ["a.txt", "b.txt", "c.txt", "d.txt"]


def test_names_with_brackets_are_names(tmp_path):
    put(tmp_path, **{"my [v2]_adottxt": "one", "my 2_bdottxt": "two"})
    assert names(tmp_path / "my [v2]") == ["a.txt"]
    assert names(tmp_path / "my [v2]" / "*.txt") == ["a.txt"]
    assert names(tmp_path / "my*" / "*.txt") == ["b.txt", "a.txt"]


def test_json_and_tables_in_a_folder_are_read_if_they_hold_the_text(tmp_path):
    put(tmp_path, adotjson=ROWS, infodotjson='{\n "rows": 2}', bdotcsv="text,id\nx,1\n", metadotcsv="id\n1\n")
    found = LocalFiles.find(str(tmp_path))
    assert [file.name for file in found.files] == ["a.json", "b.csv"]
    assert [name.split()[0] for name in found.left_out] == ["info.json", "meta.csv"]
    with pytest.raises(AntError, match=r"meta\.csv has no column 'text'; saw \['id'\]"):
        list(LocalFiles.find(str(tmp_path / "meta.csv")).documents())


def test_what_is_left_out_is_counted_and_named_in_one_line(make_recipe, shared, tmp_path, capsys):
    corpus = tmp_path / "corpus"
    put(corpus, **{f"{letter}dotpdf": "%PDF" for letter in "abcdefgh"})
    put(corpus, emptydottxt="", **{"dot-xdottxt": "hidden", "dotgit_config": "no text", "zdotarrow": "ARROW"})
    (corpus / "broken.txt").symlink_to("nowhere")
    (corpus / "corpus.jsonl").symlink_to(shared / "corpus.jsonl")
    recipe = make_recipe(data_dir=tmp_path / "data")
    recipe = recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"path": str(corpus)})})
    make_tokenizer(recipe, 64)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert "12 of the files there" in line
    assert "a.pdf" in line
    assert "and 6 more" in line
    reasons = dict(name.partition(" ")[::2] for name in LocalFiles.find(str(corpus)).left_out)
    assert reasons["empty.txt"] == "(empty)"
    assert reasons[".-x.txt"] == "(hidden)"
    assert "broken" in reasons["broken.txt"]
    assert "config" not in reasons


def test_nothing_to_read_is_refused(tmp_path):
    put(tmp_path, adotpdf="%PDF", pictures_bdotpng="PNG")
    os.mkfifo(tmp_path / "pipe")
    for pattern, word in (
        (tmp_path / "missing.txt", "not found"),
        (tmp_path / "pictures", "no file matches .*saw 'b.png'"),
        (tmp_path / "*.txt", "no file matches"),
        (tmp_path / "a.pdf", r"not a kind of file that can be read.*cp a\.pdf a\.txt"),
        (tmp_path / "pipe", "not a file.*save it"),
    ):
        with pytest.raises(AntError, match=word):
            LocalFiles.find(str(pattern))


def test_several_names_are_one_corpus_from_the_command_line_too(tmp_path, recipe_file_of):
    from ant_hf.cli.options import read_recipe

    put(tmp_path, adottxt="one", bdottxt="two")
    recipe = read_recipe(recipe_file_of(), [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], None, None)
    assert [document.strip() for document in LocalFiles.find(recipe.corpus.path).documents()] == [
        "one",
        "two",
    ]


@pytest.fixture
def recipe_file_of(make_recipe, tmp_path):
    def make():
        make_recipe()
        return tmp_path / "run.yaml"

    return make
