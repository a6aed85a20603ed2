"""A seeded simulated city: people who live, commute, shop, go to the cinema and open apps, as events in time order.

Everything follows from the content and the seed: places are the content's fences, towers its cells, and apps and
profiles are drawn so that its scenarios have somebody to speak to. It is a source of events like any other; the
engine knows nothing of it.
"""

from engine.city.city import City

__all__ = ["City"]
