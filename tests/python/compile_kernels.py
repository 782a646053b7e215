"""Compiles the CUDA kernels with NVRTC, as the backend will, on a machine without a GPU.

Usage: compile_kernels.py LIBNVRTC FOLDER. For each architecture it makes PTX and machine code, prints each kernel's
registers, and fails where NVRTC refuses a source or a kernel spills registers into memory.
"""

import ctypes
import pathlib
import re
import sys

WIDTHS = [64, 128]
KERNELS = {
    "rms_norm_backward.cu": ["rms_norm_backward", "add_sums_of_blocks"],
    "attention_backward.cu": ["attention_backward_means"]
    + [f"attention_backward_{side}<{width}>" for side in ("keys", "queries") for width in WIDTHS],
}
# Ampere, Hopper, and the oldest Blackwell; PTX of the first runs on all.
ARCHITECTURES = ["80", "90", "100"]
MMA = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"

library = pathlib.Path(sys.argv[1])
# NVRTC asks for this one by its name alone.
for builtins in library.parent.glob("libnvrtc-builtins.so*"):
    ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
nvrtc = ctypes.CDLL(str(library))
nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
nvrtc.nvrtcGetLoweredName.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p)]
folder = pathlib.Path(sys.argv[2])


def text(program, what):
    """The text, or bytes, that the program has of `what`: ProgramLog, PTX or CUBIN."""
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw


def compile_source(name, target):
    """The compiled program for a target such as sm_90 (machine code) or compute_90 (PTX)."""
    program = ctypes.c_void_p()
    header = (folder / "device.cuh").read_bytes()
    check(nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), (folder / name).read_bytes(), name.encode(), 1,
        (ctypes.c_char_p * 1)(header), (ctypes.c_char_p * 1)(b"device.cuh")))
    for kernel in KERNELS[name]:
        check(nvrtc.nvrtcAddNameExpression(program, kernel.encode()))
    options = [f"--gpu-architecture={target}", "--std=c++17"]
    if target.startswith("sm_"):
        options.append("--ptxas-options=-v")
    values = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    result = nvrtc.nvrtcCompileProgram(program, len(options), values)
    if result:
        sys.exit(f"{name} for {target}:\n{text(program, 'ProgramLog').decode()}")
    return program


def check(result):
    if result:
        sys.exit(nvrtc.nvrtcGetErrorString(result).decode())


def lowered(program, kernel):
    name = ctypes.c_char_p()
    check(nvrtc.nvrtcGetLoweredName(program, kernel.encode(), ctypes.byref(name)))
    return name.value.decode()


major, minor = ctypes.c_int(), ctypes.c_int()
nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
print(f"NVRTC {major.value}.{minor.value}")
spills = False
for name, kernels in KERNELS.items():
    for architecture in ARCHITECTURES:
        ptx = text(compile_source(name, f"compute_{architecture}"), "PTX").decode()
        if name == "attention_backward.cu" and MMA not in ptx:
            sys.exit(f"{name}: no {MMA} in the PTX")
        program = compile_source(name, f"sm_{architecture}")
        log = text(program, "ProgramLog").decode()
        size = len(text(program, "CUBIN"))
        print(f"sm_{architecture} {name}: {size} bytes of machine code, {ptx.count(MMA)} mma.sync")
        for kernel in kernels:
            part = log.split(f"entry function '{lowered(program, kernel)}'")[1]
            registers = re.search(r"Used (\d+) registers", part)[1]
            spilled = int(re.search(r"(\d+) bytes spill stores", part)[1])
            spills |= spilled > 0
            said = f"{spilled} bytes spilled" if spilled else "no spills"
            print(f"sm_{architecture} {kernel}: {registers} registers, {said}")
if spills:
    sys.exit("a kernel spills registers")
