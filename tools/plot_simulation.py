#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what `lorikeet simulate --out FILE.json` wrote, as SVG or PNG (needs matplotlib).

  plot_simulation.py sweep.json --out figure.svg               a sweep over numbers: throughput, first token, attainment
  plot_simulation.py fcfs.json vtc.json --out figure.svg       single runs: service difference over time, one line a file
  plot_simulation.py run.json --figure tenants --out f.svg     a single run: what each tenant receives over time
  plot_simulation.py modes.json --out figure.svg               a sweep over words (policy, mode): bars

Several swept keys: the first is the x axis, the others tell the lines apart. Several files: likewise.
"""
import argparse
import json
import pathlib
import sys

try:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter
except ImportError:
    sys.exit("plot_simulation.py needs matplotlib: apt install python3-matplotlib, or pip install matplotlib")

# Okabe and Ito's palette: distinct without colour vision.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
MARKERS = "osD^vPX*"
LINES = ["-", "--", "-.", ":"]
AXES = {"adapters": "registered adapters", "rate": "requests/s offered", "cv": "burstiness of arrivals (cv)", "alpha": "popularity alpha (1 = uniform)",
        "tenants": "tenants", "pool-tokens": "page pool, tokens", "max-running": "most requests in a step", "load-ahead": "load-ahead, requests"}
METRICS = {
    "throughput": ("requests/s", lambda r: r["drained"]["requests_per_s"], (0, None)),
    "ttft": ("first token, mean s", lambda r: r["ttft_s"]["mean"], (0, None)),
    "attainment": ("attained within {slo:g} s", lambda r: r["slo_attainment"], (0, 1.03)),
    "satisfaction": ("satisfaction", lambda r: r["satisfaction"], (0, 1.03)),
    "difference": ("service difference, units/s", lambda r: r["fairness"]["service_difference"]["mean"], (0, None)),
    "hidden": ("loads hidden", lambda r: r["adapters"]["hidden_share"], (0, 1.03)),
}


def style() -> None:
    plt.rcParams.update({
        "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.8,
        "axes.edgecolor": "#666666", "xtick.color": "#444444", "ytick.color": "#444444", "legend.frameon": False, "lines.linewidth": 1.8,
        "lines.markersize": 5, "savefig.bbox": "tight", "svg.hashsalt": "lorikeet", "svg.fonttype": "none"})


def load(path: str) -> dict:
    try:
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        sys.exit(f"{path}: {error}")
    if data.get("format") != "lorikeet-simulation-1" or not data.get("runs"):
        sys.exit(f"{path}: not a file of `lorikeet simulate --out`")
    return data | {"label": pathlib.Path(path).stem}


def number(text: str):
    try:
        return float(text)
    except ValueError:
        return None


def series_of(files: list) -> dict:
    """{label: [(x, result)]}: one line per file and per value of the other swept keys."""
    lines: dict = {}
    for data in files:
        key = data["sweep"][0]
        for run in data["runs"]:
            others = [f"{k} {v}" for k, v in run["swept"].items() if k != key]
            label = ", ".join(([data["label"]] if len(files) > 1 else []) + others)
            lines.setdefault(label, []).append((run["swept"][key], run["result"]))
    return lines


def title(files: list) -> str:
    names = []
    for data in files:
        settings = ", ".join(f"{k} {v}" for k, v in data["settings"].items())
        names.append(": ".join(x for x in (data["suite"], settings) if x))
    return " | ".join(dict.fromkeys(n for n in names if n))


def finish(figure, files: list, args) -> None:
    if args.title or title(files):
        figure.suptitle(args.title or title(files), x=0.01, ha="left", fontsize=10.5)
    figure.savefig(args.out, dpi=150, metadata={"Date": None} if args.out.endswith(".svg") else None)
    print(args.out)


def legend(axis) -> None:
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def thousands(value, _=None) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def panels(count: int):
    figure, axes = plt.subplots(1, count, figsize=(3.5 * count, 2.9), squeeze=False, layout="constrained")
    return figure, axes[0]


def plot_sweep(files: list, args) -> None:
    key, lines = files[0]["sweep"][0], series_of(files)
    metrics = args.metrics or ["throughput", "ttft", "attainment"]
    figure, axes = panels(len(metrics))
    xs = sorted({number(x) for points in lines.values() for x, _ in points})
    is_log = xs[0] > 0 and xs[-1] / xs[0] > 15
    for axis, metric in zip(axes, metrics):
        name, value, limits = METRICS[metric]
        for i, (label, points) in enumerate(lines.items()):
            points = sorted((number(x), value(r)) for x, r in points)
            axis.plot(*zip(*points), color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], label=label,
                      linestyle=LINES[i % len(LINES)])
        slo = next(iter(lines.values()))[0][1]["slo_s"]
        axis.set_title(name.format(slo=slo))
        axis.set_xlabel(AXES.get(key, key))
        if is_log:
            axis.set_xscale("log")
        axis.set_xticks(xs, [thousands(x) for x in xs])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.minorticks_off()
        low, high = axis.get_ylim()
        axis.set_ylim(limits[0] if limits[0] is not None else low, limits[1] or high * 1.08)
    if len(lines) > 1:
        legend(axes[-1])
    finish(figure, files, args)


def plot_bars(files: list, args) -> None:
    lines = series_of(files)
    fair = any(len(r["tenants"]) > 1 for points in lines.values() for _, r in points)
    metrics = args.metrics or ["throughput", "ttft", "difference" if fair else "attainment"]
    figure, axes = panels(len(metrics))
    names = list(dict.fromkeys(x for points in lines.values() for x, _ in points))
    width = 0.8 / len(lines)
    for axis, metric in zip(axes, metrics):
        name, value, _ = METRICS[metric]
        for i, (label, points) in enumerate(lines.items()):
            by_name = {x: value(r) for x, r in points}
            offsets = [n + (i - (len(lines) - 1) / 2) * width for n in range(len(names))]
            # One series: each bar is its own thing, so colours tell the bars apart; else they tell the series apart.
            colors = [COLORS[n % len(COLORS)] for n in range(len(names))] if len(lines) == 1 else COLORS[i % len(COLORS)]
            bars = axis.bar(offsets, [by_name.get(n, 0) for n in names], width * 0.92, color=colors, label=label)
            if len(lines) * len(names) <= 8:
                axis.bar_label(bars, fmt="{:.3g}", fontsize=7.5, padding=1.5, color="#444444")
        axis.set_title(name.format(slo=next(iter(lines.values()))[0][1]["slo_s"]))
        axis.set_xticks(range(len(names)), names, rotation=30 if len(names) > 4 else 0, ha="right" if len(names) > 4 else "center")
        axis.grid(axis="x", visible=False)
        axis.set_ylim(0, max(axis.get_ylim()[1] * 1.08, 1e-9))
    if len(lines) > 1:
        legend(axes[-1])
    finish(figure, files, args)


def timelines(files: list) -> list:
    found = [(", ".join([data["label"]] * (len(files) > 1) + [f"{k} {v}" for k, v in run["swept"].items()]), run["result"])
             for data in files for run in data["runs"] if "timeline" in run["result"]]
    return found or sys.exit("no run over time in the file: simulate without --sweep, or with --timeline")


def plot_difference(files: list, args) -> None:
    figure, axes = panels(2)
    for i, (label, result) in enumerate(timelines(files)):
        time, color = result["timeline"]["time_s"], COLORS[i % len(COLORS)]
        inside = [n for n, t in enumerate(time) if t <= result["duration_s"]]
        axes[0].plot([time[n] for n in inside], [result["timeline"]["max_service_difference"][n] for n in inside], color=color, label=label or None)
        axes[1].plot([time[n] for n in inside], [result["timeline"]["waiting"][n] for n in inside], color=color, label=label or None)
    bound = result["fairness"]["vtc_bound"]
    if args.bound:
        axes[0].axhline(bound, color="#888888", linewidth=1, linestyle="--")
        axes[0].annotate("VTC's bound", (1, bound), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points", fontsize=7.5,
                         color="#666666", ha="right")
    axes[0].set_title("largest difference of service so far")
    axes[1].set_title("requests waiting")
    for axis in axes:
        axis.set_xlabel("seconds")
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(FuncFormatter(thousands))
    if len(timelines(files)) > 1:
        legend(axes[-1])
    finish(figure, files, args)


def rates(time: list, service: list, tenant: int, window_s: float) -> tuple:
    """Service per second in windows of +-window_s around each point, as VTC's figures show it."""
    xs, ys = [], []
    for n, t in enumerate(time):
        first = max(i for i in range(n + 1) if time[i] <= max(t - window_s, time[0]))
        last = next((i for i in range(n, len(time)) if time[i] >= t + window_s), len(time) - 1)
        if time[last] > time[first]:
            xs.append(t)
            ys.append((service[last][tenant] - service[first][tenant]) / (time[last] - time[first]))
    return xs, ys


