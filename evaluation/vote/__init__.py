"""User study: blind votes on pairs of images in a local web page, and their results.

The server and its page are ours rather than gradio's. The study needs that an image's address and bytes do not reveal
its model, that a vote is on the disk before it is acknowledged and is sent again after a lost answer, and that keys
vote; gradio offers none of them without a page and endpoints of one's own, and adds 17 packages and telemetry.
"""
