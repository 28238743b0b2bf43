"""Whether a round of a rule sends x and adds what comes, and does nothing else: such rounds need no tensors between."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from p2pfl.errors import IllegalStep
from p2pfl.train.rules import Context, Graph, Messages, Rule, State


class _Symbol:
    """Stands for a tensor. It can be handed on, and added to another one; a rule that does more fails."""

    def __init__(self, terms: tuple[_Symbol, ...] = ()) -> None:
        self.terms = terms

    def __add__(self, other: object) -> _Symbol:
        return _Symbol((self, other)) if isinstance(other, _Symbol) else NotImplemented


class _Inbox:
    def __init__(self, channel: str, pull: _Symbol) -> None:
        self._channel, self._pull = channel, pull

    def pull(self, channel: str) -> Tensor:
        if channel != self._channel:
            raise IllegalStep(f"no channel {channel} here; ask for {self._channel}")
        return cast(Tensor, self._pull)

    def total(self, channel: str) -> Tensor:
        raise IllegalStep(f"nothing of {channel} is relayed here; ask for {self._channel}")


def only_adds(rule: Rule, state: State, context: Context, graph: Graph, model: str, *, closing: bool) -> bool:
    """Whether the round is x + pull(x) of the channel ``model``, and ``state`` stays as it is.

    Rules never branch on values, so the rule is asked with symbols in place of all tensors.
    """
    x, pull = _Symbol(), _Symbol()
    same = cast(State, {name: _Symbol() for name in state})
    try:
        after, sent = same, cast(Messages, {model: x})
        if not closing:
            after, sent = rule.send(same, cast(Tensor, x), context, graph)
        after, merged = rule.merge(after, cast(Tensor, x), context, _Inbox(model, pull))
    except Exception:  # whatever a rule that needs tensors says to symbols
        return False
    kept = after.keys() == same.keys() and all(after[name] is same[name] for name in same)
    return kept and sent == {model: x} and getattr(merged, "terms", None) == (x, pull)
