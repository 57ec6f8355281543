"""A user study: blind votes on pairs of images in a local web page, and what the votes say."""
