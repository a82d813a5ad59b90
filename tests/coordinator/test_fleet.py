"""A fleet of scripted agents, and what its listener is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coordinator import events as ev
from coordinator import fleet as fleet_module
from coordinator import muster
from coordinator.agent_link import AgentLink
from coordinator.domain import Cluster
from coordinator.errors import HostsError
from coordinator.fleet import Fleet
from coordinator.host_sources import HostsFile
from coordinator.hosts import AgentAddress, HostPolicy, Usable
from coordinator.patience import Patience

ALONE, SPREAD = Cluster(0, 1), Cluster(1, 2)
AT_ONCE = HostPolicy(wait=0.0)
RUN = "run"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(fleet_module, "REFUSED_PAUSE", 0.05)
    monkeypatch.setattr(muster, "ASK_AGAIN", 0.05)


def usable(slots):
    """What a scripted agent with so many slots has."""
    return Usable(slots, ports=(20000, 29999))


class Listener:
    """Notes all that it is told, and what the user is."""

    def __init__(self):
        self.told = []
        self.notices = []
        self.changed = asyncio.Event()

    def _note(self, what):
        self.told.append(what)
        self.changed.set()

    def host_joined(self, link, usable):
        self._note(("joined", link.name, usable.slots))

    def host_left(self, name):
        self._note(("left", name))

    def host_changed(self, event):
        self._note(event)

    def tell(self, notice):
        self.notices.append(notice.message)
        self.changed.set()

    async def wait_for(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def hears(self, *what):
        await self.wait_for(lambda: all(each in self.told for each in what))

    async def reads(self, words):
        await self.wait_for(lambda: any(words in notice for notice in self.notices))


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
async def opened(listener, serve):
    """Opens fleets, follows them, and closes them; ``shown`` is what was found of the last."""
    fleets, following = [], []

    async def open_fleet(
        *addresses, cluster=ALONE, policy=AT_ONCE, follow=True, show=None, lost=0.4, again=None
    ):
        fleet = Fleet(list(addresses), policy, listener.tell, Patience(2.0, 2.0, 0.05, lost))
        fleets.append(fleet)
        await fleet.open(cluster, show, again)
        if follow:
            following.append(asyncio.create_task(fleet.follow(listener)))
            await asyncio.sleep(0)  # it has begun
        return fleet

    yield open_fleet
    for task in following:
        assert not task.done()
        task.cancel()
    await asyncio.gather(*following, return_exceptions=True)
    for fleet in fleets:
        await fleet.close()


def address(agent, name, **limits):
    return AgentAddress(agent.address, **limits, name=name)


def nowhere(tmp_path, name="gone"):
    return AgentAddress(f"unix:{tmp_path}/{name}.sock", name=name)


# --- the start ----------------------------------------------------------------------------------


async def test_hosts_are_in_the_order_of_the_file(opened, serve):
    agents = [(name, await serve(name, slots=n)) for n, name in enumerate("dbca", start=1)]
    fleet = await opened(*(address(agent, name) for name, agent in agents), follow=False)
    assert fleet.hosts == {"d": usable(1), "b": usable(2), "c": usable(3), "a": usable(4)}
    assert list(fleet.hosts) == list(fleet.links) == ["d", "b", "c", "a"]


async def test_what_was_found_is_shown_before_it_is_refused(opened, serve, tmp_path):
    shown = []
    with pytest.raises(HostsError, match=r"^gone: no agent listens there"):
        await opened(address(await serve(), "a"), nowhere(tmp_path), show=shown.append)
    ((row, lost),) = [found.rows for found in shown]
    assert (row.name, row.state, lost.name) == ("a", "ready", "gone")
    assert "no agent listens there" in lost.state


@pytest.mark.parametrize(
    ("facts", "words"),
    [({"nhop_version": "0.0.1"}, "of nhop 0.0.1"), ({"free_disk_bytes": 1 << 20}, "1 MB of disk are free")],
)
async def test_a_host_that_cannot_work_is_refused(opened, serve, facts, words):
    shown = []
    agent = await serve()
    agent.facts = facts
    with pytest.raises(HostsError, match=words):
        await opened(address(agent, "a"), show=shown.append)
    assert shown[0].rows[0].state == "cannot be used"


async def test_a_host_with_fewer_slots_than_the_file_says_is_refused(opened, serve):
    shown = []
    a, b = await serve("a", slots=2), await serve("b")
    with pytest.raises(HostsError, match="a: slots=3, but its agent has 2"):
        await opened(address(a, "a", slots=3), address(b, "b"), show=shown.append)
    assert [row.state for row in shown[0].rows] == ["cannot be used", "ready"]


async def test_what_is_only_odd_is_shown_and_used(opened, serve):
    shown = []
    agent = await serve()
    agent.facts = {"free_disk_bytes": 500 << 20}
    fleet = await opened(address(agent, "a"), follow=False, show=shown.append)
    assert list(fleet.hosts) == ["a"]
    assert "only 500 MB" in shown[0].findings.warnings[0]


async def test_clocks_are_compared(opened, serve):
    shown = []
    agent = await serve()
    agent.facts = {}
    await opened(address(agent, "a"), follow=False, show=shown.append)
    assert abs(shown[0].rows[0].inventory.clock_offset) < 2.0
    assert shown[0].findings.warnings == ()


async def test_a_host_is_waited_for(opened, serve, listener, tmp_path):
    opening = asyncio.create_task(opened(nowhere(tmp_path, "a"), policy=HostPolicy(wait=30.0), follow=False))
    await listener.reads("waiting for host a: no agent listens there")
    await serve("a")
    assert list((await opening).hosts) == ["a"]


async def test_a_wait_that_is_over_says_why(opened, listener, tmp_path):
    with pytest.raises(HostsError, match="no agent listens there"):
        await opened(nowhere(tmp_path), policy=HostPolicy(wait=0.2))
    assert len(listener.notices) == 1


async def test_tensorflow_that_is_loading_is_waited_for(opened, serve):
    agent = await serve()
    agent.facts = {"tensorflow_version": ""}
    opening = asyncio.create_task(opened(address(agent, "a"), follow=False))
    async with asyncio.timeout(10):
        while len(agent.heartbeats) < 3:  # noqa: ASYNC110  (the agent tells no one)
            await asyncio.sleep(0.01)
    assert not opening.done()
    agent.facts = {}
    await opening


async def test_with_fewer_hosts_the_others_are_used_once_they_answer(opened, serve, listener, tmp_path):
    policy = HostPolicy(wait=0.0, fewest=1)
    fleet = await opened(address(await serve(), "a"), nowhere(tmp_path, "b"), policy=policy)
    assert list(fleet.hosts) == ["a"]
    assert listener.notices == ["the study begins without host b, which is used once it answers"]
    await serve("b", slots=3)
    await listener.hears(("joined", "b", 3))


async def test_with_too_few_hosts_there_is_no_study(opened, serve, tmp_path):
    policy = HostPolicy(wait=0.0, fewest=2)
    with pytest.raises(HostsError, match="hosts that answer: 1, and --min-hosts asks for 2"):
        await opened(address(await serve(), "a"), nowhere(tmp_path), policy=policy)


async def test_a_stop_while_hosts_are_waited_for_leaves_nothing(opened, tmp_path):
    opening = asyncio.create_task(opened(nowhere(tmp_path), policy=HostPolicy(wait=60.0)))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening


# --- reach --------------------------------------------------------------------------------------


async def two_that_do_not_reach(serve):
    a, b = await serve("a"), await serve("b")
    a.unreachable = {b.incarnation: "no route to host"}
    return address(a, "a"), address(b, "b")


async def test_hosts_of_one_trial_must_reach_each_other(opened, serve):
    shown = []
    pair = await two_that_do_not_reach(serve)
    with pytest.raises(
        HostsError, match=r"a does not reach the task ports of b .*TCP 20000-29999\): no route"
    ):
        await opened(*pair, cluster=SPREAD, show=shown.append)
    assert [row.ports for row in shown[0].rows] == ["reached", "not by 1 of 1"]


@pytest.mark.parametrize("cluster", [ALONE, Cluster(1, 1)], ids=str)
async def test_trials_on_one_host_need_no_probe(opened, serve, cluster):
    a, b = await serve("a"), await serve("b")
    await opened(address(a, "a"), address(b, "b"), cluster=cluster, follow=False)
    assert a.calls == b.calls == []


async def test_before_the_trials_are_known_it_is_only_warned(opened, serve):
    shown = []
    await opened(*await two_that_do_not_reach(serve), cluster=None, follow=False, show=shown.append)
    assert "no route to host" in shown[0].findings.warnings[0]


async def test_a_host_that_joins_is_probed_in_both_directions(opened, serve, listener):
    a, b = await serve("a"), await serve("b")
    b.unreachable = {a.incarnation: "no route to host"}
    fleet = await opened(address(a, "a"), cluster=SPREAD)
    fleet.change([address(a, "a"), address(b, "b")])
    await listener.reads("host b is not used: b does not reach the task ports of a")
    b.unreachable = {}
    await listener.hears(("joined", "b", 2))


async def test_a_host_whose_ports_are_all_in_use_is_not_taken_for_one_out_of_reach(opened, serve, listener):
    """Trials of another coordinator have them, or those that ran when its agent was started again."""
    a, b = await serve("a"), await serve("b")
    a.ports_taken = True
    shown = []
    await opened(address(a, "a"), address(b, "b"), cluster=SPREAD, show=shown.append)
    assert [row.ports for row in shown[0].rows] == ["all in use", "reached"]
    a.incarnation = "another"
    await listener.hears(ev.HostRestarted("a"))
    assert not any("not used" in notice for notice in listener.notices)


async def gone_beside_another(opened, serve, listener):
    """Hosts a and b of a fleet whose trials may be spread over them; a is gone and lost."""
    a, b = await serve("a"), await serve("b")
    fleet = await opened(address(a, "a"), address(b, "b"), cluster=SPREAD)
    await a.close()
    await listener.wait_for(lambda: any(isinstance(told, ev.HostLost) for told in listener.told))
    return fleet, a, b


async def test_a_host_that_is_gone_keeps_no_other_from_joining(opened, serve, listener):
    fleet, a, b = await gone_beside_another(opened, serve, listener)
    c = await serve("c")
    fleet.change([address(a, "a"), address(b, "b"), address(c, "c")])
    await listener.hears(("joined", "c", 2))
    assert listener.notices == []


async def test_a_host_that_is_gone_costs_no_other_its_place(opened, serve, listener):
    fleet, _, b = await gone_beside_another(opened, serve, listener)
    b.incarnation = "another"
    await listener.hears(ev.HostRestarted("b"))
    assert list(fleet.hosts) == ["a", "b"]
    assert listener.notices == []


async def test_a_host_that_goes_while_it_is_probed_keeps_no_other_from_joining(opened, serve, listener):
    a, b = await serve("a"), await serve("b")
    fleet = await opened(address(a, "a"), cluster=SPREAD, lost=60.0)
    await a.close()  # the next heartbeat would tell
    fleet.change([address(a, "a"), address(b, "b")])
    await listener.hears(("joined", "b", 2))
    assert listener.notices == []


# --- hosts come and go --------------------------------------------------------------------------


async def test_a_new_host_joins_and_another_leaves(opened, serve, listener):
    a, b = address(await serve("a"), "a"), address(await serve("b"), "b")
    fleet = await opened(a)
    fleet.change([b])
    assert listener.told == [("left", "a")]
    await listener.hears(("joined", "b", 2))
    await listener.reads("host a has left")
    assert list(fleet.links) == ["b"]


async def test_a_new_host_that_does_not_answer_is_said_once(opened, serve, listener, tmp_path, monkeypatch):
    a, missing = address(await serve("a"), "a"), nowhere(tmp_path)
    fleet = await opened(a)
    asked = asyncio.Semaphore(0)
    inventory = AgentLink.inventory

    async def counted(link, *arguments, **options):
        if link.name == missing.name:
            asked.release()
        return await inventory(link, *arguments, **options)

    monkeypatch.setattr(AgentLink, "inventory", counted)
    fleet.change([a, missing])
    async with asyncio.timeout(10):
        for _ in range(3):
            await asked.acquire()
    (notice,) = listener.notices
    assert notice.startswith("waiting for host gone: ")
    fleet.change([a])
    await listener.reads("host gone is not waited for any more")


async def test_a_file_without_news_is_said(opened, serve, listener):
    a = address(await serve("a"), "a")
    fleet = await opened(a, policy=HostPolicy(wait=0.0, source=HostsFile(Path("some/hosts"))))
    fleet.change([a])
    assert listener.notices == ["some/hosts was read again: nothing has changed"]
    assert listener.told == []


async def test_other_slots_are_passed_on(opened, serve, listener):
    agent = await serve("a", slots=4)
    fleet = await opened(address(agent, "a"))
    fleet.change([address(agent, "a", slots=3)])
    assert listener.told == [("joined", "a", 3)]


async def test_more_slots_than_there_are_change_nothing_of_any_host(opened, serve, listener):
    a, b = await serve("a", slots=4), await serve("b")
    fleet = await opened(address(a, "a"))
    fleet.change([address(a, "a", slots=9), address(b, "b")])
    assert listener.notices == [
        "host a stays as it is: a: slots=9, but its agent has 4; lower it, or start the agent with --slots 9"
    ]
    await listener.hears(("joined", "b", 2))
    assert fleet.hosts["a"] == usable(4)


async def test_a_host_that_is_new_and_cannot_be_used_is_said_once(opened, serve, listener):
    a, b = await serve("a"), await serve("b")
    b.facts = {"nhop_version": "0.0.1"}
    fleet = await opened(address(a, "a"))
    fleet.change([address(a, "a"), address(b, "b")])
    await listener.reads("host b is not used: b: its agent is of nhop 0.0.1")
    before = len(b.heartbeats)
    async with asyncio.timeout(10):
        while len(b.heartbeats) < before + 3:  # noqa: ASYNC110  (the agent tells no one)
            await asyncio.sleep(0.01)
    assert len(listener.notices) == 1
    b.facts = {}
    await listener.hears(("joined", "b", 2))


async def test_two_names_of_one_agent_that_is_new_count_once(opened, serve, listener):
    """Both ask at the same time, and probes take their time."""
    a, b = await serve("a"), await serve("b")
    fleet = await opened(address(a, "a"), cluster=SPREAD)
    fleet.change([address(a, "a"), address(b, "b"), address(b, "c")])
    await listener.reads("is the same agent as")
    assert len([told for told in listener.told if told[0] == "joined"]) == 1


async def test_another_name_of_a_host_waits_until_its_attempts_have_ended(opened, serve, listener):
    """Two streams of a study from one agent would replace each other."""
    agent = await serve("a")
    fleet = await opened(address(agent, "address"))
    link = fleet.links["address"]
    link.follow(RUN)
    fleet.change([address(agent, "name")])
    await listener.reads("is the same agent as address, on which attempts have not ended yet")
    link.unfollow(RUN)
    await listener.hears(("joined", "name", 2))


async def test_a_draining_host_still_hears_of_its_study(opened, serve, listener):
    """Otherwise its agent would end what may end there, as that of a coordinator that is gone."""
    a, b = await serve("a"), await serve("b")
    fleet = await opened(address(a, "a"), address(b, "b"))
    link = fleet.links["a"]
    link.follow(RUN)
    fleet.change([address(b, "b")])
    before = len(a.heartbeats)
    async with asyncio.timeout(10):
        while len(a.heartbeats) < before + 5:  # noqa: ASYNC110  (the agent tells no one)
            await asyncio.sleep(0.01)
    assert list(a.heartbeats[-1].study_ids) == [RUN]
    assert "host a has left" not in listener.notices
    link.unfollow(RUN)
    await listener.reads("host a has left")


async def test_the_loss_of_a_draining_host_is_told(opened, serve, listener):
    a, b = await serve("a"), await serve("b")
    fleet = await opened(address(a, "a"), address(b, "b"))
    fleet.links["a"].follow(RUN)
    fleet.change([address(b, "b")])
    await a.close()
    await listener.wait_for(lambda: any(isinstance(told, ev.HostLost) for told in listener.told))
    assert listener.told[0] == ("left", "a")


async def test_a_host_that_comes_back_while_it_leaves_keeps_its_link(opened, serve, listener):
    a, b = address(await serve("a"), "a"), address(await serve("b"), "b")
    fleet = await opened(a, b)
    link = fleet.links["a"]
    link.follow(RUN)
    fleet.change([b])
    fleet.change([a, b])
    await listener.hears(("left", "a"), ("joined", "a", 2))
    assert fleet.links["a"] is link
    link.unfollow(RUN)
    await asyncio.sleep(0)
    assert "host a has left" not in listener.notices


async def test_a_host_that_left_and_comes_back_is_new(opened, serve, listener):
    a, b = address(await serve("a"), "a"), address(await serve("b"), "b")
    fleet = await opened(a, b)
    fleet.change([b])
    await listener.reads("host a has left")
    fleet.change([a, b])
    await listener.hears(("joined", "a", 2))


# --- hosts that are away ------------------------------------------------------------------------


async def test_an_agent_that_hangs_is_silent_then_lost_then_found(opened, serve, listener, monkeypatch):
    monkeypatch.setattr("coordinator.agent_link.SLOW_ANSWER", 0.05)
    agent = await serve("a")
    await opened(address(agent, "a"))
    agent.hangs = True
    await listener.wait_for(lambda: any(isinstance(told, ev.HostLost) for told in listener.told))
    agent.hangs = False
    await listener.hears(ev.HostFound("a"))
    assert listener.told[0] == ev.HostSilent("a")
    assert "no answer for" in listener.told[1].reason


async def test_a_short_silence_is_told_as_such(opened, serve, listener, monkeypatch):
    monkeypatch.setattr("coordinator.agent_link.SLOW_ANSWER", 0.05)
    agent = await serve("a")
    await opened(address(agent, "a"), lost=60.0)
    agent.hangs = True
    await listener.hears(ev.HostSilent("a"))
    agent.hangs = False
    await listener.hears(ev.HostHeard("a"))
    assert len(listener.told) == 2


async def test_an_agent_that_comes_back_with_other_slots_has_these(opened, serve, listener):
    agent = await serve("a")
    await opened(address(agent, "a"))
    agent.slots, agent.incarnation = 5, "another"
    await listener.hears(ev.HostRestarted("a"))
    assert listener.told == [("joined", "a", 5), ev.HostRestarted("a")]


async def test_an_agent_that_comes_back_with_another_version_is_left(opened, serve, listener):
    agent = await serve("a")
    fleet = await opened(address(agent, "a"))
    fleet.links["a"].follow(RUN)
    agent.facts, agent.incarnation = {"nhop_version": "0.0.1"}, "another"
    await listener.hears(("left", "a"))
    # Its attempts may be lost: they are asked for, but nothing new is placed.
    assert listener.told == [("left", "a"), ev.HostRestarted("a")]
    assert "host a is not used any more: a: its agent is of nhop 0.0.1" in listener.notices[0]
    agent.facts = {}
    await listener.hears(("joined", "a", 2))


async def test_fewer_slots_than_the_file_says_are_a_reason_to_leave(opened, serve, listener):
    agent = await serve("a", slots=4)
    await opened(address(agent, "a", slots=3))
    agent.slots, agent.incarnation = 2, "another"
    await listener.reads("host a is not used any more: a: slots=3, but its agent has 2")
    assert ("left", "a") in listener.told


async def test_heartbeats_go_on_while_a_host_is_looked_at_again(opened, serve, listener, monkeypatch):
    a, b = await serve("a"), await serve("b")
    fleet = await opened(address(a, "a"), address(b, "b"), cluster=SPREAD)
    never = asyncio.Event()

    async def stuck(*_):
        await never.wait()
        return {}

    monkeypatch.setattr(fleet_module, "find_reach", stuck)
    fleet.links["a"].follow(RUN)
    a.incarnation = "another"
    async with asyncio.timeout(10):
        while a.heartbeats[-1].incarnation != "another":  # noqa: ASYNC110  (the agent tells no one)
            await asyncio.sleep(0.01)
        before = len(a.heartbeats)
        while len(a.heartbeats) < before + 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert ev.HostRestarted("a") not in listener.told
    never.set()
    await listener.hears(ev.HostRestarted("a"))


# --- the hosts file -----------------------------------------------------------------------------


@pytest.fixture
async def rereading(opened, serve, tmp_path):
    """A fleet of a hosts file, that file, and what makes it be read again."""
    again, file = asyncio.Event(), tmp_path / "hosts.txt"
    policy = HostPolicy(wait=0.0, source=HostsFile(file))
    agent = await serve("a")
    fleet = await opened(AgentAddress(agent.address), policy=policy)
    task = asyncio.create_task(fleet.reread(again))
    yield fleet, file, again
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_hosts_file_is_read_again(rereading, serve, listener):
    fleet, file, again = rereading
    other = await serve("b")
    file.write_text(f"{next(iter(fleet.hosts))}\n{other.address} slots=1\n")
    again.set()
    await listener.hears(("joined", other.address, 1))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no such:line:x\n", "hosts.txt:1"),
        ("# nobody\n", "lists no host"),
        ("192.0.2.1:7001\n", "TLS"),
        (None, "cannot be read"),
    ],
)
async def test_a_wrong_hosts_file_changes_nothing_and_says_why(rereading, listener, content, words):
    fleet, file, again = rereading
    before = dict(fleet.hosts)
    if content is not None:
        file.write_text(content)
    again.set()
    await listener.reads("the hosts stay as they are: ")
    assert words in listener.notices[-1]
    assert (fleet.hosts, listener.told) == (before, [])


@pytest.fixture
async def waiting(opened, serve, listener, tmp_path):
    """A fleet that waits for one of its two hosts, its file, what makes it be read again, and who answers."""
    again, file = asyncio.Event(), tmp_path / "hosts.txt"
    policy = HostPolicy(wait=30.0, fewest=2, source=HostsFile(file))
    agent, gone = await serve("a"), AgentAddress(f"unix:{tmp_path}/gone.sock")
    opening = asyncio.create_task(
        opened(AgentAddress(agent.address), gone, policy=policy, follow=False, again=again)
    )
    await listener.reads(f"waiting for host {gone.target}")
    yield opening, file, again, agent
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)


async def test_the_hosts_file_is_read_again_while_hosts_are_waited_for(waiting, serve, listener):
    opening, file, again, agent = waiting
    other = await serve("b", slots=5)
    file.write_text(f"{other.address} slots=3\n{agent.address}\n")
    again.set()
    async with asyncio.timeout(10):
        fleet = await opening
    assert fleet.hosts == {other.address: usable(3), agent.address: usable(2)}
    assert list(fleet.links) == list(fleet.hosts)
    assert f"{file} was read again: it lists 2" in listener.notices


async def test_a_wrong_hosts_file_changes_nothing_while_hosts_are_waited_for(waiting, serve, listener):
    opening, file, again, agent = waiting
    file.write_text(agent.address)
    again.set()
    await listener.reads("the hosts stay as they are: --min-hosts 2: ")
    await serve("gone")
    async with asyncio.timeout(10):
        assert len((await opening).hosts) == 2
    assert sum("waiting for host" in notice for notice in listener.notices) == 1  # the wait went on


async def test_other_sources_are_read_again_too(opened, serve, listener):
    class Cloud:
        listing: Exception | tuple[AgentAddress, ...] = HostsError("ec2:a=b: no running instance")

        def read(self, *, refusal=""):
            if isinstance(self.listing, Exception):
                raise self.listing
            return self.listing

        def __str__(self):
            return "ec2:a=b"

    again, cloud = asyncio.Event(), Cloud()
    agent, other = await serve("a"), await serve("b")
    fleet = await opened(AgentAddress(agent.address), policy=HostPolicy(wait=0.0, source=cloud))
    task = asyncio.create_task(fleet.reread(again))
    again.set()
    await listener.reads("the hosts stay as they are: ec2:a=b: no running instance")
    cloud.listing = (AgentAddress(agent.address), AgentAddress(other.address))
    again.set()
    await listener.hears(("joined", other.address, 2))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_two_signals_in_a_row_are_taken_both(rereading, listener):
    fleet, file, again = rereading
    for _ in range(2):
        listener.notices.clear()
        file.write_text(next(iter(fleet.hosts)))
        again.set()
        await listener.reads("nothing has changed")


async def test_close_leaves_nothing_of_what_is_under_way(serve, listener, tmp_path):
    fleet = Fleet([address(await serve("a"), "a")], AT_ONCE, listener.tell)
    await fleet.open(ALONE)
    fleet.links["a"].follow(RUN)
    following = asyncio.create_task(fleet.follow(listener))
    await asyncio.sleep(0)
    fleet.change([nowhere(tmp_path)])  # one drains, the other is waited for
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await fleet.close()
    assert not [task for task in asyncio.all_tasks() if "/fleet.py" in str(task.get_coro().cr_code)]
