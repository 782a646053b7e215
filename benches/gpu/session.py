"""A measurement under a deadline: phases with budgets, commands that end in time, results that are kept."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time
import traceback


class OutOfTime(Exception):
    """A phase used up its budget, or the whole run its time."""


class Unavailable(Exception):
    """Something is not on this machine; the text says what."""


class Failed(Exception):
    """A command or a check failed; the text says why."""


class Session:
    """What the phases share. `results` is written to `path` after each phase and each part of one."""

    def __init__(self, path, seconds, results, on_save):
        self.path, self.results, self.on_save = path, results, on_save
        self.began = time.monotonic()
        self.end = self.began + seconds
        self.phase_end = self.end
        self.children, self.companions = [], []
        results["phases"] = {}

    def left(self):
        """Seconds left to the phase."""
        return self.phase_end - time.monotonic()

    def save(self):
        """Writes the results; a reader finds the old file or the new one, whole."""
        self.results["took_s"] = round(time.monotonic() - self.began, 1)
        text = json.dumps(self.results, indent=1, ensure_ascii=False)
        beside = self.path.with_suffix(".new")
        beside.write_text(text + "\n", encoding="utf-8")
        os.replace(beside, self.path)
        self.on_save(self.results)

    def phase(self, key, title, budget, run):
        """Runs `run(entry)` for at most `budget` seconds. What it put into `entry` stays, however it ends."""
        entry = {"title": title, "budget_s": budget}
        self.results["phases"][key] = entry
        began = time.monotonic()
        left = self.end - began
        if left < 5:
            entry |= {"status": "left out", "why": "no time was left"}
            self.save()
            return
        self.phase_end = min(began + budget, self.end)
        print(f"--- {title} (at most {self.phase_end - began:.0f} s)", flush=True)
        try:
            with alarm(self.phase_end - began + 2):
                run(entry)
            entry["status"] = "done"
        except OutOfTime:
            entry |= {"status": "over its time", "why": f"it was ended after {time.monotonic() - began:.0f} s"}
        except Unavailable as error:
            entry |= {"status": "not available", "why": str(error)}
        except Failed as error:
            entry |= {"status": "failed", "why": str(error)}
        except Exception as error:
            entry |= {"status": "failed", "why": f"{type(error).__name__}: {error}",
                      "trace": traceback.format_exc()[-2000:]}
        finally:
            self.phase_end = self.end
            self.end_children()
            entry["took_s"] = round(time.monotonic() - began, 1)
            self.save()
        why = f": {entry['why']}" if "why" in entry else ""
        print(f"    {entry['status']}, {entry['took_s']} s{why}", flush=True)

    def start(self, command, **options):
        """A process in a group of its own, which ends with the phase at the latest."""
        child = subprocess.Popen([str(part) for part in command], start_new_session=True, **options)
        self.children.append(child)
        return child

    def accompany(self, command, **options):
        """A process that may outlive the phase, and ends with the session."""
        child = self.start(command, **options)
        self.children.remove(child)
        self.companions.append(child)
        return child

    def end_children(self):
        for child in self.children:
            end(child)
        self.children.clear()

    def close(self):
        """Ends every process that was started, and writes what there is."""
        self.end_children()
        for child in self.companions:
            end(child)
        self.save()

    def run(self, command, env=None, limit=None, on_line=None):
        """Runs a command to its end: code, lines of standard output, end of standard error. `on_line` hears each
        line as it comes."""
        limit = min(limit or self.left(), self.left())
        log = self.path.parent / "stderr.log"
        lines = []
        with log.open("w+", encoding="utf-8", errors="replace") as errors:
            child = self.start(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace",
                               stdin=subprocess.DEVNULL, env=env)
            try:
                with alarm(max(limit, 0.1)):
                    for line in child.stdout:
                        lines.append(line.rstrip("\n"))
                        if on_line:
                            on_line(lines[-1])
                    child.wait()
            finally:
                end(child)
                self.children.remove(child)
            errors.seek(0)
            said = errors.read()[-6000:].strip()
        log.unlink()
        return child.returncode, lines, said


def reason(code, said):
    """Why a command failed, in a line or two."""
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how}: {said[-1200:] or 'it said nothing'}"


def children(parent):
    """Ids of the processes that this process has started."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            # The name, in parentheses, may hold blanks.
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def end(child):
    """Ends a process, its group, and what it has started in groups of their own, if it still runs."""
    if child.poll() is None:
        started = children(child.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        child.wait()


@contextlib.contextmanager
def alarm(seconds):
    """Raises OutOfTime after so many seconds; an alarm around this one still comes in time."""

    def ring(_signal, _frame):
        raise OutOfTime

    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, ring)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, min(seconds, outer_left() or seconds))
    try:
        yield
    finally:
        rest = outer - (time.monotonic() - began)
        signal.setitimer(signal.ITIMER_REAL, max(rest, 0.01) if outer else 0)
        signal.signal(signal.SIGALRM, before)


def outer_left():
    """Seconds until the alarm that is set, if one is."""
    return signal.getitimer(signal.ITIMER_REAL)[0]
