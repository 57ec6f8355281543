"""Every word of captions and facts. The language models know each as one token; CLIP splits some, as it does."""

from __future__ import annotations

_ALL = (
    "a above an and appear are bearing below blue bottom checkered checks circle circles cross "
    "cross-shaped crosses cyan dark diamond diamond-shaped diamonds empty exactly figures four green ground "
    "has here image in is it large left lies lower no object objects of on orange over pattern picture plain "
    "purple red rest right ring ring-shaped rings round scene see shows side simple sits small something square "
    "squares striped stripes that the there thing things this three to together top triangle triangles triangular "
    "two under upper we what white with yellow"
)
WORDS = tuple(_ALL.split())
"""Of captions."""
FACT_WORDS = ("color", "shape", "size")
"""Of facts alone, which no caption has."""
