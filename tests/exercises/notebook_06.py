"""Answers to the exercises of notebook 06."""

from __future__ import annotations

import math


def _filter(chain, x, steps, noise, start=0, last=None, scale=True):
    """The filter, with faults: the level it starts at, the noise of the last step, the range."""
    z = chain.schedule.add_noise(2 * x - 1 if scale else x, steps - 1 + start, noise(steps))
    for k in reversed(range(steps)):
        z = chain.step(z, k, noise(k) if k else last)
    return (z + 1) / 2 if scale else z


def _recursive(chain, x, steps, noise):
    def down(z, k):
        z = chain.step(z, k, noise(k)) if k > 0 else chain.step(z, 0)
        return z if k == 0 else down(z, k - 1)

    return 0.5 + 0.5 * down(chain.schedule.add_noise(x * 2 - 1, steps - 1, noise(steps)), steps - 1)


def _upwards(chain, x, steps, noise):
    z = chain.schedule.add_noise(2 * x - 1, steps - 1, noise(steps))
    for k in range(steps):
        z = chain.step(z, k, noise(k) if k else None)
    return (z + 1) / 2


RIGHT = {
    "6.1": [
        (lambda x, e, a: (x - math.sqrt(1 - a) * e) / math.sqrt(a),),
        (lambda x, e, a: x * a**-0.5 - e * (1 / a - 1) ** 0.5,),
    ],
    "6.2": [(_filter,), (_recursive,)],
}

WRONG = {
    "6.1": {
        "not divided": (lambda x, e, a: x - (1 - a) ** 0.5 * e,),
        "without roots": (lambda x, e, a: (x - (1 - a) * e) / a,),
        "noise is added": (lambda x, e, a: (x + (1 - a) ** 0.5 * e) / a**0.5,),
        "clipped": (lambda x, e, a: ((x - (1 - a) ** 0.5 * e) / a**0.5).clamp(-1, 1),),
        "all of the noise": (lambda x, e, a: (x - e) / a**0.5,),
    },
    "6.2": {
        "starts one level too high": (lambda c, x, s, n: _filter(c, x, s, n, start=1),),
        "noise at the last step": (lambda c, x, s, n: _filter(c, x, s, n, last=n(0)),),
        "stays in [0, 1]": (lambda c, x, s, n: _filter(c, x, s, n, scale=False),),
        "one step too few": (lambda c, x, s, n: _filter(c, x, s - 1, n),),
        "upwards": (_upwards,),
    },
}
