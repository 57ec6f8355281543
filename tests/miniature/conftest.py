"""Small models, made once for all tests of this folder."""

from small_painters import models

__all__ = ["models"]
