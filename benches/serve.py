"""hone against llama.cpp and transformers: reading prompts and writing answers, in one run.

The same model for all, its weights in bfloat16: hone reads the Hugging Face folder, llama.cpp a GGUF
of the same values in F16 or BF16 (made here; the faster counts), transformers the folder in bfloat16
and in 32-bit floats (the faster counts). Each measurement is a process of its own; they alternate, and
the medians over the rounds count. Progress goes to stderr, a table in Markdown to stdout, every report
as JSON to target/bench/serve.json.
"""

import argparse
import datetime
import json
import pathlib
import statistics
import subprocess
import sys
import time

import page

ROOT = pathlib.Path(__file__).resolve().parent.parent
INPUTS = ROOT / "target" / "bench"
SMOLLM2 = INPUTS / "smollm2"
GGUF = ROOT / "models" / "smollm2-135m-instruct"
BEGIN, END = "<!-- results: written by benches/serve --write -->", "<!-- end of serving results -->"

# key, name, which speed counts, prompt, generate, streams
ROWS = [
    ("prefill", "reading a prompt of 512 tokens", "prefill_tokens_per_s", 512, 8, 1),
    ("single", "writing 128 tokens, one stream", "decode_tokens_per_s", 64, 128, 1),
    ("eight", "writing 128 tokens, eight streams", "decode_tokens_per_s", 64, 128, 8),
]
LLAMA = ["F16", "BF16"]
TRANSFORMERS = ["bfloat16", "float32"]


def log(*parts):
    print(*parts, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------- the others, each in a process


def make_gguf(source, target, kind):
    """The GGUF at `source` with its matrices as 16-bit floats: what the Hugging Face folder holds."""
    import gguf
    import numpy
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        of = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], of)
    types = {"F16": gguf.GGMLQuantizationType.F16, "BF16": gguf.GGMLQuantizationType.BF16}
    writer.add_file_type({"F16": 1, "BF16": 32}[kind])
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        if values.ndim < 2:
            writer.add_tensor(tensor.name, values)
            continue
        # Through bfloat16 in any case, so that all have the same values.
        rounded = gguf.quants.quantize(values, types["BF16"])
        if kind == "F16":
            exact = gguf.quants.dequantize(rounded, types["BF16"])
            writer.add_tensor(tensor.name, exact.astype(numpy.float16))
        else:
            writer.add_tensor(tensor.name, rounded, raw_dtype=types["BF16"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tokens(count, seed, vocabulary):
    state = seed * 2654435761 + 1
    made = []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        made.append((state >> 33) % vocabulary)
    return made


def measure_llama(args):
    import ctypes

    import llama_cpp
    import numpy
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        str(INPUTS / f"smollm2-{args.variant}.gguf").encode(), llama_cpp.llama_model_default_params())
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = args.streams * (args.prompt + args.generate + 64)
    parameters.n_batch, parameters.n_ubatch = 2048, 512
    parameters.n_seq_max = args.streams
    parameters.n_threads = parameters.n_threads_batch = args.threads
    context = llama_cpp.llama_init_from_model(model, parameters)
    batch = llama_cpp.llama_batch_init(2048, 0, 1)

    def decode(entries):
        """(token, position, stream, whether its logits are wanted) each; the likeliest tokens."""
        batch.n_tokens = len(entries)
        for index, (token, position, stream, wanted) in enumerate(entries):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, stream
            batch.logits[index] = wanted
        if llama_cpp.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed")
        next_tokens = []
        for index, entry in enumerate(entries):
            if entry[3]:
                logits = llama_cpp.llama_get_logits_ith(context, index)
                next_tokens.append(int(numpy.ctypeslib.as_array(logits, (vocabulary,)).argmax()))
        return next_tokens

    def run():
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        began = time.perf_counter()
        following = []
        for stream in range(args.streams):
            prompt = tokens(args.prompt, stream, vocabulary)
            last = len(prompt) - 1
            entries = [(token, at, stream, at == last) for at, token in enumerate(prompt)]
            following += decode(entries)
        read = time.perf_counter()
        for step in range(args.generate):
            following = decode([(token, args.prompt + step, stream, True)
                                for stream, token in enumerate(following)])
        return read - began, time.perf_counter() - read

    run()
    return run(), {"llama-cpp-python": llama_cpp.__version__}


def measure_transformers(args):
    import torch
    import transformers
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        SMOLLM2, dtype=getattr(torch, args.variant)).eval()
    vocabulary = model.config.vocab_size

    @torch.inference_mode()
    def run():
        prompts = torch.tensor([tokens(args.prompt, stream, vocabulary) for stream in range(args.streams)])
        began = time.perf_counter()
        out = model(prompts, use_cache=True, logits_to_keep=1)
        following = out.logits[:, -1].argmax(-1, keepdim=True)
        read = time.perf_counter()
        for _ in range(args.generate):
            out = model(following, past_key_values=out.past_key_values, use_cache=True)
            following = out.logits[:, -1].argmax(-1, keepdim=True)
        return read - began, time.perf_counter() - read

    run()
    return run(), {"transformers": transformers.__version__, "torch": torch.__version__}


