"""The findings as one HTML page that needs nothing else: no network, no scripts, pictures inside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from opsin.analyze.check.facts import in_eight_bits
from opsin.analyze.check.findings import Finding, Findings
from opsin.data.objects import Objects
from opsin.data.resize import resize
from opsin.data.spec import spec_of
from opsin.data.target_sheet import draw_objects
from opsin.errors import DataError

if TYPE_CHECKING:
    from opsin.data.dataset import Dataset

_SIDE = 128
_BUDGET = 5_000_000
_GROUPS = 24
_MEMBERS = 6
_CLASSES = 60
_BOX, _MARKED = (70, 190, 110), (225, 45, 35)
_SHOWN = 12
_SEEN = 9.0  # pixels
_WORDS = {"error": "Error", "warning": "Warning", "info": "Note"}
_PARTS = ("train", "val", "test")


class _Pictures:
    """Thumbnails as data addresses, each made once, up to a budget of characters."""

    def __init__(self, dataset: Dataset, budget: int) -> None:
        self.dataset, self.left = dataset, budget
        boxed = any(head.kind == "objects" for head in dataset.heads)
        self.side, self.cell = (2 * _SIDE, "cell large") if boxed else (_SIDE, "cell")  # boxes need room
        self.places: dict[str, int] | None = None
        self.made: dict[str, str] = {}

    def __call__(self, name: str, marked: Sequence[int] = ()) -> str:
        """`<img>` of a sample with its boxes, those marked in red, or a box that says why there is none."""
        key = f"{name}\0{tuple(marked)}"
        if key not in self.made:
            if self.left <= 0:
                return '<span class="none">not shown</span>'
            self.made[key] = self._image(name, marked)
        return self.made[key]

    def _image(self, name: str, marked: Sequence[int]) -> str:
        if self.places is None:
            self.places = {text: i for i, text in enumerate(self.dataset.ids)}
        if name not in self.places:
            return '<span class="none">not in the data set</span>'
        try:
            sample = self.dataset.read(self.places[name], reduce_to=self.side)
        except DataError:
            return '<span class="none">cannot be read</span>'
        image = sample.image
        spec = self.dataset.spec if image.dtype == torch.float32 else spec_of(image)
        eight = in_eight_bits(image, spec)
        height, width = eight.shape[1:]
        scale = self.side / max(height, width)
        if scale < 1:
            eight = resize(eight, (max(1, round(height * scale)), max(1, round(width * scale))))[0]
        pixels = eight.permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
        boxed = [target for target in sample.target.values() if isinstance(target, Objects)]
        if boxed:
            size = sample.original_size or (height, width)
            picture = _boxed(picture, boxed[0], (picture.width / size[1], picture.height / size[0]), marked)
        file = io.BytesIO()
        small = max(picture.size) <= 48
        picture.save(file, "PNG" if small else "JPEG", **({} if small else {"quality": 80}))
        code = base64.b64encode(file.getvalue()).decode("ascii")
        self.left -= len(code)
        kind = "png" if small else "jpeg"
        crisp = ' class="pixels"' if small else ""
        return f'<img{crisp} src="data:image/{kind};base64,{code}" alt="{_text(name)}" loading="lazy">'


def write_page(findings: Findings, dataset: Dataset, path: Path | str, budget: int = _BUDGET) -> Path:
    """Write the page.

    Args:
        findings: what `check` gave for this data set.
        dataset: the pictures are read from it again, those shown only.
        path: the HTML file to write.
        budget: most bytes of pictures in it; findings further down show fewer pictures then, and say so.
    """
    path = Path(path)
    path.write_text(page_html(findings, dataset, budget), encoding="utf-8")
    return path


def page_html(findings: Findings, dataset: Dataset, budget: int = _BUDGET) -> str:
    """The page as text; see `write_page`."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    pictures = _Pictures(dataset, budget)
    profile = findings.profile
    title = f"Data check: {profile['name']}"
    body = [
        f"<header><p class='brand'>opsin data check</p><h1>{_text(profile['name'])}</h1>",
        f"<p class='muted path'>{_text(profile['root'])}</p>",
        f"<p class='verdict'>{_verdict(findings)}</p>{_tiles(profile)}</header>",
        "<main><section><h2>Findings</h2>",
        _contents(findings),
        *(_finding(place, finding, pictures) for place, finding in enumerate(findings)),
        "</section><section><h2>What the data hold</h2>",
        *_profile(profile),
        *(_explored(about, dataset, pictures, len(profile["objects"]) > 1) for about in profile["objects"]),
        "</section></main>",
        f"<footer class='muted'>{sum(findings.ran.values()):.1f} s for {profile['samples']:,} pictures. "
        "Made by <code>opsin data check</code>; every id is in its <code>--json</code>.</footer>",
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{style}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _text(value: object) -> str:
    return html.escape(str(value).encode("utf-8", "replace").decode())


def _verdict(findings: Findings) -> str:
    counts = findings.counts
    if not counts["error"] and not counts["warning"]:
        return "Nothing was found that stands in the way of training."
    words = [
        f"{n} {word}{'s' if n != 1 else ''}"
        for word, n in (("error", counts["error"]), ("warning", counts["warning"]))
        if n
    ]
    advice = (
        "Mend the errors before training." if counts["error"] else "Look at the warnings before you trust a number."
    )
    return f"{' and '.join(words)}. {advice}"


def _tiles(profile: Mapping[str, Any]) -> str:
    tiles = [(f"{profile['samples']:,}", "pictures")]
    tiles += [(f"{about['count']:,}", "objects") for about in profile["objects"][:1]]
    for head in profile["heads"][:1]:
        tiles.append((f"{len(head['classes']):,}", f"classes of '{head['name']}'"))
    if profile["split_known"]:
        tiles += [(f"{profile['parts'][part]:,}", part) for part in _PARTS if profile["parts"][part]]
    if profile["height"]:
        tiles.append((f"{profile['width']['median']:.0f} x {profile['height']['median']:.0f}", "median width x height"))
    tiles.append((f"{profile['bytes'] / 1e6:,.1f} MB", f"as {profile['format']}"))
    return (
        "<ul class='tiles'>" + "".join(f"<li><b>{_text(v)}</b><span>{_text(k)}</span></li>" for v, k in tiles) + "</ul>"
    )


def _contents(findings: Findings) -> str:
    if not len(findings):
        return "<p>None.</p>"
    rows = "".join(
        f"<li><a href='#{_text(f.code)}-{k}'>{_badge(f)} {_text(f.code)}</a></li>"
        for k, f in enumerate(findings)
        if f.level != "info"
    )
    return f"<ul class='contents'>{rows}</ul>" if rows else ""


def _badge(finding: Finding) -> str:
    return f"<span class='badge {finding.level}'>{_WORDS[finding.level]}</span>"


def _finding(place: int, finding: Finding, pictures: _Pictures) -> str:
    fix = f"<p class='fix'><b>What to do.</b> {_text(finding.fix)}</p>" if finding.fix else ""
    return (
        f"<article id='{_text(finding.code)}-{place}' class='{finding.level}'><h3>{_badge(finding)} "
        f"<code>{_text(finding.code)}</code></h3><p>{_text(finding.text)}</p>{fix}"
        f"{_gallery(finding, pictures)}</article>"
    )


def _boxed(picture: Image.Image, objects: Objects, scale: tuple[float, float], marked: Sequence[int]) -> Image.Image:
    """A picture with its objects, those marked in red, on top, and large enough to be seen."""
    order = np.array(sorted(range(len(objects)), key=lambda k: k in marked), np.int64)
    chosen = [int(k) in marked for k in order]
    colors = [_MARKED if one else _BOX for one in chosen]
    least = [_SEEN if one else 0.0 for one in chosen]
    return draw_objects(picture, objects.take(order), scale, colors=colors, least=least)


def _gallery(finding: Finding, pictures: _Pictures) -> str:
    shown = [group for group in finding.groups[:_GROUPS] if pictures.left > 0]
    if not shown:
        return ""
    captions = finding.captions or ("",) * len(finding.groups)
    figures = []
    for place, (group, caption) in enumerate(zip(shown, captions)):
        singles = caption.split(" | ") if len(group) > 1 else [caption]
        marked = finding.marks[place] if finding.marks else ()
        cells = "".join(
            f"<div class='{pictures.cell}'>{pictures(name, marked)}"
            f"<span class='name' title='{_text(name)}'><bdi dir='ltr'>{_text(name)}</bdi></span>"
            f"<span class='said'>{_text(singles[k] if k < len(singles) else '')}</span></div>"
            for k, name in enumerate(group[:_MEMBERS])
        )
        more = f"<div class='cell more'>and {len(group) - _MEMBERS} more</div>" if len(group) > _MEMBERS else ""
        figures.append(f"<div class='group{' many' if len(group) > 1 else ''}'>{cells}{more}</div>")
    total = int(finding.data.get("groups", len(finding.groups)))
    rest = f"<p class='muted'>{len(shown):,} of {total:,} shown; all ids with --json.</p>" if total > len(shown) else ""
    return f"<div class='gallery'>{''.join(figures)}</div>{rest}"


def _profile(profile: Mapping[str, Any]) -> Iterator[str]:
    for head in profile["heads"]:
        yield f"<h3>{head['noun'].title()}s per class: {_text(head['name'])}</h3>{_class_chart(head, profile['split_known'])}"
        if head["ratio"] is not None:
            missing = f", {head['missing']:,} without a label" if head["missing"] else ""
            yield (
                f"<p class='muted'>Largest to smallest class {head['ratio']:.1f} : 1; as many as "
                f"{head['effective_classes']:.1f} equal classes{missing}.</p>"
            )
    yield "<div class='columns'>"
    yield _table("Sizes (width x height)", profile["size_counts"])
    if profile["file_formats"]:
        yield _table("File formats", profile["file_formats"])
    yield _table("Kind of pixels", profile["modes"])
    rows = [(name, profile[name]) for name in ("width", "height", "aspect", "brightness", "contrast") if profile[name]]
    cells = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{v[k]:.4g}</td>' for k in ('min', 'q1', 'median', 'q3', 'max'))}</tr>"
        for name, v in rows
    )
    yield (
        "<div class='wide'><h3>Spread</h3><table><tr><th></th><th>least</th><th>25%</th><th>median</th><th>75%</th>"
        f"<th>most</th></tr>{cells}</table></div>"
    )
    yield "</div>"


