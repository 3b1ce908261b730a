"""What may happen to machines that share a spool; each proves that its fault struck."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from fleet import LEASE, Fleet, fleet, until
from network import Cluster, Machines, OneKernel
from traffic import BUILDS, IMAGES, Ask, make_asks
from verdict import Event, Verdict, answered_at, judge, read_events

from stager.layout import Claim

MARGIN_SECONDS = 120.0
"""More than a lease, until what was interrupted goes on; on a crowded host all takes long."""
WORK_SECONDS = 240.0
"""So long may 200 requests take where nothing happens, or after it did."""
STEPS = ("claim", "accept", "start", "token", "streaming", "link", "sidecar", "flag", "release",
         "commit", "publish")  # fmt: skip
SHORT_CUT, LONG_CUT = LEASE / 2, LEASE * 2.5


def end(run: Fleet, seconds: float, recovered: Callable[[], float] | None = None) -> Verdict:
    """Wait for all answers, have every machine examined, stop it all and judge."""
    start = time.monotonic()
    run.await_answers(seconds)
    waited = time.monotonic() - start
    until(
        lambda: not leftovers(run), f"a clean spool: {leftovers(run)}", LEASE * 3 + MARGIN_SECONDS
    )
    said = run.examine()
    for host in list(run.pids):
        run.stop(host)
    verdict = judge(run.take_home(), run.asks)
    verdict.recovered_seconds = round(recovered() if recovered else waited, 1)
    verdict.problems += [
        f"doctor on {h}: {text}" for h, text in said.items() if "\nfindings: []\n" not in text
    ]
    return verdict


def leftovers(run: Fleet) -> str:
    """Return what is under way or left over, as the server's disk has it."""
    rooms = (
        "spool/active spool/waiting spool/private spool/tmp static/.stager/work static/.stager/tmp"
    )
    return run.run("srv", f"cd {run.root}; ls -A {rooms} | grep -v ':$' | grep .; true")


def plain(machines: Machines, hosts: Sequence[str] = ("a", "b"), count: int = 200) -> Verdict:
    """Nothing happens: requests from all sides, builds and images that overlap."""
    with fleet(machines, f"plain{len(hosts)}", tuple(hosts)) as run:
        for host in hosts:
            run.start(host)
        run.drop(make_asks("plain", count, hosts))
        verdict = end(run, WORK_SECONDS)
        verdict.struck = "nothing was done"
        return verdict


