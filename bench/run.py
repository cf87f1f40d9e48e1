"""Run all benchmarks, check them against their bounds, and write bench/results.md and bench/outage.svg."""

import platform
import sys
import time
from pathlib import Path

import ingress
from costs import at_rest, handed_on, hook_latency, limits, many_vips, start_to_master, traffic
from lab.network import DATAPLANES, Namespace, require_own_namespace, run
from lab.replica import Replica
from moves import CONNECTIONS, PATIENCE, ROUNDS, Make, Moves, crash, measure, stop, unplug
from plain import PlainReplica

from kevip.dataplane.iptables import Iptables
from kevip.dataplane.nftables import Nftables

HERE = Path(__file__).parent

Row = tuple[str, str, str, str, bool]
"""What, kevip, plain, the bound, and whether it is held."""


def _quick(node: Namespace) -> Replica:
    return Replica(node, dead_ratio=2)


def _keepalived(interval: float) -> Make:
    return lambda node: Replica(node, engine="keepalived", advert_interval=interval)


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)  # noqa: T201 - it takes minutes


def _move_rows(name: str, kevip: Moves, plain: Moves, bounds: tuple[float, bool, bool]) -> list[Row]:
    """Return rows for the outage, the failed connects and the survivors; bounds say which of them must be so."""
    longest, worst_counts, none_fail = bounds
    gap = kevip.worst_gap if worst_counts else kevip.gap
    return [
        (
            f"{name}: outage, median (worst)",
            f"{_seconds(kevip.gap)} ({_seconds(kevip.worst_gap)})",
            f"{_seconds(plain.gap)} ({_seconds(plain.worst_gap)})",
            f"{'worst' if worst_counts else 'median'} ≤ {_seconds(longest)}",
            gap <= longest,
        ),
        (
            f"{name}: failed connects; slow ones",
            f"{kevip.failed} of {kevip.tried}; {kevip.slow}",
            f"{plain.failed} of {plain.tried}; {plain.slow}",
            "0" if none_fail else "",
            not none_fail or kevip.failed == 0,
        ),
        (
            f"{name}: of {CONNECTIONS} open connections, answered again in {PATIENCE:g} s, worst round",
            str(min(kevip.survivors)),
            str(min(plain.survivors)),
            f"{CONNECTIONS}",
            min(kevip.survivors) == CONNECTIONS,
        ),
        (
            f"{name}: of {CONNECTIONS} on which the client is silent, worst round",
            str(min(kevip.silent)),
            str(min(plain.silent)),
            f"{CONNECTIONS}" if none_fail else "",
            not none_fail or min(kevip.silent) == CONNECTIONS,
        ),
    ]


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def moves() -> tuple[list[Row], dict[str, tuple[float, float]]]:
    """Measure the moves; return rows, and the outages for the chart."""
    rows: list[Row] = []
    chart = {}
    for name, fault, bounds in [
        ("planned stop", stop, (0.05, True, True)),
        ("crash", crash, (3.5, False, False)),
        ("carrier loss", unplug, (4.5, False, False)),
    ]:
        _say(name)
        kevip, plain = measure(Replica, fault), measure(PlainReplica, fault)
        rows += _move_rows(name, kevip, plain, bounds)
        chart[name] = (kevip.gap, plain.gap)
    _say("crash with --dead-ratio 2")
    quick = measure(_quick, crash)
    rows.append(
        (
            "crash with `--dead-ratio 2`: outage, median (worst)",
            f"{_seconds(quick.gap)} ({_seconds(quick.worst_gap)})",
            "",
            "median ≤ 2.50 s",
            quick.gap <= 2.5,
        )
    )
    return rows, chart


def keepalived() -> list[Row]:
    """Measure the moves with keepalived, by how often it advertises, in seconds; return rows."""
    rows: list[Row] = []
    for interval, longest in ((1, 3.5), (0.5, 1.9), (0.1, 0.35), (0.02, 0.15)):
        for name, fault, bound, none_fail in (("planned stop", stop, 0.05, True), ("crash", crash, longest, False)):
            _say(f"keepalived, {interval:g} s: {name}")
            moved = measure(_keepalived(interval), fault)
            lived, silent = min(moved.survivors), min(moved.silent)
            what = (
                f"keepalived, an advert every {interval:g} s: {name}: outage, median (worst); failed; connections "
                "alive; silent ones"
            )
            told = f"{_seconds(moved.gap)} ({_seconds(moved.worst_gap)}); {moved.failed} of {moved.tried}; {lived}"
            told += f"; {silent}"
            must = f"median ≤ {_seconds(bound)}; {'0; ' if none_fail else ''}{CONNECTIONS}"
            must += f"; {CONNECTIONS}" if none_fail else ""
            held = moved.gap <= bound and lived == CONNECTIONS
            held = held and not (none_fail and (moved.failed or silent < CONNECTIONS))
            rows.append((what, told, "", must, held))
    return rows