def _table(title: str, counts: Mapping[str, int]) -> str:
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{count:,}</td></tr>" for name, count in counts.items())
    return f"<div><h3>{_text(title)}</h3><table>{rows}</table></div>"


def _class_chart(head: Mapping[str, Any], split_known: bool) -> str:
    """Horizontal bars as inline SVG, one per class, cut into the parts."""
    classes = sorted(head["classes"], key=lambda c: -c["total"])[:_CLASSES]
    most = max((c["total"] for c in classes), default=0) or 1
    step, left, width = 22, 150, 700
    bars = []
    for row, entry in enumerate(classes):
        y, x = row * step, float(left)
        pieces = [(part, entry[part]) for part in _PARTS] if split_known else []
        pieces.append(("rest", entry["total"] - sum(n for _, n in pieces)))
        label = entry["name"] if len(entry["name"]) <= 20 else entry["name"][:19] + "…"
        bars.append(f"<text x='{left - 8}' y='{y + 15}' text-anchor='end'>{_text(label)}</text>")
        for part, count in pieces:
            length = count / most * (width - left - 70)
            if count > 0:
                bars.append(
                    f"<rect class='{part}' x='{x:.1f}' y='{y + 3}' width='{length:.1f}' height='{step - 6}'>"
                    f"<title>{_text(entry['name'])}, {part if part != 'rest' else 'all'}: {count:,}</title></rect>"
                )
            x += length
        bars.append(f"<text class='count' x='{x + 6:.1f}' y='{y + 15}'>{entry['total']:,}</text>")
    keys = "".join(
        f"<span class='key {part}'>{part}</span>" for part in _PARTS if split_known and any(c[part] for c in classes)
    )
    left_out = len(head["classes"]) - len(classes)
    note = f"<p class='muted'>{left_out} smaller classes are not drawn.</p>" if left_out else ""
    height = len(classes) * step + 4
    return (
        f"<p class='keys'>{keys}</p><svg class='bars' viewBox='0 0 {width} {height}' role='img' "
        f"aria-label='{head['noun'].title()}s per class'>{''.join(bars)}</svg>{note}"
    )


