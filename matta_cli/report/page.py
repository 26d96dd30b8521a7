"""The report as one web page: plots, tables and code in a file that fetches nothing and works
without JavaScript.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any

from matta_cli.report.charts import (
    AXES,
    KINDS,
    ROLES,
    WORDS,
    badge,
    compared,
    curves,
    forest,
    importance,
    pareto,
    role_of,
    short,
    trace,
)
from matta_cli.report.numbers import count, finite, in_bytes, in_seconds, number, percent
from matta_cli.report.story import (
    Dict,
    alarms,
    by_size,
    columns_of,
    decimals_of,
    facts_of,
    findings,
    headline,
    headliner,
    interval_of,
    label_of,
    latency_of,
    loadable,
    metrics_of,
    models_of,
    name_of,
    notes_of,
    reading,
    rivals,
    sentence_of,
    shown,
    trained,
    value_of,
    when,
)


def _both(draw: Callable[[int, int], str], tall: int, narrow_tall: int) -> str:
    """Drawn twice, for a wide page and for a telephone: a scaled-down drawing would have unreadable
    text.
    """
    return f'<div class="wide">{draw(960, tall)}</div><div class="narrow">{draw(360, narrow_tall)}</div>'


def _tiles(report: Dict) -> str:
    pick = headliner(report)
    if pick is None:
        return ""
    metric, s, b = metrics_of(report)[0], pick.student, pick.base
    places = decimals_of(report, metric)
    base = f"base {shown(pick.theirs, places)}"
    tiles = [
        (label_of(metric), number(pick.ours.value, places), interval_of(pick.ours, places), base)
    ]
    for what, ours, theirs, unit in (
        ("parameters", s.get("parameters"), b.get("parameters"), count),
        ("MACs per example", s.get("macs"), b.get("macs"), count),
        ("latency, batch 1", latency_of(s, 1), latency_of(b, 1), in_seconds),
        ("checkpoint", s.get("bytes"), b.get("bytes"), in_bytes),
    ):
        if finite(ours) and finite(theirs) and theirs:
            tiles.append(
                (what, unit(ours), percent(ours / theirs) + " of the base", f"base {unit(theirs)}")
            )
    cells = "".join(
        f"<div><dt>{escape(what)}</dt><dd><b>{escape(big)}</b> <i>{escape(small)}</i><span>{escape(below)}</span></dd></div>"
        for what, big, small, below in tiles[:4]
    )
    return (
        f'<p class="over">{escape(name_of(s))}, against the base</p><dl class="tiles">{cells}</dl>'
    )


def _figure(report: Dict) -> str:
    if not metrics_of(report):
        return ""
    metric = metrics_of(report)[0]
    scored = [m for m in models_of(report) if value_of(m, metric)]
    axes = [axis for axis in AXES if any(finite(axis[2](m)) for m in scored)]
    if not axes:
        return ""
    # Radio buttons, a tick box and CSS switch the plots, so they work without JavaScript.
    one = " hidden" if len(axes) == 1 else ""
    controls = "".join(
        f'<input type="radio" name="axis" id="axis-{i}"{"" if i else " checked"}{one}>'
        f'<label for="axis-{i}"{one}>{axis[0]}</label>'
        for i, axis in enumerate(axes)
    )
    views = [("all", report)]
    rest = [m for m in models_of(report) if role_of(m) != "cut"]
    if any(m in rest for m in scored) and any(m not in rest for m in scored):
        # Untrained cuts are often so bad that they flatten everything else: the same plot without
        # them.
        views.append(("trained", {**report, "models": rest}))
        controls += '<input type="checkbox" id="cuts" checked><label for="cuts" class="box">untrained cuts</label>'
    plots = "".join(
        f'<div class="plot plot-{i} {view}">{_both(partial(pareto, part, axis), 460, 380)}</div>'
        for i, axis in enumerate(axes)
        for view, part in views
        if any(finite(axis[2](m)) and value_of(m, metric) for m in models_of(part))
    )
    roles = [role for role in ROLES if any(role_of(m) == role for m in scored)]
    key = "".join(f"<li>{badge(role)}{KINDS[role]}</li>" for role in roles)
    hint = "Bars are 95 % intervals" + ("; the band is the base's." if "base" in roles else ".")
    return (
        f'<section><h2>Quality against cost</h2><div class="switch">{controls}<div class="plots">{plots}</div></div>'
        f'<ul class="key">{key}<li class="hint">{hint}</li></ul></section>'
    )


def _table(report: Dict) -> str:
    columns = columns_of(report)
    if not columns:
        return ""
    # Quality and size come first here: on a telephone the first columns are those seen without
    # scrolling.
    first = [
        "model",
        f"{label_of(metrics_of(report)[0])} " if metrics_of(report) else "",
        "gain over plain",
        "verdict",
    ]
    columns.sort(
        key=lambda c: next(
            (i for i, start in enumerate(first) if start and c[0].startswith(start)),
            5 if c[0][-1:] in "↑↓" else 6 if c[0] == "parameters" else 7,
        )
    )
    base = next((m for m in by_size(models_of(report, "base"))), None)
    head = "".join(f'<th scope="col">{_small(header)}</th>' for header, _ in columns)
    body = []
    for at, model in enumerate(models_of(report)):
        role, cells = role_of(model), []
        for header, column in columns:
            main, detail = column[at]
            if header == "model":
                cells.append(
                    f'<th scope="row"><div>{badge(role)}<span>{escape(main)}</span></div></th>'
                )
                continue
            if (
                header == "parameters"
                and base
                and base["parameters"]
                and finite(model.get("parameters"))
            ):
                detail = percent(model["parameters"] / base["parameters"])
            small = f" <small>{escape(detail)}</small>" if detail else ""
            cells.append(f"<td>{escape(main)}{small}</td>")
        body.append(f'<tr class="{role}">{"".join(cells)}</tr>')
    share = " The share under each parameter count is of the base's." if base else ""
    return (
        f'<section><h2>Every model</h2><div class="scroll" tabindex="0" role="region" aria-label="Every model">'
        f"<table><thead><tr>{head}</tr></thead>"
        f'<tbody>{"".join(body)}</tbody></table></div><p class="hint">{escape(reading(report))}{share}</p></section>'
    )


def _verdicts(report: Dict) -> str:
    """Was it worth it? Each Student against plain distillation of its size."""
    found = rivals(report)
    if not found:
        return ""
    items = "".join(
        f'<li><span class="verdict {WORDS.get(pair.verdict, "unclear")}">{escape(pair.verdict)}</span> '
        f"<span>{escape(sentence_of(report, student, baseline, pair))} <small>It took {escape(trained(report, student)[0])} "
        f"(all Students), the baseline {escape(trained(report, baseline)[0])}.</small></span></li>"
        for student, baseline, pair in found
    )
    hint = (
        "Each bar is the 95 % interval of the difference on the same held-out examples, the band the margin of what may be "
        "lost. “Better” is said only where chance is ruled out over all sizes at once (Holm). One run was made of each, so "
        "the intervals say nothing about other seeds."
    )
    return (
        f"<section><h2>Was it worth it?</h2>{_both(partial(forest, report), 0, 0)}"
        f'<ul class="verdicts">{items}</ul><p class="hint">{hint}</p></section>'
    )


_BUDGETS: list[tuple[str, str, Callable[[Dict], Any], str]] = [
    ("parameters", "parameters", lambda m: m.get("parameters"), "count"),
    ("MACs", "MACs per example", lambda m: m.get("macs"), "count"),
    ("latency", "for one example", lambda m: latency_of(m, 1), "time"),
    ("memory", "of memory at most", lambda m: m.get("peak_memory"), "bytes"),
    ("checkpoint", "on disk", lambda m: m.get("bytes"), "bytes"),
]


def _budget(report: Dict) -> str:
    """A slider that names the best Student within a budget. It needs JavaScript, and is hidden
    without.
    """
    students = by_size(models_of(report, "student"))
    if not metrics_of(report) or metrics_of(report)[0].get("higher") is None or len(students) < 2:
        return ""
    metric = metrics_of(report)[0]
    places, verdicts = (
        decimals_of(report, metric),
        {name_of(s): pair.verdict for s, _, pair in rivals(report)},
    )
    rows: list[dict[str, Any]] = [
        {
            "name": name_of(s),
            "quality": v.value,
            "shown": shown(v, places),
            "verdict": verdicts.get(name_of(s), ""),
            "costs": [read(s) if finite(read(s)) else None for _, _, read, _ in _BUDGETS],
        }
        for s in students
        if (v := value_of(s, metric))
    ]
    costs = [{row["costs"][i] for row in rows} - {None} for i in range(len(_BUDGETS))]
    kinds = [
        (i, label, unit) for i, (label, _, _, unit) in enumerate(_BUDGETS) if len(costs[i]) > 1
    ]
    if len(rows) < 2 or not kinds:
        return ""
    told = {
        "label": label_of(metric),
        "higher": bool(metric.get("higher")),
        "rows": rows,
        "units": [k[2] for k in kinds],
        "at": [k[0] for k in kinds],
        "whats": [_BUDGETS[k[0]][1] for k in kinds],
    }
    choices = "".join(
        f'<input type="radio" name="budget" id="budget-{n}" value="{n}"{"" if n else " checked"}>'
        f'<label for="budget-{n}">{label}</label>'
        for n, (_, label, _) in enumerate(kinds)
    )
    return (
        f'<section id="budget" hidden data-told="{escape(json.dumps(told))}"><h2>Which Student for my budget?</h2>'
        f'<div class="switch">{choices}</div><label class="slide"><span id="limit"></span>'
        '<input type="range" id="slider" min="0" max="1000" value="600" aria-describedby="answer"></label>'
        '<p id="answer" role="status"></p></section>'
    )


_STRIPS = 24  # axes that are drawn


def _axes(report: Dict) -> str:
    """What nests, and how important its units were found to be."""
    axes = [
        a
        for a in report.get("axes") or []
        if finite(a.get("base")) and finite(a.get("ta")) and a["base"]
    ]
    if not axes:
        return ""
    drawn = [a for a in axes if a.get("importance")][:_STRIPS] or axes[:_STRIPS]
    strips = "".join(_both(partial(importance, axis), 0, 0) for axis in drawn)
    more = (
        f" {len(axes) - len(drawn)} more axes are in report.json." if len(axes) > len(drawn) else ""
    )
    grown = " Grey is what the TA has grown." if any(a["ta"] > a["base"] for a in drawn) else ""
    hint = "The units of each axis, the most important first, as high as they are important; a line is where a Student ends."
    strips = f'<div class="strips">{strips}</div>'
    return f'<section><h2>Axes and importance</h2>{strips}<p class="hint">{hint}{grown}{more}</p></section>'


def _small(header: str) -> str:
    """'latency b8 median (p95)' as two lines."""
    if found := re.fullmatch(r"(latency b\d+) (median \(p95\))", header):
        return f"{found[1].replace(' ', '&nbsp;')} <small>{found[2]}</small>"
    # neither an arrow alone on a line, nor a bracket over two
    return re.sub(r"(\([^()]*\)|\S+) [↑↓]$", r'<span class="whole">\g<0></span>', escape(header))


def _items(texts: list[str]) -> str:
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def html(report: Dict) -> str:
    title = headline(report)
    over = " · ".join(
        str(part)
        for part in ("matta", report.get("task"), report.get("adapter"), when(report)[:10])
        if part
    )
    parts = [f'<header><p class="over">{escape(over)}</p><h1>{escape(title)}</h1>{_tiles(report)}']
    if found := findings(report):
        parts.append(f'<ul class="found">{_items(found)}</ul>')
    parts.append("</header>")
    if warned := alarms(report):
        parts.append(
            f'<section class="alarm" role="note"><h2>Look at this first</h2><ul>{_items(warned)}</ul></section>'
        )
    parts += [_verdicts(report), _figure(report), _budget(report), _table(report)]
    if curves(report, 960, 320):
        beside = ""
        for name, drawn in compared(report):
            wide, narrow = (
                trace(report, drawn, width, 260, f"of {short(name)}") for width in (460, 360)
            )
            beside += f'<article><div class="wide">{wide}</div><div class="narrow">{narrow}</div></article>'
        beside = f'<div class="cards beside">{beside}</div>' if beside else ""
        parts.append(
            f"<section><h2>Training</h2>{_both(partial(curves, report), 320, 300)}{beside}</section>"
        )
    parts.append(_axes(report))
    if loading := loadable(report):
        cards = []
        for model, known, lines in loading:
            size = (
                [f"{count(model['parameters'])} parameters"]
                if finite(model.get("parameters"))
                else []
            )
            cards.append(
                f"<article><h3>{escape(name_of(model))}</h3><p>{escape(' · '.join(size + known))}</p>"
                f'<div class="code"><pre tabindex="0"><code>{escape(lines)}</code></pre></div></article>'
            )
        parts.append(
            f'<section><h2>Load one in three lines</h2><div class="cards">{"".join(cards)}</div></section>'
        )
    if notes := notes_of(report):
        parts.append(f"<section><h2>Notes</h2><ul>{_items(notes)}</ul></section>")
    made = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>"
        for what, value in facts_of(report)
    )
    more = ""
    if recipe := str(report.get("recipe") or ""):
        more = f"<summary>The recipe, every setting resolved</summary><pre><code>{escape(recipe)}</code></pre>"
        more = f"<details>{more}</details>"
    if made or more:
        parts.append(
            f'<section><h2>How it was made</h2><dl class="facts">{made}</dl>{more}</section>'
        )
    # nothing is ever fetched
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n</main><script>{_JS}</script></body></html>\n"
    )


# Okabe and Ito's colours, told apart with any colour vision; lighter ones of the same hues on a
# dark page.
_CSS = """
:root{--bg:#fcfcfa;--card:#fff;--ink:#1b1f24;--soft:#5c646e;--rule:#dfe2e5;--grid:#eceef0;--student:#0072b2;--cut:#7a828c;--plain:#8a4f9e;--alone:#8c6d00;--scratch:#b03a5b;
  --base:#1b1f24;--ta:#c4500a;--teacher:#00795a;--better:#00795a;--worse:#b3261e;--warn:#fff4e0;--warn-rule:#e69f00;--code:#f3f4f5}
@media(prefers-color-scheme:dark){
:root{--bg:#14171b;--card:#1b1f25;--ink:#e8eaed;--soft:#9fa8b3;--rule:#343a42;--grid:#262b32;--student:#56b4e9;
  --plain:#c89be0;--alone:#dcbc4a;--scratch:#f08aa8;--cut:#929ba6;--base:#f0f2f4;--ta:#f08c4a;--teacher:#3cc79d;--better:#3cc79d;--worse:#ff8a80;--warn:#2b2415;--warn-rule:#e69f00;--code:#1f242b}
}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;font-variant-numeric:tabular-nums;
  -webkit-text-size-adjust:100%}main{max-width:1180px;margin:0 auto;padding:44px 28px 72px}
h1{font-size:clamp(1.45rem,1.05rem + 1.9vw,2.25rem);line-height:1.22;letter-spacing:-.015em;margin:.15em 0 .8em;
  max-width:32em;text-wrap:balance;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .7em}h3{font-size:1rem;margin:0;overflow-wrap:anywhere}section{margin-top:52px}
p{margin:.4em 0}.over{color:var(--soft);font-size:.82rem;margin:0 0 .5em;overflow-wrap:anywhere}
.hint,.key{color:var(--soft);font-size:.84rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:1px;margin:0;background:var(--rule);
  border:1px solid var(--rule);border-radius:10px;overflow:hidden}.tiles div{background:var(--card);padding:14px 16px}
.tiles dt{color:var(--soft);font-size:.84rem}.tiles dd{margin:0}
.tiles b{font-size:1.5rem;letter-spacing:-.01em;display:block}.tiles i{font-style:normal;font-size:.84rem}
.tiles span{display:block;color:var(--soft);font-size:.84rem}.found{margin:22px 0 0;padding-left:1.15em;max-width:52em}
.found li{margin:.25em 0}
.alarm{background:var(--warn);border-left:4px solid var(--warn-rule);border-radius:4px;padding:16px 20px;margin-top:32px}
.alarm h2{margin-bottom:.3em}.alarm ul{margin:0;padding-left:1.15em}li{overflow-wrap:anywhere}
.switch input{position:absolute;opacity:0;pointer-events:none}
.switch label{display:inline-block;padding:4px 14px;border:1px solid var(--rule);margin-right:-1px;font-size:.88rem;
  cursor:pointer;color:var(--soft)}.switch label:first-of-type{border-radius:7px 0 0 7px}
.switch label:nth-last-child(1 of label:not(.box)){border-radius:0 7px 7px 0}
.switch .box{border-color:transparent!important;background:none!important;color:var(--soft)!important}
.switch .box::before{content:"☐ "}.switch input:checked+.box::before{content:"☑ "}
#cuts:checked~.plots .trained,#cuts:not(:checked)~.plots .all{display:none!important}
.switch input:checked+label{background:var(--ink);color:var(--bg);border-color:var(--ink)}
.switch input:focus-visible+label{outline:2px solid var(--student);outline-offset:2px}.plots{margin-top:16px}
.plot{display:none}#axis-0:checked~.plots .plot-0,#axis-1:checked~.plots .plot-1,#axis-2:checked~.plots .plot-2{display:block}
.narrow{display:none}.wide svg,.narrow svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:12px;fill:var(--soft)}svg .title{fill:var(--ink);font-weight:600}
svg .name{fill:var(--ink);font-weight:600;paint-order:stroke;stroke:var(--bg);stroke-width:4px;stroke-linejoin:round}
.grid{stroke:var(--grid)}.axis{stroke:var(--soft)}.lead{stroke:var(--soft);stroke-width:.8;fill:none}
.band{fill:var(--base);opacity:.08}.line,.curve{fill:none;stroke-width:2;stroke-linejoin:round}
.line.student,.curve.student{stroke:var(--student)}.line.cut{stroke:var(--cut);stroke-dasharray:5 5}
.plain.line,.plain.curve{stroke:var(--plain)}.alone.line,.alone.curve{stroke:var(--alone)}
.scratch.line,.scratch.curve{stroke:var(--scratch)}.line.plain,.line.alone,.line.scratch{stroke-width:1.2}
.mark.plain,.dot.plain{fill:var(--plain)}.mark.alone,.dot.alone{fill:var(--alone)}
.mark.scratch,.dot.scratch{fill:var(--scratch)}.plain .bar{stroke:var(--plain)}.alone .bar{stroke:var(--alone)}
.scratch .bar{stroke:var(--scratch)}.plain .bar,.alone .bar,.scratch .bar,.cut .bar{stroke-width:1}
.chosen .mark{stroke:var(--ink);stroke-width:3}
.gain.better .mark,.gain.better .bar{fill:var(--better);stroke:var(--better)}
.gain.worse .mark,.gain.worse .bar{fill:var(--worse);stroke:var(--worse)}
.gain.level .mark,.gain.level .bar{fill:var(--student);stroke:var(--student)}
.gain.unclear .mark,.gain.unclear .bar{fill:var(--soft);stroke:var(--soft)}.gain .bar{stroke-width:2.2}
.verdicts{list-style:none;padding:0;margin:18px 0 0;display:grid;gap:12px}
.verdicts li{display:grid;grid-template-columns:9.5em 1fr;gap:4px 14px;align-items:baseline;max-width:62em}
.verdicts small{color:var(--soft);font-size:.84rem}
.verdict{font-size:.84rem;font-weight:600;border:1px solid currentColor;border-radius:99px;padding:1px 11px;
  justify-self:start;white-space:nowrap}.verdict.better{color:var(--better)}.verdict.worse{color:var(--worse)}
