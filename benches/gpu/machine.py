"""The machine: its card and driver, the CUDA libraries, a Python with PyTorch, memory while something runs."""

import ctypes
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

import peaks
from session import Failed, Unavailable, reason

# Where CUDA's libraries lie beside the linker's own folders.
LIBRARY_FOLDERS = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib", "/usr/local/nvidia/lib64",
                   "/usr/local/cuda/extras/CUPTI/lib64", "/usr/lib/x86_64-linux-gnu")

ASK_TORCH = """
import importlib.metadata, json, sys
found = {"python": sys.version.split()[0]}
for name in ("torch", "transformers", "peft"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""

ASK_FOLDERS = "import sysconfig; print(sysconfig.get_paths()['purelib'])"

MATMUL = """
import json, time, torch
size, found = 8192, {}
def measure(dtype):
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    return round(10 * 2 * size ** 3 / (time.perf_counter() - began) / 1e12, 1)
found["bf16"] = measure(torch.bfloat16)
found["f32"] = measure(torch.float32)
torch.backends.cuda.matmul.allow_tf32 = True
found["tf32"] = measure(torch.float32)
print(json.dumps(found))
"""


def find_python():
    """A Python that has PyTorch, or else this one."""
    candidates = [os.environ.get("HONE_TEST_PYTHON"), shutil.which("python3"), shutil.which("python"), sys.executable]
    for candidate in filter(None, candidates):
        looked = subprocess.run([candidate, "-c", "import importlib.util as u; exit(not u.find_spec('torch'))"],
                                capture_output=True, check=False)
        if looked.returncode == 0:
            return candidate
    return sys.executable


class Machine:
    """What the phases know of it."""

    def __init__(self, device, work):
        self.device, self.work = device, work
        self.python = find_python()
        self.has_torch = False
        self.peaks = None
        self.folders = self.library_folders() if device == "cuda" else []

    def library_folders(self):
        """Folders with CUDA's libraries: the toolkit's, then those of the Python packages."""
        asked = subprocess.run([self.python, "-c", ASK_FOLDERS], capture_output=True, text=True, check=False)
        nvidia = pathlib.Path(asked.stdout.strip() or "/nonexistent") / "nvidia"
        packages = sorted(nvidia.glob("*/lib"), key=lambda folder: (folder.parent.name != "cu13", folder))
        return [folder for folder in [*map(pathlib.Path, LIBRARY_FOLDERS), *packages] if folder.is_dir()]

    def environment(self, **more):
        """Variables of a command: CUDA's libraries, and a cache for kernels that the driver compiles."""
        variables = dict(os.environ)
        if self.device == "cuda":
            folders = [str(folder) for folder in self.folders]
            folders += filter(None, [variables.get("LD_LIBRARY_PATH")])
            variables["LD_LIBRARY_PATH"] = ":".join(folders)
            variables["CUDA_CACHE_PATH"] = str(self.work / "kernel-cache")
        else:
            # Tiny sizes: threads would wait for each other more than they compute.
            variables["RAYON_NUM_THREADS"] = "1"
        return variables | {key: str(value) for key, value in more.items()}

    def library(self, name):
        """The first file of this name among CUDA's libraries."""
        return next((folder / name for folder in self.folders if (folder / name).exists()), None)

    def describe(self, session, tools, entry):
        """The phase that says what this machine is. A part that fails takes no other with it."""
        entry["cpu"], entry["cores"] = cpu_name(), os.cpu_count()
        entry["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
        asked = subprocess.run([self.python, "-c", ASK_TORCH], capture_output=True, text=True, check=False)
        entry["python"] = parse(asked.stdout) or {"failed": reason(asked.returncode, asked.stderr)}
        self.has_torch = all(name in entry["python"] for name in ("torch", "transformers", "peft"))
        parts = {
            "card": lambda: card() if self.device == "cuda" else {},
            "libraries": lambda: self.check_libraries(tools) if self.device == "cuda" else {},
            "hone": lambda: self.version(session, tools),
            "peaks": lambda: self.find_peaks(session, tools, entry.get("card", {}).get("name", "")),
        }
        problems = []
        for key, part in parts.items():
            try:
                entry[key] = part()
            except (Failed, Unavailable) as error:
                problems.append(str(error))
        self.peaks = entry.get("peaks")
        if problems:
            raise Failed("; ".join(problems))

    def version(self, session, tools):
        code, lines, said = session.run([tools.hone, "--version"], env=self.environment())
        if code:
            raise Failed(f"hone does not start: {reason(code, said)}")
        return lines[0]

    def check_libraries(self, tools):
        """Where each library of hone comes from."""
        listed = subprocess.run(["ldd", str(tools.hone)], capture_output=True, text=True, env=self.environment(),
                                check=False)
        found = dict(re.findall(r"(lib(?:cu|nv)\S+) => (not found|\S+)", listed.stdout))
        missing = [name for name, place in found.items() if place == "not found"]
        if missing:
            raise Failed(f"these libraries of CUDA are not here: {', '.join(missing)}; "
                         f"looked in {', '.join(map(str, self.folders))}")
        return found

    def find_peaks(self, session, tools, name):
        """TFLOP/s at best: the card's table and a large product, or what `hone bench peak` measures of a CPU."""
        if self.device == "cpu":
            code, lines, said = session.run([tools.hone, "bench", "peak", "--json"])
            if code:
                return {"source": f"not available: {reason(code, said)}"}
            levels = parse(lines[-1])["gflops_per_s"]
            f32 = levels.get("avx512") or levels.get("avx2") or levels["portable"]
            best = levels.get("bf16", f32)
            return {"bf16": best / 1e3, "f32": f32 / 1e3, "source": "hone bench peak"}
        found = peaks.of_card(name) or {}
        if self.has_torch:
            code, lines, said = session.run([self.python, "-c", MATMUL], env=self.environment())
            measured = parse(lines[-1]) if lines and not code else {"failed": reason(code, said)}
            found["product_of_8192"] = measured
            if "bf16" not in found and "failed" not in measured:
                found |= measured | {"source": "measured: PyTorch multiplies matrices of 8192 × 8192"}
        return found or {"source": "not available: the card is not in benches/gpu/peaks.py, and there is no PyTorch"}


def parse(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def cpu_name():
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def card():
    """Name, driver and memory by nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        raise Unavailable("nvidia-smi is not on the PATH: is there an NVIDIA GPU with its driver?")
    fields = ("name", "driver_version", "memory.total", "compute_cap", "power.limit", "clocks.max.sm")
    asked = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader",
                            "-i", str(card_number())],
                           capture_output=True, text=True, check=False)
    if asked.returncode or not asked.stdout.strip():
        raise Failed(f"nvidia-smi: {reason(asked.returncode, asked.stdout + asked.stderr)}")
    found = dict(zip(fields, (text.strip() for text in asked.stdout.splitlines()[0].split(","))))
    table = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"CUDA Version:\s*(\S+)", table)
    return found | {"cuda": version[1] if version else "unknown"}


def card_number():
    """The card that CUDA calls the first."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    return int(first) if first.isdigit() else 0


class MemoryInfo(ctypes.Structure):
    """NVML's nvmlMemory_t, in bytes."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class DeviceMemory:
    """The card's memory in use, asked of NVML twenty times a second; GB above what was in use before."""

    def __init__(self, machine):
        self.before, self.peak, self.is_ended = None, None, False
        self.ask = nvml(machine.folders) if machine.device == "cuda" else None
        if self.ask:
            self.before = self.ask()
            self.thread = threading.Thread(target=self.listen, daemon=True)
            self.thread.start()

    def listen(self):
        while not self.is_ended:
            self.peak = max(self.peak or 0, self.ask())
            time.sleep(0.05)

    def take(self):
        """The peak since the last call; None where it is not known."""
        if self.peak is None:
            return None
        peak, self.peak = self.peak - self.before, None
        return round(peak / 1e9, 3)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.is_ended = True
        if self.ask:
            self.thread.join()


def nvml(folders):
    """A function that says how many bytes of the card are in use; None without NVML."""
    for name in ["libnvidia-ml.so.1", *(str(folder / "libnvidia-ml.so.1") for folder in folders)]:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        device = ctypes.c_void_p()
        if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(card_number(), ctypes.byref(device)):
            continue

        def used():
            info = MemoryInfo()
            library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(info))
            return info.used

        return used
    return None
