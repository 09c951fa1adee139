"""A map of photos inside a page, to be looked at point by point with mouse, finger or keyboard.

The page carries places, ids and a short script; all small photos are one picture beside it.

Shapes: M photos, H x W pixels.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clipfh.core.files import replace_atomically

SHEET = "map_photos.jpg"
_LONGER_PX = 56  # of a photo on the sheet

STYLE = """
#map { display: block; width: 100%; aspect-ratio: 1; background: #8881; margin: .5rem 0; touch-action: pan-y; }
#map-told { position: sticky; top: 0; display: flex; gap: .8rem; align-items: center; min-height: 6rem;
  padding: .3rem 0; background: Canvas; color: CanvasText; overflow-wrap: anywhere; }
#map-told p { margin: 0; min-width: 0; } #map-told canvas { flex: none; width: 88px; height: 88px; }
"""

# Everything is drawn on a canvas: thousands of elements with a part of the sheet each keep a browser busy for minutes.
_SCRIPT = """
(() => {
  const data = JSON.parse(document.querySelector("#map-data").textContent), map = document.querySelector("#map");
  const photo = document.querySelector("#map-told canvas"), text = document.querySelector("#map-told p");
  const sheet = new Image(), ratio = window.devicePixelRatio || 1;
  const [width, height] = data.cell, longer = Math.max(width, height);
  let at = -1, side = 0;
  const paint = (pen, i, x, y, size) => {
    const [w, h] = [size * width / longer, size * height / longer];
    const from = [i % data.columns * width, Math.floor(i / data.columns) * height];
    pen.drawImage(sheet, ...from, width, height, x - w / 2, y - h / 2, w, h);
    return [x - w / 2, y - h / 2, w, h];
  };
  const draw = () => {
    side = map.clientWidth;
    map.width = map.height = side * ratio;
    const pen = map.getContext("2d");
    pen.scale(ratio, ratio);
    const put = (i, scale, color, dash) => {
      const [x, y] = data.places[i].map((share) => share * side / 100);
      const box = paint(pen, i, x, y, data.side * side / 100 * scale);
      pen.strokeStyle = color; pen.lineWidth = color === "#8888" ? 1 : 2; pen.setLineDash(dash);
      pen.strokeRect(...box);
    };
    data.items.forEach((_, i) => data.alone[i] ? put(i, 1, "#d55e00", [3, 2]) : put(i, 1, "#8888", []));
    if (at < 0) return;
    data.items.forEach((item, i) => { if (item === data.items[at] && i !== at) put(i, 1.5, "#009e73", []); });
    put(at, 3, "#0072b2", []);
  };
  const show = (i) => {
    if (i === at) return;
    at = i;
    text.textContent = data.items[i] + ": " + data.images[i] + (data.alone[i] ? data.note : "");
    const pen = photo.getContext("2d");
    photo.hidden = false;
    pen.clearRect(0, 0, photo.width, photo.height);
    paint(pen, i, photo.width / 2, photo.height / 2, photo.width);
    draw();
  };
  const nearest = (distance) => {
    let best = -1, least = Infinity;
    data.places.forEach(([x, y], i) => { const d = distance(x, y, i); if (d < least) [best, least] = [i, d]; });
    return best;
  };
  const point = (event) => {
    const box = map.getBoundingClientRect();
    const [px, py] = [(event.clientX - box.left) / side * 100, (event.clientY - box.top) / side * 100];
    const i = nearest((x, y) => { const d = Math.hypot(x - px, y - py); return d < data.side ? d : Infinity; });
    if (i >= 0) show(i);
  };
  map.addEventListener("pointermove", point);
  map.addEventListener("pointerdown", point);
  map.addEventListener("focus", () => { if (at < 0) show(0); });
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  map.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const [x0, y0] = data.places[Math.max(at, 0)];
    const i = nearest((x, y) => {  // ahead; what lies aside counts double
      const along = (x - x0) * step[0] + (y - y0) * step[1];
      const aside = Math.abs((x - x0) * step[1]) + Math.abs((y - y0) * step[0]);
      return along > 0 ? along + 2 * aside : Infinity;
    });
    if (i >= 0) show(i);
  });
  window.addEventListener("resize", draw);
  sheet.onload = draw;
  sheet.src = data.sheet;
})();
"""


def interactive_map(
    run_dir: Path,
    photos: np.ndarray,
    images: Sequence[str],
    item_ids: Sequence[str],
    places: np.ndarray,
    framed: np.ndarray,
) -> str:
    """Write the sheet of small photos into `run_dir`; HTML of the map, for a page in that folder.

    Args:
        run_dir: the folder of the run.
        photos: (M, H, W, 3) uint8, as the model sees them.
        images, item_ids: (M,) what is said of each.
        places: (M, 2), of any range; both axes are scaled alike.
        framed: (M,) booleans: the most similar photo of the map is of another item.

    Raises:
        InputError: the sheet cannot be written.
    """
    columns = math.ceil(math.sqrt(len(photos)))
    rows = math.ceil(len(photos) / columns)
    cell = _write_sheet(run_dir / SHEET, photos, columns, rows)
    low, span = places.min(axis=0), max(float(np.ptp(places, axis=0).max()), 1e-9)
    shown = 3 + 94 * ((places - low) / span + (1 - np.ptp(places, axis=0) / span) / 2)  # percent of the map's side
    data = {
        "sheet": SHEET,
        "cell": cell,
        "columns": columns,
        "side": round(float(np.clip(55 / len(images) ** 0.5, 1.6, 6)), 2),  # of a photo, percent of the map's side
        "note": " (the most similar photo of the map is of another item)",
        "items": list(item_ids),
        "images": list(images),
        "alone": [int(alone) for alone in framed],
        "places": [[round(float(x), 1), round(float(y), 1)] for x, y in shown],
    }
    # an id could end the script with a tag of its own: `<` stands in strings alone, where JSON can spell it otherwise
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<div id="map-told" aria-live="polite"><canvas width="176" height="176" hidden></canvas><p class="note">Point '
        "at a photo, or reach the map with Tab and go on with the arrow keys.</p></div>"
        f'<canvas id="map" tabindex="0" role="img" aria-label="map of {len(images)} photos; arrow keys go from photo '
        'to photo"></canvas><p class="note">Near means similar (t-SNE). Green: the same item. Dashed: the most similar '
        f'photo of the map is of another item.</p>\n<script id="map-data" type="application/json">{text}</script>\n'
        f"<script>{_SCRIPT}</script>"
    )


def _write_sheet(path: Path, photos: np.ndarray, columns: int, rows: int) -> tuple[int, int]:
    """Write all photos small, row by row; the width and height of a cell."""
    H, W = photos.shape[1:3]
    width, height = (max(1, round(_LONGER_PX * side / max(H, W))) for side in (W, H))
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for number, photo in enumerate(photos):
        small = Image.fromarray(photo).resize((width, height), Image.Resampling.BOX)
        sheet.paste(small, (number % columns * width, number // columns * height))
    with replace_atomically(path) as temporary:
        sheet.save(temporary, "JPEG", quality=80)
    return width, height
