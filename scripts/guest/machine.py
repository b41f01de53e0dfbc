"""A small virtual machine: Debian's arm64 kernel, busybox and the agent as it is built for a Pi, emulated."""
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GUEST = ROOT / "target" / "guest"
TARGET = "aarch64-unknown-linux-gnu"
# In the order in which they depend on each other; Debian's kernel has what is missing built in.
MODULES = """drivers/virtio/virtio_pci_legacy_dev drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci
  drivers/virtio/virtio_mmio drivers/block/virtio_blk lib/crc16 fs/mbcache fs/jbd2/jbd2 crypto/crc32c_generic
  lib/libcrc32c fs/ext4/ext4 net/core/failover drivers/net/net_failover drivers/net/virtio_net""".split()
TOOLS = """sh touch mount cat insmod poweroff echo sed tr cut head tail wc usleep ifconfig sync sleep kill""".split()
# How long a boot, or bringing everything to the broker, may take before it counts as never.
PATIENCE_S = float(os.environ.get("HARK_PATIENCE_S", "300"))


def run(*command, **keywords):
    return subprocess.run(command, check=True, cwd=ROOT, **keywords)


def output(*command):
    return run(*command, stdout=subprocess.PIPE, text=True).stdout.strip()


def prepare(init):
    """Everything to boot: kernel and initramfs, made anew from the binary that is built now; `init` is its first
    process, by the name it has beside this file."""
    run("scripts/setup", "qemu-system-arm", "nbdkit", "e2fsprogs", "cpio", "gcc-aarch64-linux-gnu",
        "libc6-dev-arm64-cross", "libc6-arm64-cross", "libgcc-s1-arm64-cross")
    run("scripts/unpack-debian", GUEST / "kernel", "arm64", "linux-image-arm64%", "busybox-static")
    binary = os.environ.get("HARK") or output("scripts/cross-build", TARGET).splitlines()[-1]
    tree = pathlib.Path(tempfile.mkdtemp(dir=GUEST))
    for folder in ["bin", "data", "dev", "lib/modules", "proc", "sys", "tmp"]:
        (tree / folder).mkdir(parents=True)
    shutil.copy(GUEST / "kernel/bin/busybox", tree / "bin")
    for tool in TOOLS:
        (tree / "bin" / tool).symlink_to("busybox")
    shutil.copy(binary, tree / "bin/hark")
    libraries = [pathlib.Path("/usr/aarch64-linux-gnu/lib") / name for name in
                 ["ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1"]]
    libraries.append(ROOT / "target/cross/sysroot-arm64/usr/lib/aarch64-linux-gnu/libasound.so.2")
    for library in libraries:
        shutil.copy(library, tree / "lib")
    run("aarch64-linux-gnu-gcc", "-O1", "-shared", "-fPIC", "-o", tree / "lib/downgrade.so",
        "tests/power/recorder.c")
    kernel = next((GUEST / "kernel/lib/modules").glob("*/kernel"))
    order = [module for module in MODULES if (kernel / f"{module}.ko").exists()]
    for module in order:
        shutil.copy(kernel / f"{module}.ko", tree / "lib/modules")
    (tree / "lib/modules/order").write_text("".join(f"{pathlib.Path(m).name}\n" for m in order))
    shutil.copy(ROOT / "scripts/guest" / init, tree / "init")
    initramfs = GUEST / f"{init}-{os.getpid()}.cpio"
    run("sh", "-c", 'cd "$1" && find . | cpio -o -H newc --quiet > "$2"', "-", tree, initramfs)
    shutil.rmtree(tree)
    return next((GUEST / "kernel/boot").glob("vmlinuz-*")), initramfs


class Machine:
    """One boot: the console's lines arrive in `lines`; `cut` is the power cut. With `counted` its clock counts
    instructions, a thousand million a second, and what it measures does not depend on who else uses this machine."""

    def __init__(self, boot, disk, arguments, counted=False):
        kernel, initramfs = boot
        self.server = None
        drive = f"file={disk},format=raw"
        if disk.suffix == ".nbd":
            path = disk.with_suffix(".sock")
            path.unlink(missing_ok=True)
            self.server = subprocess.Popen(
                ["nbdkit", "-f", "-U", path, "--filter=cache", "file", disk, "cache=writeback",
                 "cache-max-size=512M"])
            try:
                self.wait(path.exists, "nbdkit")
            except Broken:
                self.server.kill()
                raise
            drive = f"file=nbd+unix:///?socket={path},format=raw"
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-m", "384", "-nographic",
             "-no-reboot", "-nodefaults", "-serial", "stdio", "-kernel", kernel, "-initrd", initramfs,
             "-append", "console=ttyAMA0 quiet panic=-1 " + arguments,
             "-drive", drive + ",if=none,id=d,cache=writeback", "-device", "virtio-blk-pci,drive=d",
             "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,romfile="]
            + (["-icount", "shift=0", "-rtc", "clock=vm"] if counted else []),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace")
        self.lines = []
        self.reader = threading.Thread(target=self.listen, daemon=True)
        self.reader.start()

    def listen(self):
        for line in self.process.stdout:
            # A line that the cut has torn has no end and says nothing.
            if line.endswith("\n"):
                self.lines.append(line.rstrip())

    def wait(self, condition, what):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline or any(line.startswith("PC ended") for line in getattr(self, "lines", [])):
                raise Broken(what)
            time.sleep(0.02)

    def says(self, word):
        return [line for line in self.lines if line.startswith(f"PC {word}")]

    def cut(self):
        if self.server:
            self.server.kill()
        self.process.kill()
        self.process.wait()
        if self.server:
            self.server.wait()
        self.reader.join()


class Broken(Exception):
    """What did not happen in time."""
