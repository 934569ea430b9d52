"""`ant-hf audit`, `card`, `verify` and `publish`: parse, call the library, print."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ant_hf.cli.options import Final, License, Onnx, Repo, Tokens, Vendor
from ant_hf.cli.tables import audit_table, checks_table, gate_report
from ant_hf.errors import AntError, missing_file
from ant_hf.utils.console import say, show
from ant_hf.utils.provenance import install_command

Attempts = Annotated[int, Option(min=1, help="How often a failing step is tried.")]
Timeout = Annotated[float, Option(min=1, help="Seconds without an answer that count as a failure.")]


def audit(
    card: Annotated[
        Path | None,
        Argument(help="A README.md that ant-hf card wrote, or its folder. Default: the public cards."),
    ] = None,
) -> None:
    """Check a card's figures against each other by arithmetic alone."""
    from ant_hf.card.audit import audit as check
    from ant_hf.card.claims import published_claims, read_card
    from ant_hf.published import published_models

    claims = [read_card(card)] if card else [published_claims(model) for model in published_models()]
    wrong = 0
    for claimed in claims:
        findings = check(claimed)
        show(audit_table(f"{claimed.name} ({claimed.source})", findings))
        wrong += sum(finding.verdict == "DISAGREES" for finding in findings)
    say("audit", f"{wrong} figures disagree with the arithmetic")
    # That the public cards contradict themselves is a finding; that ours does is a fault.
    if card and wrong:
        raise AntError(
            f"{card} contradicts itself",
            seen=f"{wrong} figures",
            hint="The table names them. Make the card again: ant-hf card MODEL_FOLDER --repo OWNER/NAME",
        )


def card(
    model: Final, repo: Repo, license_id: License = None, tokens: Tokens = None, onnx: Onnx = False
) -> None:
    """Make the release folder of a run: check it, draw its figures, write its card. Nothing is sent.

    Needs results.json, from ant-hf evaluate. The release is the folder release/ beside the final folder.
    """
    from ant_hf.release.build import make_release
    from ant_hf.utils.names import CARD, RELEASE

    record = model.resolve().parent / "release" / RELEASE
    before = record.read_bytes() if record.is_file() else None
    folder = make_release(model, repo, license_id, tokens, onnx=onnx)
    gate_report(folder)
    # It holds its date: the same bytes are the same release.
    reused = record.read_bytes() == before
    say("release", f"{folder}{' (reused: nothing it is made of has changed)' if reused else ''}")
    say("card", folder / CARD)
    say("next", f"ant-hf publish {model} --repo {repo}{' --onnx' if onnx else ''}")


def verify(
    model: Annotated[str, Argument(metavar="FOLDER_OR_REPO", help="Model folder or Hub repository.")],
    tokens: Tokens = None,
    revision: Annotated[str | None, Option(help="Commit, tag or branch of the repository.")] = None,
    report: Annotated[Path | None, Option(help="Also write the report to this JSON file.")] = None,
) -> None:
    """Check any model, anyone's: does it load, do weights and tokenizer belong together, are its files safe?

    With the run's tokens the recorded loss is reproduced too; without them, everything else is checked.
    """
    from ant_hf.release.verify import PASSED, refusal
    from ant_hf.release.verify import verify as run_gate
    from ant_hf.utils.files import check_output_file, write_json

    if report:
        check_output_file(report, "--report")
    values = run_gate(model, tokens, revision=revision)
    if report:
        write_json(report, values)
    show(checks_table(model, values["checks"]))
    if values["verdict"] != PASSED:
        raise refusal(model, values["checks"], report)
    open_checks = [check["numbers"] for check in values["checks"] if check["passed"] is None]
    if any(numbers.get("share", 0.0) > numbers.get("allowed", 1.0) for numbers in open_checks):
        say(
            "passed",
            "but it reads plain English no better than noise: it was made for another language, or is broken",
        )
    else:
        say("passed", "no check failed")


