"""Metrics: a class each, with what it needs to judge and what it says of an image or of a set."""

METRICS = {
    "clip_score": "clip_score:ClipScore",
    "long_clip_score": "clip_score:LongClipScore",
    "non_spatial": "clip_score:NonSpatial",
    "aesthetic": "aesthetic:Aesthetic",
    "vqa_score": "vqa_score:VQAScore",
    "blip_vqa": "blip_vqa:BlipVQA",
    "spatial": "spatial:Spatial",
    "three_in_one": "three_in_one:ThreeInOne",
    "dpg": "dpg:DPG",
    "geneval": "geneval:GenEval",
    "fid": "fid:FID",
    "inception_score": "inception_score:InceptionScore",
    "miniature": "miniature:MiniatureJudge",
}
"""Name -> module and class. They load when they are used."""
