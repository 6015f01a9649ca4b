"""Hosts on one machine: namespaces with a network, processes, a name, a home and a /tmp/ray of their own.

A bridge in a namespace of its own joins them, so the machine's network is not touched. Everything else of the
file system is shared, like a disk that all hosts mount. A host ends, with all that runs in it, when its first
process does, so nothing is left behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

# `ray stop` and `ray up` see this host's processes alone. Its shell stays as the process that reaps orphans.
_FIRST_PROCESS = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /tmp/ray /run/sshd
mount --bind {folder}/ray /tmp/ray
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/hosts /etc/hosts
hostname {name}
ip link set lo up
touch {folder}/ready
while :; do sleep 3600 & wait $!; done
"""

_SSHD = """
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
SetEnv PATH={path}
"""


@dataclass(frozen=True)
class Host:
    """A running host.

    Attributes:
        ip: its address on the bridge.
        folder: what is its own: home/, ray/ (its /tmp/ray), keys.
        pid: its first process.
    """

    ip: str
    folder: Path
    pid: int

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def command(self, *words: str) -> list[str]:
        """Return the command line that runs `words` in this host."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--uts", "--"]
        return [*enter, *words]

    def start(self, *words: str, log: Path, **env: str) -> None:
        """Start a command that ends with this host."""
        with log.open("w") as file:
            subprocess.Popen(self.command(*words), env=self.env(**env), stdout=file, stderr=file)

    def run(self, *words: str, cwd: Path = Path("/"), timeout: float = 120, **env: str) -> str:
        """Run a command in this host; return what it printed, and fail with it if the command fails."""
        # The mount namespace's root becomes the working folder, so it is set inside.
        command = self.command("env", f"--chdir={cwd}", *words)
        done = subprocess.run(command, env=self.env(**env), capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    def env(self, **more: str) -> dict[str, str]:
        """Return the environment of a login here: no variable of Ray's or of the test's own."""
        path = f"{self.home}/env/bin{os.pathsep}{os.environ['PATH']}"
        return {
            "HOME": str(self.home),
            "USER": "root",
            "PATH": path,
            "TERM": "dumb",
            "LANG": "C.UTF-8",
        } | more

    def processes(self, name: str) -> list[str]:
        """Return the command lines in this host that contain `name`, without that of its first process."""
        here = os.readlink(f"/proc/{self.pid}/ns/pid")
        others = (each for each in psutil.process_iter() if each.pid != self.pid)
        lines = [_command_line(each) for each in others if _namespace(each) == here]
        return [line for line in lines if name in line]


@contextmanager
def network(folder: Path, names: list[str]) -> Iterator[list[Host]]:
    """Start hosts 10.77.0.1, 10.77.0.2, … on one bridge; end them and all that runs in them.

    Args:
        folder: where each gets a folder of its name.
        names: one for each host.
    """
    with ExitStack() as stack:
        hub = stack.enter_context(
            _process(["unshare", "--net", "--fork", "--kill-child", "sleep", "infinity"])
        )
        in_hub = ["nsenter", f"--target={hub}", "--net", "--", "ip"]
        _ip(in_hub, "link add bridge0 type bridge")
        _ip(in_hub, "link set bridge0 up")
        yield [
            stack.enter_context(_host(in_hub, folder / name, f"10.77.0.{number}", number))
            for number, name in enumerate(names, start=1)
        ]


@contextmanager
def _host(in_hub: list[str], folder: Path, ip: str, number: int) -> Iterator[Host]:
    (folder / "ray").mkdir(parents=True)
    (folder / "home" / ".ray").mkdir(parents=True)
    # A login shell begins with the system's path; what the test found shall be found here too.
    (folder / "home" / ".bashrc").write_text(f'export PATH="{os.environ["PATH"]}"\n')
    (folder / "home" / "env").symlink_to(sys.prefix)
    _write_passwd(folder)
    # Debian's installer writes the second line, which leads a host's own name to loopback.
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {folder.name}\n")
    script = _FIRST_PROCESS.format(folder=folder, name=folder.name)
    namespaces = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
    with _process([*namespaces, "bash", "-c", script]) as pid:
        wait_until((folder / "ready").exists, f"{folder.name} starts", 30)
        _ip(in_hub, f"link add host{number} type veth peer name eth0 netns {pid}")
        _ip(in_hub, f"link set host{number} master bridge0 up")
        host = Host(ip, folder, pid)
        host.run("ip", "address", "add", f"{ip}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "route", "add", "default", "dev", "eth0")  # by it Ray finds the host's address
        yield host


@contextmanager
def _process(command: list[str]) -> Iterator[int]:
    """Run `unshare …` and yield the id of the process that it forks; both end with the block or the test."""
    parent = subprocess.Popen(["setpriv", "--pdeathsig=KILL", *command])
    try:
        wait_until(lambda: psutil.Process(parent.pid).children() != [], " ".join(command[:3]), 30)
        yield psutil.Process(parent.pid).children()[0].pid
    finally:
        parent.kill()
        parent.wait()


def start_sshd(hosts: list[Host], private_key: Path) -> None:
    """Start an SSH server on each host that lets in the owner of a new key and nobody else."""
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f"]
    subprocess.run([*keygen, str(private_key)], check=True)
    sshd = sshd_program()
    assert sshd is not None
    for host in hosts:
        subprocess.run([*keygen, str(host.folder / "host_key")], check=True)
        shutil.copy(private_key.with_suffix(".pub"), host.folder / "authorized_keys")
        config = host.folder / "sshd_config"
        config.write_text(_SSHD.format(folder=host.folder, path=os.environ["PATH"]))
        host.run(sshd, "-f", str(config))


def sshd_program() -> str | None:
    """Return the path of OpenSSH's server, which must be absolute, or None."""
    return shutil.which("sshd", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")


def wait_until(condition: Callable[[], bool], what: str, timeout: float) -> None:
    """Wait for a condition; fail after `timeout` seconds, naming what was waited for."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout:g} s: {what}"
        time.sleep(0.2)


def _write_passwd(folder: Path) -> None:
    """Write the host's user list: root lives in its own home, and the user that sshd needs is there."""
    lines = Path("/etc/passwd").read_text().splitlines()
    others = [line for line in lines if not line.startswith(("root:", "sshd:"))]
    own = [f"root:x:0:0:root:{folder}/home:/bin/bash", "sshd:x:22222:65534::/run/sshd:/usr/sbin/nologin"]
    (folder / "passwd").write_text("\n".join([*own, *others, ""]))


def _ip(command: list[str], words: str) -> None:
    subprocess.run([*command, *words.split()], check=True)


def _namespace(process: psutil.Process) -> str | None:
    try:
        return os.readlink(f"/proc/{process.pid}/ns/pid")
    except OSError:
        return None  # it has ended


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