def publish(
    model: Final,
    repo: Repo,
    yes: Annotated[bool, Option("--yes", help="Really publish; without it, only show the plan.")] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Only show the plan (the default); asks the Hub what it holds.")
    ] = False,
    private: Annotated[bool, Option("--private", help="Create the repository as private.")] = False,
    license_id: License = None,
    tag: Annotated[str | None, Option(help="Name of this version; default: the next of v1, v2, ...")] = None,
    prune: Annotated[
        bool, Option("--prune", help="Remove files from the repository that the release does not have.")
    ] = False,
    tokens: Tokens = None,
    onnx: Onnx = False,
    gguf: Annotated[
        bool,
        Option(
            "--gguf",
            help="Also export it to GGUF and publish the files as OWNER/NAME-GGUF, for llama.cpp and Ollama.",
        ),
    ] = False,
    space: Annotated[
        str | None,
        Option(
            metavar="KIND",
            help="Also publish a Space of the same name to try the model in: static, where it runs in "
            "the visitor's browser, costs nothing and never sleeps; or gradio, where it runs on the Hub.",
        ),
    ] = None,
    vendor: Vendor = None,
    attempts: Attempts = 5,
    timeout: Timeout = 60.0,
) -> None:
    """Check a model, write its card, and send both to the Hub in one commit, which is read back and tagged.

    With --gguf, OWNER/NAME-GGUF is published too, with --space static (or gradio) the demo as a Space
    (spaces/OWNER/NAME): one commit each.

    Without --yes nothing is sent, and no token is needed. After an interruption or a failure, the same
    command continues.
    """
    from ant_hf.card.gguf import gguf_repository
    from ant_hf.export.llama_cpp import is_installed
    from ant_hf.hub import HubClient
    from ant_hf.release.build import license_of, make_release
    from ant_hf.release.publish import check_repository
    from ant_hf.release.publish import publish as publish_release

    if yes and dry_run:
        raise AntError("--yes and --dry-run were both given", hint="Leave one out.")
    if space not in (None, "static", "gradio"):
        hint = "Write --space static: a page that runs in the browser"
        raise AntError("--space needs a kind of Space", seen=space, expected="static or gradio", hint=hint)
    if not (model / "config.json").is_file():
        raise missing_file(model / "config.json", "model folder", "Pass a run's final folder.")
    others = [(gguf_repository(repo), "model")] * gguf + [(repo, "space")] * bool(space)
    for name, _ in [(repo, "model"), *others]:
        check_repository(name)
    if gguf and not is_installed():
        raise AntError(
            "--gguf publishes only files that llama.cpp has verified, and xllamacpp is not installed",
            hint=install_command("gguf"),
        )
    client = HubClient(attempts=attempts, timeout=timeout, anonymous=True)
    if client.is_anonymous:
        say("token", "no Hub token was found: the release is made and the plan is shown, but nothing is sent")
    elif yes:
        # A token that will not do should not cost the minute that the gate takes.
        for name, kind in [(repo, "model"), *others]:
            client.of_repository(name, kind).check_may_write(name, kind)
    license_id = license_id or license_of(model)
    exported = None
    if gguf:
        from ant_hf.export.exporting import export

        exported, _ = export(str(model), "gguf", repository=repo, license_id=license_id)
    folder = make_release(model, repo, license_id, tokens, gguf, onnx, client)
    gate_report(folder)
    # All before the model is sent, so that what stops one stops every one.
    folders = list[Path]()
    if exported:
        from ant_hf.release.gguf import make_gguf_release

        folders.append(make_gguf_release(exported, folder))
    if space == "gradio":
        from ant_hf.demo.space import make_space

        folders.append(make_space(folder.parent, repo, license_id))
    elif space == "static":
        from ant_hf.demo.site import SiteOptions
        from ant_hf.demo.space import make_static_space

        options = SiteOptions(vendor=vendor)
        folders.append(make_static_space(folder.parent, str(model), repo, license_id, options))
    send = partial(publish_release, private=private, prune=prune, yes=yes, client=client)
    send(folder, repo, tag=tag)
    for place, (name, kind) in zip(folders, others, strict=True):
        send(place, name, kind=kind, tag=tag if kind == "model" else None)
