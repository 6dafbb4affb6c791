"""Cut a set of natural photos from Debian's wallpaper packages, for calibration at ImageNet size.

    apt-get install --no-install-recommends plasma-workspace-wallpapers lomiri-wallpapers-16.04 \
        lomiri-wallpapers-20.04 ukui-wallpapers
    python benchmarks/natural_photos.py --out build/photos --calibration 512 --evaluation 512

Every photo is a seeded random square crop of 320 to 1,000 pixels; crops without detail (plain sky, gradients) are
drawn again. Calibration and evaluation crops come from different wallpapers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SOURCES = ("/usr/share/wallpapers", "/usr/share/backgrounds")
SIDE = 384
MIN_DETAIL = 12.0  # standard deviation of the grey levels


def wallpapers(folders: tuple[str, ...]) -> list[Path]:
    """The largest file of every wallpaper, sorted; packages ship each in several sizes."""
    best: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix.lower() not in (".jpg", ".jpeg", ".png") or "screenshot" in path.name or path.is_symlink():
                continue
            parts = path.parts
            key = parts[parts.index("contents") - 1] if "contents" in parts else path.stem
            if key not in best or path.stat().st_size > best[key].stat().st_size:
                best[key] = path
    return [best[key] for key in sorted(best)]


def cut(paths: list[Path], n: int, folder: Path, generator: np.random.Generator) -> None:
    """Write ``n`` crops, as near as possible equally many of each wallpaper."""
    folder.mkdir(parents=True, exist_ok=True)
    made = 0
    share = -(-n // len(paths))
    for path in paths:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        for _ in range(share * 10):
            if made == n or (made and made % share == 0 and made // share > paths.index(path)):
                break
            side = int(generator.integers(320, min(1000, *image.size) + 1))
            left = int(generator.integers(0, image.width - side + 1))
            top = int(generator.integers(0, image.height - side + 1))
            crop = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            if np.asarray(crop.convert("L"), np.float64).std() < MIN_DETAIL:
                continue
            crop.save(folder / f"{made:05d}.jpg", quality=95)
            made += 1
    print(f"{folder}: {made} photos from {len(paths)} wallpapers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--evaluation", type=int, default=512)
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    paths = [path for path in wallpapers(SOURCES) if min(Image.open(path).size) >= 400]
    generator = np.random.default_rng(options.seed)
    order = [paths[i] for i in generator.permutation(len(paths))]
    half = len(order) // 2
    cut(order[:half], options.calibration, options.out / "calibration", generator)
    cut(order[half:], options.evaluation, options.out / "evaluation", generator)


if __name__ == "__main__":
    main()