def costs() -> list[Row]:
    """Measure the costs; return rows."""
    rows: list[Row] = []
    for dataplane in DATAPLANES:
        _say(f"up hook, {dataplane}")
        hook = hook_latency(dataplane)
        rows.append(
            (
                f"up hook to rules and address in place, {dataplane}",
                f"{hook.kevip:.1f} ms",
                f"{hook.plain:.1f} ms",
                f"ratio {hook.ratio:.2f} ≤ 1.0",
                hook.ratio <= 1,
            )
        )
    _say("start")
    start = start_to_master()
    rows.append(("start to master, alone", _seconds(start.kevip), _seconds(start.plain), "≤ 6 s", start.kevip <= 6))
    _say("at rest")
    rest = at_rest()
    rows += [
        ("master at rest: CPU a minute", f"{rest.cpu:.0f} ms", "", "≤ 600 ms (1 % of a core)", rest.cpu <= 600),
        ("master at rest: RSS", f"{rest.rss:.0f} MiB", "", "≤ 45 MiB", rest.rss <= 45),
    ]
    for kind, name, unit, scale, least in [
        ("stream", "throughput through the VIP; plain: forwarded without NAT", "Gbit/s", 1e9, 0.95),
        ("connects", "connects a second through the VIP; plain: forwarded without NAT", "/s", 1, 0.8),
    ]:
        _say(name)
        pair = traffic(kind)
        shown = [
            f"{value / scale:.3g} {unit}" if scale > 1 else f"{value:.0f}{unit}" for value in (pair.kevip, pair.plain)
        ]
        rows.append((name, *shown, f"ratio {pair.ratio:.2f} ≥ {least}", pair.ratio >= least))  # type: ignore[arg-type]
    _say("ingress")
    rows += ingress.rows()
    seconds = limits()
    rows.append(
        ("10,000 networks and 5,000 ports in place, nftables", _seconds(seconds), "", "≤ 0.5 s", seconds <= 0.5)
    )
    for number, most in ((10_000, 0.5), (100_000, None)):
        _say(f"{number} connections handed on")
        moved = handed_on(number)
        told = f"{moved.connections} in {_seconds(moved.pull)}; {_seconds(moved.served)}; "
        told += f"{moved.failed} of {moved.tried}; {_seconds(moved.gap)}"
        bound = f"{number} in {_seconds(most)}; ; 0" if most else ""
        held = not most or (moved.connections >= number and moved.pull <= most and not moved.failed)
        rows.append(
            (
                f"{number:,} connections handed on in a planned stop; goodbye to served; failed; outage",
                told,
                "",
                bound,
                held,
            )
        )
    return rows


def scale() -> list[Row]:
    """Measure what rules cost the traffic, by dataplane and number of VIPs; return rows."""
    rows: list[Row] = []
    for backend in (Nftables(), Iptables("iptables-nft", "nft"), Iptables("iptables-legacy", "legacy")):
        for number in (1, 20, 100):
            _say(f"{number} VIPs, {backend.name}")
            stream, connects = (many_vips(kind, backend, number).ratio for kind in ("stream", "connects"))
            name = f"{number} VIP{'s' * (number > 1)} in {backend.name}: throughput, connects a second; ratios"
            rows.append((name, f"{stream:.2f}, {connects:.2f}", "1", "", True))
    return rows


def table(rows: list[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| | kevip | plain ucarp, shell hooks | must be | held |", "|---|---|---|---|---|"]
    lines += [
        f"| {what} | {ours} | {theirs} | {bound} | {_held(bound, held)} |" for what, ours, theirs, bound, held in rows
    ]
    return "\n".join(lines)


def _held(bound: str, held: bool) -> str:
    return ("yes" if held else "**no**") if bound else ""


def svg(outages: dict[str, tuple[float, float]]) -> str:
    """Return a bar chart of outages in seconds, kevip above plain."""
    scale = 420 / max(max(pair) for pair in outages.values())
    parts = []
    for number, (name, pair) in enumerate(outages.items()):
        top = 40 + number * 64
        parts.append(f'<text x="120" y="{top + 24}" text-anchor="end">{name}</text>')
        for row, (value, colour) in enumerate(zip(pair, ("#2a7de1", "#b0b7c3"), strict=True)):
            y, width = top + row * 22, max(value * scale, 2)
            parts.append(f'<rect x="130" y="{y}" width="{width:.1f}" height="18" fill="{colour}"/>')
            parts.append(f'<text x="{136 + width:.1f}" y="{y + 14}">{_seconds(value)}</text>')
    height = 40 + 64 * len(outages)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="640" height="{height}" fill="white"/>\n'
        '<rect x="130" y="12" width="12" height="12" fill="#2a7de1"/><text x="147" y="23">kevip</text>\n'
        '<rect x="200" y="12" width="12" height="12" fill="#b0b7c3"/>'
        '<text x="217" y="23">plain ucarp with shell hooks; median outage of the VIP</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _machine() -> str:
    linux, iptables = platform.release().partition("-")[0], run("iptables", "--version").strip()
    return f"Linux {linux},\n{iptables}, Python {platform.python_version()}, two cores, all hosts on one machine."


def main() -> None:
    """Run everything; exit status 1 if a bound is not held."""
    require_own_namespace()
    begin = time.monotonic()
    cost_rows = costs() + scale()
    move_rows, outages = moves()
    rows = move_rows + keepalived() + cost_rows
    text = (
        "# Benchmark\n\n"
        f"Written by `sudo script/bench` in {(time.monotonic() - begin) / 60:.0f} minutes: {ROUNDS} rounds of each "
        f"move, with three\nreplicas, a client that connects every 5 ms, and {CONNECTIONS} open connections on which "
        "the client speaks. A connect\nhas failed after 1.5 s; it is slow if it took over 0.5 s, when TCP had to "
        "send something again. Plain ucarp has the\nsame interval, a random skew from its whole range, and hooks "
        "in shell (`bench/plain/`). "
        f"{_machine()}\n\n{table(rows)}\n"
    )
    print(text)  # noqa: T201 - the result
    (HERE / "results.md").write_text(text)
    (HERE / "outage.svg").write_text(svg(outages))
    if not all(held for *_, held in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