def plot_tenants(files: list, args) -> None:
    runs = timelines(files)
    figure, axes = panels(len(runs))
    if len(runs) == 1:
        figure.set_size_inches(6.5, 2.9)
    most = 0.0
    for axis, (label, result) in zip(axes, runs):
        line = result["timeline"]
        inside = [n for n, t in enumerate(line["time_s"]) if t <= result["duration_s"]]
        time, service = [line["time_s"][n] for n in inside], [line["service"][n] for n in inside]
        if not service or not service[0]:
            sys.exit("too many tenants for a line each")
        shown = sorted(range(len(result["tenants"])), key=lambda t: -result["tenants"][t]["service"])[:8]
        for i, tenant in enumerate(sorted(shown)):
            xs, ys = rates(time, service, tenant, args.window)
            axis.plot(xs, ys, color=COLORS[i], label=result["tenants"][tenant]["name"])
            most = max(most, max(ys, default=0))
        axis.set_title(f"service/s by tenant{': ' + label if label else ''}")
        axis.set_xlabel("seconds")
    for axis in axes:
        axis.set_ylim(0, most * 1.08)
    legend(axes[-1])
    finish(figure, files, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--out", required=True, help="figure.svg or figure.png")
    parser.add_argument("--figure", choices=["sweep", "bars", "difference", "tenants"], help="default: by what the file holds")
    parser.add_argument("--metrics", type=lambda text: text.split(","), help="of sweep and bars: " + ", ".join(METRICS))
    parser.add_argument("--labels", type=lambda text: text.split(","), help="of the files (default: their names)")
    parser.add_argument("--title")
    parser.add_argument("--bound", action="store_true", help="difference: also the bound of VTC's theorem")
    parser.add_argument("--window", type=float, default=30, help="tenants: rates over +- so many seconds")
    args = parser.parse_args()
    for metric in args.metrics or []:
        if metric not in METRICS:
            sys.exit(f"no metric \"{metric}\"; there are {', '.join(METRICS)}")
    files = [load(path) for path in args.files]
    for data, label in zip(files, args.labels or []):
        data["label"] = label
    style()
    figure = args.figure
    if not figure:
        words = files[0]["sweep"] and any(number(run["swept"][files[0]["sweep"][0]]) is None for run in files[0]["runs"])
        figure = "difference" if not files[0]["sweep"] else "bars" if words else "sweep"
    {"sweep": plot_sweep, "bars": plot_bars, "difference": plot_difference, "tenants": plot_tenants}[figure](files, args)


if __name__ == "__main__":
    main()
