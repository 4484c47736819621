"""A real Slurm cluster on this machine, for tests: munged, slurmctld and one slurmd per node.

Every node has its own network, process, host name and mount namespace, so it can be switched off or cut from the
network, and its processes see no others. It needs root, Debian's slurmctld, slurmd, slurm-client, munge, iproute2 and
libpmix2; it needs no systemd, cgroups or containers, and touches no network interface of the machine. Everything but
/tmp and /dev/shm is the shared file system of the nodes; `shared` folders below /tmp are added to it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter", "setpriv")
NETWORK = "10.93.7"
# NODE_FAIL is no end: Slurm requeues these jobs a moment later.
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost=control({network}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long Slurm holds a requeued job back: two minutes by default, 5 s at least.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=3,sched_interval=3,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
KillWait=60
MinJobAge=3600
SlurmdTimeout=30
MessageTimeout=15
TCPTimeout=2
BatchStartTimeout=60
UnkillableStepTimeout=120
PartitionName=usual Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=9 PreemptMode=off
"""


def why_not() -> str | None:
    """What this machine lacks for a cluster, or None."""
    if platform.system() != "Linux" or os.geteuid() != 0:
        return "a Slurm test cluster needs root on Linux"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"a Slurm test cluster needs {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge iproute2)"
    spaces = ["unshare", "--net", "--pid", "--uts", "--ipc", "--mount", "--fork", "sh", "-ec"]
    wanted = "mount -t tmpfs tmpfs /mnt; ip link add one type veth peer name two"
    tried = subprocess.run([*spaces, wanted], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"a Slurm test cluster needs namespaces: {tried.stderr.strip()}"


@dataclass
class Cluster:
    """Started by `up`, ended by `down`, which also ends every process of every node."""

    folder: Path
    nodes: int
    cpus: int = 4
    shared: Sequence[Path] = ()
    tag: str = field(default_factory=lambda: f"ht{secrets.token_hex(2)}")
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    # What is bound to its parent dies with the *thread* that started it, and tests start nodes from threads that end.
    starter: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    @property
    def names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    def address(self, node: str) -> str:
        return f"{NETWORK}.{10 + int(node[4:])}"

    def space(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def up(self) -> None:
        for name in ("log", "state", "spool", "tmp"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        self._configure()
        self._wire()
        self._start_munged()
        self._start("control", [*self._in("control"), "unshare", "--uts", "sh", "-c",
                                f"hostname control; exec slurmctld -D -f {self.folder}/slurm.conf"])  # fmt: skip
        for node in self.names:
            self.boot(node)
        self.wait_until(lambda: self._states() == {"idle"}, "all nodes to be idle", 300)

    def down(self) -> None:
        for name in reversed(list(self.processes)):
            self._end(name)
        self.starter.shutdown()
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
        for space in re.findall(rf"^{self.tag}-\S+", listed, re.MULTILINE):
            subprocess.run(["ip", "netns", "delete", space], check=False)
            shutil.rmtree(Path("/etc/netns", space), ignore_errors=True)

    # --- building it --------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        lines = [CONFIGURATION.format(folder=self.folder, network=NETWORK)]
        # A machine that runs for weeks numbers jobs from 1; here logs of two clusters must not meet.
        lines.append(f"FirstJobId={int(time.time()) % 50_000_000 + 1}\n")
        for weight, node in enumerate(self.names, 1):
            facts = f"NodeAddr={self.address(node)} CPUs={self.cpus} RealMemory=4000 State=UNKNOWN"
            # Without weights Slurm packs jobs together, so the order of submission would say where a job lands.
            lines.append(f"NodeName={node} {facts} Weight={weight}\n")
        (self.folder / "slurm.conf").write_text("".join(lines))
        version = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout
        major = int(re.findall(r"(\d+)\.", version)[0])
        # No plugin above uses cgroups, but slurmd looks for them all the same.
        plugin = "disabled" if major >= 24 else "cgroup/v1"
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")

    def _wire(self) -> None:
        """Namespaces on one bridge, which lies in the controller's namespace."""
        hosts = ["127.0.0.1 localhost", f"{NETWORK}.1 control"]
        for node in self.names:
            # torch looks up the name of an IPv6-mapped peer as well
            hosts += [f"{self.address(node)} {node}", f"::ffff:{self.address(node)} {node}"]
        for name in ("control", *self.names):
            space = self.space(name)
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
            etc = Path("/etc/netns", space)
            etc.mkdir(parents=True)
            (etc / "hosts").write_text("\n".join(hosts) + "\n")
            (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        control = self.space("control")
        ip("-n", control, "link", "add", "bridge0", "type", "bridge")
        ip("-n", control, "address", "add", f"{NETWORK}.1/24", "dev", "bridge0")
        ip("-n", control, "link", "set", "bridge0", "up")
        for node in self.names:
            space = self.space(node)
            ip("-n", control, "link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", control, "link", "set", node, "master", "bridge0", "up")
            ip("-n", space, "address", "add", f"{self.address(node)}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")

    def _start_munged(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        command = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket"]
        command += [f"--pid-file={self.folder}/munged.pid", f"--seed-file={self.folder}/munge.seed"]
        self._start("munged", [*command, f"--log-file={self.folder}/log/munged.log"])
        self.wait_until((self.folder / "munge.socket").exists, "munged", 60)

    def _start(self, name: str, command: Sequence[str]) -> None:
        environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            # A test run that is killed takes its daemons with it.
            bound = ["setpriv", "--pdeathsig", "KILL", *command]
            started = self.starter.submit(
                lambda: subprocess.Popen(
                    bound, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
                )
            )
            self.processes[name] = started.result()

    def _end(self, name: str) -> None:
        process = self.processes.pop(name)
        # A node is killed: its process namespace ends with its first process.
        process.send_signal(signal.SIGKILL if name in self.names else signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _in(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", self.space(name)]

    # --- what happens to nodes ----------------------------------------------------------------------------------

    def boot(self, node: str) -> None:
        """Start a node, which then joins the cluster; a shell stays its first process, to collect the
        orphans that slurmd would not."""
        own = self.folder / "tmp" / node
        own.mkdir(exist_ok=True)
        script = [f"hostname {node}", "mount -t tmpfs tmpfs /dev/shm", f"mount -t tmpfs -o mode=1777 tmpfs {own}"]
        for path in [self.folder, *self.shared]:
            if path.is_relative_to("/tmp"):
                script += [f"mkdir -p {own}/{path.relative_to('/tmp')}"]
                script += [f"mount --rbind {path} {own}/{path.relative_to('/tmp')}"]
        script += [f"mount --rbind {own} /tmp", f"slurmd -D -N {node} -f {self.folder}/slurm.conf & wait $!"]
        alone = ["unshare", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._start(node, [*self._in(node), *alone, "bash", "-ec", "\n".join(script)])

    def switch_off(self, node: str) -> None:
        """As by a power failure: slurmd and all processes of jobs are gone at once."""
        self._end(node)

    def switch_on(self, node: str) -> None:
        """Until Slurm would give it to a job."""
        self.boot(node)
        self.wait_until(lambda: self._states(node) <= {"idle", "mix", "alloc"}, f"{node} to join", 300)

    def cut(self, node: str) -> None:
        """Take the network link away; processes on the node go on."""
        ip("-n", self.space("control"), "link", "set", node, "down")

    def heal(self, node: str) -> None:
        """Give the link back. Slurm looks for a node that it took for dead only every few minutes."""
        ip("-n", self.space("control"), "link", "set", node, "up")

    def on(self, node: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside a node."""
        unshare = self.processes[node].pid
        children = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
        inside = ["nsenter", "-t", children[0], "-n", "-u", "-i", "-p", "-m", "--"]
        return subprocess.run([*inside, *command], capture_output=True, text=True, check=False)

    # --- the login node -----------------------------------------------------------------------------------------

    def do(self, *command: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
        """Run a client command; returns what it printed. Raises RuntimeError with its error."""
        known = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")} | (environment or {})
        done = subprocess.run(
            [*self._in("control"), *command], capture_output=True, text=True, check=False, cwd=cwd, env=known
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def facts(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says; empty for a job that is not known."""
        with contextlib.suppress(RuntimeError):
            return dict(re.findall(r"(\S+?)=(\S*)", self.do("scontrol", "-o", "show", "job", job)))
        return {}

    def state(self, job: str) -> str:
        return self.facts(job).get("JobState", "UNKNOWN")

    def wait_for_end(self, job: str, seconds: float = 900) -> dict[str, str]:
        """The facts of a job that has ended and will not come back."""
        found: dict[str, str] = {}

        def over() -> bool:
            found.update(self.facts(job))
            return found.get("JobState") in OVER

        self.wait_until(over, f"job {job} to end", seconds)
        return found

    def wait_until(
        self, true: Callable[[], object], what: str, seconds: float = 900, shown: Callable[[], str] = str
    ) -> None:
        """The limits are for a machine that is busy with other things; nothing here waits longer than it must."""
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}\n{shown()}\n{self._logs()}")
            time.sleep(0.1)

    def _states(self, *nodes: str) -> set[str]:
        """Of nodes, as sinfo prints them: `idle*` does not answer."""
        with contextlib.suppress(RuntimeError):
            asked = ("-n", ",".join(nodes or self.names), "-p", "usual")
            return set(self.do("sinfo", "-h", "-N", *asked, "-o", "%t").split())
        return {"unknown"}

    def _logs(self) -> str:
        parts = []
        for path in sorted((self.folder / "log").glob("*")):
            lines = path.read_text(errors="replace").splitlines()[-12:]
            parts += [f"== {path.name}", *lines] if lines else []
        return "\n".join(parts)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def cluster(folder: Path, nodes: int, cpus: int = 4, shared: Sequence[Path] = ()) -> Iterator[Cluster]:
    """A cluster of `nodes` idle nodes; its folder must have a short path, because munge's socket lies in it."""
    made = Cluster(folder, nodes, cpus, shared)
    try:
        made.up()
        yield made
    finally:
        made.down()