def _explored(about: Mapping[str, Any], dataset: Dataset, pictures: _Pictures, several: bool) -> str:
    """The explorer of boxes: examples, counts, sizes, shapes, anchors and which classes come together."""
    small, medium, large = (about["sizes"][name] for name in ("small", "medium", "large"))
    facts = {
        "pictures with objects": about["pictures"],
        "pictures without": about["empty"],
        "small (area below 32 x 32)": small,
        "medium (up to 96 x 96)": medium,
        "large": large,
        "touch the picture's border": about["truncated"],
        "reach out of the picture": about["outside"],
        "crowds": about["crowd"],
        "difficult": about["difficult"],
    }
    charts = [
        ("Objects per picture", about["per_picture"], "{:.0f}"),
        ("Side, as a share of the picture's", about["side"], "{:.2f}"),
        ("Width / height", about["aspect"], "{:.2g}"),
    ]
    rows = "".join(
        f"<tr><th>{one['anchors']}</th><td>{one['mean_iou']:.3f}</td><td>{one['recall']['0.5']:.1%}</td>"
        f"<td>{one['recall']['0.75']:.1%}</td><td>{_anchor_words(one['sizes'])}</td></tr>"
        for one in about["anchors"]
    )
    anchors = (
        "<div class='wide'><h3>Anchors by k-means</h3><table><tr><th>anchors</th><th>mean IoU</th><th>reach IoU 0.5</th>"
        f"<th>reach IoU 0.75</th><th>width x height, % of the longer side</th></tr>{rows}</table></div>"
        if rows
        else ""
    )
    points = {f"{one['name']} (visible {one['visible']:,})": one["labeled"] for one in about["points"]}
    title = f"Objects: {about['name']}" if several else "Objects"
    return (
        f"</section><section><h2>{_text(title)}</h2>{_examples(about, dataset, pictures)}"
        f"<div class='columns'>{_table('Objects', facts)}"
        f"{''.join(_histogram(title, values, form) for title, values, form in charts if values)}"
        f"{_table('Labeled points', points) if points else ''}{anchors}{_together(about['together'])}</div>"
    )


