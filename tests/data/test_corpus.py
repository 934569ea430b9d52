import hashlib
import unicodedata

from ant_hf.data.corpus import Corpus, in_validation_split


class Texts:
    def __init__(self, texts):
        self.texts = texts

    def identity(self):
        return {"source": "test"}

    def documents(self):
        yield from self.texts


def test_documents_are_nfc_unique_and_all_accounted_for():
    decomposed = "Cafe\u0301"
    corpus = Corpus(Texts(["one", "Caf\u00e9", decomposed, " \n", "", "one", "two\ud800"]), 0.0)
    texts = [document.text for document in corpus]
    assert texts == ["one", unicodedata.normalize("NFC", decomposed), "two?"]
    assert (corpus.counts.train, corpus.counts.validation) == (3, 0)
    assert corpus.counts.as_written(2) == {"read": 7, "empty": 2, "duplicate": 2, "past_limit": 1}


def test_a_document_keeps_its_side_when_the_corpus_grows(chapters):
    small = {d.text: d.is_validation for d in Corpus(Texts(chapters[:30]), 0.2)}
    large = {d.text: d.is_validation for d in Corpus(Texts(chapters[::-1]), 0.2)}
    assert {text: large[text] for text in small} == small
    assert 0 < sum(large.values()) < len(large)


def test_split_share_follows_the_fraction():
    digests = [hashlib.sha256(str(i).encode()).digest() for i in range(20_000)]
    share = sum(in_validation_split(digest, 0.05) for digest in digests) / len(digests)
    assert abs(share - 0.05) < 0.01
    assert not any(in_validation_split(digest, 0.0) for digest in digests)


def test_a_second_pass_gives_the_same_documents(chapters):
    corpus = Corpus(Texts(chapters), 0.1)
    assert list(corpus) == list(corpus)
    assert corpus.counts.read == len(chapters)


def test_other_line_ends_and_white_space_around_a_text_do_not_make_another(chapters):
    def spelled_otherwise(text):
        return [text.replace("\n", "\r\n"), text.replace("\n", "\r"), f"\n{text} \n", f"\ufeff{text}"]

    texts = chapters[:20] + [other for text in chapters[:20] for other in spelled_otherwise(text)]
    for order in (texts, texts[::-1]):
        corpus = Corpus(Texts(order), 0.3)
        sides = {False: set(), True: set()}
        for document in corpus:
            sides[document.is_validation].add(document.text.strip("\ufeff").split()[5:9].__str__())
        assert not sides[False] & sides[True]
        assert corpus.counts.duplicate == 80


def test_line_ends_do_not_decide_the_side(chapters):
    unix = {d.text: d.is_validation for d in Corpus(Texts(chapters), 0.2)}
    windows = Corpus(Texts(text.replace("\n", "\r\n") for text in chapters), 0.2)
    assert {d.text.replace("\r\n", "\n"): d.is_validation for d in windows} == unix


def test_a_line_end_at_the_end_of_a_document_keeps_the_side_it_had():
    """As packed by earlier versions: the hash of the text with it."""
    text = "A document of a text file, which ends with a line.\n"
    (document,) = Corpus(Texts([text]), 0.5)
    assert document.is_validation == in_validation_split(hashlib.sha256(text.encode()).digest(), 0.5)
    assert document.text == text
