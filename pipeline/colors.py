"""The color in which a category is drawn, the same everywhere."""

from __future__ import annotations

import colorsys


def color_of(category_id: int) -> tuple[int, int, int]:
    """Red, green, blue from 0 to 255; steps of the golden angle keep neighbours in the category list apart."""
    red, green, blue = colorsys.hsv_to_rgb(category_id * 0.381966 % 1, 0.9, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)
