"""The frame of every page and its style sheet: system fonts, light and dark, phone to paper."""

from __future__ import annotations

from collections.abc import Sequence

# Nothing may be loaded or run, whatever a class name or a path contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf7;--card:#fff;--ink:#1f2623;--quiet:#66706b;--rule:#e3e2dc;
--good:38 103 75;--bad:184 82 38;--good-ink:#26674b;--bad-ink:#a4451c;--wash:#f1f5f1;--alarm:#fdf3ea;--deep:#fff}
@media (prefers-color-scheme:dark){:root{--paper:#131716;--card:#1b211f;--ink:#e5e9e6;--quiet:#97a29c;--rule:#2d3532;
--good:112 190 152;--bad:232 142 98;--good-ink:#8fd3b0;--bad-ink:#f0a37c;--wash:#1f2926;--alarm:#2c221b;--deep:#10201a}}
@media print{:root{color-scheme:light;--paper:#fff;--card:#fff;--ink:#111;--quiet:#555;--rule:#ccc;--good:38 103 75;
--bad:184 82 38;--good-ink:#26674b;--bad-ink:#a4451c;--wash:#f4f4f4;--alarm:#fdf3ea;--deep:#fff}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans",sans-serif;overflow-wrap:break-word}
main{max-width:62rem;margin:0 auto;padding:3rem 1.5rem 4rem}
h1,h2{font-family:ui-serif,"Iowan Old Style","Palatino Linotype",Georgia,"Noto Serif",serif;font-weight:600;
line-height:1.2;text-wrap:balance}
h1{font-size:clamp(1.8rem,5vw,2.6rem);margin:.2rem 0 .6rem;letter-spacing:-.01em}
h2{font-size:1.5rem;margin:0 0 .5rem}
h3{font-size:1rem;margin:1.6rem 0 .5rem}
p{margin:.4rem 0;max-width:44rem}
section{border-top:1px solid var(--rule);margin-top:3rem;padding-top:2rem}
.quiet,figcaption,.kicker{color:var(--quiet);font-size:.875rem}
.kicker{letter-spacing:.04em}
.lead{font-size:1.125rem;margin-bottom:1.6rem}
a{color:var(--good-ink)}
:focus-visible{outline:2px solid var(--good-ink);outline-offset:2px}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin-top:2rem;font-size:.9rem}
nav a{text-decoration:none;padding:.2rem 0}nav a:hover{text-decoration:underline}
.verdict{display:grid;grid-template-columns:minmax(0,21rem) minmax(0,1fr);gap:1rem 2.5rem;align-items:center;
background:var(--card);border:1px solid var(--rule);border-radius:14px;padding:1.6rem 1.8rem}
.verdict .big{font-size:clamp(3rem,9vw,4.2rem);font-weight:650;line-height:1;letter-spacing:-.03em;
font-variant-numeric:tabular-nums;color:var(--good-ink);margin:.2rem 0 .8rem}
.verdict p{font-size:1.06rem}
.facts{display:grid;grid-template-columns:minmax(10rem,max-content) 1fr;gap:.6rem 2rem;margin:1rem 0 0}
.facts dt{color:var(--quiet);font-size:.8rem}
.facts dd{margin:0;font-weight:600;font-variant-numeric:tabular-nums}
.caution{background:var(--alarm);border-left:3px solid rgb(var(--bad));border-radius:6px;padding:.7rem 1rem;
margin:1rem 0 0;max-width:none}
.problems{display:grid;grid-template-columns:repeat(auto-fit,minmax(16rem,1fr));gap:1rem;list-style:none;padding:0;
margin:.8rem 0 0}
.problems li{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:1.1rem 1.2rem;display:flex;
flex-direction:column;min-width:0}
.problems h3{margin:0 0 .3rem}.problems p{font-size:.94rem;margin-bottom:.9rem}
code{font:.85rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Noto Sans Mono",monospace;background:var(--wash);
border-radius:6px;padding:.15rem .4rem;overflow-wrap:anywhere}
.problems code,.commands code{display:block;padding:.45rem .7rem;user-select:all}.problems code{margin-top:auto}
.commands{list-style:none;padding:0;display:grid;gap:.5rem}
.scroll{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.4rem .9rem .4rem 0;border-bottom:1px solid var(--rule);vertical-align:top}
thead th{color:var(--quiet);font-weight:500;font-size:.8rem;vertical-align:bottom;white-space:nowrap}
tbody th{font-weight:550;max-width:18rem;min-width:6rem}
.numbers td,.numbers thead th:not(:first-child){text-align:right}
td.bar{min-width:6.5rem;text-align:left!important}.classes thead th:not(:first-child){text-align:left}
td.bar .n{display:inline-block;min-width:3.2em}
td.bar i{display:block;height:4px;border-radius:2px;background:var(--rule);margin-top:3px;overflow:hidden}
td.bar b{display:block;height:100%;background:rgb(var(--good))}
.confusion{width:auto;border-collapse:separate;border-spacing:2px;font-size:.82rem}
.confusion th,.confusion td{border:0;padding:.3rem .45rem}
.confusion tbody td{text-align:center;vertical-align:middle;min-width:2.6rem;border-radius:4px}
.confusion.dense{font-size:.72rem;border-spacing:1px}.confusion.dense tbody td{min-width:1.5rem;padding:.2rem .1rem}
.confusion.dense th{padding:.2rem}
.confusion tbody th{text-align:right;font-weight:500;max-width:11rem;padding-right:.6rem;position:sticky;left:0;
background:var(--paper)}
.confusion thead th{text-align:center;color:var(--ink)}
.confusion.upright thead th span{writing-mode:vertical-rl;transform:rotate(180deg);
max-height:9rem;overflow:hidden;display:inline-block;
white-space:nowrap;text-overflow:ellipsis}
.confusion .corner{color:var(--quiet);font-size:.75rem;text-align:right;vertical-align:bottom;white-space:nowrap}
.zero{color:var(--quiet);opacity:.45}
.confusion .good{background:rgb(var(--good)/var(--i))}.confusion .bad{background:rgb(var(--bad)/var(--i))}
.confusion .deep{color:var(--deep);font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.5rem 2rem}
figure{margin:0}.chart figcaption{display:flex;gap:1.2rem;align-items:baseline;flex-wrap:wrap}
.chart figcaption b{color:var(--ink);font-weight:600;font-size:.95rem}
svg{display:block;width:100%;height:auto}svg text{fill:var(--quiet);font-size:12px}
.grid{stroke:var(--rule)}.axis{stroke:var(--rule);stroke-width:6;stroke-linecap:round}
.band{fill:rgb(var(--good)/.35)}.dot{fill:rgb(var(--good));stroke:var(--card);stroke-width:2}
polyline{fill:none;stroke-width:2;stroke-linejoin:round}
.s0{stroke:rgb(var(--bad));stroke-dasharray:5 4}.s1{stroke:rgb(var(--good));stroke-width:2.5}
.s0.point{fill:rgb(var(--bad));stroke:none}.s1.point{fill:rgb(var(--good));stroke:none}
line.best{stroke:var(--quiet);stroke-dasharray:2 3}
.key::before{content:"";display:inline-block;width:1.4em;margin-right:.4em;vertical-align:middle;border-top:2px dashed}
.k0::before{border-color:rgb(var(--bad))}.k1::before{border-top:3px solid rgb(var(--good))}
.t-best{stroke:rgb(var(--good));stroke-width:3}.t-whole{stroke:rgb(var(--good)/.35);stroke-width:1.5}
.t-pruned{stroke:rgb(var(--bad)/.45);stroke-width:1.5;stroke-dasharray:4 3}
.t-best::before{border-top:3px solid rgb(var(--good))}.t-whole::before{border-top:2px solid rgb(var(--good)/.35)}
.t-pruned::before{border-color:rgb(var(--bad)/.45)}.t-best.point{fill:rgb(var(--good))}
.t-whole.point{fill:rgb(var(--good)/.35)}.t-pruned.point{fill:rgb(var(--bad)/.45)}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(7.5rem,1fr));gap:1rem;list-style:none;padding:0;
margin:.5rem 0}
.pictures img,.pictures .none{display:block;width:100%;aspect-ratio:1;object-fit:contain;background:var(--wash);
border-radius:8px;border:1px solid var(--rule)}
.pictures p{font-size:.82rem;line-height:1.35;margin:.35rem 0 0}.pictures b{font-weight:600}
.pictures .wrong b{color:var(--bad-ink)}.pictures .right b{color:var(--good-ink)}
.pairs{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:0 2.5rem}
details summary{cursor:pointer;color:var(--good-ink);padding:.3rem 0}
footer{margin-top:3rem;border-top:1px solid var(--rule);padding-top:1rem}
@media (max-width:44rem){main{padding:1.6rem 1rem 3rem}.verdict{grid-template-columns:minmax(0,1fr);padding:1.2rem}
.pictures{grid-template-columns:repeat(3,minmax(0,1fr));gap:.7rem}svg text{font-size:14px}td.bar,th{min-width:3.6rem}
th,td{padding-right:.6rem}
.confusion th{min-width:0}
section{margin-top:2.2rem;padding-top:1.5rem}}
@media print{main{max-width:none;padding:0}body{font-size:10pt}nav{display:none}section,li,tr,figure,.verdict,
.confusion{break-inside:avoid}section{break-inside:auto}.scroll{overflow:visible}h2,h3{break-after:avoid}
.charts{grid-template-columns:1fr 1fr}.problems{grid-template-columns:repeat(3,1fr)}
.pictures{grid-template-columns:repeat(8,1fr)}section{margin-top:1.2rem;
padding-top:1rem}.problems code{font-size:.75rem}}
"""


def render_document(title: str, first_screen: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return an HTML page that loads nothing: a first screen, then titled sections, the empty ones left out.

    All arguments are HTML, escaped by whoever made them.
    """
    there = [(name, body) for name, body in sections if body]
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name, _ in there)
    body = "".join(f'<section id="{_anchor(name)}"><h2>{name}</h2>{inner}</section>' for name, inner in there)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>"
        f'{first_screen}<nav aria-label="Sections">{links}</nav>{body}'
        '<footer class="quiet">Made by linnaeus. This page loads nothing and runs no script.</footer>'
        "</main></body></html>\n"
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