def cut(machines: Machines, seconds: float, count: int = 200) -> Verdict:
    """A client is cut off in the middle of its work, and comes back."""
    kind = "short" if seconds < LEASE else "long"
    with fleet(machines, f"cut-{kind}") as run:
        run.start("a")
        run.start("b")
        run.drop(make_asks("cut", count, run.hosts), seconds=5)
        until(lambda: run.answered() > count // 20, "some answers", WORK_SECONDS)
        inst = instance(run, "a")
        machines.cut("a")
        try:
            time.sleep(1)
            before, states = run.beats()[inst], run.state("a")
            time.sleep(max(0.0, seconds - 1.5))
            after = run.beats().get(inst)
            if seconds > LEASE:
                # On a crowded host the others take longer to be sure.
                until(lambda: inst not in run.beats(), "its burial", MARGIN_SECONDS)
        finally:
            machines.heal("a")
        healed = time.monotonic()
        assert after in {before, None}, "a beat came through the cut"
        assert "D" in states, f"no call was blocked: {states}"
        run.await_answers(LEASE + WORK_SECONDS)
        recovered = time.monotonic() - healed
        if seconds > LEASE:
            run.await_log("a", "took this instance for dead", MARGIN_SECONDS)
        verdict = end(run, MARGIN_SECONDS, lambda: recovered)
        verdict.struck = f"threads {states}, no beat for {seconds:.0f} s"
        return verdict


def instance(run: Fleet, host: str) -> str:
    """Return the name of a machine's living instance."""
    found = [inst for inst in run.beats() if inst.startswith((f"lab-{host}-", f"{host}-"))]
    assert len(found) == 1, found
    return found[0]


def stopped(machines: Machines, steps: Sequence[str] = STEPS, count: int = 200) -> Verdict:
    """A worker is stopped before each of its steps, past the lease; taken over; continued."""
    with fleet(machines, "stopped") as run:
        run.start("a", steps)
        run.start("b")
        stops = [_Stop(run, number, step, count // len(steps)) for number, step in enumerate(steps)]
        for stop in stops:
            stop.play()
        longest = max(stop.recovered for stop in stops)
        verdict = end(run, MARGIN_SECONDS, lambda: longest)
        verdict.struck = ", ".join(f"{stop.step} {stop.recovered:.0f} s" for stop in stops)
        events = read_events(run.lab / f"{run.name}.events")
        verdict.problems += [problem for stop in stops for problem in stop.published(events)]
        return verdict


class _Stop:
    """One stop of machine a's daemon, at one step."""

    def __init__(self, run: Fleet, number: int, step: str, count: int) -> None:
        self.run, self.number, self.step, self.count = run, number, step, count
        self.recovered = self.continued = self.over = 0.0

    def play(self) -> None:
        """Have it stopped, taken over and continued."""
        run = self.run
        run.run("a", f"touch /run/{run.name}/{self.step}.armed")
        fresh = self._fresh()
        self._stop(fresh)
        start = time.monotonic()
        more = make_asks(f"{self.step}-more", max(0, self.count - len(fresh)), ("b",))
        run.drop(more)
        run.await_answers(LEASE + MARGIN_SECONDS)
        self.recovered = time.monotonic() - start
        assert "T" in run.state("a"), "it did not stay stopped"
        assert self.recovered > LEASE / 2, "nothing had to be taken over"
        self.continued = run.clock()
        run.signal("a", "CONT")
        anew = f"grep -c 'took this instance for dead' /run/{run.name}/a.log; true"
        until(lambda: int(run.run("a", anew)) > self.number, "a new instance", MARGIN_SECONDS)
        until(lambda: len(run.beats()) == 2, "both alive", MARGIN_SECONDS)
        self.over = run.clock()

    def _stop(self, asks: list[Ask]) -> None:
        """Have machine a come to the step: it alone takes in what needs images anew."""
        run = self.run
        run.pause("b")
        run.drop(asks)
        until(
            lambda: self.step in run.run("a", f"ls /run/{run.name}").split(),
            f"machine a comes to the step {self.step}",
            MARGIN_SECONDS,
        )
        run.resume("b")

    def _fresh(self) -> list[Ask]:
        """Return requests that each need an image nobody asked for before."""
        build = BUILDS + self.number
        return [Ask(f"{self.step}-{image}", build, (image,), "b", False) for image in IMAGES]

    def published(self, events: list[Event]) -> list[str]:
        """Return what appeared after the stopped worker went on, and before more was asked."""
        places = ("results", "spool/done", "spool/failed", "static/images", "static/.stager/side")
        return [
            f"{self.step}: continued, and {place}/{name} appeared"
            for moment, place, kind, name in events
            if place.startswith(places) and kind in {"to", "new"}
            if self.continued < moment < self.over and not name.startswith("status.")
        ]


def killed(machines: Machines, count: int = 200) -> Verdict:
    """A machine loses power for good; the other one finishes its work."""
    with fleet(machines, "killed") as run:
        # It ends in the middle of a step: with a claim and the build's token.
        run.start("a", ["link"])
        run.start("b")
        run.run("a", f"touch /run/{run.name}/link.armed")
        run.drop(make_asks("kill", count, ("b",)), seconds=3)
        inst = instance(run, "a")
        until(lambda: "link" in run.run("a", f"ls /run/{run.name}").split(), "a stop of a", 60)
        gone = run.clock()
        if isinstance(machines, Cluster):
            machines.guests["a"].cut_power()
        else:
            machines.cut("a")
            run.signal("a", "KILL")
        del run.pids["a"]
        names = run.run("srv", f"ls {run.root}/spool/active | grep {inst}; true").split()
        held = [claim.result_file for claim in map(Claim.parse, names) if claim]
        assert held, "it held nothing"
        run.hosts = ("b",)
        verdict = end(run, LEASE + WORK_SECONDS)
        answered = answered_at(read_events(run.lab / f"{run.name}.events"))
        verdict.recovered_seconds = round(max(answered[name] for name in held) - gone, 1)
        verdict.struck = f"it held {len(held)} claims; all were answered that long after"
        if isinstance(machines, OneKernel):
            machines.heal("a")
        return verdict


def server_stops(machines: Machines, seconds: float = 5.0, count: int = 200) -> Verdict:
    """The file server stops and starts; or, where it has a kernel of its own, loses power."""
    with fleet(machines, "server") as run:
        run.start("a")
        run.start("b")
        run.drop(make_asks("server", count, run.hosts), seconds=5)
        until(lambda: run.answered() > count // 20, "some answers", WORK_SECONDS)
        if isinstance(machines, Cluster):
            machines.guests["srv"].cut_power()
            time.sleep(1)
            states = run.state("a") + " " + run.state("b")
            machines.guests["srv"].boot()
            machines.guests["srv"].await_up()
            run.watch("srv")
        else:
            run.run("srv", "srv_stop")
            time.sleep(seconds)
            states = run.state("a") + " " + run.state("b")
            run.run("srv", "srv_start")
        assert all("D" in each for each in states.split()), f"no call was blocked: {states}"
        back = time.monotonic()
        run.await_answers(WORK_SECONDS + LEASE)
        recovered = time.monotonic() - back
        verdict = end(run, MARGIN_SECONDS, lambda: recovered)
        verdict.struck = f"threads {states}"
        return verdict


def same_id(machines: Machines, count: int = 200) -> Verdict:
    """Two machines were made from one image, and have one machine id."""
    with fleet(machines, "same-id", ids={"a": "clone", "b": "clone"}) as run:
        run.start("a")
        run.start("b")
        run.drop(make_asks("clone", count, run.hosts), seconds=5)
        for host in run.hosts:
            run.await_log(host, "two machines have one machine id", MARGIN_SECONDS)
        verdict = end(run, WORK_SECONDS)
        verdict.struck = "both daemons warn of it"
        return verdict


def clocks(machines: Cluster, count: int = 200) -> Verdict:
    """One machine's clock is an hour ahead, then jumps back and forth."""
    with fleet(machines, "clocks") as run:
        run.run("b", "touch /run/jumping")
        run.run("b", 'date -s "+1 hour"')
        run.start("a")
        run.start("b")
        run.drop(make_asks("clock", count, run.hosts), seconds=10)
        seen = []
        for jump in ("-2 hours", "+3 hours", "-1 hour"):
            with suppress(AssertionError):
                until(lambda: run.answered() >= count, "", 3)
            run.run("b", f'date -s "{jump}"')
            seen.append(int(run.run("b", "date +%s")) - int(run.run("a", "date +%s")))
        run.run("b", "date -s '+1 hour'")
        verdict = end(run, WORK_SECONDS)
        verdict.struck = f"b was ahead by 3600, {', '.join(map(str, seen))} s"
        return verdict
