"""Style sheet of report.html, light or dark as the reader's system is."""

STYLE = """
:root { color-scheme: light dark; --page: #fafaf8; --card: #ffffff; --ink: #1d2129; --soft: #666d78; --line: #e1e2de;
  --good: #23804d; --bad: #b3452f; --accent: #3565c4; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f25; --ink: #e6e8eb; --soft: #9aa1ac;
  --line: #30343c; --good: #62c58d; --bad: #ec8b76; --accent: #86abf5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 80px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 4px; }
h3 { font-size: 15px; margin: 22px 0 6px; }
p { margin: 4px 0 12px; max-width: 85ch; }
.soft, figcaption, .unit { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
nav { margin: 14px 0 0; font-size: 14px; display: flex; flex-wrap: wrap; gap: 4px 18px; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(196px, 1fr)); gap: 12px; margin: 20px 0 8px; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.tile b { display: block; font-size: 25px; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { display: block; }
.tile .name { font-size: 13px; font-weight: 600; overflow-wrap: anywhere; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(246px, 1fr)); gap: 14px; margin: 14px 0; }
figure { margin: 0; }
figure.card { padding: 8px 8px 6px; }
figure.card figcaption { padding: 6px 4px 2px; }
video, img { display: block; width: 100%; border-radius: 6px; image-rendering: pixelated; background: #8884; }
.panels { display: grid; gap: 14px; margin: 14px 0; }
.pair { display: flex; font-size: 12px; color: var(--soft); padding: 0 4px 4px; }
.pair span { flex: 1; }
figcaption b { color: var(--ink); font-size: 14px; }
.good { color: var(--good); } .bad { color: var(--bad); }
.scroll { overflow-x: auto; margin: 10px 0 16px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; min-width: 50%; }
th, td { text-align: right; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.long { white-space: normal; text-align: left; min-width: 34ch; max-width: 78ch; overflow-wrap: anywhere; }
th.long { text-align: left; }
th { font-weight: 600; color: var(--soft); font-size: 13px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr)); gap: 14px; margin: 14px 0; }
.plots > .card:only-child { max-width: 620px; }
.plots svg { width: 100%; height: auto; display: block; }
.plots svg text { font-family: system-ui, sans-serif; }
code { font: 12.5px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
details { margin: 14px 0; } summary { cursor: pointer; color: var(--accent); }
"""
