"""The rules of docs/algorithms.md, from their docstrings: `python tests/train/algorithms_page.py` writes them into the page."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from p2pfl.train.rules import RULES, Needs, Rule

PAGE = Path(__file__).parents[2] / "docs" / "algorithms.md"
BEGIN, END = "<!-- rules: generated -->\n", "<!-- end of rules -->"
LABELS = ("Sends", "Keeps", "Use", "Source", "Differs", "Verified")
GRAPHS = {
    "doubly": "any connected one",
    "tree": "a tree",
    "columns": "any connected one, also directed",
    "walk": "cyclic",
}


def parts(name: str) -> dict[str, str]:
    """A docstring's summary, equation, remarks, and the text of each label."""
    text = inspect.getdoc(RULES[name]) or ""
    head, *labelled = re.split(rf"^({'|'.join(LABELS)}): ", text, flags=re.MULTILINE)
    summary, _, rest = head.partition("\n")
    lines = rest.strip("\n").splitlines()
    equation = [line[4:] for line in lines if line.startswith("    ")]
    found = {"summary": summary, "equation": "\n".join(equation)}
    found["remarks"] = " ".join(line for line in lines if line and not line.startswith("    "))
    return found | {label: _sentences(said) for label, said in zip(labelled[::2], labelled[1::2], strict=True)}


def _sentences(text: str) -> str:
    words = " ".join(text.split())
    return words[:1].upper() + words[1:]


def asked(rule: type[Rule]) -> list[tuple[str, str]]:
    """What a rule needs, in words."""
    needs: Needs = rule.needs
    numbers = [f"`{key}` ({s.default:g}; {s.allowed}): {s.meaning}" for key, s in rule.settings.items()]
    return [
        ("optimisers", ", ".join(_optimisers(needs)) + _why(needs.reason)),
        ("graph", GRAPHS[needs.mixing]),
        ("local steps", "any number" if needs.most_steps is None else f"{needs.most_steps}{_why(needs.steps_reason)}"),
        ("topologies that change", "no" + _why(needs.static_reason) if needs.static else "yes"),
        ("weights other than shares", "no" + _why(needs.by_shares_reason) if needs.by_shares else "yes"),
        ("asynchronous policy", "yes" if needs.delays else "no" + _why(needs.delays_reason)),
        ("shared running statistics", "yes" if needs.statistics else "no" + _why(needs.statistics_reason)),
        ("settings", "; ".join(numbers) or "none"),
    ]


def _optimisers(needs: Needs) -> list[str]:
    return [name for name in ("sgd", "momentum", "adam") if name in needs.optimisers]


def _why(reason: str) -> str:
    return f": {reason}" if reason else ""


def rules() -> str:
    """The overview and one section per rule."""
    lines = [
        "| rule | optimisers | graph | local steps | sends per neighbour | asynchronous |",
        "|---|---|---|---|---|---|",
    ]
    for name, rule in RULES.items():
        needs, sends = rule.needs, parts(name)["Sends"].removesuffix(" per neighbour")
        steps = "any" if needs.most_steps is None else str(needs.most_steps)
        late = "yes" if needs.delays else "no"
        optimisers = ", ".join(_optimisers(needs))
        lines.append(f"| [`{name}`](#{name}) | {optimisers} | {GRAPHS[needs.mixing]} | {steps} | {sends} | {late} |")
    for name, rule in RULES.items():
        said = parts(name)
        lines += ["", f"### {name}", "", said["summary"], "", "```", said["equation"], "```", ""]
        lines += [said["remarks"], ""] if said["remarks"] else []
        lines += ["| | |", "|---|---|", f"| sends | {said['Sends']} |", f"| keeps | {said['Keeps']} |"]
        lines += [f"| {what} | {answer} |" for what, answer in asked(rule)]
        for label, title in (("Use", "When"), ("Source", "Source"), ("Differs", "Differs"), ("Verified", "Verified")):
            lines += ["", f"**{title}.** {said[label].removesuffix('.')}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Renew the page."""
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    PAGE.write_text(head + BEGIN + rules() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
