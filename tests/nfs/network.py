"""The machines of an NFS network: a file server, clients `a`, `b`, `c`, and `r` that only reads.

Either namespaces of one kernel (boots in seconds, each with its own NFS client) or a kernel for
each machine (own clock, caches and power switch). Both mount the server's export on /mnt/<name>.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from lab import ROOT
from lab.uml import Guest, Network, closing

CLIENTS = ("a", "b", "c", "r")
EXPORT = "/srv/export"
WARM_UP = f"python3 -m compileall -q {ROOT}/stager {ROOT}/watcherd.py\nchmod o+x /root\n"
DISK_MB = 768


class Machines(Protocol):
    """What a scenario may do to machines."""

    home: Path
    """What was there before the machines were switched on: archives, and what is known of them."""
    lab: Path
    """Shared by the host and the server."""
    version: str

    def run(self, name: str, script: str, seconds: float = 60.0) -> str:
        """Run a bash script on a machine; return what it wrote."""

    def cut(self, name: str) -> None:
        """Unplug a machine."""

    def heal(self, name: str) -> None:
        """Plug it in again."""


class OneKernel:
    """All machines in one guest, told apart by network namespaces."""

    def __init__(
        self, lab: Path, version: str, clients: tuple[str, ...] = CLIENTS, lease: int = 10
    ) -> None:
        self.home = self.lab = lab
        self.version = version
        mounts = "".join(f"nfs_client {n}; nfs_mount {n} /mnt/{n} {version}\n" for n in clients)
        setup = f"LEASE={lease}\n{WARM_UP}nfs_server\n{mounts}"
        self.guest = Guest(lab, setup, disk_mb=DISK_MB, memory_mb=1024, life_seconds=1800)

    def run(self, name: str, script: str, seconds: float = 60.0) -> str:
        if name != "srv":
            script = f"in_ns {name} bash -c {shlex.quote(script)}"
        return self.guest.run(script, seconds)

    def cut(self, name: str) -> None:
        self.guest.run(f"net_cut {name}")

    def heal(self, name: str) -> None:
        self.guest.run(f"net_heal {name}")


class Cluster:
    """A guest with a kernel of its own for each machine."""

    def __init__(self, lab: Path, version: str, clients: tuple[str, ...] = ("a", "b", "r")) -> None:
        self.version = version
        names = ["srv", *clients]
        self.network = Network(names)
        self.guests = {
            name: Guest(
                lab / name, self._setup(name), network=self.network,
                disk_mb=DISK_MB if name == "srv" else 0, memory_mb=384,
            )
            for name in names
        }  # fmt: skip
        self.home, self.lab = lab, lab / "srv"

    def _setup(self, name: str) -> str:
        card = "ip addr add $(address {0})/24 dev vec0; ip link set vec0 up; hostname lab-{0}\n"
        if name == "srv":
            return card.format(name) + WARM_UP + "nfs_server no\n"
        source, point = f'"$(nfs_source {self.version})"', f"/mnt/{name}"
        return card.format(name) + WARM_UP + (
            f"modprobe -a nfs nfsv3 nfsv4; rpcbind -w; rpc.statd --no-notify; mkdir -p {point}\n"
            f"until mount -t nfs -o vers={self.version},proto=tcp {source} {point}\n"
            "do sleep .2; done\n"
        )  # fmt: skip

    def run(self, name: str, script: str, seconds: float = 60.0) -> str:
        return self.guests[name].run(script, seconds)

    def cut(self, name: str) -> None:
        self.network.cut(name)

    def heal(self, name: str) -> None:
        self.network.heal(name)


@contextmanager
def one_kernel(lab: Path, version: str, lease: int = 10) -> Iterator[OneKernel]:
    """Have all machines in one guest for the length of a block; `lease`: of NFSv4's server."""
    machines = OneKernel(lab, version, lease=lease)
    with closing([machines.guest]):
        machines.guest.boot()
        machines.guest.await_up()
        yield machines


@contextmanager
def cluster(lab: Path, version: str) -> Iterator[Cluster]:
    """Have a guest for each machine for the length of a block."""
    machines = Cluster(lab, version)
    with closing([*machines.guests.values()], machines.network):
        machines.network.make()
        for guest in machines.guests.values():
            guest.boot()
        for guest in machines.guests.values():
            guest.await_up()
        yield machines
