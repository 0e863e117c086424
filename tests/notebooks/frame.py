"""The volume viewer that a notebook shows in a frame."""

from __future__ import annotations

import numpy as np

from tests.browser import Tab

FRAME = "document.querySelector('iframe[title=\"volume viewer\"]')"
INSIDE = f"{FRAME}.contentDocument"


def assert_it_draws(tab: Tab) -> None:
    """The image is drawn, the region at the cross is coloured, and the slider changes the picture."""
    tab.run(f"{FRAME}.scrollIntoView()")
    opened = f"{INSIDE}?.querySelector('h3.opened')?.textContent && !{INSIDE}.querySelector('[aria-busy]')"
    tab.wait(f"!!({opened})")
    seen = (
        f"(() => {{ const f = {FRAME}.getBoundingClientRect(); "
        f"const s = {INSIDE}.querySelector('.stage').getBoundingClientRect(); "
        "return [f.x + s.x, f.y + s.y, s.width, s.height].map(Math.round); })()"
    )
    x, y, width, height = tab.run(seen)
    before = tab.pixels()[y : y + height, x : x + width].astype(int)
    assert before.std() > 10
    assert np.count_nonzero(np.ptp(before, axis=2) > 30) > 100  # coloured, not grey
    tab.run(
        f"(() => {{ const slider = {INSIDE}.getElementById('ladder'); slider.value = slider.max; "
        "slider.dispatchEvent(new Event('input')); })()"
    )
    tab.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    after = tab.pixels()[y : y + height, x : x + width].astype(int)
    assert np.count_nonzero((before != after).any(axis=2)) > 100
