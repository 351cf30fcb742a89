"""The views of a frame that a model is shown: its region, or the tiles of it.

A view is a recipe with a region and without tiles, so that everything that takes a recipe takes a
view.
"""

import msgspec

from server.recognition.manifest import Recipe, Region


def views(recipe: Recipe) -> tuple[Recipe, ...]:
    """Returns the recipe itself if it has no tiles, else one for each tile, row by row.

    All tiles are of one size; each shares `overlap` of its side with the next one.
    """
    tiles = recipe.tiles
    if tiles is None:
        return (recipe,)
    left, top, width, height = recipe.region or (0.0, 0.0, 1.0, 1.0)
    across = _spans(left, width, tiles.columns, tiles.overlap)
    down = _spans(top, height, tiles.rows, tiles.overlap)
    return tuple(_view(recipe, (x, y, wide, high)) for y, high in down for x, wide in across)


def _spans(start: float, length: float, count: int, overlap: float) -> list[tuple[float, float]]:
    """Returns start and length of `count` parts of equal length that cover a length."""
    side = length / (count - (count - 1) * overlap)
    step = side * (1 - overlap)
    return [(start + i * step, side) for i in range(count)]


def _view(recipe: Recipe, region: Region) -> Recipe:
    return msgspec.structs.replace(recipe, region=region, tiles=None)