def _examples(about: Mapping[str, Any], dataset: Dataset, pictures: _Pictures) -> str:
    """An even choice of the pictures that hold objects, with their boxes."""
    holding = np.flatnonzero(dataset.targets[about["name"]].counts)
    chosen = holding[np.unique(np.linspace(0, len(holding) - 1, _SHOWN).astype(np.int64))] if len(holding) else holding
    cells = "".join(
        f"<div class='{pictures.cell}'>{pictures(name)}<span class='name' title='{_text(name)}'><bdi dir='ltr'>{_text(name)}</bdi>"
        "</span></div>"
        for name in (dataset.id(int(i)) for i in chosen)
    )
    return f"<div class='gallery'>{cells}</div>"


def _anchor_words(sizes: Sequence[Sequence[float]]) -> str:
    return ", ".join(f"{100 * w:.0f} x {100 * h:.0f}" for w, h in sizes)


def _histogram(title: str, values: Mapping[str, Any], form: str) -> str:
    """Columns as inline SVG, with the edges of the bins as tips and the median below."""
    counts, edges = values["counts"], values["edges"]
    most, width, height = max(counts) or 1, 260, 90
    step = width / len(counts)
    bars = "".join(
        f"<rect class='rest' x='{k * step + 0.5:.1f}' y='{height - count / most * height:.1f}' width='{step - 1:.1f}' "
        f"height='{count / most * height:.1f}'><title>{form.format(edges[k])} to {form.format(edges[k + 1])}: {count:,}"
        "</title></rect>"
        for k, count in enumerate(counts)
    )
    ends = (
        f"<text x='0' y='{height + 15}'>{form.format(edges[0])}</text>"
        f"<text x='{width}' y='{height + 15}' text-anchor='end'>{form.format(edges[-1])}</text>"
    )
    words = ", ".join(
        f"{name} {form.format(values[key])}" for name, key in (("5%", "p5"), ("median", "median"), ("95%", "p95"))
    )
    return (
        f"<div><h3>{_text(title)}</h3><svg class='bars' viewBox='0 0 {width} {height + 20}' role='img' "
        f"aria-label='{_text(title)}'>{bars}{ends}</svg><p class='muted'>{words}</p></div>"
    )


def _together(table: Mapping[str, Any]) -> str:
    """In how many pictures two classes meet, darker where more do."""
    names, counts = table["classes"], table["pictures"]
    if len(names) < 2:
        return ""
    most = max((n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j), default=0) or 1
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{_text(name)}</th>"
        + "".join(
            f"<td style='background:rgba(59,110,165,{0.0 if i == j else 0.75 * n / most:.2f})'>{n:,}</td>"
            for j, n in enumerate(counts[i])
        )
        + "</tr>"
        for i, name in enumerate(names)
    )
    return f"<div class='wide'><h3>Pictures with both classes</h3><table><tr><th></th>{head}</tr>{rows}</table></div>"
