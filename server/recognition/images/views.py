"""The views of a frame that a model is shown: its region or regions, or the tiles of them.

A view is a recipe with one region and without tiles, so that everything that takes a recipe takes a
view.
"""

import msgspec

from server.recognition.manifest import Recipe, Region


def views(recipe: Recipe) -> tuple[Recipe, ...]:
    """Returns the views of all regions; the recipe itself if it has neither regions nor tiles."""
    return tuple(view for part in regions(recipe) for view in tiles(part))


def regions(recipe: Recipe) -> tuple[Recipe, ...]:
    """Returns a recipe for each of several regions, with their tiles; else the recipe itself."""
    if not recipe.regions:
        return (recipe,)
    return tuple(
        msgspec.structs.replace(recipe, region=each.box, regions=()) for each in recipe.regions
    )


def tiles(recipe: Recipe) -> tuple[Recipe, ...]:
    """Returns a recipe for each tile of a recipe's one region, row by row, or the recipe itself.

    All tiles are of one size; each shares `overlap` of its side with the next one.
    """
    parts = recipe.tiles
    if parts is None:
        return (recipe,)
    left, top, width, height = recipe.region or (0.0, 0.0, 1.0, 1.0)
    across = _spans(left, width, parts.columns, parts.overlap)
    down = _spans(top, height, parts.rows, parts.overlap)
    return tuple(_view(recipe, (x, y, wide, high)) for y, high in down for x, wide in across)


def _spans(start: float, length: float, count: int, overlap: float) -> list[tuple[float, float]]:
    """Returns start and length of `count` parts of equal length that cover a length."""
    side = length / (count - (count - 1) * overlap)
    step = side * (1 - overlap)
    return [(start + i * step, side) for i in range(count)]


def _view(recipe: Recipe, region: Region) -> Recipe:
    return msgspec.structs.replace(recipe, region=region, tiles=None)
