"""The engine's parts: clock, chance, links, network."""

from __future__ import annotations

import pytest

from p2pfl.crypto import open_envelope, sign_envelope
from p2pfl.errors import ConfigError, SignatureRefused
from p2pfl.sim import Clock, ComputeModel, LinkModel, TooManyEvents
from p2pfl.sim.clock import SiteClock
from p2pfl.sim.draws import stream, uniform
from p2pfl.sim.links import Uplink
from p2pfl.sim.network import Network
from p2pfl.sim.tags import CheapKit, RealKit, TagIdentity, verify_tag

# --- clock


def test_equal_times_keep_the_order_in_which_they_were_entered() -> None:
    clock, seen = Clock(), []
    for name in "abc":
        clock.at(1.0, lambda name=name: seen.append(name))
    clock.at(0.5, lambda: clock.at(1.0, lambda: seen.append("d")))
    assert clock.run()
    assert "".join(seen) == "abcd"
    assert clock.now == 1.0


def test_cancelled_actions_do_not_happen_and_the_past_is_now() -> None:
    clock, seen = Clock(), []
    entry = clock.after(1.0, lambda: seen.append("no"))
    clock.cancel(entry)
    clock.cancel(None)
    clock.after(2.0, lambda: clock.at(0.0, lambda: seen.append(clock.now)))
    clock.run()
    assert seen == [2.0]
    assert clock.due() is None


def test_run_ends_at_its_limits() -> None:
    clock = Clock()

    def again() -> None:
        clock.after(1.0, again)

    again()
    assert clock.run(lambda: clock.now >= 3.0)
    assert not clock.run(limit_seconds=2.5)
    assert clock.now == 5.5
    with pytest.raises(TooManyEvents):
        clock.run(limit_events=10)


def test_a_site_clock_is_offset_plus_rate_and_never_goes_back() -> None:
    own = SiteClock()
    own.skew(0.0, rate=1.5, offset=7.0)
    assert own.at(10.0) == 7.0 + 1.5 * 10.0
    assert own.when(own.at(4.0)) == 4.0
    own.skew(10.0, rate=0.5, offset=0.0)
    assert own.at(10.0) == 22.0
    assert own.at(12.0) == 23.0
    with pytest.raises(ConfigError):
        own.skew(12.0, rate=1.0, offset=-1.0)


# --- chance


def test_draws_depend_on_their_place_alone() -> None:
    assert uniform(1, "a", 2) == uniform(1, "a", 2) != uniform(2, "a", 2)
    assert stream(1, "x").random() == stream(1, "x").random() != stream(1, "y").random()
    model = ComputeModel(seconds=2.0, spread=0.25, factors={3: 4.0})
    times = [model.training(0, 1, round_) for round_ in range(200)]
    assert 1.5 <= min(times) < 1.6 and 2.4 < max(times) <= 2.5
    assert 6.0 <= model.training(0, 3, 0) <= 10.0


# --- links


def test_transfers_share_an_uplink_fairly_to_the_digit() -> None:
    """100 B/s: A has 100 B, B joins at 0.5 s with 100 B, C at 1.0 s with 10 B. By hand: A has 50 left at 0.5 and 25 at
    1.0, C ends after 10 / (100/3) = 0.3 s, A then has 15 left at 1/2 rate: 1.6; B has 50 left then, alone: 2.1."""
    clock = Clock()
    uplink = Uplink(clock, 100.0)
    ends: dict[str, float] = {}

    def start(name: str, size: int) -> None:
        uplink.start(size, lambda: ends.__setitem__(name, clock.now))

    start("A", 100)
    clock.at(0.5, lambda: start("B", 100))
    clock.at(1.0, lambda: start("C", 10))
    clock.run()
    assert ends == pytest.approx({"C": 1.3, "A": 1.6, "B": 2.1}, rel=1e-14)


def test_a_cancelled_transfer_leaves_its_share_to_the_others() -> None:
    clock, ends = Clock(), []
    uplink = Uplink(clock, 10.0)
    flow = uplink.start(1000, lambda: ends.append("no"))
    uplink.start(10, lambda: ends.append(clock.now))
    clock.at(1.0, lambda: uplink.cancel(flow))  # half of the ten bytes have left by then
    clock.run()
    assert ends == [pytest.approx(1.5, rel=1e-14)]


class End:
    """Counts what the network does to it."""

    def __init__(self, number: int, clock: Clock) -> None:
        self.number, self.alive, self.frozen, self.frozen_since = number, True, False, 0.0
        self._clock = clock
        self.seen: list[tuple[float, str]] = []

    def link_up(self, other: int) -> None:
        self.seen.append((self._clock.now, f"up {other}"))

    def link_down(self, other: int, reason: str) -> None:
        self.seen.append((self._clock.now, f"down {other}: {reason}"))

    def receive(self, source: int, kind: str, data: bytes) -> None:
        self.seen.append((self._clock.now, f"{kind} {data.decode()}"))


def pair(model: LinkModel | None = None) -> tuple[Clock, Network, End, End]:
    clock = Clock()
    network = Network(clock, model or LinkModel(), seed=1)
    ends = [End(number, clock) for number in range(2)]
    for end in ends:
        network.add(end)
    network.want([(0, 1)])
    network.started(0)
    network.started(1)
    clock.run()
    assert [end.seen for end in ends] == [[(1.0, "up 1")], [(1.0, "up 0")]]
    for end in ends:
        end.seen.clear()
    return clock, network, *ends


