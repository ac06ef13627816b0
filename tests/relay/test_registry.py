"""Matchmaking: who may open a tunnel to whom, which connection serves it, and what ends with what."""

import pytest

from tuunel.errors import Failure, Reason, Speaker
from tuunel.identity import DeviceID
from tuunel.relay import registry as module
from tuunel.relay import waiting
from tuunel.relay.registry import MAX_DEMAND, REVOKED_INTERVAL, Registry
from tuunel.relay.wire import Admission, Role


def device(number: int) -> DeviceID:
    return DeviceID.from_public_key(bytes([4]) + number.to_bytes(64))


HOME, LAPTOP, STRANGER = device(1), device(2), device(3)
FIRST, SECOND = b"1" * 16, b"2" * 16
INVITE = b"invite-1"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Registry[str]:
    return Registry(clock)


def admission(**fields: object) -> Admission:
    return Admission(**{"first": True, "last": True, "enrolled": False, **fields})  # type: ignore[arg-type]


def bring_agent(registry: Registry[str], name: str = "control", **fields: object) -> None:
    registry.join(name, HOME)
    registry.add_control(name, Role.AGENT, FIRST)
    registry.set_admission(name, admission(**{"paired": (LAPTOP,), **fields}))


def bring_ready(registry: Registry[str], *names: str) -> None:
    for name in names:
        registry.join(name, HOME)
        assert registry.park(name, FIRST) is None


def refusal(call: object, *arguments: object) -> Failure:
    with pytest.raises(Failure) as caught:
        call(*arguments)  # type: ignore[operator]
    assert caught.value.speaker is Speaker.RELAY
    return caught.value


# -- admission


def test_offline_unknown_and_not_admitted_are_the_same_answer(registry: Registry[str]) -> None:
    unknown = refusal(registry.admit, LAPTOP, HOME, None)
    bring_agent(registry)
    not_admitted = refusal(registry.admit, STRANGER, HOME, None)
    registry.leave("control")
    offline = refusal(registry.admit, LAPTOP, HOME, None)
    answers = {(failure.reason, failure.detail, failure.retry_after) for failure in (unknown, not_admitted, offline)}
    assert answers == {(Reason.PEER_UNAVAILABLE, "", 0)}


def test_paired_devices_and_holders_of_an_open_invite_come_in(registry: Registry[str]) -> None:
    bring_agent(registry, invites=(INVITE,))
    registry.admit(LAPTOP, HOME, None)
    registry.admit(STRANGER, HOME, INVITE)
    assert refusal(registry.admit, STRANGER, HOME, b"invite-2").reason is Reason.PEER_UNAVAILABLE


def test_an_agent_may_admit_every_enrolled_device(registry: Registry[str]) -> None:
    bring_agent(registry, paired=(), enrolled=True)
    registry.admit(STRANGER, HOME, None)


def test_revoked_device_comes_through_once_a_minute_even_when_all_enrolled_are_admitted(registry: Registry[str], clock: Clock) -> None:
    bring_agent(registry, enrolled=True, revoked=(STRANGER,))
    registry.admit(STRANGER, HOME, None)
    assert refusal(registry.admit, STRANGER, HOME, None).reason is Reason.PEER_UNAVAILABLE
    registry.set_admission("control", admission(revoked=(STRANGER,)))  # a fresh list forgets nothing
    clock.now += REVOKED_INTERVAL - 1
    refusal(registry.admit, STRANGER, HOME, None)
    clock.now += 1
    registry.admit(STRANGER, HOME, None)


def test_a_new_list_replaces_the_old_one_when_its_last_record_is_here(registry: Registry[str]) -> None:
    bring_agent(registry)
    registry.set_admission("control", admission(last=False, paired=(STRANGER,)))
    registry.admit(LAPTOP, HOME, None)
    refusal(registry.admit, STRANGER, HOME, None)
    registry.set_admission("control", admission(first=False, invites=(INVITE,)))
    registry.admit(STRANGER, HOME, None)
    registry.admit(LAPTOP, HOME, INVITE)
    refusal(registry.admit, LAPTOP, HOME, None)


def test_admission_list_without_its_start_or_from_no_agent_is_refused(registry: Registry[str]) -> None:
    bring_agent(registry)
    assert refusal(registry.set_admission, "control", admission(first=False)).reason is Reason.PROTOCOL
    registry.join("forward", LAPTOP)
    registry.add_control("forward", Role.FORWARD, FIRST)
    assert refusal(registry.set_admission, "forward", admission()).reason is Reason.PROTOCOL


def test_another_instance_of_the_same_device_does_not_set_the_agents_list(registry: Registry[str]) -> None:
    bring_agent(registry)
    registry.join("forward", HOME)
    registry.add_control("forward", Role.FORWARD, SECOND)

    assert refusal(registry.set_admission, "forward", admission(enrolled=True)).reason is Reason.PROTOCOL
    assert refusal(registry.admit, STRANGER, HOME, None).reason is Reason.PEER_UNAVAILABLE


