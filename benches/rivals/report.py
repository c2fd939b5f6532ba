"""Medians and ratios, as Markdown and as JSON."""

import os
import platform
import re
import statistics
import time
from pathlib import Path

OURS = "p2pfs"


def machine():
    """What the figures belong to."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf8"))
    memory = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="utf8"))[1]) / (1 << 20)
    system = re.search(r'PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text(encoding="utf8"))
    return {"cores": os.cpu_count(), "processor": cpu[1] if cpu else platform.machine(), "memory_gib": round(memory, 1),
            "kernel": platform.release(), "system": system[1] if system else "", "load_before": os.getloadavg()[0],
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}


class Results:
    """All samples: workload, system, column, one number a round."""

    def __init__(self, workloads, quick):
        self.workloads, self.quick = workloads, quick
        self.machine = machine()
        self.samples = {}
        self.failures = []
        self.left_out = {}
        self.versions = {}

    def add(self, workload, system, sample):
        columns = self.samples.setdefault(table_of(workload), {}).setdefault(workload.row(system), {})
        for key, value in sample.items():
            columns.setdefault(key, []).append(value)

    def fail(self, workload, system, text):
        self.failures.append({"workload": workload.name, "table": table_of(workload), "row": workload.row(system), "system": system,
                              "error": text})

    def leave_out(self, workload, system, reason):
        self.left_out.setdefault(table_of(workload), {})[system] = reason

    def json(self):
        return {"machine": self.machine, "quick": self.quick, "versions": self.versions, "samples": self.samples,
                "left_out": self.left_out, "failures": self.failures}

    def markdown(self):
        about = self.machine
        lines = [f"{about['cores']} cores of {about['processor']}, {about['memory_gib']} GiB, {about['system']}, "
                 f"Linux {about['kernel']}, {about['date']}; load before it: {about['load_before']:.1f}. "
                 + ", ".join(f"{name}: {version}" for name, version in self.versions.items()) + ".", ""]
        if self.quick:
            lines += ["**Quick form: small sizes, one round. It shows that everything works, not how fast it is.**", ""]
        for workload in {table_of(workload): workload for workload in self.workloads}.values():
            lines += self.table(workload)
        if self.failures:
            lines += ["### What failed", ""]
            for failure in self.failures:
                lines += [f"- {failure['workload']}, {failure['system']}:", "", "```", failure["error"], "```", ""]
        return "\n".join(lines)

    def table(self, workload):
        """Systems from the best to the worst, each with its medians, their range and how ours compares."""
        rows = self.samples.get(table_of(workload), {})
        left_out = self.left_out.get(table_of(workload), {})
        if not rows and not left_out:
            return []
        first, *_ = workload.columns
        ours = median(rows.get(OURS, {}), first)
        titles = [column.title for column in workload.columns] + (["p2pfs's advantage"] if workload.compared else []) + ["n"]
        lines = [f"### {workload.title}", "", f"Wanted: {workload.bar}.", "", f"| | {' | '.join(titles)} |",
                 "|---" * (len(titles) + 1) + "|"]
        order = list(rows)
        if workload.compared:
            order.sort(key=lambda name: median(rows[name], first), reverse=not first.less_is_better)
        for name in order:
            cells = [cell(rows[name].get(column.key), column) for column in workload.columns]
            if workload.compared:
                theirs = median(rows[name], first)
                advantage = (theirs / ours if first.less_is_better else ours / theirs) if ours else None
                cells.append(f"{advantage:.2f} ×" if advantage and name != OURS else "")
            count = len(next(iter(rows[name].values())))
            failed = sum((failure["table"], failure["row"]) == (table_of(workload), name) for failure in self.failures)
            cells.append(f"{count} of {count + failed}" if failed else f"{count}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
        if left_out:
            lines += ["Left out: " + "; ".join(f"{name} ({reason})" for name, reason in left_out.items()) + ".", ""]
        return lines


def table_of(workload):
    return workload.table or workload.name


def median(columns, column):
    values = columns.get(column.key)
    return statistics.median(values) if values else None


def cell(values, column):
    if not values:
        return ""
    text = f"{statistics.median(values):.{column.digits}f}"
    if len(values) > 1:
        text += f" ({min(values):.{column.digits}f}–{max(values):.{column.digits}f})"
    return text
