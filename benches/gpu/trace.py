"""Where a step's time goes: kernels by class, what the host waits for, launches, by the driver's own records.

`trace.so` (trace.c) writes the records of a `hone bench train`; its lines say when steps ended and how long they took.
"""

import re
import time

from session import Failed, Unavailable, reason

# The first that fits counts. candle's kernels are called by their operation and type, cuBLAS's by architecture.
CLASSES = [
    ("products of matrices (cuBLAS)", r"gemm|gemv|cutlass|xmma|splitK|cublas|dot_kernel|nvjet"),
    ("softmax", r"softmax"),
    ("sums and maxima over rows", r"fast_sum|fast_max|fast_min|fast_arg|reduce|sum_"),
    ("norms", r"rmsnorm|layernorm|rms_norm|layer_norm"),
    ("rotation", r"rope"),
    ("change of precision", r"^cast_"),
    ("rows picked and added", r"^(is|gather|ia|sa|s)_u|index_select|scatter|index_add"),
    ("copies on the device", r"^copy|ucopy|const_set|^fill_"),
    ("scale and shift", r"^affine"),
    ("products, sums, comparisons of elements", r"^b(add|sub|mul|div|maximum|minimum)|^(eq|ne|lt|le|gt|ge)_"),
    ("functions of elements", r"^u[a-z]+_"),
    ("where", r"^where"),
]
LAUNCH = re.compile(r"^cuLaunch|^cuGraphLaunch")
WAIT = re.compile(r"Synchronize|^cuMemcpyDtoH|^cuMemcpyAtoH|^cuEventQuery|^cuStreamWait")
COPIES = {1: "host to device", 2: "device to host", 8: "on the device"}


def class_of(name):
    return next((title for title, pattern in CLASSES if re.search(pattern, name)), "all else")


def measure(session, machine, tools, model, some, entry):
    """Traces each work once and says how its last step went."""
    if machine.device == "cpu":
        raise Unavailable("there are no kernels on a CPU: benches/run has the profile of hone's own")
    if not tools.trace.exists():
        raise Unavailable("trace.so was not packed")
    cupti = machine.library("libcupti.so.13")
    if not cupti:
        raise Unavailable("libcupti.so.13, which records kernels, is not on this machine")
    entry["recorded_by"] = str(cupti)
    entry["works"] = {}
    for work in some:
        records = machine.work / f"trace-{work.key}.txt"
        environment = machine.environment(CUDA_INJECTION64_PATH=tools.trace, HONE_TRACE_FILE=records)
        command = [tools.hone, "bench", "train", "--backend", "cuda", "--model", model, "--rank", "16",
                   "--batch", work.batch, "--steps", 3, "--warmup-steps", 1]
        for key, value in work.arguments.items():
            command += [f"--{key}", value]
        ends = []

        def hear(line):
            found = re.match(r"step \d+: .*, ([0-9.]+) s, ", line)
            if found:
                ends.append((time.time_ns(), float(found[1])))

        code, _, said = session.run(command, env=environment, on_line=hear)
        if code:
            raise Failed(reason(code, said))
        if not records.exists():
            raise Failed("the driver did not load trace.so: nothing was recorded")
        ended, took = ends[-1]
        with records.open(encoding="utf-8", errors="replace") as lines:
            entry["works"][work.key] = {"name": work.name} | summary(lines, ended - int(took * 1e9), ended)
        records.unlink()
        session.save()


def summary(lines, begin, end):
    """What was recorded between two times of the system's clock, in nanoseconds."""
    offset, busy, notes = 0, [], []
    kernels, calls, copies = {}, {}, {}
    for line in lines:
        kind, *parts = line.rstrip("\n").split(" ", 3)
        if kind == "T":
            offset = int(parts[1]) - int(parts[0])
            continue
        if kind == "E":
            notes.append(" ".join(parts))
            continue
        start, stop = int(parts[0]) + offset, int(parts[1]) + offset
        if stop <= begin or start >= end:
            continue
        if kind == "K":
            add(kernels, class_of(parts[2]), stop - start, parts[2])
        elif kind == "D":
            add(calls, parts[2], stop - start)
        else:
            what, size = ("memory set", int(parts[2])) if kind == "S" else copied(parts[2])
            add(copies, what, stop - start, size=size)
        if kind != "D":
            busy.append((start, stop))
    took = (end - begin) / 1e9
    active = union(busy)
    found = {
        "step_s": round(took, 4),
        "launches": sum(count for name, (_, count, *_) in calls.items() if LAUNCH.search(name)),
        "kernels": sum(count for _, count, *_ in kernels.values()),
        "device_busy_s": round(active, 4),
        "device_busy_share": round(active / took, 4),
        "kernels_by_class": by_time(kernels, took),
        "copies": by_time(copies, took),
        "calls_of_the_host": by_time(calls, took),
        "host_waits": by_time({name: call for name, call in calls.items() if WAIT.search(name)}, took),
    }
    if notes:
        found["notes"] = notes
    return found


def copied(text):
    kind, size = text.split(" ")
    return f"copy {COPIES.get(int(kind), 'of kind ' + kind)}", int(size)


def add(found, key, nanoseconds, name=None, size=0):
    seconds, count, names, bytes_ = found.get(key, (0.0, 0, {}, 0))
    if name:
        names[name] = names.get(name, 0) + nanoseconds
    found[key] = (seconds + nanoseconds / 1e9, count + 1, names, bytes_ + size)


def by_time(found, took):
    """The longest first, with its share of the step."""
    listed = {}
    for key, (seconds, count, names, bytes_) in sorted(found.items(), key=lambda one: -one[1][0])[:24]:
        listed[key] = {"s": round(seconds, 5), "share": round(seconds / took, 4), "count": count}
        if names:
            listed[key]["longest"] = sorted(names, key=names.get, reverse=True)[:3]
        if bytes_:
            listed[key]["bytes"] = bytes_
    return listed


def union(spans):
    """Seconds that at least one span covers."""
    covered, until = 0, 0
    for start, stop in sorted(spans):
        start = max(start, until)
        if stop > start:
            covered += stop - start
            until = stop
    return covered / 1e9
