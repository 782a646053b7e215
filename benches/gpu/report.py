"""The results of a run as a page in Markdown."""


def number(value, digits=2):
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}f}"


def percent(value):
    return "–" if value is None else f"{value:.1%}"


def small(value):
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def table(head, rows):
    return ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head),
            *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)]


def yes(value):
    return {True: "yes", False: "**no**", None: "–"}[value]


def page(results):
    """Everything that was measured so far."""
    phases = results["phases"]
    lines = [f"### {title(results)}", "", preamble(results)]
    lines += goldens(phases)
    lines += jobs(phases)
    lines += speeds(results)
    lines += traces(phases.get("trace", {}))
    lines += memory(phases)
    lines += endings(phases)
    return "\n".join(lines) + "\n"


def title(results):
    machine = results["phases"].get("machine", {})
    name = machine.get("card", {}).get("name") or machine.get("cpu", "unknown")
    return f"{name}, {results['date']}" + (", tiny sizes" if results["tiny"] else "")


def preamble(results):
    machine = results["phases"].get("machine", {})
    card, python, packed = machine.get("card", {}), machine.get("python", {}), results["package"]
    said = [f"{machine.get('hone', 'hone')}, commit {packed.get('commit', 'unknown')}"]
    if card:
        said.append(f"driver {card['driver_version']}, CUDA {card['cuda']} (built with {packed.get('cuda')}), "
                    f"{card['memory.total']}, compute capability {card['compute_cap']}, {card['power.limit']}")
    said.append(f"{machine.get('cores', '?')} cores of {machine.get('cpu', 'an unknown CPU')}, "
                f"{machine.get('memory_gb', '?')} GB")
    names = [f"{name} {python[name]}" for name in ("torch", "transformers", "peft") if name in python]
    said.append(", ".join(names) or "no PyTorch")
    peaks = machine.get("peaks") or {}
    figures = [f"{key} {number(peaks[key])}" for key in ("bf16", "tf32", "f32") if key in peaks]
    said.append(f"Peak, TFLOP/s: {', '.join(figures) or 'unknown'} ({peaks.get('source', 'not measured')})")
    measured = peaks.get("product_of_8192") or {}
    if "bf16" in measured:
        said.append(f"PyTorch multiplies 8192 × 8192 at {number(measured['bf16'])} TFLOP/s in bf16, "
                    f"{number(measured['tf32'])} in tf32, {number(measured['f32'])} in f32")
    return ". ".join(said) + f". All of it took {results.get('took_s', 0):.0f} s."


def state(phase):
    """What is told where a phase has no numbers, or not all."""
    return f"{phase['status']}: {phase['why']}" if "why" in phase else phase.get("status", "running")


def goldens(phases):
    found = {precision: phases.get(f"goldens_{precision}") for precision in ("bf16", "f32")}
    found = {precision: phase for precision, phase in found.items() if phase}
    if not found:
        return []
    lines = ["", "#### The golden cases", "",
             "The largest differences from transformers + PEFT in 32-bit floats, over all cases, relative; in brackets "
             "the case, and how many times what the tests allow in 32-bit floats."]
    whats = sorted({what for phase in found.values() for what in phase.get("largest", {})})

    def cell(phase, what):
        value = phase.get("largest", {}).get(what)
        if not value:
            return "–"
        times = value["of_allowed"]
        return f"{small(value['relative'])} ({value['case']}, {number(times) if isinstance(times, float) else times})"

    lines += table(["", *found], [[what.replace("_", " "), *(cell(phase, what) for phase in found.values())]
                                  for what in whats])
    lines.append("")
    for precision, phase in found.items():
        cases = phase.get("cases", {})
        lines.append(f"- {precision}: {phase.get('cases_measured', 0)} of {phase.get('cases_in_all', '?')} cases "
                     f"measured, {phase.get('took_s', 0)} s, {state(phase)}")
        lines += [f"- {precision}, {name}: {case['failed']}" for name, case in cases.items() if "failed" in case]
    return lines


