"""Small models, made once for all tests of this folder."""

from small_painters import models, plain, sd15

__all__ = ["models", "plain", "sd15"]