def test_too_long_an_admission_list_is_refused_and_the_old_one_stays(registry: Registry[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ADMISSION", 2)
    bring_agent(registry)
    registry.set_admission("control", admission(last=False, paired=(STRANGER, HOME)))
    assert refusal(registry.set_admission, "control", admission(first=False, invites=(INVITE,))).reason is Reason.QUOTA
    registry.admit(LAPTOP, HOME, None)


# -- presence


def test_a_second_agent_instance_is_a_rival_and_forward_instances_are_not(registry: Registry[str]) -> None:
    bring_agent(registry)
    assert registry.rival_of(HOME, SECOND) == "control"
    assert registry.rival_of(HOME, FIRST) is None
    for instance in (FIRST, SECOND):
        registry.join(f"forward {instance!r}", LAPTOP)
        registry.add_control(f"forward {instance!r}", Role.FORWARD, instance)
        assert registry.rival_of(LAPTOP, b"3" * 16) is None
    registry.join("second", HOME)
    assert refusal(registry.add_control, "second", Role.AGENT, SECOND).reason is Reason.DUPLICATE_DEVICE


def test_the_same_instance_coming_back_finds_its_lost_connection(registry: Registry[str]) -> None:
    bring_agent(registry)
    assert registry.predecessor_of(HOME, FIRST) == "control"
    registry.leave("control")
    assert registry.predecessor_of(HOME, FIRST) is None
    bring_agent(registry, "again")
    assert registry.control_of(HOME, FIRST) == "again"


def test_one_device_may_be_agent_and_forward_at_once(registry: Registry[str]) -> None:
    bring_agent(registry)
    registry.join("forward", HOME)
    registry.add_control("forward", Role.FORWARD, SECOND)
    registry.leave("forward")
    assert registry.agent_online(HOME)
    registry.leave("control")
    assert not registry.agent_online(HOME)
    assert not registry.online(HOME)


def test_a_device_is_present_while_it_holds_a_control_connection(registry: Registry[str]) -> None:
    registry.join("dial", LAPTOP)
    assert not registry.present(LAPTOP)
    for name, instance in (("f1", FIRST), ("f2", SECOND)):
        registry.join(name, LAPTOP)
        registry.add_control(name, Role.FORWARD, instance)
    registry.leave("f1")
    assert registry.present(LAPTOP)
    registry.leave("f2")
    assert not registry.present(LAPTOP)
    assert registry.online(LAPTOP)


def test_cut_names_every_connection_and_is_noticed(registry: Registry[str]) -> None:
    bring_agent(registry)
    bring_ready(registry, "r1")
    before = registry.cuts
    assert set(registry.cut(HOME)) == {"control", "r1"}
    assert registry.cuts == before + 1
    assert registry.cut(STRANGER) == []


# -- ready connections and opens


def test_opens_are_served_by_the_connection_that_waited_longest(registry: Registry[str]) -> None:
    bring_agent(registry)
    bring_ready(registry, "r1", "r2")
    assert registry.take("o1", HOME) == "r1"
    assert registry.take("o2", HOME) == "r2"


def test_an_open_without_a_ready_connection_waits_for_the_next_one_in_order(registry: Registry[str]) -> None:
    bring_agent(registry)
    for opener in ("o1", "o2", "o3"):
        registry.join(opener, LAPTOP)
        assert registry.take(opener, HOME) is None
    registry.withdraw("o2")
    registry.join("r1", HOME)
    registry.join("r2", HOME)
    assert registry.park("r1", FIRST) == "o1"
    assert registry.park("r2", FIRST) == "o3"
    bring_ready(registry, "r3")


def test_devices_whose_opens_wait_take_turns_and_none_takes_all_places(registry: Registry[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MAX_WAITING", 8)
    bring_agent(registry)
    for name, source in [(f"{who}{number}", source) for who, source in (("a", LAPTOP), ("b", STRANGER)) for number in range(6)]:
        registry.join(name, source)
    for name in ("a0", "a1", "a2", "a3"):
        assert registry.take(name, HOME) is None
    assert refusal(registry.take, "a4", HOME).reason is Reason.QUOTA  # four wait, and four places are left
    for name in ("b0", "b1"):
        assert registry.take(name, HOME) is None
    assert refusal(registry.take, "b2", HOME).reason is Reason.QUOTA
    assert not registry.waits("b2")
    registry.withdraw("a1")
    served = []
    for number in range(5):
        registry.join(f"r{number}", HOME)
        served.append(registry.park(f"r{number}", FIRST))
    assert served == ["a0", "b0", "a2", "b1", "a3"]
    bring_ready(registry, "r5")


def test_a_lost_connection_serves_nobody_and_a_lost_opener_is_served_by_nobody(registry: Registry[str]) -> None:
    bring_agent(registry)
    bring_ready(registry, "r1", "r2")
    registry.leave("r1")
    assert registry.take("o1", HOME) == "r2"
    registry.join("o2", LAPTOP)
    assert registry.take("o2", HOME) is None
    registry.leave("o2")
    bring_ready(registry, "r3")


def test_ready_connections_belong_to_their_instance_and_end_with_its_control(registry: Registry[str]) -> None:
    bring_agent(registry)
    bring_ready(registry, "r1", "r2")
    registry.join("other", HOME)
    assert refusal(registry.park, "other", SECOND).reason is Reason.PROTOCOL
    taken = registry.take("o1", HOME)
    assert taken == "r1"
    departure = registry.leave("control")
    assert departure.ready == ("r2",)
    assert refusal(registry.park, "other", FIRST).reason is Reason.PROTOCOL


def test_opens_that_wait_end_with_the_agent(registry: Registry[str]) -> None:
    bring_agent(registry)
    registry.join("o1", LAPTOP)
    assert registry.take("o1", HOME) is None
    assert registry.leave("control").waiting == ("o1",)
    registry.leave("o1")
    assert refusal(registry.take, "o2", HOME).reason is Reason.PEER_UNAVAILABLE


# -- demand


def test_demand_grows_when_the_pool_runs_empty_and_is_told_once(registry: Registry[str]) -> None:
    bring_agent(registry)
    bring_ready(registry, "r1", "r2")
    registry.take("o1", HOME)
    assert registry.demand(HOME) is None
    registry.take("o2", HOME)
    assert registry.demand(HOME) == ("control", 4)
    assert registry.demand(HOME) is None


def test_demand_follows_those_who_wait_up_to_its_ceiling(registry: Registry[str]) -> None:
    bring_agent(registry)
    for number in range(200):
        registry.take(f"o{number}", HOME)
    assert registry.demand(HOME) == ("control", MAX_DEMAND)


def test_an_agent_that_lets_opens_wait_is_reminded(registry: Registry[str], clock: Clock) -> None:
    bring_agent(registry)
    registry.take("o1", HOME)
    assert registry.demand(HOME) == ("control", 4)
    assert registry.demand(HOME) is None
    clock.now += module.REMIND_AFTER
    assert registry.demand(HOME) == ("control", 4)


def test_demand_starts_again_after_an_idle_time(registry: Registry[str], clock: Clock) -> None:
    bring_agent(registry)
    for number in range(40):
        registry.take(f"o{number}", HOME)
        registry.withdraw(f"o{number}")
    assert registry.demand(HOME) == ("control", MAX_DEMAND)
    clock.now += module.IDLE_AFTER + 1
    bring_ready(registry, "r1", "r2")
    registry.take("o", HOME)
    assert registry.demand(HOME) == ("control", 2)


# -- limits


def test_connections_controls_pool_and_queue_of_one_device_are_bounded(registry: Registry[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bring_agent(registry)
    monkeypatch.setattr(module, "MAX_PARKED", 1)
    bring_ready(registry, "r1")
    registry.join("r2", HOME)
    assert refusal(registry.park, "r2", FIRST).reason is Reason.QUOTA
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 3)
    assert refusal(registry.join, "r3", HOME).reason is Reason.QUOTA
    monkeypatch.setattr(waiting, "MAX_WAITING", 1)
    registry.take("o1", HOME)
    registry.take("o2", HOME)
    assert refusal(registry.take, "o3", HOME).reason is Reason.QUOTA
    monkeypatch.setattr(module, "MAX_CONTROLS", 1)
    for name, instance in (("f1", FIRST), ("f2", SECOND)):
        registry.join(name, LAPTOP)
        if name == "f1":
            registry.add_control(name, Role.FORWARD, instance)
    assert refusal(registry.add_control, "f2", Role.FORWARD, SECOND).reason is Reason.QUOTA


def test_a_device_that_asks_too_often_is_told_to_slow_down(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_BURST", 3)
    registry: Registry[str] = Registry(clock)
    for name in "abc":
        registry.join(name, LAPTOP)
    failure = refusal(registry.join, "d", LAPTOP)
    assert failure.reason is Reason.RATE_LIMITED
    assert failure.retry_after > 0
    assert len(registry) == 3
    clock.now += 1
    registry.join("d", LAPTOP)


def test_leaving_twice_or_unknown_is_nothing(registry: Registry[str]) -> None:
    bring_agent(registry)
    registry.leave("control")
    assert registry.leave("control").ready == ()
    assert len(registry) == 0


def test_a_full_relay_takes_nobody_more_until_somebody_leaves(clock: Clock) -> None:
    registry: Registry[str] = Registry(clock, capacity=2)
    registry.join("a", HOME)
    registry.join("b", LAPTOP)
    with pytest.raises(Failure, match="full") as caught:
        registry.join("c", HOME)
    assert caught.value.reason is Reason.QUOTA
    assert caught.value.retry_after
    assert len(registry) == 2
    registry.leave("a")
    registry.join("c", HOME)
