"""The golden cases on the device: the largest differences of all families, by precision."""

import json

from session import Failed, OutOfTime, reason

TEST = "train::golden_differences::the_largest_differences_from_the_golden_cases_are_measured_on_a_device"


def measure(session, machine, tools, precision, entry):
    """Runs the packed test in this precision; what it wrote counts, however it ended."""
    report = machine.work / f"goldens-{precision}.json"
    environment = machine.environment(
        HONE_GOLDEN_DIR=tools.goldens, HONE_GOLDEN_DEVICE=machine.device, HONE_GOLDEN_PRECISION=precision,
        HONE_GOLDEN_REPORT=report)
    command = [tools.checks, TEST, "--exact", "--nocapture", "--test-threads", "1"]
    wanted = {path.parent.name for path in tools.goldens.glob("*/case.json")}
    why, out_of_time = None, False
    try:
        code, lines, said = session.run(command, env=environment)
        if code:
            why = reason(code, said or "\n".join(lines[-20:]))
    except OutOfTime:
        out_of_time = True
    found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {"cases": {}}
    entry |= found
    entry["largest"] = largest(found["cases"])
    entry["cases_in_all"] = len(wanted)
    entry["cases_measured"] = sum("differences" in case for case in found["cases"].values())
    missing = sorted(wanted - set(found["cases"]))
    if missing:
        entry["not_reached"] = missing
    if out_of_time:
        raise OutOfTime
    if why:
        raise Failed(why)


def largest(cases):
    """The largest difference of each kind over all cases, and the case that has it."""
    found = {}
    for name, case in cases.items():
        for what, value in case.get("differences", {}).items():
            relative = value["relative"]
            # A text stands for a number that is not finite: nothing is larger.
            size = float("inf") if isinstance(relative, str) else relative
            if what not in found or size > found[what][0]:
                found[what] = (size, {"relative": relative, "of_allowed": value["of_allowed"], "case": name})
    return {what: value for what, (_, value) in sorted(found.items())}
