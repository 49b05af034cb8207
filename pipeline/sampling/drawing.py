"""Images drawn with known probabilities: systematic sampling with probability proportional to size.

Every image has a share of the budget, a mixture of chance and of what the rule asks for (Hesterberg 1995, "Weighted
average importance sampling and defensive mixture distributions": no weight is larger than 1 / CHANCE times that of a
sample of pure chance). Its inclusion probability is that share times a scale, at most 1; the scale is such that the
probabilities add up to the budget. The images stand in a line, by stratum and place and within these by chance, each as
long as its probability; points at distance 1, the first at random, hit those that are chosen (Madow 1949; Hartley & Rao
1962 on the order by chance). So exactly the budget is drawn, of each stratum its share up to rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from prelabel.pipeline.query.connection import wait

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

CHANCE = 0.5
"""Of the budget, what is spent without regard to sizes."""
RARE = 0.1
"""Of the rest, what failed images get at most, and empty ones."""
TICKS = 2**40
"""To the unit of length: whole numbers add up to the same sum in any order."""
STRATA = "SELECT stratum, count(*), sum(size) FROM measured GROUP BY 1 ORDER BY 1"
LARGEST = """
SELECT base + slope * size AS share FROM measured JOIN shares USING (stratum) ORDER BY share DESC LIMIT ?
"""
DRAW = f"""
WITH likely AS (
    SELECT *, least(1, $scale * (base + slope * size)) AS probability FROM measured JOIN shares USING (stratum)
), placed AS (
    SELECT image_id, probability, round(probability * {TICKS})::BIGINT AS ticks,
        $start + sum(ticks) OVER (
            ORDER BY stratum, place, md5_number_lower(concat($seed, ':', image_id)), image_id ROWS UNBOUNDED PRECEDING
        ) AS upto
    FROM likely
)
SELECT image_id, key, stratum, reason, probability, 1 / probability AS weight
FROM placed JOIN measured USING (image_id)
WHERE upto // {TICKS} > (upto - ticks) // {TICKS} ORDER BY image_id
"""


def draw(connection: DuckDBPyConnection, budget: int, seed: int) -> pa.Table:
    """So many images of the table `measured`, or all: image_id, key, stratum, reason, probability, weight, by image_id.

    Args:
        connection: with the table `measured`: image_id, key, stratum ("failed", "empty" or any other), size (a whole
            number, 0 where only chance may choose the image), place, reason
        budget: how many, 1 or more
        seed: another one, other images
    """
    strata = wait(connection, lambda: connection.execute(STRATA).fetchall())
    connection.register("shares", shares(strata))
    largest = wait(connection, lambda: connection.execute(LARGEST, [budget]).fetchnumpy())["share"]
    drawn = sum(count for _, count, _ in strata) > budget
    values = {
        "scale": scale(np.asarray(largest), budget) if drawn else float("inf"),
        "start": int(np.random.default_rng(seed).integers(TICKS)),
        "seed": seed,
    }
    return wait(connection, lambda: connection.sql(DRAW, params=values).to_arrow_table())


def shares(strata: list[tuple[str, int, int]]) -> pa.Table:
    """A row of each stratum: an image's share of the budget is base + slope * size; those of all images add up to 1.

    Args:
        strata: name, images, and the sum of their sizes, of each
    """
    images = sum(count for _, count, _ in strata)
    chance = CHANCE if any(total for _, _, total in strata) else 1.0
    part = {name: min(count / images, RARE) for name, count, _ in strata if name in ("failed", "empty")}
    others = {name: count for name, count, _ in strata if name not in part}
    part |= {name: (1 - sum(part.values())) * count / sum(others.values()) for name, count in others.items()}
    rows = []
    for name, count, total in strata:
        asked = (1 - chance) * part[name] / sum(part.values())
        slope = asked / total if total else 0.0
        rows.append({"stratum": name, "base": chance / images + (0.0 if total else asked / count), "slope": slope})
    return pa.Table.from_pylist(rows, pa.schema([("stratum", pa.string()), ("base", "f8"), ("slope", "f8")]))


def scale(largest: np.ndarray, budget: int) -> float:
    """What shares are multiplied by, so that they, at most 1 each, add up to the budget.

    Args:
        largest: the `budget` largest shares of all images, falling, float64 (budget,)
        budget: less than there are images
    """
    rest = 1 - np.concatenate([[0.0], np.cumsum(largest)[:-1]])  # without those that are certain
    scales = (budget - np.arange(len(largest))) / rest
    return float(scales[np.argmax(scales * largest <= 1)])
