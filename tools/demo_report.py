"""The demo's page: loss curves, the table and what a few queries selected, in one HTML file without external resources."""
import html
import json
import math
import pathlib

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1f24; --soft: #59636e; --line: #d1d9e0; --panel: #f6f8fa;
  --a: #0b62c4; --b: #b4440b; --c: #1a7f37; --d: #8250df; --mark: 11, 98, 196; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1318; --text: #e6edf3; --soft: #9aa5b1; --line: #333c46; --panel: #171d24;
  --a: #5aa9ff; --b: #ff9a5c; --c: #4ccf72; --d: #c4a2ff; --mark: 90, 169, 255; } }
body { background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 66rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } p, li { max-width: 46rem; } .soft { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; vertical-align: bottom; white-space: normal; }
tr.strong td { font-weight: 650; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .8rem; overflow-x: auto; font-size: .85rem; line-height: 1.45; }
pre.tokens { white-space: pre-wrap; word-break: break-word; max-height: 34rem; overflow-y: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .9rem; margin-bottom: .2rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
.kept { border-bottom: 2px dotted var(--soft); } .query { outline: 2px solid var(--b); border-radius: 2px; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 .8em; }
"""
COLOURS = ["var(--a)", "var(--b)", "var(--c)", "var(--d)"]


def read_metrics(folder):
    path = pathlib.Path(folder) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.exists() else []


def round_steps(low, high):
    """About four round numbers in [low, high]."""
    span = max(high - low, 1e-9)
    step = 10 ** math.floor(math.log10(span))
    step = next(step * f for f in (0.1, 0.2, 0.25, 0.5, 1, 2) if span / (step * f) <= 5)
    first = math.ceil(low / step)
    return [round(first * step + i * step, 10) for i in range(int((high - first * step) / step + 1e-9) + 1)]


def line_chart(caption, series, x_label, low=None):
    """`series`: [(name, [(x, y), ...])]; an SVG figure with axes and a legend."""
    series = [(name, points) for name, points in series if points]
    if not series:
        return ""
    width, height, left, right, top, bottom = 420, 250, 44, 10, 10, 36
    xs = [x for _, points in series for x, _ in points]
    ys = sorted(y for _, points in series for _, y in points)
    x0, x1 = min(xs), max(max(xs), min(xs) + 1)
    y0, y1 = (min(ys) if low is None else low), ys[int(0.995 * (len(ys) - 1))]
    y1 = max(y1, y0 + 1e-3)

    def at(x, y):
        return (left + (x - x0) / (x1 - x0) * (width - left - right), top + (y1 - min(y, y1)) / (y1 - y0) * (height - top - bottom))

    parts = []
    for tick in round_steps(y0, y1):
        y = at(x0, tick)[1]
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
                     f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in round_steps(x0, x1):
        x = at(tick, y0)[0]
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 15}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{(left + width) / 2}" y="{height - 4}" text-anchor="middle">{html.escape(x_label)}</text>')
    for (name, points), colour in zip(series, COLOURS):
        path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    legend = "".join(f'<span class="key" style="background:{colour}"></span>{html.escape(name)}'
                     for (name, _), colour in zip(series, COLOURS)) if len(series) > 1 else ""
    return (f'<figure><figcaption>{html.escape(caption)} {legend}</figcaption>'
            f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg></figure>')


def number(value, digits):
    return "–" if value is None else f"{value:.{digits}f}"


COLUMNS = [("perplexity", "perplexity", 2), ("mean_k", "keys a query", 0), ("recall", "recall of the best keys", 3),
           ("captured_mass", "attention captured", 3), ("captured_mass_without_first", "… without token 0", 3),
           ("first_token_attention", "first-token attention", 3)]


def table(rows):
    head = "<tr><th></th>" + "".join(f"<th>{html.escape(title)}</th>" for _, title, _ in COLUMNS) + "</tr>"
    body = "".join(
        f'<tr{" class=strong" if row.get("strong") else ""}><td>{html.escape(row["title"])}</td>'
        + "".join(f'<td>{number(row.get(key), digits)}</td>' for key, _, digits in COLUMNS) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def strip(picture, keep_first, keep_recent):
    """One query in one layer: dense attention above, what was selected below, along the context."""
    length, width, height = picture["query"] + 1, 1000, 46
    peak = max(max(picture["attention"]), 1e-9)
    bar = width / length
    parts = []
    for position, attention in enumerate(picture["attention"]):
        size = 28 * math.sqrt(attention / peak)
        if size >= 0.5:
            parts.append(f'<rect x="{position * bar:.1f}" y="{28 - size:.1f}" width="{max(bar, .9):.2f}" height="{size:.1f}" fill="var(--soft)"/>')
    for position in picture["selected"]:
        kept = position < keep_first or position > picture["query"] - keep_recent
        parts.append(f'<rect x="{position * bar:.1f}" y="32" width="{max(bar, 1.2):.2f}" height="12" '
                     f'fill="{"var(--line)" if kept else "var(--a)"}"/>')
    return f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" style="height:46px" role="img">{"".join(parts)}</svg>'


def token_view(pictures, tokens, texts, keep_first, keep_recent):
    """The context of one query as text; the shade of a token says how many layers' indexers chose it."""
    query = pictures[0]["query"]
    chosen = [0] * (query + 1)
    for picture in pictures:
        for position in picture["selected"]:
            chosen[position] += 1
    spans = []
    for position in range(query + 1):
        text = html.escape(texts[tokens[position]])
        if position == query:
            spans.append(f'<span class="query">{text}</span>')
        elif position < keep_first or position > query - keep_recent:
            spans.append(f'<span class="kept">{text}</span>')
        elif chosen[position]:
            share = chosen[position] / len(pictures)
            spans.append(f'<span style="background:rgba(var(--mark),{0.12 + 0.5 * share:.2f})">{text}</span>')
        else:
            spans.append(text)
    following = html.escape(texts[tokens[query + 1]]) if query + 1 < len(tokens) else ""
    return f'<pre class="tokens">{"".join(spans)}</pre>', following


def pictures_section(result, texts, keep_first, keep_recent):
    pictures, tokens = result.get("pictures") or [], result.get("picture_tokens") or []
    if not pictures:
        return ""
    parts = ["<h2>What a few queries selected</h2><p class=soft>Each strip is one query in one layer, along its context: above, the "
             "attention it would have paid to every key (square root, mean over heads); below, the keys it was given: "
             '<span class="key" style="background:var(--line)"></span>kept anyway (first and most recent)'
             '<span class="key" style="background:var(--a)"></span>chosen by the indexer.</p>']
    queries = sorted({picture["query"] for picture in pictures})
    for query in queries:
        parts.append(f"<p class=soft>query at position {query}</p>")
        for picture in pictures:
            if picture["query"] == query:
                parts.append(f'<div class=soft>layer {picture["layer"]}</div>{strip(picture, keep_first, keep_recent)}')
    last = [picture for picture in pictures if picture["query"] == queries[-1]]
    view, following = token_view(last, tokens, texts, keep_first, keep_recent)
    next_token = f", whose next token is <code>{following}</code>" if following else ""
    parts.append(f"<p class=soft>The last of them as text. Framed: the query{next_token}. Shaded: chosen by the "
                 f"indexers, the darker the more of the {len(last)} layers. Dotted: kept anyway.</p>{view}")
    return "".join(parts)


def token_texts(tokenizer_file):
    """The text of every token id; bytes that are not UTF-8 alone become replacement characters."""
    from tokenizers import Tokenizer
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table, extra = {chr(byte): byte for byte in printable}, 0
    for byte in range(256):
        if byte not in printable:
            table[chr(256 + extra)] = byte
            extra += 1
    vocabulary = Tokenizer.from_file(str(tokenizer_file)).get_vocab()
    texts = [""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        known = all(character in table for character in token)
        texts[index] = bytes(table[c] for c in token).decode("utf-8", "replace") if known else token
    return texts


def write_page(path, facts):
    """`facts`: title, intro (HTML paragraphs), rows, runs {name: folder}, pictured, tokenizer, keep_first, keep_recent, prompt, completion."""
    runs = {name: read_metrics(folder) for name, folder in facts["runs"].items()}
    points = lambda name, key: [(r["step"], r[key]) for r in runs.get(name, []) if r.get(key) is not None]
    charts = "".join([
        line_chart("Dense stage: cross entropy (nats a token)", [("dense", points("dense", "cross_entropy"))], "step"),
        line_chart("Indexer warm-up: share of a uniform guess's KL that is left",
                   [("paper", points("paper", "index_kl_share_of_uniform")),
                    ("recommended", points("recommended", "index_kl_share_of_uniform"))], "step", low=0),
        line_chart("Sparse stage: cross entropy (nats a token)", [("sparse", points("sparse", "cross_entropy"))], "step"),
    ])
    pictures = pictures_section(facts["pictured"], token_texts(facts["tokenizer"]), facts["keep_first"], facts["keep_recent"])
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(facts["title"])}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(facts["title"])}</h1>
{facts["intro"]}
<h2>The table</h2>{table(facts["rows"])}{facts["notes"]}
<h2>Loss curves</h2><div class="charts">{charts}</div>
{pictures}
<h2>A completion</h2><pre>{html.escape(facts["prompt"])}<strong>{html.escape(facts["completion"])}</strong></pre>
</body></html>
"""
    pathlib.Path(path).write_text(page, encoding="utf-8")
