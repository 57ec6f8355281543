"""Every word of captions and facts; tokenizers of the world know each as one token."""

from __future__ import annotations

_ALL = (
    "a above an and appear are bearing below blue bottom central centre checkered checks circle circles cross "
    "cross-shaped crosses cyan dark diamond diamond-shaped diamonds empty exactly figures five four green ground "
    "has here image in is it large left lies lower middle no object objects of on orange over pattern picture plain "
    "purple red rest right ring ring-shaped rings round scene see shows side simple sits small something square "
    "squares striped stripes that the there thing things this three to together top triangle triangles triangular "
    "two under upper we what white with yellow"
)
WORDS = tuple(_ALL.split())