def test_messages_to_one_neighbour_go_one_after_the_other_and_to_two_at_once() -> None:
    clock = Clock()
    network = Network(clock, LinkModel(latency=0.1, bandwidth=10.0), seed=1)
    ends = [End(number, clock) for number in range(3)]
    for end in ends:
        network.add(end)
    network.want([(0, 1), (0, 2)])
    network.started(0)
    clock.run()
    for text in ("a" * 10, "b" * 10):
        network.send(0, 1, "m", text.encode())
    network.send(0, 2, "m", b"c" * 10)
    clock.run()
    # a and c share 10 B/s until 3.0; then b alone for one second
    arrived = {text: time for end in ends[1:] for time, text in end.seen if text.startswith("m")}
    assert arrived == pytest.approx({"m " + "a" * 10: 3.1, "m " + "c" * 10: 3.1, "m " + "b" * 10: 4.1})


def test_jitter_keeps_the_order_and_reordering_does_not() -> None:
    clock, network, _, end = pair(LinkModel(latency=0.01, jitter=1.0))
    for number in range(100):
        network.send(0, 1, "m", str(number).encode())
    clock.run()
    assert [text for _, text in end.seen] == [f"m {number}" for number in range(100)]
    assert len({time for time, _ in end.seen}) > 3
    network.reorder = 0.3
    end.seen.clear()
    for number in range(100):
        network.send(0, 1, "m", str(number).encode())
    clock.run()
    assert sorted(text for _, text in end.seen) == sorted(f"m {number}" for number in range(100))
    assert [text for _, text in end.seen] != [f"m {number}" for number in range(100)]


def test_loss_and_duplication_have_the_stated_rates() -> None:
    clock, network, _, end = pair(LinkModel(loss=0.1, duplicate=0.05))
    for number in range(10_000):
        assert network.send(0, 1, "m", str(number).encode())
    clock.run()
    assert 850 < network.counters["lost"] < 1150  # 1000, standard deviation 30
    assert 360 < network.counters["duplicated"] < 540  # 450, standard deviation 21
    assert len(end.seen) == 10_000 - network.counters["lost"] + network.counters["duplicated"]


def test_a_short_cut_delays_messages_and_a_long_one_ends_the_link() -> None:
    clock, network, one, other = pair()
    network.cut(0, 1)
    network.send(0, 1, "m", b"kept")
    clock.after(5.0, lambda: network.heal(0, 1))
    clock.run()
    assert [text for _, text in other.seen] == ["m kept"]
    assert other.seen[0][0] == pytest.approx(6.01)
    assert one.seen == []
    network.cut(0, 1)
    network.cut(1, 0)
    start = clock.now
    network.send(0, 1, "m", b"lost")
    clock.after(20.0, lambda: [network.heal(0, 1), network.heal(1, 0)])
    clock.run()
    assert other.seen[1:] == [(start + 15.0, "down 0: silent"), (start + 21.0, "up 0")]
    assert one.seen == [(start + 15.0, "down 1: silent"), (start + 21.0, "up 1")]
    assert network.send(0, 1, "m", b"again")


def test_a_one_way_cut_is_noticed_at_the_deaf_end_first() -> None:
    clock, network, one, other = pair()
    network.cut(0, 1)
    network.send(1, 0, "m", b"passes")
    start = clock.now
    clock.run()
    assert other.seen == [(start + 15.0, "down 0: silent")]
    assert one.seen == [
        (pytest.approx(start + 0.01), "m passes"),
        (pytest.approx(start + 15.2), "down 1: the other side closed it"),
    ]
    assert not network.send(0, 1, "m", b"no link"), "it stays down while one direction is cut"


def test_the_end_of_a_process_is_noticed_at_once_and_a_power_cut_late() -> None:
    for silently, seconds in ((False, 0.2), (True, 15.0)):
        clock, network, one, other = pair()
        start = clock.now
        one.alive = False
        network.stopped(0, silently=silently)
        assert network.send(1, 0, "m", b"into the void")
        clock.run()
        assert [time for time, _ in other.seen] == [pytest.approx(start + seconds)]
        assert one.seen == []
        one.alive = True
        network.started(0)
        clock.run()
        assert one.seen[-1][1] == "up 1"


# --- tags


@pytest.mark.parametrize("kit", [CheapKit(), RealKit()])
def test_both_kits_sign_seal_and_refuse(kit: CheapKit | RealKit) -> None:
    identity = kit.identity(1, 0)
    data = sign_envelope(identity, "test", b"payload").encode()
    assert open_envelope(data, kinds=("test",), limit=1000, verify=kit.verify).signer == identity.peer_id
    with pytest.raises(SignatureRefused):
        open_envelope(data[:-1] + bytes([data[-1] ^ 1]), kinds=("test",), limit=1000, verify=kit.verify)
    secret, public = kit.prekey(1, 0)
    payload = bytes(range(256)) * 600  # three chunks
    sealed = kit.seal(payload, b"context")
    wrapped = kit.wrap(sealed.key, public, b"context")
    assert kit.open(sealed.manifest, wrapped, secret, b"context", sealed.chunks) == payload
    with pytest.raises(SignatureRefused):
        kit.open(sealed.manifest, wrapped, secret, b"other", sealed.chunks)
    broken = [sealed.chunks[0][:-1] + b"?", *sealed.chunks[1:]]
    with pytest.raises(SignatureRefused):
        kit.open(sealed.manifest, wrapped, secret, b"context", broken)


def test_a_tag_does_not_hold_in_another_name() -> None:
    one, other = TagIdentity.from_seed(b"1"), TagIdentity.from_seed(b"2")
    verify_tag(one.peer_id, b"m", one.sign(b"m"))
    with pytest.raises(SignatureRefused):
        verify_tag(other.peer_id, b"m", one.sign(b"m"))