.verdict.level{color:var(--student)}.verdict.unclear{color:var(--soft)}
.slide{display:block;margin:16px 0 4px;max-width:560px}.slide span{display:block;font-size:.88rem;color:var(--soft)}
.slide input{width:100%;margin:8px 0 0;accent-color:var(--student)}#answer{font-weight:600;max-width:52em;min-height:3.1em}
.strips{display:grid;gap:4px}.new{fill:var(--grid)}.unit{fill:var(--student)}.end{stroke:var(--ink);stroke-width:1.5}
.beside{margin-top:24px}
.curve.ta{stroke:var(--ta);stroke-dasharray:7 3}.mark{stroke:var(--bg);stroke-width:1.5}
.mark.student,.dot.student{fill:var(--student)}.mark.base{fill:var(--base)}.mark.ta,.dot.ta{fill:var(--ta)}
.mark.teacher{fill:var(--teacher)}.mark.cut{fill:var(--bg);stroke:var(--cut);stroke-width:2}
.bar{stroke:var(--student);stroke-width:1.5;fill:none}.cut .bar{stroke:var(--cut)}.base .bar{stroke:var(--base)}
.ta .bar{stroke:var(--ta)}.teacher .bar{stroke:var(--teacher)}.hit{fill:transparent}.pt{outline:none}
.pt.over .mark,.pt:focus .mark{stroke:var(--ink);stroke-width:2.5}
.key{list-style:none;display:flex;flex-wrap:wrap;gap:4px 20px;padding:0;margin:14px 0 0}
.key li{display:flex;align-items:center;gap:6px}.key svg,th svg{width:16px;height:16px;flex:none}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:10px;background:var(--card)}
.whole{white-space:nowrap}table{border-collapse:collapse;width:100%;font-size:.88rem}
th,td{padding:9px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule);vertical-align:top}
tbody tr:last-child>*{border-bottom:0}thead th{color:var(--soft);font-weight:600;white-space:normal;vertical-align:bottom}
th:first-child{text-align:left;position:sticky;left:0;background:var(--card)}
th[scope=row] div{display:flex;gap:8px;align-items:center}
th[scope=row] span{white-space:normal;overflow-wrap:anywhere;min-width:12em;max-width:15em}th svg .mark{stroke:var(--card)}
th svg .mark.cut{stroke:var(--cut);fill:var(--card)}
td small,thead small{display:block;color:var(--soft);font-size:.92em;font-weight:400}tr.cut td,tr.cut th{color:var(--soft)}
tr.cut th{font-weight:400}.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:26px 24px}
.cards article{min-width:0}.cards p{color:var(--soft);font-size:.84rem;margin:0 0 .5em}
pre{background:var(--code);border-radius:8px;padding:12px 14px;margin:0;overflow-x:auto;
  font:.82rem/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
.code{position:relative}.code pre{white-space:pre-wrap;overflow-wrap:anywhere}
.code button{position:absolute;top:7px;right:7px;font:inherit;font-size:.75rem;padding:1px 9px;
  border:1px solid var(--rule);border-radius:6px;background:var(--card);color:var(--soft);cursor:pointer}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:10px 28px;margin:0 0 18px}
