"""How a page of results looks: one style sheet for light and dark, paper and phone."""

from __future__ import annotations

_THEMES = {
    "light": {
        "ink": "#1b1f24",
        "soft": "#57606a",
        "rule": "#d8dde3",
        "ground": "#ffffff",
        "raised": "#f1f5fb",
        "link": "#0a5ea8",
        # Okabe and Ito's colours, which are told apart with any kind of colour vision; darkened for a white ground.
        "series": ("#0072b2", "#d55e00", "#008c66", "#b8528f", "#c98500", "#3a9bd0", "#5c6570"),
    },
    "dark": {
        "ink": "#e6e9ed",
        "soft": "#a3adb8",
        "rule": "#353c45",
        "ground": "#14171b",
        "raised": "#1e252e",
        "link": "#7ab8f5",
        "series": ("#4ea5e6", "#ff8a3d", "#2fc79b", "#e59ac8", "#f2bd45", "#9ad7f7", "#a9b1ba"),
    },
}


SERIES = len(_THEMES["light"]["series"])
"""How many colours there are for the lines of a plot: the CSS variables --series-0 and on."""


def _variables(theme: str) -> str:
    values = dict(_THEMES[theme])
    series = {f"series-{number}": color for number, color in enumerate(values.pop("series"))}
    return ":root{" + "".join(f"--{name}:{value};" for name, value in {**values, **series}.items()) + "}"


STYLE = (
    _variables("light")
    + f"@media (prefers-color-scheme:dark){{{_variables('dark')}}}"
    + """
:root{color-scheme:light dark;--letters:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.6 var(--letters);overflow-wrap:break-word}
main{max-width:60rem;margin:0 auto;padding:2rem 1.1rem 5rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 1rem}
h2{font-size:1.35rem;line-height:1.3;margin:3rem 0 .8rem;padding-top:.9rem;border-top:1px solid var(--rule)}
h3{font-size:1.1rem;margin:2rem 0 .5rem}
h4{font-size:1rem;margin:1.5rem 0 .4rem}
p,ul{margin:0 0 1rem;max-width:44rem}
a{color:var(--link)}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--raised);padding:.1em .3em;
border-radius:3px}
nav{font-size:.93rem;margin:0 0 1.5rem}
nav ol{margin:0;padding-left:1.4rem;columns:18rem}
figure{margin:1.8rem 0 2.2rem}
figcaption{font-size:.93rem;max-width:44rem;margin:0 0 .6rem}
.wide+figcaption{margin:.5rem 0 0}
.note{font-size:.8rem;color:var(--soft);margin:.3rem 0 0}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums;border-top:2px solid var(--ink);
border-bottom:2px solid var(--ink)}
thead th{border-bottom:1px solid var(--ink);font-weight:600;text-align:right;vertical-align:bottom;line-height:1.3}
th,td{padding:.35rem .8rem;text-align:right;vertical-align:top}
tbody th{font-weight:400;min-width:7.5rem}
th:first-child,td:first-child{text-align:left;padding-left:.4rem}
tbody tr+tr>*{border-top:1px solid var(--rule)}
tr.ours{background:var(--raised)}
tr.ours th{font-weight:600}
.number{white-space:nowrap}
.number b{font-weight:600}
.range{color:var(--soft);font-size:.88em}
.bar{display:block;width:100%;min-width:6.5rem;height:.6rem;margin-top:.15rem}
.bar line{vector-effect:non-scaling-stroke}
.track{stroke:var(--rule);stroke-width:1}
.zero{stroke:var(--soft);stroke-width:1}
.interval{stroke:var(--series-0);stroke-width:3;opacity:.55}
.mean{stroke:var(--series-0);stroke-width:2}
.plot svg{display:block;width:100%;max-width:40rem;min-width:22rem;height:auto}
details{font-size:.88rem;margin:.5rem 0 0}
summary{cursor:pointer;color:var(--soft)}
details table{margin-top:.5rem}
details td{white-space:nowrap}
table.images{border:0}
.images tbody tr>*{border:0}
.images th{vertical-align:middle;min-width:5rem;max-width:8rem;font-size:.85rem;line-height:1.3}
.images td{padding:.2rem;text-align:left}
.images tfoot td{font-size:.75rem;line-height:1.35;color:var(--soft);padding:.2rem .3rem .2rem .2rem}
.images img{display:block;image-rendering:pixelated}
@media (max-width:40rem){main{padding:1.2rem .9rem 3rem}h1{font-size:1.5rem}th,td{padding:.3rem .5rem}}
@media print{h2,figcaption{break-after:avoid}figure{break-inside:avoid}.wide{overflow:visible}}
"""
)
