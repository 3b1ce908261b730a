"""What coordination costs: calls to the file server for each request, by its own counters."""

import time
from collections import Counter

from fleet import Fleet, fleet
from network import Machines
from scenarios import end
from traffic import BUILDS, Ask, make_asks
from verdict import Verdict

IDLE_SECONDS = 20.0
ALONE = 5
AT_ONCE = 50
NFS3 = (
    "null",
    "getattr",
    "setattr",
    "lookup",
    "access",
    "readlink",
    "read",
    "write",
    "create",
    "mkdir",
    "symlink",
    "mknod",
    "remove",
    "rmdir",
    "rename",
    "link",
    "readdir",
    "readdirplus",
    "fsstat",
    "fsinfo",
    "pathconf",
    "commit",
)
NFS4 = {
    3: "access", 4: "close", 5: "commit", 6: "create", 9: "getattr", 10: "getfh", 11: "link",
    15: "lookup", 18: "open", 22: "putfh", 25: "read", 26: "readdir", 28: "remove", 29: "rename",
    34: "setattr", 38: "write", 53: "sequence",
}  # fmt: skip


def counters(run: Fleet) -> Counter[str]:
    """Return how many calls the server has had: `calls`, and by operation."""
    text = run.run("srv", "cat /proc/net/rpc/nfsd")
    lines = {line.split()[0]: [*map(float, line.split()[1:])] for line in text.splitlines()}
    found = Counter({"calls": int(lines["rpc"][0])})
    if run.machines.version.startswith("3"):
        return found + Counter(dict(zip(NFS3, map(int, lines["proc3"][1:]), strict=False)))
    ops = dict(enumerate(map(int, lines["proc4ops"][1:])))
    return found + Counter({name: ops[number] for number, name in NFS4.items()})


def per_second(run: Fleet) -> dict[str, float]:
    """Return what idle daemons cost."""
    before, start = counters(run), time.monotonic()
    time.sleep(IDLE_SECONDS)
    spent, seconds = counters(run) - before, time.monotonic() - start
    return {name: count / seconds for name, count in spent.items()}


def spend(run: Fleet, asks: list[Ask], idle: dict[str, float]) -> dict[str, float]:
    """Return the calls for each of some requests, dropped at once, without what idling costs."""
    before, start = counters(run), time.monotonic()
    run.drop(asks)
    run.await_answers(120)
    spent, seconds = counters(run) - before, time.monotonic() - start
    left = {name: n - idle.get(name, 0.0) * seconds for name, n in spent.items()}
    return {name: round(n / len(asks), 1) for name, n in left.items() if n > len(asks) / 20}


def measure(machines: Machines) -> Verdict:
    """Measure two machines with nothing to do, fresh requests, and requests already staged."""
    with fleet(machines, "cost") as run:
        run.run("r", f"kill {run.watchers['read'][1]}")
        run.start("a")
        run.start("b")
        time.sleep(10)
        idle = per_second(run)
        said = [f"idle {idle['calls'] / 2:.1f} calls/s for each machine"]
        # The server drops them itself: no call of a client's is counted.
        fresh = [Ask(f"fresh-{b}", b, ("test",), "srv", False) for b in range(BUILDS)]
        costs = {"fresh": spend(run, fresh, idle)}
        staged = [Ask(f"staged-{n}", n % BUILDS, ("test",), "srv", False) for n in range(AT_ONCE)]
        costs["staged, 50 at once"] = spend(run, staged, idle)
        alone = [Ask(f"alone-{n}", n, ("test",), "srv", False) for n in range(ALONE)]
        singly = [spend(run, [ask], idle) for ask in alone]
        costs["staged, alone"] = {
            name: round(sum(each.get(name, 0) for each in singly) / ALONE, 1)
            for name in sorted({name for each in singly for name in each})
        }
        for name, cost in costs.items():
            print(f"    {name}: {cost}")
            said.append(f"{name} {cost.get('calls', 0):.0f} calls")
        run.read("r")
        run.drop(make_asks("more", 20, run.hosts))
        verdict = end(run, 60)
        verdict.struck = "; ".join(said)
        return verdict
