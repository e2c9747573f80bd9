"""Two hosts on one machine: network namespaces joined by a cable, an sshd in each, one file system."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.processes import ON_CPU, python_path, wait_until

PROGRAMS = ("ip", "ssh", "ssh-keygen", "pdsh")
SSHD = Path("/usr/sbin/sshd")
ADDRESSES = ("10.213.47.1", "10.213.47.2")  # seen by the two namespaces only
SSHD_CONFIGURATION = """
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
"""
# A host that is gone is given up after ten seconds; else the launcher waits for it for ever.
SSH_CONFIGURATION = """
IdentityFile {folder}/user_key
UserKnownHostsFile /dev/null
StrictHostKeyChecking no
LogLevel ERROR
ServerAliveInterval 5
ServerAliveCountMax 2
"""
# What ranks on other hosts need in their environment: deepspeed's launcher exports PYTHON* and this file, little else.
LAUNCHER_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "eth0", **{name: value for name, value in ON_CPU.items() if value}}


def why_no_hosts() -> str | None:
    """Return why no hosts can be made here; None: they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    missing += [] if SSHD.is_file() else ["sshd"]
    if missing:
        return f"no {', '.join(missing)} (Debian: apt-get install iproute2 openssh-server openssh-client pdsh)"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"no namespaces: {probe.stderr.strip()}" if probe.returncode else None


@dataclass(frozen=True)
class MadeHosts:
    """Two hosts; `folder` holds the hostfile and is where commands run, on the first of them."""

    folder: Path
    namespaces: tuple[str, str]

    def start(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a command on the first host, in a process group of its own."""
        with log.open("wb") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespaces[0], *command],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                cwd=self.folder, env=self._environment(), start_new_session=True,
            )  # fmt: skip

    def run_well(self, *command: str, log: Path, time_limit: float = 120) -> str:
        """Run a command on the first host to its end and return its output; it must succeed."""
        process = self.start(*command, log=log)
        try:
            code = process.wait(timeout=time_limit)
        finally:
            self.end_all(process)
        assert code == 0, log.read_text()[-3000:]
        return log.read_text()

    def cut_off_the_second(self) -> None:
        """Pull the second host's cable: no packet goes in or out, and nobody is told."""
        _ip("-n", self.namespaces[1], "link", "set", "eth0", "down")

    def ranks(self, script: str) -> list[int]:
        """Return the ids of the processes on both hosts that run a script as a rank."""
        processes = []
        for process in _processes(self.namespaces):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
                is_rank = any(word.startswith(b"--local_rank") for word in words)
                if is_rank and any(word.endswith(script.encode()) for word in words[:4]):
                    processes.append(process)
        return processes

    def end_all(self, process: subprocess.Popen[bytes]) -> None:
        """Kill what a command has started on both hosts, and left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for rank in [*self.ranks("train.py"), *self.ranks("evaluate.py")]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        path = python_path()
        first = {"PATH": f"{self.folder}/bin{os.pathsep}{path['PATH']}", "PYTHONPATH": path["PYTHONPATH"]}
        return {**os.environ, **LAUNCHER_ENVIRONMENT, **first}


@contextlib.contextmanager
def made_hosts() -> Iterator[MadeHosts]:
    """Make two hosts with one slot each, reachable from each other by ssh; remove them at the end."""
    folder = Path(tempfile.mkdtemp(prefix="hosts_"))
    namespaces = (f"laborllm-one-{os.getpid()}", f"laborllm-two-{os.getpid()}")
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _write_files(folder)
        _join(namespaces)
        daemons += [_start_sshd(folder, *each) for each in zip(namespaces, ADDRESSES, strict=True)]
        made = MadeHosts(folder, namespaces)
        for address in ADDRESSES:
            _wait_for_ssh(made, address)
        yield made
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
        for process in _processes(namespaces):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for namespace in namespaces:
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _write_files(folder: Path) -> None:
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "ssh_config").write_text(SSH_CONFIGURATION.format(folder=folder))
    # deepspeed calls plain ssh.
    wrapper = folder / "bin/ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    (folder / "hosts").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    (folder / ".deepspeed_env").write_text("".join(f"{name}={value}\n" for name, value in LAUNCHER_ENVIRONMENT.items()))


def _join(namespaces: tuple[str, str]) -> None:
    for namespace in namespaces:
        _ip("netns", "add", namespace)
    # Both ends have one name: the setting that names the interface is the same for all hosts.
    one, two = namespaces
    _ip("-n", one, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", two)
    for namespace, address in zip(namespaces, ADDRESSES, strict=True):
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            _ip("-n", namespace, "link", "set", interface, "up")


def _start_sshd(folder: Path, namespace: str, address: str) -> subprocess.Popen[bytes]:
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd starts with this folder only
    configuration = folder / f"sshd_{address}"
    configuration.write_text(SSHD_CONFIGURATION.format(folder=folder, address=address))
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace, SSHD, "-D", "-f", configuration, "-E", f"{configuration}.log"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait_for_ssh(made: MadeHosts, address: str) -> None:
    log = made.folder / "ssh.log"
    wait_until(
        lambda: made.start("ssh", address, "true", log=log).wait(timeout=20) == 0,
        time_limit=20,
        what=f"ssh to {address} works",
    )


def _processes(namespaces: Sequence[str]) -> list[int]:
    outputs = [
        subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
        for name in namespaces
    ]
    return [int(process) for output in outputs for process in output.split()]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)