def jobs(phases):
    phase = phases.get("jobs")
    if not phase:
        return []
    lines = ["", "#### The same bytes", "", f"A job of {phase.get('job', {})}."]
    lines += table(["", ""], [
        ["the same job twice, byte for byte", yes(phase.get("twice_the_same_bytes"))],
        [f"killed by SIGKILL after step {phase.get('killed_after_step', '–')} and resumed, byte for byte",
         yes(phase.get("same_bytes_after_the_kill"))],
        ["it continued", phase.get("continued") or "–"],
        ["state", state(phase)]])
    return lines


def speeds(results):
    phases = results["phases"]
    lines = []
    for key, phase in phases.items():
        if not key.startswith("speed_"):
            continue
        lines += ["", f"#### {phase['title']}"]
        rows = []
        for work in phase.get("works", {}).values():
            ours = work.get("hone", {})
            rows.append(speed_row(work.get("name", ""), "hone", ours, 1.0 if "tokens_per_s" in ours else None))
            for variant, theirs in work.get("peft", {}).items():
                ratio = None
                if theirs.get("tokens_per_s") and ours.get("tokens_per_s"):
                    ratio = ours["tokens_per_s"] / theirs["tokens_per_s"]
                rows.append(speed_row("", f"PEFT, {variant}", theirs, ratio))
        lines += table(["work", "", "tokens/s", "TFLOP/s", "share of the peak", "a step, s", "peak memory, GB",
                        "launches a step", "device busy", "first loss apart", "hone is faster by"], rows)
        lines += ["", f"{state(phase)}. {phase.get('peft', '')}".strip()]
    return lines


def speed_row(work, who, found, ratio):
    if "failed" in found:
        return [work, who, found["failed"].replace("|", "/").replace("\n", " "), *["–"] * 8]
    memory = found.get("device_memory_gb")
    profile = found.get("profile") or {}
    busy = profile["busy_s"] / profile["profiled_step_s"] if "busy_s" in profile else None
    return [work, who, number(found.get("tokens_per_s")), number(found.get("tflops_per_s")),
            percent(found.get("share_of_peak")), number(found.get("median_step_s"), 3),
            number(memory if memory is not None else found.get("peak_rss_gb")),
            profile.get("launches", "–"), percent(busy), percent(found.get("first_loss_apart")), number(ratio)]


def traces(phase):
    if not phase:
        return []
    lines = ["", f"#### {phase['title']}", "", f"{state(phase)}."]
    for work in phase.get("works", {}).values():
        lines += ["", f"{work['name']}: a step took {work['step_s']} s under the recorder, {work['launches']} launches, "
                  f"{work['kernels']} kernels; the device was busy for {percent(work['device_busy_share'])} of it."]
        for head, key in (("kernels", "kernels_by_class"), ("copies", "copies"), ("the host waits in", "host_waits"),
                          ("calls of the host", "calls_of_the_host")):
            rows = [[name, one["s"], percent(one["share"]), one["count"], ", ".join(one.get("longest", []))]
                    for name, one in work[key].items()]
            if rows:
                lines += table([head, "s", "share of the step", "count", "the longest"], rows)
    return lines


def memory(phases):
    lines = []
    refused, outgrown = phases.get("does_not_fit"), phases.get("out_of_memory")
    if refused:
        error = refused.get("job", {}).get("error") or {}
        lines += ["", "#### Out of memory", "",
                  f"A job that does not fit ({state(refused)}): {error.get('code', '–')}: {error.get('message', '–')}"]
    if outgrown:
        lines += ["", f"A step that outgrows the memory ({state(outgrown)}): {outgrown.get('message', '–')}"]
    return lines


def endings(phases):
    rows = [[phase["title"], phase.get("status", "running"), phase.get("took_s", "–"), phase["budget_s"],
             phase.get("why", "").replace("|", "/").replace("\n", " ")[:300]] for phase in phases.values()]
    return ["", "#### Phases", *table(["phase", "state", "s", "at most", "why"], rows)]
