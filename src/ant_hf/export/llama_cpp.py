"""llama.cpp itself, as the wheel `xllamacpp` carries it, in a process of its own, which it may end.

`python -m ant_hf.export.llama_cpp JOB.json` loads the GGUF file that the job names, answers the job's
questions and writes them to the job's report. The server inside the wheel is asked over loopback, as
llama-server would be.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ant_hf.errors import AntError
from ant_hf.utils.files import read_json, write_json

_SECONDS_A_REQUEST = 300


@dataclass(frozen=True)
class Questions:
    """What to ask llama.cpp about a file."""

    texts: Sequence[str] = ()
    """To be cut into tokens."""
    prompts: Sequence[str | Sequence[int]] = ()
    """To be continued greedily."""
    scored: Sequence[Sequence[int]] = ()
    """Token ids, of which every one after the first is scored."""
    endings: Sequence[int] = ()
    """Token ids, each to be tried: does a text end at it?"""
    conversation: Sequence[dict[str, str]] = ()
    """Messages to be put into the chat template; left out when there are none."""
    speed_batches: Sequence[int] = ()
    """How many continuations at once to time."""
    new_tokens: int = 32
    context: int = 256
    """Tokens of each continuation with its prompt."""
    threads: int = 1
    vocab_size: int = 0


@dataclass(frozen=True)
class Answers:
    """What llama.cpp said."""

    tokens: list[list[int]] = field(default_factory=list)
    greedy: list[list[int]] = field(default_factory=list)
    log_likelihoods: list[list[float]] = field(default_factory=list)
    """Nats of each scored token given those before it."""
    ends: list[int] = field(default_factory=list)
    """Of the ids that were tried, those at which a text ends."""
    chat_template: str = ""
    """As read from the file; llama.cpp's own where the file has none."""
    conversation: str | None = None
    """With the template around it, up to where the answer begins; None if llama.cpp cannot run it."""
    tokens_per_second: dict[str, float] = field(default_factory=dict)
    """New tokens per second of wall time by batch size."""


def is_installed() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None


def ask(file: Path, questions: Questions) -> Answers:
    """Load a GGUF file in a fresh process and answer.

    Raises:
        AntError: llama.cpp does not load the file, or failed on a question; with its last words.
    """
    with tempfile.TemporaryDirectory() as scratch:
        job, report = Path(scratch, "job.json"), Path(scratch, "report.json")
        write_json(job, {"questions": vars(questions), "file": str(file.resolve()), "report": str(report)})
        result = subprocess.run(  # noqa: S603 (our own module)
            [sys.executable, "-m", "ant_hf.export.llama_cpp", str(job)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if result.returncode or not report.is_file():
            lines = [line for line in result.stderr.splitlines() if line.strip()]
            # Its log marks errors by a letter.
            said = [line for line in lines if " E " in line or "error" in line.lower()] or lines
            raise AntError(f"llama.cpp failed on {file.name}", seen=" ".join(said[-3:])[-500:])
        return Answers(**read_json(report, "llama.cpp's answers", ""))


def main(job_file: str) -> None:
    """Answer one job."""
    job = read_json(Path(job_file), "job of llama.cpp", "It is written by ant-hf itself.")
    asked = Questions(**job["questions"])
    server = _Server(job["file"], asked)
    answers = Answers(
        tokens=[server.tokenize(text) for text in asked.texts],
        greedy=[server.complete(prompt, return_tokens=True)["tokens"] for prompt in asked.prompts],
        log_likelihoods=[server.score(ids) for ids in asked.scored],
        ends=[index for index in asked.endings if server.ends_at(index)],
        chat_template=server.chat_template(),
        conversation=server.render(asked.conversation) if asked.conversation else None,
        tokens_per_second={str(size): server.speed(size) for size in asked.speed_batches},
    )
    write_json(Path(job["report"]), vars(answers))


class _Server:
    """llama-server inside this process, behind a key that only we know."""

    def __init__(self, file: str, asked: Questions) -> None:
        import xllamacpp

        self._asked = asked
        parameters = xllamacpp.CommonParams()
        parameters.model.path = file
        parameters.n_parallel = max([1, *asked.speed_batches])
        parameters.n_ctx = asked.context * parameters.n_parallel
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = asked.threads
        # The default cache is F16, which would be measured instead of the file.
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        # And its attention on a CPU rounds to F16 in any cache.
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.warmup = parameters.ui = False
        self._key = secrets.token_hex(16)
        parameters.api_keys = [self._key]
        self._server = xllamacpp.Server(parameters)
        # No proxy stands between two ends of one machine.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def _ask(self, path: str, question: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 (http on loopback)
            self._server.listening_address + path,
            None if question is None else json.dumps(question).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"},
        )
        try:
            with self._open(request, timeout=_SECONDS_A_REQUEST) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise ValueError(f"error in {path}: {error.read().decode(errors='replace')}") from None

    def tokenize(self, text: str) -> list[int]:
        question = {"content": text, "add_special": True, "parse_special": True}
        return list(self._ask("/tokenize", question)["tokens"])

    def complete(self, prompt: str | Sequence[int], **settings: Any) -> Any:
        """Greedily, unless the settings say otherwise, whatever sampling the file suggests."""
        question = {"prompt": prompt, "n_predict": self._asked.new_tokens, "temperature": 0}
        question["repeat_penalty"] = 1
        return self._ask("/completion", question | settings)

    def score(self, ids: Sequence[int]) -> list[float]:
        """Every next token's log-likelihood, a request each: the server gives none of a prompt's own."""
        # A sampled piece of a character would be held back with its probabilities, which are those before
        # the bias: so a whole letter is sampled.
        letter = self.tokenize("a")[-1]
        settings = {"n_predict": 1, "n_probs": self._asked.vocab_size, "logit_bias": [[letter, 1000]]}
        found = []
        for length in range(1, len(ids)):
            answer = self.complete(ids[:length], **settings)
            entries = answer["completion_probabilities"][0]["top_logprobs"]
            found.append(next(entry["logprob"] for entry in entries if entry["id"] == ids[length]))
        return found

    def ends_at(self, index: int) -> bool:
        """Whether the text ends when this token is made the likeliest of all."""
        prompt, sure = self.tokenize("a"), [[index, 1e6]]
        return bool(self.complete(prompt, n_predict=2, logit_bias=sure)["stop_type"] == "eos")

    def chat_template(self) -> str:
        return str(self._ask("/props").get("chat_template", ""))

    def render(self, conversation: Sequence[dict[str, str]]) -> str | None:
        try:
            return str(self._ask("/apply-template", {"messages": list(conversation)})["prompt"])
        except ValueError:
            return None

    def speed(self, size: int) -> float:
        """Tokens per second of `size` greedy continuations at once, after one turn that is not counted."""
        prompts = [[2 + (7 * index + place) % 200 for place in range(8)] for index in range(size)]
        with ThreadPoolExecutor(size) as pool:
            for _ in range(2):
                started = time.perf_counter()
                list(pool.map(lambda ids: self.complete(ids, ignore_eos=True, cache_prompt=False), prompts))
                seconds = time.perf_counter() - started
        return size * self._asked.new_tokens / seconds


if __name__ == "__main__":
    main(sys.argv[1])
