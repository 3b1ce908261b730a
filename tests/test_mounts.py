"""What the mount table tells: dangers are named with what to do, good mounts are silent."""

import subprocess
import sys
from pathlib import Path

import pytest
from lab import Lab

from stager import mounts
from stager.errors import SetupError

ROOT_LINE = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro"
NFS = (
    "41 22 0:40 / /srv rw,relatime shared:9 - nfs4 server:/ "
    "rw,vers=4.2,rsize=1048576,hard,proto=tcp,timeo=600,retrans=2,sec=sys,local_lock=none{}"
)


def table(tmp_path: Path, *lines: str) -> list[mounts.Mount]:
    file = tmp_path / "mountinfo"
    file.write_text("\n".join((ROOT_LINE, *lines)) + "\n")
    return mounts.mounts(file)


def told(tmp_path: Path, *lines: str) -> list[str]:
    found = mounts.notices([Path("/srv/spool"), Path("/srv/static")], table(tmp_path, *lines))
    return [str(notice) for notice in found]


@pytest.mark.parametrize(
    "line",
    [
        ROOT_LINE,
        NFS.format(""),
        NFS.format(",lookupcache=pos,acregmax=10,acdirmin=1,acdirmax=5"),
        "41 22 8:1 / /srv rw,noatime - xfs /dev/sda1 rw,attr2,inode64",
    ],
    ids=["root", "nfs defaults", "nfs as recommended", "xfs"],
)
def test_a_good_mount_is_not_spoken_of(tmp_path: Path, line: str) -> None:
    assert told(tmp_path, line) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (NFS.format(",nocto"), "with nocto: a listing opened anew may then be old"),
        (NFS.format("").replace("hard", "soft"), "with soft: an error then may be a success"),
        (NFS.format("").replace("hard", "softerr"), "mount with `hard`"),
        (NFS.format(",noac"), "with noac"),
        (NFS.format(",nolock"), "watcherd takes no file locks"),
        (NFS.format("").replace("local_lock=none", "local_lock=all"), "with local_lock=all"),
        (NFS.format(",acregmax=600,acdirmax=600"), "with acdirmax=600: waiting clients hear late"),
        (NFS.format(",lookupcache=none"), "`lookupcache=pos` is enough"),
        (NFS.format("").replace("4.2", "2"), "mount with vers=4.2"),
        ("41 22 0:40 / /srv rw - tmpfs none rw", "/srv (tmpfs) is memory: what is in it ends"),
        ("41 22 0:40 / /srv rw - overlay none rw", "a container's or live system's layer"),
        ("41 22 0:40 / /srv rw - ext4 /dev/sda rw,nobarrier", "gone after a power loss"),
        ("41 22 0:40 / /srv rw,sync - ext4 /dev/sda rw", "every write waits"),
        ("41 22 0:40 / /srv rw - fuse.sshfs a:/ rw", "run `stager probe /srv` on two machines"),
        ("41 22 0:40 / /srv rw - cifs //a/b rw,nounix", "owners and modes are made up"),
        ("41 22 0:40 / /srv rw - 9p a rw,cache=loose", "changes are not seen by the others"),
    ],
)
def test_a_danger_is_named_with_what_to_do(tmp_path: Path, line: str, words: str) -> None:
    found = told(tmp_path, line)
    assert any(words in notice for notice in found), found
    assert all("/srv" in notice for notice in found)


def test_the_innermost_and_last_mount_holds_a_path(tmp_path: Path) -> None:
    found = table(
        tmp_path,
        "41 22 0:40 / /srv rw - nfs4 a:/ rw",
        "42 41 0:41 / /srv/with\\040space rw - xfs b rw",
        "43 41 0:42 / /srv rw - tmpfs over rw",
    )
    assert mounts.mount_of(Path("/srv/spool"), found).source == "over"
    assert mounts.mount_of(Path("/srv/with space/x"), found).kind == "xfs"
    assert mounts.mount_of(Path("/srvx"), found).point == "/"


def test_rooms_on_one_mount_may_work_together_others_not(tmp_path: Path) -> None:
    found = table(tmp_path, "41 22 254:0 /x /srv/spool/requests rw - ext4 /dev/vda rw")
    mounts.check_together([Path("/srv/spool"), Path("/srv/spool/active")], found)
    with pytest.raises(SetupError, match="/srv/spool/requests is on a mount of its own"):
        mounts.check_together([Path("/srv/spool"), Path("/srv/spool/requests")], found)


def daemon_in_a_namespace(lab: Lab, mount: str) -> subprocess.CompletedProcess[str]:
    """Run one pass of the daemon where something else is mounted for it alone."""
    command = [sys.executable, "-m", "watcherd", "--once", "--config", str(lab.config)]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "-", *command],
        env=lab.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("room", ["spool/requests", "static/.stager/locks", "spool/active"])
def test_a_room_mounted_by_itself_is_refused_at_start(lab: Lab, room: str) -> None:
    done = daemon_in_a_namespace(lab, f"mount --bind {lab.root}/{room} {lab.root}/{room}")
    assert done.returncode == 2, done.stderr
    assert f"{lab.root}/{room} is on a mount of its own" in done.stderr


def test_results_on_another_mount_are_refused_with_the_way_out(lab: Lab) -> None:
    done = daemon_in_a_namespace(lab, f"mount --bind {lab.root}/results {lab.root}/results")
    assert done.returncode == 2, done.stderr
    assert "both must be on one filesystem and one mount" in done.stderr


def test_a_spool_in_memory_is_warned_of_once_at_start(lab: Lab) -> None:
    keep = f"cp -a {lab.root} {lab.root}.kept && mount -t tmpfs none {lab.root}"
    done = daemon_in_a_namespace(lab, f"{keep} && cp -a {lab.root}.kept/. {lab.root}/")
    subprocess.run(["rm", "-r", f"{lab.root}.kept"], check=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("(tmpfs) is memory") == 1


def test_the_kernel_is_asked_what_a_filesystem_is(tmp_path: Path) -> None:
    lines = mounts.MOUNTINFO.read_text().splitlines()
    points = {line.split()[4]: line.partition(" - ")[2].split()[0] for line in lines}
    for point in ("/proc", "/dev/shm"):
        assert mounts.filesystem_kind(Path(point)) == points[point]
    inside = Path("/dev/shm") / "not" / "there"
    assert mounts.filesystem_kind(inside) == points["/dev/shm"]
    (tmp_path / "link").symlink_to("/proc")
    assert mounts.filesystem_kind(tmp_path / "link") == "proc"
    assert not mounts.is_network(Path("/proc"))
    assert not mounts.is_nfs(tmp_path)
