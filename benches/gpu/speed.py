"""Speed and memory: hone, and transformers + PEFT on the same model, sequences and card."""

import json
import pathlib

import machine as machines
from session import Failed, OutOfTime, reason

HERE = pathlib.Path(__file__).resolve().parent
RANK = 16

# Of the frozen weights, for hone and PyTorch alike: tiny sizes in bfloat16 tell nothing of a CPU.
DTYPES = {"cuda": "bf16", "cpu": "f32"}


class Work:
    """What is measured of a shape: steps are all and those that are left out of the timing."""

    def __init__(self, key, name, arguments, batch, steps):
        self.key, self.name, self.arguments, self.batch, self.steps = key, name, arguments, batch, steps


def works(shape, files, tiny):
    """Long sequences, one and two at once, and sequences as long as chats, eight at once. hone and PyTorch read the
    same tokens: `files` has those of the shape's vocabulary."""
    length = 32 if tiny else 4096
    steps = {"llama-8b": (4, 1), "llama-1.17b": (6, 2)}.get(shape, (2, 1) if tiny else (8, 2))
    dense = {"mode": "tokens", "seq": length, "data": str(files["dense"])}
    chats = {"mode": "tokens", "seq": 2 * length, "data": str(files["chats"])}
    return [
        Work("dense-1", f"1 × {length} tokens", dense, 1, steps),
        Work("dense-2", f"2 × {length} tokens", dense, 2, steps),
        Work("chats", "8 sequences as long as GSM8K's chats", chats, 8, steps),
    ]


def hone(session, machine, tools, model, some, entry):
    """Measures works that differ in their batch alone: the model is loaded once."""
    first = some[0]
    command = [tools.hone, "bench", "train", "--json", "--backend", machine.device, "--dtype", DTYPES[machine.device],
               "--model", model, "--rank", RANK, "--batch", ",".join(str(work.batch) for work in some),
               "--steps", first.steps[0], "--warmup-steps", first.steps[1]]
    for key, value in first.arguments.items():
        command += [f"--{key}", value]
    with machines.DeviceMemory(machine) as memory:
        heard = []

        def hear(line):
            report = machines.parse(line)
            if report is None or len(heard) == len(some):
                return
            work = some[len(heard)]
            heard.append(work)
            report["device_memory_gb"] = memory.take()
            entry.setdefault(work.key, {"name": work.name})["hone"] = measured(machine, report)
            session.save()

        code, _, said = session.run(command, env=machine.environment(), on_line=hear)
    for work in some[len(heard):]:
        entry.setdefault(work.key, {"name": work.name})["hone"] = {"failed": reason(code, said)}
    return code == 0


def measured(machine, report):
    """What counts of a report of hone, with the share of the device's peak."""
    kept = ("tokens_per_s", "median_step_s", "first_step_s", "load_s", "peak_rss_gb", "device_memory_gb", "dtype",
            "backend", "trainable_params", "timed_steps", "losses")
    found = {key: report.get(key) for key in kept}
    found["tflops_per_s"] = round(report["gflops_per_s"] / 1e3, 7)
    found["gflop_per_token"] = report["gflops_per_s"] / report["tokens_per_s"]
    found["share_of_peak"] = share(machine, found["tflops_per_s"], report["dtype"])
    return found


def share(machine, tflops, dtype):
    peak = (machine.peaks or {}).get("bf16" if dtype == "bf16" else "f32")
    return round(tflops / peak, 6) if peak else None


def variants(work, compiles):
    """The ways of PyTorch that are measured for a work."""
    layouts = [False, True] if work.key == "chats" else [False]
    found = []
    for packing in layouts:
        for checkpointing in (False, True):
            found.append({"packing": packing, "checkpointing": checkpointing, "compile": compiles})
    return found


def variant_name(variant):
    words = ["packed" if variant["packing"] else "padded" if variant.get("chats") else "",
             "checkpointing" if variant["checkpointing"] else "no checkpointing",
             "compiled" if variant["compile"] else ""]
    return ", ".join(filter(None, words))


def peft(session, machine, model, some, entry, compiles=False):
    """Measures the works in one process of transformers + PEFT, one report a line."""
    planned = []
    for work in some:
        for variant in variants(work, compiles):
            # Compiling takes its time from the run: once for long sequences, without checkpointing.
            if compiles and (work.key != "dense-1" or variant["checkpointing"]):
                continue
            variant |= {"chats": work.key == "chats"}
            planned.append({"key": work.key, "variant": variant_name(variant), "batch": work.batch,
                            "steps": work.steps[0], "warmup": work.steps[1], **work.arguments, **variant})
    command = [machine.python, HERE / "peft_speed.py", "--model", model, "--device", machine.device,
               "--dtype", DTYPES[machine.device], "--rank", RANK, "--works", json.dumps(planned)]
    with machines.DeviceMemory(machine) as memory:

        def hear(line):
            report = machines.parse(line)
            if not isinstance(report, dict) or "key" not in report:
                return
            row = entry.setdefault(report.pop("key"), {})
            report["device_memory_gb"] = memory.take()
            row.setdefault("peft", {})[report.pop("variant")] = beside(machine, row, report)
            session.save()

        code, _, said = session.run(command, env=machine.environment(), on_line=hear)
    if code:
        raise Failed(f"transformers + PEFT: {reason(code, said)}")


def beside(machine, row, report):
    """A report of PyTorch, with the arithmetic that hone counts for the same work."""
    per_token = row.get("hone", {}).get("gflop_per_token")
    if per_token and "tokens_per_s" in report:
        report["tflops_per_s"] = round(report["tokens_per_s"] * per_token / 1e3, 7)
        report["share_of_peak"] = share(machine, report["tflops_per_s"], report["dtype"])
    ours, theirs = (found.get("losses") for found in (row.get("hone", {}), report))
    if ours and theirs:
        # The same base and the same tokens, before anything is learnt: or the work differs.
        report["first_loss_apart"] = round(abs(ours[0] - theirs[0]) / theirs[0], 5)
    return report


def of_shape(session, machine, tools, model, shape, some, entry):
    """hone's works, then PyTorch's."""
    entry["shape"] = shape
    entry["works"] = rows = {}
    dense = [work for work in some if work.key != "chats"]
    chats = [work for work in some if work.key == "chats"]
    # One load for all dense works; where the second batch ends the process, the first one has been heard.
    fine = [hone(session, machine, tools, model, part, rows) for part in (dense, chats)]
    session.save()
    if machine.has_torch:
        try:
            peft(session, machine, model, some, rows)
        except OutOfTime:
            entry["peft"] = "it was over its time"
            raise
    else:
        entry["peft"] = "PEFT: not available, no Python with torch, transformers and peft was found"
    if not all(fine):
        raise Failed("hone failed in a part: see its rows")


def out_of_memory(session, machine, tools, model, entry):
    """A step that outgrows the card while it runs: what hone says."""
    command = [tools.hone, "bench", "train", "--json", "--backend", machine.device, "--model", model,
               "--batch", 1, "--steps", 1, "--warmup-steps", 0, "--seq", 131072]
    code, lines, said = session.run(command, env=machine.environment())
    entry["exit_code"], entry["message"] = code, said[-1500:]
    if code == 0:
        entry["message"] = "it fitted: 131,072 tokens of this shape are no test for this card"
        entry["report"] = machines.parse(lines[-1])
    elif "out of memory" not in said:
        raise Failed(f"its message does not say that memory ran out: {said[-600:]}")
