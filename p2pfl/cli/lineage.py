"""`p2pfl audit lineage`: where a model came from, by the logs of those who made it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from p2pfl.audit import Lineage, Reconciliation, lineage, prove_entry, reconcile
from p2pfl.cli.home import AsJson
from p2pfl.cli.logs import CharterOption, NamedLog, read_logs
from p2pfl.cli.output import note, show, write_result
from p2pfl.cli.reconcile import exit_code, sentence
from p2pfl.cli.replay import replay_lines
from p2pfl.errors import ConfigError
from p2pfl.peer import kept_folders, replay_run

SHOWN_FINDINGS = 5  # the rest is told by `p2pfl audit reconcile`
SHORT = 16  # characters shown of a digest
_DIGEST = re.compile(r"[0-9a-f]{64}")


def show_lineage(
    model: Annotated[str, typer.Argument(help="A model file, or the digest of its file or parameters.")],
    places: Annotated[
        list[Path], typer.Argument(help="Home folders, audit.db files or exports, one per hospital.", metavar="LOG...")
    ],
    proofs: Annotated[
        Path | None, typer.Option("--proofs", help="Write the proof of each cited entry into this folder.")
    ] = None,
    deltas: Annotated[
        list[Path] | None,
        typer.Option("--deltas", help="A copy of a home's folder kept, to replay the mixing. Repeatable."),
    ] = None,
    charter_file: CharterOption = None,
    as_json: AsJson = False,
) -> None:
    """List who contributed to a model in which round with what weight, under which plan, charter and data.

    Every log is verified first, and compared with the others as `p2pfl audit reconcile` does; each statement names its
    entry. Where deltas were kept (in the homes given, or in --deltas), the mixing is computed again from them, and
    compared bit for bit. Exit code 1 if that departs or the logs contradict each other, 3 if not all of them could
    be judged.

    Example: p2pfl audit lineage model.safetensors homes/lille homes/caen
    Example: p2pfl audit lineage model.safetensors lille.jsonl caen.jsonl --deltas lille-kept --deltas caen-kept
    """
    given = read_logs(places, charter_file)
    named, logs, names = given.named, given.logs, given.names
    found, outcome = lineage(logs, _digest(model)), reconcile(logs)
    folders = kept_folders([*(place for place in places if place.is_dir()), *(deltas or ())], found.run)
    if deltas and not folders:
        raise ConfigError(
            f"nothing is kept of run {found.run[:12]} in {', '.join(map(str, deltas))}; give other folders"
        )
    replay = replay_run(logs, found.run, folders, found.owner, found.digest) if folders else None
    value = {
        **asdict(found), "verdict": outcome.verdict, "findings": len(outcome.findings),
        "replay": None if replay is None else asdict(replay),
    }  # fmt: skip
    again = replay_lines(replay, _namer(names)) if replay else ()
    show(value, as_json, chain([given.whose_names()], _lines(found, names), _compared(outcome, names), again))
    if proofs is not None:
        _write_proofs(proofs, found, {log.peer: item for log, item in zip(logs, named, strict=True)}, names)

    if replay is not None and replay.departs:
        raise typer.Exit(1)
    if not outcome.clean:
        raise typer.Exit(exit_code(outcome))


def _compared(outcome: Reconciliation, names: Mapping[str, str]) -> Iterator[str]:
    """Whether the list above rests on logs that agree: a single forged one changes all weights."""
    for finding in outcome.findings[:SHOWN_FINDINGS]:
        yield sentence(finding, names)
    yield f"logs         {outcome.verdict}"
    if not outcome.clean:
        yield "NOT CERTAIN  the list and its weights are what these logs say; compare them with p2pfl audit reconcile"


def _namer(names: Mapping[str, str]) -> Callable[[str], str]:
    return lambda peer: names.get(peer) or f"…{peer[-12:]}"


def _digest(model: str) -> str:
    path = Path(model)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not _DIGEST.fullmatch(model):
        raise ConfigError(f"{model[:80]} is no file and no digest of 64 hexadecimal digits; give the model's file")
    return model


def _lines(found: Lineage, names: Mapping[str, str]) -> Iterator[str]:
    name = _namer(names)
    yield f"model        {found.digest[:SHORT]}, made by {name(found.owner)}" + (
        f", file {found.file[:SHORT]}" if found.file else ""
    )
    yield f"run          {found.run[:SHORT]}, start record {found.record[:SHORT]}, begun from {found.initial[:SHORT]}"
    version = f", version {found.version}" if found.version is not None else ""
    yield f"plan         {found.plan}"
    yield f"charter      {found.charter}{version}"
    yield f"entries      {', '.join(f'{item.position} of {name(item.peer)}' for item in found.cited)}"
    for row in found.contributors:
        rounds = f"rounds {_ranges(row.rounds)}" if row.rounds else "nothing in this model"
        weight = f", mean weight {sum(row.weights.values()) / len(row.weights):.3f}" if row.weights else ""
        samples = f", {row.samples} samples" if row.samples is not None else ""
        here = "" if row.has_log else " (its log is not here)"
        yield f"contributed  {name(row.peer)}: {rounds}{weight}{samples}{here}"
        for tag, fingerprint, rows, cited in row.data:
            yield f"  data       {tag}, {rows} rows, fingerprint {fingerprint[:SHORT]} (entry {cited.position})"
    for step in found.steps:
        edges = ", ".join(f"{name(peer)} {weight:.4g}" for peer, weight in step.edges)
        yield f"round {step.round:<7}{name(step.peer)} mixed {edges} (entry {step.cited.position})"
    if not found.linear:
        yield (
            "weights      not told by member: asynchronous, relayed (RelaySGD), pushed (SGP), closing rounds "
            "accelerated, or a site took in others' states"
        )


def _ranges(rounds: list[int]) -> str:
    parts: list[list[int]] = []
    for number in rounds:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{first}-{last}" if first != last else str(first) for first, last in parts)


def _write_proofs(folder: Path, found: Lineage, logs: Mapping[str, NamedLog], names: Mapping[str, str]) -> None:
    cited = {*found.cited, *(step.cited for step in found.steps)}
    for row in found.contributors:
        cited |= {item for *_, item in row.data} | ({row.approved} if row.approved is not None else set())
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for item in sorted(cited, key=lambda item: (item.peer, item.position)):
        if logs[item.peer].is_database:
            proof = prove_entry(logs[item.peer].path, item.position).encode()
            write_result(folder / f"{item.peer}-{item.position}.tlog-proof", proof)
            written += 1
    left = len(cited) - written
    rest = f"; {left} stand in exports, which prove their own" if left else ""
    note(f"wrote {written} proofs to {folder}{rest}; check one with `p2pfl audit check-proof FILE --charter CHARTER`")
