"""matplotlib's SVG as a part of a page: the page's colours and letters, short, ids of its own."""

import html
import re
from collections import Counter

# What the page shows in its own colours, so that a picture is seen on a dark page as well.
COLOURS = {
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    "#e6e6e6": "var(--grid)",
    "#555555": "var(--soft)",
}
# In the order of the text.
RULES = (
    (r"<metadata>.*?</metadata>", ""),
    (r"<style.*?</style>", ""),
    (r"font-family: [^;\"]*;? ?", ""),  # the page's own letters, which are narrower
    (r' transform="rotate\(-0 [^)]*\)"', ""),
    (r"\s+", " "),
    (r"> <", "><"),
)


def inline(svg: str, name: str, description: str) -> str:
    """The `<svg>` element. `name` is put before its ids; `description` is for screen readers.

    Ids are numbered, since matplotlib's are long. Coordinates are rounded to a tenth of a point:
    what differs below that between processors is not seen. A style that many elements have becomes
    a class.
    """
    body = svg[svg.index("<svg") :]
    for pattern, replacement in RULES:
        body = re.sub(pattern, replacement, body, flags=re.DOTALL)
    # Places alone: a number that is read, such as the label of an axis, stays as it is.
    body = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda found: _rounded(found[0]), body)
    for colour, own in COLOURS.items():
        body = body.replace(colour, own)
    used = dict.fromkeys(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    short = {given: f"{name}-m{place}" for place, given in enumerate(used)}

    def with_name(found: re.Match[str]) -> str:
        return f' id="{short[found[1]]}"' if found[1] in short else ""

    body = re.sub(r' id="([^"]*)"', with_name, body)
    body = re.sub(
        r'(href="#|url\(#)([^")]+)', lambda found: found[1] + short[found[2]], body
    ).replace("xlink:href", "href")
    body = _with_classes(_without_groups(body), name)
    start, end = body.index("<svg"), body.index(">")
    (size,) = re.findall(r'viewBox="0 0 ([^"]*)"', body[start:end])
    width, _ = size.split()
    return (
        f'<svg role="img" aria-label="{html.escape(description)}" viewBox="0 0 {size}" '
        f'style="max-width:{width}pt">{body[end + 1 :].strip()}'
    )


def _without_groups(body: str) -> str:
    """The same without the groups that say nothing: matplotlib has some around every mark.

    Only an innermost one is taken out at a time, since its end is the next; one around a group
    that stays is left.
    """
    while (less := re.sub(r"<g>((?:(?!</?g\b).)*)</g>", r"\1", body)) != body:
        body = less
    return body


def _with_classes(body: str, name: str) -> str:
    """The same with a class for each style that is there more than twice."""
    counts = Counter(re.findall(r' style="([^"]*)"', body))
    often = [style for style, count in counts.items() if count > 2]
    rules = []
    for place, style in enumerate(often):
        body = body.replace(f' style="{style}"', f' class="{name}-{place}"')
        rules.append(f".{name}-{place}{{{style}}}")
    if not rules:
        return body
    end = body.index(">") + 1
    return f"{body[:end]}<style>{''.join(rules)}</style>{body[end:]}"


def _rounded(places: str) -> str:
    return re.sub(r"-?\d+\.\d{2,}", lambda found: _short(found[0]), places)


def _short(number: str) -> str:
    shown = f"{float(number):.1f}".removesuffix(".0")
    return "0" if shown == "-0" else shown
