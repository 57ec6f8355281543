"""The one exception of the method: a sentence for the person who wired it."""


class LLM4GENError(ValueError):
    """Bad input. The message names the input, what was found, what was expected and what to do."""
