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
# A disk with ext4 and a network; what the kernel has built in has no file.
MODULES = ["virtio_pci", "virtio_mmio", "virtio_blk", "crc32c_generic", "ext4", "virtio_net"]
TOOLS = """sh touch mount cat insmod poweroff echo sed tr cut head tail wc usleep ifconfig sync sleep kill ls mkdir rmdir ln stty
  mkfifo printf basename dirname dd i2cset grep seq""".split()
# How long a boot, or bringing everything to the broker, may take before it counts as never.
PATIENCE_S = float(os.environ.get("HARK_PATIENCE_S", "300"))
LOOK_S = 0.02


def run(*command, **keywords):
    return subprocess.run(command, check=True, cwd=ROOT, **keywords)


def output(*command):
    return run(*command, stdout=subprocess.PIPE, text=True).stdout.strip()


def unpack():
    """The kernel's directory, with what the machines' other parts are taken from; and its release."""
    run("scripts/setup", "qemu-system-arm", "nbdkit", "e2fsprogs", "cpio", "kmod", "gcc-aarch64-linux-gnu",
        "libc6-dev-arm64-cross", "libc6-arm64-cross", "libgcc-s1-arm64-cross")
    kernel = GUEST / "kernel"
    run("scripts/unpack-debian", kernel, "arm64", "linux-image-arm64%", "busybox-static")
    run("scripts/unpack-debian", GUEST / "alsa", "arm64", "libasound2")
    release = next((kernel / "lib/modules").iterdir()).name
    if not (kernel / "lib/modules" / release / "modules.dep").exists():
        run("depmod", "-b", kernel, release)
    return kernel, release


def module_files(kernel, release, name):
    """What is loaded for a module, in this order: nothing where it is built in; None where there is no such module."""
    found = subprocess.run(["modprobe", "-n", "-S", release, "-d", kernel, "--show-depends", name], capture_output=True, text=True)
    if found.returncode:
        return None
    return [line.split()[1] for line in found.stdout.splitlines() if line.startswith("insmod")]


def prepare(init, modules=MODULES, parameters={}, fill=lambda tree: None):
    """Everything to boot: kernel and initramfs, made anew from the binary that is built now; `init` is its first
    process, by the name it has beside this file; `fill` puts more into its tree."""
    kernel, release = unpack()
    binary = os.environ.get("HARK") or output("scripts/cross-build", TARGET).splitlines()[-1]
    tree = pathlib.Path(tempfile.mkdtemp(dir=GUEST))
    for folder in ["bin", "data", "dev", "lib/modules", "proc", "sys", "tmp"]:
        (tree / folder).mkdir(parents=True)
    shutil.copy(kernel / "bin/busybox", tree / "bin")
    for tool in TOOLS:
        (tree / "bin" / tool).symlink_to("busybox")
    shutil.copy(binary, tree / "bin/hark")
    for name in ["ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1"]:
        shutil.copy(pathlib.Path("/usr/aarch64-linux-gnu/lib") / name, tree / "lib")
    shutil.copy(GUEST / "alsa/usr/lib/aarch64-linux-gnu/libasound.so.2", tree / "lib")
    fill(tree)
    order = list(dict.fromkeys(file for name in modules for file in module_files(kernel, release, name) or []))
    for file in order:
        shutil.copy(file, tree / "lib/modules")
    names = [pathlib.Path(file).stem for file in order]
    (tree / "lib/modules/order").write_text("".join(f"{name} {parameters.get(name, '')}\n" for name in names))
    shutil.copy(ROOT / "scripts/guest" / init, tree / "init")
    initramfs = GUEST / f"{init}-{os.getpid()}.cpio"
    run("sh", "-c", 'cd "$1" && find . | cpio -o -H newc --quiet > "$2"', "-", tree, initramfs)
    shutil.rmtree(tree)
    return next((kernel / "boot").glob("vmlinuz-*")), initramfs


def emulator(boot, arguments, shift=None):
    """qemu's command line. With `shift` the clock counts instructions, of 2^shift nanoseconds each, and what it measures does
    not depend on who else uses this machine."""
    kernel, initramfs = boot
    return (["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-m", "384", "-nographic", "-no-reboot", "-nodefaults",
             "-serial", "stdio", "-kernel", kernel, "-initrd", initramfs, "-append", f"console=ttyAMA0 quiet panic=-1 {arguments}",
             "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,romfile="]
            + ([] if shift is None else ["-icount", f"shift={shift}", "-rtc", "clock=vm"]))


class Machine:
    """One boot: the console's lines arrive in `lines`; `cut` is the power cut. With `counted` its clock counts
    instructions, a thousand million a second."""

    def __init__(self, boot, disk, arguments, counted=False):
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
            emulator(boot, arguments, 0 if counted else None)
            + ["-drive", drive + ",if=none,id=d,cache=writeback", "-device", "virtio-blk-pci,drive=d"],
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
        # Counted in looks, since the clock goes on where this machine itself stood still for minutes.
        for _ in range(int(PATIENCE_S / LOOK_S)):
            if condition():
                return
            if any(line.startswith("PC ended") for line in getattr(self, "lines", [])):
                break
            time.sleep(LOOK_S)
        raise Broken(what)

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