.facts dt{color:var(--soft);font-size:.84rem}.facts dd{margin:0;overflow-wrap:anywhere}
summary{cursor:pointer;margin-bottom:10px}
#tip{position:fixed;z-index:9;pointer-events:none;background:var(--ink);color:var(--bg);padding:7px 11px;
  border-radius:7px;font-size:.82rem;line-height:1.45;white-space:pre-line;max-width:min(300px,90vw);
  overflow-wrap:anywhere}
@media(max-width:680px){
main{padding:26px 16px 48px}section{margin-top:40px}.wide{display:none}.narrow{display:block}
.tiles{grid-template-columns:1fr 1fr}.tiles div{padding:11px 10px}.tiles b{font-size:1.25rem}.tiles span{font-size:.78rem}
.verdicts li{grid-template-columns:1fr}
.switch .box{padding-left:0}th,td{padding:8px 9px}
th[scope=row] span{min-width:6.5em;max-width:7em}
}
@media print{
.switch label,.code button{display:none}section{break-inside:avoid}
}
"""


# Tooltips, copy buttons and the slider only: without it the page has native tooltips, and the axis
# still switches.
_JS = """
(function(){
var tip=document.createElement('div');tip.id='tip';tip.hidden=true;document.body.appendChild(tip);
var over=null;
function hide(){tip.hidden=true;if(over)over.classList.remove('over');over=null}
function show(el){if(el===over)return;hide();over=el;el.classList.add('over');tip.textContent=el.dataset.tip;tip.hidden=false;
 var r=el.querySelector('.hit').getBoundingClientRect(),w=tip.offsetWidth,h=tip.offsetHeight;
 tip.style.left=Math.max(6,Math.min(innerWidth-w-6,r.left+r.width/2-w/2))+'px';
 tip.style.top=(r.top-h-4>0?r.top-h-4:r.bottom+4)+'px'}
document.querySelectorAll('svg').forEach(function(svg){
 var points=[].slice.call(svg.querySelectorAll('[data-tip]'));
 points.forEach(function(el){
  var t=el.querySelector('title');if(t)t.remove();
  el.addEventListener('focus',function(){show(el)});el.addEventListener('blur',hide)});
 function near(event){ // points lie close together: the nearest one is meant, not the one drawn last
  var best=null,least=24;
  points.forEach(function(el){
   var r=el.querySelector('.hit').getBoundingClientRect(),
    far=Math.hypot(event.clientX-r.left-r.width/2,event.clientY-r.top-r.height/2);
   if(far<=least){best=el;least=far}});
  if(best)show(best);else hide()}
 if(!points.length)return;
 svg.addEventListener('pointermove',near);svg.addEventListener('pointerdown',near);svg.addEventListener('pointerleave',hide)});
addEventListener('scroll',hide,{passive:true});
document.querySelectorAll('.code').forEach(function(box){
 var b=document.createElement('button');b.type='button';b.textContent='copy';
 b.addEventListener('click',function(){var pre=box.querySelector('pre');
  function mark(){getSelection().selectAllChildren(pre);b.textContent='selected'}
  if(!navigator.clipboard)mark();
  else navigator.clipboard.writeText(pre.textContent).then(function(){b.textContent='copied'},mark);
  setTimeout(function(){b.textContent='copy'},1500)});
 box.appendChild(b)});
var box=document.getElementById('budget');
if(!box)return;
box.hidden=false;
var told=JSON.parse(box.dataset.told),slider=document.getElementById('slider'),limit=document.getElementById('limit'),
 answer=document.getElementById('answer');
function text(value,unit){
 var names=unit==='time'?['s','ms','µs','ns']:unit==='bytes'?['TB','GB','MB','kB','B']:['T','G','M','k',''];
 var size=unit==='time'?1:1e12,i=0;
 while(i<names.length-1&&value<size){size/=1000;i++}
 return (Number((value/size).toPrecision(3))+' '+names[i]).trim()}
function choose(){
 var n=+box.querySelector('input[name=budget]:checked').value,at=told.at[n],unit=told.units[n];
 var rows=told.rows.filter(function(r){return r.costs[at]!==null}).sort(function(a,b){return a.costs[at]-b.costs[at]});
 var low=rows[0].costs[at]*.8,high=rows[rows.length-1].costs[at]*1.1,budget=low*Math.pow(high/low,slider.value/1000),best=null;
 rows.forEach(function(r){if(r.costs[at]<=budget&&(!best||(told.higher?r.quality>best.quality:r.quality<best.quality)))best=r});
 limit.textContent='Budget: '+text(budget,unit)+' '+told.whats[n];
 answer.textContent=best?best.name+': '+told.label+' '+best.shown+', with '+text(best.costs[at],unit)+
  (best.verdict?'. Against plain distillation of its size: '+best.verdict:'')+'.':
  'None: the least that a Student needs is '+text(rows[0].costs[at],unit)+', '+rows[0].name+'.';
 document.querySelectorAll('[data-name]').forEach(function(el){
  el.classList.toggle('chosen',!!best&&el.dataset.name===best.name)})}
slider.addEventListener('input',choose);
box.querySelectorAll('input[name=budget]').forEach(function(el){el.addEventListener('change',choose)});
choose();
})();
"""