def measure(args):
    (reading, writing), versions = {"llama": measure_llama, "transformers": measure_transformers}[args.peer](args)
    print(json.dumps({
        "prefill_tokens_per_s": args.streams * args.prompt / reading,
        "decode_tokens_per_s": args.streams * args.generate / writing,
        "versions": versions,
    }))


# --------------------------------------------------------------------------------------- the comparison


def run(command):
    log("$", " ".join(str(part) for part in command))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        log(done.stderr[-4000:])
        raise SystemExit(f"it failed with {done.returncode}: {' '.join(map(str, command))}")
    report = json.loads(done.stdout.splitlines()[-1])
    log(f"  {report['prefill_tokens_per_s']:.1f} tokens/s read, {report['decode_tokens_per_s']:.1f} written")
    return report


def hone(args, work, more=()):
    return run([args.hone, "bench", "serve", "--json", "--model", SMOLLM2, *work, *more])


def peer(args, name, variant, work):
    return run([args.python_llama if name == "llama" else sys.executable, __file__,
                "--peer", name, "--variant", variant, *work])


def median(reports, field):
    return statistics.median(report[field] for report in reports)


def compare(args):
    found = {"date": datetime.date.today().isoformat(), "threads": args.threads, "versions": {}, "rows": []}
    for key, name, field, prompt, generate, streams in ROWS:
        if key not in args.only:
            continue
        work = ["--prompt", str(prompt), "--generate", str(generate), "--streams", str(streams),
                "--threads", str(args.threads)]
        ours, adapted = [], []
        theirs = {("llama", variant): [] for variant in LLAMA}
        theirs |= {("transformers", variant): [] for variant in TRANSFORMERS}
        for number in range(args.rounds):
            log(f"--- {name}, round {number + 1}")
            ours.append(hone(args, work))
            if args.adapter:
                adapted.append(hone(args, work, ["--adapter", args.adapter]))
            for (kind, variant), reports in theirs.items():
                reports.append(peer(args, kind, variant, work))
        for report in ours + [one for reports in theirs.values() for one in reports]:
            found["versions"] |= report["versions"]
        found["cpu"] = ours[0]["cpu"]
        found["rows"].append({
            "key": key, "name": name, "hone": median(ours, field),
            "hone_adapter": median(adapted, field) if adapted else None,
            "weights_gb_per_s": median(ours, "weights_gb_per_s"),
            "peers": {f"{kind} {variant}": median(reports, field)
                      for (kind, variant), reports in theirs.items()},
        })
    return found


def bars(found):
    """What each row must reach: ratios to the others, or to hone's own single stream."""
    rows = {row["key"]: row for row in found["rows"]}
    for row in found["rows"]:
        best = {kind: max(speed for name, speed in row["peers"].items() if name.startswith(kind))
                for kind in ("llama", "transformers")}
        of_llama, of_transformers = (row["hone"] / best[kind] for kind in ("llama", "transformers"))
        alone = row["hone"] / rows["single"]["hone"] if row["key"] == "eight" and "single" in rows else None
        yield row, best, of_llama, of_transformers, alone


def table(found):
    lines = [
        f"{found['date']}, {found['cpu']}, {found['threads']} threads. "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items()) + ".", "",
        "| tokens/s | hone | with an adapter | llama.cpp | ratio | at least | transformers | ratio | at least "
        "| eight streams to one | at least |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row, best, of_llama, of_transformers, alone in bars(found):
        adapted = f"{row['hone_adapter']:,.1f}" if row["hone_adapter"] else "–"
        lines.append(
            f"| {row['name']} | {row['hone']:,.1f} | {adapted} "
            f"| {best['llama']:,.1f} | **{of_llama:.2f}** | {'–' if row['key'] == 'eight' else '1.0'} "
            f"| {best['transformers']:,.1f} | **{of_transformers:.2f}** "
            f"| {'1.5' if row['key'] == 'prefill' else '–'} "
            f"| {f'**{alone:.2f}**' if alone else '–'} | {'3.0' if alone else '–'} |")
    lines += ["", "Each of the others in each precision, tokens/s: " + "; ".join(
        f"{row['name']}: " + ", ".join(f"{name} {speed:,.1f}" for name, speed in row["peers"].items())
        for row in found["rows"]) + "."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    keys = [row[0] for row in ROWS]
    parser.add_argument("--only", nargs="+", choices=keys, default=keys, metavar="ROW")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--adapter", help="measures hone with this adapter (PEFT layout) as well")
    parser.add_argument("--hone", default=str(ROOT / "target" / "release" / "hone"))
    parser.add_argument("--python-llama", default=sys.executable, help="a Python that has llama_cpp")
    parser.add_argument("--write", action="store_true", help="put the table into benches/README.md")
    # What a process of its own measures.
    for name in ("--peer", "--variant"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--prompt", "--generate", "--streams"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        measure(args)
        return

    for kind in LLAMA:
        target = INPUTS / f"smollm2-{kind}.gguf"
        if not target.exists():
            make_gguf(next(GGUF.glob("*.gguf")), target, kind)
    found = compare(args)
    (INPUTS / "serve.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    text = table(found)
    print(text)
    if args.write:
        page.write(BEGIN, END, text)


if __name__ == "__main__":
    main()
